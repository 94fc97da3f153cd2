"""First stages by name in the size of the reference: their configurations, where they lie, and what they start from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from methods.ldm.configs import FIRST_STAGES, first_stage_config

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["CODES", "FOLDER", "first_stage_folder", "small_first_stage", "start_from"]

FOLDER = "first-stages"                             # beside the reference weights
WIDTH, SIDE, CODES = 32, 64, 4096                   # channels of the first level, training side in px, codes at most
LOGVAR = -8.0                                       # of a posterior when training starts: a deviation of 0.018


def small_first_stage(name: str) -> dict[str, Any]:
    """The `first_stage_config` of a published first stage in the width of the reference, for images of 64 px.

    Factor, latent channels, regularisation and attention are those of the name; channels double once after the first level,
    there is one residual block per level, and attention stands where it stands in the published one, counted from the bottom.
    """
    config = first_stage_config(name)
    params, levels = config["params"], len(FIRST_STAGES[name][1])
    dd = params["ddconfig"]
    dd |= {"ch": WIDTH, "ch_mult": [1] + [2] * (levels - 1), "num_res_blocks": 1, "resolution": SIDE,
           "attn_resolutions": [size * SIDE // dd["resolution"] for size in dd["attn_resolutions"]]}
    if "n_embed" in params:
        params["n_embed"] = min(CODES, params["n_embed"])
    return config


def first_stage_folder(base: Path, name: str) -> Path:
    """Where the trained first stage of this name lies below the reference weights; vq-f4 is the reference's own."""
    return base if name == "vq-f4" else base / FOLDER / name


def start_from(module: nn.Module, state: Mapping[str, Tensor]) -> int:
    """Copy every tensor of the reference first stage that has a place here; returns how many did.

    A layer with twice the outputs that otherwise fits (the moments of a KL first stage, where the reference has latents) takes
    them as its means, and its log-variances start at -8. A tensor of another shape stays as it was initialised.
    """
    import torch

    placed = 0
    with torch.no_grad():
        for name, own in module.named_parameters():
            given = state.get(name)
            if given is None:
                continue
            if given.shape == own.shape:
                own.copy_(given)
            elif own.shape[0] == 2 * given.shape[0] and all(a in (b, 2 * b) for a, b in zip(own.shape[1:], given.shape[1:])):
                own.zero_()
                own[tuple(slice(0, side) for side in given.shape)] = given
                if own.dim() == 1 and name.startswith("quant_conv"):
                    own[len(given):] = LOGVAR
            else:
                continue
            placed += 1
    return placed
