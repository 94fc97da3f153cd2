"""Coordinates of an image neural field: pixel centres, cells, and the look-up of the nearest feature, axis by axis.

Every query of INFD is a grid, so a coordinate is a row coordinate and a column coordinate. Coordinates are float32 in (-1, 1)
over the whole image; n pixels between `low` and `high` have their centres at low + (high - low) (i + 0.5) / n.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Query", "centres", "nearest", "relative", "whole"]


def centres(n: int, low: float = -1.0, high: float = 1.0, device: str | torch.device = "cpu") -> Tensor:
    """Pixel centres, float32 [n]; bit-equal to the official grid (utils/geometry.py, make_coord_grid)."""
    return low + (2 * torch.arange(n, dtype=torch.float32, device=device) + 1) / (2 * n) * (high - low)


def nearest(coordinates: Tensor, cells: int) -> Tensor:
    """Which of `cells` cells on (-1, 1) each coordinate falls into, int64 of the same shape.

    Half-way coordinates (of renderings at 0.5, 1.5, 2.5, ... times the feature map) go to the even cell, up to the rounding of
    float32: torch's own nearest `grid_sample` decides, as in the official look-up, on one axis instead of on every pixel.
    """
    flat = coordinates.float().reshape(1, -1, 1, 1)
    index = torch.arange(cells, dtype=torch.float32, device=flat.device).view(1, 1, cells, 1)
    grid = torch.cat([torch.zeros_like(flat), flat], dim=-1)
    found = F.grid_sample(index, grid, mode="nearest", padding_mode="border", align_corners=False)
    return found.reshape(coordinates.shape).long()


def relative(coordinates: Tensor, index: Tensor, cells: int) -> Tensor:
    """Offset from the centre of the cell `index`, in half cells: float32 in [-1, 1], of the coordinates' shape."""
    return (coordinates - centres(cells, device=coordinates.device)[index]) * cells


@dataclass(frozen=True)
class Query:
    """A batch of grids of pixels, [B, h] rows by [B, w] columns (B = 1 serves every image), and the size of a pixel."""

    rows: Tensor                                    # float32 [B, h]
    columns: Tensor                                 # float32 [B, w]
    cell: Tensor                                    # float32 [B, 2]: height and width of a pixel, 2 / resolution

    def to(self, device: str | torch.device) -> "Query":
        """The same query on a device."""
        return Query(self.rows.to(device), self.columns.to(device), self.cell.to(device))

    def __getitem__(self, part: slice) -> "Query":
        return Query(self.rows[part], self.columns[part], self.cell[part])


def whole(height: int, width: int, rows: tuple[float, float] = (-1.0, 1.0), columns: tuple[float, float] = (-1.0, 1.0),
          device: str | torch.device = "cpu") -> Query:
    """All pixels of a height x width image of the part `rows` x `columns` of the plane; without parts, of the whole image."""
    cell = torch.tensor([[(rows[1] - rows[0]) / height, (columns[1] - columns[0]) / width]], device=device)
    return Query(centres(height, *rows, device=device)[None], centres(width, *columns, device=device)[None], cell)
