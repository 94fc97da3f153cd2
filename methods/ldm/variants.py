"""Conditional networks that start from the reference U-Net: their configurations, what is copied, what starts at zero."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hibench.errors import SpecError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["CLASSES", "TOKENS", "VARIANTS", "Variant", "check_variant", "folder_of", "variant_config", "warm_start"]

CLASSES = 64                                        # of scenes: shape x 8 + colour; one more stands for "none"
CONTEXT = 128                                       # channels of an embedding of a class or of a token
TOKENS = 24                                         # of a prompt: the longest caption of scenes has 21 words


class Variant(NamedTuple):
    """One conditional network and its training."""

    concat: int = 0                                 # channels beside the latent
    steps: int = 1200
    batch: int = 16
    rate: float = 5e-4
    images: int = 2400                              # that are encoded beforehand


VARIANTS = {
    "class": Variant(steps=2000, images=16_000),
    "text": Variant(steps=4000, images=16_000),
    "super-resolution": Variant(concat=3),          # the image of the latent's size
    "inpainting": Variant(concat=4),                # the masked image's latent, and the mask
}


def check_variant(name: str) -> Variant:
    """The variant of this name; SpecError with the nearest one for another."""
    if name not in VARIANTS:
        raise SpecError(f"ldm: no variant '{name}'{did_you_mean(name, VARIANTS)}; there are: {', '.join(VARIANTS)}")
    return VARIANTS[name]


def folder_of(base: Path, variant: str | None) -> Path:
    """Where a variant's files lie: in a folder of its name beside those of the unconditional model."""
    return base if variant is None else base / variant


def variant_config(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a variant of an unconditional model.

    Classes and text go to spatial transformers as in the paper's cin256 and text2img256, at half the latent's side and in the
    middle only, which keeps the network as small as the unconditional one; images are concatenated to the latent.
    """
    variant, params = check_variant(name), copy.deepcopy(dict(config))
    unet = params["unet_config"]["params"]
    unet["in_channels"] = unet["out_channels"] + variant.concat
    if name in ("class", "text"):
        unet |= {"use_spatial_transformer": True, "transformer_depth": 1, "context_dim": CONTEXT, "attention_resolutions": [2]}
    if name == "class":
        params["cond_stage_config"] = {"target": "ldm.modules.encoders.modules.ClassEmbedder",
                                       "params": {"n_classes": CLASSES + 1, "embed_dim": CONTEXT, "key": "class_label"}}
        params["unconditional_class"] = CLASSES
    if name == "text":
        from methods.ldm.words import scene_vocabulary

        params["cond_stage_config"] = {
            "target": "ldm.modules.encoders.modules.BERTEmbedder",
            "params": {"n_embed": CONTEXT, "n_layer": 4, "vocab_size": len(scene_vocabulary()), "max_seq_len": TOKENS,
                       "heads": 4, "dim_head": 32}}
    return params


def warm_start(unet: "nn.Module", state: "Mapping[str, Tensor]") -> list[str]:
    """Copy every tensor of the reference U-Net that has a place here; returns the names of those that had none before.

    New input channels of the first convolution start at zero, and so do the last projections of new transformers, so that
    the network begins as the reference network without the attention blocks that transformers replace. A tensor of another
    shape is left as it was initialised.
    """
    import torch

    fresh = []
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            given = state.get(name)
            if given is not None and given.shape == parameter.shape:
                parameter.copy_(given)
            elif name == "input_blocks.0.0.weight" and given is not None and given.shape[0] == parameter.shape[0]:
                parameter.zero_()
                parameter[:, : given.shape[1]] = given
            else:
                fresh.append(name)
    return fresh
