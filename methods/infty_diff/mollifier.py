"""The mollifier T: a Gaussian blur with symmetric border, as a product with one matrix per side, and its Wiener inverse."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["Mollifier", "dct_matrix", "gain"]


def dct_matrix(n: int) -> Tensor:
    """The orthonormal DCT-II, float64 [n, n]: coefficients = D @ signal."""
    k, i = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)
    matrix = torch.cos(math.pi / n * k * (i + 0.5)) * (2 / n) ** 0.5
    matrix[0] /= 2**0.5
    return matrix


def gain(n: int, sigma: float) -> Tensor:
    """exp(-k^2 / (2 (n / (pi sigma))^2)), float64 [n]: the blur of std `sigma` pixels along one side in the DCT domain."""
    if sigma == 0:
        return torch.ones(n, dtype=torch.float64)
    return torch.exp(-torch.arange(n, dtype=torch.float64) ** 2 / (2 * (n / (math.pi * sigma)) ** 2))


@dataclass(frozen=True)
class Mollifier:
    """T for one canvas; sigma 0 is the identity (white-noise diffusion)."""

    dct_rows: Tensor                                # D of each side, float32 [H, H]
    dct_columns: Tensor                             # [W, W]
    gain_rows: Tensor                               # of each side, float32 [H]
    gain_columns: Tensor                            # [W]
    wiener: Tensor                                  # G / (G^2 + inv_snr^2), [H, W]; ones where sigma is 0

    @classmethod
    def make(cls, height: int, width: int, sigma: float, inv_snr: float = 0.05,
             device: str | torch.device = "cpu") -> "Mollifier":
        """`sigma` in pixels of this canvas: the std of training times the ratio of the resolutions."""
        rows, columns = gain(height, sigma), gain(width, sigma)
        gaussian = rows[:, None] * columns
        wiener = gaussian / (gaussian**2 + inv_snr**2) if sigma else gaussian
        parts = (dct_matrix(height), dct_matrix(width), rows, columns, wiener)
        return cls(*(part.float().to(device) for part in parts))

    @property
    def gaussian(self) -> Tensor:
        """G, [H, W]."""
        return self.gain_rows[:, None] * self.gain_columns

    @cached_property
    def matrices(self) -> tuple[Tensor, Tensor]:
        """T along each side, D^T diag(g) D: symmetric, float32 [H, H] and [W, W]."""
        pairs = ((self.dct_rows, self.gain_rows), (self.dct_columns, self.gain_columns))
        rows, columns = ((d.double().T @ (g.double()[:, None] * d.double())).float() for d, g in pairs)
        return rows, columns

    def __call__(self, x: Tensor) -> Tensor:
        """T x of images [B, C, H, W]."""
        rows, columns = self.matrices
        return rows @ x @ columns

    def undo(self, x: Tensor) -> Tensor:
        """The Wiener estimate of images whose T is x: the DCT times G / (G^2 + inv_snr^2)."""
        return self.dct_rows.T @ (self.wiener * (self.dct_rows @ x @ self.dct_columns.T)) @ self.dct_columns
