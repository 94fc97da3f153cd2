"""How a diffusers pipeline is loaded and placed: the options, their defaults, and what is wrong about them."""

from __future__ import annotations

from typing import Any

from hibench.errors import SpecError, did_you_mean

__all__ = ["LOADING", "SCHEDULERS", "check_keys", "complete"]

LOADING: dict[str, Any] = {                         # option: default
    "config": None,                                 # with weights: random: "sdxl", "tiny-sdxl", "tiny-sd"; None = "tiny-sdxl"
    "variant": None,                                # precision of the files, "fp16" or "bf16"; None = the main ones
    "vae": "float32",                               # keep the VAE in float32; "same": in dtype; else a VAE's folder or hub id
    "scheduler": None,                              # a name of SCHEDULERS or a scheduler class of diffusers; None = its own
    "offload": "none",                              # "none", "model" or "sequential" (to the CPU, on a CUDA device only)
    "vae_tiling": False,                            # decode in overlapping tiles: less memory, other pixels near their borders
    "vae_slicing": False,                           # decode the images of a batch one by one
    "attention_slicing": False,                     # compute attention in slices: less memory, slower
    "safety_checker": False,                        # SD 1.x: blacken what its checker rejects (changes images and times)
}
SCHEDULERS = {
    "ddim": "DDIMScheduler", "ddpm": "DDPMScheduler", "dpm++2m": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler", "euler-ancestral": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler", "lcm": "LCMScheduler", "lms": "LMSDiscreteScheduler",
    "pndm": "PNDMScheduler", "unipc": "UniPCMultistepScheduler",
    "flow-euler": "FlowMatchEulerDiscreteScheduler", "flow-heun": "FlowMatchHeunDiscreteScheduler",
}
CONFIGS = ("sdxl", "tiny-sdxl", "tiny-sd")


def check_keys(method: str, given: dict[str, Any], known: dict[str, Any]) -> None:
    """SpecError for an option that the method does not have."""
    for key in given:
        if key not in known:
            raise SpecError(f"{method}: no option '{key}'{did_you_mean(key, known)}; there are: {', '.join(known)}")


def complete(given: dict[str, Any], weights: str = "", method: str = "diffusers") -> dict[str, Any]:
    """The loading options out of `given` with their defaults; SpecError for everything that can be wrong before loading.

    Options in `given` that are none of `LOADING` are the caller's and are left out.
    """
    options = LOADING | {key: value for key, value in given.items() if key in LOADING}
    for key, allowed in (("config", (None, *CONFIGS)), ("offload", ("none", "model", "sequential"))):
        if options[key] not in allowed:
            raise SpecError(f"{method}: option {key}: {options[key]!r} is not one of {', '.join(map(str, allowed))}")
    if options["config"] is not None and weights != "random":
        raise SpecError(f"{method}: option config goes with weights: random; these weights have their own configuration")
    for key in ("vae_tiling", "vae_slicing", "attention_slicing", "safety_checker"):
        if type(options[key]) is not bool:
            raise SpecError(f"{method}: option {key}: {options[key]!r} is not true or false")
    for key in ("variant", "scheduler", "vae"):
        if options[key] is not None and not isinstance(options[key], str):
            raise SpecError(f"{method}: option {key}: {options[key]!r} is not a name")
    if options["vae"] is None:
        options["vae"] = "same"
    return options
