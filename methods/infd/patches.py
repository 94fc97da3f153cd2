"""Training pairs of INFD: a whole image at the encoder's size, and a patch of ground truth at a random scale."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from methods.infd.geometry import Query, centres

__all__ = ["Pair", "PatchRule", "crop_query", "official_pair", "official_size"]


@dataclass(frozen=True)
class PatchRule:
    """The arguments of the official BaseWrapperCAE (datasets/wrapper_cae.py) that decide about sizes, in pixels."""

    resize_inp: int | None = 256                    # side of the encoder's input; None: the image as it is
    resize_gt_lb: int | None = None                 # smallest side of the ground truth; None: the image as it is
    resize_gt_ub: int | None = None                 # and largest, at most the image's own
    final_crop_gt: int | None = 256                 # side of the patch
    p_whole: float = 0.0                            # probability that the whole image is shrunk to the patch
    p_max: float = 0.0                              # else: probability of the largest side


@dataclass(frozen=True)
class Pair:
    """One training example."""

    inp: Tensor                                     # float32 [3, S, S] in [-1, 1]
    gt: Tensor                                      # float32 [3, P, P]
    query: Query                                    # where the patch lies, B = 1
    bounds: list[tuple[int, int]]                   # ranges, inclusive, of the integers that were drawn


def crop_query(side: int, top: int, left: int, size: int) -> Query:
    """The pixels [top, top + size) x [left, left + size) of an image of side x side pixels."""
    (r0, r1), (c0, c1) = (((start / side) * 2 - 1, ((start + size) / side) * 2 - 1) for start in (top, left))
    return Query(centres(size, r0, r1)[None], centres(size, c0, c1)[None], torch.full((1, 2), 2 / side))


def _resized(image: Any, side: int) -> Any:
    from PIL import Image

    return image if image.size == (side, side) else image.resize((side, side), Image.Resampling.LANCZOS)


def _float(image: Any) -> Tensor:
    pixels: NDArray[np.uint8] = np.asarray(image)
    return (torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255 - 0.5) / 0.5


def official_pair(image: NDArray[np.uint8], rule: PatchRule, uniform: Callable[[], float],
                  integer: Callable[[int, int], int]) -> Pair:
    """The official example of a square image uint8 [n, n, 3], resized by PIL's Lanczos filter.

    `uniform()` is in [0, 1), `integer(low, high)` includes both ends; they are asked in the official order.
    """
    from PIL import Image

    picture = Image.fromarray(image)
    size, bounds = picture.size[0], []

    def draw(low: int, high: int) -> int:
        bounds.append((low, high))
        return integer(low, high)

    inp = picture if rule.resize_inp is None else _resized(picture, rule.resize_inp)
    patch = rule.final_crop_gt or size
    if rule.resize_gt_lb is not None:
        largest = min(size, rule.resize_gt_ub or size)
        if uniform() < rule.p_whole:
            size = patch
        elif uniform() < rule.p_max:
            size = largest
        else:
            size = draw(rule.resize_gt_lb, largest)
        picture = _resized(picture, size)
    top, left = draw(0, size - patch), draw(0, size - patch)
    crop = picture.crop((left, top, left + patch, top + patch))
    return Pair(_float(inp), _float(crop), crop_query(size, top, left, patch), bounds)


def official_size(index: int, count: int = 6000, low: int = 512, high: int = 1024) -> int:
    """Side of the index-th image of the 6K-Mix recipe: the first 5/6 grow evenly from low to high, the rest have `high`."""
    growing = count * 5 // 6
    return low + round((high - low) * index / (growing - 1)) if index < growing else high
