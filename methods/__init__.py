"""The methods that hibench ships, each behind the adapter contract."""
