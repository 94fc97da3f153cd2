"""What a plot shows: quantities with label, unit and direction, where a line stands on an axis, and what a figure states."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from hibench.columns import metric_title, unit_of
from hibench.lines import Line, Row, interval, number, resolution_text

__all__ = ["NO_SPAN", "Ends", "Measure", "count_points", "length", "metric_of", "natural", "once", "points_of", "quantity_of",
           "says_of", "varying", "x_of"]

Ends = tuple[float, float, float]                         # value, lower and upper end
NO_SPAN: Ends = (math.nan, math.nan, math.nan)


class Measure(NamedTuple):
    """A quantity to draw: field of a row, label with unit, factor to that unit, kind of cell, direction."""

    field: str
    label: str
    scale: float
    kind: str
    better: str
    log_above: float | None                               # factor between largest and smallest that asks for a logarithmic axis

    @property
    def title(self) -> str:
        """The label without unit, arrow and extractor."""
        return self.label.split("\n")[0].split(" (")[0].rstrip(" ↓↑")

    def of(self, line: Line) -> Ends | None:
        """Value, lower and upper end in the unit of the label."""
        found = interval(self.row(line), self.field)
        return None if found is None else (found[0] * self.scale, found[1] * self.scale, found[2] * self.scale)

    def row(self, line: Line) -> Row | None:
        """The row of a line that holds this measure."""
        return line.speed if self.kind == "speed" else line.quality


def once(lines: list[Line]) -> list[Line]:
    """Lines with a quality row, each quality row once."""
    seen: dict[int, Line] = {}
    for line in lines:
        if line.quality is not None:
            seen.setdefault(id(line.quality), line)
    return list(seen.values())


def quantity_of(field: str, title: str, quantity: str, lines: list[Line]) -> Measure:
    """A speed measure in the unit that fits its values."""
    scale, unit = unit_of(quantity, sorted(found[0] for line in lines if (found := interval(line.speed, field))))
    return Measure(field, f"{title} ({unit})", scale, "speed", "lower", 3.0)


def metric_of(name: str, lines: list[Line]) -> Measure:
    """A quality measure; distances get a logarithmic axis when they span more than a factor of three."""
    entries = [line.quality["_metrics"][name] for line in lines if line.quality and name in line.quality["_metrics"]]
    better = next((str(entry["better"]) for entry in entries if entry.get("better")), "none")
    title, extractor = metric_title(name)
    scale = 1e3 if entries and max(abs(float(entry["value"])) for entry in entries) < 0.1 else 1.0
    label = title + (" ×10³" if scale != 1 else "") + {"lower": " ↓", "higher": " ↑"}.get(better, "")
    distance = title in ("FID", "FD", "KID", "KD")
    return Measure(name, label + (f"\n@{extractor}" if extractor else ""), scale, "quality", better, 3.0 if distance else None)


def x_of(line: Line, axis: str) -> float | None:
    """Where a line stands on an axis; a resolution counts as the side of the square of the same area."""
    if axis == "resolution":
        return math.sqrt(line.height * line.width)
    if axis == "sparsity":
        return line.sparsity
    return None if line.steps is None else float(line.steps)


def points_of(lines: list[Line], axis: str, measure: Measure) -> list[tuple[float, float, float, float]]:
    """Points (x, value, lower end, upper end) in the order of x."""
    found = [(x_of(line, axis), measure.of(line)) for line in lines]
    return sorted((x, *ends) for x, ends in found if x is not None and ends is not None)


def count_points(lines: list[Line], axis: str, measure: Measure) -> int:
    """How many competitors' lines have a value and a place on the axis."""
    return sum(measure.of(line) is not None and x_of(line, axis) is not None for line in lines if not line.role)


def length(ends: Sequence[float], end: int) -> float:
    """Length of an error bar; 0 where the interval is unknown."""
    return 0.0 if math.isnan(ends[end]) else abs(ends[end] - ends[0])


def varying(lines: list[Line]) -> list[str]:
    """The settings besides method and resolution that differ between lines."""
    return [part for part in ("steps", "sparsity", "options") if len({getattr(line, part) for line in lines}) > 1]


def natural(text: str) -> list[tuple[int, float, str]]:
    """Sort key by which `5 steps` comes before `10 steps`."""
    parts = re.split(r"(\d+(?:\.\d+)?)", text)
    return [(0, float(part), "") if at % 2 else (1, 0.0, part) for at, part in enumerate(parts)]


def says_of(name: str, lines: list[Line], measures: list[Measure], machine: str | None) -> str:
    """What a figure states about itself: the sweep, n, the axes that do not vary, the machine."""
    own = [line for line in lines if not line.role]
    parts = [f"Sweep {name}"]
    if any(measure.kind == "quality" for measure in measures):
        parts.append(f"n = {_span_text(line.quality['n'] for line in lines if line.quality)} images per point")
    if any(measure.kind == "speed" for measure in measures):
        timed = [line.speed for line in lines if line.speed and line.speed["status"] == "ok"]
        images, processes = (_span_text(row[name] for row in timed) for name in ("images", "processes"))
        parts.append(f"{images} timed images in {processes} process{'' if processes == '1' else 'es'} per point")
    for said in ({f"{line.steps} steps" for line in own if line.steps is not None},
                 {f"sparsity {line.sparsity:g}" for line in own if any(one.sparsity for one in own)},
                 {resolution_text(line.height, line.width) for line in own}):
        parts += said if len(said) == 1 else ()
    return ", ".join(parts) + (f"; {machine}" if machine else "")


def _span_text(values: Iterable[Any]) -> str:
    known = sorted({int(value) for value in values if number(value) is not None})
    return "unknown" if not known else str(known[0]) if len(known) == 1 else f"{known[0]}–{known[-1]}"
