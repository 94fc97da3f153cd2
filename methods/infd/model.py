"""The INFD network under its official names: encoder, quantizer, decoder, renderer and the diffusion model `z_dm`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hibench.errors import AdapterError
from methods.diffusion.schedules import alphas_cumprod, linear_betas
from methods.infd.geometry import Query
from methods.infd.renderers import build_renderer
from methods.ldm.model import randomise
from methods.nn.autoencoder import Decoder, Encoder
from methods.nn.quantize import VectorQuantizer
from methods.nn.unet import UNet

__all__ = ["INFDModel", "empty_model", "random_model"]

CODER: dict[str, Any] = {  # what the official constructors of encoder_vqf4 and decoder_vqf4 take when nothing is said
    "double_z": False, "z_channels": 3, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128, "ch_mult": [1, 2, 4],
    "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0,
}
UNET: dict[str, Any] = {  # openai_unet
    "image_size": 64, "in_channels": 3, "out_channels": 3, "model_channels": 224, "num_res_blocks": 2,
    "attention_resolutions": [8, 4, 2], "channel_mult": [1, 2, 3, 4], "num_heads": 1, "num_head_channels": 32,
}
UNET_UNUSED = ("noisy_z_cond",)                     # arguments of the official wrapper that must be off


def arguments(spec: dict[str, Any], name: str, defaults: dict[str, Any]) -> dict[str, Any]:
    """The arguments of {"name", "args"} over the defaults; AdapterError when it is another thing than `name`."""
    if spec.get("name") != name:
        raise AdapterError(f"infd: the configuration names '{spec.get('name')}' where only {name} is supported")
    return {**defaults, **spec.get("args", {})}


def build_unet(spec: dict[str, Any]) -> UNet:
    """The diffusion network of an official `z_dm` specification."""
    params = arguments(spec, "openai_unet", UNET)
    for key in UNET_UNUSED:
        if params.pop(key, False):
            raise AdapterError(f"infd: openai_unet with {key} is not supported")
    try:
        return UNet.from_config(params)
    except (TypeError, ValueError) as error:
        raise AdapterError(f"infd: the configuration's openai_unet cannot be built: {error}") from error


class INFDModel(nn.Module):
    """Image -> latent z -> feature map phi -> colours at any coordinates; and eps = z_dm(z_t, t) on un-quantised latents.

    `args` are those of the official class. `diffusion=False` leaves z_dm out; configurations without one have none.
    """

    def __init__(self, args: dict[str, Any], diffusion: bool = True) -> None:
        super().__init__()
        coder = arguments(args["encoder"], "encoder_vqf4", CODER)
        decoder = arguments(args["decoder"], "decoder_vqf4", CODER)
        self.latent_channels = int(args.get("z_shape", [coder["z_channels"]])[0])
        self.factor = 2 ** (len(decoder["ch_mult"]) - 1)            # cells of phi per latent
        shape = args.get("z_shape")
        self.latent_side = int(shape[1]) if shape else coder["resolution"] // self.factor
        self.encoder = nn.Sequential(Encoder(**coder), nn.Conv2d(coder["z_channels"], self.latent_channels, 1))
        self.quantizer = VectorQuantizer(args["n_embed"], self.latent_channels) if args.get("quantizer", True) else None
        self.decoder = nn.Sequential(nn.Conv2d(self.latent_channels, decoder["z_channels"], 1),
                                     Decoder(**{**decoder, "give_pre_end": True}))
        self.renderer = build_renderer(args["renderer"], self.decoder[1].channels)
        self.z_dm = build_unet(args["z_dm"]) if diffusion and args.get("z_dm") else None
        process = args.get("z_dp") or {}
        self.betas: NDArray[np.float64] = linear_betas(process.get("linear_beta_start", 0.0015),
                                                       process.get("linear_beta_end", 0.0195))
        self.alphas_cumprod = alphas_cumprod(self.betas)
        self.parameterization = process.get("parameterization", "eps")      # "v" is not official
        if self.parameterization not in ("eps", "v"):
            raise AdapterError(f"infd: parameterization '{self.parameterization}' is not known; it is eps or v")

    @property
    def unet(self) -> UNet:
        """The eps network; AdapterError for an autoencoder alone."""
        if self.z_dm is None:
            raise AdapterError("infd: these weights are an autoencoder without a diffusion model: they can reconstruct images, "
                               "not generate; give a checkpoint of the diffusion stage")
        return self.z_dm

    @property
    def side(self) -> int:
        """Cells of phi along the side of the latent that the model was trained on: its native resolution."""
        return self.latent_side * self.factor

    def encode(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] -> latents before quantisation [B, C, H/f, W/f]: what diffusion is trained on."""
        return self.encoder(x)

    def quantise(self, z: Tensor) -> Tensor:
        """z + (code - z): the nearest codes, with a straight-through gradient.

        The rounding of this sum is part of the official output: it matters where |z| is much larger than |code|.
        """
        return z if self.quantizer is None else self.quantizer(z).z.to(z.dtype)

    def features(self, z: Tensor, quantise: bool = True) -> Tensor:
        """Latents [B, C, h, w] -> phi [B, channels, f*h, f*w]; sampling always quantises."""
        z = z.to(self.decoder[0].weight.dtype)
        return self.decoder(self.quantise(z) if quantise else z)

    def render(self, phi: Tensor, query: Query, images: Tensor | None = None) -> Tensor:
        """Colours [B, 3, h, w] at a grid of coordinates, unclamped."""
        return self.renderer(phi, query, images)

    def parts(self, names: Sequence[str]) -> dict[str, Tensor]:
        """The state of some children, by full name."""
        return {k: v for k, v in self.state_dict().items() if k.split(".")[0] in names}


def empty_model(args: dict[str, Any], device: str = "cpu", dtype: torch.dtype = torch.float32,
                diffusion: bool = True) -> INFDModel:
    """The network of these arguments in evaluation mode, allocated on the device and not yet filled."""
    with torch.device("meta"):
        model = INFDModel(args, diffusion)
    return model.to(dtype).to_empty(device=device).eval()


def random_model(args: dict[str, Any], device: str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0) -> INFDModel:
    """The network of these arguments with random weights, filled on the device."""
    model = empty_model(args, device, dtype)
    randomise(model, seed)
    return model
