"""Recompute golden cases of the official INFD: every kind of case, recognised by the structure of its config.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hibench.errors import AdapterError
from hibench.golden import GoldenOutput
from methods.diffusion import ddim
from methods.diffusion.ema import EMA
from methods.diffusion.losses import per_sample, q_sample
from methods.diffusion.schedules import alphas_cumprod, linear_betas, respaced_timesteps
from methods.infd.checkpoint import fill, load_official, read_official
from methods.infd.geometry import Query, centres, nearest, relative
from methods.infd.losses import generator_loss, psnr
from methods.infd.model import INFDModel, empty_model
from methods.infd.patches import PatchRule, official_pair
from methods.infd.render import Tiles, render_float
from methods.infd.renderers import build_renderer
from methods.infd.sampling import denoiser, make_plan
from methods.infd.sampling import run as run_plan
from methods.ldm.checkpoint import read_state_dict
from methods.nn.discriminator import NLayerDiscriminator, hinge_loss

__all__ = ["golden"]

Named = Iterator[tuple[str, Any]]


class Case:
    """One case folder: its configuration, inputs as tensors, and the names of the outputs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        self.inputs = arrays((folder / self.config.get("inputs", "inputs.npz")).resolve())
        with np.load(folder / "outputs.npz") as file:
            self.wanted = tuple(file.files)

    @property
    def args(self) -> dict[str, Any]:
        """The arguments of the official class."""
        return self.config["model"]["args"]

    def state(self) -> dict[str, Tensor]:
        """All weights under the names of a training model: z_dm_ema serves as z_dm too."""
        return read_state_dict((self.folder / self.config["weights"]).resolve())

    def model(self, *children: str) -> INFDModel:
        """The network with the averaged diffusion weights (where the case has any); each child (none: all) loaded strictly."""
        model = empty_model(self.args)
        state = {k.replace("z_dm_ema.", "z_dm."): v for k, v in self.state().items()}
        for name, child in model.named_children():
            if name in children or not children:
                fill(child, {k[len(name) + 1:]: v for k, v in state.items() if k.startswith(f"{name}.")}, str(self.folder))
        return model


def arrays(path: Path) -> dict[str, Tensor]:
    """All arrays of an npz file as tensors."""
    with np.load(path) as file:
        return {k: torch.from_numpy(file[k]) for k in file.files}


def golden(folder: Path) -> Iterator[GoldenOutput]:
    """Every output of the case that this implementation knows, recomputed in float32 on the CPU."""
    case = Case(folder)
    kind = kind_of(case)
    for name, got in KINDS[kind](case):
        if name in case.wanted:
            got, scale = got if isinstance(got, tuple) else (got, None)
            yield GoldenOutput(name, got, tolerance(kind, name), scale)


def tolerance(kind: str, name: str) -> str:
    """Samples, and what is decoded from them, pass through many network evaluations; gradients through the whole network."""
    if name.startswith(("grad", "ema.")) or ".adaptive" in name:
        return "gradient"
    if kind == "ae_loss" and name.startswith(("disc.", "after.")):                  # after a step of the generator
        return "gradient"
    sampled = kind == "diffusion" and name.startswith(("x_traj", "pred_xstart", "z", "image", "min_code"))
    sampled |= kind == "checkpoint" and name.startswith(("z_sampled", "image"))
    return "sampling" if sampled else "forward"


def kind_of(case: Case) -> str:
    """Which mechanism a case exercises."""
    config, inputs = case.config, case.inputs
    for key, kind in (("schedules", "schedules"), ("queries", "queries"), ("draws", "geometry"), ("checkpoint", "checkpoint"),
                      ("discriminator", "ae_loss")):
        if key in config:
            return kind
    if "x_T" in inputs:
        return "diffusion"
    if "renders" in config:
        return "render"
    if {"inp", "t", "noise"} <= inputs.keys():
        return "dm_loss"
    if "inp" in inputs and "model" in config:
        return "autoencoder"
    raise AdapterError(f"{case.folder / 'config.json'}: not an INFD golden case: it has no schedules, queries, draws, renders, "
                       "checkpoint or discriminator, and its inputs are no image or noise")


@torch.no_grad()
def schedules(case: Case) -> Named:
    """Timesteps, betas and their products of spaced processes."""
    for name, entry in case.config["schedules"].items():
        n = entry.get("steps", 1000)
        full = alphas_cumprod(linear_betas(entry["linear_beta_start"], entry["linear_beta_end"], n))
        times = respaced_timesteps(entry.get("timestep_respacing") or n, n)
        products = full[times]
        yield f"{name}.timestep_map", times.astype(np.int32)
        yield f"{name}.alphas_cumprod", products
        yield f"{name}.betas", 1 - products / ddim.previous(full, times, 1.0)


def code_margin(model: INFDModel, z: Tensor) -> tuple[Tensor, float]:
    """The smallest gap between the squared distances to the two nearest codes, and how large those distances are.

    A difference is as exact as what is subtracted: its error is judged relative to the largest of these distances.
    """
    assert model.quantizer is not None
    flat = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1]).double()
    two = torch.cdist(flat, model.quantizer.embedding.weight.double()).square().topk(2, dim=1, largest=False).values
    return (two[:, 1] - two[:, 0]).min(), two.max().item()


@torch.no_grad()
def autoencoder(case: Case) -> Named:
    """Image to latent, codes and feature map."""
    model = case.model()
    z = model.encode(case.inputs["inp"])
    assert model.quantizer is not None
    quantised = model.quantizer(z)
    yield "z", z
    yield "indices", quantised.indices.int()
    yield "z_q", quantised.z
    yield "quant_loss", quantised.loss
    yield "phi", model.features(z)
    for name in case.wanted:
        if name.startswith("phi_from_unquantised_z_ch"):
            channels = [int(c) for c in name.removeprefix("phi_from_unquantised_z_ch").split("_")]
            yield name, model.features(z, quantise=False)[:, channels]
    yield "min_code_margin", code_margin(model, z)


def query_of(entry: dict[str, Any]) -> Query:
    """A crop of the pixel grid of a whole image, or a grid over a range."""
    if "full_shape" in entry:
        (high, wide), (r0, r1, c0, c1) = entry["full_shape"], entry["crop"]
        return Query(centres(high)[None, r0:r1], centres(wide)[None, c0:c1], torch.tensor([[2 / high, 2 / wide]]))
    (high, wide), (rows, columns) = entry["shape"], entry["range"]
    cell = torch.tensor([[(rows[1] - rows[0]) / high, (columns[1] - columns[0]) / wide]])
    return Query(centres(high, *rows)[None], centres(wide, *columns)[None], cell)


@torch.no_grad()
def queries(case: Case) -> Named:
    """A renderer alone, on patches of the plane."""
    phi = case.inputs["phi"]
    renderer = build_renderer(case.config["renderer"], phi.shape[1]).eval()
    state = {k.removeprefix("renderer."): v for k, v in case.state().items() if k.startswith("renderer.")}
    fill(renderer, state, str(case.folder))
    for entry in case.config["queries"]:
        name = entry["name"]
        if name == "native":
            yield f"{name}.out", renderer(phi)
            continue
        query = query_of(entry)
        shape = (1, query.rows.shape[1], query.columns.shape[1])
        index = [nearest(axis, cells) for axis, cells in ((query.rows, phi.shape[2]), (query.columns, phi.shape[3]))]
        offset = [relative(axis, found, cells) for axis, found, cells in zip((query.rows, query.columns), index, phi.shape[2:])]
        yield f"{name}.coord", plane(query.rows, query.columns, shape)
        yield f"{name}.cell", query.cell[:, None, None].expand(*shape, 2)
        yield f"{name}.nearest_index", plane(index[0], index[1], shape)[0].int()
        yield f"{name}.rel_coord", plane(offset[0], offset[1], shape)
        yield f"{name}.rel_cell", (query.cell * torch.tensor(phi.shape[2:]))[:, None, None].expand(*shape, 2)
        yield f"{name}.out", renderer(phi, query)


def plane(rows: Tensor, columns: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Row and column values [1, h], [1, w] as one field [1, h, w, 2]."""
    return torch.stack([rows[:, :, None].expand(shape), columns[:, None, :].expand(shape)], dim=-1)


def rendered(model: INFDModel, phi: Tensor, entry: dict[str, Any]) -> Tensor:
    """One entry of `renders`: tiles, or the whole image."""
    size = entry["output_size"]
    return render_float(model, phi, size, size, Tiles(entry["patch_size"], entry["patch_padding"]))


@torch.no_grad()
def render(case: Case) -> Named:
    """Images of one latent, in tiles and whole."""
    model = case.model("quantizer", "decoder", "renderer")
    phi = model.features(case.inputs["z"])
    for entry in case.config["renders"]:
        yield entry["name"], rendered(model, phi, entry)


def sample(model: INFDModel, inputs: dict[str, Tensor], respacing: str,
           eta: float) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """One official run on stored noise: latents, x after each step, x0 predicted at each step."""
    plan = make_plan(model, respacing, eta)
    table = plan.table
    assert isinstance(table, ddim.Table)
    xs, x0s = [], []

    def after(i: int, x: Tensor, eps: Tensor, following: Tensor) -> None:
        xs.append(following)
        x0s.append(ddim.predict_x0(x, eps, table, i))

    return run_plan(denoiser(model, plan), inputs["x_T"], plan, lambda i: inputs["noise"][i], after), xs, x0s


def respacing_of(case: Case) -> str:
    """As configured for sampling."""
    return case.args["z_dp"]["_sampling_timestep_respacing"]


@torch.no_grad()
def diffusion(case: Case) -> Named:
    """The diffusion model, its schedule, sampling with eta 1 and 0, and images of the samples."""
    model, inputs = case.model(), case.inputs
    eta = case.config.get("expanded", {}).get("diffusion", {}).get("eta", 1.0)
    times = respaced_timesteps(respacing_of(case), len(model.betas))
    yield "betas", model.betas
    yield "timestep_map", times.astype(np.int32)
    yield "spaced_alphas_cumprod", model.alphas_cumprod[times]
    yield "spaced_alphas_cumprod_prev", ddim.previous(model.alphas_cumprod, times, 1.0)
    yield "eps", model.unet(inputs["x"], inputs["t"])
    z, xs, x0s = sample(model, inputs, respacing_of(case), eta)
    yield "x_traj", torch.stack(xs)
    yield "pred_xstart", torch.stack(x0s)
    yield "z", z
    assert model.quantizer is not None
    yield "indices", model.quantizer.indices(z).int()
    yield "min_code_margin", code_margin(model, z)
    phi = model.features(z)
    for entry in case.config["renders"]:
        yield f"image_{entry['output_size']}", rendered(model, phi, entry)
    yield "z_eta0", sample(model, inputs, respacing_of(case), 0.0)[0]


def scripted(values: Iterator[Any]) -> Callable[..., Any]:
    """A generator of random numbers that gives these, whatever is asked of it."""
    return lambda *bounds: next(values)


@torch.no_grad()
def geometry(case: Case) -> Named:
    """The training pairs of scripted draws."""
    image = case.inputs["image"].numpy()
    for entry in case.config["draws"]:
        uniform, integers = iter(entry["random"]), iter(entry["randint"])
        pair = official_pair(image, PatchRule(**entry["args"]), scripted(uniform), scripted(integers))
        name, shape = entry["name"], (1, *pair.gt.shape[1:])
        yield f"{name}.inp", pair.inp
        yield f"{name}.gt", pair.gt
        yield f"{name}.gt_coord", plane(pair.query.rows, pair.query.columns, shape)[0]
        yield f"{name}.gt_cell", pair.query.cell[:, None, None].expand(*shape, 2)[0]
        yield f"{name}.randint_bounds", np.array(pair.bounds, np.int32)


def no_perceptual(fake: Tensor, real: Tensor) -> Tensor:
    """What the golden cases have in the place of LPIPS."""
    return fake.new_zeros(())


def forward(model: INFDModel, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Autoencoder in training: (patch, quantisation loss)."""
    assert model.quantizer is not None
    quantised = model.quantizer(model.encode(inputs["inp"]))
    query = Query(inputs["gt_coord"][:, :, 0, 0], inputs["gt_coord"][:, 0, :, 1], inputs["gt_cell"][:, 0, 0])
    return model.render(model.decoder(quantised.z), query), quantised.loss


def numbers(prefix: str, losses: Any, quantisation: Tensor, fake: Tensor, real: Tensor) -> Named:
    """The logged values of one generator step."""
    yield f"{prefix}.loss", losses.total
    yield f"{prefix}.quant_loss", quantisation.double()
    yield f"{prefix}.l1_loss", losses.l1.double()
    yield f"{prefix}.perc_loss", losses.perceptual.double()
    yield f"{prefix}.psnr", psnr(fake, real).double()
    if losses.adversarial is not None:
        yield f"{prefix}.gan_g_loss", losses.adversarial.double()
        yield f"{prefix}.adaptive_g_w", losses.weight.double()


def ae_loss(case: Case) -> Named:
    """One training step of the autoencoder and of the discriminator, with gradients."""
    config, inputs = case.config, case.inputs
    model = case.model().train()
    disc = NLayerDiscriminator(**{k: v for k, v in config["discriminator"].items() if k in ("input_nc", "ndf", "n_layers")})
    fill(disc, read_state_dict(case.folder / config["disc_weights"]), str(case.folder))
    names = {name: p for name, p in model.named_parameters() if not name.startswith("z_dm.")}
    gan_weight = case.args.get("loss_cfg", {}).get("gan_g_loss", 0.75)
    optimizer = torch.optim.Adam(names.values(), lr=config["optimizer"]["lr"], betas=tuple(config["optimizer"]["betas"]))
    for prefix, critic in (("nogan", None), ("gan", disc)):
        fake, quantisation = forward(model, inputs)
        losses = generator_loss(fake, inputs["gt"], quantisation, model.renderer.last_layer, no_perceptual, critic, gan_weight)
        yield from numbers(prefix, losses, quantisation, fake, inputs["gt"])
    optimizer.zero_grad()
    losses.total.backward()
    yield from ((f"grad.{name}", names[name].grad) for name in config["grads"])
    with np.load(case.folder / "outputs.npz") as stored:
        order = [str(name) for name in stored["grad_norm_names"]]
    yield "grad_norm_names", np.array(order if set(order) == {n for n, p in names.items() if p.grad is not None} else [])
    yield "grad_norms", torch.stack([names[name].grad.norm() for name in order])
    optimizer.step()
    with torch.no_grad():
        fake, _ = forward(model, inputs)
    disc.zero_grad()                                # the generator's step left gradients there
    real_logits, fake_logits = disc(inputs["gt"]), disc(fake)
    loss = hinge_loss(real_logits, fake_logits)
    loss.backward()
    yield "disc.loss", loss
    yield "disc.logits_real", real_logits.mean().double()
    yield "disc.logits_fake", fake_logits.mean().double()
    critics = dict(disc.named_parameters())
    yield from ((f"grad.{name}", critics[name.removeprefix("disc.")].grad) for name in config["disc_grads"])
    yield from ((f"after.disc.{name}", value) for name, value in disc.named_buffers())


def gradient(parameter: Tensor, largest: float) -> Any:
    """A parameter's gradient; where it is rounding noise, with the size of the gradients that it is a remainder of.

    With one channel per group, group normalisation removes the time embedding, which is constant over a channel: the true
    gradient of the embedding is 0, and 1e-10 of the largest one is stored.
    """
    found = parameter.grad
    assert found is not None
    return (found, largest) if found.abs().max().item() < 1e-6 * largest else found


def dm_loss(case: Case) -> Named:
    """The loss of the diffusion model on un-quantised latents, its gradients, and one update of the moving average."""
    model, inputs, config = case.model().train(), case.inputs, case.config
    with torch.no_grad():
        z = model.encode(inputs["inp"])
    x_t = q_sample(z, inputs["t"], inputs["noise"], torch.from_numpy(model.alphas_cumprod))
    error = per_sample(model.unet(x_t, inputs["t"]), inputs["noise"])
    error.mean().backward()
    yield "x_t", x_t
    yield "loss_per_sample", error
    yield "loss", error.mean()
    parameters = dict(model.unet.named_parameters())
    largest = max(p.grad.abs().max().item() for p in parameters.values())
    yield from ((f"grad.z_dm.{name}", gradient(parameters[name], largest)) for name in config["grads"])
    yield "grad_norms", torch.stack([p.grad.norm() for p in parameters.values()])
    average = EMA(model.unet, config["ema_rate"], warmup=False)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter += config["ema_delta"]
    average.update()
    yield from ((f"ema.{name}", average.shadow[name]) for name in config["grads"])


@torch.no_grad()
def checkpoint(case: Case) -> Named:
    """An official checkpoint file: raw and averaged weights, encoding, sampling, rendering."""
    found, inputs = read_official(case.folder / case.config["checkpoint"]), case.inputs
    yield "n_tensors", np.int32(len(found.state))
    model = empty_model(found.args)
    load_official(model, found, ema=False)
    yield "eps_raw", model.unet(inputs["x"], inputs["t"])
    load_official(model, found, ema=True)
    yield "eps_ema", model.unet(inputs["x"], inputs["t"])
    yield "z", model.encode(inputs["inp"])
    z, *_ = sample(model, inputs, found.args["z_dp"]["_sampling_timestep_respacing"], 1.0)
    yield "z_sampled", z
    phi = model.features(z)
    for entry in case.config["renders"]:
        yield f"image_{entry['output_size']}", rendered(model, phi, entry)


KINDS = {"schedules": schedules, "autoencoder": autoencoder, "queries": queries, "render": render, "diffusion": diffusion,
         "geometry": geometry, "ae_loss": ae_loss, "dm_loss": dm_loss, "checkpoint": checkpoint}
