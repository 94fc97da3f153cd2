"""The tidy table: all records as columns, as a DataFrame, and as CSV without pandas, which takes half of the time."""

from __future__ import annotations

import csv
import io
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TextIO

from hibench.columns import metric_names
from hibench.lines import Row, number
from hibench.record_index import without_collector

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["csv_text", "frame", "tidy_columns", "write_csv"]

FIRST = ("key", "method", "kind", "status", "height", "width", "steps", "sparsity", "latency_p50_s", "latency_p90_s",
         "latency_lo_s", "latency_hi_s", "peak_bytes", "peak_source", "weights_bytes", "first_image_s", "load_s", "flops",
         "nfe", "coordinates", "energy_j_per_image", "n", "reason", "flags", "id", "parameters")
COUNTS = ("height", "width", "steps", "peak_bytes", "weights_bytes", "flops", "nfe", "coordinates", "n", "parameters", "images",
          "processes")


def tidy_columns(rows: list[Row]) -> dict[str, list[Any]]:
    """Column name → a value per row, None where it is unknown; counts are whole where all of them are, numbers floats.

    The columns that every table has come first, then options, then a column per metric and its `_pm`, then provenance."""
    metrics = metric_names(row for row in rows if row["kind"] != "speed")
    options = sorted({name for row in rows for name in row["_options"]})
    plain = [name for name in rows[0] if not name.startswith("_")]
    known, nothing = itemgetter(*plain), (None,) * (2 * len(metrics))
    lines = []
    for row in rows:                                      # row by row and then turned: faster than column by column
        line = [*known(row), *map(row["_options"].get, options)]
        entries = row["_metrics"]
        for entry in map(entries.get, metrics) if entries else ():
            line += (None, None) if entry is None else (number(entry.get("value")), number(entry.get("pm")))
        lines.append(line if entries else [*line, *nothing])
    named = [f"option.{name}" for name in options], [part for name in metrics for part in (name, f"{name}_pm")]
    made: dict[str, list[Any]] = dict(zip((*plain, *named[0], *named[1]), map(list, zip(*lines))))
    if not any(value is not None for value in made["coordinates"]):
        del made["coordinates"]
    first = [name for name in FIRST if name in made]
    order = [*first, *named[0], *named[1], *(name for name in plain if name in made and name not in first)]
    return {name: _numbers(made[name], name in COUNTS) for name in order}


def _numbers(values: list[Any], count: bool) -> list[Any]:
    """A column of numbers in one type: int for counts without a fraction and for whole columns of int, else float."""
    types = set(map(type, values))
    if not types <= {int, float, type(None)} or types <= {type(None)} or (not count and int not in types):
        return values
    whole = all(value.is_integer() for value in values if type(value) is float) if count else types == {int}
    kind = int if whole else float
    return values if types <= {kind, type(None)} else [None if value is None else kind(value) for value in values]


def frame(rows: list[Row]) -> "pd.DataFrame":
    """The columns as a DataFrame: counts as Int64 where they are whole, other numbers as float64."""
    import pandas as pd

    columns = tidy_columns(rows)
    made: pd.DataFrame = pd.DataFrame(columns)
    numbers = {name for name in columns if name.endswith(("_pm", "_s", "_j_per_image")) or f"{name}_pm" in columns}
    for name in [str(column) for column in made.columns]:
        if name in numbers or name in COUNTS:
            made[name] = made[name].astype("float64")
        if name in COUNTS and bool((made[name].dropna() % 1 == 0).all()):
            made[name] = made[name].astype("Int64")
    return made


def write_csv(rows: list[Row], out: TextIO) -> None:
    """Write the columns as CSV, one line per row; empty fields where a number is unknown. The text that pandas would write."""
    with without_collector():
        columns = tidy_columns(rows)
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values()))


def csv_text(rows: list[Row]) -> str:
    """What `write_csv` writes."""
    out = io.StringIO()
    write_csv(rows, out)
    return out.getvalue()
