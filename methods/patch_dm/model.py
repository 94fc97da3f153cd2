"""A whole Patch-DM out of its configuration: U-Net, semantic encoder or table of codes, and the prior over codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hibench.errors import SpecError
from methods.diffusion.schedules import alphas_cumprod, cosine_betas, linear_betas
from methods.patch_dm.encoder import CodeTable, SemanticEncoder
from methods.patch_dm.prior import LatentPrior
from methods.patch_dm.unet import PatchUNet

__all__ = ["PatchDM", "build", "empty", "diffusion_alphas_cumprod", "encoder_config"]


_BETAS = {"linear": linear_betas, "cosine": cosine_betas}


def diffusion_alphas_cumprod(schedule: str = "linear") -> NDArray[np.float64]:
    """alpha_bar of the image process, float64 [1000]: linear betas from 1e-4 to 2e-2 (official), or cosine."""
    if schedule not in _BETAS:
        raise SpecError(f"patch-dm: beta_scheduler '{schedule}' is not one of {', '.join(_BETAS)}")
    return alphas_cumprod(_BETAS[schedule]())


@dataclass
class PatchDM:
    """The network (with `encoder` and `latent_net` inside, as in official checkpoints), and the statistics of its codes."""

    unet: PatchUNet
    patch: int                                      # pixels
    config: dict[str, Any]                          # as in config.json
    mean: Tensor | None = None                      # of codes [1, D]; None = the prior models them as they are
    std: Tensor | None = None

    @property
    def target(self) -> str:
        """What the network predicts: "eps", or "v"."""
        return str(self.config.get("beatgans_model_mean_type", "eps"))

    @property
    def schedule(self) -> str:
        """Of the noise: "linear" (official) or "cosine"."""
        return str(self.config.get("beta_scheduler", "linear"))

    def normalise(self, codes: Tensor) -> Tensor:
        """Codes [B, D] as the prior sees them."""
        return codes if self.mean is None or self.std is None else (codes - self.mean) / self.std

    def denormalise(self, codes: Tensor) -> Tensor:
        """Codes [B, D] as the U-Net sees them."""
        return codes if self.mean is None or self.std is None else codes * self.std + self.mean


def encoder_config(config: dict[str, Any]) -> dict[str, Any]:
    """BeatGANsEncoderConfig, as the official code derives it from the U-Net's where it is not written down."""
    if config.get("BeatGANsEncoderConfig"):
        return dict(config["BeatGANsEncoderConfig"])
    unet = config["BeatGANsAutoencConfig"]
    return {
        "image_size": unet["image_size"],
        "in_channels": unet.get("in_channels", 3),
        "model_channels": unet["model_channels"],
        "out_channels": unet.get("enc_out_channels", unet["embed_channels"]),
        "num_res_blocks": unet.get("enc_num_res_block", 2),
        "attention_resolutions": unet.get("enc_attn_resolutions") or unet["attention_resolutions"],
        "channel_mult": unet.get("enc_channel_mult") or unet["channel_mult"],
        "dropout": unet.get("dropout", 0.0),
        "resblock_updown": unet.get("resblock_updown", True),
    }


def build(config: dict[str, Any], *, encoder: bool | None = None, prior: bool | None = None) -> PatchDM:
    """The network of a configuration, initialised afresh; `encoder` and `prior` overrule whether it has them.

    config: {"patch_size", "BeatGANsAutoencConfig": {...}, "BeatGANsEncoderConfig": {...} or none}, official field names.
    """
    params = config["BeatGANsAutoencConfig"]
    unet = PatchUNet.from_config(params)
    if encoder is not False:
        if params.get("semantic_enc"):
            unet.encoder = SemanticEncoder.from_config(encoder_config(config))
        elif params.get("semantic_path"):
            unet.encoder = CodeTable(params["data_num"], params["embed_channels"], 0.5 if params["data_num"] == 90_000 else 1.0)
    if prior is not False and params.get("latent_net_conf"):
        unet.latent_net = LatentPrior.from_config(params["latent_net_conf"])
    return PatchDM(unet, int(config["patch_size"]), config)


def empty(config: dict[str, Any], device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32,
          **parts: Any) -> PatchDM:
    """The network without values, on the device: fill it from a checkpoint."""
    with torch.device("meta"):
        model = build(config, **parts)
    model.unet = model.unet.to(dtype).to_empty(device=device).eval()
    return model
