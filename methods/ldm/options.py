"""The options of the LDM adapter, with their defaults and what is wrong about them."""

from __future__ import annotations

from typing import Any

from hibench.errors import SpecError, did_you_mean
from methods.ldm.configs import model_params
from methods.ldm.variants import check_variant

__all__ = ["OPTIONS", "complete_options"]

OPTIONS: dict[str, Any] = {                         # option: default
    "config": None,                                 # a published configuration by name; None = what lies beside the weights
    "variant": None,                                # "class", "text", "super-resolution", "inpainting": that network
    "eta": 0.0,                                     # 0: deterministic DDIM; 1: DDPM's variance
    "sampler": "ddim",                              # "ddim", "ddpm" (ancestral), "dpm++2m" (DPM-Solver++(2M))
    "compat": None,                                 # "official": do as the paper's code with counts that do not divide 1000
    "ema": True,                                    # use a checkpoint's averaged weights where there are any
    "class": None,                                  # class-conditional models: this class; None = the seed picks one
    "guidance": 1.0,                                # classifier-free guidance scale; 1 = none
    "null_class": None,                             # the class that stands for "none" in guidance; None = as configured
    "vocabulary": None,                             # of a text encoder: its vocab.txt; None = the one beside the weights
    "patch": None,                                  # denoise in windows of this many latents (the paper's 128); None = at once
    "patch_stride": None,                           # None = half a window
    "decode_tile": None,                            # decode in tiles of this many latents, blended; None = at once
}


def complete_options(given: dict[str, Any], weights: str) -> dict[str, Any]:
    """All options with their defaults; SpecError for everything that can be wrong before weights are read."""
    for key in given:
        if key not in OPTIONS:
            raise SpecError(f"ldm: no option '{key}'{did_you_mean(key, OPTIONS)}; there are: {', '.join(OPTIONS)}")
    options = OPTIONS | given
    for key, allowed in (("sampler", ("ddim", "ddpm", "dpm++2m")), ("compat", (None, "official"))):
        if options[key] not in allowed:
            raise SpecError(f"ldm: option {key}: {options[key]!r} is not one of {', '.join(map(str, allowed))}")
    for key, low in (("eta", 0.0), ("guidance", 0.0)):
        if isinstance(options[key], bool) or not isinstance(options[key], (int, float)) or not options[key] >= low:
            raise SpecError(f"ldm: option {key}: {options[key]!r} is not a number >= {low:g}")
    for key in ("patch", "patch_stride", "decode_tile"):
        value = options[key]
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise SpecError(f"ldm: option {key}: {value!r} is not a number of latents")
    for key in ("class", "null_class"):
        if options[key] is not None and type(options[key]) is not int:
            raise SpecError(f"ldm: option {key}: {options[key]!r} is not the number of a class")
    if options["vocabulary"] is not None and not isinstance(options["vocabulary"], str):
        raise SpecError(f"ldm: option vocabulary: {options['vocabulary']!r} is not the path of a file")
    if type(options["ema"]) is not bool:
        raise SpecError(f"ldm: option ema: {options['ema']!r} is not true or false")
    if options["variant"] is not None:
        check_variant(options["variant"])
        if weights == "random":
            raise SpecError("ldm: option variant names trained weights; for random ones name the network: config")
    if options["config"] is not None:
        if weights == "reference":
            raise SpecError("ldm: weights: reference has its own configuration; drop options: config, or use weights: random")
        model_params(options["config"])
    return options
