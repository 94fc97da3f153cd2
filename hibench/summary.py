"""Sweeps too large to be read line by line, summed up: a line per method and kind with the range of every number."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from hibench.columns import SPEED, metric_names, metric_title, unit_of
from hibench.lines import NOTHING, Row, format_value, number
from hibench.typeset import escape_markdown

__all__ = ["LARGE", "Summary", "failures", "is_large", "split", "summarise"]

LARGE = 2000                                              # rows of all sweeps beyond which a report sums up
MOST_ROWS = 2000                                          # rows that such a report still shows in tables, smallest sweeps first
SHOWN = ("latency_p50_s", "peak_bytes")


@dataclass(frozen=True)
class Summary:
    """A table of text: a line per method and kind."""

    name: str
    cells: int
    heading: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]

    @property
    def says(self) -> str:
        """What this is, and where the cells are."""
        return (f"Sweep {self.name}: its {self.cells} cells are summed up; minimum – median – maximum over the cells that have "
                "a value.")

    def markdown(self) -> str:
        """The sentence and the table as Markdown."""
        text = [escape_markdown(self.says), "", "| " + " | ".join(self.heading) + " |",
                "|---|---|" + "---:|" * (len(self.heading) - 2)]
        return "\n".join([*text, *("| " + " | ".join(map(escape_markdown, line)) + " |" for line in self.lines), ""])

    def csv(self) -> str:
        """The table as CSV."""
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([self.heading, *self.lines])
        return out.getvalue()


def is_large(sweeps: dict[str, list[Row]]) -> bool:
    """Whether a report on these sweeps sums up: every cell in tables and plots would take minutes, and nobody read it."""
    return sum(map(len, sweeps.values())) > LARGE


def split(sweeps: dict[str, list[Row]]) -> tuple[dict[str, list[Row]], dict[str, list[Row]]]:
    """Of a large report: the sweeps that have a table with every cell, and those that are summed up, both in their order."""
    left, shown = MOST_ROWS, set()
    for name, rows in sorted(sweeps.items(), key=lambda item: len(item[1])):
        if len(rows) <= left:
            shown.add(name)
            left -= len(rows)
    return ({name: rows for name, rows in sweeps.items() if name in shown},
            {name: rows for name, rows in sweeps.items() if name not in shown})


def summarise(name: str, rows: Sequence[Row]) -> Summary:
    """One sweep: per method and kind (speed: and machine) the number of cells by status, and the range of every number."""
    metrics = metric_names(row for row in rows if row["kind"] == "quality")
    statuses = sorted({row["status"] for row in rows}, key=lambda status: (status != "ok", status))
    fields: list[tuple[str, float, str]] = []             # field, scale, title
    for field, title, quantity, _, _ in SPEED:
        if field in SHOWN and (known := sorted(filter(None, (row[field] for row in rows)))):
            scale, unit = unit_of(quantity, known)
            fields.append((field, scale, f"{title} ({unit})"))
    fields += [(metric, 1.0, escape_markdown("@".join(filter(None, metric_title(metric))))) for metric in metrics]
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        machine = str(row["hardware"] or "") if row["kind"] == "speed" else ""
        groups.setdefault((row["method"], row["kind"], machine), []).append(row)
    machines = len({machine for _, kind, machine in groups if kind == "speed"}) > 1
    lines = []
    for (method, kind, machine), mine in groups.items():
        counts = Counter(row["status"] for row in mine)
        spans = [_span(mine, field, scale) for field, scale, _ in fields]
        lines.append((method, f"{kind}, {machine}" if machines and machine else kind, str(len(mine)),
                      *(str(counts[status]) for status in statuses), *spans))
    return Summary(name, len(rows), ("Method", "Kind", "Cells", *statuses, *(title for _, _, title in fields)), tuple(lines))


def _span(rows: Sequence[Row], field: str, scale: float) -> str:
    """`smallest – median – largest` of a field; one number where they are the same."""
    entries = ((row, row["_metrics"].get(field)) for row in rows)
    found = (number(row.get(field) if entry is None else entry.get("value")) for row, entry in entries)
    values = sorted(value for value in found if value is not None)
    if not values:
        return NOTHING
    ends = dict.fromkeys(format_value(value, None, scale) for value in (values[0], values[len(values) // 2], values[-1]))
    return " – ".join(ends)


def failures(rows: Sequence[Row]) -> list[str]:
    """Markdown lines of all cells without a full result, counted by method, kind, status and reason with the id of one."""
    groups: dict[tuple[str, str, str, str], list[str]] = {}
    for row in rows:
        missing = "; ".join(f"{name}: {reason}" for name, reason in row["_missing"].items())
        groups.setdefault((row["method"], row["kind"], row["status"], row["reason"] or missing), []).append(row["id"])
    text = [f"{len(rows)} cells, summed up by reason; each is a line of records.csv.", "",
            "| Method | Kind | Status | Reason | Cells | One of them |", "|---|---|---|---|---:|---|"]
    for (method, kind, status, reason), ids in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])):
        said = " | ".join(map(escape_markdown, (method, kind, status, reason)))
        text.append(f"| {said} | {len(ids)} | `{ids[0]}` |")
    return text
