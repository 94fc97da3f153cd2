"""Plots of quality against latency, with the front of what nothing else beats in both."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hibench import draw
from hibench.draw import Drawn
from hibench.lines import Line, resolution_text, settings_text
from hibench.marks import Looks, baselines, ordered
from hibench.measures import NO_SPAN, Measure, length, says_of, varying

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["pareto"]


def pareto(name: str, stem: str, lines: list[Line], measure: Measure, latency: Measure, looks: Looks, machine: str,
            quality: list[Line]) -> Iterator[Drawn]:
    """Quality against latency (log), one panel per resolution, with the front of what nothing else beats in both."""
    both = [line for line in lines if not line.role and latency.of(line) and measure.of(line)]
    sizes = sorted({(line.height, line.width) for line in both}, key=lambda size: (size[0] * size[1], size))
    sizes = [size for size in sizes if sum((line.height, line.width) == size for line in both) > 1]
    if not sizes:
        return
    shown = sizes[:6]
    columns = min(3, len(shown))
    figure, grid, _ = draw.panels(len(shown), columns)
    handles: dict[str, Any] = {}
    for axes, size in zip(grid, shown):
        mine = [line for line in both if (line.height, line.width) == size]
        _pareto_panel(axes, mine, measure, latency, looks, handles)
        beside = [line for line in quality if line.role and (line.height, line.width) == size]
        baselines(axes, beside, "steps", measure, handles)
        draw.log_ticks(axes)
        axes.set_title(resolution_text(*size), loc="left", pad=3)
        axes.set_xlabel(latency.label)
        axes.set_ylabel(measure.label)
    says = says_of(name, both, [measure, latency], machine)
    says += f"; {len(sizes) - len(shown)} larger resolutions left out" if len(sizes) > len(shown) else ""
    entries, deep = ordered(handles, grid[0], False), math.ceil(len(shown) / columns)
    draw.finish(figure, says, entries, 2.15 if columns == 1 else 1.9, deep)
    yield Drawn(stem, f"{measure.title} against latency; the grey line is the Pareto front. {says}.", figure)


def _pareto_panel(axes: "Axes", lines: list[Line], measure: Measure, latency: Measure, looks: Looks,
                  handles: dict[str, Any]) -> None:
    """One resolution: points with error bars in both directions, settings beside them where a method has several."""
    points = [(line, latency.of(line) or NO_SPAN, measure.of(line) or NO_SPAN) for line in lines]
    points.sort(key=lambda point: (point[0].method, point[1][0]))
    draw.value_scale(axes, [end for _, x, _ in points for end in x if math.isfinite(end)], log_above=0.0, which="x")
    draw.value_scale(axes, [end for _, _, y in points for end in y if math.isfinite(end)], log_above=measure.log_above)
    few = len({line.method for line, _, _ in points}) <= 3
    for method, group in itertools.groupby(points, lambda point: point[0].method):
        mine = list(group)
        wide = [[length(x, end) for _, x, _ in mine] for end in (1, 2)]
        tall = [[length(y, end) for _, _, y in mine] for end in (1, 2)]
        handles[method] = axes.errorbar([x[0] for _, x, _ in mine], [y[0] for _, _, y in mine], xerr=wide, yerr=tall,
                                        capsize=1.5, elinewidth=0.8, capthick=0.8, **looks[method])
        vary = varying([point[0] for point in mine])
        named = mine if len(mine) <= 6 and few else [mine[0], mine[-1]]
        for line, x, y in named if vary else ():
            said = str(line.steps) if vary == ["steps"] else settings_text(line, vary)
            axes.annotate(said, (x[0], y[0]), xytext=(4, 3), textcoords="offset points", fontsize=6, color="0.3")
    sign = 1.0 if measure.better == "lower" else -1.0
    front: list[tuple[float, float]] = []
    for at, value in sorted(((x[0], y[0]) for _, x, y in points), key=lambda xy: (xy[0], sign * xy[1])):
        front += [(at, value)] if not front or sign * value < sign * front[-1][1] else []
    if len(front) > 1:
        handles["Pareto front"] = axes.step(*zip(*front), where="post", color="0.75", linewidth=2.2, zorder=1)[0]
