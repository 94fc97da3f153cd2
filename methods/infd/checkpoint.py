"""Weights of INFD: official checkpoints, hibench's own folder, LDM autoencoders made into neural-field ones; all strict."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hibench.errors import AdapterError, MissingWeights
from methods.infd.model import INFDModel
from methods.ldm.checkpoint import describe, read_state_dict, torch_load

__all__ = ["Checkpoint", "Loaded", "fill", "from_ldm", "load_folder", "load_official", "read_config", "read_official"]

TRAINING_ONLY = ("perc_loss.", "disc.")             # parts of official checkpoints that sampling does not need
AUTOENCODER = ("encoder", "quantizer", "decoder", "renderer")


@dataclass(frozen=True)
class Checkpoint:
    """An official file: what `torch.save` wrote in BaseTrainer.save_ckpt."""

    args: dict[str, Any]                            # of the official class
    state: dict[str, Tensor]                        # by official name
    iteration: int | None


@dataclass(frozen=True)
class Loaded:
    """What came out of a checkpoint."""

    tensors: int                                    # tensors that the network uses
    ignored: int                                    # losses, the discriminator, the other set of U-Net weights
    ema: bool | None                                # the averaged U-Net weights were used; None: there is no U-Net
    variant: str = "main"

    def __str__(self) -> str:
        weights = {None: "no U-Net", True: "averaged U-Net weights", False: "raw U-Net weights"}[self.ema]
        return f"{self.tensors} tensors ({weights}), {self.ignored} ignored, renderer {self.variant}"


def fill(module: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Copy tensors into a module, strictly: AdapterError lists what is missing, unexpected, or of another shape."""
    own = dict(module.state_dict())
    problems = [*describe("missing", own.keys() - state.keys()), *describe("unexpected", state.keys() - own.keys())]
    problems += describe("of another shape", [f"{k} {list(state[k].shape)} instead of {list(own[k].shape)}"
                                              for k in own.keys() & state.keys() if own[k].shape != state[k].shape])
    if problems:
        raise AdapterError(f"{what} does not fit the network that its configuration describes: {'; '.join(problems)}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state[name])


def read_official(path: Path, device: str = "cpu") -> Checkpoint:
    """Read a published `.pth` without running code from it; AdapterError for anything that is not an INFD checkpoint.

    device "meta" reads the configuration and the shapes only.
    """
    if not path.is_file():
        raise MissingWeights(f"{path}: no such file; give the path of a published checkpoint, or use weights: random")
    loaded = torch_load(path, str(path), device)
    model = loaded.get("model") if isinstance(loaded, dict) else None
    if not isinstance(model, dict) or not {"name", "args", "sd"} <= model.keys():
        raise AdapterError(f"{path}: not an INFD checkpoint: it has no model with name, args and sd; "
                           "give the last-model.pth of the authors")
    if model["name"] != "infd" or not isinstance(model["sd"], dict):
        raise AdapterError(f"{path}: holds a model '{model['name']}', not infd")
    state = {k: v for k, v in model["sd"].items() if isinstance(v, Tensor)}
    return Checkpoint(model["args"], state, loaded.get("iter"))


def load_official(model: INFDModel, checkpoint: Checkpoint, *, ema: bool = True, what: str = "the checkpoint") -> Loaded:
    """Fill a model: everything it needs, nothing that it does not know; averaged U-Net weights (`z_dm_ema`) unless not ema."""
    kept = {k: v for k, v in checkpoint.state.items() if not k.startswith(TRAINING_ONLY)}
    chosen, other = ("z_dm_ema.", "z_dm.") if ema else ("z_dm.", "z_dm_ema.")
    if not any(k.startswith(chosen) for k in kept):
        chosen, other, ema = other, chosen, not ema
    used = {k: v for k, v in kept.items() if not k.startswith(other)}
    used = {f"z_dm.{k[len(chosen):]}" if k.startswith(chosen) else k: v for k, v in used.items()}
    if model.z_dm is None:
        used = {k: v for k, v in used.items() if not k.startswith("z_dm.")}
    fill(model, used, what)
    return Loaded(len(used), len(checkpoint.state) - len(used), None if model.z_dm is None else ema)


def from_ldm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The first stage of an LDM (VQ, its own names, without `first_stage_model.`) under INFD's names.

    The output head becomes the `fixed` renderer: with that, the two autoencoders are the same function. A convolutional
    renderer has no counterpart: leave `renderer.` out and train it.
    """
    names = {"encoder": "encoder.0", "quant_conv": "encoder.1", "quantize": "quantizer", "post_quant_conv": "decoder.0",
             "decoder": "decoder.1"}
    out = {}
    for key, value in state.items():
        first, _, rest = key.partition(".")
        if first not in names:
            raise AdapterError(f"infd: '{key}' is not part of an LDM autoencoder with a codebook: it cannot be taken over")
        head = first == "decoder" and rest.startswith(("norm_out.", "conv_out."))
        out[f"renderer.net.{rest}" if head else f"{names[first]}.{rest}"] = value
    if not {"quantizer.embedding.weight", "renderer.net.conv_out.weight"} <= out.keys():
        raise AdapterError("infd: the first stage has no codebook or no output head: only LDM's VQ autoencoders are taken over")
    return out


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of hibench's own folder: {"name": "infd", "args": official arguments, "tiles": ..., "variants": ...}."""
    file = folder / "config.json"
    if not file.is_file():
        raise MissingWeights(f"infd: no config.json in {folder}; get it with: hibench train infd --out {folder}")
    try:
        config = json.loads(file.read_text())
    except (ValueError, UnicodeDecodeError) as error:
        raise AdapterError(f"{file}: not readable as JSON ({str(error).splitlines()[0]})") from error
    if not isinstance(config, dict) or config.get("name") != "infd" or not isinstance(config.get("args"), dict):
        raise AdapterError(f"{file}: not an INFD configuration: it has no name 'infd' with args")
    return config


def load_folder(model: INFDModel, folder: Path, variant: str = "main") -> Loaded:
    """Fill a model from hibench's folder: autoencoder.safetensors, unet.safetensors, and for a variant its own decoder and
    renderer from variant-NAME.safetensors."""
    state = read_state_dict(folder / "autoencoder.safetensors")
    if variant != "main":
        own = read_state_dict(folder / f"variant-{variant}.safetensors")
        state = {k: v for k, v in state.items() if not k.startswith(("decoder.", "renderer."))} | own
    if model.z_dm is not None:
        state |= {f"z_dm.{k}": v for k, v in read_state_dict(folder / "unet.safetensors").items()}
    fill(model, state, str(folder))
    return Loaded(len(state), 0, None if model.z_dm is None else True, variant)
