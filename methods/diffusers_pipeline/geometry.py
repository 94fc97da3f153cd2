"""Which sizes a diffusers pipeline makes, read from its configuration files before anything is loaded."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["CHECKED", "Geometry", "geometry", "read_configs"]

CHECKED = 8                                         # every pipeline of diffusers refuses sides that 8 does not divide


@dataclass(frozen=True)
class Geometry:
    """Pixels per latent, the number that divides every side, and the side the network was trained at (None = not stated)."""

    factor: int
    multiple: int
    native: int | None
    sdxl_like: bool                                 # the denoiser takes a pooled text vector and six time ids
    train_steps: int                                # of the noise schedule: an upper bound of sampling steps


def read_configs(folder: Path) -> dict[str, dict[str, Any]]:
    """The configuration of each part of a pipeline's folder, by the part's name."""
    files = [*folder.glob("*/config.json"), *folder.glob("scheduler/scheduler_config.json")]
    return {file.parent.name: json.loads(file.read_text(encoding="utf-8")) for file in sorted(files)}


def geometry(configs: Mapping[str, Mapping[str, Any]]) -> Geometry:
    """From the configurations of VAE (`vae`, `vqvae`, `vqgan`), denoiser (`unet`, `transformer`) and scheduler."""
    vae: Mapping[str, Any] = next((configs[name] for name in ("vae", "vqvae", "vqgan", "movq") if name in configs), {})
    unet, transformer = configs.get("unet"), configs.get("transformer")
    denoiser: Mapping[str, Any] = unet or transformer or {}
    factor = _pixels_per_latent(vae)
    patch = 1 if unet else _patch(transformer or {}) * _packing(transformer or {}, vae)
    size = denoiser.get("sample_size")
    side = max(size) if isinstance(size, (list, tuple)) else size
    return Geometry(factor, math.lcm(CHECKED, factor * patch), None if side is None else int(side) * factor,
                    bool(unet) and denoiser.get("addition_embed_type") == "text_time",
                    int(configs.get("scheduler", {}).get("num_train_timesteps") or 1000))


def _pixels_per_latent(vae: Mapping[str, Any]) -> int:
    """2 to the number of halvings; 8 where the configuration does not tell."""
    if "spatial_compression_ratio" in vae:
        return int(vae["spatial_compression_ratio"])
    if "temperal_downsample" in vae:                # spelt so in diffusers: video autoencoders that also make single images
        return int(2 ** len(vae["temperal_downsample"]))
    channels = vae.get("block_out_channels") or vae.get("encoder_block_out_channels")
    return int(2 ** (len(channels) - 1)) if channels else 8


def _patch(transformer: Mapping[str, Any]) -> int:
    """Latents per token and side."""
    patch = transformer.get("patch_size") or transformer.get("all_patch_size") or 1
    while isinstance(patch, (list, tuple)):
        patch = patch[-1]
    return int(patch)


def _packing(transformer: Mapping[str, Any], vae: Mapping[str, Any]) -> int:
    """2 where the pipeline itself folds 2 x 2 latents into one token (FLUX and its relatives), else 1."""
    channels, latents = transformer.get("in_channels"), vae.get("latent_channels") or vae.get("z_dim")
    return 2 if channels and latents and channels == 4 * latents else 1
