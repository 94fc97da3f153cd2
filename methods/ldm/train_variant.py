"""Training of a conditional LDM from the reference weights: the first stage stays, the U-Net learns to follow its condition."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hibench import training
from hibench.errors import MissingWeights
from hibench.references import scenes
from hibench.references.scene_cache import TRAINING_SEED
from methods.diffusion import schedules
from methods.diffusion.ema import EMA
from methods.diffusion.losses import per_sample, q_sample, truncated_weight, velocity
from methods.ldm.adapter import REFERENCE
from methods.ldm.checkpoint import load_folder
from methods.ldm.model import ClassEmbedder, LatentDiffusion, empty_model
from methods.ldm.pool import Pool, make_pool
from methods.ldm.text import TextEncoder
from methods.ldm.variants import CLASSES, TOKENS, check_variant, variant_config, warm_start
from methods.ldm.words import Tokenizer, scene_vocabulary

__all__ = ["DROP", "train_variant"]

DROP = 0.1                                          # share of labels that become the class "none", of captions that are emptied
EMA_DECAY = 0.998


def train_variant(out: Path, variant: str, *, steps: int | None = None, images: int | None = None, device: str = "cpu",
                  resume: bool = True, max_seconds: float | None = None, base: Path = REFERENCE) -> dict[str, Any]:
    """Train a variant from the unconditional model in `base`; writes weights, config.json and training.json to `out`.

    Velocity prediction with the loss weights of the reference. None = the variant's own number of steps and images.
    """
    plan = check_variant(variant)
    steps, images = steps or plan.steps, images or plan.images
    for name in ("config.json", "first_stage.safetensors", "unet.safetensors"):
        if not (base / name).exists():
            raise MissingWeights(f"train ldm: variant {variant} starts from {base / name}, which is not there; "
                                 f"train it with: hibench train ldm --out {base}")
    out.mkdir(parents=True, exist_ok=True)
    config = json.loads((base / "config.json").read_text())
    pool = _pool(out, variant, config, base, images, device)
    config = variant_config(variant, config)
    torch.manual_seed(2)
    model = LatentDiffusion(config)
    fresh = warm_start(model.unet, {k: v.float() for k, v in load_file(base / "unet.safetensors").items()})
    network = nn.ModuleDict({"unet": model.unet})
    if model.cond_stage_model is not None:
        network["cond"] = model.cond_stage_model
    network.to(device).train()
    result, ema = _fit(network, pool, config, variant, steps, images, out, device, resume, max_seconds)
    ema.copy_to(network)
    for name, module in network.items():
        save_file(training.half_state(module.state_dict()), out / f"{name}.safetensors")
    if variant == "text":
        (out / "vocab.txt").write_text("\n".join(scene_vocabulary()) + "\n")
    (out / "first_stage.safetensors").write_bytes((base / "first_stage.safetensors").read_bytes())
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    training.write_training_json(
        out / "training.json", result, device=device, batch=plan.batch, rate=plan.rate, ema=EMA_DECAY, variant=variant,
        data=f"scenes v{scenes.VERSION}, {images} images from seed {TRAINING_SEED} on",
        parameters=sum(p.numel() for p in network.parameters()), new_tensors=len(fresh),
        starts_from="the reference U-Net and first stage")
    return result


def _fit(network: nn.ModuleDict, pool: Pool, config: dict[str, Any], variant: str, steps: int, images: int, out: Path,
         device: str, resume: bool, max_seconds: float | None) -> tuple[dict[str, Any], EMA]:
    """The loop: noise, condition, velocity; labels are dropped at random so that guidance has something to start from."""
    plan = check_variant(variant)
    unet, embed = network["unet"], dict(network.items()).get("cond")
    ema, optimizer = EMA(network, decay=EMA_DECAY), torch.optim.AdamW(network.parameters(), lr=plan.rate)
    betas = schedules.sqrt_linear_betas(config["linear_start"], config["linear_end"], config["timesteps"])
    cumprod = torch.from_numpy(schedules.alphas_cumprod(betas)).float().to(device)
    weight = truncated_weight(cumprod)
    empty = Tokenizer(scene_vocabulary()).encode([""], TOKENS)

    def step(k: int) -> dict[str, Tensor]:
        draw, index = training.step_generator(k, seed=2), training.batch_seeds(k, plan.batch, images, seed=2)
        z, concat = (part[index].to(device).float() for part in (pool.latents, pool.concat))
        t = torch.randint(config["timesteps"], (len(z),), generator=draw).to(device)
        noise = torch.randn(z.shape, generator=draw).to(device)
        context = None
        if isinstance(embed, ClassEmbedder):
            dropped = torch.rand(len(z), generator=draw) < DROP
            context = embed(torch.where(dropped, CLASSES, pool.labels[index]).to(device))
        elif isinstance(embed, TextEncoder):
            dropped = torch.rand(len(z), 1, generator=draw) < DROP
            words = torch.where(dropped, empty, pool.labels[index]).to(device)
        training.set_rate(optimizer, training.cosine_rate(k, steps, plan.rate, warmup=100))
        with training.autocast(device, cpu=True):
            context = embed(words) if isinstance(embed, TextEncoder) else context
            prediction = unet(q_sample(z, t, noise, cumprod), t, context=context, concat=concat)
        loss = (weight[t] * per_sample(prediction, velocity(z, t, noise, cumprod))).mean()
        training.descend(loss, optimizer, [network], [ema])
        return {"loss": loss}

    result = training.fit(f"ldm-{variant}", step, {"network": network, "ema": ema, "optimizer": optimizer}, steps=steps,
                          out=out, resume=resume, max_seconds=max_seconds)
    return result, ema


def _pool(out: Path, variant: str, config: dict[str, Any], base: Path, images: int, device: str) -> Pool:
    """The training pairs, encoded by the first stage of `base`."""
    model = empty_model(config, device)
    load_folder(model, base)
    return make_pool(variant, lambda x: model.encode(x.to(device)).cpu(), model.first_stage_model.factor, images, out,
                     (base / "first_stage.safetensors").read_bytes())
