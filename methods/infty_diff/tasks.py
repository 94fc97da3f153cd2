"""What ∞-Diff can do besides generating: super-resolution and inpainting of scenes, as functions and as rows of pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from hibench.adapter import from_uint8, to_uint8
from methods.infty_diff.encoder import Encoder
from methods.infty_diff.geometry import Points
from methods.infty_diff.process import advance, clean_estimate, process_alphas
from methods.infty_diff.sampling import Plan, mollified_noise, reverse
from methods.nn.attention import from_tokens, to_tokens

if TYPE_CHECKING:
    from methods.infty_diff.adapter import InftyDiff

__all__ = ["TASKS", "encode", "inpaint", "noisy_start", "super_resolve"]

Rows = list[tuple[str, Tensor]]


def encode(encoder: Encoder, images: Tensor, known: Tensor | None = None) -> Tensor:
    """Codes float32 [B, z] of images [B, 3, H, W] in [-1, 1], from all coordinates or from the `known` ones, bool [H, W].

    The encoder takes any set of coordinates, so what is not known is simply not among them.
    """
    dtype = encoder.linear_in.weight.dtype
    canvas = encoder.canvas(*images.shape[2:])
    index = None if known is None else known.flatten().nonzero()[:, 0].cpu()[None]
    support = encoder.support(Points(canvas, index)).to(images.device)
    tokens = to_tokens(images)
    if support.points.index is not None:
        tokens = tokens[:, support.points.index[0]]
        support = support.pick(torch.zeros(len(images), dtype=torch.long, device=images.device))
    return encoder(tokens.to(dtype), support).float()


def noisy_start(plan: Plan, images: Tensor, seeds: Sequence[int]) -> Tensor:
    """x at the plan's first time, of images [B, 3, H, W] instead of pure noise: T (sqrt(ab) x0 + sqrt(1 - ab) noise)."""
    ab = float(process_alphas()[plan.table.timesteps[0]])
    return ab**0.5 * plan.blur(images) + (1 - ab) ** 0.5 * mollified_noise(plan, seeds, images.device)


@torch.inference_mode()
def super_resolve(method: "InftyDiff", images: Tensor, resolution: tuple[int, int], seeds: Sequence[int], steps: int,
                  start: int | None = None) -> Tensor:
    """Images [B, 3, h, w] in [-1, 1] at a higher resolution, float32 [B, 3, H, W]: encoded where they are, decoded there.

    The code carries what is in the image; with `start` t_s (0 ... 999) the reverse process begins at that time, from the
    image itself, enlarged bicubically and noised, instead of from noise at 999: the smaller t_s, the more of the image stays.
    """
    networks = method.ready()
    codes = networks.decoder.codes(encode(networks.encoder, images))
    plan = method.plan(resolution, steps, start=start)
    if start is None:
        x = mollified_noise(plan, seeds, images.device)
    else:
        larger = F.interpolate(images, resolution, mode="bicubic", align_corners=False).clamp(-1, 1)
        x = noisy_start(plan, larger, seeds)
    return plan.blur.undo(reverse(networks.decoder, plan, x, codes))


def inpaint(method: "InftyDiff", images: Tensor, known: Tensor, seeds: Sequence[int], steps: int,
            strength: float = 1.0) -> Tensor:
    """Images [B, 3, H, W] in [-1, 1] completed where `known`, bool [H, W], is false, by reconstruction guidance.

    The code is that of the known coordinates. At every step T x0, as predicted, is compared with T of what is known, at the
    coordinates whose blur reaches known pixels only; x moves against the gradient of the summed squared error, taken through
    the network, `strength` times (Ho et al. 2022, arXiv 2204.03458, §3.1), and the known coordinates take their true value in
    the predicted T x0. At the end known pixels are copied.
    """
    networks, device = method.ready(), images.device
    decoder = networks.decoder
    with torch.no_grad():
        codes = decoder.codes(encode(networks.encoder, images * known, known))
        plan = method.plan((images.shape[2], images.shape[3]), steps)
        weight = plan.blur(known.float()[None, None])
        sure = weight > 0.98
        target = plan.blur(images * known) / weight.clamp(min=0.5)
        x = mollified_noise(plan, seeds, device)
        e = plan.evaluation(decoder, Points(plan.canvas))
    for i in range(len(plan)):
        with torch.enable_grad():
            x = x.detach().clone().requires_grad_()
            out = decoder(to_tokens(x * plan.table.e[i]), e.support, plan.times[i], codes)
            x0 = clean_estimate(x, from_tokens(out, plan.canvas.height, plan.canvas.width), plan.table, i)
            error = ((x0 - target).square() * sure).sum()
            gradient, = torch.autograd.grad(error, x)
        with torch.no_grad():
            x0 = torch.where(sure, target, (x0 - strength * gradient).clamp(-1, 1))
            x = advance(x, x0, plan.table, i)
    with torch.no_grad():
        return torch.where(known, images, plan.blur.undo(x))


def scenes(seeds: Sequence[int], height: int, width: int, device: str) -> Tensor:
    """Scenes float32 [B, 3, H, W] in [-1, 1]."""
    from hibench.references import scenes

    return from_uint8(scenes.render(list(seeds), height, width), device)


def super_resolution_rows(method: "InftyDiff", resolution: tuple[int, int], seeds: Sequence[int], steps: int) -> Rows:
    """Scenes at a quarter of the resolution, enlarged bicubically, decoded at the resolution, and as they are there."""
    low = (max(8, resolution[0] // 4), max(8, resolution[1] // 4))
    small = scenes(seeds, *low, device=method.device)
    start = method.options["start"]
    larger = super_resolve(method, small, resolution, seeds, steps, start)
    bicubic = F.interpolate(small, resolution, mode="bicubic", align_corners=False)
    size = f"{resolution[0]}x{resolution[1]}"
    how = "from noise" if start is None else f"from t = {start}"
    return [(f"scene, {low[0]}x{low[1]}", to_uint8(small)), (f"bicubic, {size}", to_uint8(bicubic)),
            (f"encoded, decoded at {size}, {how}", to_uint8(larger)),
            (f"scene, {size}", to_uint8(scenes(seeds, *resolution, device=method.device)))]


def inpainting_rows(method: "InftyDiff", resolution: tuple[int, int], seeds: Sequence[int], steps: int) -> Rows:
    """Scenes, scenes without their middle, and two completions of them."""
    height, width = resolution
    images = scenes(seeds, height, width, device=method.device)
    known = torch.ones(height, width, dtype=torch.bool, device=method.device)
    known[height // 4 : height - height // 4, width // 4 : width - width // 4] = False
    completions = [inpaint(method, images, known, [seed + shift for seed in seeds], steps) for shift in (0, 10_000)]
    return [("scene", to_uint8(images)), ("known", to_uint8(torch.where(known, images, 0.0))),
            ("inpainted", to_uint8(completions[0])), ("inpainted, other noise", to_uint8(completions[1]))]


TASKS: dict[str, Callable[["InftyDiff", tuple[int, int], Sequence[int], int], Rows]] = {
    "super-resolution": super_resolution_rows, "inpainting": inpainting_rows}
