"""Checkpoints of LDM: CompVis Lightning files and zips, safetensors, hibench's own folder; strict, running no pickled code."""

from __future__ import annotations

import json
import pickle
import warnings
import zipfile
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hibench.errors import AdapterError, MissingWeights
from methods.ldm.model import LatentDiffusion
from methods.nn.autoencoder import AutoencoderKL, VQModel, build_first_stage

__all__ = ["Loaded", "config_files", "ema_names", "fill", "find_config", "folder_file", "load_checkpoint", "load_first_stage",
           "load_folder", "read_config", "read_mapping", "read_state_dict", "unflatten_ema", "weight_files"]

# Buffers and training-only parts of official checkpoints that sampling does not need.
IGNORED = ("betas", "alphas_cumprod", "sqrt_", "log_one_minus_", "posterior_", "lvlb_weights", "logvar", "model_ema.",
           "first_stage_model.loss.", "loss.", "cond_ids", "cond_stage_model.transformer.to_logits.")


@dataclass(frozen=True)
class Loaded:
    """What came out of a checkpoint."""

    tensors: int                                    # tensors that the network uses
    ignored: int                                    # buffers, losses, the other set of weights
    ema: bool                                       # the averaged U-Net weights were used
    scale_factor: float

    def __str__(self) -> str:
        weights = "averaged" if self.ema else "raw"
        return f"{self.tensors} tensors ({weights} U-Net weights), {self.ignored} ignored, latent scale {self.scale_factor:g}"


def inert(module: str, name: str) -> type:
    """A class without behaviour that stands in for a class which old Lightning checkpoints name but never instantiate."""
    return type(name, (), {"__module__": module})


CALLBACKS = [inert("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"),
             inert("pytorch_lightning.callbacks.early_stopping", "EarlyStopping")]


def torch_load(file: Any, name: str, device: str = "cpu") -> Any:
    """torch.load that runs no code from the file (device "meta": nor reads a weight); what is wrong is one AdapterError."""
    allow = getattr(torch.serialization, "safe_globals", lambda _: nullcontext())   # since torch 2.5
    try:
        with allow(CALLBACKS), warnings.catch_warnings():
            warnings.simplefilter("ignore")         # it warns of every unusual file before it refuses it
            return torch.load(file, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        if "global" in str(error).lower():
            raise AdapterError(f"{name}: refused, because it holds pickled code besides tensors; if you trust it, make it "
                               "a safetensors file elsewhere") from error
        raise AdapterError(f"{name}: not a readable checkpoint (damaged or truncated?); download it again") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise AdapterError(f"{name}: not a readable checkpoint (damaged or truncated?); download it again") from error


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """All tensors by name, on the CPU: of a `.ckpt`/`.pt` file, a `.zip` that holds a `model.ckpt`, a `.safetensors` file."""
    if not path.is_file():
        raise MissingWeights(f"{path}: no such file; give the path of a CompVis checkpoint, or use weights: random")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file
        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise AdapterError(f"{path}: not a readable safetensors file ({one_line(error)}); download it again") from error
    loaded = torch_load_zip(path) if path.suffix == ".zip" else torch_load(path, str(path))
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
    if not isinstance(state, dict):
        raise AdapterError(f"{path}: holds a {type(loaded).__name__}, not a checkpoint with a state_dict")
    return {k: v for k, v in state.items() if isinstance(v, Tensor)}


def torch_load_zip(path: Path) -> Any:
    """The one checkpoint inside a published zip, read without unpacking to disk."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [n for n in archive.namelist() if n.endswith(".ckpt")]
            if len(names) != 1:
                raise AdapterError(f"{path}: holds {len(names)} .ckpt files, expected one")
            with archive.open(names[0]) as file:
                return torch_load(file, f"{path}:{names[0]}")
    except (zipfile.BadZipFile, OSError) as error:
        raise AdapterError(f"{path}: not a readable zip file (truncated?); download it again") from error


def one_line(error: BaseException) -> str:
    """The first line of an error's text."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def ema_names(unet: nn.Module, prefix: str = "diffusion_model") -> dict[str, str]:
    """U-Net parameter name -> its name under `model_ema.` (LitEma deletes the dots of `diffusion_model.<name>`)."""
    return {name: f"{prefix}.{name}".replace(".", "") for name, _ in unet.named_parameters()}


def unflatten_ema(state: dict[str, Tensor], unet: nn.Module) -> dict[str, Tensor]:
    """The averaged U-Net weights by their real names; {} when the checkpoint has none, AdapterError when it has only some."""
    if not any(k.startswith("model_ema.diffusion_model") for k in state):
        return {}
    names = ema_names(unet)
    missing = describe("missing", [flat for flat in names.values() if f"model_ema.{flat}" not in state])
    if missing:
        raise AdapterError(f"the averaged weights of the checkpoint are incomplete: {missing[0]}; use options: ema: false")
    return {name: state[f"model_ema.{flat}"] for name, flat in names.items()}


def fill(module: nn.Module, state: dict[str, Tensor], what: str) -> None:
    """Copy tensors into a module, strictly: AdapterError lists what is missing, unexpected, or of another shape."""
    own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    problems = [*describe("missing", own.keys() - state.keys()), *describe("unexpected", state.keys() - own.keys())]
    problems += describe("of another shape", [f"{k} {list(state[k].shape)} instead of {list(own[k].shape)}"
                                              for k in own.keys() & state.keys() if own[k].shape != state[k].shape])
    if problems:
        raise AdapterError(f"{what} does not fit the configured network: {'; '.join(problems)}; "
                           "name the right one with options: config")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state[name])


def describe(word: str, names: Iterable[str]) -> list[str]:
    """["3 missing (a, b, c)"], or [] when there are none; at most four names are shown."""
    names = sorted(names)
    shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    return [f"{len(names)} {word} ({shown})"] if names else []


def load_checkpoint(model: LatentDiffusion, state: dict[str, Tensor], *, ema: bool = True,
                    what: str = "the checkpoint") -> Loaded:
    """Fill a model from an official state dict: averaged U-Net weights where there are any (`ema`), the stored scale factor,
    everything the network needs and nothing it does not know."""
    used = {k: v for k, v in state.items() if not k.startswith(IGNORED) and k != "scale_factor"}
    averaged = unflatten_ema(state, model.unet) if ema else {}
    used |= {f"model.diffusion_model.{k}": v for k, v in averaged.items()}
    if model.cond_stage_model is None:
        used = {k: v for k, v in used.items() if not k.startswith("cond_stage_model.")}
    fill(model, used, what)
    if "scale_factor" in state:
        model.scale_factor = float(state["scale_factor"])
    return Loaded(len(used), len(state) - len(used) + len(averaged), bool(averaged), model.scale_factor)


def load_first_stage(path: Path, config: dict[str, Any]) -> VQModel | AutoencoderKL:
    """An autoencoder alone, out of a published first-stage file or zip or out of a complete LDM checkpoint; strict.

    `config` is an official `first_stage_config` (`methods.ldm.configs.first_stage_config(name)`).
    """
    state, prefix = read_state_dict(path), "first_stage_model."
    if any(k.startswith(prefix) for k in state):
        state = {k[len(prefix):]: v for k, v in state.items() if k.startswith(prefix)}
    model = build_first_stage(config)
    fill(model, {k: v for k, v in state.items() if not k.startswith(("loss.", "model_ema."))}, str(path))
    return model.eval()


def load_folder(model: LatentDiffusion, folder: Path) -> Loaded:
    """Fill a model from hibench's own layout: first_stage.safetensors, unet.safetensors and, with classes, cond.safetensors."""
    parts: list[tuple[str, nn.Module | None]] = [
        ("first_stage", model.first_stage_model), ("unet", model.unet), ("cond", model.cond_stage_model)]
    count = 0
    for name, module in parts:
        if module is not None:
            path = folder_file(folder, name)
            state = read_state_dict(path)
            fill(module, state, str(path))
            count += len(state)
    return Loaded(count, 0, True, model.scale_factor)


def folder_file(folder: Path, name: str) -> Path:
    """One part in hibench's own layout: NAME.safetensors; a variant's folder may leave the first stage to the one above."""
    path = folder / f"{name}.safetensors"
    shared = folder.parent / path.name
    return shared if name == "first_stage" and not path.exists() and shared.exists() else path


def weight_files(path: Path) -> list[Path]:
    """The files that weights at this path consist of, in a fixed order: of a checkpoint, a pipeline or hibench's own layout."""
    if not path.is_dir():
        return [path]
    if not any((path / f"{name}.safetensors").exists() for name in ("unet", "first_stage")):
        return sorted(path.rglob("*"))
    parts = [*(folder_file(path, name) for name in ("cond", "first_stage", "unet")), path / "vocab.txt"]
    return [part for part in parts if part.exists()]


def find_config(path: Path) -> dict[str, Any] | None:
    """`model.params` from a configuration beside a checkpoint (config.json, config.yaml, *-project.yaml), or None."""
    return next(map(read_config, config_files(path)), None)


def config_files(path: Path) -> list[Path]:
    """The configurations beside a checkpoint that are there, the one that counts first."""
    folder = path if path.is_dir() else path.parent
    files = [*([path] if path.suffix in (".yaml", ".yml", ".json") else []), folder / "config.json", folder / "config.yaml",
             *sorted(folder.glob("*-project.yaml"))]
    return [file for file in files if file.is_file()]


def read_mapping(file: Path) -> dict[str, Any]:
    """A yaml or JSON file that holds a mapping; AdapterError for another."""
    import yaml

    try:
        config = json.loads(file.read_text()) if file.suffix == ".json" else yaml.safe_load(file.read_text())
    except (ValueError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise AdapterError(f"{file}: not a readable configuration ({one_line(error)})") from error
    if not isinstance(config, dict):
        raise AdapterError(f"{file}: not an LDM configuration: it holds a {type(config).__name__}, not a mapping")
    return config


def read_config(file: Path) -> dict[str, Any]:
    """`model.params` of an official yaml, of the same structure in JSON, or of hibench's own flat config.json."""
    config = read_mapping(file)
    model = config.get("model", {})
    params = model.get("params", config) if isinstance(model, dict) else None
    if not isinstance(params, dict) or not {"unet_config", "first_stage_config"} <= params.keys():
        raise AdapterError(f"{file}: not an LDM configuration: it names no unet_config and first_stage_config")
    return params
