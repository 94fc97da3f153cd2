"""Train the reference Patch-DM on scenes at 64 px: the U-Net with its semantic encoder, then the prior over its codes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hibench import training
from hibench.adapter import from_uint8
from hibench.errors import MissingWeights, SpecError, did_you_mean
from hibench.references import scenes
from hibench.references.scene_cache import about, rendered, say
from hibench.weights import sha256_of
from methods.diffusion.ema import EMA
from methods.diffusion.losses import per_sample, q_sample, truncated_weight, velocity
from methods.ldm.checkpoint import fill
from methods.patch_dm.encoder import CodeTable
from methods.patch_dm.model import PatchDM, build, diffusion_alphas_cumprod
from methods.patch_dm.prior import LatentPrior, prior_alphas_cumprod
from methods.patch_dm.variants import REFERENCE, VARIANTS, Variant
from methods.patch_dm.window import cut, noised, predict, window_losses

__all__ = ["CONFIG", "STAGES", "train", "variant_config", "window_loss"]

STAGES = ("unet", "prior")
IMAGES, RESOLUTION, PATCH, CODE = 25_000, 64, 16, 128
CONFIG: dict[str, Any] = {  # official field names; ours: `input_size` and `pool_size`, see SemanticEncoder
    "patch_size": PATCH,
    "img_size": RESOLUTION,
    "cfg": True,
    "guidance": 4.0,                  # 1.5 in the official code
    "beatgans_model_mean_type": "v",  # "eps" in the official configurations
    "beta_scheduler": "cosine",       # "linear" there: four of ten steps then see nothing but noise
    "latent_znormalize": True,
    "BeatGANsAutoencConfig": {
        "image_size": RESOLUTION,
        "in_channels": 3,
        "out_channels": 3,
        "model_channels": 32,
        "channel_mult": [1, 1, 2],
        "num_res_blocks": 1,
        "attention_resolutions": [16],
        "num_heads": 1,
        "resblock_updown": True,
        "dropout": 0.0,
        "embed_channels": CODE,
        "norm_groups": 8,
        "enc_out_channels": CODE,
        "semantic_enc": True,
        "latent_net_conf": {
            "num_channels": CODE,
            "num_hid_channels": 512,
            "num_layers": 6,
            "skip_layers": [1, 2, 3, 4, 5],
            "num_time_emb_channels": 64,
            "num_time_layers": 2,
            "use_norm": True,
            "condition_bias": 1,
        },
    },
    "BeatGANsEncoderConfig": {
        "image_size": 32,
        "in_channels": 3,
        "model_channels": 32,
        "out_channels": CODE,
        "num_res_blocks": 1,
        "attention_resolutions": [16],
        "channel_mult": [1, 2, 2, 2],
        "resblock_updown": True,
        "dropout": 0.0,
        "input_size": 32,
        "pool_size": 4,
        "norm_groups": 8,
    },
}


_UNET: dict[str, Any] = {"batch": 6, "rate": 6e-4, "warmup": 100, "drop_code": 0.1, "drop_position": 0.5, "most": 16.0,
                         "coarse": {4: 4.0, PATCH: 32.0}, "coarse_until": 0.3, "thumbnail": 8}
_PRIOR: dict[str, Any] = {"batch": 256, "rate": 1e-3, "weight_decay": 0.01}


def train(
    out: Path,
    *,
    stage: str | None = None,
    variant: str = "main",
    steps: int | None = None,
    init: str | None = None,
    images: int = IMAGES,
    device: str = "cpu",
    resume: bool = True,
    max_seconds: float | None = None,
) -> dict[str, Any]:
    """Train one stage of a variant, or both in turn.

    Writes to `out` unet.safetensors (with the semantic encoder or the table of codes), prior.safetensors (with the statistics
    of codes), config.json and training-*.json. `steps` replaces the stage's own number. `init` ("reference" or a folder) starts
    the U-Net from the weights there that fit by name and shape. A stage stopped by `max_seconds` or Ctrl-C goes on next time.
    """
    if stage not in (None, *STAGES):
        raise SpecError(f"train patch-dm: stage '{stage}' is not known; it is one of: {', '.join(STAGES)}")
    if variant not in VARIANTS:
        raise SpecError(f"train patch-dm: no variant '{variant}'{did_you_mean(variant, VARIANTS)}; there are: "
                        f"{', '.join(VARIANTS)} (the collage of pixels samples with the weights of 'none')")
    out.mkdir(parents=True, exist_ok=True)
    stages: dict[str, Callable[..., dict[str, Any]]] = {"unet": partial(_train_unet, init=init), "prior": _train_prior}
    if not VARIANTS[variant].code:
        if stage == "prior":
            raise SpecError(f"train patch-dm: variant '{variant}' has no code and so no prior; leave out stage")
        del stages["prior"]
    done: dict[str, Any] = {}
    for name, run in stages.items():
        if stage in (None, name):
            done[name] = run(out, variant, steps, images, device, resume, max_seconds)
            if not done[name]["finished"]:
                break
    return done


def variant_config(name: str, images: int = IMAGES) -> dict[str, Any]:
    """CONFIG as a variant needs it: without code, there is neither encoder nor prior; a table has a row per image."""
    variant = VARIANTS[name]
    config = json.loads(json.dumps(CONFIG)) | {"variant": name, "position": variant.position}
    unet = config["BeatGANsAutoencConfig"]
    if not variant.code:
        unet |= {"semantic_enc": False, "latent_net_conf": None}
    if variant.table:
        unet |= {"semantic_enc": False, "semantic_path": "table", "data_num": images}
    if not unet["semantic_enc"]:
        config["BeatGANsEncoderConfig"] = None
    return config


def _corners(images: Tensor, variant: Variant, draw: torch.Generator) -> Tensor:
    """Window corners int64 [B, 2]: on the grid of patches, or (without collage) anywhere, up to half a patch outside."""
    sides, uniform = torch.tensor(images.shape[2:]), torch.rand(len(images), 2, generator=draw)
    if variant.collage:
        return (uniform * (sides // PATCH + 2 - variant.window)).long() * PATCH
    return (uniform * (sides + (2 - variant.window) * PATCH - 1)).long() + 1 - PATCH // 2


def window_loss(model: PatchDM, images: Tensor, source: Tensor, variant: Variant, cumprod: Tensor, weight: Tensor,
                draw: torch.Generator, layout: nn.Linear | None = None, coarse: Mapping[int, float] | None = None,
                held_out: bool = False) -> dict[str, Tensor]:
    """Both terms of the loss for one random window of each image [B, 3, H, W], weighted by timestep.

    source: what the codes are made of: the images, or their rows in a table, int64 [B]. `layout` reads a thumbnail from the
    code, whose squared error is a third term. coarse: as `window_losses` takes it. held_out: nothing is dropped, and every
    patch counts.

    The official window has 2 x 2 patches, four of which are encoded for one tile of the kind that sampling decodes. Here it has
    as many as cover the padded image: less than two are encoded per tile. Of the patches themselves one is decoded, and every
    decoded tile counts equally. Timesteps are stratified (one per B-th of the range), windows are drawn per image, and noise is
    drawn for the window alone: the official code shares one window in a batch and draws independent timesteps, which has the
    same mean and more variance.
    """
    batch, device = len(images), images.device
    corners = _corners(images, variant, draw)
    t = ((torch.arange(batch) + torch.rand(batch, generator=draw)) / batch * len(cumprod)).long().to(device)
    kept = torch.rand(2, batch, generator=draw).to(device)
    window = cut(images, corners, PATCH, variant.window)
    noise = torch.randn(window.x.shape, generator=draw).to(device)
    alone = variant.collage and not held_out        # one patch of each window is decoded
    chosen = torch.randint(variant.window**2, (batch,), generator=draw).to(device) if alone else None
    losses: dict[str, Tensor] = {}
    with training.autocast(str(device), cpu=True):
        code = torch.zeros(batch, model.unet.code_channels, device=device)
        if model.unet.encoder is not None:
            code = model.unet.encoder(source)
        if layout is not None:
            small = F.adaptive_avg_pool2d(images, _UNET["thumbnail"]).flatten(1)
            losses["layout"] = (layout(code) - small).square().mean()
        if not held_out:
            code = code * (kept[0] >= _UNET["drop_code"]).float()[:, None]
        position = (kept[1] >= _UNET["drop_position"]).float() if not held_out else torch.ones(batch, device=device)
        prediction = predict(model.unet, noised(window, t, noise, cumprod), t, code, window.where, PATCH,
                             position if variant.position else torch.zeros_like(position), shift=variant.collage, chosen=chosen)
    shift, noshift = window_losses(prediction, velocity(window.x, t, noise, cumprod), window.mask, coarse, chosen)
    losses["noshift"] = (weight[t] * noshift).mean()
    return losses | {"shift": (weight[t] * shift).mean()} if variant.collage else losses


def _train_unet(
    out: Path, name: str, steps: int | None, images: int, device: str, resume: bool, max_seconds: float | None,
    init: str | None = None,
) -> dict[str, Any]:
    """Denoising of windows, semantic encoder and U-Net together; the moving average of both is what ships.

    The network predicts v (Salimans & Ho 2022) instead of the official noise: at high noise a small error in the mean of a
    patch of noise is a wrong colour, and a short training never gets rid of it. The error of x0 counts min(SNR + 1, 16) times.
    The means of patches count more at first, falling to nothing at `coarse_until` of the steps: patches must first agree on
    their colours, but only the plain error makes texture clean. For guidance one image in ten loses its code, one in two its
    position. Codes learn where things are from a thumbnail that a linear layer reads from them, which is then thrown away.
    """
    o, variant = _UNET, VARIANTS[name]
    steps = steps or variant.steps
    data = rendered(images, RESOLUTION, progress=say)
    torch.manual_seed(0)
    model = build(variant_config(name, images), prior=False)
    if isinstance(model.unet.encoder, CodeTable):
        model.unet.encoder.semantic_enc.weight.data.copy_(_clip_features(data, device))
    started = _start_from(model.unet, init)
    model.unet.to(device).train()
    decay = min(0.999, 1 - 5 / steps) if steps > 5 else 0.0
    ema = EMA(model.unet, decay=decay)
    layout = nn.Linear(CODE, 3 * o["thumbnail"] ** 2).to(device) if variant.code and not variant.table else None
    trained = nn.ModuleList([model.unet] if layout is None else [model.unet, layout])
    optimizer = torch.optim.Adam(trained.parameters(), lr=o["rate"], fused=True)
    cumprod = torch.from_numpy(diffusion_alphas_cumprod(model.schedule)).float().to(device)
    weight = truncated_weight(cumprod, o["most"])

    def coarse(k: int) -> dict[int, float]:
        left = max(0.0, 1 - k / (o["coarse_until"] * steps))
        return {side: factor * left for side, factor in o["coarse"].items()} if left else {}

    def step(k: int) -> dict[str, Tensor]:
        index = training.batch_seeds(k, o["batch"], images)
        batch = from_uint8(data[index.numpy()], device)
        source = index.to(device) if variant.table else batch
        training.set_rate(optimizer, training.cosine_rate(k, steps, o["rate"], warmup=min(o["warmup"], steps // 4)))
        losses = window_loss(model, batch, source, variant, cumprod, weight, training.step_generator(k), layout, coarse(k))
        training.descend(_total(losses, variant), optimizer, [trained], [ema])
        return losses

    result = training.fit(f"patch-dm-{name}-unet", step, {"trained": trained, "ema": ema, "optimizer": optimizer}, steps=steps,
                          out=out, resume=resume, max_seconds=max_seconds)
    ema.copy_to(model.unet)
    save_file(training.half_state(model.unet.state_dict()), out / "unet.safetensors")
    (out / "config.json").write_text(json.dumps(model.config, indent=1) + "\n")
    training.write_training_json(
        out / "training-unet.json", result, device=device, batch=o["batch"], data=about(images, RESOLUTION),
        variant=name, ema=decay, parameters=sum(p.numel() for p in model.unet.parameters()), rate=o["rate"], target="v",
        coarse=o["coarse"], coarse_until=o["coarse_until"], init=started,
        held_out=None if variant.table else _held_out(model, variant, cumprod, weight, device))
    return result


def _total(losses: Mapping[str, Tensor], variant: Variant) -> Tensor:
    """What is minimised: the mean over all decoded tiles, and the thumbnail."""
    tiles = {"shift": (variant.window - 1) ** 2, "noshift": 1} if variant.collage else {"noshift": 1}
    mean = torch.stack([losses[term] * count for term, count in tiles.items()]).sum() / sum(tiles.values())
    return mean + losses["layout"] if "layout" in losses else mean


def _start_from(unet: nn.Module, init: str | None) -> str | None:
    """Take over what fits by name and shape from a folder's unet.safetensors; says how much that was."""
    if init is None:
        return None
    path = (REFERENCE if init == "reference" else Path(init)) / "unet.safetensors"
    if not path.exists():
        raise MissingWeights(f"train patch-dm: init: no U-Net at {path}; name a folder that holds one, or reference")
    own, other = unet.state_dict(), load_file(path)
    fits = {k: v.float() for k, v in other.items() if k in own and own[k].shape == v.shape}
    unet.load_state_dict(fits, strict=False)
    return f"{len(fits)} of {len(own)} tensors from weights {sha256_of(path)}"


def _clip_features(data: Any, device: str) -> Tensor:
    """What the codes of a table start from: un-normalised image features of scenes-clip (ViT-B/16 of CLIP in the paper)."""
    from hibench import scenes_clip

    clip = scenes_clip.load(device)
    return torch.cat([clip.encode_image(torch.tensor(data[i : i + 100])).cpu() for i in range(0, len(data), 100)])


@torch.no_grad()
def _held_out(model: PatchDM, variant: Variant, cumprod: Tensor, weight: Tensor, device: str,
              count: int = 200) -> dict[str, Any]:
    """Both terms of the loss on scenes that training has not seen, with code and position."""
    from hibench.scenes_clip.train import HELD_OUT_SEED

    pixels = from_uint8(scenes.render(range(HELD_OUT_SEED, HELD_OUT_SEED + count), RESOLUTION).numpy(), device)
    losses: dict[str, Any] = {"scenes": count}
    model.unet.eval()
    parts = [window_loss(model, part, part, variant, cumprod, weight, training.step_generator(k), held_out=True)
             for k, part in enumerate(pixels.split(50))]
    for key in parts[0]:
        losses[key] = round(sum(part[key].item() for part in parts) / len(parts), 5)
    return losses


def _load_unet(folder: Path, device: str) -> PatchDM:
    """The U-Net and encoder of a finished first stage."""
    path = folder / "unet.safetensors"
    if not path.exists():
        raise MissingWeights(f"train patch-dm: no U-Net at {path}; train it first, with: hibench train patch-dm --stage unet")
    model = build(json.loads((folder / "config.json").read_text()), prior=False)
    fill(model.unet, {k: v.float() for k, v in load_file(path).items()}, str(path))
    model.unet.to(device).eval()
    return model


def codes_of(model: PatchDM, data: Any, device: str) -> Tensor:
    """Codes of images uint8 [N, 3, H, W] (or all rows of the table), float32 [N, D] on the CPU."""
    if isinstance(model.unet.encoder, CodeTable):
        return model.unet.encoder.semantic_enc.weight.detach().float().cpu()
    assert model.unet.encoder is not None
    with torch.inference_mode():
        parts = [model.unet.encoder(from_uint8(data[i : i + 100], device)).float().cpu() for i in range(0, len(data), 100)]
    return torch.cat(parts).clone()


def _train_prior(
    out: Path, name: str, steps: int | None, images: int, device: str, resume: bool, max_seconds: float | None
) -> dict[str, Any]:
    """The MLP on normalised codes of all training images, L1 on the noise, constant betas (train_latent.py's settings)."""
    o = _PRIOR
    steps = steps or VARIANTS[name].prior_steps
    model = _load_unet(out, device)
    codes = codes_of(model, rendered(images, RESOLUTION, progress=say), device)
    mean, std = codes.mean(0, keepdim=True), codes.std(0, keepdim=True).clamp(min=1e-6)
    codes = ((codes - mean) / std).to(device)
    torch.manual_seed(1)
    prior = LatentPrior.from_config(model.config["BeatGANsAutoencConfig"]["latent_net_conf"]).to(device).train()
    decay = min(0.999, 1 - 5 / steps) if steps > 5 else 0.0
    ema = EMA(prior, decay=decay)
    optimizer = torch.optim.AdamW(prior.parameters(), lr=o["rate"], weight_decay=o["weight_decay"], fused=True)
    cumprod = torch.from_numpy(prior_alphas_cumprod()).float().to(device)

    def step(k: int) -> dict[str, Tensor]:
        draw = training.step_generator(k, seed=1)
        z = codes[training.batch_seeds(k, min(o["batch"], images), images, seed=1).to(device)]
        t = ((torch.arange(len(z)) + torch.rand(len(z), generator=draw)) / len(z) * len(cumprod)).long().to(device)
        noise = torch.randn(z.shape, generator=draw).to(device)
        training.set_rate(optimizer, training.cosine_rate(k, steps, o["rate"], warmup=min(200, steps // 4)))
        loss = per_sample(prior(q_sample(z, t, noise, cumprod), t), noise, "l1").mean()
        training.descend(loss, optimizer, [prior], [ema])
        return {"loss": loss}

    result = training.fit(f"patch-dm-{name}-prior", step, {"prior": prior, "ema": ema, "optimizer": optimizer}, steps=steps,
                          out=out, resume=resume, max_seconds=max_seconds)
    ema.copy_to(prior)
    state = {f"latent_net.{k}": v for k, v in prior.state_dict().items()}
    state = training.half_state(state) | {"conds_mean": mean.contiguous(), "conds_std": std.contiguous()}
    save_file(state, out / "prior.safetensors")
    training.write_training_json(
        out / "training-prior.json", result, device=device, batch=o["batch"], data=about(images, RESOLUTION),
        variant=name, ema=decay, parameters=sum(p.numel() for p in prior.parameters()), rate=o["rate"])
    return result
