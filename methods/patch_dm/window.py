"""Training on one 2 x 2 window of patches: noise it, predict the four patches and the tile between them, weigh the errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.diffusion.losses import q_sample
from methods.patch_dm.collage import collage, from_patches, pad_half, positions, to_patches
from methods.patch_dm.unet import PatchUNet

__all__ = ["Prediction", "Window", "cut", "noised", "predict", "window_losses"]

GRID = (2, 2)


class Window(NamedTuple):
    """One window of every image of a batch."""

    x: Tensor                                       # clean pixels [B, 3, 2p, 2p], zero outside the image
    mask: Tensor                                    # [B, 1, 2p, 2p], 1 inside the image
    where: Tensor                                   # (row, column) of its four patches, float32 [4B, 2]


class Prediction(NamedTuple):
    """Network output (eps or v): of the tile between the patches [B, 3, p, p], and of the patches together [B, 3, 2p, 2p].

    Where one patch of each window was chosen, `noshift` is of that one: [B, 3, p, p].
    """

    shift: Tensor | None
    noshift: Tensor


def cut(images: Tensor, corners: Tensor, patch: int) -> Window:
    """Windows of images [B, 3, H, W] with their top left corners at `corners` int64 [B, 2], in pixels of the padded image.

    The padded image has half a patch of zeros on every side; corners may lie another half patch outside it.
    """
    padded, inside = pad_half(images, 2 * patch), pad_half(torch.ones_like(images[:1, :1]), 2 * patch)[0]
    spans = [(i + patch // 2, j + patch // 2) for i, j in corners.tolist()]
    x = torch.stack([image[:, i : i + 2 * patch, j : j + 2 * patch] for image, (i, j) in zip(padded, spans)])
    mask = torch.stack([inside[:, i : i + 2 * patch, j : j + 2 * patch] for i, j in spans])
    grid = positions(GRID, device=images.device)
    first = corners.to(images.device).float() / patch
    return Window(x, mask, (first[:, None] + grid).flatten(0, 1))


def _each(rows: Tensor, times: int) -> Tensor:
    """Every row [B, ...] repeated for the tiles of its image: [B times, ...]."""
    return rows.repeat_interleave(times, dim=0)


def predict(unet: PatchUNet, x: Tensor, t: Tensor, cond: Tensor, where: Tensor, patch: int, keep: Tensor | None = None,
            shift: bool = True, chosen: Tensor | None = None) -> Prediction:
    """Both predictions for noisy windows x [B, 3, 2p, 2p] at timesteps t [B] with codes [B, D].

    The four patches are encoded once; the decoder sees them and (with `shift`) the tile collaged of them as one batch. `keep`
    [B] is 0 where the position is withheld. `chosen` int64 [B] (0 to 3, row by row) has one of the four patches decoded alone.
    """
    batch, parts = len(x), 5 if shift else 4
    middle = where.view(batch, 4, 2).mean(1, keepdim=True)
    places = torch.cat([where.view(batch, 4, 2), middle][: 2 if shift else 1], dim=1).flatten(0, 1)
    time = _each(unet.time_embed.time(t), parts)
    position = unet.time_embed.position(places, None if keep is None else _each(keep, parts))
    modulations = unet.modulations(time, position, _each(cond, parts))
    patches = torch.arange(batch * parts, device=x.device).view(batch, parts)[:, :4].flatten()
    first = [(a[patches], b[patches]) if shift and i < unet.encoder_blocks else (a, b) for i, (a, b) in enumerate(modulations)]
    h, skips = unet.encode(to_patches(x, patch), first)
    if chosen is not None:
        ends = torch.arange(batch, device=x.device) * parts
        decoded = torch.stack([ends + chosen, ends + 4][: 2 if shift else 1], dim=1).flatten()
        modulations = [(a[decoded], b[decoded]) for a, b in modulations]

    def tiles(maps: Tensor) -> Tensor:
        grouped = maps.unflatten(0, (batch, 4))
        if chosen is not None:
            grouped = grouped[torch.arange(batch, device=x.device), chosen].unsqueeze(1)
        return (torch.cat([grouped, collage(maps, (1, 1)).unsqueeze(1)], dim=1) if shift else grouped).flatten(0, 1)

    eps = unet.decode(tiles(h), skips, modulations, lambda h, skip: torch.cat([h, tiles(skip)], dim=1))
    eps = eps.unflatten(0, (batch, -1))
    own = eps[:, 0] if chosen is not None else from_patches(eps[:, :4].flatten(0, 1), GRID)
    return Prediction(eps[:, -1] if shift else None, own)


def window_losses(prediction: Prediction, target: Tensor, mask: Tensor, coarse: Mapping[int, float] | None = None,
                  chosen: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Squared errors per image, [B] each: of the tile, and of the patches, where zeros outside the image count in the mean.

    target: the noise (official) or v of the window, [B, 3, 2p, 2p]. `coarse` (official: none) adds, for each {side: factor},
    the squared error of means over side x side pixels: the same prediction is best, but patches agree on their colours earlier
    in training. `chosen`: as `predict` was given it.
    """
    def loss(error: Tensor) -> Tensor:
        total = error.square().flatten(1).mean(1)
        for side, factor in (coarse or {}).items():
            total = total + factor * F.avg_pool2d(error, side).square().flatten(1).mean(1)
        return total

    patches: tuple[Tensor, ...] = (target, mask)
    if chosen is not None:
        rows = torch.arange(len(target), device=target.device) * 4 + chosen
        patches = tuple(to_patches(x, x.shape[2] // 2)[rows] for x in patches)
    noshift = loss((prediction.noshift - patches[0]) * patches[1])
    if prediction.shift is None:
        return torch.zeros_like(noshift), noshift
    quarter = target.shape[2] // 4
    return loss(prediction.shift - target[:, :, quarter:-quarter, quarter:-quarter]), noshift


def noised(window: Window, t: Tensor, noise: Tensor, cumprod: Tensor) -> Tensor:
    """x_t of a window, zero outside the image."""
    return q_sample(window.x, t, noise, cumprod) * window.mask
