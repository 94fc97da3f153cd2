"""LDM with conditions that are concatenated to the latent: super-resolution, inpainting, label maps (arXiv 2112.10752, §4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.ldm.model import LatentDiffusion, SpatialRescaler
from methods.ldm.sampling import Patches, make_plan, sample_latents

__all__ = ["inpaint", "inpainting_condition", "label_condition", "super_resolve", "synthesise"]


@torch.inference_mode()
def super_resolve(model: LatentDiffusion, low: Tensor, seeds: Sequence[int], *, steps: int = 100, eta: float = 1.0,
                  patches: Patches | None = None) -> Tensor:
    """Images [B, 3, f*h, f*w] in [-1, 1] from low-resolution ones [B, 3, h, w] in [-1, 1] (LDM-SR: f = 4).

    The low-resolution image is concatenated to the latent of its own size. `patches` denoises in windows, which the paper does
    for latents of 128 and more.
    """
    need(model, low.shape[1], "a low-resolution image")
    plan = make_plan(model, steps, eta=eta, device=low.device)
    shape = (model.latent_channels, *low.shape[2:])
    z = sample_latents(model, plan, shape, seeds, low.device, concat=low, patches=patches)
    return model.decode(z).float().clamp(-1, 1)


def inpainting_condition(model: LatentDiffusion, image: Tensor, mask: Tensor) -> Tensor:
    """[B, C + 1, h, w]: the latent of the image with a black hole (-1), and the mask at the latent's size as -1 or 1."""
    masked = torch.where(mask > 0.5, -1.0, image)
    latent = model.encode(masked)
    small = F.interpolate(mask.to(latent.dtype), size=latent.shape[2:], mode="nearest")
    return torch.cat([latent, small * 2 - 1], dim=1)


@torch.inference_mode()
def inpaint(model: LatentDiffusion, image: Tensor, mask: Tensor, seeds: Sequence[int], *, steps: int = 50, eta: float = 0.0,
            patches: Patches | None = None) -> Tensor:
    """The image [B, 3, H, W] in [-1, 1] with the hole (mask [B, 1, H, W] = 1) filled; outside the hole it is unchanged."""
    need(model, model.latent_channels + 1, "a masked latent and a mask")
    concat = inpainting_condition(model, image, mask)
    plan = make_plan(model, steps, eta=eta, device=image.device)
    shape = (model.latent_channels, *concat.shape[2:])
    z = sample_latents(model, plan, shape, seeds, image.device, concat=concat, patches=patches)
    return torch.where(mask > 0.5, model.decode(z).float().clamp(-1, 1), image)


def label_condition(model: LatentDiffusion, labels: Tensor) -> Tensor:
    """[B, C, h, w] of label maps int64 [B, H, W]: one-hot, halved bilinearly to the latent's size, mapped to C channels.

    Raises ValueError for a model without a rescaler, and for a label that it does not know.
    """
    rescaler = model.cond_stage_model
    if not isinstance(rescaler, SpatialRescaler):
        raise ValueError("this model takes no label map: its condition is no SpatialRescaler")
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < rescaler.in_channels:
        raise ValueError(f"labels {int(labels.min())} to {int(labels.max())}: this model knows 0 to {rescaler.in_channels - 1}")
    hot = F.one_hot(labels, rescaler.in_channels).movedim(3, 1)
    return rescaler(hot.to(rescaler.channel_mapper.weight.dtype))


@torch.inference_mode()
def synthesise(model: LatentDiffusion, labels: Tensor, seeds: Sequence[int], *, steps: int = 200, eta: float = 0.0,
               patches: Patches | None = None) -> Tensor:
    """Images [B, 3, H, W] in [-1, 1] of label maps int64 [B, H, W]; `patches` denoises in windows, as the paper does beyond
    the trained size."""
    concat = label_condition(model, labels)
    need(model, concat.shape[1], "a rescaled label map")
    plan = make_plan(model, steps, eta=eta, device=labels.device)
    z = sample_latents(model, plan, (model.latent_channels, *concat.shape[2:]), seeds, labels.device, concat=concat,
                       patches=patches)
    return model.decode(z).float().clamp(-1, 1)


def need(model: LatentDiffusion, channels: int, what: str) -> None:
    """ValueError unless the U-Net takes this many channels of condition."""
    takes = model.unet.in_channels - model.latent_channels
    if takes != channels:
        raise ValueError(f"this U-Net takes {takes} channels of condition, not {channels} ({what})")
