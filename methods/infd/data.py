"""Batches for the autoencoder: few images with large ground truth among many small ones (the paper's 6K-Mix, scaled to 64 px).

Half of a batch comes from images of which only 64 px are known, half from a small set that is known at up to 256 px; each of
the latter is reduced to a random side r and a patch of that is the target. Scenes are exact at every resolution, so the ground
truth is the mean over a pixel's area, not a filtered photo.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hibench import training
from hibench.adapter import from_uint8
from methods.infd.geometry import Query, centres, whole
from methods.infd.patches import official_size

__all__ = ["LARGE", "SMALL", "Batch", "Mix", "Scales", "area_patch", "draw"]

SMALL, LARGE = 64, 256                              # sides of the two sets, pixels


@dataclass(frozen=True)
class Scales:
    """Which sides the ground truth has."""

    mixed: bool = True                              # half of a batch from the large images
    largest_only: bool = False                      # p_max = 1: every image at its own largest side only
    below: bool = True                              # every eighth step at 32 to 63 px, so that small images are known too


@dataclass(frozen=True)
class Mix:
    """The two sets, uint8 arrays [N, 3, 64, 64] and [M, 3, 256, 256]; large image i shows the same scene as small image i."""

    small: Any
    large: Any

    def size(self, index: int) -> int:
        """Largest side that is used of a large image: 128 ... 256, five sixths of them growing evenly."""
        return official_size(index, len(self.large), 2 * SMALL, LARGE)


@dataclass(frozen=True)
class Batch:
    """What one step sees."""

    index: Tensor                                   # int64 [B] into the small images: what the encoder gets
    window: tuple[Tensor, Tensor] | None            # int64 [B] each: first latent row and column of a crop; None: all of it
    target: Tensor                                  # float32 [B, 3, P, P] in [-1, 1]
    query: Query                                    # relative to the (cropped) feature map


def area_patch(image: Tensor, side: int, top: int, left: int, size: int) -> Tensor:
    """A patch [C, size, size] of an image [C, n, n] reduced to side x side pixels by area averaging."""
    n = image.shape[-1]
    pixel = torch.arange(n, dtype=torch.float64)

    def weights(start: int) -> Tensor:
        edge = (start + torch.arange(size + 1, dtype=torch.float64)) * (n / side)
        overlap = torch.minimum(edge[1:, None], pixel + 1) - torch.maximum(edge[:-1, None], pixel)
        return (overlap.clamp_(min=0) * (side / n)).float()

    return weights(top) @ image @ weights(left).T


def draw(mix: Mix, step: int, batch: int, patch: int, latents: int, crop: int | None, scales: Scales) -> Batch:
    """The batch of a step; it depends on the step alone.

    `latents`: latents along a side; `crop`: only so many of them are decoded, and the patch of `patch` px lies in that part of
    the image (it may stick out by half a pixel); None: all.
    """
    random = training.step_generator(step, seed=11)

    def integer(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=random))

    if scales.below and crop is None and step % 8 == 7:
        side = integer(SMALL // 2, SMALL - 1)
        index = training.batch_seeds(step, batch, len(mix.small), seed=2)
        images = from_uint8(mix.small[index.numpy()])
        return Batch(index, None, torch.stack([area_patch(x, side, 0, 0, side) for x in images]), whole(side, side))
    from_large = batch // 2 if scales.mixed else 0
    small = training.batch_seeds(step, batch - from_large, len(mix.small), seed=2)
    large = training.batch_seeds(step, from_large, len(mix.large), seed=3) if from_large else small[:0]
    share = 1.0 if crop is None else crop / latents
    rows: list[Tensor] = []
    columns: list[Tensor] = []
    targets, cells, window = [], [], []
    for number, i in enumerate([*small.tolist(), *large.tolist()]):
        side, source = SMALL, mix.small
        if number >= len(small):
            source, largest = mix.large, mix.size(i)
            side = largest if scales.largest_only else integer(SMALL, largest)
        first = [0, 0] if crop is None else [integer(0, latents - crop), integer(0, latents - crop)]
        corner = []
        for begin in first:
            least = round(begin / latents * side)
            corner.append(integer(least, max(least, round((begin / latents + share) * side) - patch)))
        image = from_uint8(source[i])
        targets.append(area_patch(image, side, corner[0], corner[1], patch))
        for axis, begin, start in zip((rows, columns), first, corner):
            low = (start / side - begin / latents) / share * 2 - 1
            axis.append(centres(patch, low, low + patch / side / share * 2))
        cells.append(2 / side / share)
        window.append(first)
    query = Query(torch.stack(rows), torch.stack(columns), torch.tensor(cells)[:, None].expand(-1, 2))
    places = torch.tensor(window)
    return Batch(torch.cat([small, large]), None if crop is None else (places[:, 0], places[:, 1]), torch.stack(targets), query)
