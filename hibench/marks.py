"""What the panels of plots share: reference lines of the baselines, crosses for failed cells, the order of the legend."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hibench import draw
from hibench.lines import Line, format_value
from hibench.measures import NO_SPAN, Measure, length, natural, points_of, x_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Looks", "baselines", "mark_failed", "ordered"]

Looks = dict[str, dict[str, Any]]


def baselines(axes: "Axes", lines: list[Line], axis: str, measure: Measure, handles: dict[str, Any]) -> None:
    """Lines of real and gaussian where they fit beside the data; above the panel a note with their value where they do not."""
    low, high = axes.get_ylim()
    place = (lambda value: math.log10(max(value, 1e-12))) if axes.get_yscale() == "log" else float
    notes = []
    for name, group in itertools.groupby(sorted(lines, key=lambda line: line.name), lambda line: line.name):
        mine = [line for line in group if measure.of(line)]
        if not mine:
            continue
        values = [(measure.of(line) or NO_SPAN)[0] for line in mine]
        span = place(high) - place(low)
        above = place(max(values)) - place(high) > 0.5 * span
        if above or place(low) - place(min(values)) > 0.5 * span:
            ends = dict.fromkeys(format_value(end, None) for end in (min(values), max(values)))
            notes.append(f"{name} {'–'.join(ends)} {'↑' if above else '↓'}")
            continue
        look = draw.BASELINE[mine[0].role or "floor"]
        points = points_of(mine, axis, measure)
        if axis == "resolution" and len(points) > 1:
            errors = [[length(point[1:], end) for point in points] for end in (1, 2)]
            handles[name] = axes.errorbar([point[0] for point in points], [point[1] for point in points], yerr=errors,
                                          capsize=1.8, zorder=1.5, **look)
        else:
            handles[name] = axes.axhline(values[0], zorder=1.5, **look)
        reach = [place(end) for end in axes.get_ylim()]
        reach = [min(place(min(values)) - 0.05 * span, reach[0]), max(place(max(values)) + 0.05 * span, reach[1])]
        axes.set_ylim(*((10**end for end in reach) if axes.get_yscale() == "log" else reach))
    if notes:
        axes.set_title("\n".join(notes), loc="right", fontsize=6, color="0.35", pad=2, linespacing=1.05)


def mark_failed(axes: "Axes", lines: list[Line], axis: str, measure: Measure, colour: Callable[[Line], str]) -> bool:
    """A cross with the status above the data for every cell that has no result; True when there is one."""
    stacked: dict[float, int] = {}
    leftmost = min((x for line in lines if (x := x_of(line, axis)) is not None), default=0.0)
    for line in lines:
        row, x = measure.row(line), x_of(line, axis)
        if row is None or row["status"] == "ok" or x is None:
            continue
        level = stacked[x] = stacked.get(x, -1) + 1
        look: dict[str, Any] = {"color": colour(line), "clip_on": False, "transform": axes.get_xaxis_transform()}
        axes.plot([x], [0.96 - 0.09 * level], marker="x", markersize=4.5, markeredgewidth=1.3, linestyle="", **look)
        axes.annotate(row["status"], (x, 0.96 - 0.09 * level), xycoords=axes.get_xaxis_transform(), fontsize=6, va="center",
                      xytext=(5, 0) if x == leftmost else (-5, 0), textcoords="offset points", color=look["color"],
                      ha="left" if x == leftmost else "right")
    if stacked:
        low, high = axes.get_ylim()
        more = 0.1 * (1 + max(stacked.values()))
        more /= 1 - min(more, 0.6)
        axes.set_ylim(low, high * (high / low) ** more if axes.get_yscale() == "log" else high + (high - low) * more)
    return bool(stacked)


def ordered(handles: dict[str, Any], axes: "Axes", failed: bool, key: Callable[[str], Any] = natural) -> dict[str, Any]:
    """Legend entries: curves by `key` of their label, then the baselines, the front and the mark of failures."""
    ends = "(floor)", "(ceiling)", "Pareto front"
    last = {label: handle for label, handle in handles.items() if label.endswith(ends)}
    entries = {label: handles[label] for label in sorted(handles, key=key) if label not in last} | last
    if failed:
        entries["no result (see table)"] = axes.plot([], [], "x", color="0.2", markersize=5)[0]
    return entries
