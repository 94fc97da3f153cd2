"""Patches of an image, their places in it, and the collage of half-shifted tiles (arXiv 2308.01316, eq. 4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["collage", "from_patches", "pad_half", "positions", "to_patches"]


def pad_half(x: Tensor, patch: int) -> Tensor:
    """[B, C, H, W] with half a patch of zeros on every side."""
    return F.pad(x, (patch // 2,) * 4)


def to_patches(x: Tensor, patch: int) -> Tensor:
    """[B, C, P p, Q p] to patches [B P Q, C, p, p], row by row."""
    b, c, height, width = x.shape
    grid = x.view(b, c, height // patch, patch, width // patch, patch)
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(-1, c, patch, patch)


def from_patches(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """Patches [B P Q, C, p, p] put together: [B, C, P p, Q p] for grid = (P, Q)."""
    n, c, size, _ = patches.shape
    rows, columns = grid
    tiles = patches.reshape(n // (rows * columns), rows, columns, c, size, size)
    return tiles.permute(0, 3, 1, 4, 2, 5).reshape(-1, c, rows * size, columns * size)


def positions(grid: tuple[int, int], first: tuple[float, float] = (0.0, 0.0), device: str | torch.device = "cpu") -> Tensor:
    """(row, column) of every patch of a P x Q grid whose first patch is at `first`: float32 [P Q, 2].

    Patches of the padded image count from 0, tiles of the image itself from 0.5. The numbers are not divided by the size of the
    grid: a larger canvas goes on counting.
    """
    rows = first[0] + torch.arange(grid[0], dtype=torch.float32, device=device)
    columns = first[1] + torch.arange(grid[1], dtype=torch.float32, device=device)
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).flatten(0, 1)


def collage(patches: Tensor, grid: tuple[int, int], out: Tensor | None = None) -> Tensor:
    """Feature maps of (P+1) x (Q+1) patches [B (P+1)(Q+1), C, s, s] to those of the P x Q tiles between them [B P Q, C, s, s].

    A tile consists of the four quarters that meet where four patches meet: the maps are put together, half a map is cropped on
    every side, and the rest is cut again. In memory that is one strided view, so it costs one copy, into `out` where given
    (any [B P Q, C, s, s] view, such as some channels of a larger tensor).
    """
    rows, columns = grid
    n, c, size, _ = patches.shape
    half, batch = size // 2, n // ((rows + 1) * (columns + 1))
    if torch.is_grad_enabled() and patches.requires_grad:
        whole = from_patches(patches, (rows + 1, columns + 1))
        return to_patches(whole[:, :, half:-half, half:-half].contiguous(), size)
    if not (patches.is_contiguous() or patches.is_contiguous(memory_format=torch.channels_last)):
        patches = patches.contiguous()
    sn, sc, sy, sx = patches.stride()
    across, down = sn, sn * (columns + 1)
    view = patches.as_strided(
        (batch, rows, columns, c, 2, half, 2, half),
        (down * (rows + 1), down, across, sc, down - half * sy, sy, across - half * sx, sx),
        patches.storage_offset() + half * (sy + sx),
    )
    if out is None:
        out = torch.empty((batch * rows * columns, c, size, size), dtype=patches.dtype, device=patches.device,
                          memory_format=torch.channels_last if sc == 1 and c > 1 else torch.contiguous_format)
    out.unflatten(0, (batch, rows, columns)).unflatten(5, (2, half)).unflatten(4, (2, half)).copy_(view)
    return out
