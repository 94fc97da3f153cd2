"""Train the reference LDM on scenes at 64 px: the VQ-f4 first stage, then the U-Net on its latents."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hibench import training
from hibench.adapter import to_uint8
from hibench.errors import MissingWeights, SpecError
from hibench.references import scenes
from hibench.references.scene_cache import TRAINING_SEED, rendered, say
from methods.diffusion import schedules
from methods.diffusion.ema import EMA
from methods.diffusion.losses import per_sample, q_sample, truncated_weight, velocity
from methods.ldm.adapter import REFERENCE
from methods.nn.autoencoder import VQModel
from methods.nn.discriminator import NLayerDiscriminator, adaptive_weight, gradient_l1, hinge_loss
from methods.nn.unet import UNet

__all__ = ["CONFIG", "INITS", "STAGES", "train"]

STAGES = ("first-stage", "unet")
INITS = ("none", "reference")
IMAGES, RESOLUTION = 50_000, 64
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
_FIRST: dict[str, Any] = {
    "steps": 6000, "batch": 12, "crop": 32, "whole_from": 0.7, "rate": 1e-3, "guide_until": 400, "codes_from": 300,
    "revive_until": 0.5, "gan_from": 0.6, "gan_weight": 0.2,
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

    `variant` (class, super-resolution, inpainting) trains that conditional network from the shipped weights instead.
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
    for name, run in zip(STAGES, (_train_first_stage, partial(_train_unet, refine=init == "reference"))):
        if stage in (None, name):
            done[name] = run(out, steps, images, device, resume, max_seconds)
            if not done[name]["finished"]:
                break
    return done


def _pixels(images: int) -> Any:
    return rendered(images, RESOLUTION, progress=say)


def _batch(data: Any, index: Tensor, device: str) -> Tensor:
    return torch.from_numpy(data[index.numpy()]).to(device).float() / 127.5 - 1


def _crops(images: Tensor, side: int, draw: torch.Generator) -> Tensor:
    """One random square crop of each image [B, 3, H, W]."""
    if side == images.shape[-1]:
        return images
    corners = torch.randint(images.shape[-1] - side + 1, (len(images), 2), generator=draw).tolist()
    return torch.stack([x[:, i : i + side, j : j + side] for x, (i, j) in zip(images, corners)])


class _Usage(nn.Module):
    """How often each code was used lately, float [n_embed]."""

    def __init__(self, codes: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.ones(codes))

    def update(self, indices: Tensor) -> None:
        self.count.mul_(0.99).add_(torch.bincount(indices.flatten(), minlength=len(self.count)).to(self.count))


def _train_first_stage(
    out: Path, steps: int | None, images: int, device: str, resume: bool, max_seconds: float | None
) -> dict[str, Any]:
    """3·L1 + image gradients at three scales + codebook, and late the adaptive hinge GAN of VQGAN.

    Most steps see crops (the network is convolutional), the last ones whole images, to which the middle attention adapts. The
    first steps also pull the latents towards a thumbnail of the image, so that colour is kept from the start.
    """
    o = _FIRST
    steps = steps or o["steps"]
    data = _pixels(images)
    torch.manual_seed(0)
    params = CONFIG["first_stage_config"]["params"]
    model = VQModel(params["ddconfig"], params["n_embed"], params["embed_dim"]).to(device)
    disc = NLayerDiscriminator(ndf=32, n_layers=2).to(device)
    usage = _Usage(params["n_embed"]).to(device)
    opt_g = torch.optim.Adam(model.parameters(), lr=o["rate"], betas=(0.5, 0.9))
    opt_d = torch.optim.Adam(disc.parameters(), lr=o["rate"] / 3, betas=(0.5, 0.9))

    def batch_of(k: int, count: int, side: int) -> Tensor:
        return _crops(_batch(data, training.batch_seeds(k, count, images), device), side, training.step_generator(k))

    def step(k: int) -> dict[str, Tensor | float]:
        whole = k >= o["whole_from"] * steps
        batch = batch_of(k, o["batch"] // 3, RESOLUTION) if whole else batch_of(k, o["batch"], o["crop"])
        training.set_rate(opt_g, training.cosine_rate(k, steps, o["rate"]))
        training.set_rate(opt_d, training.cosine_rate(k, steps, o["rate"] / 3))
        losses: dict[str, Tensor | float] = {}
        with training.autocast(device):
            if k == o["codes_from"]:
                with torch.no_grad():
                    model.quantize.init_from(model.encode(batch_of(k, 20 * o["batch"], o["crop"])), training.step_generator(k))
            z = model.encode(batch).float()
            if k < o["codes_from"]:
                decoded, quant_loss = model.decode(z, force_not_quantize=True), z.new_zeros(())
            else:
                z_q, quant_loss, indices = model.quantize(z)
                decoded = model.decoder(model.post_quant_conv(z_q))
                usage.update(indices)
        decoded = decoded.float()
        l1 = F.l1_loss(decoded, batch)
        reconstruction = 3 * l1 + gradient_l1(decoded, batch)
        loss = reconstruction + quant_loss
        losses |= {"l1": l1, "codebook": quant_loss}
        if k < o["guide_until"]:
            loss = loss + F.mse_loss(z, 2.5 * F.avg_pool2d(batch, model.factor))
        gan = k >= o["gan_from"] * steps
        if gan:
            adversarial = -disc(decoded).mean()
            weight = adaptive_weight(reconstruction, adversarial, model.last_layer)
            loss = loss + o["gan_weight"] * weight * adversarial
        opt_g.zero_grad(set_to_none=True)
        loss.backward()
        opt_g.step()
        if gan:
            d_loss = hinge_loss(disc(batch), disc(decoded.detach()))
            opt_d.zero_grad(set_to_none=True)
            d_loss.backward()
            opt_d.step()
            losses["disc"] = d_loss
        if o["codes_from"] < k < o["revive_until"] * steps and k % 100 == 0:
            model.quantize.revive(z.detach(), usage.count > 0.5, training.step_generator(k))
            usage.count.clamp_(min=1.0)
        return losses

    result = training.fit(
        "ldm-first-stage",
        step,
        {"model": model, "disc": disc, "usage": usage, "opt_g": opt_g, "opt_d": opt_d},
        steps=steps,
        out=out,
        resume=resume,
        max_seconds=max_seconds,
    )
    with torch.no_grad():
        seen = range(0, min(500, images - 50), 50)
        z = torch.cat([model.encode(_batch(data, torch.arange(i, i + 50), device)) for i in seen])
    centre(model, z.mean((0, 2, 3)))
    save_file(_half(model.state_dict()), out / "first_stage.safetensors")
    config = {**CONFIG, "scale_factor": round(1.0 / z.std().item(), 6)}
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    training.write_training_json(
        out / "training-first-stage.json",
        result,
        device=device,
        batch=o["batch"],
        data=_data(images),
        parameters=sum(p.numel() for p in model.parameters()),
        held_out=_reconstruction(model, device),
    )
    return result


@torch.no_grad()
def centre(model: VQModel, mean: Tensor) -> None:
    """Move the latents by -mean [C] and everything after them back: the same autoencoder, with latents around zero."""
    model.quant_conv.bias -= mean
    model.quantize.embedding.weight -= mean
    model.post_quant_conv.bias += model.post_quant_conv.weight[:, :, 0, 0] @ mean


def _train_unet(
    out: Path, steps: int | None, images: int, device: str, resume: bool, max_seconds: float | None, refine: bool = False
) -> dict[str, Any]:
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
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        ema.update()
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
    save_file(_half(unet.state_dict()), out / "unet.safetensors")
    training.write_training_json(
        out / "training-unet.json",
        result,
        device=device,
        batch=o["batch"],
        data=_data(images),
        parameters=sum(p.numel() for p in unet.parameters()),
        ema=o["ema"],
        **({"continues": json.loads((REFERENCE / "training-unet.json").read_text())} if refine else {}),
    )
    return result


def _latents(out: Path, config: dict[str, Any], images: int, device: str) -> Tensor:
    """Scaled latents before quantisation of every training image, float16 [images, 3, 16, 16]; kept in `out` for resuming."""
    kept = out / f"latents-{images}-{hashlib.sha256((out / 'first_stage.safetensors').read_bytes()).hexdigest()[:12]}.ckpt"
    if kept.exists():
        return load_file(kept)["latents"]
    params = config["first_stage_config"]["params"]
    model = VQModel(params["ddconfig"], params["n_embed"], params["embed_dim"])
    model.load_state_dict({k: v.float() for k, v in load_file(out / "first_stage.safetensors").items()})
    model.to(device).eval()
    data = _pixels(images)
    latents = torch.empty(images, params["embed_dim"], RESOLUTION // model.factor, RESOLUTION // model.factor, dtype=torch.half)
    with torch.inference_mode():
        for i in range(0, images, 20):
            index = torch.arange(i, min(i + 20, images))
            latents[index] = (model.encode(_batch(data, index, device)) * config["scale_factor"]).half().cpu()
    save_file({"latents": latents}, kept)
    return latents


def _reconstruction(model: VQModel, device: str, count: int = 200) -> dict[str, float]:
    """PSNR of uint8 reconstructions of held-out scenes, and the share of codes they use."""
    from hibench.scenes_clip.train import HELD_OUT_SEED

    pixels = scenes.render(range(HELD_OUT_SEED, HELD_OUT_SEED + count), RESOLUTION)
    with torch.inference_mode():
        z = torch.cat([model.encode(p.to(device).float() / 127.5 - 1) for p in pixels.split(50)])
        decoded = torch.cat([to_uint8(model.decode(part)).cpu() for part in z.split(50)])
        used = model.quantize.indices(z).unique().numel() / model.quantize.embedding.num_embeddings
    mse = (decoded.float() - pixels.float()).square().flatten(1).mean(1)
    return {"scenes": count, "psnr_db": (10 * (255**2 / mse).log10()).mean().item(), "codes_used": used}


def _half(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.detach().half().cpu().contiguous() for k, v in state.items()}


def _data(images: int) -> str:
    return f"scenes v{scenes.VERSION}, seeds {TRAINING_SEED}+{images}, {RESOLUTION} px"
