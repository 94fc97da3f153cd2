"""From latents to images: as a whole, or in overlapping tiles as DemoFusion does it, with several tiles per call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from methods.demofusion.windows import coverage, cut, lay, origins, window_size

__all__ = ["decode_tiled", "decoder", "encode", "tile_rule", "unscaled"]


def unscaled(z: Tensor, config: Any) -> Tensor:
    """Latents as the decoder wants them, from those of the diffusion."""
    scale, shift = _statistics(config, z)
    return z * scale + shift


def _statistics(config: Any, z: Tensor) -> tuple[Any, Any]:
    """Scale and shift of the decoder's latents: one number for all channels, or one for each where the VAE names them."""
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is not None and std is not None:
        mean, std = (torch.tensor(v, device=z.device, dtype=z.dtype).view(1, -1, 1, 1) for v in (mean, std))
        return std / config.scaling_factor, mean
    return 1.0 / config.scaling_factor, getattr(config, "shift_factor", None) or 0.0


def decoder(vae: Any) -> "Callable[[Tensor], Tensor]":
    """A function from latents of the decoder [N, C, h, w] to images float32 [N, 3, f h, f w] around [-1, 1]."""
    return lambda z: vae.decode(z.to(vae.dtype), return_dict=False)[0].float()


def encode(vae: Any, image: Tensor, noise: "Callable[[tuple[int, ...]], Tensor]") -> Tensor:
    """Latents of the diffusion [B, C, h, w], sampled with noise(shape), for images float [B, 3, H, W] in [-1, 1]."""
    posterior = vae.encode(image.to(vae.dtype)).latent_dist
    z = posterior.mean.float()
    z = z + posterior.std.float() * noise(tuple(z.shape[1:])).to(z)
    scale, shift = _statistics(vae.config, z)
    return (z - shift) / scale


def tile_rule(window: int, small: bool = False) -> tuple[int, int, int]:
    """Core, stride of the cores and padding around each, in latents, of the released code; `small`: its low-memory rule."""
    core = max(1, window // 4)
    return (core, max(1, core // 2), core) if small else (core, core, window // 8 * 3)


def decode_tiled(
    decode: "Callable[[Tensor], Tensor]", z: Tensor, factor: int, rule: tuple[int, int, int], max_tiles: int | None = 8
) -> Tensor:
    """Images [B, 3, f H, f W] from latents of the decoder [B, C, H, W], tile by tile, `max_tiles` per call (None = all).

    Every core is decoded with its padding (zeros beyond the border), the padding is cut off, and cores that overlap are
    averaged. All tiles have one shape, and the decoder treats each on its own: their number per call changes nothing.
    """
    core, stride, pad = rule
    size = (z.shape[2], z.shape[3])
    span = window_size(size, core)
    corners = origins(size, core, stride)
    corners = np.broadcast_to(corners, (len(z), *corners.shape))
    tiles = cut(F.pad(z, (pad,) * 4), corners, (span[0] + 2 * pad, span[1] + 2 * pad))
    edge, inner = pad * factor, (span[0] * factor, span[1] * factor)
    parts = [
        decode(part)[:, :, edge : edge + inner[0], edge : edge + inner[1]] for part in tiles.split(max_tiles or len(tiles))
    ]
    pixels = (size[0] * factor, size[1] * factor)
    count = coverage(corners[:1], span, size).to(z.device).repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    return lay(torch.cat(parts), corners * factor, pixels) / count
