"""What a scene shows: vocabulary, objects and ground of a seed, its caption and its labels."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from hibench.references.scene_hash import pick, uniform

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "COLOURS",
    "FINISHES",
    "GROUNDS",
    "MATERIALS",
    "POSITIONS",
    "RADII",
    "SHAPES",
    "SIZES",
    "VERSION",
    "Scene",
    "SceneObject",
    "captions",
    "class_index",
    "describe",
    "digest",
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

# of an object's circumscribed circle, in units
RADII = {"small": (0.09, 0.12), "medium": (0.16, 0.20), "large": (0.26, 0.31), "tiny": (0.07, 0.085)}


@dataclass(frozen=True)
class SceneObject:
    """One object: its words, its centre (x, y) and radius r in units, its angle in radians."""

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
    objects: tuple[SceneObject, ...]
    ground: str


def _make_object(shape: str, colour: str, size: str, position: tuple[int, int], u: "NDArray[np.float64]") -> SceneObject:
    low, high = RADII[size]
    r = pick(u[0], low, high)
    reach = 0.5 - r - 0.03
    i, j = position
    x = 0.5 + (i * reach * pick(u[1], 0.8, 1.0) if i else pick(u[1], -0.03, 0.03))
    y = 0.5 + (j * reach * pick(u[2], 0.8, 1.0) if j else pick(u[2], -0.03, 0.03))
    angle = np.pi * u[3] if shape == "bar" else 2 * np.pi * u[3] if shape == "crescent" else (u[3] - 0.5) * 0.5
    material = MATERIALS[int(u[4] * 3)] if size != "tiny" else "plain"
    return SceneObject(
        shape, colour, size, material, FINISHES[int(u[5] * 3)], POSITIONS[(j + 1) * 3 + i + 1], x, y, r, float(angle)
    )


def _phrase(o: SceneObject) -> str:
    words = [o.size, *([] if o.material == "plain" else [o.material]), o.colour, o.shape]
    return f"a {' '.join(words)} {'in' if o.position == 'centre' else 'at'} the {o.position}"


def describe(objects: Sequence[SceneObject], ground: str) -> str:
    """The caption of these objects on this ground."""
    return f"{' and '.join(map(_phrase, objects))} on {ground}"


@lru_cache(maxsize=4096)
def scene(seed: int) -> Scene:
    """The scene of `seed` (any integer; negative ones are taken modulo 2⁶⁴)."""
    u = uniform(seed, 0, 24)
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
