"""Plots from records, made for print: quality, latency and memory against the axes, the Pareto front, the sample grid."""

from __future__ import annotations

import itertools
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hibench import tables
from hibench.tables import Line, Row, interval, metric_title, number, resolution_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLUMN_IN", "PAGE_IN", "RC", "Drawn", "draw_sweep", "save", "styles", "write_plots"]

COLUMN_IN, PAGE_IN = 3.3, 6.8                             # widths of a column and of a page of the usual templates, inches
DPI = 200
RC = {
    "font.family": "DejaVu Sans", "font.size": 8, "axes.labelsize": 8, "axes.titlesize": 8, "xtick.labelsize": 7,
    "ytick.labelsize": 7, "legend.fontsize": 7, "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6,
    "axes.grid": True, "grid.color": "0.9", "grid.linewidth": 0.5, "axes.axisbelow": True, "lines.linewidth": 1.2,
    "lines.markersize": 4.5, "xtick.major.width": 0.6, "ytick.major.width": 0.6, "xtick.major.size": 2.5, "ytick.major.size": 2.5,
    "legend.frameon": False, "legend.handlelength": 2.2, "pdf.fonttype": 42, "ps.fonttype": 42, "figure.dpi": DPI,
    "savefig.dpi": DPI, "text.usetex": False, "mathtext.fontset": "dejavusans", "axes.unicode_minus": True,
}
# Okabe and Ito's palette without its yellow (too faint on paper); colour-blind-safe.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1)), (0, (5, 1, 1, 1)), (0, (7, 2, 1.5, 2, 1.5, 2)))
BASELINE = {"floor": {"color": "0.3", "linestyle": (0, (4, 2)), "marker": ""}, "ceiling": {"color": "0.6", "linestyle": (0, (1, 1.2)), "marker": ""}}
MOST_PANELS, MOST_SERIES = 12, 10


class Measure(NamedTuple):
    """A quantity on an axis: field of a row, label with unit, factor to that unit, kind of cell, direction, may be logarithmic."""

    field: str
    label: str
    scale: float
    kind: str
    better: str
    log: bool


class Drawn(NamedTuple):
    """A finished figure: file stem, the sentence below it, and the matplotlib figure."""

    stem: str
    caption: str
    figure: "Figure"


LATENCY = Measure("latency_p50_s", "Latency per image (s)", 1.0, "speed", "lower", True)
MEMORY = Measure("peak_bytes", "Peak memory (GiB)", 2.0**-30, "speed", "lower", True)
X_LABELS = {"resolution": "Resolution (pixels)", "steps": "Sampler steps", "sparsity": "Sparsity (fraction of coordinates skipped)"}


def styles(lines: Iterable[Line]) -> dict[str, dict[str, Any]]:
    """One look per method, in the order of their names, so that a method looks the same in every figure."""
    looks: dict[str, dict[str, Any]] = {}
    names = sorted({line.method for line in lines if not line.role})
    for position, name in enumerate(names):
        looks[name] = {"color": COLOURS[position % len(COLOURS)], "marker": MARKERS[position % len(MARKERS)],
                       "linestyle": DASHES[(position + position // len(COLOURS)) % len(DASHES)]}
    return looks


def write_plots(sweeps: dict[str, list[Row]], results: Path, out: Path,
                formats: Sequence[str] = ("png", "pdf")) -> Iterator[tuple[str, str, list[Path]]]:
    """Draw and save every plot that has data; yields (sweep, caption, paths)."""
    looks = styles(line for rows in sweeps.values() for line in tables.pair(rows))
    for name, rows in sweeps.items():
        for drawn in draw_sweep(name, rows, results, looks):
            yield name, drawn.caption, save(drawn, out, formats)


def save(drawn: Drawn, out: Path, formats: Sequence[str] = ("png", "pdf")) -> list[Path]:
    """Write a figure as PNG (200 dpi) and PDF (vector, Type 42 fonts), without dates or versions inside."""
    import matplotlib

    out.mkdir(parents=True, exist_ok=True)
    paths = []
    with matplotlib.rc_context(RC):
        for kind in formats:
            bare = {"CreationDate": None, "Producer": None, "Creator": None} if kind == "pdf" else {"Software": None}
            paths.append(out / f"{drawn.stem}.{kind}")
            drawn.figure.savefig(paths[-1], format=kind, dpi=DPI, metadata=bare)
    return paths


def draw_sweep(name: str, rows: list[Row], results: Path, looks: dict[str, dict[str, Any]] | None = None) -> Iterator[Drawn]:
    """All figures of one sweep, as far as it has the data for them."""
    import matplotlib

    from hibench.show import sample_grid

    lines = tables.pair(rows)
    looks = looks or styles(lines)
    own = [line for line in lines if not line.role]
    metrics = [_metric(metric, lines) for metric in tables.metric_names(row for row in rows if row["kind"] == "quality")]
    machines = sorted({line.hardware for line in lines if line.hardware and line.speed and line.speed["status"] == "ok"})
    quality, speed = _once(lines), {machine: [line for line in lines if line.hardware == machine] for machine in machines}
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", name)
    with matplotlib.rc_context(RC):
        for axis in ("resolution", "steps", "sparsity"):
            if len({_x(line, axis) for line in own} - {None}) < 2:
                continue
            yield from _against(name, f"{stem}-quality-{axis}", quality, axis, metrics, looks, None)
            for position, machine in enumerate(machines):
                suffix = f"-{chr(ord('a') + position)}" if len(machines) > 1 else ""
                yield from _against(name, f"{stem}-latency-{axis}{suffix}", speed[machine], axis, [LATENCY], looks, machine)
                if axis == "resolution":
                    yield from _against(name, f"{stem}-memory-{axis}{suffix}", speed[machine], axis, [MEMORY], looks, machine)
        for position, machine in enumerate(machines):
            suffix = f"-{chr(ord('a') + position)}" if len(machines) > 1 else ""
            yield from _pareto(name, f"{stem}-pareto{suffix}", speed[machine], metrics, looks, machine, quality)
    yield from sample_grid(name, f"{stem}-samples", quality, results)


def _once(lines: list[Line]) -> list[Line]:
    """Lines with a quality row, each quality row once."""
    seen: dict[int, Line] = {}
    for line in lines:
        if line.quality is not None:
            seen.setdefault(id(line.quality), line)
    return list(seen.values())


def _metric(name: str, lines: list[Line]) -> Measure:
    """How a metric is drawn; distances may get a logarithmic axis."""
    entries = [line.quality["_metrics"][name] for line in lines if line.quality and name in line.quality["_metrics"]]
    better = next((str(entry["better"]) for entry in entries if entry.get("better")), "none")
    title, extractor = metric_title(name)
    sizes = [abs(float(entry["value"])) for entry in entries]
    scale = 1e3 if sizes and max(sizes) < 0.1 else 1.0
    arrow = {"lower": " ↓", "higher": " ↑"}.get(better, "")
    label = title + (" ×10³" if scale != 1 else "") + arrow + (f"\n@{extractor}" if extractor else "")
    return Measure(name, label, scale, "quality", better, name.partition("@")[0] in ("fid", "fd", "kid", "kd"))


def _x(line: Line, axis: str) -> float | None:
    """Where a line stands on an axis; a resolution counts as the side of the square of the same area."""
    if axis == "resolution":
        return math.sqrt(line.height * line.width)
    return None if axis == "steps" and line.steps is None else float(line.steps or 0) if axis == "steps" else line.sparsity


def _row(line: Line, measure: Measure) -> Row | None:
    return line.speed if measure.kind == "speed" else line.quality


def _against(name: str, stem: str, lines: list[Line], axis: str, measures: list[Measure], looks: dict[str, dict[str, Any]],
             machine: str | None) -> Iterator[Drawn]:
    """Measures against an axis: one panel per measure, one row of panels per resolution where that is not the axis."""
    from matplotlib.figure import Figure

    drawable = [measure for measure in measures if _points(lines, axis, measure) >= 2]
    if not drawable:
        return
    facets = sorted({(line.height, line.width) for line in lines if not line.role}, key=lambda size: size[0] * size[1])
    rows: list[tuple[str, list[Line]]] = [("", lines)]
    if axis != "resolution" and len(facets) > 1:
        rows = [(resolution_text(*size), [line for line in lines if (line.height, line.width) == size]) for size in facets]
        rows = [row for row in rows if len({_x(line, axis) for line in row[1] if not line.role} - {None}) > 1] or rows[:1]
    every = [(title, measure, mine) for title, mine in rows for measure in drawable if _points(mine, axis, measure)]
    panels = every[:MOST_PANELS]
    columns = 1 if len(panels) == 1 else min(3, len(drawable)) if len(drawable) > 1 else min(3, len(panels))
    down = math.ceil(len(panels) / columns)
    width = COLUMN_IN if columns == 1 else PAGE_IN
    figure = Figure(figsize=(width, 1.0), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.04, h_pad=0.04, wspace=0.03, hspace=0.04)
    grid = figure.subplots(down, columns, squeeze=False)
    handles: dict[str, Any] = {}
    for axes, (title, measure, mine) in zip(grid.flat, panels):
        failed = _panel(axes, mine, axis, measure, looks, handles)
        axes.set_ylabel(measure.label)
        axes.set_xlabel(X_LABELS[axis] if columns == 1 else X_LABELS[axis].split(" (")[0])
        if title:
            axes.set_title(title, loc="left", pad=3)
        if failed:
            handles.setdefault("failed or skipped (see table)", axes.plot([], [], "x", color="0.2", markersize=5)[0])
    for axes in list(grid.flat)[len(panels):]:
        axes.set_axis_off()
    left_out = f"; {len(every) - len(panels)} more panels left out" if len(every) > len(panels) else ""
    says = _says(name, [line for _, mine in rows for line in mine], drawable, machine) + left_out
    _finish(figure, says, handles, width, down * (2.15 if columns == 1 else 1.75))
    titles = ", ".join(dict.fromkeys(measure.label.split(" (")[0].split("\n")[0].rstrip(" ↓↑") for measure in drawable))
    yield Drawn(stem, f"{titles} against {axis}. {says}.", figure)


def _points(lines: list[Line], axis: str, measure: Measure) -> int:
    return sum(interval(_row(line, measure), measure.field) is not None and _x(line, axis) is not None for line in lines)


def _says(name: str, lines: list[Line], measures: list[Measure], machine: str | None) -> str:
    """What a figure states about itself: the sweep, n, the machine, the fixed axes."""
    parts = [f"Sweep {name}"]
    if any(measure.kind == "quality" for measure in measures):
        parts.append(f"n = {_range(line.quality['n'] for line in lines if line.quality)} images per point")
    if any(measure.kind == "speed" for measure in measures):
        speeds = [line.speed for line in lines if line.speed and line.speed["status"] == "ok"]
        parts.append(f"{_range(row['images'] for row in speeds)} timed images in {_range(row['processes'] for row in speeds)} processes per point")
    own = [line for line in lines if not line.role]
    for text, values in (("{} steps", {line.steps for line in own} - {None}),
                         ("s = {}", {line.sparsity for line in own if any(one.sparsity for one in own)})):
        if len(values) == 1:
            parts.append(text.format(f"{values.pop():g}"))
    sizes = {resolution_text(line.height, line.width) for line in own}
    parts += [sizes.pop()] if len(sizes) == 1 else []
    return ", ".join(parts) + (f"; {machine}" if machine else "")


def _range(values: Iterable[Any]) -> str:
    known = sorted({int(value) for value in values if number(value) is not None})
    return "unknown" if not known else str(known[0]) if len(known) == 1 else f"{known[0]}–{known[-1]}"


def _finish(figure: "Figure", says: str, handles: dict[str, Any], width: float, height: float) -> None:
    """Put the statement above and the legend below the panels, and give the figure the height that they all need."""
    wrapped = textwrap.wrap(says, int(width * 19.5))
    rows = _legend(figure, handles, width)
    figure.set_size_inches(width, height + 0.13 * len(wrapped) + 0.155 * rows + 0.08)
    figure.suptitle("\n".join(wrapped), fontsize=6.5, x=0.01, ha="left", color="0.25")


def _legend(figure: "Figure", handles: dict[str, Any], width: float) -> int:
    """A legend outside the axes in as many columns as fit; returns its number of rows."""
    if not handles:
        return 0
    longest = max(len(label) for label in handles)
    columns = max(1, min(len(handles), int(width / (0.42 + 0.062 * longest))))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, columnspacing=1.2,
                  handletextpad=0.5, borderpad=0.1, labelspacing=0.35)
    return math.ceil(len(handles) / columns)


def _panel(axes: "Axes", lines: list[Line], axis: str, measure: Measure, looks: dict[str, dict[str, Any]],
           handles: dict[str, Any]) -> bool:
    """Draw every series of a panel with its error bars; True when some cell failed and is marked at the top."""
    series = _series(lines, axis)
    for (label, method, role, variant), mine in series.items():
        look = dict(BASELINE[role]) if role else dict(looks[method])
        if variant:
            look["linestyle"] = DASHES[variant % len(DASHES)]
            look["markerfacecolor"] = "white" if variant % 2 else look["color"]
        _line(axes, mine, axis, measure, look, label, role, handles)
    values = [one for line in lines for one in (interval(_row(line, measure), measure.field) or ())]
    _y_scale(axes, [value * measure.scale for value in values if math.isfinite(value)], measure)
    _x_scale(axes, lines, axis)
    return _mark_failed(axes, lines, axis, measure, looks)


def _series(lines: list[Line], axis: str) -> dict[tuple[str, str, str | None, int], list[Line]]:
    """Lines by method and by the axes that vary besides the one drawn; baselines last."""
    own = [line for line in lines if not line.role]
    vary = [part for part in ("steps", "sparsity", "options") if part != axis and len({getattr(line, part) for line in own}) > 1]
    found: dict[tuple[str, str], list[Line]] = {}
    for line in sorted(lines, key=lambda line: (line.role is not None, line.method)):
        found.setdefault((line.method, "" if line.role else tables.settings_text(line, vary)), []).append(line)
    variants: dict[str, int] = {}
    series = {}
    for (method, setting), mine in found.items():
        position = variants[method] = variants.get(method, -1) + 1
        label = mine[0].name + (f", {setting}" if setting else "")
        series[label, method, mine[0].role, position] = mine
    return series


def _line(axes: "Axes", mine: list[Line], axis: str, measure: Measure, look: dict[str, Any], label: str, role: str | None,
          handles: dict[str, Any]) -> None:
    points = []
    for line in mine:
        found, x = interval(_row(line, measure), measure.field), _x(line, axis)
        if found is not None:
            value, low, high = (one * measure.scale for one in found)
            points.append((x, value, 0.0 if math.isnan(low) else value - low, 0.0 if math.isnan(high) else high - value))
    if not points:
        return
    if role and (len(points) == 1 or points[0][0] is None):
        handles[label] = axes.axhline(points[0][1], **{key: value for key, value in look.items() if key != "marker"}, linewidth=1.0)
        return
    points.sort(key=lambda point: point[0] or 0.0)
    x, value, below, above = zip(*points)
    drawn = axes.errorbar(x, value, yerr=[below, above], label=label, capsize=1.8, elinewidth=0.8, capthick=0.8, **look)
    handles[label] = drawn


def _y_scale(axes: "Axes", values: list[float], measure: Measure) -> None:
    """Logarithmic where the values span more than a factor of three, else linear; ticks are plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    positive = [value for value in values if value > 0]
    if measure.log and positive and len(positive) == len(values) and max(positive) > 3 * min(positive):
        axes.set_yscale("log")
        decades = math.log10(max(positive) / min(positive))
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 2.2 else (1.0, 3.0) if decades < 3.2 else (1.0,)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_ylim(min(positive) / 1.25, max(positive) * 1.25 * 10 ** (0.06 * decades))
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5))
        if measure.kind == "speed":
            axes.set_ylim(0, max(values, default=1.0) * 1.15)
        else:
            axes.margins(y=0.12)


def _x_scale(axes: "Axes", lines: list[Line], axis: str) -> None:
    """Ticks where there are cells: 64², 64×128, 10, 0.75; logarithmic for resolution and steps; crowded labels are thinned."""
    from matplotlib.ticker import FixedLocator, NullLocator

    ticks: dict[float, str] = {}
    for line in lines:
        x = _x(line, axis)
        if x is not None and (not line.role or axis == "resolution"):
            said = resolution_text(line.height, line.width) if axis == "resolution" else f"{x:g}"
            ticks[x] = said if "²" in said or x not in ticks else ticks[x]
    place: Callable[[float], float] = (lambda x: x) if axis == "sparsity" else math.log2
    if axis != "sparsity":
        axes.set_xscale("log", base=2)
    places = [place(x) for x in ticks]
    room = 0.09 * max(max(places) - min(places), 1e-9) if places else 0.0
    kept: list[float] = []
    for x in sorted(ticks, key=lambda x: ("×" in ticks[x], x)):
        if all(abs(place(x) - place(other)) >= room * (1 + 0.25 * (len(ticks[x]) > 3)) for other in kept):
            kept.append(x)
    axes.xaxis.set_major_locator(FixedLocator(sorted(kept)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(sorted(kept), [ticks[x] for x in sorted(kept)])
    axes.margins(x=0.07)


def _mark_failed(axes: "Axes", lines: list[Line], axis: str, measure: Measure, looks: dict[str, dict[str, Any]]) -> bool:
    """A cross with the status at the top edge for every cell that has no result."""
    stacked: dict[float, int] = {}
    for line in lines:
        row, x = _row(line, measure), _x(line, axis)
        if row is None or row["status"] == "ok" or x is None or line.role:
            continue
        level = stacked[x] = stacked.get(x, -1) + 1
        y = 0.97 - 0.085 * level
        colour = looks[line.method]["color"]
        edge = axes.get_xaxis_transform()
        axes.plot([x], [y], marker="x", color=colour, transform=edge, clip_on=False, markersize=5, markeredgewidth=1.4, linestyle="")
        axes.annotate(row["status"], (x, y), xycoords=edge, xytext=(-4, 0), textcoords="offset points", ha="right", va="center",
                      fontsize=6, color=colour)
    if stacked:
        bottom, top = axes.get_ylim()
        more = 0.1 * (1 + max(stacked.values()))
        axes.set_ylim(bottom, top * (top / bottom) ** more if axes.get_yscale() == "log" else top + (top - bottom) * more)
    return bool(stacked)


def _pareto(name: str, stem: str, lines: list[Line], metrics: list[Measure], looks: dict[str, dict[str, Any]], machine: str,
            quality: list[Line]) -> Iterator[Drawn]:
    """Quality against latency (log), one panel per resolution, with the front of what nothing else beats in both."""
    from matplotlib.figure import Figure

    measure = next((metric for metric in metrics if metric.better in ("lower", "higher")), None)
    if measure is None:
        return
    both = [line for line in lines if not line.role and interval(line.speed, LATENCY.field) and interval(line.quality, measure.field)]
    sizes = sorted({(line.height, line.width) for line in both}, key=lambda size: size[0] * size[1])
    sizes = [size for size in sizes if sum((line.height, line.width) == size for line in both) > 1]
    if not sizes:
        return
    shown = sizes[:6]
    columns = min(3, len(shown))
    down, width = math.ceil(len(shown) / columns), COLUMN_IN if len(shown) == 1 else PAGE_IN
    figure = Figure(figsize=(width, 1.0), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.04, h_pad=0.04, wspace=0.03, hspace=0.04)
    handles: dict[str, Any] = {}
    grid = figure.subplots(down, columns, squeeze=False)
    for axes, size in zip(grid.flat, shown):
        mine = [line for line in both if (line.height, line.width) == size]
        floor = [line for line in quality if line.role == "floor" and (line.height, line.width) == size]
        _pareto_panel(axes, mine, floor, measure, looks, handles)
        axes.set_title(resolution_text(*size), loc="left", pad=3)
        axes.set_xlabel(LATENCY.label)
        axes.set_ylabel(measure.label)
    for axes in list(grid.flat)[len(shown):]:
        axes.set_axis_off()
    says = _says(name, both, [measure, LATENCY], machine)
    says += f"; {len(sizes) - len(shown)} larger resolutions left out" if len(sizes) > len(shown) else ""
    _finish(figure, says, handles, width, down * (2.15 if columns == 1 else 1.9))
    yield Drawn(stem, f"{measure.label.partition(chr(10))[0].rstrip(' ↓↑')} against latency; the grey line is the Pareto front. {says}.", figure)


def _pareto_panel(axes: "Axes", lines: list[Line], floor: list[Line], measure: Measure, looks: dict[str, dict[str, Any]],
                  handles: dict[str, Any]) -> None:
    """One resolution: points with error bars in both directions, settings beside them where a method has several."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    points = []
    for line in lines:
        latency = interval(line.speed, LATENCY.field) or (math.nan,) * 3
        value = interval(line.quality, measure.field) or (math.nan,) * 3
        points.append((line, latency, tuple(one * measure.scale for one in value)))
    for method, group in itertools.groupby(sorted(points, key=lambda point: (point[0].method, point[1][0])), lambda p: p[0].method):
        mine = list(group)
        errors = [[[0.0 if math.isnan(end) else abs(end - p[which][0]) for p in mine] for end_of in (1, 2)
                   for end in ()] for which in (1, 2)]
        errors = [[[_span(p[which], end) for p in mine] for end in (1, 2)] for which in (1, 2)]
        handles[method] = axes.errorbar([p[1][0] for p in mine], [p[2][0] for p in mine], xerr=errors[0], yerr=errors[1],
                                        capsize=1.5, elinewidth=0.8, capthick=0.8, **looks[method])
        vary = [part for part in ("steps", "sparsity", "options") if len({getattr(p[0], part) for p in mine}) > 1]
        for line, latency, value in mine if vary and len(mine) <= 6 else ():
            said = str(line.steps) if vary == ["steps"] else tables.settings_text(line, vary)
            axes.annotate(said, (latency[0], value[0]), xytext=(4, 3), textcoords="offset points", fontsize=6, color="0.3")
    _front(axes, [(p[1][0], p[2][0]) for p in points], measure.better, handles)
    for line in floor:
        value = interval(line.quality, measure.field)
        if value is not None:
            look = {key: one for key, one in BASELINE["floor"].items() if key != "marker"}
            handles[line.name] = axes.axhline(value[0] * measure.scale, linewidth=1.0, zorder=1, **look)
    everything = [one for p in points for one in p[2]] + [axes_line for line in floor
                                                          for axes_line in [(interval(line.quality, measure.field) or (math.nan,))[0] * measure.scale]]
    _y_scale(axes, [value for value in everything if math.isfinite(value)], measure)
    axes.set_xscale("log")
    xs = [p[1][0] for p in points]
    axes.set_xlim(min(xs) / 1.6, max(xs) * 1.9)
    decades = math.log10(max(xs) / min(xs) * 3)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 1.6 else (1.0, 3.0) if decades < 2.4 else (1.0,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _span(ends: Sequence[float], end: int) -> float:
    return 0.0 if math.isnan(ends[end]) else abs(ends[end] - ends[0])


def _front(axes: "Axes", points: list[tuple[float, float]], better: str, handles: dict[str, Any]) -> None:
    """The staircase through the points that no other beats in latency and quality."""
    sign = 1.0 if better == "lower" else -1.0
    front: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (point[0], sign * point[1])):
        if not front or sign * y < sign * front[-1][1]:
            front.append((x, y))
    if len(front) > 1:
        x, y = zip(*front)
        handles["Pareto front"] = axes.step(x, y, where="post", color="0.72", linewidth=2.2, zorder=1)[0]
