"""Weights of Patch-DM: official Lightning checkpoints, tables of codes, and hibench's own folders; loaded strictly."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hibench.errors import AdapterError, MissingWeights
from methods.ldm.checkpoint import describe, fill, read_state_dict, torch_load
from methods.patch_dm.model import PatchDM

__all__ = ["Loaded", "fill_network", "find_config", "load_checkpoint", "load_folder", "network_state", "read_table"]

OLD_TABLE, TABLE = "semantic_enc.semantic_enc.weight", "encoder.semantic_enc.weight"
OURS = ("model.", "ema_model.")
BUFFERS = ("conds_mean", "conds_std")
IGNORED = ("x_T",)                                  # a fixed noise for previews


@dataclass(frozen=True)
class Loaded:
    """What came out of a checkpoint."""

    tensors: int                                    # tensors that the network uses
    ema: bool                                       # they are averaged weights

    def __str__(self) -> str:
        return f"{self.tensors} tensors ({'averaged' if self.ema else 'raw'} weights)"


def network_state(state: dict[str, Tensor], what: str) -> dict[str, Tensor]:
    """A network's state dict without what it holds twice (`cond_layers.1` is `linear_emb`), old names replaced."""
    state = {TABLE if k == OLD_TABLE else k: v for k, v in state.items()}
    for name in [k for k in state if ".cond_layers.1." in k]:
        twin = name.replace(".cond_layers.1.", ".linear_emb.")
        copy = state.pop(name)
        if not torch.equal(copy, state.setdefault(twin, copy)):
            raise AdapterError(f"{what}: {name} and {twin} are one tensor in the network, but differ here: it is damaged")
    return state


def fill_network(model: PatchDM, state: dict[str, Tensor], what: str) -> int:
    """Fill the network (with its encoder and prior) with official names, strictly; the number of tensors."""
    state = network_state(state, what)
    for part in ("encoder", "latent_net"):
        has, known = any(k.startswith(part + ".") for k in state), getattr(model.unet, part) is not None
        if has and not known:
            raise AdapterError(f"{what} holds {part}.*, its configuration does not; name the right one with options: config")
    fill(model.unet, state, what)
    return len(state)


def load_checkpoint(model: PatchDM, state: dict[str, Tensor], *, ema: bool = True, what: str = "the checkpoint") -> Loaded:
    """From the state dict of an official Lightning file: `model.*`, `ema_model.*` (unless `ema` is False), statistics of codes.

    The official loader takes what fits and is silent about the rest; here, whatever is missing, unexpected or of another shape
    is an AdapterError.
    """
    unexpected = describe("unexpected", [k for k in state if not k.startswith(OURS) and k not in BUFFERS + IGNORED])
    if unexpected:
        raise AdapterError(f"{what} is not a Patch-DM checkpoint: {unexpected[0]}; one holds model.*, ema_model.*, "
                           "conds_mean and conds_std")
    chosen = "ema_model." if ema else "model."
    weights = {k[len(chosen):]: v for k, v in state.items() if k.startswith(chosen)}
    if not weights:
        other = "raw weights; use options: ema: false" if ema else "averaged weights; use options: ema: true"
        raise AdapterError(f"{what} has no {chosen}*" + (f", only {other}" if state else " and nothing else"))
    tensors = fill_network(model, weights, what)
    _statistics(model, state, what)
    return Loaded(tensors, ema)


def _statistics(model: PatchDM, state: dict[str, Tensor], what: str) -> None:
    """Mean and deviation of codes, where the prior models normalised ones."""
    device = next(model.unet.parameters()).device
    if model.unet.latent_net is None or not model.config.get("latent_znormalize"):
        return
    missing = [k for k in BUFFERS if k not in state]
    if missing:
        raise AdapterError(f"{what} lacks {', '.join(missing)}, but its prior models normalised codes (latent_znormalize)")
    model.mean, model.std = (state[k].float().reshape(1, -1).to(device) for k in BUFFERS)


def load_folder(model: PatchDM, folder: Path) -> Loaded:
    """From hibench's own layout: unet.safetensors (with encoder.*), and prior.safetensors where codes are modelled."""
    state = read_state_dict(folder / "unet.safetensors")
    if model.unet.latent_net is not None:
        prior = read_state_dict(folder / "prior.safetensors")
        _statistics(model, prior, str(folder / "prior.safetensors"))
        state |= {k: v for k, v in prior.items() if k not in BUFFERS}
    return Loaded(fill_network(model, state, str(folder)), True)


def read_table(path: Path) -> Tensor:
    """Codes float32 [N, D] of a semantic-code file: {"model_state_dict": {"semantic_enc.weight": ...}}."""
    loaded = torch_load(path, str(path))
    state = loaded.get("model_state_dict") if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or not isinstance(state.get("semantic_enc.weight"), Tensor):
        raise AdapterError(f"{path}: not a table of codes: it has no model_state_dict with semantic_enc.weight")
    return state["semantic_enc.weight"].float()


def find_config(path: Path) -> dict[str, Any] | None:
    """config.json in a folder or beside a checkpoint, or None."""
    file = (path if path.is_dir() else path.parent) / "config.json"
    if not file.is_file():
        return None
    try:
        config = json.loads(file.read_text())
    except (ValueError, UnicodeDecodeError) as error:
        raise AdapterError(f"{file}: not a readable configuration ({str(error).splitlines()[0]})") from error
    if not isinstance(config, dict) or not {"patch_size", "BeatGANsAutoencConfig"} <= config.keys():
        raise AdapterError(f"{file}: not a Patch-DM configuration: it names no patch_size and BeatGANsAutoencConfig")
    return config


def need(folder: Path, names: tuple[str, ...], remedy: str) -> None:
    """MissingWeights unless all files are there."""
    for name in names:
        if not (folder / name).exists():
            raise MissingWeights(f"patch-dm: {folder / name} is missing; get it with: {remedy}")


def parameters(module: nn.Module) -> int:
    """How many parameters a module has."""
    return sum(p.numel() for p in module.parameters())
