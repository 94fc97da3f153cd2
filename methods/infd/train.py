"""Train the reference INFD on scenes: the neural-field autoencoder (and its ablations), then the U-Net on its latents.

With `init="ldm"` the first stage of the reference LDM is taken over: encoder and codebook stay as they are, so that latents
mean the same in both methods, and decoder and renderer are trained. With `init="none"` everything is trained from nothing.
"""

from __future__ import annotations

import hashlib
import json
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hibench import training
from hibench.adapter import from_uint8
from hibench.errors import MissingWeights, SpecError, did_you_mean
from hibench.references import scenes
from hibench.references.scene_cache import about, rendered, say
from methods.diffusion.ema import EMA
from methods.diffusion.losses import per_sample, q_sample, truncated_weight, velocity
from methods.infd.checkpoint import fill, from_ldm
from methods.infd.configs import config_args, with_renderer
from methods.infd.data import LARGE, SMALL, Batch, Mix, Scales, draw
from methods.infd.losses import generator_loss, perceptual, psnr
from methods.infd.model import INFDModel
from methods.infd.render import Tiles, render_uint8
from methods.infd.renderers import FixedRenderer
from methods.ldm.adapter import REFERENCE as LDM_REFERENCE
from methods.nn.discriminator import NLayerDiscriminator, hinge_loss

__all__ = ["INITS", "STAGES", "VARIANTS", "Variant", "train"]

STAGES = ("autoencoder", "unet")
INITS = ("ldm", "none")
TILES = Tiles(SMALL, 8)                             # the official 256 and 8, scaled to 64 px; the nets' reach stays 6 px


@dataclass(frozen=True)
class Variant:
    """One training of decoder and renderer."""

    renderer: str                                   # as in methods.infd.configs.with_renderer
    scales: Scales
    steps: int
    about: str


ABLATION = 1000                                     # steps of every ablation
VARIANTS: dict[str, Variant] = {
    "main": Variant("clif", Scales(), 4800, "CLIF, ground truth of mixed scales"),
    "clif": Variant("clif", Scales(), ABLATION, "CLIF at the budget of the ablations"),
    "liif": Variant("liif", Scales(), ABLATION, "point-wise MLP with feature unfolding, no local ensemble"),
    "liif-ensemble": Variant("liif-ensemble", Scales(), ABLATION, "point-wise MLP with feature unfolding and local ensemble"),
    "fixed": Variant("fixed", Scales(mixed=False, below=False), ABLATION, "the LDM decoder's tail, ground truth of 64 px"),
    "fixed-scale": Variant("clif", Scales(largest_only=True, below=False), ABLATION,
                           "CLIF, every image at its own largest side only"),
}
_AUTOENCODER: dict[str, Any] = {
    "small": 16_000, "large": 3_000, "batch": 12, "crop": 8, "whole_from": 0.7, "rate": 6e-4, "l1_weight": 3.0,
    "gan_from": 0.4, "gan_weight": 0.3,
}
_UNET: dict[str, Any] = {"steps": 5000, "images": 16_000, "batch": 32, "rate": 6e-4, "ema": 0.999}


def train(
    out: Path,
    *,
    stage: str | None = None,
    steps: int | None = None,
    variant: str = "main",
    init: str = "ldm",
    device: str = "cpu",
    resume: bool = True,
    max_seconds: float | None = None,
    images: int | None = None,
    **_: Any,
) -> dict[str, Any]:
    """Train one stage, or both in turn; writes *.safetensors, config.json and training-*.json to `out`.

    `variant` other than "main" trains a decoder and renderer of the ablation (the autoencoder stage only). `steps` replaces
    the stage's own number, `images` that of 64-px images. A stage stopped by `max_seconds` or Ctrl-C goes on at the next call.
    """
    for word, value, known in (("stage", stage, STAGES), ("variant", variant, VARIANTS), ("init", init, INITS)):
        if value is not None and value not in known:
            raise SpecError(f"train infd: {word} '{value}' is not known{did_you_mean(value, known)}; "
                            f"it is one of: {', '.join(known)}")
    if variant != "main" and (init != "ldm" or stage == "unet"):
        raise SpecError(f"train infd: variant {variant} is a decoder and renderer for the encoder of the reference LDM: it has "
                        "no stage unet and needs init ldm")
    out.mkdir(parents=True, exist_ok=True)
    done: dict[str, Any] = {}
    if stage in (None, "autoencoder"):
        done["autoencoder"] = _train_autoencoder(out, variant, init, steps, images, device, resume, max_seconds)
    if variant == "main" and stage in (None, "unet") and done.get("autoencoder", {}).get("finished", True):
        done["unet"] = _train_unet(out, init, steps, images, device, resume, max_seconds)
    return done


def _ldm() -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and first stage of the reference LDM, the latter under INFD's names."""
    file = LDM_REFERENCE / "first_stage.safetensors"
    if not file.exists():
        raise MissingWeights(f"train infd: no reference LDM at {LDM_REFERENCE}; get it with: hibench train ldm --out "
                             f"{LDM_REFERENCE}, or start from nothing with init none")
    config = json.loads((LDM_REFERENCE / "config.json").read_text())
    return config, from_ldm({k: v.float() for k, v in load_file(file).items()})


def reference_args(init: str) -> dict[str, Any]:
    """The arguments of the reference model; autoencoder and U-Net are those of the LDM that it starts from."""
    args = config_args("reference")
    if init == "ldm":
        config, _ = _ldm()
        first = config["first_stage_config"]["params"]
        coder = {k: first["ddconfig"][k] for k in ("ch", "ch_mult", "num_res_blocks", "resolution", "z_channels")}
        args["encoder"]["args"], args["decoder"]["args"], args["n_embed"] = coder, deepcopy(coder), first["n_embed"]
        args["z_dm"]["args"] = config["unet_config"]["params"]
        args["z_dp"]["parameterization"] = config.get("parameterization", "eps")
    return args


def _write_config(out: Path, args: dict[str, Any]) -> None:
    variants = {name: with_renderer(args, v.renderer)["renderer"] for name, v in VARIANTS.items() if name != "main"}
    config = {"name": "infd", "args": args, "tiles": {"size": TILES.size, "padding": TILES.padding}, "variants": variants}
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def _data(small: int, large: int) -> str:
    return about(small, SMALL) + (f"; the first {large} of them also at up to {LARGE} px" if large else "")


def _latents(model: INFDModel, out: Path, images: int, device: str) -> Tensor:
    """Latents before quantisation of the first training images, float16 [images, 3, 16, 16]; kept in `out`."""
    digest = hashlib.sha256(b"".join(v.half().cpu().numpy().tobytes() for v in model.encoder.state_dict().values())).hexdigest()
    file = out / f"latents-{images}-{digest[:12]}.cache"
    if file.exists():
        return load_file(file)["latents"]
    data, parts = rendered(images, SMALL, progress=say), []
    with torch.inference_mode():
        for i in range(0, images, 50):
            parts.append(model.encode(from_uint8(data[i:i + 50], device)).half().cpu())
    latents = torch.cat(parts).clone()
    save_file({"latents": latents}, file)
    return latents


def _train_autoencoder(out: Path, name: str, init: str, steps: int | None, images: int | None, device: str, resume: bool,
                       max_seconds: float | None) -> dict[str, Any]:
    """3 L1 + perceptual + (codebook), and from 40 % on the adaptive hinge GAN, on patches of ground truth at random scales.

    Most steps decode a quarter of the latents (the network is convolutional), the last ones all of them, to which the middle
    attention adapts.
    """
    o, variant = _AUTOENCODER, VARIANTS[name]
    steps, count = steps or variant.steps, images or o["small"]
    large = min(o["large"], count)
    mix = Mix(rendered(count, SMALL, progress=say), rendered(large, LARGE, progress=say))
    torch.manual_seed(0)
    args = with_renderer(reference_args(init), variant.renderer)
    model = INFDModel(args, diffusion=False).to(device)
    frozen = init == "ldm"
    if frozen:
        _take_over(model)
        model.encoder.requires_grad_(False)
        model.quantizer.requires_grad_(False)
        latents = _latents(model, out, count, device)
    disc = NLayerDiscriminator(ndf=32, n_layers=2).to(device)
    trained = [p for p in model.parameters() if p.requires_grad]
    opt_g = torch.optim.Adam(trained, lr=o["rate"], betas=(0.5, 0.9))
    opt_d = torch.optim.Adam(disc.parameters(), lr=o["rate"] / 2, betas=(0.5, 0.9))
    perceptual_name, perceive = perceptual(device)

    def generate(batch: Batch) -> tuple[Tensor, Tensor]:
        if frozen:
            z = latents[batch.index].to(device).float()
        else:
            pixels = from_uint8(mix.small[batch.index.numpy()], device)
            with training.autocast(device, cpu=True):
                z = model.encode(pixels)
        z, loss, _ = model.quantizer(_window(z.float(), batch.window))      # distances to the codes need float32
        with training.autocast(device, cpu=True):
            fake = model.render(model.decoder(z), batch.query.to(device))
        return fake.float(), loss

    def step(k: int) -> dict[str, Tensor | float]:
        everything = k >= o["whole_from"] * steps
        size = (o["batch"] // 3, SMALL, None) if everything else (o["batch"], SMALL // 2, o["crop"])
        batch = draw(mix, k, size[0], size[1], model.latent_side, size[2], variant.scales)
        target = batch.target.to(device)
        training.set_rate(opt_g, training.cosine_rate(k, steps, o["rate"]))
        training.set_rate(opt_d, training.cosine_rate(k, steps, o["rate"] / 2))
        fake, quantisation = generate(batch)
        gan = k >= o["gan_from"] * steps
        losses = generator_loss(fake, target, quantisation, model.renderer.last_layer, perceive, disc if gan else None,
                                o["gan_weight"], l1_weight=o["l1_weight"])
        training.descend(losses.total, opt_g, [model])
        said: dict[str, Tensor | float] = {"l1": losses.l1, "perceptual": losses.perceptual, "codebook": quantisation}
        if gan:
            d_loss = hinge_loss(disc(target), disc(fake.detach()))
            training.descend(d_loss, opt_d)
            said["disc"] = d_loss
        return said

    result = training.fit(f"infd-{name}", step, {"model": model, "disc": disc, "opt_g": opt_g, "opt_d": opt_d}, steps=steps,
                          out=out, resume=resume, max_seconds=max_seconds)
    state = training.half_state(model.state_dict())
    if name == "main":
        save_file(state, out / "autoencoder.safetensors")
        _write_config(out, reference_args(init))
    else:
        own = {k: v for k, v in state.items() if k.startswith(("decoder.", "renderer."))}
        save_file(own, out / f"variant-{name}.safetensors")
    training.write_training_json(
        out / ("training-autoencoder.json" if name == "main" else f"training-variant-{name}.json"), result, device=device,
        batch=o["batch"], data=_data(count, large), variant=variant.about, init=init, perceptual=perceptual_name,
        parameters=sum(p.numel() for p in model.parameters()), trained=sum(p.numel() for p in trained),
        held_out=_reconstruction(model.eval(), device))
    return result


def _take_over(model: INFDModel) -> None:
    """Encoder, codebook and decoder of the reference LDM, and its output head where the renderer is that head."""
    _, state = _ldm()
    fixed = isinstance(model.renderer, FixedRenderer)
    own = model.state_dict()
    fill(model, {**own, **{k: v for k, v in state.items() if fixed or not k.startswith("renderer.")}}, "the reference LDM")


def _window(z: Tensor, window: tuple[Tensor, Tensor] | None, size: int = _AUTOENCODER["crop"]) -> Tensor:
    """The latents [B, C, size, size] that start at row and column `window` of each image."""
    if window is None:
        return z
    return torch.stack([one[:, i:i + size, j:j + size] for one, i, j in zip(z, window[0].tolist(), window[1].tolist())])


def _train_unet(out: Path, init: str, steps: int | None, images: int | None, device: str, resume: bool,
                max_seconds: float | None) -> dict[str, Any]:
    """Diffusion of un-quantised latents without a scale factor, linear in beta; the moving average of the weights ships.

    As in the LDM's training the error is weighted so that a short training learns the coarse first: x0 counts
    min(SNR + 1, 6) times for v-prediction, min(SNR, 5) times for eps (Hang et al. 2023).
    """
    o = _UNET
    steps, count = steps or int(o["steps"]), images or o["images"]
    args = reference_args(init)
    model = INFDModel(args).to(device)
    if init == "ldm":
        _take_over(model)
        started = _start_unet(model)
    else:
        if not (out / "autoencoder.safetensors").exists():
            raise MissingWeights(f"train infd: no autoencoder at {out}; train it with: hibench train infd --stage autoencoder "
                                 f"--init none --out {out}")
        own = {k: v for k, v in model.state_dict().items() if k.startswith("z_dm.")}
        fill(model, {**own, **load_file(out / "autoencoder.safetensors")}, str(out))
        started = "nothing"
    latents = _latents(model, out, count, device)
    torch.manual_seed(1)
    unet = model.unet.train()
    ema = EMA(unet, decay=o["ema"])
    optimizer = torch.optim.AdamW(unet.parameters(), lr=o["rate"])
    cumprod = torch.from_numpy(model.alphas_cumprod).float().to(device)
    of_velocity = model.parameterization == "v"
    snr = cumprod / (1 - cumprod)
    weight = truncated_weight(cumprod) if of_velocity else snr.clamp(max=5.0) / snr

    def step(k: int) -> dict[str, Tensor]:
        random = training.step_generator(k, seed=1)
        z = latents[training.batch_seeds(k, int(o["batch"]), count, seed=1)].to(device).float()
        t = torch.randint(len(cumprod), (len(z),), generator=random).to(device)
        noise = torch.randn(z.shape, generator=random).to(device)
        training.set_rate(optimizer, training.cosine_rate(k, steps, o["rate"]))
        with training.autocast(device, cpu=True):
            prediction = unet(q_sample(z, t, noise, cumprod), t)
        target = velocity(z, t, noise, cumprod) if of_velocity else noise
        loss = (weight[t] * per_sample(prediction, target)).mean()
        training.descend(loss, optimizer, [unet], [ema])
        return {"loss": loss}

    result = training.fit("infd-unet", step, {"unet": unet, "ema": ema, "optimizer": optimizer}, steps=steps, out=out,
                          resume=resume, max_seconds=max_seconds)
    ema.copy_to(unet)
    save_file(training.half_state(unet.state_dict()), out / "unet.safetensors")
    _write_config(out, args)
    training.write_training_json(out / "training-unet.json", result, device=device, batch=o["batch"], data=_data(count, 0),
                                 parameters=sum(p.numel() for p in unet.parameters()), ema=o["ema"], init=started,
                                 parameterization=model.parameterization)
    return result


def _start_unet(model: INFDModel) -> str:
    """The reference LDM's U-Net: it removes noise from the same latents, in another schedule; training adapts it."""
    state = {k: v.float() for k, v in load_file(LDM_REFERENCE / "unet.safetensors").items()}
    fill(model.unet, state, "the reference LDM")
    return "the U-Net of the reference LDM"


def _reconstruction(model: INFDModel, device: str, count: int = 24) -> dict[str, Any]:
    """Held-out scenes through encoder, codebook, decoder and renderer: PSNR in dB against the exact scene, and how strong the
    differences of neighbouring pixels are compared to it (1: as sharp), by side in pixels."""
    from hibench.scenes_clip.train import HELD_OUT_SEED

    seeds = range(HELD_OUT_SEED, HELD_OUT_SEED + count)
    found: dict[str, Any] = {"scenes": count}
    with torch.inference_mode():
        inputs = from_uint8(scenes.render(seeds, SMALL), device)
        phi = model.features(model.encode(inputs))
        for side in (SMALL // 2, SMALL, 2 * SMALL, 4 * SMALL):
            real = from_uint8(scenes.render(seeds, side))
            fake = from_uint8(render_uint8(model, phi, side, side, TILES).cpu())
            sharp = [sum(x.diff(dim=d).abs().mean().item() for d in (-1, -2)) for x in (fake, real)]
            found[str(side)] = {"psnr_db": round(psnr(fake, real).item(), 3), "sharpness": round(sharp[0] / sharp[1], 4)}
    return found
