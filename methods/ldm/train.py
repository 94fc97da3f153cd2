"""Train the reference LDM on scenes at 64 px: the VQ-f4 first stage, then the U-Net on its latents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hibench import training
from hibench.errors import MissingWeights, SpecError, did_you_mean
from hibench.references.scene_cache import about, rendered, say
from hibench.weights import sha256_of
from methods.diffusion import schedules
from methods.diffusion.ema import EMA
from methods.diffusion.losses import per_sample, q_sample, truncated_weight, velocity
from methods.ldm.adapter import REFERENCE
from methods.ldm.configs import FIRST_STAGES
from methods.ldm.train_first_stage import FIRST, RESOLUTION, batch_of, train_first_stage, train_named
from methods.ldm.variants import VARIANTS
from methods.nn.autoencoder import VQModel
from methods.nn.unet import UNet

__all__ = ["CONFIG", "INITS", "STAGES", "train"]

STAGES = ("first-stage", "unet")
INITS = ("none", "reference")
IMAGES = 50_000
CONFIG: dict[str, Any] = {  # official yaml structure; the T0 size of the mechanisms in the paper's ffhq256
    "linear_start": 0.0015,
    "linear_end": 0.0195,
    "timesteps": 1000,
    "parameterization": "v",
    "scale_factor": 1.0,
    "first_stage_config": {
        "params": {
            "embed_dim": 3,
            "n_embed": 4096,
            "ddconfig": {
                "double_z": False,
                "z_channels": 3,
                "resolution": RESOLUTION,
                "in_channels": 3,
                "out_ch": 3,
                "ch": 32,
                "ch_mult": [1, 2, 2],
                "num_res_blocks": 1,
                "attn_resolutions": [],
                "dropout": 0.0,
            },
        }
    },
    "unet_config": {
        "params": {
            "image_size": 16,
            "in_channels": 3,
            "out_channels": 3,
            "model_channels": 64,
            "num_res_blocks": 1,
            "attention_resolutions": [2, 4],
            "channel_mult": [1, 1, 2],
            "num_head_channels": 32,
        }
    },
}
_UNET: dict[str, Any] = {"steps": 11_000, "batch": 32, "rate": 1e-3, "refine_rate": 1e-3, "ema": 0.999}


def train(
    out: Path,
    *,
    stage: str | None = None,
    steps: int | None = None,
    images: int = IMAGES,
    device: str = "cpu",
    resume: bool = True,
    max_seconds: float | None = None,
    init: str = "none",
    variant: str | None = None,
    config: str | None = None,
    data: Path | None = None,
    first_stage: Path | None = None,
    batch: int | None = None,
    accumulate: int = 1,
    **_: Any,
) -> dict[str, Any]:
    """Train one stage, or both in turn; writes the *.safetensors, config.json and training-*.json to `out`.

    `variant` (class, text, super-resolution, inpainting) trains that conditional network from the shipped weights instead, or,
    by the name of a published first stage (kl-f4, vq-f8, ...), its small version.
    `config` trains a published configuration by its recipe (methods/ldm/recipes.py): on `data`, after `first_stage`.
    `init="reference"` takes the shipped first stage and starts from the shipped U-Net, whose training it continues.
    `steps` replaces the stage's own number. A stage stopped by `max_seconds` or Ctrl-C goes on at the next call.
    """
    if config is not None:
        from methods.ldm.recipes import train_config

        if stage is not None or init != "none" or variant is not None:
            raise SpecError(f"train ldm: config {config} has one stage, from nothing: drop --stage, --init, --variant")
        return train_config(out, config, data=data, first_stage=first_stage, steps=steps, batch=batch, accumulate=accumulate,
                            images=images, device=device, resume=resume, max_seconds=max_seconds)
    if variant in FIRST_STAGES or (variant is not None and stage == STAGES[0] and variant not in VARIANTS):
        if variant not in FIRST_STAGES:
            raise SpecError(f"train ldm: no first stage '{variant}'{did_you_mean(variant, FIRST_STAGES)}; there are: "
                            f"{', '.join(FIRST_STAGES)}")
        if stage not in (None, STAGES[0]) or init != "none":
            raise SpecError(f"train ldm: variant {variant} is a first stage and starts from the shipped one: drop --init, "
                            "or any --stage but first-stage")
        own = None if images == IMAGES else images
        return train_named(out, variant, steps=steps, images=own, device=device, resume=resume, max_seconds=max_seconds)
    if variant is not None:
        from methods.ldm.train_variant import train_variant

        if stage is not None or init != "none":
            raise SpecError(f"train ldm: variant {variant} trains in one stage from the shipped weights: drop --stage, --init")
        own = None if images == IMAGES else images
        return train_variant(out, variant, steps=steps, images=own, device=device, resume=resume, max_seconds=max_seconds)
    if stage not in (None, *STAGES):
        raise SpecError(f"train ldm: stage '{stage}' is not known; it is one of: {', '.join(STAGES)}")
    if init not in INITS:
        raise SpecError(f"train ldm: init '{init}' is not known; it is one of: {', '.join(INITS)}")
    if init == "reference" and stage != "unet":
        raise SpecError("train ldm: init 'reference' continues the U-Net alone: add --stage unet")
    out.mkdir(parents=True, exist_ok=True)
    if init == "reference":
        for name in ("first_stage.safetensors", "config.json"):
            (out / name).write_bytes((REFERENCE / name).read_bytes())
    done: dict[str, Any] = {}
    more: dict[str, Any] = {"steps": steps, "images": images, "device": device, "resume": resume, "max_seconds": max_seconds}
    for name in STAGES:
        if stage in (None, name):
            if name == STAGES[0]:
                done[name] = train_first_stage(out, CONFIG["first_stage_config"], FIRST, config=CONFIG, **more)
            else:
                done[name] = _train_unet(out, refine=init == "reference", **more)
            if not done[name]["finished"]:
                break
    return done


def _train_unet(out: Path, *, steps: int | None, images: int, device: str, resume: bool, max_seconds: float | None,
                refine: bool = False) -> dict[str, Any]:
    """Velocity prediction on latents encoded once; the moving average of the weights is what ships.

    v (Salimans & Ho 2022) instead of the noise: at high noise, where an image's colours and layout are decided, the noise says
    nothing about them. The error of x0 counts min(SNR + 1, 6) times (the weights of v, truncated as in Hang et al. 2023).
    With `refine` the shipped U-Net goes on learning.
    """
    o = _UNET
    steps = steps or int(o["steps"])
    if not (out / "first_stage.safetensors").exists():
        raise MissingWeights(
            f"train ldm: no first stage at {out}; train it with: hibench train ldm --stage first-stage --out {out}"
        )
    config = json.loads((out / "config.json").read_text())
    latents = _latents(out, config, images, device)
    torch.manual_seed(1)
    unet = UNet.from_config(config["unet_config"]["params"]).to(device).train()
    if refine:
        unet.load_state_dict({k: v.float() for k, v in load_file(REFERENCE / "unet.safetensors").items()})
    ema = EMA(unet, decay=o["ema"])
    optimizer = torch.optim.AdamW(unet.parameters(), lr=o["rate"])
    betas = schedules.sqrt_linear_betas(config["linear_start"], config["linear_end"], config["timesteps"])
    cumprod = torch.from_numpy(schedules.alphas_cumprod(betas)).float().to(device)
    weight = truncated_weight(cumprod)

    def step(k: int) -> dict[str, Tensor]:
        draw = training.step_generator(k)
        z = latents[training.batch_seeds(k, int(o["batch"]), images, seed=1)].to(device).float()
        t = torch.randint(config["timesteps"], (len(z),), generator=draw).to(device)
        noise = torch.randn(z.shape, generator=draw).to(device)
        training.set_rate(optimizer, training.cosine_rate(k, steps, o["refine_rate" if refine else "rate"]))
        with training.autocast(device, cpu=True):
            prediction = unet(q_sample(z, t, noise, cumprod), t)
        loss = (weight[t] * per_sample(prediction, velocity(z, t, noise, cumprod))).mean()
        training.descend(loss, optimizer, [unet], [ema])
        return {"loss": loss}

    result = training.fit(
        "ldm-unet",
        step,
        {"unet": unet, "ema": ema, "optimizer": optimizer},
        steps=steps,
        out=out,
        resume=resume,
        max_seconds=max_seconds,
    )
    ema.copy_to(unet)
    save_file(training.half_state(unet.state_dict()), out / "unet.safetensors")
    training.write_training_json(
        out / "training-unet.json",
        result,
        device=device,
        batch=o["batch"],
        data=about(images, RESOLUTION),
        parameters=sum(p.numel() for p in unet.parameters()),
        ema=o["ema"],
        **({"continues": json.loads((REFERENCE / "training-unet.json").read_text())} if refine else {}),
    )
    return result


def _latents(out: Path, config: dict[str, Any], images: int, device: str) -> Tensor:
    """Scaled latents before quantisation of every training image, float16 [images, 3, 16, 16]; kept in `out` for resuming."""
    kept = out / f"latents-{images}-{sha256_of(out / 'first_stage.safetensors')[:12]}.ckpt"
    if kept.exists():
        return load_file(kept)["latents"]
    params = config["first_stage_config"]["params"]
    model = VQModel(params["ddconfig"], params["n_embed"], params["embed_dim"])
    model.load_state_dict({k: v.float() for k, v in load_file(out / "first_stage.safetensors").items()})
    model.to(device).eval()
    data = rendered(images, RESOLUTION, progress=say)
    latents = torch.empty(images, params["embed_dim"], RESOLUTION // model.factor, RESOLUTION // model.factor, dtype=torch.half)
    with torch.inference_mode():
        for i in range(0, images, 20):
            index = torch.arange(i, min(i + 20, images))
            latents[index] = (model.encode(batch_of(data, index, device)) * config["scale_factor"]).half().cpu()
    save_file({"latents": latents}, kept)
    return latents
