"""Configurations: the published sizes, and the small ones that are trained on scenes, all in the official names."""

from __future__ import annotations

from typing import Any

from hibench.errors import SpecError, did_you_mean

__all__ = ["MODELS", "PUBLISHED", "REFERENCE_SIZE", "VARIANTS", "model_config", "variant_config"]

MODELS = ("ffhq_128", "ffhq_256", "celeba_256", "churches_256", "tiny")
PUBLISHED: dict[str, dict[str, float]] = {          # FID_CLIP of 50,000 samples, 100 DDIM steps (arXiv 2303.18242, table 1)
    "ffhq_256": {"fid_clip": 3.87}, "churches_256": {"fid_clip": 10.36},
}
REFERENCE_SIZE = 64                                 # pixels a side of the training images
_SHARED: dict[str, Any] = {                         # what decoder and encoder have in common
    "channels": 3, "nf": 32, "img_size": REFERENCE_SIZE, "uno_res": 24, "uno_mults": [1, 2, 2], "depthwise_sparse": True,
    "kernel_size": 7, "blocks_per_level": [1, 1, 1], "attn_res": [6], "dropout_res": 0, "dropout": 0.0, "uno_base_nf": 32,
}
VARIANTS: dict[str, dict[str, Any]] = {             # what differs from the reference model; all but "main" have one budget
    "main": {"subsample": 4},
    "1x": {"subsample": 1},
    "2x": {"subsample": 2},
    "4x": {"subsample": 4},
    "8x": {"subsample": 8},
    "white-noise": {"subsample": 4, "gaussian_filter_std": 0.0},
    "halton": {"subsample": 4, "coordinates": "halton"},
    "full-kernel": {"subsample": 4, "depthwise_sparse": False},
}


def model_config(name: str) -> dict[str, Any]:
    """A published configuration (samb-t/infty-diff, configs/*.py), or "tiny" of the same structure, to try things."""
    if name not in MODELS:
        raise SpecError(f"infty-diff: no configuration '{name}'{did_you_mean(name, MODELS)}; there are: {', '.join(MODELS)}")
    size, base, mults, z, hidden = 256, 128, [1, 2, 4, 8, 8], 1024, 2048
    if name == "ffhq_128":
        size, base, mults, z = 128, 64, [1, 2, 4, 8], 256
    shared: dict[str, Any] = {
        "channels": 3, "nf": 64, "img_size": size, "num_conv_blocks": 3, "uno_res": size // 2, "uno_mults": mults,
        "depthwise_sparse": True, "kernel_size": 7, "blocks_per_level": [2] * len(mults), "attn_res": [16, 8],
        "dropout_res": 16, "dropout": 0.1, "uno_base_nf": base,
    }
    if name == "tiny":
        z, hidden = 8, 16
        shared |= {"nf": 8, "img_size": 16, "num_conv_blocks": 1, "uno_res": 8, "uno_mults": [1, 2], "uno_base_nf": 8,
                   "blocks_per_level": [1, 1], "attn_res": [4]}
    layers = 20 if name == "churches_256" else 4 if name == "tiny" else 10
    return {
        "compat": "official",
        "decoder": shared | {"time_emb_dim": 16 if name == "tiny" else 256, "z_dim": z},
        "encoder": shared | {"out_channels": z},
        "prior": {"channels": z, "hid_channels": hidden, "num_layers": layers, "time_emb_channels": 128},
        "diffusion": {"steps": 1000, "predicts": "noise", "gaussian_filter_std": 1.0},
    }


def variant_config(name: str) -> dict[str, Any]:
    """The configuration of a trained variant: decoder, encoder, prior, diffusion, and how it is trained."""
    if name not in VARIANTS:
        raise SpecError(f"infty-diff: no variant '{name}'{did_you_mean(name, VARIANTS)}; there are: {', '.join(VARIANTS)}")
    differs = VARIANTS[name]
    shared = _SHARED | {k: v for k, v in differs.items() if k in _SHARED}
    return {
        "compat": "fixed",
        "decoder": shared | {"num_conv_blocks": 2, "time_emb_dim": 64, "z_dim": 64},
        "encoder": shared | {"num_conv_blocks": 1, "out_channels": 64},
        "prior": {"channels": 64, "hid_channels": 384, "num_layers": 6, "time_emb_channels": 64},
        "diffusion": {"steps": 1000, "predicts": "velocity", "data_std": 0.4,
                      "gaussian_filter_std": differs.get("gaussian_filter_std", 0.5)},
        "sampling": {"prior_steps": 250},
        "training": {"variant": name, "subsample": differs["subsample"], "coordinates": differs.get("coordinates", "uniform")},
    }
