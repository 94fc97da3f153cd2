"""The surfaces of a scene, ground and objects: of each a colour, a light that changes linearly, and waves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hibench.references.scene_content import FINISHES, Scene, SceneObject
from hibench.references.scene_hash import pick, uniform

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["HSV", "WAVES", "Leaves", "base_surface", "hsv_to_rgb", "leaves_of", "object_surfaces"]

HSV = {
    "red": (0.0, 0.90, 0.80),
    "orange": (0.075, 0.95, 0.82),
    "yellow": (0.15, 0.92, 0.82),
    "green": (0.35, 0.85, 0.66),
    "cyan": (0.50, 0.85, 0.78),
    "blue": (0.62, 0.88, 0.80),
    "purple": (0.77, 0.75, 0.74),
    "white": (0.0, 0.0, 0.83),
}
#                hue range       saturation     value         bricks
_GROUND = {
    "grey stones": ((0.00, 1.00), (0.00, 0.07), (0.25, 0.60), False),
    "green leaves": ((0.25, 0.38), (0.25, 0.45), (0.16, 0.44), False),
    "yellow sand": ((0.10, 0.14), (0.22, 0.38), (0.38, 0.62), False),
    "blue water": ((0.53, 0.60), (0.25, 0.45), (0.24, 0.52), False),
    "brown bricks": ((0.02, 0.06), (0.32, 0.50), (0.22, 0.46), True),
    "dark slates": ((0.66, 0.80), (0.05, 0.20), (0.08, 0.28), True),
}
_LEAVES_PER_CELL = 64  # per unit square
_LEAF_R = (0.04, 0.38)
WAVES = 5  # per surface


def hsv_to_rgb(h: "NDArray[np.float64]", s: "NDArray[np.float64]", v: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """HSV to RGB, arrays [...] to [..., 3]."""
    k = (np.array([5.0, 3.0, 1.0]) + h[..., None] * 6) % 6
    rgb: NDArray[np.float64] = v[..., None] - v[..., None] * s[..., None] * np.clip(np.minimum(k, 4 - k), 0, 1)
    return rgb


def _finish_waves(finish: "NDArray[np.int64]", u: "NDArray[np.float64]", strength: float) -> "NDArray[np.float64]":
    """Three waves [N, 3, 4] of (fx, fy, phase in turns, amplitude): 40 to 400 cycles per unit."""
    n = len(finish)
    waves = np.zeros((n, 3, 4))
    theta = np.pi * u[:, 0]
    base = 40.0 * 10.0 ** u[:, 1]  # log-uniform 40..400
    for k in range(3):
        brushed = (base * (1.0, 1.31, 0.73)[k], theta + (u[:, 2 + k] - 0.5) * 0.1)
        woven = (base * (1.0, 1.0, 0.5)[k], theta + (0.0, np.pi / 2, np.pi / 4)[k])
        grained = (40.0 * 10.0 ** ((u[:, 1] + k / 3) % 1.0), np.pi * u[:, 2 + k])
        f = np.choose(finish, [brushed[0], woven[0], grained[0]]).clip(40, 400)
        t = np.choose(finish, [brushed[1], woven[1], grained[1]])
        waves[:, k] = np.stack([f * np.cos(t), f * np.sin(t), u[:, 5 + k], np.full(n, strength / (1.0, 1.3, 1.7)[k])], -1)
    return waves


def _material_waves(o: SceneObject, u: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """Two coarse waves [2, 4] that 64 pixels can show: stripes, or checks as a product of two sines."""
    f, t = pick(u[0], 10.0, 13.0), o.angle + np.pi * (0.25 + 0.1 * (u[1] - 0.5))
    a, b = np.array([np.cos(t), np.sin(t)]) * f, np.array([-np.sin(t), np.cos(t)]) * f
    if o.material == "striped":
        return np.array([[*a, u[2], 0.42], [0, 0, 0, 0]])
    if o.material == "checked":  # sin a · sin b = ½ cos(a − b) − ½ cos(a + b)
        return np.array([[*(a - b), 0.25, 0.36], [*(a + b), 0.75, 0.36]])
    return np.zeros((2, 4))


@dataclass(frozen=True)
class Leaves:
    """Ground shapes in painting order; every array has one row per leaf."""

    centre: "NDArray[np.float64]"  # [N, 2]
    axes: "NDArray[np.float64]"  # [N, 2] half axes
    angle: "NDArray[np.float64]"  # [N]
    surface: "NDArray[np.float64]"  # [N, 6 + 4·WAVES] rgb, light (constant, x, y), waves
    bricks: bool


def leaves_of(s: Scene, x_range: tuple[float, float], y_range: tuple[float, float]) -> Leaves:
    """The leaves that can touch the window; a leaf belongs to a unit cell of the plane and is hashed with it."""
    (h0, h1), (s0, s1), (v0, v1), bricks = _GROUND[s.ground]
    reach = _LEAF_R[1]
    cells = [
        (i, j)
        for i in range(int(np.floor(x_range[0] - reach)), int(np.floor(x_range[1] + reach)) + 1)
        for j in range(int(np.floor(y_range[0] - reach)), int(np.floor(y_range[1] + reach)) + 1)
    ]
    u = np.concatenate([uniform(s.seed, 1000 + (i + 500) * 1000 + (j + 500), _LEAVES_PER_CELL, 22) for i, j in cells])
    corner = np.repeat(np.array(cells, float), _LEAVES_PER_CELL, axis=0)
    centre = corner + u[:, 0:2]
    low, high = _LEAF_R
    r = (low**-2 - u[:, 2] * (low**-2 - high**-2)) ** -0.5  # density ∝ r⁻³
    axes = r[:, None] * np.stack([np.ones(len(r)), 0.45 + 0.5 * u[:, 3]], -1)
    near = (
        (centre[:, 0] > x_range[0] - r)
        & (centre[:, 0] < x_range[1] + r)
        & (centre[:, 1] > y_range[0] - r)
        & (centre[:, 1] < y_range[1] + r)
    )
    order = np.flatnonzero(near)[np.argsort(u[near, 4], kind="stable")]
    u, centre, axes, r = u[order], centre[order], axes[order], r[order]
    angle = (np.pi / 2 * (u[:, 5] > 0.5) + 0.12 * (u[:, 5] - 0.5)) if bricks else np.pi * u[:, 5]
    rgb = hsv_to_rgb(h0 + (h1 - h0) * u[:, 6], s0 + (s1 - s0) * u[:, 7], v0 + (v1 - v0) * u[:, 8])
    tilt = 0.30 * (u[:, 9:11] - 0.5) * 2 / r[:, None]  # light: ±30 % from edge to edge
    light = np.concatenate([1 - (tilt * centre).sum(1, keepdims=True), tilt], 1)
    waves = np.zeros((len(r), WAVES, 4))
    waves[:, :3] = _finish_waves((u[:, 11] * 3).astype(int), u[:, 12:20], 0.13)
    f, t = 8.0 * 4.0 ** u[:, 20], 2 * np.pi * u[:, 21]  # one wave of 8 to 32 cycles
    waves[:, 3] = np.stack([f * np.cos(t), f * np.sin(t), u[:, 19], np.full(len(r), 0.12)], -1)
    return Leaves(centre, axes, angle, np.concatenate([rgb, light, waves.reshape(len(r), -1)], 1), bricks)


def base_surface(s: Scene) -> "NDArray[np.float64]":
    """What shows where no leaf lies: the ground's darkest tone with a wide gradient."""
    (h0, h1), (_s0, s1), (v0, _v1), _ = _GROUND[s.ground]
    u = uniform(s.seed, 2, 24)
    rgb = hsv_to_rgb(np.array([pick(u[0], h0, h1)]), np.array([s1]), np.array([v0]))[0]
    tilt = 0.5 * (u[1:3] - 0.5)
    waves = np.zeros((WAVES, 4))
    waves[:3] = _finish_waves(np.array([2]), u[None, 3:11], 0.10)[0]
    return np.concatenate([rgb, [1 - tilt.sum() / 2, *tilt], waves.ravel()])


def object_surfaces(s: Scene) -> "NDArray[np.float64]":
    """Two rows per object: its face and its dark rim."""
    rows = [np.zeros((0, 6 + 4 * WAVES))]
    for k, o in enumerate(s.objects):
        u = uniform(s.seed, 3 + k, 24)
        h, sat, v = HSV[o.colour]
        jitter = (u[0] - 0.5) * 0.03 if sat else 0.0
        rgb = hsv_to_rgb(
            np.array([(h + jitter) % 1.0]), np.array([sat * pick(u[1], 0.92, 1.0)]), np.array([v * pick(u[2], 0.92, 1.0)])
        )[0]
        tilt = 0.10 * (u[3:5] - 0.5) * 2 / o.r
        level = {"plain": 1.0, "striped": 0.72, "checked": 0.76}[o.material]
        light = [level - tilt[0] * o.x - tilt[1] * o.y, *tilt]
        waves = np.zeros((WAVES, 4))
        waves[:3] = _finish_waves(np.array([FINISHES.index(o.finish)]), u[None, 5:13], 0.09)[0]
        waves[3:] = _material_waves(o, u[13:16])
        rows.append(
            np.stack(
                [
                    np.concatenate([rgb, light, waves.ravel()]),
                    np.concatenate([rgb * 0.25, [1.0, 0.0, 0.0], np.zeros(4 * WAVES)]),
                ]
            )
        )
    return np.concatenate(rows)
