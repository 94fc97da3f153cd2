"""Windows over a canvas of latents: where they start, how far they are shifted, how they are cut out and laid back."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor

__all__ = ["coverage", "cut", "draw_shifts", "draw_shifts_official", "lay", "origins", "shift_ranges", "starts", "window_size"]

Ints = np.ndarray  # int64


def window_size(size: tuple[int, int], window: int) -> tuple[int, int]:
    """Rows and columns of a window: no more than the canvas has."""
    return min(window, size[0]), min(window, size[1])


def starts(side: int, window: int, stride: int, cover: bool = True) -> list[int]:
    """First latents of the windows along one side; the last window ends at the border.

    Without `cover` windows that would end beyond the border are left out, as in the released MultiDiffusion, and what is behind
    the last one stays without a window.
    """
    last = max(0, side - window)
    found = [*range(0, last + 1, stride)]
    return [*found, last] if cover and found[-1] != last else found


def origins(size: tuple[int, int], window: int, stride: int, cover: bool = True) -> Ints:
    """Upper left corners (row, column) of all windows on a canvas of `size` latents, row by row: int64 [V, 2]."""
    rows, columns = (starts(side, window, stride, cover) for side in size)
    return np.array([(y, x) for y in rows for x in columns], dtype=np.int64)


def shift_ranges(corners: Ints, size: tuple[int, int], window: int, reach: int) -> Ints:
    """How far a window may be shifted: int64 [V, 2 (row, column), 2 (lowest, highest)].

    By up to `reach` latents both ways inside; at the first or last position only outwards, into the padding; not at all where
    one window fills the side.
    """
    span = np.array(window_size(size, window))
    first, last = corners == 0, corners + span == np.array(size)
    low = np.where(first & last, 0, np.where(last, 0, -reach))
    high = np.where(first & last, 0, np.where(first, 0, reach))
    return np.stack([low, high], axis=-1)


def draw_shifts(ranges: Ints, steps: int, generator: torch.Generator) -> Ints:
    """Uniform shifts for every step and window from a generator of one seed: int64 [steps, V, 2 (row, column)]."""
    uniform = torch.rand(steps, len(ranges), 2, generator=generator, dtype=torch.float64).numpy()
    low, high = ranges[..., 0], ranges[..., 1]
    return low + np.floor(uniform * (high - low + 1)).astype(np.int64)


def draw_shifts_official(ranges: Ints, steps: int, draw: random.Random) -> Ints:
    """The shifts that the released code draws from Python's `random` in the same state: the column before the row."""
    shifts = np.zeros((steps, len(ranges), 2), dtype=np.int64)
    for step in shifts:
        for shift, span in zip(step, ranges.tolist()):
            for axis in (1, 0):
                low, high = span[axis]
                if low != high:
                    shift[axis] = draw.randint(low, high)
    return shifts


def cut(canvas: Tensor, corners: Ints, span: tuple[int, int]) -> Tensor:
    """Windows [B * V, C, h, w] of a canvas [B, C, H, W] at `corners` int [B, V, 2], image by image."""
    height, width = span
    return torch.stack(
        [image[:, y : y + height, x : x + width] for image, places in zip(canvas, corners.tolist()) for y, x in places]
    )


def lay(windows: Tensor, corners: Ints, size: tuple[int, int]) -> Tensor:
    """Sum of windows [B * V, C, h, w] on a canvas [B, C, H, W]: always in the same order, so that it is reproducible."""
    batch, views = corners.shape[:2]
    canvas = windows.new_zeros(batch, windows.shape[1], *size)
    height, width = windows.shape[-2:]
    for i, (y, x) in enumerate(corners.reshape(-1, 2).tolist()):
        canvas[i // views, :, y : y + height, x : x + width] += windows[i]
    return canvas


def coverage(corners: Ints, span: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """How many windows lie on each latent: float32 [B, 1, H, W], on the host."""
    count = np.zeros((len(corners), 1, *size), dtype=np.float32)
    for image, places in zip(count, corners.tolist()):
        for y, x in places:
            image[0, y : y + span[0], x : x + span[1]] += 1
    return torch.from_numpy(count)
