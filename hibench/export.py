"""The tidy table of records for other programs: flat JSON, and Parquet where pyarrow is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hibench.errors import HibenchError
from hibench.report import load_table

__all__ = ["EXPORTS", "records_json", "write_export"]

EXPORTS = ("json", "parquet")


def records_json(results: Path) -> str:
    """One flat object per record, with the columns of `--format csv`; what is empty there is left out."""
    frame = load_table(results)
    rows = [{name: _plain(value) for name, value in row.items() if _known(value)} for row in frame.to_dict("records")]
    return json.dumps(rows, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _known(value: Any) -> bool:
    import pandas as pd

    return value != "" and not bool(pd.isna(value))


def _plain(value: Any) -> Any:
    """A numpy scalar as Python's own."""
    return value.item() if hasattr(value, "item") else value


def write_export(results: Path, path: Path, kind: str) -> Path:
    """Write `path` as `json` or `parquet`; returns it. Raises HibenchError where pyarrow is missing or there are no records."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "json":
        path.write_text(records_json(results), encoding="utf-8", newline="\n")
        return path
    frame = load_table(results)
    try:
        import pyarrow  # type: ignore[import-not-found,import-untyped,unused-ignore]  # noqa: F401
    except ImportError:
        raise HibenchError(f"{path}: Parquet needs pyarrow, which is not installed; next: pip install pyarrow, or use "
                           "--format csv or json") from None
    frame.to_parquet(path, index=False)
    return path
