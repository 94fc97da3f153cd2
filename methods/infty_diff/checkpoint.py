"""Checkpoints of ∞-Diff: the official pickles in both styles of keys, and hibench's own folder; strict."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hibench.errors import AdapterError, MissingWeights
from methods.infty_diff.decoder import Decoder
from methods.infty_diff.encoder import Encoder
from methods.infty_diff.prior import Prior
from methods.ldm.checkpoint import fill, read_state_dict, torch_load

__all__ = ["OFFICIAL", "Networks", "build", "load_folder", "load_official", "strip", "torchsparse_style"]

OFFICIAL = ("checkpoint.pkl", "latent_checkpoint.pkl", "latents.pkl")
IGNORED = ("uno_coords", "normalising_conv.")       # buffers that follow from the configuration
SPARSE = re.compile(r"^(down_blocks|up_blocks)\.\d+\.block\.")


@dataclass
class Networks:
    """Everything that generates, and what turns normalised codes into codes: z * std + mean."""

    decoder: Decoder
    encoder: Encoder
    prior: Prior
    mean: Tensor                                    # float32 [z]
    std: Tensor

    def modules(self) -> tuple[nn.Module, ...]:
        """The three networks."""
        return self.decoder, self.encoder, self.prior


def build(config: dict[str, Any], compat: str, read_back: str) -> Networks:
    """The networks of a configuration with arbitrary weights; `compat` and `read_back` are "official" or "fixed"."""
    decoder = Decoder.from_config(config["decoder"], compat == "official")
    decoder.official_read_back = read_back == "official"
    z = config["prior"]["channels"]
    return Networks(decoder, Encoder.from_config(config["encoder"], compat == "official"), Prior.from_config(config["prior"]),
                    torch.zeros(z), torch.ones(z))


def strip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the buffers that follow from the configuration."""
    return {k: v for k, v in state.items() if not k.startswith(IGNORED)}


def dense_style(state: dict[str, Tensor]) -> bool:
    """Were these weights trained with the official backend torch_dense? Its keys and its encoder's block differ."""
    return any(SPARSE.match(k) and k.endswith(".conv.weight") for k in state)


def torchsparse_style(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of either backend under the names and in the shapes of torchsparse.

    torch_dense has `conv.weight` (C, C / groups, h, w) for `conv.kernel` (w h, C / groups, C), norms with a gain `g` and no
    bias, and 1x1 convolutions for linear maps.
    """
    if not dense_style(state):
        return strip(state)
    out: dict[str, Tensor] = {}
    for key, value in strip(state).items():
        if key.startswith("uno."):
            out[key] = value
        elif SPARSE.match(key) and key.endswith(".conv.weight"):
            out[key.removesuffix("weight") + "kernel"] = value.permute(3, 2, 1, 0).flatten(0, 1)
        elif key.endswith(".g"):
            out[key.removesuffix("g") + "weight"] = value.flatten()
            out[key.removesuffix("g") + "bias"] = torch.zeros(value.numel())
        else:
            out[key] = value.flatten(1) if value.dim() == 4 and value.shape[2:] == (1, 1) else value
    return out


def load_folder(networks: Networks, folder: Path) -> str:
    """Fill the networks from hibench's own layout (*.safetensors); says what was loaded."""
    for name, module in (("decoder", networks.decoder), ("encoder", networks.encoder), ("prior", networks.prior)):
        file = folder / f"{name}.safetensors"
        state = read_state_dict(file)
        if name == "prior":
            take_normalisation(networks, state.pop("latents.mean", None), state.pop("latents.std", None), file)
        fill(module, state, str(file))
    return f"decoder, encoder and prior of {folder}"


def take_normalisation(networks: Networks, mean: Any, std: Any, file: Path) -> None:
    """Set the normalisation of the codes; AdapterError where it does not fit."""
    for name, value in (("mean", mean), ("std", std)):
        if not isinstance(value, Tensor) or value.numel() != networks.prior.channels:
            raise AdapterError(f"{file}: the {name} of the codes is missing or does not have {networks.prior.channels} numbers")
    networks.mean, networks.std = mean.float().flatten(), std.float().flatten()


def load_official(networks: Networks, folder: Path, latent: Path, ema: bool) -> str:
    """Fill the networks from the official files; says what was loaded.

    `checkpoint.pkl` in `folder` holds decoder and encoder, `latent_checkpoint.pkl` and `latents.pkl` in `latent` the prior and
    the normalisation of its codes. `ema`: the averaged weights of decoder and prior (the encoder has none).
    """
    main, second, third = folder / OFFICIAL[0], latent / OFFICIAL[1], latent / OFFICIAL[2]
    for file in (main, second, third):
        if not file.is_file():
            raise MissingWeights(f"infty-diff: {file} is missing; the official training writes it: put it there, or name its "
                                 "folder with options: latent")
    checkpoint, prior = pickled(main), pickled(second)
    which = "model_ema_state_dict" if ema else "model_state_dict"
    state = part(checkpoint, which, main)
    networks_dense = dense_style(state)
    fill(networks.decoder, torchsparse_style(state), f"{main} ({which})")
    fill(networks.encoder, torchsparse_style(part(checkpoint, "encoder_state_dict", main)), f"{main} (encoder_state_dict)")
    if networks_dense:
        for block in networks.encoder.down_blocks:
            block.plain = False
    fill(networks.prior, part(prior, which, second), f"{second} ({which})")
    latents = torch_load(third, str(third))
    if not isinstance(latents, tuple) or len(latents) != 4:
        raise AdapterError(f"{third}: holds a {type(latents).__name__}, not the tuple (latents, val_latents, mean, std)")
    take_normalisation(networks, latents[2], latents[3], third)
    style = "torch_dense" if networks_dense else "torchsparse"
    return f"{main}, step {checkpoint.get('global_step', '?')}, {'averaged' if ema else 'raw'} weights, {style} keys"


def pickled(file: Path) -> dict[str, Any]:
    """The dict in a file of torch.save, no code run."""
    loaded = torch_load(file, str(file))
    if not isinstance(loaded, dict):
        raise AdapterError(f"{file}: holds a {type(loaded).__name__}, not a checkpoint")
    return loaded


def part(checkpoint: dict[str, Any], name: str, file: Path) -> dict[str, Tensor]:
    """One state dict of a checkpoint."""
    state = checkpoint.get(name)
    if not isinstance(state, dict):
        raise AdapterError(f"{file}: has no {name}; it holds: {', '.join(map(str, checkpoint))}")
    return {k: v for k, v in state.items() if isinstance(v, Tensor)}


def read_config(folder: Path) -> dict[str, Any] | None:
    """config.json of a folder, or None; AdapterError where it is not one of ∞-Diff."""
    file = folder / "config.json"
    if not file.is_file():
        return None
    try:
        config = json.loads(file.read_text())
    except ValueError as error:
        raise AdapterError(f"{file}: not a readable configuration ({str(error).splitlines()[0]})") from error
    if not isinstance(config, dict) or not {"decoder", "encoder", "prior"} <= config.keys():
        raise AdapterError(f"{file}: not a configuration of ∞-Diff: it names no decoder, encoder and prior")
    return config
