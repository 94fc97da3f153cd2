"""Recompute golden cases of the official LDM: every kind of case, recognised by the structure of its config.json."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hibench.errors import AdapterError
from hibench.golden import GoldenOutput
from methods.diffusion import ddim
from methods.diffusion.losses import eps_loss, vlb_weights
from methods.diffusion.schedules import alphas_cumprod, check_steps, sqrt_linear_betas, strided_timesteps
from methods.ldm.checkpoint import fill, load_checkpoint, read_state_dict, unflatten_ema
from methods.ldm.model import ClassEmbedder, LatentDiffusion, empty_model
from methods.ldm.sampling import denoiser, make_plan
from methods.ldm.sampling import run as run_plan
from methods.nn.autoencoder import AutoencoderKL, VQModel, build_first_stage
from methods.nn.unet import UNet

__all__ = ["golden"]

UNET = "model.diffusion_model."


class Case:
    """One case folder: its configuration, inputs as tensors, and the names of the outputs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        self.inputs = arrays(folder / "inputs.npz")
        with np.load(folder / "outputs.npz") as file:
            self.wanted = frozenset(file.files)

    def weights(self) -> dict[str, Tensor]:
        """All tensors named by `weights`: a list of [file, prefix in the file, prefix in the model], later ones override."""
        state: dict[str, Tensor] = {}
        for file, theirs, ours in self.config["weights"]:
            loaded = read_state_dict((self.folder / file).resolve())
            state |= {ours + k[len(theirs):]: v.clone() for k, v in loaded.items() if k.startswith(theirs)}
        return state


def arrays(path: Path) -> dict[str, Tensor]:
    """All arrays of an npz file as tensors."""
    with np.load(path) as file:
        return {k: torch.from_numpy(file[k]) for k in file.files}


def golden(folder: Path) -> Iterator[GoldenOutput]:
    """Every output of the case that this implementation knows, recomputed in float32 on the CPU."""
    case = Case(folder)
    with torch.inference_mode():
        for name, got in KINDS[kind_of(case)](case):
            if name in case.wanted:
                got, scale = got if isinstance(got, tuple) else (got, None)
                yield GoldenOutput(name, got, tolerance(case, name), scale)


def tolerance(case: Case, name: str) -> str:
    """Samples, and what is decoded from them, pass through many network evaluations."""
    sampled = "runs" in case.config or ("checkpoint" in case.config and name in ("samples", "image", "z_encoded"))
    return "sampling" if sampled and name not in ("c", "uc") else "forward"


def kind_of(case: Case) -> str:
    """Which mechanism a case exercises."""
    config = case.config
    if "schedules" in config:
        return "schedules"
    if "first_stage_config" in config:
        return "vq" if "n_embed" in config["first_stage_config"]["params"] else "kl"
    if "unet_config" in config:
        return "unet"
    if "model" not in config:
        raise AdapterError(f"{case.folder / 'config.json'}: not an LDM golden case: it has no model, unet_config, "
                           "first_stage_config or schedules")
    return "checkpoint" if "checkpoint" in config else "sampling" if "runs" in config else "loss"


Named = Iterator[tuple[str, Any]]


def schedules(case: Case) -> Named:
    """Betas, their products, and DDIM's coefficients for several step counts."""
    for name, entry in case.config["schedules"].items():
        betas = sqrt_linear_betas(entry["linear_start"], entry["linear_end"], entry.get("timesteps", 1000))
        ab, n = alphas_cumprod(betas), len(betas)
        yield f"{name}.betas", betas
        yield f"{name}.alphas_cumprod", ab
        counts = {int(k.split(".")[1][1:]) for k in case.wanted if k.startswith(f"{name}.S")}
        for steps in sorted(counts):
            yield from ddim_schedule(f"{name}.S{steps}", ab, steps, n)


def ddim_schedule(prefix: str, ab: Any, steps: int, n: int) -> Named:
    """Timesteps, and where they lie inside the schedule, coefficients (ascending)."""
    times = np.arange(0, n, n // steps) + 1 if check_steps(steps, n) else strided_timesteps(steps, n)
    yield f"{prefix}.timesteps", times.astype(np.int32)
    if times[-1] < n:
        alpha, before = ab[times], ddim.previous(ab, times, None)
        yield f"{prefix}.alphas", alpha.astype(np.float32)
        yield f"{prefix}.alphas_prev", before
        for eta in (0, 1):
            yield f"{prefix}.sigmas_eta{eta}", ddim.ddim_sigmas(alpha, before, eta)


def code_margin(model: nn.Module, z: Tensor) -> tuple[Tensor, float]:
    """The smallest gap between the squared distances to the nearest and the second nearest code, and how large those are.

    A difference is as exact as what is subtracted: its error is judged relative to the largest of these distances.
    """
    flat = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1]).double()
    distances = torch.cdist(flat, model.quantize.embedding.weight.double()).square()
    two = distances.topk(2, dim=1, largest=False).values
    return (two[:, 1] - two[:, 0]).min(), two.max().item()


def vq(case: Case) -> Named:
    """A VQ autoencoder alone."""
    model = build_first_stage(case.config["first_stage_config"]).eval()
    fill(model, case.weights(), str(case.folder))
    assert isinstance(model, VQModel)
    z = model.encode(case.inputs["x"])
    quantised = model.quantize(z)
    yield "z", z
    yield "indices", quantised.indices.int()
    yield "z_q", quantised.z
    yield "codebook_loss", quantised.loss
    yield "decoded", model.decode(z)
    yield "decoded_force_not_quantize", model.decode(z, force_not_quantize=True)
    yield "min_code_margin", code_margin(model, z)


def kl(case: Case) -> Named:
    """A KL autoencoder alone."""
    model = build_first_stage(case.config["first_stage_config"]).eval()
    fill(model, case.weights(), str(case.folder))
    assert isinstance(model, AutoencoderKL)
    x = case.inputs["x"]
    posterior = model.encode(x)
    sample = posterior.sample(case.inputs["noise"])
    yield "moments", model.quant_conv(model.encoder(x))
    yield "mean", posterior.mean
    yield "logvar", posterior.logvar
    yield "std", posterior.std
    yield "kl", posterior.kl()
    yield "mode", posterior.mode()
    yield "sample", sample
    yield "decoded_mode", model.decode(posterior.mode())
    yield "decoded_sample", model.decode(sample)


def unet(case: Case) -> Named:
    """One forward pass of a U-Net, with whatever conditioning the inputs hold."""
    state = case.weights()
    net = UNet.from_config(case.config["unet_config"]["params"]).eval()
    fill(net, {k[len(UNET):]: v for k, v in state.items() if k.startswith(UNET)}, str(case.folder))
    context = case.inputs.get("context")
    table = state.get("cond_stage_model.embedding.weight")
    if context is None and "class_label" in case.inputs and table is not None:
        embedder = ClassEmbedder(table.shape[1], table.shape[0])
        fill(embedder, {"embedding.weight": table}, str(case.folder))
        context = embedder(case.inputs["class_label"])
        yield "context", context
    labels = case.inputs.get("class_label", case.inputs.get("y")) if net.label_emb is not None else None
    yield "eps", net(case.inputs["x"], case.inputs["t"], context, labels, concat=case.inputs.get("concat"))


def complete(case: Case, ema: bool) -> LatentDiffusion:
    """The whole model of a case, strictly loaded."""
    model = empty_model(case.config["model"]["params"])
    load_checkpoint(model, case.weights(), ema=ema, what=str(case.folder))
    return model


def run_ddim(model: LatentDiffusion, inputs: dict[str, Tensor], run: dict[str, Any], context: Tensor | None,
             null: Tensor | None) -> tuple[Tensor, ddim.Table, list[Tensor], list[Tensor]]:
    """One official DDIM run on stored noise: samples, table, x after each step, x0 predicted at each step."""
    plan = make_plan(model, run["S"], eta=run.get("eta", 0.0), compat=True)
    denoise = denoiser(model, plan, context=context, null=null, concat=inputs.get("concat"), guidance=run.get("scale", 1.0))
    table = plan.table
    assert isinstance(table, ddim.Table)
    xs, x0s = [], []

    def after(i: int, x: Tensor, eps: Tensor, following: Tensor) -> None:
        xs.append(following)
        x0s.append(ddim.predict_x0(x, eps, table, i))

    return run_plan(denoise, inputs["x_T"], plan, lambda i: inputs["noise"][i], after), table, xs, x0s


def sampling(case: Case) -> Named:
    """DDIM from stored noise, with classes, concatenation or nothing; then the first stage's decoder."""
    model = complete(case, ema=bool(case.config.get("use_ema", False)))
    context = null = None
    if model.cond_stage_model is not None:
        labels = case.inputs["class_label"]
        context = model.cond_stage_model(labels)
        yield "c", context
        if "uncond_class" in case.config:
            null = model.cond_stage_model(torch.full_like(labels, case.config["uncond_class"]))
            yield "uc", null
    for run in case.config["runs"]:
        z, table, xs, x0s = run_ddim(model, case.inputs, run, context, null)
        name = run["name"]
        yield f"{name}.samples", z
        yield f"{name}.x_inter", torch.stack(xs)
        yield f"{name}.pred_x0", torch.stack(x0s)
        yield f"{name}.timesteps", table.timesteps.int()
        yield f"{name}.image", model.decode(z)
        if isinstance(model.first_stage_model, VQModel):
            yield f"{name}.min_code_margin", code_margin(model.first_stage_model, z / model.scale_factor)


def loss(case: Case) -> Named:
    """The training loss, from latents, or from an image through the KL posterior."""
    model, inputs = complete(case, ema=False), case.inputs
    z = inputs["z"]
    if "image" in inputs:
        encoded = model.encode(inputs["image"], inputs.get("posterior_noise"))
        yield "scale_by_std", model.scale_factor / encoded.std()
        yield "z", encoded
        z = encoded
    context = None if model.cond_stage_model is None else model.cond_stage_model(inputs["class_label"])
    losses = eps_loss(lambda x, t: model.unet(x, t, context, concat=inputs.get("concat")), z, inputs["t"], inputs["noise"],
                      torch.from_numpy(model.alphas_cumprod).float(), model.loss_type,
                      torch.from_numpy(vlb_weights(model.betas)).float(), model.elbo_weight)
    yield "x_noisy", losses.x_noisy
    yield "loss", losses.loss
    yield "loss_simple", losses.simple
    yield "loss_vlb", losses.vlb


def checkpoint(case: Case) -> Named:
    """An official checkpoint file: raw and averaged weights, then sampling, decoding and encoding with the averaged ones."""
    state = read_state_dict(case.folder / case.config["checkpoint"])
    inputs = case.inputs
    yield "n_keys", np.int32(len(state))
    model = empty_model(case.config["model"]["params"])
    load_checkpoint(model, state, ema=False)
    context = None if model.cond_stage_model is None else model.cond_stage_model(inputs["class_label"])
    yield "eps_raw", model.unet(inputs["x"], inputs["t"], context)
    load_checkpoint(model, state, ema=True)
    yield "eps_ema", model.unet(inputs["x"], inputs["t"], context)
    averaged = unflatten_ema(state, model.unet)
    names = case.config.get("ema_check", list(averaged))
    yield "ema_check_names", np.array(names)
    yield "ema_check_sums", np.array([averaged[n].double().sum().item() for n in names])
    run = {"S": case.config["S"], "eta": case.config.get("eta", 1.0)}
    z, *_ = run_ddim(model, inputs, run, context, None)
    image = model.decode(z)
    yield "samples", z
    yield "image", image
    yield "z_encoded", model.encode(image)


KINDS = {"schedules": schedules, "vq": vq, "kl": kl, "unet": unet, "sampling": sampling, "loss": loss, "checkpoint": checkpoint}
