"""Configurations of INFD in the official structure {"name": "infd", "args": ...}, and what the authors report for them."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from hibench.errors import SpecError, did_you_mean

__all__ = ["CONFIGS", "PUBLISHED", "RENDERERS", "clif", "config_args", "with_renderer"]

# pFID p/R: 50 000 samples against all 70 000 images of FFHQ, a random crop of p px of each image at R px, Inception-v3-compat;
# the re-trained models of the README of yinboc/infd.
PUBLISHED: dict[str, dict[str, float]] = {
    "ffhq": {"pfid 256/1024": 7.91, "pfid 512/1024": 6.73, "pfid 1024/1024": 5.71},
    "ffhq-6k-mix": {"pfid 256/1024": 10.99, "pfid 512/1024": 7.52, "pfid 1024/1024": 6.80},
}


def clif(hidden: int = 256, kernel_size: int = 3) -> dict[str, Any]:
    """The convolutional renderer of the paper; kernel_size 1 makes it point-wise."""
    args: dict[str, Any] = {"hidden_channels": hidden}
    if kernel_size != 3:
        args["kernel_size"] = kernel_size
    return {"name": "renderer_concat_wrapper", "args": {"net": {"name": "simple_renderer_net", "args": args}}}


FIXED: dict[str, Any] = {"name": "renderer_fixres_wrapper", "args": {"net": {"name": "fixres_original_tail", "args": {}}}}

# The renderers of a configuration by short name, for networks with random weights.
RENDERERS = ("clif", "liif", "liif-ensemble", "fixed")


def _args(size: int, ch: int, ch_mult: list[int], blocks: int, codes: int, hidden: int, unet: dict[str, Any],
          predicts: str = "eps") -> dict[str, Any]:
    """The arguments of the official class for `size` px: f = 2^(levels - 1), 3 latent channels.

    `predicts` is what the U-Net gives; "v" (arXiv 2202.00512) is not official, and is what the reference LDM has too.
    """
    latent = size // 2 ** (len(ch_mult) - 1)
    coder = {"ch": ch, "ch_mult": ch_mult, "num_res_blocks": blocks, "resolution": size, "z_channels": 3}
    return {
        "encoder": {"name": "encoder_vqf4", "args": coder},
        "z_shape": [3, latent, latent],
        "quantizer": True,
        "n_embed": codes,
        "decoder": {"name": "decoder_vqf4", "args": coder},
        "renderer": clif(hidden),
        "z_dm": {"name": "openai_unet", "args": {"image_size": latent, **unet}},
        "z_dp": {"linear_beta_start": 0.0015, "linear_beta_end": 0.0195, "_sampling_timestep_respacing": "ddim200"}
                | ({} if predicts == "eps" else {"parameterization": predicts}),
    }


CONFIGS: dict[str, dict[str, Any]] = {
    "ffhq": _args(256, 128, [1, 2, 4], 2, 8192, 256,
                  {"model_channels": 224, "channel_mult": [1, 2, 3, 4], "num_res_blocks": 2,
                   "attention_resolutions": [8, 4, 2], "num_head_channels": 32}),
    "reference": _args(64, 32, [1, 2, 2], 1, 4096, 64,
                       {"model_channels": 64, "channel_mult": [1, 1, 2], "num_res_blocks": 1,
                        "attention_resolutions": [2, 4], "num_head_channels": 32}, "v"),
    "tiny": _args(16, 32, [1, 1], 1, 64, 32,
                  {"model_channels": 32, "channel_mult": [1, 1], "num_res_blocks": 1,
                   "attention_resolutions": [2], "num_head_channels": 32}),
}


def config_args(name: str) -> dict[str, Any]:
    """The `args` of a configuration by name; SpecError for an unknown one."""
    if name not in CONFIGS:
        raise SpecError(f"infd: no configuration '{name}'{did_you_mean(name, CONFIGS)}; there are: {', '.join(CONFIGS)}")
    return deepcopy(CONFIGS[name])


def with_renderer(args: dict[str, Any], name: str) -> dict[str, Any]:
    """The same configuration with another renderer of about the same number of parameters and operations per pixel."""
    args = deepcopy(args)
    hidden = args["renderer"]["args"]["net"].get("args", {}).get("hidden_channels", 256)
    if name == "fixed":
        args["renderer"] = deepcopy(FIXED)
    elif name in ("liif", "liif-ensemble"):
        args["renderer"] = {"name": "liif", "args": {"hidden": [3 * hidden] * 4, "unfold": True,
                                                     "ensemble": name == "liif-ensemble"}}
    elif name != "clif":
        raise SpecError(f"infd: no renderer '{name}'{did_you_mean(name, RENDERERS)}; there are: {', '.join(RENDERERS)}")
    return args
