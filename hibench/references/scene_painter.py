"""Painting one scene: which surface is on top at each sample, and its colour, averaged over each pixel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hibench.references.scene_content import Scene, SceneObject
from hibench.references.scene_surfaces import WAVES, base_surface, leaves_of, object_surfaces

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

__all__ = ["Painter"]

_OUTLINE = 0.012  # dark rim of an object, in units


def _inside(shape: str, u: "torch.Tensor", v: "torch.Tensor") -> "torch.Tensor":
    """Implicit function of a shape of circumradius about 1: negative inside, about the distance to the border near it."""
    import torch

    if shape == "circle":
        return torch.hypot(u, v) - 0.95
    if shape == "square":
        return torch.maximum(u.abs(), v.abs()) - 0.78
    if shape == "triangle":
        return torch.maximum(v, torch.maximum(0.8660254 * u - 0.5 * v, -0.8660254 * u - 0.5 * v)) - 0.5
    if shape == "star":
        wedge = np.pi / 5
        t = (torch.atan2(u, -v) % (2 * wedge) - wedge).abs()  # wedge at a tip, 0 at a notch
        rho = torch.hypot(u, v)
        tip, notch = np.array([np.cos(wedge), np.sin(wedge)]), np.array([0.42, 0.0])
        normal = np.array([tip[1] - notch[1], notch[0] - tip[0]])
        normal = normal / np.hypot(*normal) * (1.0 if normal[0] > 0 else -1.0)
        edge: torch.Tensor = normal[0] * (rho * t.cos() - notch[0]) + normal[1] * (rho * t.sin() - notch[1])
        return edge
    if shape == "ring":
        return (torch.hypot(u, v) - 0.70).abs() - 0.26
    if shape == "cross":
        a, b = u.abs(), v.abs()
        return torch.minimum(torch.maximum(a - 0.95, b - 0.30), torch.maximum(b - 0.95, a - 0.30))
    if shape == "crescent":
        return torch.maximum(torch.hypot(u, v) - 0.97, 0.80 - torch.hypot(u - 0.48, v))
    return torch.maximum(u.abs() - 0.97, v.abs() - 0.27)  # bar


class Painter:
    """One scene on one sample grid: paints the index of the topmost surface, then shades it, band by band."""

    def __init__(self, s: Scene, height: int, width: int, supersampling: int, device: "str | torch.device") -> None:
        import torch

        self.scene, self.ss, self.device = s, supersampling, device
        self.rows, self.columns = height * supersampling, width * supersampling
        self.per_unit = supersampling * min(height, width)
        x_range = (0.5 - self.columns / 2 / self.per_unit, 0.5 + self.columns / 2 / self.per_unit)
        y_range = (0.5 - self.rows / 2 / self.per_unit, 0.5 + self.rows / 2 / self.per_unit)
        self.x0, self.y0 = x_range[0], y_range[0]
        leaves = self.leaves = leaves_of(s, x_range, y_range)
        surface = np.concatenate([base_surface(s)[None], leaves.surface, object_surfaces(s)])
        waves = surface[:, 6:].reshape(len(surface), WAVES, 4)
        waves[..., 3] *= np.sinc(waves[..., 0] / self.per_unit) * np.sinc(
            waves[..., 1] / self.per_unit
        )  # mean over a sample's cell
        columns = [
            surface[:, :6],
            waves[..., 0] * 2 * np.pi,
            waves[..., 1] * 2 * np.pi,
            waves[..., 2] * 2 * np.pi,
            waves[..., 3],
        ]
        self.table = torch.from_numpy(np.concatenate(columns, 1).T.astype(np.float32).copy()).to(device)
        self.x = torch.from_numpy((self.x0 + (np.arange(self.columns) + 0.5) / self.per_unit).astype(np.float32)).to(device)
        self.y = torch.from_numpy((self.y0 + (np.arange(self.rows) + 0.5) / self.per_unit).astype(np.float32)).to(device)
        c, n = np.cos(leaves.angle), np.sin(leaves.angle)
        half_x = (
            np.hypot(leaves.axes[:, 0] * c, leaves.axes[:, 1] * n)
            if not leaves.bricks
            else (np.abs(leaves.axes[:, 0] * c) + np.abs(leaves.axes[:, 1] * n))
        )
        half_y = (
            np.hypot(leaves.axes[:, 0] * n, leaves.axes[:, 1] * c)
            if not leaves.bricks
            else (np.abs(leaves.axes[:, 0] * n) + np.abs(leaves.axes[:, 1] * c))
        )
        self.box = self._box(leaves.centre, half_x, half_y)
        matrix = np.stack([c / leaves.axes[:, 0], n / leaves.axes[:, 0], -n / leaves.axes[:, 1], c / leaves.axes[:, 1]], 1)
        m = torch.from_numpy(matrix.astype(np.float32)).to(device)
        centre = torch.from_numpy(leaves.centre.astype(np.float32)).to(device)
        dx, dy = self.x[None] - centre[:, :1], self.y[None] - centre[:, 1:]
        self.ux, self.vx = m[:, 0:1] * dx, m[:, 2:3] * dx  # [N, columns]
        self.uy, self.vy = m[:, 1:2] * dy, m[:, 3:4] * dy  # [N, rows]

    def _box(
        self, centre: "NDArray[np.float64]", half_x: "NDArray[np.float64]", half_y: "NDArray[np.float64]"
    ) -> "NDArray[np.int64]":
        """Sample ranges [N, 4] = (row 0, row 1, column 0, column 1) that hold each shape."""

        def span(c: "NDArray[np.float64]", half: "NDArray[np.float64]", origin: float, count: int) -> list["NDArray[np.int64]"]:
            low = np.floor((c - half - origin) * self.per_unit).astype(np.int64).clip(0, count)
            high = np.ceil((c + half - origin) * self.per_unit).astype(np.int64).clip(0, count)
            return [low, high]

        return np.stack(span(centre[:, 1], half_y, self.y0, self.rows) + span(centre[:, 0], half_x, self.x0, self.columns), 1)

    def paint(self, top: int, bottom: int) -> "torch.Tensor":
        """Surface index int32 [bottom − top, columns]."""
        import torch

        index = torch.zeros(bottom - top, self.columns, dtype=torch.int32, device=self.device)
        box = self.box.copy()
        box[:, :2] = box[:, :2].clip(top, bottom)
        bricks = self.leaves.bricks
        for k, (r0, r1, c0, c1) in enumerate(box.tolist()):
            if r0 >= r1 or c0 >= c1:
                continue
            u = self.uy[k, r0:r1, None] + self.ux[k, c0:c1]
            v = self.vy[k, r0:r1, None] + self.vx[k, c0:c1]
            mask = torch.maximum(u.abs_(), v.abs_()) < 1 if bricks else u.square_().addcmul_(v, v) < 1
            index[r0 - top : r1 - top, c0:c1].masked_fill_(mask, k + 1)
        first = len(box) + 1
        for k, o in enumerate(self.scene.objects):
            self._paint_object(index, o, first + 2 * k, top, bottom)
        return index

    def _paint_object(self, index: "torch.Tensor", o: SceneObject, number: int, top: int, bottom: int) -> None:
        reach = np.array([o.r * 1.42])
        r0, r1, c0, c1 = self._box(np.array([[o.x, o.y]]), reach, reach)[0].clip(
            [top, top, 0, 0], [bottom, bottom, self.columns, self.columns]
        )
        if r0 >= r1 or c0 >= c1:
            return
        dx, dy = (self.x[c0:c1] - o.x) / o.r, (self.y[r0:r1] - o.y) / o.r
        c, n = float(np.cos(o.angle)), float(np.sin(o.angle))
        g = _inside(o.shape, c * dx + n * dy[:, None], -n * dx + c * dy[:, None])
        view = index[r0 - top : r1 - top, c0:c1]
        view.masked_fill_(g < 0, number + 1)
        view.masked_fill_(g < -_OUTLINE / o.r, number)

    def shade(self, index: "torch.Tensor", top: int) -> "torch.Tensor":
        """Colours of a painted band, averaged over each pixel: float [3, rows // ss, columns // ss] in [0, 1]."""
        rows, ss = index.shape[0], self.ss
        p = self.table.index_select(1, index.view(-1)).view(-1, rows, self.columns)
        x, y = self.x[None, :], self.y[top : top + rows, None]
        light = p[3].addcmul_(p[4], x).addcmul_(p[5], y)
        w = WAVES
        phase = p[6 + 2 * w : 6 + 3 * w].addcmul_(p[6 : 6 + w], x).addcmul_(p[6 + w : 6 + 2 * w], y)
        light += phase.sin_().mul_(p[6 + 3 * w :]).sum(0)
        rgb = p[:3].mul_(light).clamp_(0, 1)
        return rgb.view(3, rows // ss, ss, self.columns // ss, ss).mean((2, 4))
