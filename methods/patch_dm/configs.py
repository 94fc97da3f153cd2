"""Published configurations of Patch-DM by name, in the structure of the official code, and what is reported for them."""

from __future__ import annotations

from typing import Any

from hibench.errors import SpecError, did_you_mean

__all__ = ["CONFIGS", "PUBLISHED", "config_of"]

PRIOR = {"num_channels": 512, "num_hid_channels": 2048, "num_layers": 10, "skip_layers": list(range(1, 10)),
         "num_time_emb_channels": 64, "num_time_layers": 2, "use_norm": True, "condition_bias": 1}


def published(image: int, rows: int = 0, cfg: bool = False, channels: int = 64, mult: tuple[int, ...] = (1, 2, 4, 8),
              patch: int = 64) -> dict[str, Any]:
    """With a convolutional encoder (rows = 0), or a table with a code for each of `rows` training images."""
    encoder = {"image_size": image, "model_channels": channels, "out_channels": 512, "num_res_blocks": 2,
               "attention_resolutions": [16], "channel_mult": [1, 2, 4, 8, 8], "resblock_updown": True, "dropout": 0.1}
    return {
        "patch_size": patch,
        "img_size": image,
        "cfg": cfg,
        "latent_znormalize": False,
        "beatgans_model_mean_type": "eps",
        "BeatGANsAutoencConfig": {
            "image_size": image, "in_channels": 3, "out_channels": 3, "model_channels": channels, "channel_mult": list(mult),
            "num_res_blocks": 2, "attention_resolutions": [16], "num_heads": 1, "resblock_updown": True, "dropout": 0.1,
            "embed_channels": 512, "enc_out_channels": 512, "semantic_enc": not rows, "data_num": rows or None,
            "semantic_path": "table" if rows else "", "latent_net_conf": dict(PRIOR)},
        "BeatGANsEncoderConfig": None if rows else encoder,
    }


def tiny() -> dict[str, Any]:
    """A hundred thousand parameters with every mechanism of ffhq256: for tests and for trying things out."""
    config = published(64, cfg=True, channels=16, mult=(1, 2), patch=16)
    config["BeatGANsAutoencConfig"] |= {"num_res_blocks": 1, "attention_resolutions": [32], "embed_channels": 32,
                                        "enc_out_channels": 32, "norm_groups": 4, "dropout": 0.0}
    config["BeatGANsAutoencConfig"]["latent_net_conf"] |= {"num_channels": 32, "num_hid_channels": 64, "num_layers": 3,
                                                           "skip_layers": [1, 2]}
    config["BeatGANsEncoderConfig"] |= {"model_channels": 16, "out_channels": 32, "num_res_blocks": 1, "channel_mult": [1, 2],
                                        "attention_resolutions": [32], "norm_groups": 4, "dropout": 0.0}
    return config


CONFIGS = ("ffhq256", "church256", "bedroom256", "nature1024", "lhq1024", "ffhq1024", "patch128", "patch256", "tiny")


def config_of(name: str) -> dict[str, Any]:
    """A configuration by name, freshly built; SpecError with the nearest name for an unknown one."""
    if name not in CONFIGS:
        raise SpecError(f"patch-dm: no configuration '{name}'{did_you_mean(name, CONFIGS)}; there are: {', '.join(CONFIGS)}")
    if name in ("ffhq256", "church256", "bedroom256"):
        return published(256, cfg=True)
    if name == "tiny":
        return tiny()
    if name.startswith("patch"):
        size = int(name[5:])
        mult = (1, 1, 2, 3, 4) if size == 128 else (1, 1, 2, 2, 4, 4)
        return published(1024, rows=21_443, channels=128, mult=mult, patch=size)
    return published(1024, rows={"nature1024": 21_443, "lhq1024": 90_000, "ffhq1024": 70_000}[name])


# FID, precision and recall at 50 steps as later papers quote arXiv 2308.01316: 256 px and 50 000 samples, or 1024x512 px.
PUBLISHED: dict[str, dict[str, float]] = {
    "bedroom256": {"steps": 50, "fid": 6.04, "precision": 0.56, "recall": 0.44},
    "church256": {"steps": 50, "fid": 5.49, "precision": 0.62, "recall": 0.53},
    "ffhq256": {"steps": 50, "fid": 10.02, "precision": 0.68, "recall": 0.44},
    "nature1024": {"steps": 50, "fid": 20.37},
}

# Its ablation on FFHQ as quoted by later papers: FID of 1000 images.
PUBLISHED_ABLATION = {"feature": 37.99, "pixel, fixed shift": 49.80, "pixel, random shift": 52.11, "no-code": 79.33,
                      "no-position": 48.82}
