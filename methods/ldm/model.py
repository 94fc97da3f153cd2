"""The latent diffusion model: first stage, U-Net and conditioning under their official names."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from hibench.errors import SpecError
from methods.diffusion.schedules import alphas_cumprod, sqrt_linear_betas
from methods.ldm.text import TextEncoder
from methods.nn.autoencoder import AutoencoderKL, VQModel, build_first_stage
from methods.nn.unet import UNet

__all__ = ["ClassEmbedder", "Coder", "FirstStageAlone", "LatentDiffusion", "SpatialRescaler", "empty_first_stage",
           "empty_model", "random_model", "randomise"]


class ClassEmbedder(nn.Module):
    """Class labels int64 [B] to a context of one token [B, 1, embed_dim] (official `ClassEmbedder`)."""

    def __init__(self, embed_dim: int, n_classes: int = 1000, key: str = "class") -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_classes, embed_dim)

    def forward(self, labels: Tensor) -> Tensor:
        """int64 [B] -> [B, 1, embed_dim]."""
        return self.embedding(labels[:, None])


class SpatialRescaler(nn.Module):
    """A map [B, in_channels, H, W], halved bilinearly `n_stages` times, to [B, out_channels, h, w] (official name, too)."""

    def __init__(self, n_stages: int = 1, in_channels: int = 3, out_channels: int = 3, multiplier: float = 0.5,
                 method: str = "bilinear", bias: bool = False) -> None:
        super().__init__()
        if (multiplier, method) != (0.5, "bilinear"):
            raise SpecError(f"ldm: a rescaler by {multiplier:g} ({method}) is not known; published ones halve bilinearly")
        self.n_stages, self.in_channels = n_stages, in_channels
        self.channel_mapper = nn.Conv2d(in_channels, out_channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, out_channels, H / 2^n_stages, W / 2^n_stages]."""
        for _ in range(self.n_stages):
            x = F.interpolate(x, scale_factor=0.5, mode="bilinear", align_corners=False)
        return self.channel_mapper(x)


class Coder(nn.Module):
    """Images to latents and back: z = scale_factor * encode(x)."""

    first_stage_model: VQModel | AutoencoderKL
    scale_factor: float

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] to latents; a KL posterior is sampled with `noise`, None = its mean."""
        encoded = self.first_stage_model.encode(x)
        if not isinstance(encoded, Tensor):
            encoded = encoded.mode() if noise is None else encoded.sample(noise)
        return self.scale_factor * encoded

    def decode(self, z: Tensor) -> Tensor:
        """Latents [B, C, h, w] to images [B, 3, H, W], unclamped."""
        dtype = self.first_stage_model.post_quant_conv.weight.dtype
        return self.first_stage_model.decode((z / self.scale_factor).to(dtype))


class FirstStageAlone(Coder):
    """An autoencoder without a model of its latents; `params` is a configuration that names no U-Net."""

    def __init__(self, params: dict[str, Any]) -> None:
        super().__init__()
        self.scale_factor = float(params.get("scale_factor", 1.0))
        self.first_stage_model = build_first_stage(params["first_stage_config"])


class LatentDiffusion(Coder):
    """`first_stage_model`, `model.diffusion_model` and `cond_stage_model`, built from an official configuration.

    `params` is the `model.params` of an official yaml. Latents are z = scale_factor * encode(x).
    """

    def __init__(self, params: dict[str, Any]) -> None:
        super().__init__()
        self.betas: NDArray[np.float64] = sqrt_linear_betas(
            params.get("linear_start", 1e-4), params.get("linear_end", 2e-2), params.get("timesteps", 1000))
        self.alphas_cumprod = alphas_cumprod(self.betas)
        self.loss_type = params.get("loss_type", "l2")
        self.parameterization = params.get("parameterization", "eps")           # what the U-Net predicts
        if self.parameterization not in ("eps", "v"):
            raise SpecError(f"ldm: parameterization '{self.parameterization}' is not known; it is eps or v")
        self.elbo_weight = params.get("original_elbo_weight", 0.0)
        self.scale_factor = float(params.get("scale_factor", 1.0))
        self.scale_by_std = bool(params.get("scale_by_std", False))
        self.model = nn.Module()
        self.model.diffusion_model = UNet.from_config(params["unet_config"]["params"])
        self.first_stage_model = build_first_stage(params["first_stage_config"])
        self.cond_stage_model = build_condition(params.get("cond_stage_config"))

    @property
    def unet(self) -> UNet:
        """The network that predicts eps or v."""
        return self.model.diffusion_model

    @property
    def latent_channels(self) -> int:
        """Channels of z; the U-Net's input may have more (concatenated conditioning)."""
        return self.unet.out_channels

    @property
    def multiple(self) -> int:
        """Image heights and widths must be multiples of this: first-stage factor x U-Net downsampling."""
        return self.first_stage_model.factor * self.unet.multiple


def build_condition(config: Any) -> nn.Module | None:
    """From an official `cond_stage_config`: what embeds classes, text or label maps; None where no weights are needed."""
    kinds = {"ClassEmbedder": ClassEmbedder, "BERTEmbedder": TextEncoder, "SpatialRescaler": SpatialRescaler}
    target = config.get("target", "").rpartition(".")[2] if isinstance(config, dict) else ""
    return kinds[target](**config["params"]) if target in kinds else None


@torch.no_grad()
def randomise(module: nn.Module, seed: int = 0) -> None:
    """Fill every parameter in place, on its device: weights N(0, 1/fan_in), norms 1, biases 0, code book N(0, 1).

    Unlike in the official initialisation no output layer is zero, so the network's arithmetic is that of a trained one.
    """
    for index, (name, p) in enumerate(module.named_parameters()):
        if p.dim() == 1:
            p.fill_(0.0 if name.endswith("bias") else 1.0)
        else:
            generator = torch.Generator(p.device).manual_seed(seed * 100_003 + index)
            std = 1.0 if "embedding" in name else p[0].numel() ** -0.5
            p.normal_(0.0, std, generator=generator)


def empty_first_stage(params: dict[str, Any], device: str = "cpu", dtype: torch.dtype = torch.float32) -> FirstStageAlone:
    """The autoencoder of this configuration in evaluation mode, allocated on the device and not yet filled."""
    with torch.device("meta"):
        model = FirstStageAlone(params)
    return model.to(dtype).to_empty(device=device).eval()


def empty_model(params: dict[str, Any], device: str = "cpu", dtype: torch.dtype = torch.float32) -> LatentDiffusion:
    """The network of this configuration in evaluation mode, allocated on the device and not yet filled."""
    with torch.device("meta"):
        model = LatentDiffusion(params)
    return model.to(dtype).to_empty(device=device).eval()


def random_model(params: dict[str, Any], device: str = "cpu", dtype: torch.dtype = torch.float32,
                 seed: int = 0) -> LatentDiffusion:
    """The network of this configuration with random weights, filled on the device."""
    model = empty_model(params, device, dtype)
    randomise(model, seed)
    return model
