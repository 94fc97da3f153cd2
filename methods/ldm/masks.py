"""Holes for training and testing inpainting: boxes and thick strokes, one set per seed (after LaMa, arXiv 2109.07161)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["box_mask", "draw_masks", "stroke_mask"]

SEED = 7_919


def box_mask(height: int, width: int, draw: torch.Generator) -> Tensor:
    """One to three boxes, each 1/8 to 1/2 of the sides long; bool [height, width], true in the hole."""
    mask = torch.zeros(height, width, dtype=torch.bool)
    for _ in range(int(torch.randint(1, 4, (), generator=draw))):
        tall, wide, top, left = torch.rand(4, generator=draw).tolist()
        tall, wide = (max(1, round(side * (0.125 + 0.375 * share))) for side, share in ((height, tall), (width, wide)))
        top, left = round(top * (height - tall)), round(left * (width - wide))
        mask[top : top + tall, left : left + wide] = True
    return mask


def stroke_mask(height: int, width: int, draw: torch.Generator) -> Tensor:
    """One to three broken lines of 2 to 4 parts, 1/12 to 1/5 of the shorter side thick; bool, true in the hole."""
    rows, columns = torch.arange(height)[:, None] + 0.5, torch.arange(width)[None] + 0.5
    mask, short = torch.zeros(height, width, dtype=torch.bool), min(height, width)
    for _ in range(int(torch.randint(1, 4, (), generator=draw))):
        y, x, thick = torch.rand(3, generator=draw).tolist()
        y, x, radius = y * height, x * width, short * (1 / 12 + (1 / 5 - 1 / 12) * thick) / 2
        for _ in range(int(torch.randint(2, 5, (), generator=draw))):
            angle, share = torch.rand(2, generator=draw).tolist()
            length, angle = short * (0.1 + 0.4 * share), 2 * math.pi * angle
            dy, dx = length * math.sin(angle), length * math.cos(angle)
            along = (((rows - y) * dy + (columns - x) * dx) / length**2).clamp(0, 1)
            mask |= (rows - y - along * dy) ** 2 + (columns - x - along * dx) ** 2 <= radius**2
            y, x = min(max(y + dy, 0.0), float(height)), min(max(x + dx, 0.0), float(width))
    return mask


def draw_masks(seeds: Sequence[int], height: int, width: int) -> Tensor:
    """float32 [B, 1, height, width], 1 in the hole: boxes for every other seed, strokes for the rest; never empty."""
    masks = []
    for seed in seeds:
        draw = torch.Generator().manual_seed(int(seed) * 1_000_003 + SEED)
        masks.append((box_mask if seed % 2 else stroke_mask)(height, width, draw))
    return torch.stack(masks)[:, None].float()
