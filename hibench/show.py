"""Grids of images: the sample grid of a report, and the pictures that `hibench show` writes."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hibench.errors import SpecError, did_you_mean
from hibench.lines import Line, resolution_text

if TYPE_CHECKING:
    from PIL.Image import Image

    from hibench.draw import Drawn

__all__ = ["captioned_grid", "fit", "labelled_rows", "run_show", "run_show_task", "sample_grid"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".pdf")
GAP, SIDES = 6, (256, 192, 128, 64)                       # pixels at 200 dpi


def fit(image: "Image", side: int) -> "Image":
    """The image inside a square of `side` pixels: whole-number enlargement by nearest neighbour, else Lanczos."""
    from PIL import Image

    factor = side / max(image.size)
    size = tuple(max(1, round(edge * factor)) for edge in image.size)
    exact = factor >= 1 and all(one % edge == 0 for one, edge in zip(size, image.size))
    return image.resize((size[0], size[1]), Image.Resampling.NEAREST if exact else Image.Resampling.LANCZOS)


def sample_grid(name: str, stem: str, lines: Sequence[Line], results: Path) -> Iterator["Drawn"]:
    """Methods against resolutions (or against steps or sparsity, when only those vary), the same seeds in every cell.

    Pictures come from the samples beside the records; nothing is drawn when there are none. Of several settings that fall
    into one cell the one with the most steps and the least sparsity is shown."""
    own = [line for line in lines if not line.role]
    varied = [one for one in ("resolution", "steps", "sparsity") if len({_place(line, one) for line in own}) > 1]
    axis = varied[0] if varied else "resolution"
    cells: dict[tuple[str, str], Line] = {}
    for line in sorted(lines, key=lambda line: (line.steps or 0, -line.sparsity)):
        cells[line.name, _place(line, axis)[1]] = line
    seeds = _common_seeds(cells.values(), results)
    roles = {line.name: line.role for line in cells.values()}
    rows = sorted(roles, key=lambda one: (roles[one] != "floor", roles[one] is not None, one))
    columns = [said for _, said in sorted({_place(line, axis) for line in own or lines})][-6:]
    if axis != "resolution":
        for line in [line for line in lines if line.role]:
            cells[line.name, columns[0]] = line
    if seeds:
        yield _draw_samples(name, stem, cells, rows, columns, seeds[:2 if len(columns) <= 3 else 1], results)


def _place(line: Line, axis: str) -> tuple[float, str]:
    """Where a line stands along the columns, and the head of its column."""
    if axis == "resolution":
        return line.height * line.width + line.height / 1e6, resolution_text(line.height, line.width)
    return (float(line.steps or 0), f"{line.steps} steps") if axis == "steps" else (line.sparsity, f"s = {line.sparsity:g}")


def _folder(line: Line, results: Path) -> Path:
    found = str((line.quality or {})["id"])
    return Path(results) / "cells" / found[:2] / found


def _common_seeds(lines: Iterable[Line], results: Path) -> list[int]:
    """The seeds that the most cells have a picture of, ascending."""
    counts: dict[int, int] = {}
    for line in lines:
        for path in (line.quality or {}).get("_samples", ()):
            if Path(path).stem.isdigit() and (_folder(line, results) / path).is_file():
                counts[int(Path(path).stem)] = counts.get(int(Path(path).stem), 0) + 1
    return sorted(seed for seed, count in counts.items() if count == max(counts.values()))


def _draw_samples(name: str, stem: str, cells: dict[tuple[str, str], Line], rows: list[str], columns: list[str],
                  seeds: list[int], results: Path) -> "Drawn":
    """A figure of exact pixels: every image is placed 1:1 at 200 dpi, so nothing is resampled twice."""
    import matplotlib
    import numpy as np
    from matplotlib.figure import Figure

    from hibench.draw import DPI, PAGE_IN, RC, Drawn

    says = _says(name, cells.values(), seeds)
    across, left = len(columns) * len(seeds), 22 + max(11 * len(one) for one in rows)
    side = next((one for one in SIDES if left + across * (one + GAP) <= PAGE_IN * DPI), SIDES[-1])
    wide = left + across * (side + GAP) + (len(columns) - 1) * GAP
    wrapped = textwrap.wrap(says, max(30, int(wide / 10.5)))
    top = 44 + 24 * len(wrapped)
    tall = top + len(rows) * (side + GAP)
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(wide / DPI, tall / DPI), dpi=DPI)
        figure.text(6 / wide, 1 - 8 / tall, "\n".join(wrapped), fontsize=6.5, color="0.25", va="top")
        for column, head in enumerate(columns):
            middle = left + column * (len(seeds) * (side + GAP) + GAP) + (len(seeds) * (side + GAP) - GAP) / 2
            figure.text(middle / wide, 1 - (top - 8) / tall, head, ha="center", va="bottom", fontsize=8)
        for row, one in enumerate(rows):
            bottom = 1 - (top + row * (side + GAP) + side) / tall
            alone = sum((one, head) in cells for head in columns) == 1 < len(columns) and one.endswith(")")
            figure.text((left - 10) / wide, bottom + side / tall / 2, f"{one}\nin all columns" if alone else one, ha="right",
                        va="center", fontsize=7.5)
            for column, position in itertools.product(range(len(columns)), range(len(seeds))):
                where = left + column * (len(seeds) * (side + GAP) + GAP) + position * (side + GAP)
                line = cells.get((one, columns[column]))
                if line is None:
                    continue
                axes = figure.add_axes((where / wide, bottom, side / wide, side / tall))
                axes.set_axis_off()
                picture = _sample(line, seeds[position], side, results)
                status = str((line.quality or {}).get("status", "ok"))
                if picture is not None:
                    axes.imshow(np.asarray(picture), interpolation="none", aspect="auto")
                    continue
                axes.set(xlim=(0, 1), ylim=(0, 1))
                axes.fill_between([0, 1], 0, 1, color="0.94", linewidth=0)
                status = "no sample" if status == "ok" else status
                axes.text(0.5, 0.5, status, ha="center", va="center", fontsize=6, color="0.35")
    return Drawn(stem, f"Samples, each scaled to one display size; the columns state what was asked for. {says}.", figure)


def _says(name: str, lines: Iterable[Line], seeds: list[int]) -> str:
    """What the grid states about itself: the sweep, the seeds, what all methods share."""
    own = [line for line in lines if not line.role]
    steps, sizes = {line.steps for line in own}, {resolution_text(line.height, line.width) for line in own}
    parts = [f"Sweep {name}", f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"]
    parts += [f"{steps.pop()} steps"] if len(steps) == 1 and None not in steps else []
    return ", ".join(parts + (list(sizes) if len(sizes) == 1 else []))


def _sample(line: Line, seed: int, side: int, results: Path) -> "Image | None":
    """One sample on a white square of `side` pixels, or None."""
    from PIL import Image

    path = next((one for one in (line.quality or {})["_samples"] if Path(one).stem == str(seed)), None)
    if path is None or not (_folder(line, results) / path).is_file():
        return None
    with Image.open(_folder(line, results) / path) as opened:
        image = fit(opened.convert("RGB"), side)
    square = Image.new("RGB", (side, side), "white")
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def captioned_grid(images: Any, captions: Sequence[str], *, columns: int | None = None) -> "Image":
    """Images (uint8 [B, 3, H, W], any array) at native pixels in a near-square grid, each with its caption below."""
    import numpy as np
    from PIL import Image, ImageDraw

    pixels = np.moveaxis(np.asarray(images, dtype=np.uint8), 1, -1)
    count, height, width, _ = pixels.shape
    columns = columns or max(1, math.ceil(math.sqrt(count * height / width)))
    cell = max(width, 96)
    size = max(11, min(20, round(cell / 18)))
    font = _font(size)
    wrapped = [_wrap(text, font, cell) for text in captions]
    band = max(len(text) for text in wrapped) * round(size * 1.25) + 10
    gap, rows = max(8, size // 2), math.ceil(count / columns)
    sheet = Image.new("RGB", (columns * (cell + gap) + gap, rows * (height + band + gap) + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for position in range(count):
        x, y = gap + position % columns * (cell + gap), gap + position // columns * (height + band + gap)
        sheet.paste(Image.fromarray(pixels[position]), (x + (cell - width) // 2, y))
        for number, text in enumerate(wrapped[position]):
            below = y + height + 5 + number * round(size * 1.25)
            draw.text((x + cell / 2, below), text, fill=(40, 40, 40), font=font, anchor="ma")
    return sheet


def _font(size: int) -> Any:
    """matplotlib's DejaVu Sans, which knows ×, ² and most letters."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def _wrap(text: str, font: Any, width: int) -> list[str]:
    """Lines of at most `width` pixels; a word that is wider stands alone."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def run_show(what: str, *, resolution: int | tuple[int, int], count: int, seed: int, out: Path, steps: int | None = None,
             sparsity: float = 0.0, device: str = "auto", options: dict[str, Any] | None = None) -> int:
    """Draw `count` images from seed `seed` on into `out`: the built-in `scenes` with captions, or a method's images.

    `resolution` is a side or (height, width) in pixels. Raises SpecError for a bad value, MissingWeights or UnknownMethod
    from the method. Returns the exit code 0."""
    height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
    out = Path(out)
    seeds = _check(height, width, count, seed, out)
    if what == "scenes":
        from hibench.references import scenes

        images, captions = scenes.render(seeds, height, width).cpu().numpy(), scenes.captions(seeds)
    else:
        images, captions = _generate(what, (height, width), seeds, steps, sparsity, device, options or {})
    out.parent.mkdir(parents=True, exist_ok=True)
    captioned_grid(images, captions).save(out)
    print(f"{out}: {count} images of {resolution_text(height, width)}")
    return 0


def _generate(what: str, resolution: tuple[int, int], seeds: list[int], steps: int | None, sparsity: float, device: str,
              options: dict[str, Any]) -> tuple[Any, list[str]]:
    """Images uint8 [B, 3, H, W] of a method with its reference weights, one caption `seed N` each."""
    import numpy as np

    from hibench.job import resolve_device
    from hibench.registry import load_adapter

    adapter = load_adapter(what)("reference", options, resolve_device(device), "float32")
    reason = adapter.supports({"height": resolution[0], "width": resolution[1], "steps": steps, "sparsity": sparsity})
    if reason is not None:
        raise SpecError(f"show: {what} cannot do this: {reason}")
    adapter.load()
    try:
        images = [adapter.generate(resolution, seed, steps=steps, sparsity=sparsity).cpu().numpy() for seed in seeds]
    finally:
        adapter.close()
    return np.stack(images), [f"seed {seed}" for seed in seeds]


def run_show_task(what: str, task: str, *, resolution: tuple[int, int], count: int, seed: int, out: Path,
                  steps: int | None = None, device: str = "auto", options: dict[str, Any] | None = None) -> int:
    """Draw an application of a method, e.g. inpainting, for `count` scenes from seed `seed` on: its rows, labelled.

    An adapter that has such applications names them in `tasks: ClassVar[tuple[str, ...]]` and computes one in
    `run_task(task, resolution, seeds, *, steps=None)`, a list of rows (label, uint8 [B, 3, h, w]). Raises SpecError for a
    task that the method does not have, MissingWeights or UnknownMethod from the method. Returns the exit code 0."""
    from hibench.job import resolve_device
    from hibench.registry import load_adapter

    out = Path(out)
    seeds = _check(*resolution, count, seed, out)
    adapter_class = load_adapter(what)
    known = tuple(getattr(adapter_class, "tasks", ()))
    if task not in known:
        there = f"it has: {', '.join(known)}" if known else "it has none"
        raise SpecError(f"show: {what} has no task '{task}'{did_you_mean(task, known)}; {there}")
    adapter: Any = adapter_class("reference", options or {}, resolve_device(device), "float32")
    adapter.load()
    try:
        rows = [(label, images.cpu().numpy()) for label, images in adapter.run_task(task, resolution, seeds, steps=steps)]
    finally:
        adapter.close()
    out.parent.mkdir(parents=True, exist_ok=True)
    labelled_rows(rows).save(out)
    print(f"{out}: {task}, {len(rows)} rows of {count} images")
    return 0


def _check(height: int, width: int, count: int, seed: int, out: Path) -> list[int]:
    """The seeds to draw; SpecError for what cannot be drawn."""
    if count < 1 or height < 1 or width < 1:
        raise SpecError(f"show: {count} images of {height}x{width} pixels cannot be drawn; give numbers above 0")
    if out.suffix.lower() not in SUFFIXES:
        raise SpecError(f"show: --out {out}: unknown picture format '{out.suffix}'; use one of {' '.join(SUFFIXES)}")
    return list(range(seed, seed + count))


def labelled_rows(rows: Sequence[tuple[str, Any]]) -> "Image":
    """Rows (label, uint8 [B, 3, h, w], any array) under one another, every image enlarged to the size of the largest.

    The labels stand on the left; smaller images are enlarged by whole numbers without smoothing where that fits."""
    import numpy as np
    from PIL import Image, ImageDraw

    pictures = [(label, np.moveaxis(np.asarray(images, dtype=np.uint8), 1, -1)) for label, images in rows]
    side = max(max(images.shape[1:3]) for _, images in pictures)
    tall, wide = (max(images.shape[axis] * side // max(images.shape[1:3]) for _, images in pictures) for axis in (1, 2))
    size = max(11, min(20, round(side / 14)))
    font, gap = _font(size), max(4, size // 3)
    labels = [_wrap(label, font, max(90, side)) for label, _ in pictures]
    left = gap * 2 + round(max(font.getlength(line) for lines in labels for line in lines))
    count = max(len(images) for _, images in pictures)
    sheet = Image.new("RGB", (left + count * (wide + gap), gap + len(rows) * (tall + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (_, images) in enumerate(pictures):
        y = gap + row * (tall + gap)
        for number, line in enumerate(labels[row]):
            draw.text((gap, y + tall / 2 + (number - len(labels[row]) / 2) * size * 1.25), line, fill=(40, 40, 40), font=font)
        for position, pixels in enumerate(images):
            image = fit(Image.fromarray(pixels), side)
            sheet.paste(image, (left + position * (wide + gap) + (wide - image.width) // 2, y + (tall - image.height) // 2))
    return sheet
