"""Training of first stages on scenes at 64 px: the reference VQ-f4, and small versions of the other published ones."""

from __future__ import annotations

import json
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
from hibench.references.scene_cache import about, rendered, say
from methods.ldm.adapter import REFERENCE
from methods.ldm.first_stages import small_first_stage, start_from
from methods.nn.autoencoder import AutoencoderKL, VQModel, build_first_stage
from methods.nn.discriminator import NLayerDiscriminator, adaptive_weight, gradient_l1, hinge_loss

__all__ = ["FIRST", "RESOLUTION", "WARM", "batch_of", "centre", "train_first_stage", "train_named"]

RESOLUTION = 64
IMAGES = 16_000                                     # that a small version sees, some of them twice
FIRST: dict[str, Any] = {
    "steps": 6000, "batch": 12, "crop": 32, "whole_from": 0.7, "rate": 1e-3, "guide_until": 400, "codes_from": 300,
    "revive_until": 0.5, "gan_from": 0.6, "gan_weight": 0.2, "kl": 1e-6,
}
WARM = FIRST | {"steps": 1500, "rate": 5e-4}        # for a start from the reference's layers

FirstStage = VQModel | AutoencoderKL


def batch_of(data: Any, index: Tensor, device: str) -> Tensor:
    """Images of these numbers, float32 [B, 3, H, W] in [-1, 1]."""
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


def train_named(out: Path, name: str, *, steps: int | None = None, images: int | None = None, device: str = "cpu",
                resume: bool = True, max_seconds: float | None = None, base: Path = REFERENCE) -> dict[str, Any]:
    """Train the small version of a published first stage, from what fits of the first stage in `base`.

    Writes first_stage.safetensors, config.json and training.json to `out`, which is then `weights` for reconstruction. None:
    1500 steps and 16 000 images. Raises MissingWeights without the first stage in `base`, SpecError for a factor too large.
    """
    file = base / "first_stage.safetensors"
    if not file.exists():
        raise MissingWeights(f"train ldm: first stage {name} starts from {file}, which is not there; "
                             f"train it with: hibench train ldm --stage first-stage --out {base}")
    if RESOLUTION >> (len(small_first_stage(name)["params"]["ddconfig"]["ch_mult"]) - 1) < 4:
        raise SpecError(f"train ldm: {name} leaves fewer than 4 x 4 latents of scenes of {RESOLUTION} px; train another one")
    start = {k: v.float() for k, v in load_file(file).items()}
    return train_first_stage(out, small_first_stage(name), WARM, start=start, name=name, steps=steps, images=images or IMAGES,
                             device=device, resume=resume, max_seconds=max_seconds)


def train_first_stage(out: Path, first: dict[str, Any], o: dict[str, Any], *, start: dict[str, Tensor] | None = None,
                      name: str | None = None, config: dict[str, Any] | None = None, steps: int | None, images: int,
                      device: str, resume: bool, max_seconds: float | None) -> dict[str, Any]:
    """3·L1 + image gradients at three scales + codebook or KL, and late the adaptive hinge GAN of VQGAN.

    Most steps see crops (the network is convolutional), the last ones whole images, to which attention adapts. Unless the
    latents of `start` fit, the first steps also pull them towards a thumbnail of the image, so that colour is kept from the
    start. KL has the weight of the official losses: 1e-6 per image, where errors are summed over its pixels and channels.
    `config`: what goes into config.json beside `first`; `name` None: the reference, whose training file says so.
    """
    steps = steps or o["steps"]
    out.mkdir(parents=True, exist_ok=True)
    data = rendered(images, RESOLUTION, progress=say)
    torch.manual_seed(0)
    model = build_first_stage(first).to(device)
    placed = 0 if start is None else start_from(model, start)
    guided = start is None or model.embed_dim != start["post_quant_conv.weight"].shape[1] or model.factor != 4
    disc = NLayerDiscriminator(ndf=32, n_layers=2).to(device)
    usage = _Usage(model.quantize.embedding.num_embeddings if isinstance(model, VQModel) else 1).to(device)
    opt_g = torch.optim.Adam(model.parameters(), lr=o["rate"], betas=(0.5, 0.9))
    opt_d = torch.optim.Adam(disc.parameters(), lr=o["rate"] / 3, betas=(0.5, 0.9))

    def crops(k: int, count: int, side: int) -> Tensor:
        return _crops(batch_of(data, training.batch_seeds(k, count, images), device), side, training.step_generator(k))

    def regularised(k: int, batch: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """(latents, reconstruction, the regularisation's loss by its name)."""
        if isinstance(model, AutoencoderKL):
            posterior = model.encode(batch)
            z = posterior.sample(torch.randn(posterior.mean.shape, generator=training.step_generator(k, seed=5)).to(device))
            return z.float(), model.decode(z), {"kl": posterior.kl().mean() / batch[0].numel()}
        if k == o["codes_from"]:
            with torch.no_grad():
                model.quantize.init_from(model.encode(crops(k, 20 * o["batch"], o["crop"])), training.step_generator(k))
        z = model.encode(batch).float()
        if k < o["codes_from"]:
            return z, model.decode(z, force_not_quantize=True), {"codebook": z.new_zeros(())}
        z_q, quant_loss, indices = model.quantize(z)
        usage.update(indices)
        return z, model.decoder(model.post_quant_conv(z_q)), {"codebook": quant_loss}

    def step(k: int) -> dict[str, Tensor | float]:
        whole = k >= o["whole_from"] * steps
        batch = crops(k, o["batch"] // 3, RESOLUTION) if whole else crops(k, o["batch"], o["crop"])
        training.set_rate(opt_g, training.cosine_rate(k, steps, o["rate"]))
        training.set_rate(opt_d, training.cosine_rate(k, steps, o["rate"] / 3))
        with training.autocast(device):
            z, decoded, extra = regularised(k, batch)
        decoded = decoded.float()
        l1 = F.l1_loss(decoded, batch)
        reconstruction = 3 * l1 + gradient_l1(decoded, batch)
        loss = reconstruction + sum(value * (o["kl"] if word == "kl" else 1.0) for word, value in extra.items())
        losses: dict[str, Tensor | float] = {"l1": l1, **extra}
        if guided and k < o["guide_until"]:
            loss = loss + F.mse_loss(z[:, :3], 2.5 * F.avg_pool2d(batch, model.factor))
        gan = k >= o["gan_from"] * steps
        if gan:
            adversarial = -disc(decoded).mean()
            weight = adaptive_weight(reconstruction, adversarial, model.last_layer)
            loss = loss + o["gan_weight"] * weight * adversarial
        training.descend(loss, opt_g)
        if gan:
            losses["disc"] = d_loss = hinge_loss(disc(batch), disc(decoded.detach()))
            training.descend(d_loss, opt_d)
        if isinstance(model, VQModel) and o["codes_from"] < k < o["revive_until"] * steps and k % 100 == 0:
            model.quantize.revive(z.detach(), usage.count > 0.5, training.step_generator(k))
            usage.count.clamp_(min=1.0)
        return losses

    stem = "ldm-first-stage" if name is None else f"ldm-{name}"
    state = {"model": model, "disc": disc, "usage": usage, "opt_g": opt_g, "opt_d": opt_d}
    result = training.fit(stem, step, state, steps=steps, out=out, resume=resume, max_seconds=max_seconds)
    z = _latents(model, data, images, device)
    centre(model, z.mean((0, 2, 3)))
    save_file(training.half_state(model.state_dict()), out / "first_stage.safetensors")
    whole = {**(config or {}), "first_stage_config": first, "scale_factor": round(1.0 / z.std().item(), 6)}
    (out / "config.json").write_text(json.dumps(whole, indent=1) + "\n")
    more = {} if name is None else {"first_stage": name, "starts_from": f"the reference first stage: {placed} tensors"}
    training.write_training_json(
        out / ("training-first-stage.json" if name is None else "training.json"), result, device=device, batch=o["batch"],
        data=about(images, RESOLUTION), parameters=sum(p.numel() for p in model.parameters()),
        held_out=reconstruction_of(model, device), **more)
    return result


@torch.no_grad()
def encode(model: FirstStage, x: Tensor) -> Tensor:
    """Latents of images [B, 3, H, W] in [-1, 1]: before quantisation, or the mean of the posterior."""
    encoded = model.encode(x)
    return encoded if isinstance(encoded, Tensor) else encoded.mode()


def _latents(model: FirstStage, data: Any, images: int, device: str) -> Tensor:
    """Latents of some training images, for their mean and their spread."""
    seen = range(0, min(500, images - 50), 50) if images > 50 else [0]
    return torch.cat([encode(model, batch_of(data, torch.arange(i, min(i + 50, images)), device)) for i in seen])


@torch.no_grad()
def centre(model: FirstStage, mean: Tensor) -> None:
    """Move the latents by -mean [C] and everything after them back: the same autoencoder, with latents around zero."""
    assert model.quant_conv.bias is not None
    assert model.post_quant_conv.bias is not None
    model.quant_conv.bias[: len(mean)] -= mean
    if isinstance(model, VQModel):
        model.quantize.embedding.weight -= mean
    model.post_quant_conv.bias += model.post_quant_conv.weight[:, :, 0, 0] @ mean


def reconstruction_of(model: FirstStage, device: str, count: int = 200) -> dict[str, float]:
    """PSNR of uint8 reconstructions of held-out scenes, and the share of codes they use where there are codes."""
    from hibench.scenes_clip.train import HELD_OUT_SEED

    pixels = scenes.render(range(HELD_OUT_SEED, HELD_OUT_SEED + count), RESOLUTION)
    with torch.inference_mode():
        z = torch.cat([encode(model, p.to(device).float() / 127.5 - 1) for p in pixels.split(50)])
        decoded = torch.cat([to_uint8(model.decode(part)).cpu() for part in z.split(50)])
        used = {}
        if isinstance(model, VQModel):
            used["codes_used"] = model.quantize.indices(z).unique().numel() / model.quantize.embedding.num_embeddings
    mse = (decoded.float() - pixels.float()).square().flatten(1).mean(1)
    return {"scenes": count, "psnr_db": (10 * (255**2 / mse).log10()).mean().item(), **used}
