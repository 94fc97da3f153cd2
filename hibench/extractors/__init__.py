"""Feature networks and weight-free descriptors behind one interface (see hibench.features)."""

__all__: list[str] = []
