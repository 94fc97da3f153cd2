"""Plots of measures against an axis (resolution, steps, sparsity): a panel per measure and facet, a curve per method."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hibench import draw
from hibench.draw import Drawn
from hibench.lines import Line, resolution_text, settings_text
from hibench.marks import Looks, baselines, mark_failed, ordered
from hibench.measures import Measure, count_points, length, natural, points_of, says_of, varying, x_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["AXES", "MOST_PANELS", "X_LABELS", "against"]

AXES = ("resolution", "steps", "sparsity")
X_LABELS = {"resolution": "Resolution (pixels)", "steps": "Sampler steps",
            "sparsity": "Sparsity (fraction of coordinates skipped)"}
MOST_PANELS, MOST_SERIES = 12, 10


def against(name: str, stem: str, lines: list[Line], axis: str, measures: list[Measure], looks: Looks,
             machine: str | None) -> Iterator[Drawn]:
    """Measures against an axis: a panel per measure and per facet, none of them empty."""
    rows = _facets(lines, axis)
    every = [(title, measure, mine) for measure in measures for title, mine in rows if count_points(mine, axis, measure) > 1]
    if not every:
        return
    shown, drawable = every[:MOST_PANELS], list(dict.fromkeys(measure for _, measure, _ in every))
    columns = min(3, len(shown))
    figure, grid, width_in = draw.panels(len(shown), columns)
    handles: dict[str, Any] = {}
    failed, settings = False, _setting_looks(rows, axis)
    for axes, (title, measure, mine) in zip(grid, shown):
        failed |= _panel(axes, mine, axis, measure, looks, handles, width_in, settings)
        axes.set_ylabel(measure.label)
        axes.set_xlabel(X_LABELS[axis] if columns == 1 else X_LABELS[axis].split(" (")[0])
        axes.set_title(title, loc="left", pad=3)
    says = says_of(name, [line for _, mine in rows for line in mine], drawable, machine)
    says += f"; {len(every) - len(shown)} more panels left out" if len(every) > len(shown) else ""
    entries, deep = ordered(handles, grid[0], failed), math.ceil(len(shown) / columns)
    draw.finish(figure, says, entries, 2.15 if columns == 1 else 1.75, deep)
    yield Drawn(stem, f"{', '.join(measure.title for measure in drawable)} against {axis}. {says}.", figure)


def _facets(lines: list[Line], axis: str) -> list[tuple[str, list[Line]]]:
    """One facet, or one per resolution where that is not the axis, or one per method when a panel would be too full."""
    own = [line for line in lines if not line.role]
    sizes = sorted({(line.height, line.width) for line in own}, key=lambda size: (size[0] * size[1], size))
    facets = [("", lines)]
    if axis != "resolution" and len(sizes) > 1:
        facets = [(resolution_text(*size), [line for line in lines if (line.height, line.width) == size]) for size in sizes]
        facets = [facet for facet in facets if len({x_of(line, axis) for line in facet[1] if not line.role} - {None}) > 1]
    if max((len(_series(mine, axis)) for _, mine in facets), default=0) <= MOST_SERIES:
        return facets
    return [(f"{method}{', ' if title else ''}{title}", [line for line in mine if line.role or line.method == method])
            for title, mine in facets for method in sorted({line.method for line in mine if not line.role})]


def _setting_looks(facets: list[tuple[str, list[Line]]], axis: str) -> Looks:
    """When every facet shows one of several methods: a look per setting, the same in all of them. Else nothing."""
    methods = [{line.method for line in lines if not line.role} for _, lines in facets]
    if len(facets) < 2 or any(len(one) != 1 for one in methods) or len(set().union(*methods)) < 2:
        return {}
    labels = [label.partition(", ")[2] for _, lines in facets for label, _, _ in _series(lines, axis)]
    looks = draw.looks_of(f"{at:03}" for at in range(len(set(labels))))
    return dict(zip(sorted(set(labels), key=natural), looks.values()))


def _panel(axes: "Axes", lines: list[Line], axis: str, measure: Measure, looks: Looks, handles: dict[str, Any],
           width_in: float, settings: Looks) -> bool:
    """Draw every series of a panel with its error bars; True when some cell failed and is marked at the top."""
    own = [line for line in lines if not line.role]
    alone = bool(settings) and len({line.method for line in own}) == 1
    ends = [end for line in own for end in measure.of(line) or () if math.isfinite(end)]
    draw.value_scale(axes, ends, log_above=measure.log_above, from_zero=measure.kind == "speed")
    for (label, method, variant), mine in _series(lines, axis).items():
        look = dict(looks[method])
        if alone:                                         # one method in a panel: its settings take the looks
            label, look = label.partition(", ")[2] or label, settings[label.partition(", ")[2]]
        elif variant:
            look["linestyle"] = draw.DASHES[(draw.DASHES.index(look["linestyle"]) + variant) % len(draw.DASHES)]
            look["markerfacecolor"] = "white" if variant % 2 else look["color"]
        points = points_of(mine, axis, measure)
        if points:
            below, above = ([length(point[1:], end) for point in points] for end in (1, 2))
            handles[label] = axes.errorbar([point[0] for point in points], [point[1] for point in points], yerr=[below, above],
                                           capsize=1.8, elinewidth=0.8, capthick=0.8, **look)
    labels = {}
    for line in own:
        x = x_of(line, axis)
        if x is not None and (x not in labels or line.height == line.width):
            labels[x] = resolution_text(line.height, line.width) if axis == "resolution" else f"{x:g}"
    draw.ticks(axes, labels, log2=axis != "sparsity", width_in=width_in)
    if measure.kind == "quality":
        baselines(axes, [line for line in lines if line.role], axis, measure, handles)
    failed = mark_failed(axes, own, axis, measure, lambda line: str(looks[line.method]["color"]))
    draw.log_ticks(axes)
    return failed


def _series(lines: list[Line], axis: str) -> dict[tuple[str, str, int], list[Line]]:
    """Competitors' lines by (label, method, variant): a variant is a setting of the axes that vary besides the one drawn."""
    own = sorted((line for line in lines if not line.role), key=lambda line: (line.method, line.steps or 0, line.sparsity))
    vary = [part for part in varying(own) if part != axis]
    series: dict[tuple[str, str, int], list[Line]] = {}
    settings: dict[str, list[str]] = {}
    for line in own:
        setting = settings_text(line, vary)
        mine = settings.setdefault(line.method, [])
        mine += [] if setting in mine else [setting]
        series.setdefault((line.name + (f", {setting}" if setting else ""), line.method, mine.index(setting)), []).append(line)
    return series
