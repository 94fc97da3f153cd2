"""What a table or a plot is made of: a method's speed row and quality row at one point of the axes, and numbers as text."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["BASELINES", "MINUS", "NOTHING", "Entry", "Line", "Row", "format_value", "interval", "number", "pair", "plain",
           "resolution_text", "settings_text"]

Row = dict[str, Any]                                      # one record, flattened by hibench.rows
BASELINES = {"real": "floor", "gaussian": "ceiling"}      # reference points by adapter name; they compete for nothing
MINUS = "−"
NOTHING = "—"


@dataclass
class Entry:
    """One field of a table; `value` and `pm` are in the base unit, `text` replaces them where there is no number."""

    value: float | None = None
    pm: float | None = None
    text: str = NOTHING
    notes: list[str] = field(default_factory=list)
    best: bool = False


@dataclass
class Line:
    """What one method did at one point of the axes: its speed row and its quality row, whichever exist."""

    method: str
    role: str | None                                      # "floor" | "ceiling" of a baseline, None for a competitor
    height: int
    width: int
    steps: int | None
    sparsity: float
    options: tuple[tuple[str, str], ...]
    hardware: str | None = None
    speed: Row | None = None
    quality: Row | None = None
    entries: dict[str, Entry] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The method, with its role when it is a baseline."""
        return f"{self.method} ({self.role})" if self.role else self.method


def number(value: Any) -> float | None:
    """A finite float, or None for null, NaN, infinity and anything that is not a number."""
    if value is None or type(value) is float:             # most of them: quickly
        return value if value is not None and math.isfinite(value) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def resolution_text(height: int, width: int) -> str:
    """`64²` for a square, `64×128` (height × width) otherwise."""
    return f"{height}²" if height == width else f"{height}×{width}"


def settings_text(line: Line, names: Iterable[str] = ("steps", "sparsity", "options")) -> str:
    """The axes of a line besides method and resolution, as `50 steps, s = 0.75, collage=pixel`."""
    parts = []
    if "steps" in names and line.steps is not None:
        parts.append(f"{line.steps} step" + "s" * (line.steps != 1))
    if "sparsity" in names:
        parts.append(f"s = {line.sparsity:g}")
    if "options" in names:
        parts += [f"{name}={value}" for name, value in line.options]
    return ", ".join(parts)


def interval(row: Row | None, name: str) -> tuple[float, float, float] | None:
    """Value, lower and upper end of a measured field; None without a value, NaN ends without an interval."""
    if row is None:
        return None
    if name in row["_metrics"]:
        value, pm = number(row["_metrics"][name].get("value")), number(row["_metrics"][name].get("pm"))
        low, high = (None, None) if value is None or pm is None else (value - pm, value + pm)
    else:
        value, (low, high) = number(row.get(name)), row["_intervals"].get(name, (None, None))
    if value is None:
        return None
    return value, math.nan if low is None else low, math.nan if high is None else high


def pair(rows: Iterable[Row]) -> list[Line]:
    """Join the speed and the quality row of the same method, axes and options; several machines give several lines."""
    lines: dict[tuple[Any, ...], Line] = {}
    beside: dict[tuple[Any, ...], list[Line]] = {}        # the lines of all machines at one place
    quality: dict[tuple[Any, ...], Row] = {}
    order: dict[str, int] = {}
    for row in rows:
        order.setdefault(row["method"], len(order))
        options = tuple(sorted((name, str(value)) for name, value in row["_options"].items()))
        place = (row["method"], BASELINES.get(row["adapter"]), row["height"], row["width"], row["steps"],
                 row["sparsity"] or 0.0, options)
        if row["kind"] == "speed":
            on = (*place, row["hardware"])
            if on in lines:
                lines[on].speed = row
            else:
                lines[on] = Line(*place, hardware=row["hardware"], speed=row)
                beside.setdefault(place, []).append(lines[on])
        elif row["kind"] == "quality":
            quality[place] = row
    for place, row in quality.items():
        if place not in beside:
            nowhere = (*place, None)
            lines[nowhere] = Line(*place)
            beside[place] = [lines[nowhere]]
        for line in beside[place]:
            line.quality = row
    sparse = len({line.sparsity for line in lines.values() if not line.role}) > 1

    def rank(line: Line) -> tuple[Any, ...]:
        block, machine = (line.height * line.width, line.height, line.role is not None, line.steps or 0), line.hardware or ""
        if sparse:                                        # the sparsities of one method below one another
            return (*block, order[line.method], line.options, machine, line.sparsity)
        return (*block, line.options, order[line.method], machine)

    return sorted(lines.values(), key=rank)


def format_value(value: float, pm: float | None, scale: float = 1.0) -> str:
    """`12.3 ± 0.4`: the interval gets one digit (two below 3.55), the value as many; three digits without an interval.

    >>> format_value(0.01234, 0.00021, 1e3), format_value(1234.4, None)
    ('12.34 ± 0.21', '1234')
    """
    value, pm = value * scale, None if pm is None else pm * scale
    if pm:
        exponent = math.floor(math.log10(pm))
        places = max(0, -exponent + (1 if pm / 10.0**exponent < 3.55 else 0))
    else:
        places = 0 if value == round(value) else max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{places}f}".replace("-", MINUS)
    return text if pm is None else f"{text} ± {pm:.{places}f}"


def plain(value: float | None) -> float | int | None:
    """Whole numbers without a decimal point."""
    return int(value) if value is not None and value == int(value) else value
