"""How figures look in print: sizes, palette, scales and ticks, legends outside the data, reproducible files."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["BASELINE", "COLUMN_IN", "DASHES", "DPI", "PAGE_IN", "RC", "Drawn", "finish", "log_ticks", "looks_of", "panels",
           "save", "ticks", "value_scale"]

COLUMN_IN, PAGE_IN = 3.3, 6.8                             # widths of a column and of a page of the usual templates, inches
DPI = 200
RC = {
    "font.family": "DejaVu Sans", "font.size": 8, "axes.labelsize": 8, "axes.titlesize": 8, "xtick.labelsize": 7,
    "ytick.labelsize": 7, "legend.fontsize": 7, "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6,
    "axes.grid": True, "grid.color": "0.9", "grid.linewidth": 0.5, "axes.axisbelow": True, "lines.linewidth": 1.2,
    "lines.markersize": 4.5, "xtick.major.width": 0.6, "ytick.major.width": 0.6, "xtick.major.size": 2.5,
    "ytick.major.size": 2.5, "xtick.minor.size": 1.8, "xtick.minor.width": 0.5, "legend.frameon": False,
    "legend.handlelength": 2.2, "pdf.fonttype": 42, "ps.fonttype": 42, "figure.dpi": DPI, "savefig.dpi": DPI,
    "text.usetex": False, "mathtext.fontset": "dejavusans", "axes.unicode_minus": True,
}
# Okabe and Ito's palette without its yellow, which is too faint on paper (jfly.uni-koeln.de/color, 2008).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1)), (0, (5, 1, 1, 1)), (0, (7, 2, 1.5, 2, 1.5, 2)))
BASELINE: dict[str, dict[str, Any]] = {"floor": {"color": "0.3", "linestyle": (0, (4, 2)), "linewidth": 1.0},
                                       "ceiling": {"color": "0.55", "linestyle": (0, (1, 1.2)), "linewidth": 1.0}}
LETTER_IN = 0.058                                         # mean width of a letter at 7 points


class Drawn(NamedTuple):
    """A finished figure: file stem, the sentence below it, and the matplotlib figure."""

    stem: str
    caption: str
    figure: "Figure"


def looks_of(methods: Iterable[str]) -> dict[str, dict[str, Any]]:
    """One colour, marker and line style per method, by name, so that a method looks the same in every figure."""
    looks: dict[str, dict[str, Any]] = {}
    for position, name in enumerate(sorted(set(methods))):
        looks[name] = {"color": COLOURS[position % len(COLOURS)], "marker": MARKERS[position % len(MARKERS)],
                       "linestyle": DASHES[(position + position // len(COLOURS)) % len(DASHES)]}
    return looks


def panels(count: int, columns: int) -> tuple["Figure", list["Axes"], float]:
    """A figure with `count` panels, its axes, and the width of one panel in inches; one column wide for one column."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    width = COLUMN_IN if columns == 1 else PAGE_IN
    figure = Figure(figsize=(width, 1.0), layout=ConstrainedLayoutEngine(w_pad=0.04, h_pad=0.04, wspace=0.03, hspace=0.04))
    axes = list(figure.subplots(math.ceil(count / columns), columns, squeeze=False).flat)
    for unused in axes[count:]:
        unused.set_axis_off()
    return figure, axes[:count], width / columns - 0.65


def finish(figure: "Figure", says: str, handles: dict[str, Any], panel_height: float, rows: int) -> None:
    """Put the statement above and the legend below the panels, and give the figure the height that they all need."""
    width = float(figure.get_size_inches()[0])
    wrapped = textwrap.wrap(says, int(width * 19))
    deep = _legend(figure, handles, width)
    figure.set_size_inches(width, rows * panel_height + 0.13 * len(wrapped) + 0.155 * deep + 0.08)
    figure.suptitle("\n".join(wrapped), fontsize=6.5, x=0.01, ha="left", color="0.25")


def _legend(figure: "Figure", handles: dict[str, Any], width: float) -> int:
    """A legend outside the axes in as many columns as fit; returns its number of rows."""
    labels = list(handles)
    for columns in range(len(labels), 0, -1):
        deep = math.ceil(len(labels) / columns)
        if columns > 1 and math.ceil(len(labels) / deep) < columns:
            continue                                      # fewer columns fill the same rows more evenly
        longest = [max(len(label) for label in labels[at:at + deep]) for at in range(0, len(labels), deep)]
        if columns == 1 or sum(0.52 + LETTER_IN * letters for letters in longest) <= width:
            figure.legend(handles.values(), labels, loc="outside lower center", ncols=columns, columnspacing=1.2,
                          handletextpad=0.5, borderpad=0.1, labelspacing=0.35)
            return deep
    return 0


def value_scale(axes: "Axes", values: Sequence[float], *, log_above: float | None, from_zero: bool = False,
                which: str = "y") -> None:
    """Scale an axis: logarithmic when its positive values span more than a factor of `log_above`; ticks are plain numbers."""
    from matplotlib.ticker import MaxNLocator

    axis, limit = (axes.yaxis, axes.set_ylim) if which == "y" else (axes.xaxis, axes.set_xlim)
    low, high = min(values, default=0.0), max(values, default=1.0)
    if log_above is not None and low > 0 and high > log_above * low:
        widen = max(1.0, math.sqrt(2.5 * low / high))     # at least a factor of 2.5, so that there are ticks
        low, high = low / widen, high * widen
        (axes.set_yscale if which == "y" else axes.set_xscale)("log")
        room = 10 ** (0.03 + 0.08 * math.log10(high / low))
        limit(low / room, high * room)
        log_ticks(axes, which)
        return
    axis.set_major_locator(MaxNLocator(5))
    room = 0.1 * ((high - (0.0 if from_zero else low)) or abs(high) or 1.0)
    limit(0.0 if from_zero else low - room, high + room)


def log_ticks(axes: "Axes", which: str = "y") -> None:
    """On a logarithmic axis, plain numbers as ticks, as many as its present limits can take."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis, (low, high) = (axes.yaxis, axes.get_ylim()) if which == "y" else (axes.xaxis, axes.get_xlim())
    if axis.get_scale() != "log":
        return
    decades = math.log10(high / low)
    fine = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0) if decades < 0.9 else (1.0, 2.0, 5.0) if decades < 2.2 else (1.0, 3.0)
    axis.set_major_locator(LogLocator(subs=fine if decades < 3.2 else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def ticks(axes: "Axes", labels: dict[float, str], *, log2: bool, width_in: float) -> None:
    """Ticks on the x axis where there are cells; of labels that would touch, the later one keeps only its mark."""
    from matplotlib.ticker import NullFormatter

    place: Callable[[float], float] = math.log2 if log2 else float
    if log2:
        axes.set_xscale("log", base=2)
    span = (max(map(place, labels)) - min(map(place, labels))) * 1.15 or 1.0
    kept: list[float] = []
    for x in sorted(labels, key=lambda x: ("×" in labels[x], x != max(labels), x)):
        half = [0.5 * LETTER_IN * (len(labels[x]) + len(labels[other])) + 0.06 for other in kept]
        if all(abs(place(x) - place(other)) / span * width_in >= need for other, need in zip(kept, half)):
            kept.append(x)
    axes.set_xticks(sorted(kept), [labels[x] for x in sorted(kept)])
    axes.set_xticks(sorted(set(labels) - set(kept)), minor=True)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.075)


def save(drawn: Drawn, out: Path, formats: Sequence[str] = ("png", "pdf")) -> list[Path]:
    """Write a figure as PNG (200 dpi) and PDF (vector, Type 42 fonts), without dates or versions inside."""
    import matplotlib

    out.mkdir(parents=True, exist_ok=True)
    paths = []
    with matplotlib.rc_context(RC):
        drawn.figure.draw_without_rendering()
        drawn.figure.set_layout_engine("none")            # laid out once, the same in every format
        for kind in formats:
            bare = {"CreationDate": None, "Producer": None, "Creator": None} if kind == "pdf" else {"Software": None}
            paths.append(out / f"{drawn.stem}.{kind}")
            drawn.figure.savefig(paths[-1], format=kind, dpi=DPI, metadata=bare)
    return paths
