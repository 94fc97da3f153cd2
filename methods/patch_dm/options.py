"""The options of the Patch-DM adapter, with their defaults and what is wrong about them."""

from __future__ import annotations

from typing import Any

from hibench.errors import SpecError, did_you_mean
from methods.patch_dm.configs import config_of

__all__ = ["OPTIONS", "complete_options"]

OPTIONS: dict[str, Any] = {                         # option: default
    "config": None,                                 # a published configuration by name; None = what lies beside the weights
    "variant": None,                                # reference weights of a row of the ablation; None = what the collage needs
    "collage": "feature",                           # "feature"; "pixel": the grid of tiles moves; "none": tiles on their own
    "shift": "fixed",                               # collage of pixels: "fixed" (half a patch, every second step) or "random"
    "ema": True,                                    # averaged weights of a checkpoint; false: raw, as official sampling has it
    "guidance": None,                               # scale of classifier-free guidance; None = as configured
    "latent_steps": 50,                             # sampler steps of the prior over codes
    "max_tiles": None,                              # patches in the network at once; None = all. The images are the same
    "positions": "extend",                          # beyond the training grid: go on counting, or "stretch" the trained range
}
CHOICES: dict[str, tuple[str, ...]] = {"collage": ("feature", "pixel", "none"), "shift": ("fixed", "random"),
                                       "positions": ("extend", "stretch")}


def complete_options(given: dict[str, Any], weights: str) -> dict[str, Any]:
    """All options with their defaults; SpecError for everything that can be wrong before weights are read."""
    for key in given:
        if key not in OPTIONS:
            raise SpecError(f"patch-dm: no option '{key}'{did_you_mean(key, OPTIONS)}; there are: {', '.join(OPTIONS)}")
    options = OPTIONS | given
    for key, allowed in CHOICES.items():
        if options[key] not in allowed:
            raise SpecError(f"patch-dm: option {key}: {options[key]!r} is not one of {', '.join(allowed)}")
    if not isinstance(options["ema"], bool):
        raise SpecError(f"patch-dm: option ema: {options['ema']!r} is not true or false")
    guidance = options["guidance"]
    if guidance is not None and (isinstance(guidance, bool) or not isinstance(guidance, (int, float)) or not guidance >= 0):
        raise SpecError(f"patch-dm: option guidance: {guidance!r} is not a number >= 0")
    smallest = 4 if options["collage"] == "feature" else 1
    for key, low in (("max_tiles", smallest), ("latent_steps", 1)):
        value = options[key]
        if value is None and key == "max_tiles":
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise SpecError(f"patch-dm: option {key}: {value!r} is not a whole number >= {low}")
    if options["config"] is not None:
        if weights == "reference":
            raise SpecError("patch-dm: option config goes with weights: random or a checkpoint; the reference has its own")
        config_of(options["config"])
    options["variant"] = _variant(options, weights)
    return options


def _variant(options: dict[str, Any], weights: str) -> str | None:
    """The folder of reference weights: the one asked for, or the one that a way of collage was trained for."""
    from methods.patch_dm.variants import VARIANTS

    asked = options["variant"]
    if asked is None:
        return ("main" if options["collage"] == "feature" else "none") if weights == "reference" else None
    if weights != "reference":
        raise SpecError("patch-dm: option variant goes with weights: reference")
    if asked not in VARIANTS:
        known = ", ".join(VARIANTS)
        raise SpecError(f"patch-dm: option variant: no '{asked}'{did_you_mean(asked, VARIANTS)}; there are: {known}")
    return asked
