"""Plots of quality against sampler steps with a line per resolution (as Figure 7 of ∞-Diff, arXiv 2303.18242)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hibench import draw
from hibench.curves import MOST_PANELS, X_LABELS
from hibench.draw import Drawn
from hibench.lines import Line, resolution_text, settings_text
from hibench.marks import Looks, mark_failed, ordered
from hibench.measures import Measure, count_points, length, points_of, says_of, varying

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["quality_by_steps"]


def quality_by_steps(name: str, stem: str, lines: list[Line], metrics: list[Measure]) -> Iterator[Drawn]:
    """One figure per metric, distances first: a panel per method and setting, a line per resolution, one scale for all panels.

    `lines` hold each quality row once; panels need two step counts and two resolutions, else nothing is drawn."""
    facets = _facets([line for line in lines if not line.role and line.steps is not None])
    sizes = sorted({_size(line) for _, mine in facets for line in mine}, key=lambda size: (size[0] * size[1], size))
    looks = draw.looks_of(f"{at:03}" for at in range(len(sizes)))
    named = dict(zip((resolution_text(*size) for size in sizes), looks.values()))
    for measure in sorted(metrics, key=lambda one: (one.log_above is None, one.better != "lower")):
        every = [(title, mine) for title, mine in facets if count_points(mine, "steps", measure) > 1]
        if every:
            slug = re.sub(r"[^A-Za-z0-9_.-]+", "-", measure.field)
            yield _figure(name, f"{stem}-steps-resolution-{slug}", every, measure, named)


def _size(line: Line) -> tuple[int, int]:
    return line.height, line.width


def _facets(own: list[Line]) -> list[tuple[str, list[Line]]]:
    """Title and lines of every method, sparsity and set of options that has two step counts and two resolutions."""
    groups: dict[tuple[Any, ...], list[Line]] = {}
    for line in sorted(own, key=lambda line: (line.method, line.sparsity, line.options)):
        groups.setdefault((line.method, line.sparsity, line.options), []).append(line)
    whole = [mine for mine in groups.values() if min(len({line.steps for line in mine}), len({*map(_size, mine)})) > 1]
    return [(_title(mine[0], [other[0] for other in whole if other[0].method == mine[0].method]), mine) for mine in whole]


def _title(line: Line, same: list[Line]) -> str:
    """The method, with the settings in which its panels (`same`, a line of each) differ."""
    setting = settings_text(line, [part for part in varying(same) if part != "steps"])
    return f"{line.method}, {setting}" if setting else line.method


def _figure(name: str, stem: str, every: list[tuple[str, list[Line]]], measure: Measure, looks: Looks) -> Drawn:
    """The panels of one metric on a common scale."""
    shown = every[:MOST_PANELS]
    columns = min(3, len(shown))
    figure, grid, width_in = draw.panels(len(shown), columns)
    ends = [end for _, mine in shown for line in mine for end in measure.of(line) or () if math.isfinite(end)]
    handles: dict[str, Any] = {}
    failed = False
    for at, (axes, (title, mine)) in enumerate(zip(grid, shown)):
        draw.value_scale(axes, ends, log_above=measure.log_above)
        failed |= _panel(axes, mine, measure, looks, handles, width_in)
        axes.set_title(title, loc="left", pad=3)
        axes.set_xlabel(X_LABELS["steps"])
        if at % columns == 0:
            axes.set_ylabel(measure.label)
    limits = [axes.get_ylim() for axes in grid]
    for axes in grid:
        axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
        draw.log_ticks(axes)
    says = says_of(name, [line for _, mine in shown for line in mine], [measure], None)
    says += f"; {len(every) - len(shown)} more panels left out" if len(every) > len(shown) else ""
    entries = ordered(handles, grid[0], failed, key=list(looks).index)
    draw.finish(figure, says, entries, 2.3, math.ceil(len(shown) / columns))
    return Drawn(stem, f"{measure.title} against steps, a line per resolution. {says}.", figure)


def _panel(axes: "Axes", lines: list[Line], measure: Measure, looks: Looks, handles: dict[str, Any], width_in: float) -> bool:
    """The lines of one method and setting; True when some cell failed and is marked at the top."""
    for label, look in looks.items():
        points = points_of([line for line in lines if resolution_text(*_size(line)) == label], "steps", measure)
        if points:
            x, y = [point[0] for point in points], [point[1] for point in points]
            below, above = ([length(point[1:], end) for point in points] for end in (1, 2))
            low, high = [at - one for at, one in zip(y, below)], [at + one for at, one in zip(y, above)]
            axes.fill_between(x, low, high, color=look["color"], alpha=0.16, linewidth=0)
            handles[label] = axes.errorbar(x, y, yerr=[below, above], capsize=1.8, elinewidth=0.8, capthick=0.8, markersize=3,
                                           **look)
    draw.ticks(axes, {float(line.steps or 0): f"{line.steps}" for line in lines}, log2=True, width_in=width_in)
    return mark_failed(axes, lines, "steps", measure, lambda line: str(looks[resolution_text(*_size(line))]["color"]))
