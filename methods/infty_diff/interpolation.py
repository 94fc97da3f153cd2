"""From a subset of the coordinates to all: what the sampler assumes where it did not ask the network."""

from __future__ import annotations

import torch
from torch import Tensor

from methods.infty_diff.geometry import Points

__all__ = ["Spread"]

SPACING = 0.6                                       # std of the Gaussian average in units of the mean distance of points


class Spread:
    """Interpolation of images that are known at a set of points only, by one matrix per side."""

    def __init__(self, points: Points, device: str | torch.device = "cpu") -> None:
        self.points = points
        sides = (points.canvas.height, points.canvas.width)
        if points.index is None:
            parts = [cubic(n, p, s) for n, p, s in zip(sides, points.phase, points.stride)]
        else:
            std = SPACING * (sides[0] * sides[1] / len(points)) ** 0.5
            parts = [gaussian(n, std) for n in sides]
        self.rows, self.columns = (part.to(device) for part in parts)

    def take(self, image: Tensor) -> Tensor:
        """Tokens [B, L, C] at the points of an image [B, C, H, W]."""
        if self.points.index is None:
            (p, q), (a, b) = self.points.phase, self.points.stride
            return image[:, :, p::a, q::b].permute(0, 2, 3, 1).flatten(1, 2)
        return image.flatten(2)[:, :, self.points.index[0]].transpose(1, 2)

    def put(self, tokens: Tensor, image: Tensor) -> None:
        """Write tokens [B, L, C] at the points into an image [B, C, H, W] in place."""
        known = tokens.transpose(1, 2)
        if self.points.index is None:
            (p, q), (a, b) = self.points.phase, self.points.stride
            image[:, :, p::a, q::b] = known.unflatten(2, self.points.lattice)
        else:
            image.flatten(2)[:, :, self.points.index[0]] = known

    def __call__(self, tokens: Tensor) -> Tensor:
        """An image [B, C, H, W] that has the values of tokens [B, L, C] at the points.

        Between the points of a lattice: cubic convolution (Keys 1981, a = -1/2). Between random points: their average with
        Gaussian weights, of a std of 0.6 mean distances.
        """
        canvas = self.points.canvas
        known = tokens.transpose(1, 2)
        if self.points.index is None:
            return self.rows @ known.unflatten(2, self.points.lattice) @ self.columns.T
        index = self.points.index[0]
        field = known.new_zeros(len(known), known.shape[1] + 1, canvas.height * canvas.width)
        field[:, :, index] = torch.cat([known, torch.ones_like(known[:, :1])], 1)
        smooth = self.rows @ field.unflatten(2, (canvas.height, canvas.width)) @ self.columns
        image = (smooth[:, :-1] / smooth[:, -1:].clamp(min=1e-8)).flatten(2)
        image[:, :, index] = known
        return image.unflatten(2, (canvas.height, canvas.width))


def cubic(n: int, phase: int, stride: int) -> Tensor:
    """Weights [n, m] of m samples at phase, phase + stride, ... for positions 0 ... n - 1; constant beyond the ends."""
    m = -(-(n - phase) // stride)
    place = ((torch.arange(n, dtype=torch.float64) - phase) / stride).clamp(0, m - 1)
    first = place.floor().long()
    matrix = torch.zeros(n, m, dtype=torch.float64)
    for offset in (-1, 0, 1, 2):
        distance = (place - first - offset).abs()
        inner = (1.5 * distance - 2.5) * distance**2 + 1
        outer = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
        weight = torch.where(distance <= 1, inner, torch.where(distance < 2, outer, 0.0))
        matrix.scatter_add_(1, (first + offset).clamp(0, m - 1)[:, None], weight[:, None])
    return matrix.float()


def gaussian(n: int, std: float) -> Tensor:
    """Symmetric weights [n, n] exp(-d^2 / (2 std^2)), not normalised."""
    place = torch.arange(n, dtype=torch.float32)
    return torch.exp(-0.5 * ((place[:, None] - place) / std) ** 2)
