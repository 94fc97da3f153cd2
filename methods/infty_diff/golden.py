"""Recompute golden cases of the official ∞-Diff: every kind of case, named by `kind` in its config.json."""

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
from methods.diffusion.schedules import respaced_timesteps
from methods.infty_diff.checkpoint import strip
from methods.infty_diff.decoder import Decoder, read_back
from methods.infty_diff.encoder import Encoder
from methods.infty_diff.geometry import Canvas, Points, nearest
from methods.infty_diff.mollifier import Mollifier
from methods.infty_diff.prior import Prior
from methods.infty_diff.process import ancestral_step, ddim_step, ddim_table, latent_alphas, process_alphas
from methods.infty_diff.sparse import SparseBlock, make_support
from methods.ldm.checkpoint import fill, read_state_dict
from methods.nn.attention import from_tokens, to_tokens

__all__ = ["golden"]

Named = Iterator[tuple[str, Any]]


class Case:
    """One case folder: its configuration, inputs as tensors, and the outputs that are wanted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        self.inputs = arrays(folder / "inputs.npz")
        self.wanted = arrays(folder / "outputs.npz")

    def fill(self, module: nn.Module, name: str) -> Any:
        """A module filled from the case's weights of this name, strictly."""
        file = (self.folder / self.config["weights"][name]).resolve()
        fill(module, strip(read_state_dict(file)), str(file))
        return module.eval()


def arrays(path: Path) -> dict[str, Tensor]:
    """All arrays of an npz file as tensors."""
    with np.load(path) as file:
        return {k: torch.from_numpy(file[k]) for k in file.files}


def golden(folder: Path) -> Iterator[GoldenOutput]:
    """Every output of the case, recomputed in float32 on the CPU."""
    case = Case(folder)
    kind = case.config.get("kind")
    if kind not in KINDS:
        raise AdapterError(f"{folder / 'config.json'}: kind {kind!r} is not a case of ∞-Diff; known: {', '.join(KINDS)}")
    for name, got in KINDS[kind](case):
        if name in case.wanted:
            gradient, sampled = name.startswith("grad"), kind == "ddim"
            yield GoldenOutput(name, got, "gradient" if gradient else "sampling" if sampled else "forward")


class Probe:
    """Outputs of sub-modules during one forward pass, and the inputs of some."""

    def __init__(self, module: nn.Module) -> None:
        self.outputs: dict[str, Any] = {}
        self.inputs: dict[str, Any] = {}
        for name, sub in module.named_modules():
            if name:
                sub.register_forward_hook(self.keep(name))

    def keep(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        """The hook that remembers one module."""

        def hook(_: nn.Module, inputs: Any, output: Any) -> None:
            self.inputs[name], self.outputs[name] = inputs, output

        return hook


def block(case: Case) -> Named:
    """One sparse block at a subset of points and, with time and code, on all pixels at several resolutions."""
    o, inputs = case.config["SparseConvResBlock"], case.inputs
    conditioned = "t" in inputs or "z" in inputs
    net = case.fill(SparseBlock(o["embed_dim"], o["kernel_size"], o["mult"], o["skip_dim"] or 0, o["time_emb_dim"], o["z_dim"],
                                o["depthwise"], o["epsilon"], plain=not conditioned), "block")
    mods: list[Any] = [None, None]
    if conditioned:
        pairs = [(time(inputs["t"])[:, None].chunk(2, -1), 1 + code(inputs["z"])[:, None]) for time, code in net.sites()]
        mods = [((1 + scale) * code, shift * code) for (scale, shift), code in pairs]
    size, kernel, probe = o["img_size"], o["kernel_size"], Probe(net)
    with torch.no_grad():
        points = Points(Canvas(size, size, size, 1), inputs["sample_lst"])
        support = make_support(points, kernel, False)
        yield "y", net(inputs["x"], support, *mods, skip=inputs.get("skip"))
        yield "conv_in", probe.inputs["block.conv"][0]
        yield "conv_out", probe.outputs["block.conv"]
        yield "norm", points.norm(kernel)
        for name in inputs:
            if name.startswith("dense_x_"):
                tag, side = name.removeprefix("dense_x_"), inputs[name].shape[-1]
                points = Points(Canvas(side, side, size, 1))
                skip = inputs.get(f"dense_skip_{tag}")
                skip = None if skip is None else to_tokens(skip)
                y = net(to_tokens(inputs[name]), make_support(points, kernel, False), *mods, skip=skip)
                yield f"dense_y_{tag}", from_tokens(y, side, side)
                yield f"dense_norm_{tag}", spread(points.norm(kernel), len(y), side)


def spread(norm: Tensor, batch: int, side: int) -> Tensor:
    """The norm of all pixels as the official code holds it: [B, 1, S, S]."""
    return norm.view(1, 1, side, side).expand(batch, -1, -1, -1)


def points_of(net: Decoder | Encoder, inputs: dict[str, Tensor]) -> tuple[Points, Tensor]:
    """The points of a case and the features there: tokens with `sample_lst`, or a whole image."""
    x = inputs["x"]
    if "sample_lst" in inputs:
        return Points(net.canvas(net.size, net.size), inputs["sample_lst"]), x
    return Points(net.canvas(*x.shape[2:])), to_tokens(x)


def decoder(case: Case) -> Named:
    """The decoder on all pixels or on a subset, with what happens inside."""
    net, inputs = case.fill(Decoder.from_config(case.config["SparseUNet"]), "decoder"), case.inputs
    points, tokens = points_of(net, inputs)
    side, batch, probe = points.canvas.width, len(tokens), Probe(net)

    def layout(x: Tensor) -> Tensor:
        return from_tokens(x, side, side) if points.dense else x

    with torch.no_grad():
        support = net.support(points, whole_grid=True)
        yield "y", layout(net(tokens, support, net.times(inputs["t"]), net.codes(inputs["z"])))
        yield "t_emb", net.time_mlp(probe.inputs["time_mlp"][0])
        norm = points.norm(net.kernel)
        yield "norm", spread(norm, batch, side) if points.dense else norm.expand(batch, -1, -1)
        for name in probe.outputs:
            if name.startswith(("down_blocks.", "up_blocks.")) and name.count(".") == 1:
                yield name, layout(probe.outputs[name])
        yield from neighbours(case, points, batch)
        yield "knn_grid", probe.outputs["uno_linear_in"]
        grid, _ = probe.outputs["uno"]
        yield "uno_out", from_tokens(grid, *points.canvas.grid)
        yield "grid_sampled", read_back(grid, support).transpose(1, 2)


def neighbours(case: Case, points: Points, batch: int) -> Named:
    """The nearest points to every cell. Where several are equally far their order is arbitrary: the case's is taken."""
    distances, index = (part.expand(batch, -1, -1) for part in nearest(points))
    want = case.wanted.get("knn_idx")
    if want is not None and want.shape == index.shape:
        same = (want.sort(-1).values == index.sort(-1).values).all(-1, keepdim=True)
        ordered = distances_of(points, want.long()).diff(dim=-1) >= 0
        index = torch.where(same & ordered.all(-1, keepdim=True), want.long(), index)
    yield "knn_dist2", distances
    yield "knn_idx", index.int()


def distances_of(points: Points, index: Tensor) -> Tensor:
    """Squared distances between every cell and the points `index` [B, cells, k]."""
    positions = points.positions().expand(len(index), -1, -1)
    chosen = positions.gather(1, index.flatten(1)[..., None].expand(-1, -1, 2)).view(*index.shape, 2)
    return (chosen - points.canvas.cells()[None, :, None]).square().sum(-1)


def encoder(case: Case) -> Named:
    """The encoder on all pixels or on a subset."""
    net = case.fill(Encoder.from_config(case.config["SparseEncoder"]), "encoder")
    points, tokens = points_of(net, case.inputs)
    probe = Probe(net)
    with torch.no_grad():
        yield "z", net(tokens, net.support(points))
        yield "norm", points.norm(net.kernel).expand(len(tokens), -1, -1)
        for i in range(len(net.down_blocks)):
            yield f"down_blocks.{i}", probe.outputs[f"down_blocks.{i}"]
        yield from neighbours(case, points, len(tokens))
        yield "knn_grid", probe.outputs["uno_linear_in"]
        yield "uno_out", from_tokens(*(lambda tokens, grid: (tokens, *grid))(*probe.outputs["uno"]))


def mollifier(case: Case) -> Named:
    """The blur, its gain, and the Wiener inverse."""
    for o in case.config["DCTGaussianBlur"]:
        name, blur = o["name"], Mollifier.make(o["img_size"], o["img_size"], o["std"], o["inv_snr"])
        x = case.inputs[f"x_{name}"]
        yield f"blur_{name}", blur(x)
        yield f"undo_of_blur_{name}", blur.undo(blur(x))
        yield f"undo_{name}", blur.undo(x)
        yield f"gaussian_{name}", blur.gaussian


def ddim(case: Case) -> Named:
    """Sampling from stored noise and codes."""
    o, inputs = case.config["SpacedDiffusion"], case.inputs
    net = case.fill(Decoder.from_config(case.config["SparseUNet"]), "decoder")
    size = case.config["sample_img_size"]
    ratio = size / o["img_size"]
    blur = Mollifier.make(size, size, o["gaussian_filter_std"] * ratio)
    ab = process_alphas(o["steps"])
    table = ddim_table(respaced_timesteps(o["sampling_steps"], o["steps"]), ab=ab)
    points = Points(net.canvas(size, size))
    outputs, states, clean = [], [], []
    with torch.no_grad():
        x = x_t = blur(inputs["white_noise"] * ratio)
        support, codes = net.support(points), net.codes(inputs["z"])
        for i, t in enumerate(table.timesteps):
            times = net.times(torch.tensor([float(t) * 1000 / o["steps"]]))
            outputs.append(from_tokens(net(to_tokens(x), support, times, codes), size, size))
            step = ddim_step(x, outputs[-1], table, i)
            x = step.x
            states.append(step.x)
            clean.append(step.x0)
    yield "timesteps", table.timesteps
    yield "alphas_cumprod", ab[table.timesteps]
    yield "x_T", x_t
    yield "model_output", torch.stack(outputs)
    yield "pred_xstart", torch.stack(clean)
    yield "x_steps", torch.stack(states)
    yield "x_step1", states[0]
    yield "sample", x
    yield "sample_deblurred", blur.undo(x)


def training(case: Case) -> Named:
    """The training loss with the encoder, and the gradients of its mean."""
    o, inputs = case.config["GaussianDiffusion"], case.inputs
    dec = case.fill(Decoder.from_config(case.config["SparseUNet"]), "decoder")
    enc = case.fill(Encoder.from_config(case.config["SparseEncoder"]), "encoder")
    x0, t, size = inputs["x0"], inputs["t"], o["img_size"]
    blur = Mollifier.make(size, size, o["gaussian_filter_std"])
    ab = torch.from_numpy(process_alphas(o["steps"])).float()
    x_t, noise = blur(q_sample(x0, t, inputs["noise"], ab)), blur(inputs["noise"])
    points, seen = (Points(dec.canvas(size, size), inputs[k]) for k in ("sample_lst", "encoder_sample_lst"))
    z = enc(at(x0, seen), enc.support(seen))
    out = dec(at(x_t, points), dec.support(points), dec.times(t * 1000 / o["steps"]), dec.codes(z))
    loss = per_sample(out, at(noise, points))
    loss.mean().backward()
    yield "loss", loss.detach()
    yield "loss_mean", loss.mean().detach()
    yield "x_t", x_t
    yield "x_t_sampled", at(x_t, points)
    yield "z", z.detach()
    yield "model_output", out.detach()
    yield "target", at(noise, points)
    names = json.loads((case.folder / "grad_norm_names.json").read_text())
    for part, net in (("decoder", dec), ("encoder", enc)):
        grads = {k: p.grad for k, p in net.named_parameters() if p.grad is not None}
        norms = {k: g.norm() for k, g in grads.items()}
        yield f"grad_norm_total_{part}", torch.stack(list(norms.values())).norm()
        yield f"grad_norms_{part}", torch.stack([norms[k] for k in names[f"grad_norms_{part}"]])
        for name, grad in grads.items():
            yield f"grad/{part}/{name}", grad


def at(images: Tensor, points: Points) -> Tensor:
    """Tokens [B, L, C] of images [B, C, H, W] at the points."""
    assert points.index is not None
    return to_tokens(images).gather(1, points.index[..., None].expand(-1, -1, images.shape[1]))


def latent(case: Case) -> Named:
    """The latent prior: a forward pass, the L1 loss, and one ancestral step."""
    o, inputs = case.config["GaussianDiffusion"], case.inputs
    net, ab = case.fill(Prior.from_config(case.config["MLPSkipNet"]), "latent"), latent_alphas(o["steps"])
    x, t = inputs["x"], inputs["t"]
    with torch.no_grad():
        eps = net(x, net.scales(t * 1000 / o["steps"]))
        noisy = q_sample(x, t, inputs["noise"], torch.from_numpy(ab).float())
        yield "y", eps
        yield "x_t", noisy
        yield "loss", per_sample(net(noisy, net.scales(t)), inputs["noise"], "l1")
        steps = [ancestral_step(x[i], eps[i], int(t[i]), ab, inputs["p_noise"][i] if t[i] > 0 else None) for i in range(len(x))]
    yield "p_sample", torch.stack([step.x for step in steps])
    yield "p_pred_xstart", torch.stack([step.x0 for step in steps])


KINDS: dict[str, Callable[[Case], Named]] = {"block": block, "decoder": decoder, "encoder": encoder, "mollifier": mollifier,
                                             "ddim": ddim, "train": training, "latent": latent}
