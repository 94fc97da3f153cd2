"""Grids of images: the sample grid of a report, and the pictures that `hibench show` writes."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hibench.errors import SpecError
from hibench.tables import Line, resolution_text

if TYPE_CHECKING:
    from PIL.Image import Image

    from hibench.plots import Drawn

__all__ = ["captioned_grid", "fit", "run_show", "sample_grid"]

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
    """Methods × resolutions with the same seeds, from the samples beside the records; nothing when there are none.

    Of several settings of a method at one resolution the one with the most steps and the least sparsity is shown."""
    cells: dict[tuple[str, int, int], Line] = {}
    for line in sorted(lines, key=lambda line: (line.steps or 0, -line.sparsity)):
        cells[line.name, line.height, line.width] = line
    seeds = _common_seeds(cells.values(), results)
    names = sorted({line.name for line in cells.values()}, key=lambda one: _rank(one, cells))
    sizes = sorted({(line.height, line.width) for line in cells.values()}, key=lambda size: (size[0] * size[1], size))[:6]
    if seeds:
        yield _draw_samples(name, stem, cells, names, sizes, seeds[:2 if len(sizes) <= 3 else 1], results)


def _rank(name: str, cells: dict[tuple[str, int, int], Line]) -> tuple[bool, bool, str]:
    """real first, then the methods by name, other baselines last."""
    role = next(line.role for key, line in cells.items() if key[0] == name)
    return role != "floor", role is not None, name


def _folder(line: Line, results: Path) -> Path:
    found = (line.quality or {})["id"]
    return Path(results) / "cells" / found[:2] / found


def _common_seeds(lines: Any, results: Path) -> list[int]:
    """Seeds that every cell with samples has a picture of, ascending; the most shared ones if none is shared by all."""
    counts: dict[int, int] = {}
    for line in lines:
        for path in (line.quality or {}).get("_samples", ()):
            if Path(path).stem.isdigit() and (_folder(line, results) / path).is_file():
                counts[int(Path(path).stem)] = counts.get(int(Path(path).stem), 0) + 1
    return sorted(seed for seed, count in counts.items() if count == max(counts.values()))


def _draw_samples(name: str, stem: str, cells: dict[tuple[str, int, int], Line], names: list[str], sizes: list[tuple[int, int]],
                  seeds: list[int], results: Path) -> "Drawn":
    """A figure of exact pixels: every image is placed 1:1 at 200 dpi, so nothing is resampled twice."""
    import matplotlib
    import numpy as np
    from matplotlib.figure import Figure

    from hibench.plots import DPI, PAGE_IN, RC, Drawn

    across = len(sizes) * len(seeds)
    left, top = 22 + max(12 * len(one) for one in names), 110
    side = next((one for one in SIDES if left + across * (one + GAP) <= PAGE_IN * DPI), SIDES[-1])
    if across * (SIDES[0] + GAP) + left <= PAGE_IN * DPI:
        side = SIDES[0]
    wide = left + across * (side + GAP) + (len(sizes) - 1) * GAP
    tall = top + len(names) * (side + GAP)
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(wide / DPI, tall / DPI), dpi=DPI)
        settings = sorted({f"{line.steps} steps" for line in cells.values() if line.steps is not None and not line.role})
        says = f"Sweep {name}, seeds {', '.join(map(str, seeds))}" + (f", {' or '.join(settings)}" if settings else "")
        figure.text(6 / wide, 1 - 8 / tall, "\n".join(textwrap.wrap(says, max(30, int(wide / 10)))), fontsize=6.5, color="0.25", va="top")
        for row, one in enumerate(names):
            y = top + row * (side + GAP)
            figure.text((left - 10) / wide, 1 - (y + side / 2) / tall, one, ha="right", va="center", fontsize=7.5)
            for column, size in enumerate(sizes):
                x = left + column * (len(seeds) * (side + GAP) + GAP)
                if row == 0:
                    figure.text((x + (len(seeds) * (side + GAP) - GAP) / 2) / wide, 1 - (top - 8) / tall, resolution_text(*size),
                                ha="center", va="bottom", fontsize=8)
                line = cells.get((one, *size))
                for position, seed in enumerate(seeds):
                    where = x + position * (side + GAP)
                    axes = figure.add_axes((where / wide, 1 - (y + side) / tall, side / wide, side / tall))
                    axes.set_axis_off()
                    picture = _sample(line, seed, side, results)
                    if picture is None:
                        axes.add_patch(matplotlib.patches.Rectangle((0, 0), 1, 1, facecolor="0.94", edgecolor="none"))
                        said = "not in sweep" if line is None else "no sample" if line.quality["status"] == "ok" else line.quality["status"]
                        axes.text(0.5, 0.5, said, ha="center", va="center", fontsize=6, color="0.35")
                        continue
                    axes.imshow(np.asarray(picture), interpolation="none", aspect="auto")
    return Drawn(stem, f"Samples: methods × resolutions, the same seeds in every row, each scaled to one display size. {says}.", figure)


def _sample(line: Line | None, seed: int, side: int, results: Path) -> "Image | None":
    """One sample on a white square of `side` pixels, or None."""
    from PIL import Image

    if line is None or line.quality is None:
        return None
    path = next((one for one in line.quality["_samples"] if Path(one).stem == str(seed)), None)
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
            draw.text((x + cell / 2, y + height + 5 + number * round(size * 1.25)), text, fill=(40, 40, 40), font=font, anchor="ma")
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
    if count < 1 or height < 1 or width < 1:
        raise SpecError(f"show: {count} images of {height}x{width} pixels cannot be drawn; give numbers above 0")
    if out.suffix.lower() not in SUFFIXES:
        raise SpecError(f"show: --out {out}: unknown picture format '{out.suffix}'; use one of {' '.join(SUFFIXES)}")
    seeds = list(range(seed, seed + count))
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
    import torch

    from hibench.registry import load_adapter

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    adapter = load_adapter(what)("reference", options, device, "float32")
    reason = adapter.supports({"height": resolution[0], "width": resolution[1], "steps": steps, "sparsity": sparsity})
    if reason is not None:
        raise SpecError(f"show: {what} cannot do this: {reason}")
    adapter.load()
    try:
        images = [adapter.generate(resolution, seed, steps=steps, sparsity=sparsity).cpu().numpy() for seed in seeds]
    finally:
        adapter.close()
    return np.stack(images), [f"seed {seed}" for seed in seeds]
