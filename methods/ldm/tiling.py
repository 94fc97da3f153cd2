"""Decoding of large latents in overlapping tiles: bounded memory, at the price of borders that are blended, not exact."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["decode_tiled", "ramp", "tile_spans"]


def tile_spans(side: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    """[start, stop) of tiles along one side: `tile` long, sharing `overlap` or more, the last one at the border."""
    if not 0 <= overlap < tile:
        raise ValueError(f"an overlap of {overlap} does not fit tiles of {tile}")
    last = max(0, side - tile)
    starts = sorted({*range(0, last + 1, tile - overlap), last})
    return [(s, min(side, s + tile)) for s in starts]


def ramp(start: int, stop: int, side: int, overlap: int, factor: int, device: str | torch.device = "cpu") -> Tensor:
    """Blending weight [(stop - start) * factor] of one tile along one side: linear over the overlap, flat at image borders."""
    length, width = (stop - start) * factor, max(1, overlap * factor)
    places = torch.arange(length, device=device, dtype=torch.float32) + 0.5
    weight = torch.ones(length, device=device)
    if start > 0:
        weight = torch.minimum(weight, places / width)
    if stop < side:
        weight = torch.minimum(weight, (length - places) / width)
    return weight.clamp(max=1.0)


def decode_tiled(decode: Callable[[Tensor], Tensor], z: Tensor, factor: int, tile: int, overlap: int) -> Tensor:
    """Images float32 [B, 3, f*h, f*w] of latents [B, C, h, w], tile by tile, blended linearly over `overlap` latents.

    Group normalisation and attention see one tile at a time, so this is not the same image as decoding at once: only latents
    that fit into one tile are decoded exactly.
    """
    height, width = z.shape[2:]
    if height <= tile and width <= tile:
        return decode(z).float()
    out = torch.zeros(len(z), 3, height * factor, width * factor, device=z.device)
    total = torch.zeros(height * factor, width * factor, device=z.device)
    for top, bottom in tile_spans(height, tile, overlap):
        for left, right in tile_spans(width, tile, overlap):
            rows = ramp(top, bottom, height, overlap, factor, z.device)
            weight = rows[:, None] * ramp(left, right, width, overlap, factor, z.device)
            place = (..., slice(top * factor, bottom * factor), slice(left * factor, right * factor))
            out[place] += weight * decode(z[..., top:bottom, left:right]).float()
            total[place] += weight
    return out.div_(total)
