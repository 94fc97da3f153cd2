"""The options of the ∞-Diff adapter, with their defaults and what is wrong about them."""

from __future__ import annotations

from typing import Any

from hibench.errors import SpecError, did_you_mean
from methods.infty_diff.configs import VARIANTS, model_config

__all__ = ["OPTIONS", "complete_options"]

OPTIONS: dict[str, Any] = {                         # option: default
    "config": None,                                 # a published configuration by name; None = what lies beside the weights
    "variant": "main",                              # reference weights: one of the trained variants
    "compat": None,                                 # "official" or "fixed" network; None = as the weights were trained
    "read_back": None,                              # "official" (a transposed quadrant) or "fixed"; None = as compat says
    "ema": True,                                    # use a checkpoint's averaged weights
    "latent": None,                                 # folder of latent_checkpoint.pkl and latents.pkl; None = beside the weights
    "prior_steps": None,                            # sampler steps of the latent prior; None = 1000 or as configured
    "subset": "auto",                               # sparse sampling: "lattice", "uniform", or lattices where there are some
    "finish": 0.1,                                  # sparse sampling: the share of steps at the end that evaluate everything
    "conv": "auto",                                 # depthwise kernels: "direct", "fft", "factorised", or for subsets "gather"
    "inv_snr": None,                                # of the Wiener inverse of the mollifier; None = 0.05 or as configured
    "start": None,                                  # super-resolution: begin at this timestep, from the image; None = 999
}
CHOICES = {"compat": (None, "official", "fixed"), "read_back": (None, "official", "fixed"),
           "subset": ("auto", "lattice", "uniform"), "conv": ("auto", "direct", "fft", "factorised", "gather")}


def complete_options(given: dict[str, Any], weights: str) -> dict[str, Any]:
    """All options with their defaults; SpecError for everything that can be wrong before weights are read."""
    for key in given:
        if key not in OPTIONS:
            raise SpecError(f"infty-diff: no option '{key}'{did_you_mean(key, OPTIONS)}; there are: {', '.join(OPTIONS)}")
    options = OPTIONS | given
    for key, allowed in CHOICES.items():
        if options[key] not in allowed:
            raise SpecError(f"infty-diff: option {key}: {options[key]!r} is not one of {', '.join(map(str, allowed))}")
    if options["variant"] not in VARIANTS:
        raise SpecError(f"infty-diff: option variant: {options['variant']!r} is not one of {', '.join(VARIANTS)}")
    if options["variant"] != "main" and weights != "reference":
        raise SpecError("infty-diff: option variant is for weights: reference; give a path instead")
    for key, low, high in (("prior_steps", 1, 1000), ("start", 0, 999)):
        value = options[key]
        if value is not None and (type(value) is not int or not low <= value <= high):
            raise SpecError(f"infty-diff: option {key}: {value!r} is not a whole number from {low} to {high}")
    for key, least, most in (("finish", 0.0, 1.0), ("inv_snr", 1e-6, 10.0)):
        value = options[key]
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most):
            raise SpecError(f"infty-diff: option {key}: {value!r} is not a number from {least:g} to {most:g}")
    if options["finish"] is None:
        raise SpecError("infty-diff: option finish: None is not a number from 0 to 1")
    if type(options["ema"]) is not bool:
        raise SpecError(f"infty-diff: option ema: {options['ema']!r} is not true or false")
    if options["latent"] is not None and not isinstance(options["latent"], str):
        raise SpecError(f"infty-diff: option latent: {options['latent']!r} is not the path of a folder")
    if options["config"] is not None:
        if weights == "reference":
            raise SpecError("infty-diff: weights: reference has its own configuration; drop options: config, or use weights: "
                            "random")
        model_config(options["config"])
    return options
