"""Plots from records: quality, latency and memory against the axes, the Pareto front, the sample grid."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hibench import draw, tables
from hibench.draw import Drawn
from hibench.tables import Line, Row, interval, metric_title, number, resolution_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Measure", "draw_sweep", "write_plots"]

Looks = dict[str, dict[str, Any]]
Ends = tuple[float, float, float]                         # value, lower and upper end
AXES = ("resolution", "steps", "sparsity")
X_LABELS = {"resolution": "Resolution (pixels)", "steps": "Sampler steps",
            "sparsity": "Sparsity (fraction of coordinates skipped)"}
MOST_PANELS, MOST_SERIES = 12, 10
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


def write_plots(sweeps: dict[str, list[Row]], results: Path, out: Path,
                formats: Sequence[str] = ("png", "pdf")) -> Iterator[tuple[str, str, list[Path]]]:
    """Draw and save every plot that has data; yields (sweep, caption, paths)."""
    looks = _looks(line for rows in sweeps.values() for line in tables.pair(rows))
    for name, rows in sweeps.items():
        for drawn in draw_sweep(name, rows, results, looks):
            yield name, drawn.caption, draw.save(drawn, out, formats)


def _looks(lines: Iterable[Line]) -> Looks:
    return draw.looks_of(line.method for line in lines if not line.role)


def draw_sweep(name: str, rows: list[Row], results: Path, looks: Looks | None = None) -> Iterator[Drawn]:
    """All figures of one sweep, as far as it has the data for them; speed figures are drawn per machine."""
    import matplotlib

    from hibench.show import sample_grid

    lines = tables.pair(rows)
    looks = looks or _looks(lines)
    metrics = [_metric(metric, lines) for metric in tables.metric_names(row for row in rows if row["kind"] == "quality")]
    timed = [line for line in lines if line.speed and line.speed["status"] == "ok"]
    machines = sorted({line.hardware for line in timed if line.hardware})
    latency = _quantity("latency_p50_s", "Latency per image", "s", timed)
    memory = _quantity("peak_bytes", "Peak memory", "bytes", timed)
    quality, stem = _once(lines), re.sub(r"[^A-Za-z0-9_.-]+", "-", name)
    per_machine = [(machine, f"-{chr(ord('a') + at)}" if len(machines) > 1 else "", [x for x in lines if x.hardware == machine])
                   for at, machine in enumerate(machines)]
    with matplotlib.rc_context(draw.RC):
        for axis in AXES:
            if len({_x(line, axis) for line in lines if not line.role} - {None}) < 2:
                continue
            yield from _against(name, f"{stem}-quality-{axis}", quality, axis, metrics, looks, None)
            for machine, suffix, mine in per_machine:
                at = latency._replace(log_above=10.0) if axis == "sparsity" else latency
                yield from _against(name, f"{stem}-latency-{axis}{suffix}", mine, axis, [at], looks, machine)
                if axis == "resolution":
                    yield from _against(name, f"{stem}-memory-{axis}{suffix}", mine, axis, [memory], looks, machine)
        metric = next((one for one in metrics if one.better in ("lower", "higher")), None)
        for machine, suffix, mine in per_machine if metric else ():
            yield from _pareto(name, f"{stem}-pareto{suffix}", mine, metric, latency, looks, machine, quality)  # type: ignore[arg-type]
    yield from sample_grid(name, f"{stem}-samples", quality, results)


def _once(lines: list[Line]) -> list[Line]:
    """Lines with a quality row, each quality row once."""
    seen: dict[int, Line] = {}
    for line in lines:
        if line.quality is not None:
            seen.setdefault(id(line.quality), line)
    return list(seen.values())


def _quantity(field: str, title: str, quantity: str, lines: list[Line]) -> Measure:
    """A speed measure in the unit that fits its values."""
    scale, unit = tables.unit_of(quantity, sorted(found[0] for line in lines if (found := interval(line.speed, field))))
    return Measure(field, f"{title} ({unit})", scale, "speed", "lower", 3.0)


def _metric(name: str, lines: list[Line]) -> Measure:
    """A quality measure; distances get a logarithmic axis when they span more than a factor of three."""
    entries = [line.quality["_metrics"][name] for line in lines if line.quality and name in line.quality["_metrics"]]
    better = next((str(entry["better"]) for entry in entries if entry.get("better")), "none")
    title, extractor = metric_title(name)
    scale = 1e3 if entries and max(abs(float(entry["value"])) for entry in entries) < 0.1 else 1.0
    label = title + (" ×10³" if scale != 1 else "") + {"lower": " ↓", "higher": " ↑"}.get(better, "")
    distance = title in ("FID", "FD", "KID", "KD")
    return Measure(name, label + (f"\n@{extractor}" if extractor else ""), scale, "quality", better, 3.0 if distance else None)


def _x(line: Line, axis: str) -> float | None:
    """Where a line stands on an axis; a resolution counts as the side of the square of the same area."""
    if axis == "resolution":
        return math.sqrt(line.height * line.width)
    if axis == "sparsity":
        return line.sparsity
    return None if line.steps is None else float(line.steps)


def _against(name: str, stem: str, lines: list[Line], axis: str, measures: list[Measure], looks: Looks,
             machine: str | None) -> Iterator[Drawn]:
    """Measures against an axis: a panel per measure and per facet, none of them empty."""
    rows = _facets(lines, axis)
    every = [(title, measure, mine) for measure in measures for title, mine in rows if _points(mine, axis, measure) > 1]
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
    says = _says(name, [line for _, mine in rows for line in mine], drawable, machine)
    says += f"; {len(every) - len(shown)} more panels left out" if len(every) > len(shown) else ""
    entries, deep = _ordered(handles, grid[0], failed), math.ceil(len(shown) / columns)
    draw.finish(figure, says, entries, 2.15 if columns == 1 else 1.75, deep)
    yield Drawn(stem, f"{', '.join(measure.title for measure in drawable)} against {axis}. {says}.", figure)


def _facets(lines: list[Line], axis: str) -> list[tuple[str, list[Line]]]:
    """One facet, or one per resolution where that is not the axis, or one per method when a panel would be too full."""
    own = [line for line in lines if not line.role]
    sizes = sorted({(line.height, line.width) for line in own}, key=lambda size: (size[0] * size[1], size))
    facets = [("", lines)]
    if axis != "resolution" and len(sizes) > 1:
        facets = [(resolution_text(*size), [line for line in lines if (line.height, line.width) == size]) for size in sizes]
        facets = [facet for facet in facets if len({_x(line, axis) for line in facet[1] if not line.role} - {None}) > 1]
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
    return dict(zip(sorted(set(labels), key=_natural), looks.values()))


def _natural(text: str) -> list[tuple[int, float, str]]:
    """Sort key by which `5 steps` comes before `10 steps`."""
    parts = re.split(r"(\d+(?:\.\d+)?)", text)
    return [(0, float(part), "") if at % 2 else (1, 0.0, part) for at, part in enumerate(parts)]


def _points(lines: list[Line], axis: str, measure: Measure) -> int:
    return sum(measure.of(line) is not None and _x(line, axis) is not None for line in lines if not line.role)


def _says(name: str, lines: list[Line], measures: list[Measure], machine: str | None) -> str:
    """What a figure states about itself: the sweep, n, the axes that do not vary, the machine."""
    own = [line for line in lines if not line.role]
    parts = [f"Sweep {name}"]
    if any(measure.kind == "quality" for measure in measures):
        parts.append(f"n = {_range(line.quality['n'] for line in lines if line.quality)} images per point")
    if any(measure.kind == "speed" for measure in measures):
        timed = [line.speed for line in lines if line.speed and line.speed["status"] == "ok"]
        parts.append(f"{_range(row['images'] for row in timed)} timed images in {_range(row['processes'] for row in timed)} "
                     "processes per point")
    for said in ({f"{line.steps} steps" for line in own if line.steps is not None},
                 {f"sparsity {line.sparsity:g}" for line in own if any(one.sparsity for one in own)},
                 {resolution_text(line.height, line.width) for line in own}):
        parts += said if len(said) == 1 else ()
    return ", ".join(parts) + (f"; {machine}" if machine else "")


def _range(values: Iterable[Any]) -> str:
    known = sorted({int(value) for value in values if number(value) is not None})
    return "unknown" if not known else str(known[0]) if len(known) == 1 else f"{known[0]}–{known[-1]}"


def _ordered(handles: dict[str, Any], axes: "Axes", failed: bool) -> dict[str, Any]:
    """Legend entries: methods by name, then the baselines, the front and the mark of failures."""
    ends = "(floor)", "(ceiling)", "Pareto front"
    last = {label: handle for label, handle in handles.items() if label.endswith(ends)}
    entries = {label: handles[label] for label in sorted(handles, key=_natural) if label not in last} | last
    if failed:
        entries["no result (see table)"] = axes.plot([], [], "x", color="0.2", markersize=5)[0]
    return entries


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
        points = _ends(mine, axis, measure)
        if points:
            below, above = ([_length(point[1:], end) for point in points] for end in (1, 2))
            handles[label] = axes.errorbar([point[0] for point in points], [point[1] for point in points], yerr=[below, above],
                                           capsize=1.8, elinewidth=0.8, capthick=0.8, **look)
    labels = {}
    for line in own:
        x = _x(line, axis)
        if x is not None and (x not in labels or line.height == line.width):
            labels[x] = resolution_text(line.height, line.width) if axis == "resolution" else f"{x:g}"
    draw.ticks(axes, labels, log2=axis != "sparsity", width_in=width_in)
    if measure.kind == "quality":
        _baselines(axes, [line for line in lines if line.role], axis, measure, handles)
    failed = _mark_failed(axes, own, axis, measure, looks)
    draw.log_ticks(axes)
    return failed


def _ends(lines: list[Line], axis: str, measure: Measure) -> list[tuple[float, float, float, float]]:
    """Points (x, value, lower end, upper end) in the order of x."""
    found = [(_x(line, axis), measure.of(line)) for line in lines]
    return sorted((x, *ends) for x, ends in found if x is not None and ends is not None)


def _length(ends: Sequence[float], end: int) -> float:
    """Length of an error bar; 0 where the interval is unknown."""
    return 0.0 if math.isnan(ends[end]) else abs(ends[end] - ends[0])


def _varying(lines: list[Line]) -> list[str]:
    return [part for part in ("steps", "sparsity", "options") if len({getattr(line, part) for line in lines}) > 1]


def _series(lines: list[Line], axis: str) -> dict[tuple[str, str, int], list[Line]]:
    """Competitors' lines by (label, method, variant): a variant is a setting of the axes that vary besides the one drawn."""
    own = sorted((line for line in lines if not line.role), key=lambda line: (line.method, line.steps or 0, line.sparsity))
    vary = [part for part in _varying(own) if part != axis]
    series: dict[tuple[str, str, int], list[Line]] = {}
    settings: dict[str, list[str]] = {}
    for line in own:
        setting = tables.settings_text(line, vary)
        mine = settings.setdefault(line.method, [])
        mine += [] if setting in mine else [setting]
        series.setdefault((line.name + (f", {setting}" if setting else ""), line.method, mine.index(setting)), []).append(line)
    return series


def _baselines(axes: "Axes", lines: list[Line], axis: str, measure: Measure, handles: dict[str, Any]) -> None:
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
            ends = dict.fromkeys(tables.format_value(end, None) for end in (min(values), max(values)))
            notes.append(f"{name} {'–'.join(ends)} {'↑' if above else '↓'}")
            continue
        look = draw.BASELINE[mine[0].role or "floor"]
        points = _ends(mine, axis, measure)
        if axis == "resolution" and len(points) > 1:
            errors = [[_length(point[1:], end) for point in points] for end in (1, 2)]
            handles[name] = axes.errorbar([point[0] for point in points], [point[1] for point in points], yerr=errors,
                                          capsize=1.8, zorder=1.5, **look)
        else:
            handles[name] = axes.axhline(values[0], zorder=1.5, **look)
        reach = [place(end) for end in axes.get_ylim()]
        reach = [min(place(min(values)) - 0.05 * span, reach[0]), max(place(max(values)) + 0.05 * span, reach[1])]
        axes.set_ylim(*((10**end for end in reach) if axes.get_yscale() == "log" else reach))
    if notes:
        axes.set_title("\n".join(notes), loc="right", fontsize=6, color="0.35", pad=2, linespacing=1.05)


def _mark_failed(axes: "Axes", lines: list[Line], axis: str, measure: Measure, looks: Looks) -> bool:
    """A cross with the status above the data for every cell that has no result."""
    stacked: dict[float, int] = {}
    leftmost = min((x for line in lines if (x := _x(line, axis)) is not None), default=0.0)
    for line in lines:
        row, x = measure.row(line), _x(line, axis)
        if row is None or row["status"] == "ok" or x is None:
            continue
        level = stacked[x] = stacked.get(x, -1) + 1
        look: dict[str, Any] = {"color": looks[line.method]["color"], "clip_on": False, "transform": axes.get_xaxis_transform()}
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


def _pareto(name: str, stem: str, lines: list[Line], measure: Measure, latency: Measure, looks: Looks, machine: str,
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
        _baselines(axes, beside, "steps", measure, handles)
        draw.log_ticks(axes)
        axes.set_title(resolution_text(*size), loc="left", pad=3)
        axes.set_xlabel(latency.label)
        axes.set_ylabel(measure.label)
    says = _says(name, both, [measure, latency], machine)
    says += f"; {len(sizes) - len(shown)} larger resolutions left out" if len(sizes) > len(shown) else ""
    entries, deep = _ordered(handles, grid[0], False), math.ceil(len(shown) / columns)
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
        wide = [[_length(x, end) for _, x, _ in mine] for end in (1, 2)]
        tall = [[_length(y, end) for _, _, y in mine] for end in (1, 2)]
        handles[method] = axes.errorbar([x[0] for _, x, _ in mine], [y[0] for _, _, y in mine], xerr=wide, yerr=tall,
                                        capsize=1.5, elinewidth=0.8, capthick=0.8, **looks[method])
        vary = _varying([point[0] for point in mine])
        named = mine if len(mine) <= 6 and few else [mine[0], mine[-1]]
        for line, x, y in named if vary else ():
            said = str(line.steps) if vary == ["steps"] else tables.settings_text(line, vary)
            axes.annotate(said, (x[0], y[0]), xytext=(4, 3), textcoords="offset points", fontsize=6, color="0.3")
    sign = 1.0 if measure.better == "lower" else -1.0
    front: list[tuple[float, float]] = []
    for at, value in sorted(((x[0], y[0]) for _, x, y in points), key=lambda xy: (xy[0], sign * xy[1])):
        front += [(at, value)] if not front or sign * value < sign * front[-1][1] else []
    if len(front) > 1:
        handles["Pareto front"] = axes.step(*zip(*front), where="post", color="0.75", linewidth=2.2, zorder=1)[0]
