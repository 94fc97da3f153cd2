"""Which record answers a cell of a figure, its value with interval, or the reason why there is none."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from hibench.columns import metric_title
from hibench.figures.catalogue import Cell, Line
from hibench.lines import Row, interval, resolution_text

__all__ = ["FIELDS", "Value", "both", "common_protocol", "merged", "metric_of", "pick", "protocol_of", "rows_of", "title_of",
           "value_of"]

FIELDS = {                                                # of speed records: title, unit, factor, direction
    "latency": ("latency_p50_s", "Latency", "s", 1.0, "lower"),
    "peak-memory": ("peak_bytes", "Peak memory", "MiB", 2.0**-20, "lower"),
    "parameters": ("parameters", "Parameters", "M", 1e-6, "none"), "flops": ("flops", "FLOPs", "GFLOP", 1e-9, "none"),
    "nfe": ("nfe", "NFE", "", 1.0, "none"),
}
OTHER = {"fid": "fd", "kid": "kd", "pfid": "pfd", "fid-crop": "fd-crop", "anyres-pfid": "anyres-pfd", "fid-inf": "fd-inf"}


@dataclass(frozen=True)
class Value:
    """A value in the unit of its column; where there is none, `reason` says why. `row` is the record behind it."""

    value: float | None = None
    pm: float | None = None
    reason: str = ""
    row: Row | None = None


def both(line: Cell, column: Cell) -> Cell:
    """The place of a line narrowed by that of a column; the column decides where both say something."""
    first = [column.resolution, column.steps, column.sparsity]
    second = [line.resolution, line.steps, line.sparsity]
    size, steps, sparsity = (a if a is not None else b for a, b in zip(first, second))
    return Cell(size, steps, sparsity, tuple(sorted({**dict(line.options), **dict(column.options)}.items())))  # type: ignore[arg-type]


def merged(row: Row) -> dict[str, Any]:
    """The options of a record: the method's own, and over them those of the sweep's axes."""
    return {**json.loads(row["method_options"] or "{}"), **row["_options"]}


def rows_of(rows: list[Row], method: str, at: Cell, kind: str) -> list[Row]:
    """The records of a method at a place, those with a result first, then by least sparsity, most images, most steps, newest.

    Records whose method has the name go before records whose adapter has it."""
    named = [row for row in rows if row["method"] == method] or [row for row in rows if row["adapter"] == method]
    found = []
    for row in named:
        options = merged(row)
        fits = row["kind"] == kind and (at.resolution is None or (row["height"], row["width"]) == at.resolution)
        fits = fits and (at.steps is None or row["steps"] in (at.steps, None))
        fits = fits and (at.sparsity is None or math.isclose(row["sparsity"], at.sparsity))
        if fits and all(options.get(name) in values for name, values in at.options):
            found.append(row)
    newest = sorted(found, key=lambda row: (str(row["started_at"]), row["id"]), reverse=True)
    return sorted(newest, key=lambda row: (row["status"] != "ok", row["sparsity"], -(row["n"] or 0), -(row["steps"] or 0)))


def metric_of(rows: list[Row], wanted: str) -> str:
    """The metric in the records that a family or a full name stands for; the wanted name itself where there is none.

    `fid` is met by `fid`, else by `fd@EXTRACTOR`; `pfid@32` by `pfid@32/256-x1-native-s0` or `pfd@EXTRACTOR@32/256-…`. Of
    several the one that most records have."""
    family, *asked = wanted.split("@")

    def meets(name: str) -> bool:
        head, *parts = name.split("@")
        return head in (family, OTHER.get(family, family)) and all(
            any(part == one or part.startswith((f"{one}/", f"{one}-")) for part in parts) for one in asked)

    counts: dict[str, int] = {}
    for row in rows:
        for name in row["_metrics"]:
            counts[name] = counts.get(name, 0) + 1
        for name in (*row["_missing"], *row["_inapplicable"]):
            counts.setdefault(name, 0)                    # its reason can be shown
    return max(sorted(filter(meets, counts)), key=lambda name: (name == wanted, counts[name]), default=wanted)


def value_of(row: Row, metric: str) -> Value:
    """The value of one record, in the unit of FIELDS or as the metric has it."""
    if metric in FIELDS:
        field, _, _, scale, _ = FIELDS[metric]
    else:
        field, scale = metric, 1.0
    measured = interval(row, field)
    if measured is None:
        said = row["_missing"].get(metric) or row["_inapplicable"].get(metric)
        return Value(reason=said or f"the record has no {metric}", row=row)
    value, low, high = measured
    pm = None if math.isnan(low) or math.isnan(high) else max(high - value, value - low) * scale
    return Value(value * scale, pm, row=row)


def protocol_of(row: Row, metric: str) -> tuple[Any, ...]:
    """What has to agree before two numbers may be compared."""
    if row["kind"] == "speed":
        return row["height"], row["width"], row["hardware"], row["peak_source"]
    entry = row["_metrics"].get(metric, {})
    return tuple(entry.get(name) for name in ("n", "n_reference", "weights_sha256", "resize", "reference_digest"))


def _candidates(rows: list[Row], line: Line, metric: str, at: Cell) -> list[Row]:
    kinds = ("speed", "quality") if metric == "parameters" else ("speed",) if metric in FIELDS else ("quality",)
    return [row for kind in kinds for row in rows_of(rows, line.method, at, kind)]


def common_protocol(rows: list[Row], lines: list[Line], metric: str, ats: list[Cell]) -> tuple[Any, ...] | None:
    """The protocol under which most lines have a value, of several that with the most images; None where there is no value."""
    counts: dict[tuple[Any, ...], int] = {}
    for line, at in zip(lines, ats):
        found = [row for row in _candidates(rows, line, metric, at) if row["status"] == "ok"]
        for protocol in {protocol_of(row, metric) for row in found if value_of(row, metric).value is not None}:
            counts[protocol] = counts.get(protocol, 0) + 1
    return max(counts, key=lambda one: (counts[one], one[0] or 0, str(one)), default=None)


def pick(rows: list[Row], line: Line, metric: str, at: Cell, protocol: tuple[Any, ...] | None = None) -> Value:
    """The value of a line at a place, or why it is missing: no record, a failed one, or one without this metric.

    Of several records one under `protocol`, if there is one; else the first of `rows_of` that has the metric."""
    found = _candidates(rows, line, metric, at)
    if not found:
        return Value(reason=f"no record of {line.method}{_where(at)}")
    if metric != "parameters" and found[0]["status"] != "ok":
        return Value(reason=f"{found[0]['status']}: {found[0]['reason'] or 'no reason was recorded'}", row=found[0])
    known = [row for row in found if row["status"] == "ok" and value_of(row, metric).value is not None]
    alike = [row for row in known if protocol_of(row, metric) == protocol]
    return value_of((alike or known or found)[0], metric)


def _where(at: Cell) -> str:
    parts = [f"at {resolution_text(*at.resolution)}" if at.resolution else "", f"{at.steps} steps" if at.steps else "",
             f"s = {at.sparsity:g}" if at.sparsity is not None else ""]
    parts += [f"{name} = {' or '.join('default' if value is None else str(value) for value in values)}"
              for name, values in at.options]
    said = ", ".join(part for part in parts if part)
    return f" {said}" if said else ""


def title_of(metric: str) -> tuple[str, str]:
    """Title and unit or extractor of a metric of a figure."""
    if metric in FIELDS:
        return FIELDS[metric][1], FIELDS[metric][2]
    title, extractor = metric_title(metric)
    return title, f"@{extractor}" if extractor else ""
