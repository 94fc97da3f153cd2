"""Published configurations of LDM by name: first stages, complete models, and what the paper reports for them."""

from __future__ import annotations

from typing import Any

from hibench.errors import SpecError, did_you_mean

__all__ = ["FIRST_STAGES", "MODELS", "PUBLISHED", "PUBLISHED_FIRST_STAGES", "TEXT_MODELS", "first_stage_config", "model_params"]

VQ, KL = "ldm.models.autoencoder.VQModelInterface", "ldm.models.autoencoder.AutoencoderKL"
UNET = "ldm.modules.diffusionmodules.openaimodel.UNetModel"
ENCODERS = "ldm.modules.encoders.modules."

# name: (latent channels, channel multipliers, attention at these sizes of a 256 px image, codes or None for KL, attention type)
FIRST_STAGES: dict[str, tuple[int, list[int], list[int], int | None, str]] = {
    "vq-f4": (3, [1, 2, 4], [], 8192, "vanilla"),
    "vq-f4-noattn": (3, [1, 2, 4], [], 8192, "none"),
    "vq-f8": (4, [1, 2, 2, 4], [32], 16384, "vanilla"),
    "vq-f8-n256": (4, [1, 2, 2, 4], [32], 256, "vanilla"),
    "vq-f16": (8, [1, 1, 2, 2, 4], [16], 16384, "vanilla"),
    "kl-f4": (3, [1, 2, 4], [], None, "vanilla"),
    "kl-f8": (4, [1, 2, 4, 4], [], None, "vanilla"),
    "kl-f16": (16, [1, 1, 2, 2, 4], [16], None, "vanilla"),
    "kl-f32": (64, [1, 1, 2, 2, 4, 4], [16, 8], None, "vanilla"),
}

# Table 8 of arXiv 2112.10752v2: R-FID, PSNR in dB, PSIM (LPIPS-VGG) and SSIM over the 50 000 images of ImageNet-val at 256 px.
PUBLISHED_FIRST_STAGES: dict[str, dict[str, float]] = {
    "vq-f4": {"rfid": 0.58, "psnr": 27.43, "psim": 0.53, "ssim": 0.82},
    "vq-f4-noattn": {"rfid": 1.06, "psnr": 25.21, "psim": 0.72, "ssim": 0.76},
    "vq-f8": {"rfid": 1.14, "psnr": 23.07, "psim": 1.17, "ssim": 0.65},
    "vq-f8-n256": {"rfid": 1.49, "psnr": 22.35, "psim": 1.26, "ssim": 0.62},
    "vq-f16": {"rfid": 5.15, "psnr": 20.83, "psim": 1.73, "ssim": 0.54},
    "kl-f4": {"rfid": 0.27, "psnr": 27.53, "psim": 0.55, "ssim": 0.82},
    "kl-f8": {"rfid": 0.90, "psnr": 24.19, "psim": 1.02, "ssim": 0.69},
    "kl-f16": {"rfid": 0.87, "psnr": 24.08, "psim": 1.07, "ssim": 0.68},
    "kl-f32": {"rfid": 2.04, "psnr": 22.27, "psim": 1.41, "ssim": 0.61},
}


def first_stage_config(name: str) -> dict[str, Any]:
    """The official `first_stage_config` of a published autoencoder (latent-diffusion, models/first_stage_models)."""
    if name not in FIRST_STAGES:
        raise SpecError(f"ldm: no first stage '{name}'{did_you_mean(name, FIRST_STAGES)}; there are: {', '.join(FIRST_STAGES)}")
    z, mult, attention, codes, attn_type = FIRST_STAGES[name]
    ddconfig = {"double_z": codes is None, "z_channels": z, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
                "ch_mult": mult, "num_res_blocks": 2, "attn_resolutions": attention, "dropout": 0.0, "attn_type": attn_type}
    params: dict[str, Any] = {"embed_dim": z, "ddconfig": ddconfig}
    if codes is not None:
        params["n_embed"] = codes
    return {"target": VQ if codes is not None else KL, "params": params}


def model(first: str, size: int, z: int, channels: int, mult: list[int], attention: list[int], *, end: float = 0.0195,
          start: float = 0.0015, loss: str = "l2", extra_in: int = 0, classes: int = 0, class_dim: int = 512,
          heads: int | None = None, scale_by_std: bool = False, text: tuple[int, int] | None = None,
          scale_factor: float = 1.0, **unet: Any) -> dict[str, Any]:
    """`model.params` in the structure of the official yaml files; without `heads`, 32 channels per head.

    `text`: width and depth of the text encoder.
    """
    params: dict[str, Any] = {
        "image_size": size, "in_channels": z + extra_in, "out_channels": z, "model_channels": channels, "num_res_blocks": 2,
        "attention_resolutions": attention, "channel_mult": mult, **unet}
    params.update({"num_head_channels": 32} if heads is None else {"num_heads": heads})
    condition: Any = "__is_unconditional__"
    if classes:
        params |= {"use_spatial_transformer": True, "transformer_depth": 1, "context_dim": class_dim}
        condition = {"target": f"{ENCODERS}ClassEmbedder",
                     "params": {"n_classes": classes, "embed_dim": class_dim, "key": "class_label"}}
    if text is not None:
        params |= {"use_spatial_transformer": True, "transformer_depth": 1, "context_dim": text[0]}
        condition = {"target": f"{ENCODERS}BERTEmbedder", "params": {"n_embed": text[0], "n_layer": text[1]}}
    return {"linear_start": start, "linear_end": end, "timesteps": 1000, "loss_type": loss, "scale_by_std": scale_by_std,
            "unconditional_class": 1000 if classes == 1001 else None,
            "unet_config": {"target": UNET, "params": params}, "first_stage_config": first_stage_config(first),
            "cond_stage_config": condition} | ({} if scale_factor == 1.0 else {"scale_factor": scale_factor})


def semantic(size: int) -> dict[str, Any]:
    """Semantic synthesis at a latent size of 64 (256 px) or 128 (512 px): the rescaled label map is concatenated."""
    params = model("vq-f4", size, 3, 128, [1, 4, 8], [32, 16, 8], end=0.0205, loss="l1", extra_in=3, heads=8)
    rescaler = {"n_stages": 2, "in_channels": 182, "out_channels": 3}
    return params | {"cond_stage_config": {"target": f"{ENCODERS}SpatialRescaler", "params": rescaler}}


def tiny() -> dict[str, Any]:
    """A few hundred thousand parameters with every mechanism of ffhq256: for tests and for trying things out."""
    params = model("vq-f4", 16, 3, 32, [1, 2], [2])
    params["unet_config"]["params"]["num_res_blocks"] = 1
    first = params["first_stage_config"]["params"]
    first["n_embed"] = 256
    first["ddconfig"] |= {"ch": 32, "ch_mult": [1, 1, 2], "num_res_blocks": 1, "resolution": 64}
    return params


def models() -> dict[str, dict[str, Any]]:
    """Every configuration by name, freshly built."""
    unconditional = ("vq-f4", 64, 3, 224, [1, 2, 3, 4], [8, 4, 2])
    return {
        "ffhq256": model(*unconditional),
        "celebahq256": model(*unconditional),
        "lsun_beds256": model(*unconditional),
        "lsun_churches256": model("kl-f8", 32, 4, 192, [1, 2, 2, 4, 4], [1, 2, 4, 8], end=0.0155, loss="l1", heads=8,
                                  scale_by_std=True, use_scale_shift_norm=True, resblock_updown=True),
        "cin256": model("vq-f8", 32, 4, 256, [1, 2, 4], [4, 2, 1], classes=1000),
        "cin256-v2": model("vq-f4", 64, 3, 192, [1, 2, 3, 5], [8, 4, 2], classes=1001, heads=1),
        "text2img256": model("vq-f4", 64, 3, 192, [1, 2, 3, 5], [8, 4, 2], text=(640, 32)),
        "txt2img-1p4B": model("kl-f8", 32, 4, 320, [1, 2, 4, 4], [4, 2, 1], start=0.00085, end=0.012, heads=8, text=(1280, 32),
                              scale_factor=0.18215, legacy=False),
        "bsr_sr": model("vq-f4", 64, 3, 160, [1, 2, 2, 4], [16, 8], end=0.0155, extra_in=3),
        "inpainting_big": model("vq-f4-noattn", 64, 3, 256, [1, 2, 3, 4], [8, 4, 2], end=0.0205, loss="l1", extra_in=4, heads=8,
                                resblock_updown=True),
        "semantic_synthesis256": semantic(64),
        "semantic_synthesis512": semantic(128),
        "tiny": tiny(),
    }


MODELS = ("ffhq256", "celebahq256", "lsun_beds256", "lsun_churches256", "cin256", "cin256-v2", "text2img256", "txt2img-1p4B",
          "bsr_sr", "inpainting_big", "semantic_synthesis256", "semantic_synthesis512", "tiny")
TEXT_MODELS = ("text2img256", "txt2img-1p4B")


def model_params(name: str) -> dict[str, Any]:
    """The official `model.params` of a published configuration; SpecError with the nearest name for an unknown one."""
    if name not in MODELS:
        raise SpecError(f"ldm: no configuration '{name}'{did_you_mean(name, MODELS)}; there are: {', '.join(MODELS)}")
    return models()[name]


# Tables 1 and 10 of arXiv 2112.10752v2: FID, precision, recall over 50 000 samples against the whole training set, 256 px
# (FID by torch-fidelity, precision and recall by ADM's evaluator, App. E.3).
PUBLISHED: dict[str, dict[str, float]] = {
    "celebahq256": {"steps": 500, "fid": 5.11, "precision": 0.72, "recall": 0.49},
    "ffhq256": {"steps": 200, "fid": 4.98, "precision": 0.73, "recall": 0.50},
    "lsun_churches256": {"steps": 200, "fid": 4.02, "precision": 0.64, "recall": 0.52},
    "lsun_beds256": {"steps": 200, "fid": 2.95, "precision": 0.66, "recall": 0.48},
    "cin256-v2": {"steps": 250, "guidance": 1.5, "fid": 3.60, "is": 247.67, "precision": 0.87, "recall": 0.48},
    "cin256": {"steps": 250, "fid": 15.51, "is": 79.03, "precision": 0.65, "recall": 0.63},
}
