"""Recompute golden cases of the official Patch-DM, each kind by the parts that sampling and training use."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hibench.errors import AdapterError
from hibench.golden import GoldenOutput
from methods.diffusion.losses import per_sample, q_sample
from methods.ldm.checkpoint import read_state_dict
from methods.patch_dm.checkpoint import fill_network
from methods.patch_dm.collage import positions
from methods.patch_dm.denoise import Denoiser
from methods.patch_dm.fast import FastUNet
from methods.patch_dm.model import PatchDM, build, diffusion_alphas_cumprod
from methods.patch_dm.prior import prior_alphas_cumprod
from methods.patch_dm.sampling import ddim_run, image_table, latent_run
from methods.patch_dm.window import cut, noised, predict, window_losses

__all__ = ["golden"]

GUIDANCE = 1.5
Named = Iterator[tuple[str, Any]]


class Case:
    """One case folder: configuration, inputs as tensors, names of outputs, and the model that it is about."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        if self.config.get("kind") not in KINDS or "model" not in self.config.get("weights", {}):
            raise AdapterError(f"{folder / 'config.json'}: not a Patch-DM golden case: it has no kind of {', '.join(KINDS)} "
                               "and weights")
        with np.load(folder / "inputs.npz") as file:
            self.inputs = {k: torch.from_numpy(file[k]) for k in file.files}
        with np.load(folder / "outputs.npz") as file:
            self.wanted = frozenset(file.files)
        self.model = self._model()

    def _model(self) -> PatchDM:
        """Strictly filled with the case's weights; parts that the weights do not have are left out."""
        file = (self.folder / self.config["weights"]["model"]).resolve()
        state = read_state_dict(file)
        has = {part: any(k.startswith(part) for k in state) for part in ("encoder.", "latent_net.")}
        znormalize = self.config.get("TrainConfig", {}).get("latent_znormalize", False)
        model = build(self.config | {"latent_znormalize": znormalize}, encoder=has["encoder."] and None,
                      prior=has["latent_net."] and None)
        fill_network(model, state, str(file))
        model.unet.eval()
        return model

    @property
    def grid(self) -> tuple[int, int]:
        return int(self.config["P"]), int(self.config["Q"])

    def codes(self) -> Tensor:
        """Given, or of the image, or a row of the table."""
        if "cond" in self.inputs:
            return self.inputs["cond"]
        encoder, given = self.model.unet.encoder, self.inputs
        assert encoder is not None
        return encoder(given["idx"] if "idx" in given else given["imgs"] if "imgs" in given else given["img"])

    def denoiser(self, codes: Tensor, times: Tensor, guided: bool) -> Denoiser:
        """As the adapter makes it."""
        network = FastUNet(self.model.unet)
        return Denoiser(network, self.model.patch, codes, self.grid, times, guidance=GUIDANCE if guided else 1.0)


def golden(folder: Path) -> Iterator[GoldenOutput]:
    """Every output of the case that this implementation knows, recomputed in float32 on the CPU."""
    case = Case(folder)
    kind = case.config["kind"]
    with torch.set_grad_enabled(kind in ("train", "latent")):
        for name, value in KINDS[kind](case):
            got, scale = value if isinstance(value, tuple) else (value, None)
            if name in case.wanted:
                yield GoldenOutput(name, got.detach() if isinstance(got, Tensor) else got, tolerance(kind, name), scale)


def tolerance(kind: str, name: str) -> str:
    """Samples pass through many evaluations, gradients through a network and back."""
    if name.startswith("grad"):
        return "gradient"
    sampled = ("sample", "model_output", "pred_xstart", "x_steps", "x_step1", "latent_sample", "cond", "image_01")
    return "sampling" if kind in ("ddim", "pipeline") and name in sampled else "forward"


def each_image(case: Case, codes: Tensor, guidance: float) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """The prediction of every image at its own timestep, and what passed through the network on the way."""
    outputs, traces = [], []
    for b in range(len(codes)):
        denoiser = case.denoiser(codes[b: b + 1], case.inputs["t"][b: b + 1], False)
        denoiser.guidance, denoiser.network.trace = guidance, {}
        outputs.append(denoiser.predict(case.inputs["x_t"][b: b + 1], 0))
        traces.append(denoiser.network.trace)
    return torch.cat(outputs), traces


def eps(case: Case) -> Named:
    """One evaluation of whole images, with everything that is collaged on the way."""
    codes, (rows, columns), batch = case.codes(), case.grid, len(case.inputs["t"])
    prediction, traces = each_image(case, codes, 1.0)
    yield "eps", prediction
    yield "cond", codes
    encoded, decoded = positions((rows + 1, columns + 1)), positions((rows, columns), (0.5, 0.5))
    yield "pos_enc", encoded.repeat(batch, 1)
    embed = case.model.unet.time_embed
    for name, where in (("emb_enc", encoded), ("emb_dec", decoded)):
        time = embed.time(case.inputs["t"]).repeat_interleave(len(where), dim=0)
        yield name, torch.cat([time, embed.position(where).repeat(batch, 1)], dim=1)
    first, last, middle = (torch.cat([t[key] for t in traces]) for key in ("dec0", "declast", "mid_out"))
    channels = middle.shape[1]
    yield "mid_out", middle
    yield "dec0_h", first[:, :channels]
    yield "dec0_lateral", first[:, channels:]
    lateral = case.model.unet.input_blocks[0][0].out_channels
    yield "declast_lateral", last[:, -lateral:][:, :4]


def training(case: Case) -> Named:
    """One training step on one window, with its gradients."""
    inputs, patch = case.inputs, case.model.patch
    unet, codes, keep = case.model.unet, case.codes(), None
    if case.config.get("cfg"):
        codes = codes * (inputs["s_random"] >= 0.1).float()[:, None]
        keep = (inputs["pos_random"] >= 0.5).float()
    corner = torch.tensor(case.config["window_index"]) * patch
    window = cut(inputs["img"], corner.expand(len(codes), 2), patch)
    noise = inputs["noise"][:, :, corner[0]: corner[0] + 2 * patch, corner[1]: corner[1] + 2 * patch]
    x = noised(window, inputs["t"], noise, torch.from_numpy(diffusion_alphas_cumprod()).float())
    prediction = predict(unet, x, inputs["t"], codes, window.where, patch, keep)
    shift, noshift = (loss.mean() for loss in window_losses(prediction, noise, window.mask))
    yield "x_t_window", x
    yield "pos_window", window.where
    yield "cond", codes
    yield "pred_shift", prediction.shift
    yield "pred_noshift_window", prediction.noshift
    yield "mask_window", window.mask.expand_as(x)
    yield "loss_shift", shift
    yield "loss_noshift", noshift
    yield "loss", shift + noshift
    (shift + noshift).backward()
    yield from gradients(case, unet)


def gradients(case: Case, module: nn.Module) -> Named:
    """Norms of all gradients, in the order of grad_norm_names.json, and some gradients themselves."""
    found = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    for name in list(found):
        found[name.replace(".linear_emb.", ".cond_layers.1.")] = found[name]
    parameters = (p.grad for p in module.parameters() if p.grad is not None)
    yield "grad_norm_total", torch.stack([g.double().norm() for g in parameters]).norm()
    file = case.folder / "grad_norm_names.json"
    if file.is_file():
        for key, names in json.loads(file.read_text()).items():
            zero = torch.zeros(())
            yield key, torch.stack([found[n].double().norm() if n in found else zero.double() for n in names])
    for name in case.wanted:
        if name.startswith("grad/") and name[5:] in found:
            yield name, found[name[5:]]


def guided(case: Case) -> Named:
    """Classifier-free guidance, and the clean image it implies."""
    codes = case.codes()
    outputs = {}
    for name, guidance in (("eps_cond", 1.0), ("eps_uncond", 0.0), ("eps_guided", 1 + case.config["w"])):
        parts = [case.denoiser(codes[b: b + 1], case.inputs["t"][b: b + 1], True) for b in range(len(codes))]
        for part in parts:
            part.guidance = guidance if guidance != 1.0 else 1.0 + 1e-12        # still two branches
        outputs[name] = torch.cat([p.predict(case.inputs["x_t"][b: b + 1], 0) for b, p in enumerate(parts)])
    yield from outputs.items()
    ab = torch.from_numpy(diffusion_alphas_cumprod())[case.inputs["t"]].float().view(-1, 1, 1, 1)
    x0 = (case.inputs["x_t"] - (1 - ab).sqrt() * outputs["eps_guided"]) / ab.sqrt()
    yield "pred_xstart_noclip", x0
    yield "pred_xstart", (x0.clamp(-1, 1), x0.abs().max().item())


def ddim(case: Case) -> Named:
    """A whole run of the image sampler."""
    table, x0s, xs, outputs = image_table(case.config["T"]), [], [], []
    yield "timesteps", table.timesteps
    yield "alphas_cumprod", table.alphas_cumprod
    denoiser = case.denoiser(case.codes(), torch.from_numpy(table.timesteps), bool(case.config["cfg"]))
    outputs = denoiser.outputs = []

    def after(i: int, x0: Tensor, x: Tensor) -> None:
        x0s.append(x0.clone())
        xs.append(x.clone())

    yield "sample", ddim_run(denoiser.predict, case.inputs["x_T"].clone(), table, after=after).clone()
    yield "model_output", torch.stack(outputs)
    yield "pred_xstart", torch.stack(x0s)
    yield "x_steps", torch.stack(xs)
    yield "x_step1", xs[0]


def table_statistics(model: PatchDM) -> tuple[Tensor, Tensor]:
    """Column means and unbiased deviations of a table of codes, [1, D]."""
    assert model.unet.encoder is not None
    codes = model.unet.encoder.semantic_enc.weight.detach()
    return codes.mean(0, keepdim=True), codes.std(0, keepdim=True)


def pipeline(case: Case) -> Named:
    """The prior's sampler, de-normalised, then the image sampler."""
    model, config = case.model, case.config
    if model.config["latent_znormalize"]:
        model.mean, model.std = table_statistics(model)
    latent_times, table = image_table(config["T_latent"]).timesteps, image_table(config["T"])
    yield "latent_timesteps", latent_times
    yield "timesteps", table.timesteps
    assert model.unet.latent_net is not None
    codes = latent_run(model.unet.latent_net, case.inputs["latent_noise"], config["T_latent"])
    yield "latent_sample", codes
    cond = model.denormalise(codes)
    yield "cond", cond
    denoiser = case.denoiser(cond, torch.from_numpy(table.timesteps), bool(config["cfg"]))
    sample = ddim_run(denoiser.predict, case.inputs["x_T"].clone(), table)
    yield "sample", sample
    yield "image_01", (sample + 1) / 2


def encoder(case: Case) -> Named:
    """The semantic encoder on images of several sizes."""
    network = case.model.unet.encoder
    assert network is not None
    for name, image in case.inputs.items():
        size = name.removeprefix("img_")
        yield f"cond_{size}", network(image)
        yield f"feature2d_{size}", network.features(image)


def latent(case: Case) -> Named:
    """The prior: one evaluation, normalisation, and its loss with gradients."""
    model, inputs = case.model, case.inputs
    net = model.unet.latent_net
    assert net is not None
    model.mean, model.std = table_statistics(model)
    yield "conds_mean", model.mean
    yield "conds_std", model.std
    yield "y", net(inputs["x"], inputs["t"])
    normalized = model.normalise(inputs["codes"])
    yield "normalized", normalized
    yield "denormalized", model.denormalise(inputs["x"])
    x_t = q_sample(normalized, inputs["t"], inputs["noise"], torch.from_numpy(prior_alphas_cumprod()).float())
    loss = per_sample(net(x_t, inputs["t"]), inputs["noise"], "l1")
    yield "x_t", x_t
    yield "loss", loss
    yield "loss_mean", loss.mean()
    loss.mean().backward()
    yield from gradients(case, net)


KINDS: dict[str, Callable[[Case], Named]] = {"eps": eps, "train": training, "cfg": guided, "ddim": ddim, "pipeline": pipeline,
                                             "encoder": encoder, "latent": latent}
