"""The options of the INFD adapter, with their defaults and what is wrong about them."""

from __future__ import annotations

from typing import Any

from hibench.errors import SpecError, did_you_mean
from methods.infd.configs import RENDERERS, config_args

__all__ = ["OPTIONS", "complete_options"]

OPTIONS: dict[str, Any] = {                         # option: default
    "config": None,                                 # random weights: ffhq, reference or tiny; None: ffhq
    "renderer": None,                               # random weights: clif, liif, liif-ensemble or fixed; reference: one of the
                                                    # trained variants; None: the main one
    "tiles": "official",                            # "official": tiles of the size of a training patch; "whole"; a side in px
    "padding": 8,                                   # pixels that a tile sees beyond itself, inside the image
    "eta": None,                                    # noise of the sampler; None: 1 as published (0 with the latents of an LDM)
    "ema": True,                                    # use a checkpoint's averaged diffusion weights where there are any
    "latents": "own",                               # "ldm": of the reference LDM; or a path of an LDM with the same autoencoder
}


def complete_options(given: dict[str, Any], weights: str) -> dict[str, Any]:
    """All options with their defaults; SpecError for everything that can be wrong before weights are read."""
    for key in given:
        if key not in OPTIONS:
            raise SpecError(f"infd: no option '{key}'{did_you_mean(key, OPTIONS)}; there are: {', '.join(OPTIONS)}")
    options = OPTIONS | given
    tiles, padding, eta = options["tiles"], options["padding"], options["eta"]
    if tiles not in ("official", "whole") and (type(tiles) is not int or tiles < 8):
        raise SpecError(f"infd: option tiles: {tiles!r} is not 'official', 'whole' or a side of 8 pixels or more")
    if type(padding) is not int or padding < 0:
        raise SpecError(f"infd: option padding: {padding!r} is not a number of pixels")
    if eta is not None and (isinstance(eta, bool) or not isinstance(eta, (int, float)) or not 0 <= eta <= 1):
        raise SpecError(f"infd: option eta: {eta!r} is not a number from 0 to 1")
    if type(options["ema"]) is not bool:
        raise SpecError(f"infd: option ema: {options['ema']!r} is not true or false")
    if not isinstance(options["latents"], str):
        raise SpecError(f"infd: option latents: {options['latents']!r} is not 'own', 'ldm' or the path of an LDM")
    if options["config"] is not None:
        if weights != "random":
            raise SpecError("infd: these weights have their own configuration; drop options: config, or use weights: random")
        config_args(options["config"])
    if weights == "random":
        if options["renderer"] is not None and options["renderer"] not in RENDERERS:
            raise SpecError(f"infd: option renderer: '{options['renderer']}' is not known"
                            f"{did_you_mean(str(options['renderer']), RENDERERS)}; there are: {', '.join(RENDERERS)}")
        if options["latents"] != "own":
            raise SpecError("infd: option latents: random weights do not understand the latents of a trained LDM")
    return options
