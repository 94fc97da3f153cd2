"""Speed and memory of sparse sampling relative to the same method at s = 0 (the sparsity table of ∞-Diff, arXiv 2303.18242)."""

from __future__ import annotations

import math
from typing import Any

from hibench.columns import Column
from hibench.lines import Entry, Line, interval

__all__ = ["fill_ratios"]


def fill_ratios(lines: list[Line], columns: list[Column]) -> None:
    """Fill the columns that are ratios: what the s = 0 line of the same method, axes and machine needs, over what a line needs.

    1.3 in Speed-up reads "1.3× faster". ± is the wider side of the quotients of the interval ends; no s = 0 line, no ratio."""
    for column in [column for column in columns if column.ratio_of]:
        dense = {_place(line): interval(line.speed, column.ratio_of) for line in lines if line.sparsity == 0}
        for line in lines:
            mine, whole = interval(line.speed, column.ratio_of), dense.get(_place(line))
            if mine is not None and whole is not None and mine[0] > 0:
                line.entries[column.field] = _ratio(whole, mine) if line.sparsity else Entry(1.0)


def _place(line: Line) -> tuple[Any, ...]:
    return line.method, line.height, line.width, line.steps, line.options, line.hardware


def _ratio(whole: tuple[float, float, float], mine: tuple[float, float, float]) -> Entry:
    """Quotient of two (value, lower, upper); `pm` is None where an interval is unknown or reaches zero."""
    value = whole[0] / mine[0]
    if any(map(math.isnan, (*whole, *mine))) or mine[1] <= 0:
        return Entry(value)
    return Entry(value, max(whole[2] / mine[1] - value, value - whole[1] / mine[2]))
