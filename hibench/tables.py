"""Tables from records: pair speed with quality, mark the best where the intervals allow it, note every failure."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hibench.columns import Column, attached, columns_of, metric_names, metric_title
from hibench.lines import Entry, Line, Row, interval, number, pair, plain
from hibench.relative import fill_ratios

__all__ = ["Table", "build"]

PEAK_SOURCES = {"cuda-allocated": "allocated by torch on the device",
                "rss-over-idle": "resident set of the process above its idle size"}


@dataclass
class Table:
    """A sweep as a table: `lines` in blocks of one resolution, `notes` from footnote text to its letter."""

    name: str
    caption: str
    columns: list[Column]
    lines: list[Line]
    notes: dict[str, str]


def build(name: str, rows: list[Row]) -> Table:
    """The table of one sweep; `rows` are flattened records, in the order in which the methods are to appear."""
    lines = pair(rows)
    columns = columns_of(lines, metric_names(row for row in rows if row["kind"] == "quality"))
    notes: dict[str, str] = {}
    for line in lines:
        for kind in ("speed", "quality"):
            _fill(line, [column for column in columns if column.kind == kind], kind, notes)
    fill_ratios(lines, columns)
    group = _groups(lines)
    for column in columns:
        _mark_best(lines, column, group)
    return Table(name, _caption(lines, columns), columns, lines, notes)


def _fill(line: Line, columns: list[Column], kind: str, notes: dict[str, str]) -> None:
    """Put numbers, or the status with its reason as a footnote, into the fields of one kind."""
    row = line.speed if kind == "speed" else line.quality
    for position, column in enumerate(columns):
        entry = line.entries[column.field] = Entry()
        if row is None:
            continue
        if row["status"] != "ok":
            if position == 0:
                entry.text = row["status"]
                entry.notes = [_note(notes, f"{row['status']}: {row['reason'] or 'no reason was recorded'}")]
            continue
        measured = interval(row, column.field)
        if measured is not None:
            entry.value, low, high = measured
            said = (row["_metrics"].get(column.field) or {}).get("pm")
            spread = max(high - entry.value, entry.value - low)
            entry.pm = number(said) if said is not None else None if math.isnan(low) or math.isnan(high) else spread
        elif missing := _reason(row["_missing"], column):
            entry.text, entry.notes = "missing", [_note(notes, missing)]
        elif inapplicable := _reason(row["_inapplicable"], column):
            entry.notes = [_note(notes, inapplicable)]
        if position == 0:
            entry.notes += [_note(notes, text) for text in row["_flags"]]


def _reason(reasons: dict[str, str], column: Column) -> str | None:
    """Why there is no value in a column, with its title in front; None when nothing is said about it."""
    said = next((why for name, why in reasons.items() if attached(name, [column.field]) == column.field), None)
    return None if said is None else f"{column.title}: {_bare(said, column.field)}"


def _bare(why: str, name: str) -> str:
    """A reason without the metric's own name in front, which the title says better."""
    return re.sub(rf"^{re.escape(name.partition('@')[0])}(@\S*)?: ", "", why)


def _note(notes: dict[str, str], text: str) -> str:
    """The letter of a footnote, a new one (a, b, … z, aa, ab, …) for a text that is not there yet."""
    if text not in notes:
        rest, letters = len(notes), ""
        while rest >= 0:
            letters, rest = chr(ord("a") + rest % 26) + letters, rest // 26 - 1
        notes[text] = letters
    return notes[text]


def _groups(lines: list[Line]) -> Callable[[Line], tuple[Any, ...]]:
    """What competes: methods at the same axes, or, in a sweep of one method, its settings at the same resolution."""
    if len({line.method for line in lines if not line.role}) > 1:
        return lambda line: (line.height, line.width, line.steps, line.sparsity, line.options)
    return lambda line: (line.height, line.width)


def _mark_best(lines: list[Line], column: Column, group: Callable[[Line], tuple[Any, ...]]) -> None:
    """Mark a value as best only where its interval overlaps with no competitor's, and all were measured alike."""
    if column.better not in ("lower", "higher") or column.ratio_of:
        return
    groups: dict[tuple[Any, ...], dict[str, list[Line]]] = {}
    for line in lines:
        row = line.speed if column.kind == "speed" else line.quality
        if row is not None and line.role is None and line.entries[column.field].value is not None:
            place = (*group(line), *((line.hardware,) if column.kind == "speed" else ()))
            groups.setdefault(place, {}).setdefault(row["id"], []).append(line)
    sign = 1.0 if column.better == "lower" else -1.0
    for members in groups.values():
        found = [(_ends(same[0], column, sign), same) for same in members.values()]
        alike = len({_protocol(same[0], column) for same in members.values()}) == 1
        if len(found) < 2 or not alike or any(math.isnan(low) or math.isnan(high) for (_, low, high), _ in found):
            continue
        found.sort(key=lambda item: item[0])
        if found[0][0][2] < min(low for (_, low, _), _ in found[1:]):
            for line in found[0][1]:
                line.entries[column.field].best = True


def _ends(line: Line, column: Column, sign: float) -> tuple[float, float, float]:
    """Value and interval turned so that lower is better."""
    value, low, high = interval(line.speed if column.kind == "speed" else line.quality, column.field) or (math.nan,) * 3
    return (value, low, high) if sign > 0 else (-value, -high, -low)


def _protocol(line: Line, column: Column) -> tuple[Any, ...]:
    """What has to agree before two numbers may be compared."""
    if column.kind == "speed":
        return ((line.speed or {}).get("peak_source"),) if column.field == "peak_bytes" else ()
    entry = (line.quality or {})["_metrics"][column.field]
    return tuple(entry.get(name) for name in ("n", "n_reference", "weights_sha256", "resize", "reference_digest"))


def _caption(lines: list[Line], columns: list[Column]) -> str:
    """Everything a reader needs in order not to misread the table: n, extractor, reference, machine, units, marks."""
    speed = [line.speed for line in lines if line.speed and line.speed["status"] == "ok"]
    entries = [entry for line in lines if line.quality for entry in line.quality["_metrics"].values()]
    says = []
    if entries:
        rule = _values(entries, "pm_rule") or "not recorded"
        says.append(f"n = {_span(entries, 'n')} images per quality cell; ± of quality: {rule}.")
        for extractor in sorted({str(entry["extractor"]) for entry in entries if entry.get("extractor")}):
            mine = [entry for entry in entries if entry.get("extractor") == extractor]
            said = f"Extractor {extractor} (weights {_values(mine, 'weights_sha256', 8) or 'not recorded'}"
            said += f", resize {_values(mine, 'resize')})" if _values(mine, "resize") else ")"
            if _values(mine, "reference"):
                said += f" against reference {_values(mine, 'reference')} (digest {_values(mine, 'reference_digest', 8)}, "
                said += f"n = {_span(mine, 'n_reference')} images)"
            says.append(f"{said}.")
    if speed:
        several = any((row["processes"] or 0) > 1 for row in speed)
        rule = "one process has no interval"
        if several:
            rule = "± is the wider side of its 95 % confidence interval over processes"
        says.append(f"Latency per image: median over {_span(speed, 'images')} images in {_span(speed, 'processes')} "
                    f"process{'es' if several else ''} on {_values(speed, 'hardware')}; {rule}.")
        sources = {str(row["peak_source"]) for row in speed if row["peak_source"]}
        peaks = sorted(PEAK_SOURCES.get(source, source) for source in sources)
        if peaks:
            says.append(f"Peak memory: {' or '.join(peaks)}; ± is its range over processes.")
        if len({row["software_digest"] for row in speed}) > 1:
            says.append("Latencies come from different software versions.")
    fields, units = {column.field for column in columns}, {column.unit for column in columns}
    if any(column.ratio_of for column in columns):
        says.append("Sparsity s: fraction of coordinates not evaluated. Speed-up and memory saved: latency and peak memory "
                    "at s = 0 of the same method, resolution and steps, divided by the line's own; ± from the ends of both.")
    if "coordinates" in fields:
        says.append("Coordinates: evaluated by the sparse level for one image, summed over the steps.")
    says += [f"{unit} = {size} bytes." for unit, size in (("MiB", "2^20"), ("GiB", "2^30")) if unit in units]
    if any(line.height != line.width for line in lines):
        says.append("Resolution is height × width.")
    says += _nowhere(lines, columns)
    several = len({line.method for line in lines if not line.role}) > 1
    says.append(f"Bold: the best {'method at equal axes' if several else 'setting at equal resolution'}, marked only where its "
                "interval overlaps no other's.")
    if any(line.role for line in lines):
        says.append("Baselines marked floor and ceiling are reference points and do not compete.")
    return " ".join(says)


def _nowhere(lines: list[Line], columns: list[Column]) -> list[str]:
    """One sentence per metric that says something about no line, so that it has no column."""
    fields = [column.field for column in columns]
    found: dict[str, set[str]] = {}
    for name, why in {item for line in lines for item in (line.quality or {}).get("_inapplicable", {}).items()}:
        if not any(attached(name, [field]) == field for field in fields):
            found.setdefault("@".join(filter(None, metric_title(name))), set()).add(_bare(why, name))
    return [f"{title} is inapplicable throughout: {'; '.join(sorted(found[title]))}." for title in sorted(found)]


def _values(rows: list[Row], name: str, letters: int | None = None) -> str:
    said = {row[name] for row in rows if row.get(name) is not None}
    texts = sorted({str(plain(value) if isinstance(value, float) else value)[:letters] for value in said})
    return ", ".join(texts) if len(texts) <= 4 or letters is None else f"{len(texts)} different"


def _span(rows: list[Row], name: str) -> str:
    counts = sorted({int(row[name]) for row in rows if number(row.get(name)) is not None})
    return f"{counts[0]}" if len(counts) == 1 else f"{counts[0]}–{counts[-1]}" if counts else "unknown"
