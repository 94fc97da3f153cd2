"""Images out of a feature map: tile by tile (the official rule) or at once, streamed to uint8 in bounded memory.

Group normalisation sees one tile at a time, so tiles and the whole image are two different renderings of one feature map, and
neither is an approximation of the other. The networks were trained on patches of the size of a tile.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hibench.adapter import to_uint8
from hibench.resize import pil_resize
from methods.infd.geometry import Query, whole
from methods.infd.model import INFDModel
from methods.infd.renderers import FixedRenderer

__all__ = ["PIXELS_AT_ONCE", "Tiles", "View", "render_float", "render_uint8", "spans", "tiles_of"]

PIXELS_AT_ONCE = {"cpu": 1 << 15, "cuda": 1 << 22}  # rendered in one batch


@dataclass(frozen=True)
class Tiles:
    """How an image is cut: tiles of `size` px (None: the whole image), each seen with `padding` px more inside the image."""

    size: int | None = 256
    padding: int = 8


@dataclass(frozen=True)
class View:
    """Which part of the plane is rendered, as ranges within (-1, 1) of the feature map."""

    rows: tuple[float, float] = (-1.0, 1.0)
    columns: tuple[float, float] = (-1.0, 1.0)


@dataclass(frozen=True)
class Span:
    """One tile along one axis: it fills [start, stop) and is rendered as [outer_start, outer_stop)."""

    start: int
    stop: int
    outer_start: int
    outer_stop: int

    @property
    def length(self) -> int:
        """Pixels that are rendered."""
        return self.outer_stop - self.outer_start


def spans(side: int, tiles: Tiles) -> list[Span]:
    """Tiles along one side, from 0 in steps of the tile size; the last one may be smaller; no padding beyond the border."""
    size = side if tiles.size is None else tiles.size
    padding = 0 if tiles.size is None else tiles.padding
    return [Span(start, min(side, start + size), max(0, start - padding), min(side, start + size + padding))
            for start in range(0, side, size)]


def tiles_of(height: int, width: int, tiles: Tiles) -> int:
    """How many tiles an image has."""
    return len(spans(height, tiles)) * len(spans(width, tiles))


def _pieces(model: INFDModel, phi: Tensor, height: int, width: int, tiles: Tiles, view: View,
            at_once: int) -> Iterator[tuple[int, Span, Span, Tensor]]:
    """(image, rows, columns, colours [3, h, w]) of every tile of every image; tiles of one shape are rendered together.

    Normalisation is per sample, so a batch of tiles is what the tiles are one by one.
    """
    grid = whole(height, width, view.rows, view.columns, phi.device)
    groups: dict[tuple[int, int], list[tuple[int, Span, Span]]] = {}
    for row in spans(height, tiles):
        for column in spans(width, tiles):
            groups.setdefault((row.length, column.length), []).extend((i, row, column) for i in range(len(phi)))
    for (high, wide), members in groups.items():
        count = max(1, at_once // (high * wide))
        for first in range(0, len(members), count):
            batch = members[first:first + count]
            query = Query(torch.stack([grid.rows[0, r.outer_start:r.outer_stop] for _, r, _ in batch]),
                          torch.stack([grid.columns[0, c.outer_start:c.outer_stop] for _, _, c in batch]), grid.cell)
            out = model.render(phi, query, torch.tensor([i for i, _, _ in batch], device=phi.device))
            for (image, row, column), colours in zip(batch, out):
                top, left = row.start - row.outer_start, column.start - column.outer_start
                yield image, row, column, colours[:, top:top + row.stop - row.start, left:left + column.stop - column.start]


def _fixed(model: INFDModel, phi: Tensor, height: int, width: int, view: View) -> Tensor:
    """The native image of a renderer without coordinates, cut to the view and resampled: uint8 [B, 3, height, width]."""
    native = to_uint8(model.renderer(phi))
    edges = [[round((at + 1) / 2 * side) for at in part] for part, side in ((view.rows, native.shape[2]),
                                                                          (view.columns, native.shape[3]))]
    return pil_resize(native[..., slice(*edges[0]), slice(*edges[1])], height, width, "lanczos")


def render_uint8(model: INFDModel, phi: Tensor, height: int, width: int, tiles: Tiles, view: View | None = None,
                 at_once: int | None = None) -> Tensor:
    """Images uint8 [B, 3, height, width] on phi's device; beyond them, memory is that of `at_once` pixels (None: by device).

    A renderer without coordinates gives its native image, resampled by Lanczos.
    """
    view = view or View()
    if isinstance(model.renderer, FixedRenderer):
        return _fixed(model, phi, height, width, view)
    at_once = at_once or PIXELS_AT_ONCE[phi.device.type]
    out = torch.empty(len(phi), 3, height, width, dtype=torch.uint8, device=phi.device)
    for image, row, column, colours in _pieces(model, phi, height, width, tiles, view, at_once):
        out[image, :, row.start:row.stop, column.start:column.stop] = to_uint8(colours)
    return out


def render_float(model: INFDModel, phi: Tensor, height: int, width: int, tiles: Tiles, view: View | None = None,
                 at_once: int = 1 << 20) -> Tensor:
    """The same before rounding and clamping, float32 [B, 3, height, width] (differentiable)."""
    view = view or View()
    if isinstance(model.renderer, FixedRenderer):
        return F.interpolate(model.renderer(phi).float(), (height, width), mode="bicubic", antialias=True)
    out = torch.empty(len(phi), 3, height, width, device=phi.device)
    for image, row, column, colours in _pieces(model, phi, height, width, tiles, view, at_once):
        out[image, :, row.start:row.stop, column.start:column.stop] = colours.float()
    return out
