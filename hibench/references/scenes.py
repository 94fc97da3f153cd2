"""The built-in image world: scenes, continuous captioned images that can be rendered exactly at any resolution.

A scene f_seed is a function on the plane with values in RGB; the unit square [0, 1]² is its main view, and the shorter side of
every rendering spans it (a wider rendering shows more of the same plane on both sides). It is made of

* *ground*: dead leaves (Lee, Mumford and Huang, IJCV 2001), occluding ellipses or bricks whose radii follow a power law r⁻³;
* *objects*: one salient object, sometimes a tiny companion, both named truthfully by the caption;
* *finish*: plane waves of 40 to 400 cycles per unit on every surface, most of them beyond the Nyquist limit of a 64-pixel
  image (32 cycles), so that a higher resolution holds detail which a lower one cannot.

A pixel is the mean of f over its square: supersampling for the edges, and for each wave the analytic mean over the
sub-sample's cell (a product of sincs), so rendering at R and box-downsampling to r equals rendering at r up to edge sampling.

All randomness is a counter-based integer hash (splitmix64) of the seed: the same on every platform.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from hibench.errors import SpecError

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

__all__ = [
    "COLOURS",
    "FINISHES",
    "GROUNDS",
    "MATERIALS",
    "POSITIONS",
    "SHAPES",
    "SIZES",
    "VERSION",
    "Scene",
    "captions",
    "class_index",
    "describe",
    "digest",
    "render",
    "scene",
]

VERSION = 1  # raise whenever a rendered pixel or a caption changes

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "crescent", "bar")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "white")
SIZES = ("small", "medium", "large")
MATERIALS = ("plain", "striped", "checked")
FINISHES = ("brushed", "woven", "grained")  # finer than 64 px can show: a label, not part of the caption
POSITIONS = ("top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right")
GROUNDS = ("grey stones", "green leaves", "yellow sand", "blue water", "brown bricks", "dark slates")

_RADII = {"small": (0.09, 0.12), "medium": (0.16, 0.20), "large": (0.26, 0.31), "tiny": (0.07, 0.085)}
_HSV = {
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
_OUTLINE = 0.012  # dark rim of an object, in units
_WAVES = 5
_BAND_SAMPLES = 1 << 20  # samples held at once: rendering memory does not grow with the image


# --- hash ---------------------------------------------------------------------------------------------------------------------

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(z: "NDArray[np.uint64]") -> "NDArray[np.uint64]":
    """The finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = z ^ (z >> np.uint64(31))
    return mixed


def _uniform(seed: int, stream: int, *shape: int) -> "NDArray[np.float64]":
    """Uniform numbers in [0, 1) that depend on (seed, stream) alone."""
    with np.errstate(over="ignore"):
        key = _mix(_mix(np.array([seed % 2**64], np.uint64) + _GOLDEN) + np.uint64(stream % 2**64) * _GOLDEN)
        z = _mix(key + np.arange(1, int(np.prod(shape)) + 1, dtype=np.uint64) * _GOLDEN)
    numbers: NDArray[np.float64] = (z >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return numbers.reshape(shape)


def _pick(u: float, low: float, high: float) -> float:
    return low + (high - low) * u


def _rgb(h: "NDArray[np.float64]", s: "NDArray[np.float64]", v: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """HSV to RGB, arrays [...] to [..., 3]."""
    k = (np.array([5.0, 3.0, 1.0]) + h[..., None] * 6) % 6
    rgb: NDArray[np.float64] = v[..., None] - v[..., None] * s[..., None] * np.clip(np.minimum(k, 4 - k), 0, 1)
    return rgb


# --- what a scene is ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Object:
    shape: str
    colour: str
    size: str
    material: str
    finish: str
    position: str
    x: float
    y: float
    r: float
    angle: float


@dataclass(frozen=True)
class Scene:
    """What a scene shows: its caption, and the labels of its salient object and of its ground."""

    seed: int
    caption: str
    labels: dict[str, str]
    objects: tuple[_Object, ...]
    ground: str


def _make_object(shape: str, colour: str, size: str, position: tuple[int, int], u: "NDArray[np.float64]") -> _Object:
    low, high = _RADII[size]
    r = _pick(u[0], low, high)
    reach = 0.5 - r - 0.03
    i, j = position
    x = 0.5 + (i * reach * _pick(u[1], 0.8, 1.0) if i else _pick(u[1], -0.03, 0.03))
    y = 0.5 + (j * reach * _pick(u[2], 0.8, 1.0) if j else _pick(u[2], -0.03, 0.03))
    angle = np.pi * u[3] if shape == "bar" else 2 * np.pi * u[3] if shape == "crescent" else (u[3] - 0.5) * 0.5
    material = MATERIALS[int(u[4] * 3)] if size != "tiny" else "plain"
    return _Object(
        shape, colour, size, material, FINISHES[int(u[5] * 3)], POSITIONS[(j + 1) * 3 + i + 1], x, y, r, float(angle)
    )


def _phrase(o: _Object) -> str:
    words = [o.size, *([] if o.material == "plain" else [o.material]), o.colour, o.shape]
    return f"a {' '.join(words)} {'in' if o.position == 'centre' else 'at'} the {o.position}"


def describe(objects: Sequence[_Object], ground: str) -> str:
    """The caption of these objects on this ground."""
    return f"{' and '.join(map(_phrase, objects))} on {ground}"


@lru_cache(maxsize=4096)
def scene(seed: int) -> Scene:
    """The scene of `seed` (any integer; negative ones are taken modulo 2⁶⁴)."""
    u = _uniform(seed, 0, 24)
    shape, colour, size = SHAPES[int(u[0] * 8)], COLOURS[int(u[1] * 8)], SIZES[int(u[2] * 3)]
    place = (int(u[3] * 3) - 1, int(u[4] * 3) - 1)
    objects = [_make_object(shape, colour, size, place, u[5:11])]
    if size == "medium" and place != (0, 0) and u[11] < 0.6:
        other = (
            SHAPES[(SHAPES.index(shape) + 1 + int(u[12] * 7)) % 8],
            COLOURS[(COLOURS.index(colour) + 1 + int(u[13] * 7)) % 8],
        )
        objects.append(_make_object(*other, "tiny", (-place[0], -place[1]), u[14:20]))
    ground = GROUNDS[int(u[20] * len(GROUNDS))]
    o = objects[0]
    labels = {
        "shape": o.shape,
        "colour": o.colour,
        "size": o.size,
        "position": o.position,
        "material": o.material,
        "finish": o.finish,
        "ground": ground,
    }
    return Scene(seed, describe(objects, ground), labels, tuple(objects), ground)


def captions(seeds: Sequence[int]) -> list[str]:
    """One truthful caption per seed."""
    return [scene(int(s)).caption for s in seeds]


def class_index(seed: int) -> int:
    """Class label in [0, 64): shape × 8 + colour of the salient object."""
    labels = scene(int(seed)).labels
    return SHAPES.index(labels["shape"]) * len(COLOURS) + COLOURS.index(labels["colour"])


def digest() -> str:
    """Identifies the distribution: changes with VERSION and with the vocabulary."""
    text = repr((VERSION, SHAPES, COLOURS, SIZES, MATERIALS, FINISHES, POSITIONS, GROUNDS))
    return hashlib.sha256(text.encode()).hexdigest()


# --- surfaces: a colour, a linear light, and waves ----------------------------------------------------------------------------


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


def _material_waves(o: _Object, u: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """Two coarse waves [2, 4] that 64 pixels can show: stripes, or checks as a product of two sines."""
    f, t = _pick(u[0], 10.0, 13.0), o.angle + np.pi * (0.25 + 0.1 * (u[1] - 0.5))
    a, b = np.array([np.cos(t), np.sin(t)]) * f, np.array([-np.sin(t), np.cos(t)]) * f
    if o.material == "striped":
        return np.array([[*a, u[2], 0.42], [0, 0, 0, 0]])
    if o.material == "checked":  # sin a · sin b = ½ cos(a − b) − ½ cos(a + b)
        return np.array([[*(a - b), 0.25, 0.36], [*(a + b), 0.75, 0.36]])
    return np.zeros((2, 4))


@dataclass(frozen=True)
class _Leaves:
    """Ground shapes in painting order; every array has one row per leaf."""

    centre: "NDArray[np.float64]"  # [N, 2]
    axes: "NDArray[np.float64]"  # [N, 2] half axes
    angle: "NDArray[np.float64]"  # [N]
    surface: "NDArray[np.float64]"  # [N, 6 + 4·_WAVES] rgb, light (constant, x, y), waves
    bricks: bool


def _leaves(s: Scene, x_range: tuple[float, float], y_range: tuple[float, float]) -> _Leaves:
    """The leaves that can touch the window; a leaf belongs to a unit cell of the plane and is hashed with it."""
    (h0, h1), (s0, s1), (v0, v1), bricks = _GROUND[s.ground]
    reach = _LEAF_R[1]
    cells = [
        (i, j)
        for i in range(int(np.floor(x_range[0] - reach)), int(np.floor(x_range[1] + reach)) + 1)
        for j in range(int(np.floor(y_range[0] - reach)), int(np.floor(y_range[1] + reach)) + 1)
    ]
    u = np.concatenate([_uniform(s.seed, 1000 + (i + 500) * 1000 + (j + 500), _LEAVES_PER_CELL, 22) for i, j in cells])
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
    rgb = _rgb(h0 + (h1 - h0) * u[:, 6], s0 + (s1 - s0) * u[:, 7], v0 + (v1 - v0) * u[:, 8])
    tilt = 0.30 * (u[:, 9:11] - 0.5) * 2 / r[:, None]  # light: ±30 % from edge to edge
    light = np.concatenate([1 - (tilt * centre).sum(1, keepdims=True), tilt], 1)
    waves = np.zeros((len(r), _WAVES, 4))
    waves[:, :3] = _finish_waves((u[:, 11] * 3).astype(int), u[:, 12:20], 0.13)
    f, t = 8.0 * 4.0 ** u[:, 20], 2 * np.pi * u[:, 21]  # one wave of 8 to 32 cycles
    waves[:, 3] = np.stack([f * np.cos(t), f * np.sin(t), u[:, 19], np.full(len(r), 0.12)], -1)
    return _Leaves(centre, axes, angle, np.concatenate([rgb, light, waves.reshape(len(r), -1)], 1), bricks)


def _base_surface(s: Scene) -> "NDArray[np.float64]":
    """What shows where no leaf lies: the ground's darkest tone with a wide gradient."""
    (h0, h1), (_s0, s1), (v0, _v1), _ = _GROUND[s.ground]
    u = _uniform(s.seed, 2, 24)
    rgb = _rgb(np.array([_pick(u[0], h0, h1)]), np.array([s1]), np.array([v0]))[0]
    tilt = 0.5 * (u[1:3] - 0.5)
    waves = np.zeros((_WAVES, 4))
    waves[:3] = _finish_waves(np.array([2]), u[None, 3:11], 0.10)[0]
    return np.concatenate([rgb, [1 - tilt.sum() / 2, *tilt], waves.ravel()])


def _object_surfaces(s: Scene) -> "NDArray[np.float64]":
    """Two rows per object: its face and its dark rim."""
    rows = [np.zeros((0, 6 + 4 * _WAVES))]
    for k, o in enumerate(s.objects):
        u = _uniform(s.seed, 3 + k, 24)
        h, sat, v = _HSV[o.colour]
        jitter = (u[0] - 0.5) * 0.03 if sat else 0.0
        rgb = _rgb(
            np.array([(h + jitter) % 1.0]), np.array([sat * _pick(u[1], 0.92, 1.0)]), np.array([v * _pick(u[2], 0.92, 1.0)])
        )[0]
        tilt = 0.10 * (u[3:5] - 0.5) * 2 / o.r
        level = {"plain": 1.0, "striped": 0.72, "checked": 0.76}[o.material]
        light = [level - tilt[0] * o.x - tilt[1] * o.y, *tilt]
        waves = np.zeros((_WAVES, 4))
        waves[:3] = _finish_waves(np.array([FINISHES.index(o.finish)]), u[None, 5:13], 0.09)[0]
        waves[3:] = _material_waves(o, u[13:16])
        rows.append(
            np.stack(
                [
                    np.concatenate([rgb, light, waves.ravel()]),
                    np.concatenate([rgb * 0.25, [1.0, 0.0, 0.0], np.zeros(4 * _WAVES)]),
                ]
            )
        )
    return np.concatenate(rows)


# --- rendering ----------------------------------------------------------------------------------------------------------------


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


class _Painter:
    """One scene on one sample grid: paints the index of the topmost surface, then shades it, band by band."""

    def __init__(self, s: Scene, height: int, width: int, supersampling: int, device: "str | torch.device") -> None:
        import torch

        self.scene, self.ss, self.device = s, supersampling, device
        self.rows, self.columns = height * supersampling, width * supersampling
        self.per_unit = supersampling * min(height, width)
        x_range = (0.5 - self.columns / 2 / self.per_unit, 0.5 + self.columns / 2 / self.per_unit)
        y_range = (0.5 - self.rows / 2 / self.per_unit, 0.5 + self.rows / 2 / self.per_unit)
        self.x0, self.y0 = x_range[0], y_range[0]
        leaves = self.leaves = _leaves(s, x_range, y_range)
        surface = np.concatenate([_base_surface(s)[None], leaves.surface, _object_surfaces(s)])
        waves = surface[:, 6:].reshape(len(surface), _WAVES, 4)
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

    def _paint_object(self, index: "torch.Tensor", o: _Object, number: int, top: int, bottom: int) -> None:
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
        w = _WAVES
        phase = p[6 + 2 * w : 6 + 3 * w].addcmul_(p[6 : 6 + w], x).addcmul_(p[6 + w : 6 + 2 * w], y)
        light += phase.sin_().mul_(p[6 + 3 * w :]).sum(0)
        rgb = p[:3].mul_(light).clamp_(0, 1)
        return rgb.view(3, rows // ss, ss, self.columns // ss, ss).mean((2, 4))


def _supersampling(height: int, width: int) -> int:
    """Samples per pixel side: 2 from 96 pixels on, more below, so that edges are always sampled at 192 per unit or finer."""
    return max(2, -(-192 // min(height, width)))


def render(
    seeds: "Sequence[int | Scene]", height: int, width: int | None = None, device: "str | torch.device" = "cpu"
) -> "torch.Tensor":
    """Render scenes, given by seed or as edited `Scene`s, at height × width pixels (the shorter side spans the unit square).

    Returns uint8 [B, 3, H, W] on `device`. Memory beyond the result does not grow with the resolution.
    Raises SpecError for a side below 1 pixel or an aspect ratio beyond 16.
    """
    import torch

    width = height if width is None else width
    if min(height, width) < 1 or max(height, width) > 16 * min(height, width):
        raise SpecError(
            f"scenes: cannot render {height}x{width}: sides must be at least 1 px and their ratio at most 16"
        )
    ss = _supersampling(height, width)
    band = max(1, _BAND_SAMPLES // (ss * ss * width))  # pixel rows per band
    out = torch.empty(len(seeds), 3, height, width, dtype=torch.uint8, device=device)
    with torch.inference_mode():
        for i, seed in enumerate(seeds):
            painter = _Painter(seed if isinstance(seed, Scene) else scene(int(seed)), height, width, ss, device)
            for row in range(0, height, band):
                end = min(row + band, height)
                rgb = painter.shade(painter.paint(row * ss, end * ss), row * ss)
                out[i, :, row:end] = (rgb * 255).round_().to(torch.uint8)
    return out
