"""First stages alone: small ones by name and where they lie, published files, and what training starts from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from methods.ldm.configs import FIRST_STAGES, first_stage_config

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["CODES", "FOLDER", "file_alone", "first_stage_folder", "params_alone", "small_first_stage", "start_from"]

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


def params_alone(path: Path) -> dict[str, Any] | None:
    """The configuration of a first stage without a U-Net at this path, {"first_stage_config": ..., "scale_factor": ...}.

    A folder with first_stage.safetensors and no unet.safetensors, or a published first-stage file or zip, which is known by its
    name (`kl-f8.zip`, `kl-f8/model.ckpt`) or by an official configuration beside it that names an autoencoder. None: it is
    something else.
    """
    from methods.ldm.checkpoint import config_files, read_mapping

    if path.is_dir() and (path / "first_stage.safetensors").is_file():
        if (path / "unet.safetensors").exists() or not (path / "config.json").is_file():
            return None
        return read_mapping(path / "config.json")
    for file in config_files(path):
        read = read_mapping(file).get("model", {})
        params = read.get("params", {}) if isinstance(read, dict) else {}
        return {"first_stage_config": read} if {"ddconfig", "embed_dim"} <= params.keys() else None
    name = path.stem if path.suffix in (".zip", ".ckpt", ".safetensors") and path.stem != "model" else path.name
    name = path.parent.name if path.stem == "model" else name
    return {"first_stage_config": first_stage_config(name)} if name in FIRST_STAGES and path.exists() else None


def file_alone(path: Path) -> Path:
    """The file with the tensors of such a first stage: the path itself, or what lies in the folder."""
    inside = [path / name for name in ("first_stage.safetensors", "model.ckpt")] if path.is_dir() else [path]
    return next((place for place in inside if place.is_file()), inside[-1])


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
