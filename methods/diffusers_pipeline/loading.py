"""Where the weights of a diffusers pipeline are, and how it comes onto the device: nothing is ever downloaded here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hibench import hub
from hibench.errors import AdapterError, MissingWeights, SpecError, did_you_mean
from hibench.weights import digest_of
from methods.diffusers_pipeline.options import SCHEDULERS, complete

__all__ = ["REFERENCE", "digest", "find", "load", "parameters", "quiet", "weights_digest"]

REFERENCE = Path(__file__).parents[1] / "demofusion" / "reference"      # SDXL-shaped, trained on scenes at 64 px


def find(weights: str, variant: str | None = None) -> Path:
    """The folder of a pipeline: "reference", a local folder, or a hub id that is in the local cache.

    Never downloads; MissingWeights ends with the command that gets the weights.
    """
    if weights == "reference":
        if not (REFERENCE / "model_index.json").is_file():
            raise MissingWeights(f"no weights at {REFERENCE}; make them with: hibench train demofusion")
        return REFERENCE
    path = Path(weights).expanduser()
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise MissingWeights(f"{path} holds no model_index.json, so it is no pipeline in diffusers' format; give the "
                                 "folder that save_pretrained wrote")
        return path
    if path.is_file() or not hub.is_hub_id(weights):
        what = "is one file, not a pipeline's folder" if path.is_file() else "does not exist"
        raise MissingWeights(f"weights {weights}: {what}; give a folder that save_pretrained wrote, or a hub id (owner/name)")
    folder = hub.find(weights, variant)
    lacking = _lacking(folder)
    if lacking:
        raise MissingWeights(f"{weights}: {folder} lacks {lacking}; get it with: {hub.fetch_command(weights, variant)}")
    return folder


def _lacking(folder: Path) -> str | None:
    """The first part of a pipeline that a snapshot does not hold; None = it is whole."""
    if not (folder / "model_index.json").is_file():
        return "model_index.json"
    for part, kind in json.loads((folder / "model_index.json").read_text(encoding="utf-8")).items():
        optional = part in ("safety_checker", "feature_extractor")
        if isinstance(kind, list) and kind[0] and not optional and not any((folder / part).glob("*")):
            return str(part)
    return None


def load(weights: str, device: str = "cpu", dtype: str = "float32", options: dict[str, Any] | None = None) -> Any:
    """A `DiffusionPipeline` on the device (or under its offloading), silent, with frozen weights.

    weights: as `find`, or "random" (options: config). dtype: "float32", "float16" or "bfloat16", of every network but the VAE
    (option vae). options: `methods.diffusers_pipeline.options.LOADING`. The global random state is left as it was.
    Raises MissingWeights, SpecError (options), AdapterError (files that cannot be read).
    """
    import torch

    given = complete(options or {}, weights)
    if given["offload"] != "none" and not device.startswith("cuda"):
        raise SpecError(f"option offload: {given['offload']} moves parts between a CUDA device and the CPU, and the device is "
                        f"{device}; drop it")
    precise = dtype != "float32" and given["vae"] == "float32"
    with torch.random.fork_rng(devices=[]), quiet():
        if weights == "random":
            from methods.diffusers_pipeline.configs import random_pipeline

            pipe = random_pipeline(given["config"] or "tiny-sdxl", device, getattr(torch, dtype))
            if precise:
                pipe.vae.to(torch.float32)
        else:
            pipe = _from_folder(find(weights, given["variant"]), getattr(torch, dtype), given, precise)
        if given["vae"] not in ("float32", "same"):
            pipe.register_modules(vae=_other_vae(given["vae"], getattr(torch, dtype)))
        if given["scheduler"] is not None:
            pipe.scheduler = _scheduler(given["scheduler"], pipe.scheduler)
        _place(pipe, device, given)
    return pipe


def _from_folder(folder: Path, dtype: Any, options: dict[str, Any], precise: bool) -> Any:
    """The pipeline of a folder, from its files alone; with `precise` its VAE is read in float32."""
    import torch
    from diffusers import DiffusionPipeline

    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    more: dict[str, Any] = {"variant": options["variant"]} if options["variant"] else {}
    if "safety_checker" in index and not options["safety_checker"]:
        more |= {"safety_checker": None, "requires_safety_checker": False}
    dtypes = {"vae": torch.float32, "default": dtype} if precise and "vae" in index else dtype
    try:
        pipe = DiffusionPipeline.from_pretrained(folder, dtype=dtypes, local_files_only=True, **more)
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError, ImportError) as error:
        text = " ".join(str(error).split())[:300]
        raise AdapterError(f"{folder}: cannot be loaded as a diffusers pipeline ({type(error).__name__}: {text})") from error
    if getattr(pipe, "watermark", None) is not None:
        pipe.watermark = None                       # present only where a certain package is installed
    return pipe


def _other_vae(weights: str, dtype: Any) -> Any:
    """A VAE by folder or hub id, in `dtype`: for instance madebyollin/sdxl-vae-fp16-fix, which does not overflow in float16."""
    from diffusers import AutoencoderKL

    path = Path(weights).expanduser()
    folder = path if path.is_dir() else hub.find(weights) if hub.is_hub_id(weights) else None
    if folder is None:
        raise MissingWeights(f"option vae: {weights} is neither float32, same, a folder nor a hub id; give one of them")
    return AutoencoderKL.from_pretrained(folder, dtype=dtype, local_files_only=True)


def _scheduler(name: str, own: Any) -> Any:
    """A scheduler by name with the settings of the pipeline's own one."""
    import diffusers

    kind = getattr(diffusers, SCHEDULERS.get(name, name), None)
    if kind is None or not name.removesuffix("Scheduler") or not hasattr(kind, "set_timesteps"):
        raise SpecError(f"option scheduler: no scheduler '{name}'{did_you_mean(name, SCHEDULERS)}; there are "
                        f"{', '.join(SCHEDULERS)}, and the scheduler classes of diffusers")
    more = {"skip_prk_steps": True} if name == "pndm" else {}      # as Stable Diffusion 1 is released
    return kind.from_config(own.config, **more)


def _place(pipe: Any, device: str, options: dict[str, Any]) -> None:
    """Bring the networks to the device, freeze them, and set what saves memory."""
    import torch

    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    if options["offload"] == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif options["offload"] == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    else:
        pipe.to(device)
    if options["attention_slicing"]:
        pipe.enable_attention_slicing()
    vae = getattr(pipe, "vae", None)
    for option, switch in (("vae_tiling", "enable_tiling"), ("vae_slicing", "enable_slicing")):
        if options[option]:
            if not hasattr(vae, switch):
                raise SpecError(f"option {option}: the {type(vae).__name__} of this pipeline has no {switch.split('_')[1]}")
            getattr(vae, switch)()
    pipe.set_progress_bar_config(disable=True)


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars of diffusers and transformers inside; as before afterwards."""
    from diffusers.utils import logging as ours
    from transformers.utils import logging as theirs

    shown = [(module, module.is_progress_bar_enabled()) for module in (ours, theirs)]
    for module, _ in shown:
        module.disable_progress_bar()
    try:
        yield
    finally:
        for module, was in shown:
            if was:
                module.enable_progress_bar()


def digest(path: Path, variant: str | None = None) -> str:
    """SHA-256 over every file that the pipeline of a folder is loaded from."""
    return hub.folder_digest(path, variant)


def weights_digest(weights: str, options: dict[str, Any]) -> str:
    """Identifies what `load` would load, without loading it; raises MissingWeights."""
    given = complete(options, weights)
    if weights == "random":
        from methods.diffusers_pipeline.configs import CONFIGS

        return digest_of(["random", CONFIGS[given["config"] or "tiny-sdxl"]])
    own = digest(find(weights, given["variant"]), given["variant"])
    if given["vae"] in ("float32", "same"):
        return own
    path = Path(given["vae"]).expanduser()
    return digest_of([own, digest(path if path.is_dir() else hub.find(given["vae"]))])


def parameters(pipe: Any) -> int:
    """Parameters of all networks of a pipeline (text encoders, denoiser, VAE)."""
    import torch

    return sum(p.numel() for part in pipe.components.values() if isinstance(part, torch.nn.Module) for p in part.parameters())
