"""Train ∞-Diff on scenes at 64 px: decoder and encoder together on coordinate subsets, then the latent prior."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hibench import training
from hibench.adapter import from_uint8
from hibench.errors import MissingWeights, SpecError
from hibench.references.scene_cache import about, rendered, say
from methods.diffusion.ema import EMA
from methods.diffusion.losses import per_sample, q_sample, truncated_weight, velocity
from methods.infty_diff.configs import REFERENCE_SIZE, variant_config
from methods.infty_diff.decoder import Decoder
from methods.infty_diff.encoder import Encoder
from methods.infty_diff.geometry import Points
from methods.infty_diff.mollifier import Mollifier
from methods.infty_diff.prior import Prior
from methods.infty_diff.process import Process, latent_alphas, process_alphas
from methods.infty_diff.sparse import SparseBlock, SparseConv, Support
from methods.infty_diff.subsets import subset_bank
from methods.infty_diff.uno import ConvBlock, GridAttention
from methods.nn.attention import to_tokens

__all__ = ["STAGES", "STEPS", "train"]

STAGES = ("decoder", "prior")
STEPS = {"decoder": {"main": 7400, "variant": 1700}, "prior": {"main": 6000, "variant": 3000}}
IMAGES, BANK = 25_000, 256                          # training images; coordinate subsets that are drawn ahead
_DECODER: dict[str, Any] = {"batch": 8, "rate": 2e-3, "warmup": 100, "ema": 0.998, "gamma": 15.0, "thin": 4}
_PRIOR: dict[str, Any] = {"batch": 256, "rate": 1e-3, "ema": 0.999}


def train(out: Path, *, variant: str = "main", stage: str | None = None, steps: int | None = None, images: int = IMAGES,
          device: str = "cpu", resume: bool = True, max_seconds: float | None = None, **_: Any) -> dict[str, Any]:
    """Train one stage of a variant (`configs.VARIANTS`), or both in turn.

    Writes decoder, encoder and prior as *.safetensors, config.json and training-*.json to `out`. `steps` replaces the stage's
    own number. A stage stopped by `max_seconds` or Ctrl-C goes on at the next call. SpecError for an unknown stage or variant.
    """
    config = variant_config(variant)
    if stage not in (None, *STAGES):
        raise SpecError(f"train infty-diff: stage '{stage}' is not known; it is one of: {', '.join(STAGES)}")
    out.mkdir(parents=True, exist_ok=True)
    done: dict[str, Any] = {}
    for name, run in zip(STAGES, (_train_decoder, _train_prior)):
        if stage in (None, name):
            number = steps or STEPS[name]["main" if variant == "main" else "variant"]
            done[name] = run(out, config, number, images, device, resume, max_seconds)
            if not done[name]["finished"]:
                break
    return done


def at(tokens: Tensor, support: Support) -> Tensor:
    """Tokens [B, L, C] at the points of a support, of tokens [B, H*W, C] at all pixels."""
    index = support.points.index
    return tokens if index is None else tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[2]))


def spread_times(count: int, n: int, draw: torch.Generator) -> Tensor:
    """One uniform time of 0 ... n - 1 in each of `count` equal parts, int64 [count]: a batch sees all noise levels."""
    return ((torch.arange(count) + torch.rand(count, generator=draw)) * (n / count)).long().clamp(max=n - 1)


@torch.no_grad()
def quieten(model: nn.Module, factor: float = 0.1) -> None:
    """Scale the last layer of every residual branch, so that a block starts near the identity."""
    for module in model.modules():
        last = {ConvBlock: lambda m: m.out_layers[2], GridAttention: lambda m: m.attn_linear,
                SparseBlock: lambda m: m.block.mlp[2]}.get(type(module))
        if last is not None:
            last(module).weight.mul_(factor)


def networks(config: dict[str, Any], device: str) -> tuple[Decoder, Encoder]:
    """Decoder and encoder with the weights that training starts from."""
    torch.manual_seed(0)
    official = config["compat"] == "official"
    decoder = Decoder.from_config(config["decoder"], official)
    encoder = Encoder.from_config(config["encoder"], official)
    for model in (decoder, encoder):
        quieten(model)
        for module in model.modules():
            if isinstance(module, SparseConv) and module.depthwise and device == "cpu":
                module.thin = _DECODER["thin"]
    return decoder.to(device), encoder.to(device)


def _train_decoder(out: Path, config: dict[str, Any], steps: int, images: int, device: str, resume: bool,
                   max_seconds: float | None) -> dict[str, Any]:
    """Prediction at random coordinates (Bond-Taylor & Willcocks, eq. 12), with the code of the same image.

    As in the official training the encoder sees an independent subset of the same size. Subsets come from a bank that is drawn
    ahead, with their nearest neighbours. Two things differ from it, so that a short training gets far: the network predicts the
    velocity sqrt(ab) T xi - sqrt(1 - ab) T x0 instead of T xi, preconditioned (see `Process`), because at high noise T xi says
    nothing about the image; and the error of T x0 counts min(SNR + 1, 16) times (the weights of the velocity, truncated as in
    Hang et al. 2023). The times of
    a batch are spread evenly. The moving averages of both networks are what ships.
    """
    o, how = _DECODER, config["training"]
    data = rendered(images, REFERENCE_SIZE, progress=say)
    decoder, encoder = networks(config, device)
    ema, ema_encoder = EMA(decoder, o["ema"]), EMA(encoder, o["ema"])
    parameters = [*decoder.parameters(), *encoder.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=o["rate"], betas=(0.9, 0.99), fused=True)
    size = REFERENCE_SIZE
    blur = Mollifier.make(size, size, config["diffusion"]["gaussian_filter_std"], device=device)
    cumprod = torch.from_numpy(process_alphas(config["diffusion"]["steps"])).float().to(device)
    process = Process.from_config(config["diffusion"], size)
    c_in, k_x, c_out = (torch.from_numpy(c).float().to(device).view(-1, 1, 1) for c in process.coefficients(process_alphas()))
    weight = truncated_weight(cumprod, o["gamma"] + 1)
    bank = decoder.support(subset_bank(decoder.canvas(size, size), how["subsample"], BANK, how["coordinates"])).to(device)
    sets = len(bank.inverse_norm)

    def step(k: int) -> dict[str, Tensor]:
        draw = training.step_generator(k)
        clean = from_uint8(data[training.batch_seeds(k, o["batch"], images).numpy()], device)
        t = spread_times(len(clean), len(cumprod), draw).to(device)
        noise = torch.randn(clean.shape, generator=draw).to(device)
        seen, shown = (bank.pick(torch.randint(sets, (len(clean),), generator=draw).to(device)) for _ in range(2))
        x_t, target = blur(q_sample(clean, t, noise, cumprod)), blur(velocity(clean, t, noise, cumprod))
        training.set_rate(optimizer, training.cosine_rate(k, steps, o["rate"], o["warmup"]))
        with training.autocast(device):
            z = encoder(at(to_tokens(clean), shown), shown)
            x = at(to_tokens(x_t), seen)
            out = decoder(c_in[t] * x, seen, decoder.times(t), decoder.codes(z))
        error = per_sample(k_x[t] * x + c_out[t] * out, at(to_tokens(target), seen))
        loss = (weight[t] * error).mean()
        training.descend(loss, optimizer, [decoder, encoder], [ema, ema_encoder])
        return {"loss": loss.detach(), "error": error.detach().mean()}

    state: dict[str, training.Stateful] = {
        "decoder": decoder, "encoder": encoder, "ema": ema, "ema_encoder": ema_encoder, "optimizer": optimizer}
    result = training.fit("infty-diff-decoder", step, state, steps=steps, out=out, resume=resume, max_seconds=max_seconds)
    for name, model, average in (("decoder", decoder, ema), ("encoder", encoder, ema_encoder)):
        average.copy_to(model)
        save_file(training.half_state(model.state_dict()), out / f"{name}.safetensors")
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    training.write_training_json(
        out / "training-decoder.json", result, device=device, batch=o["batch"], data=about(images, REFERENCE_SIZE),
        ema=o["ema"], loss=f"velocity, weighted by min(SNR + 1, {o['gamma'] + 1:g}) / (SNR + 1)",
        points=len(bank.points), **how,
        parameters={"decoder": count(decoder), "encoder": count(encoder)})
    return result


def _train_prior(out: Path, config: dict[str, Any], steps: int, images: int, device: str, resume: bool,
                 max_seconds: float | None) -> dict[str, Any]:
    """L1 noise prediction on codes of all coordinates, normalised by the mean and std that are stored with the weights."""
    o = _PRIOR
    if not (out / "encoder.safetensors").exists():
        raise MissingWeights(f"train infty-diff: no encoder at {out}; train it with: "
                             f"hibench train infty-diff --stage decoder --out {out}")
    config = json.loads((out / "config.json").read_text())
    codes = encode_all(out, config, images, device)
    mean, std = codes.mean(0), codes.std(0)
    codes = (codes - mean) / std
    torch.manual_seed(1)
    prior = Prior.from_config(config["prior"]).to(device)
    ema = EMA(prior, o["ema"])
    optimizer = torch.optim.AdamW(prior.parameters(), lr=o["rate"], betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    cumprod = torch.from_numpy(latent_alphas()).float().to(device)
    batch = min(o["batch"], images)

    def step(k: int) -> dict[str, Tensor]:
        draw = training.step_generator(k, seed=1)
        z = codes[training.batch_seeds(k, batch, images, seed=1)].to(device)
        t = spread_times(len(z), len(cumprod), draw).to(device)
        noise = torch.randn(z.shape, generator=draw).to(device)
        training.set_rate(optimizer, training.cosine_rate(k, steps, o["rate"]))
        loss = per_sample(prior(q_sample(z, t, noise, cumprod), prior.scales(t)), noise, "l1").mean()
        training.descend(loss, optimizer, averages=[ema])
        return {"loss": loss.detach()}

    state: dict[str, training.Stateful] = {"prior": prior, "ema": ema, "optimizer": optimizer}
    result = training.fit("infty-diff-prior", step, state, steps=steps, out=out, resume=resume, max_seconds=max_seconds)
    ema.copy_to(prior)
    save_file(training.half_state(prior.state_dict()) | {"latents.mean": mean, "latents.std": std}, out / "prior.safetensors")
    training.write_training_json(out / "training-prior.json", result, device=device, batch=batch,
                                 data=about(images, REFERENCE_SIZE), ema=o["ema"], parameters=count(prior))
    return result


@torch.inference_mode()
def encode_all(out: Path, config: dict[str, Any], images: int, device: str) -> Tensor:
    """Codes of all training images from all their coordinates, float32 [images, z] on the CPU."""
    encoder = Encoder.from_config(config["encoder"], config["compat"] == "official")
    encoder.load_state_dict({k: v.float() for k, v in load_file(out / "encoder.safetensors").items()})
    encoder.to(device).eval()
    support = encoder.support(Points(encoder.canvas(REFERENCE_SIZE, REFERENCE_SIZE))).to(device)
    data = rendered(images, REFERENCE_SIZE, progress=say)
    parts = [encoder(to_tokens(from_uint8(data[i:i + 100], device)), support).cpu()
             for i in range(0, images, 100)]
    return torch.cat(parts).clone()


def count(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in model.parameters())
