"""Training on a window of n x n patches (2 x 2 in the paper): noise it, predict patches and the tiles between, weigh errors."""

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


class Window(NamedTuple):
    """One window of every image of a batch."""

    x: Tensor                                       # clean pixels [B, 3, n p, n p], zero outside the image
    mask: Tensor                                    # [B, 1, n p, n p], 1 inside the image
    where: Tensor                                   # (row, column) of its patches, float32 [B n n, 2]


class Prediction(NamedTuple):
    """Network output (eps or v): of the tiles between patches [B, 3, (n - 1) p, (n - 1) p], of the patches [B, 3, n p, n p].

    Where one patch of each window was chosen, `noshift` is of that one: [B, 3, p, p].
    """

    shift: Tensor | None
    noshift: Tensor


def cut(images: Tensor, corners: Tensor, patch: int, side: int = 2) -> Window:
    """Windows of side x side patches of images [B, 3, H, W], whose top left corners are at `corners` int64 [B, 2].

    Those are pixels of the padded image, which has half a patch of zeros on every side, and may lie another half outside it.
    """
    padded, inside = pad_half(images, 2 * patch), pad_half(torch.ones_like(images[:1, :1]), 2 * patch)[0]
    spans = [(i + patch // 2, j + patch // 2) for i, j in corners.tolist()]
    x = torch.stack([image[:, i : i + side * patch, j : j + side * patch] for image, (i, j) in zip(padded, spans)])
    mask = torch.stack([inside[:, i : i + side * patch, j : j + side * patch] for i, j in spans])
    grid = positions((side, side), device=images.device)
    first = corners.to(images.device).float() / patch
    return Window(x, mask, (first[:, None] + grid).flatten(0, 1))


def _each(rows: Tensor, times: int) -> Tensor:
    """Every row [B, ...] repeated for the tiles of its image: [B times, ...]."""
    return rows.repeat_interleave(times, dim=0)


def predict(unet: PatchUNet, x: Tensor, t: Tensor, cond: Tensor, where: Tensor, patch: int, keep: Tensor | None = None,
            shift: bool = True, chosen: Tensor | None = None) -> Prediction:
    """Both predictions for noisy windows x [B, 3, n p, n p] at timesteps t [B] with codes [B, D].

    The patches are encoded once; the decoder sees them and (with `shift`) the tiles collaged of them as one batch. `keep` [B]
    is 0 where the position is withheld. `chosen` int64 [B] (row by row) has one patch of each window decoded alone.
    """
    batch, side = len(x), x.shape[2] // patch
    own, between = side**2, (side - 1) ** 2 if shift else 0
    parts = own + between
    grid = where.view(batch, side, side, 2)
    middles = grid[:, :-1, :-1].flatten(1, 2)[:, :between] + 0.5
    places = torch.cat([grid.flatten(1, 2), middles], dim=1).flatten(0, 1)
    time = _each(unet.time_embed.time(t), parts)
    position = unet.time_embed.position(places, None if keep is None else _each(keep, parts))
    modulations = unet.modulations(time, position, _each(cond, parts))

    def encoded(rows: Tensor) -> Tensor:
        return rows.unflatten(0, (batch, parts))[:, :own].flatten(0, 1)

    def alone(grouped: Tensor) -> Tensor:
        return grouped if chosen is None else grouped[torch.arange(batch, device=x.device), chosen].unsqueeze(1)

    def decoded(rows: Tensor) -> Tensor:
        if chosen is None:
            return rows
        grouped = rows.unflatten(0, (batch, parts))
        return torch.cat([alone(grouped[:, :own]), grouped[:, own:]], dim=1).flatten(0, 1)

    def tiles(maps: Tensor) -> Tensor:
        grouped = alone(maps.unflatten(0, (batch, own)))
        if shift:
            grouped = torch.cat([grouped, collage(maps, (side - 1, side - 1)).unflatten(0, (batch, between))], dim=1)
        return grouped.flatten(0, 1)

    encoder, decoder = modulations[: unet.encoder_blocks], modulations[unet.encoder_blocks :]
    h, skips = unet.encode(to_patches(x, patch), [(encoded(a), encoded(b)) for a, b in encoder])
    modulations = [*encoder, *((decoded(a), decoded(b)) for a, b in decoder)]

    eps = unet.decode(tiles(h), skips, modulations, lambda h, skip: torch.cat([h, tiles(skip)], dim=1))
    eps = eps.unflatten(0, (batch, -1))
    noshift = eps[:, 0] if chosen is not None else from_patches(eps[:, :own].flatten(0, 1), (side, side))
    shifted = from_patches(eps[:, -between:].flatten(0, 1), (side - 1, side - 1)) if shift else None
    return Prediction(shifted, noshift)


def window_losses(prediction: Prediction, target: Tensor, mask: Tensor, coarse: Mapping[int, float] | None = None,
                  chosen: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Squared errors per image, [B] each: of the tiles, and of the patches, where zeros outside the image count in the mean.

    target: the noise (official) or v of the window, [B, 3, n p, n p]. `coarse` (official: none) adds, for each {side: factor},
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
        size = prediction.noshift.shape[2]
        rows = torch.arange(len(target), device=target.device) * (target.shape[2] // size) ** 2 + chosen
        patches = tuple(to_patches(x, size)[rows] for x in patches)
    noshift = loss((prediction.noshift - patches[0]) * patches[1])
    if prediction.shift is None:
        return torch.zeros_like(noshift), noshift
    edge = (target.shape[2] - prediction.shift.shape[2]) // 2
    return loss(prediction.shift - target[:, :, edge:-edge, edge:-edge]), noshift


def noised(window: Window, t: Tensor, noise: Tensor, cumprod: Tensor) -> Tensor:
    """x_t of a window, zero outside the image."""
    return q_sample(window.x, t, noise, cumprod) * window.mask
