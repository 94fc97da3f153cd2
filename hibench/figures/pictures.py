"""Figures of papers that are drawn: curves, strips of one seed over resolutions, comparisons with insets at native pixels."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hibench import draw
from hibench.figures.catalogue import Cell, Figure, Line
from hibench.figures.pick import FIELDS, both, merged, metric_of, pick, rows_of, title_of, value_of
from hibench.figures.table import ARROWS, better_of, caption
from hibench.lines import Row, resolution_text
from hibench.show import fit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL.Image import Image

__all__ = ["plot", "strip", "zoom"]

SIDE, INSET = 220, 192                                    # pixels at 200 dpi
FACTORS = (1, 2, 3, 4, 6, 8)                              # by which an inset may be enlarged; they divide INSET


def plot(figure: Figure, rows: list[Row]) -> tuple[draw.Drawn, list[Row]]:
    """Curves of `y` over `x`, one per label, with error bars; one column wide. Lines without a record are named below."""
    import matplotlib

    metric = figure.y if figure.y in FIELDS else metric_of(rows, figure.y)
    curves: dict[str, list[Line]] = {}
    for line in figure.lines:
        curves.setdefault(line.label, []).append(line)
    looks = draw.looks_of(f"{at:03}" for at in range(len(curves)))
    missing, handles = [], {}
    behind: list[Row] = []
    with matplotlib.rc_context(draw.RC):
        canvas, (axes,), width = draw.panels(1, 1)
        every: list[float] = []
        for (label, lines), look in zip(curves.items(), looks.values()):
            points: list[tuple[float, float, float]] = []
            for line in lines:
                more, found, reason = _points(figure, rows, line, metric)
                points, behind = points + more, behind + found
                if not more:
                    missing.append(f"{label}: {reason}")
            if not points:
                continue
            x, y, pm = zip(*sorted(points))
            every += x
            handles[label] = axes.errorbar(x, y, yerr=pm, capsize=1.8, elinewidth=0.8, capthick=0.8, **look)
        title, second = title_of(metric)
        second = second if second.startswith("@") or not second else f" ({second})"
        axes.set_ylabel(f"{title}{second}{ARROWS[better_of(metric, behind)]}")
        axes.set_xlabel(figure.x_title or {
            "resolution": "Resolution (pixels)", "steps": "Sampler steps", "latency": "Latency per image (s)",
            "sparsity": "Sparsity"}.get(figure.x, figure.x.removeprefix("options.").capitalize()))
        if figure.x == "latency" and handles:
            draw.value_scale(axes, every, log_above=3.0, which="x")
        elif handles:
            draw.ticks(axes, {x: f"{x:g}" for x in every}, log2=figure.x != "sparsity" and min(every) > 0, width_in=width)
        if not handles:
            _blank(axes, "no record yet")
        draw.finish(canvas, "Missing: " + "; ".join(missing) if missing else figure.title, handles, 2.0, 1)
    return draw.Drawn(figure.name, caption(figure, behind), canvas), behind


def _points(figure: Figure, rows: list[Row], line: Line,
            metric: str) -> tuple[list[tuple[float, float, float]], list[Row], str]:
    """Points (x, y, half-width) of a line; where there is none, the reason."""
    kind = "speed" if metric in FIELDS else "quality"
    points: dict[float, tuple[float, float, float]] = {}
    found = []
    for row in rows_of(rows, line.method, line.at, kind):
        measured = value_of(row, metric)
        at = Cell((row["height"], row["width"]), row["steps"], row["sparsity"], line.at.options)
        x = {"resolution": float(row["height"] * row["width"]) ** 0.5, "steps": row["steps"], "sparsity": row["sparsity"],
             "latency": pick(rows, line, "latency", at).value if figure.x == "latency" else None,
             "given": line.x}.get(figure.x, merged(row).get(figure.x.removeprefix("options.")))
        if row["status"] != "ok" or measured.value is None or x is None or float(x) in points:
            continue
        points[float(x)] = (float(x), measured.value, measured.pm or 0.0)
        found.append(row)
    return list(points.values()), found, pick(rows, line, metric, line.at).reason or "nothing over this axis"


def strip(figure: Figure, rows: list[Row], results: Path) -> tuple[draw.Drawn, list[Row]]:
    """A row of pictures per line and a column per resolution, all of the same seed, each scaled to one display size."""
    heads = [resolution_text(*size) for size in figure.resolutions]
    cells = [[_picture(rows, line, both(line.at, Cell(size)), results) for size in figure.resolutions] for line in figure.lines]
    return _sheet(figure, heads, cells, inset=False)


def zoom(figure: Figure, rows: list[Row], results: Path) -> tuple[draw.Drawn, list[Row]]:
    """One picture per line, of the same seed and resolution, each with the middle of it at native pixels below."""
    size = figure.resolutions[0]
    cells = [[_picture(rows, line, both(line.at, Cell(size)), results) for line in figure.lines]]
    return _sheet(figure, [line.label for line in figure.lines], cells, inset=True)


def _picture(rows: list[Row], line: Line, at: Cell, results: Path) -> tuple["dict[int, Path]", str, Row | None]:
    """The pictures of a line by seed, or the reason why there is none, and the record."""
    found = rows_of(rows, line.method, at, "quality")
    if not found:
        return {}, "no record", None
    if found[0]["status"] != "ok":
        return {}, str(found[0]["status"]), found[0]
    for row in found:
        folder = Path(results) / "cells" / row["id"][:2] / row["id"]
        seeds = {int(Path(name).stem): folder / name for name in row["_samples"]
                 if Path(name).stem.isdigit() and (folder / name).is_file()}
        if seeds:
            return seeds, "", row
    return {}, "no sample", found[0]


def _sheet(figure: Figure, heads: list[str], cells: list[list[Any]], *, inset: bool) -> tuple[draw.Drawn, list[Row]]:
    """Pictures 1:1 on a page; of the seeds the lowest that the most cells have. `inset` is for nothing without any picture."""
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    labels = [] if inset else [line.label for line in figure.lines]
    inset = inset and any(seeds for line in cells for seeds, _, _ in line)
    counts: dict[int, int] = {}
    for seeds, _, _ in (cell for line in cells for cell in line):
        for seed in seeds:
            counts[seed] = counts.get(seed, 0) + 1
    seed = min((one for one, count in counts.items() if count == max(counts.values())), default=0)
    left = 20 + max((11 * len(label) for label in labels), default=0)
    deep = SIDE + (INSET + 6 if inset else 0)
    wide, tall = left + len(heads) * (SIDE + 6), 40 + len(cells) * (deep + 6)
    behind = [row for line in cells for seeds, _, row in line if row is not None and seed in seeds]
    with matplotlib.rc_context(draw.RC):
        canvas = Canvas(figsize=(wide / draw.DPI, tall / draw.DPI), dpi=draw.DPI)
        for at, head in enumerate(heads):
            canvas.text((left + at * (SIDE + 6) + SIDE / 2) / wide, 1 - 30 / tall, head, ha="center", va="bottom", fontsize=7)
        for across, line in enumerate(cells):
            top = 40 + across * (deep + 6)
            if labels:
                canvas.text((left - 10) / wide, 1 - (top + SIDE / 2) / tall, labels[across], ha="right", va="center",
                            fontsize=7)
            for at, (seeds, reason, _) in enumerate(line):
                _place(canvas, left + at * (SIDE + 6), top, wide, tall, seeds.get(seed), reason or "no sample", inset)
    said = f"{caption(figure, behind)} Seed {seed}."
    said += " Below each: the framed middle at native pixels, enlarged by a whole number." if inset else \
        " Each scaled to one display size."
    return draw.Drawn(figure.name, said, canvas), behind


def _place(canvas: Any, x: int, y: int, wide: int, tall: int, path: Path | None, reason: str, inset: bool) -> None:
    """One picture, or a grey square with the reason; with `inset` its middle at native pixels below it."""
    import numpy as np
    from matplotlib.patches import Rectangle
    from PIL import Image

    def axes_at(top: int, side: int, left: int = x) -> "Axes":
        axes = canvas.add_axes((left / wide, 1 - (top + side) / tall, side / wide, side / tall))
        axes.set_axis_off()
        found: Axes = axes
        return found

    if path is None:
        _blank(axes_at(y, SIDE), reason)
        return
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    whole = fit(image, SIDE)
    top = axes_at(y, SIDE)
    top.imshow(np.asarray(_square(whole, SIDE)), interpolation="none", aspect="auto")
    if inset:
        part, factor = _inset(min(image.size))
        corner = ((image.width - part) // 2, (image.height - part) // 2)
        framed = part * whole.width / image.width         # the side of the part as the whole picture shows it
        edge = (SIDE - framed) / 2 - 0.5
        for colour, width in (("black", 1.6), ("white", 0.7)):
            top.add_patch(Rectangle((edge, edge), framed, framed, fill=False, edgecolor=colour, linewidth=width))
        crop = image.crop((*corner, corner[0] + part, corner[1] + part))
        shown = crop.resize((factor * part, factor * part), Image.Resampling.NEAREST)
        axes_at(y + SIDE + 6, INSET, x + (SIDE - INSET) // 2).imshow(
            np.asarray(_square(shown, INSET)), interpolation="none", aspect="auto")


def _inset(side: int) -> tuple[int, int]:
    """Pixels of the middle that an inset shows, at most two fifths of the side, and the factor that enlarges each of them."""
    factor = next((one for one in FACTORS if INSET // one <= 0.4 * side), FACTORS[-1])
    return min(INSET // factor, side), factor


def _square(image: "Image", side: int) -> "Image":
    from PIL import Image

    square = Image.new("RGB", (side, side), "white")
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _blank(axes: "Axes", reason: str) -> None:
    """A grey field with the reason in its middle."""
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.fill_between([0, 1], 0, 1, color="0.94", linewidth=0)
    axes.text(0.5, 0.5, "\n".join(textwrap.wrap(reason, 18)), ha="center", va="center", fontsize=6, color="0.35")

