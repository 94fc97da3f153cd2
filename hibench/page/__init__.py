"""One self-contained HTML page from records: tables, plots, a sample browser, failures and every number's provenance."""

from __future__ import annotations

from hibench.page.write import PAGE, write_page

__all__ = ["PAGE", "write_page"]
