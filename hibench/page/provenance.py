"""Where every number comes from: the record behind it, with weights, settings, environment and where it lies."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hibench.lines import Row

__all__ = ["last_lines", "of_rows"]

LEFT_OUT = ("id", "reason", "flags", "method_options")
MOST_LINES, MOST_BYTES = 60, 20_000


def of_rows(rows: list[Row], results: Path, out: Path) -> dict[str, Any]:
    """For every record id what it says, without what is unknown; `path` is the record relative to the page."""
    found: dict[str, Any] = {}
    for row in rows:
        said = {name: value for name, value in row.items() if value is not None and name[0] != "_" and name not in LEFT_OUT}
        said |= {name: value for name, value in (("reason", row["reason"]), ("options", row["_options"])) if value}
        if row["method_options"] not in (None, "{}"):
            said["method_options"] = row["method_options"]
        place = Path("cells") / row["id"][:2] / row["id"] / "record.json"
        found[row["id"]] = {"fields": said, "metrics": row["_metrics"], "flags": row["_flags"],
                            "missing": {**row["_missing"], **row["_inapplicable"]},
                            "place": place.as_posix(), "path": _relative(results / place, out)}
    return found


def _relative(path: Path, out: Path) -> str:
    return Path(os.path.relpath(path, out)).as_posix()


def last_lines(results: Path, row: Row) -> str:
    """The end of a cell's log: at most 60 lines and 20 000 bytes; "" where there is none."""
    path = results / "cells" / row["id"][:2] / row["id"] / "log.txt"
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - MOST_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.rstrip().splitlines()[-MOST_LINES:])
