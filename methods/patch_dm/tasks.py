"""Outpainting and inpainting: known pixels are put into every step of the sampler, the rest is denoised around them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hibench.adapter import Resolution, from_uint8, seeded_noise, to_uint8
from hibench.errors import AdapterError, SpecError
from methods.patch_dm.encoder import SemanticEncoder
from methods.patch_dm.sampling import Table, image_table, renoised

if TYPE_CHECKING:
    from methods.patch_dm.adapter import PatchDM

__all__ = ["TASKS", "encode", "fill_in", "inpaint", "outpaint", "run_task"]

REPEATS = 2                                         # how often a step is done, so that the two parts agree with each other
STREAM = 2_000_003                                  # of seeded_noise: what repeated steps add


def encode(adapter: PatchDM, images: Tensor) -> Tensor:
    """Semantic codes [B, D] of float images [B, 3, H, W] in [-1, 1]; AdapterError for a model without an encoder of images."""
    encoder = adapter.ready().unet.encoder
    if not isinstance(encoder, SemanticEncoder):
        raise AdapterError("patch-dm: these weights have no encoder of images, which inpainting and outpainting need; "
                           "use those of 'main'")
    with torch.inference_mode():
        return encoder(images.to(adapter.device)).float()


def fill_in(adapter: PatchDM, images: Tensor, known: Tensor, codes: Tensor, seeds: Sequence[int], steps: int,
            repeats: int = REPEATS, relocate: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Float images [B, 3, H, W] like the given ones where `known` (bool [B or 1, 1, H, W]) holds, and denoised elsewhere.

    In every step the clean image that the network predicts is replaced by the given one where it is known, so that DDIM carries
    both to the next step alike; each step but the last is done `repeats` times, with noise put back between (RePaint,
    arXiv 2201.09865). Image i depends on seeds[i] alone.
    """
    device = torch.device(adapter.device)
    model, size = adapter.ready(), (int(images.shape[2]), int(images.shape[3]))
    table = image_table(steps, model.target, model.schedule)
    images, known = images.to(device).float(), known.to(device)
    with torch.inference_mode():
        predict = adapter.denoiser(codes, size, table.timesteps, relocate).predict
        x = seeded_noise((3, *size), seeds, device)
        for i in range(steps):
            for again in reversed(range(repeats if i < steps - 1 else 1)):
                x = _step(predict, x, table, i, images, known)
                if again:
                    noise = seeded_noise((3, *size), seeds, device, stream=STREAM + i * repeats + again)
                    x = renoised(x, noise, table, i)
    return x


def _step(predict: Callable[[Tensor, int], Tensor], x: Tensor, table: Table, i: int, images: Tensor, known: Tensor) -> Tensor:
    """One DDIM step with known pixels."""
    x0 = predict(x, i).mul_(table.d[i]).add_(x, alpha=table.c[i]).clamp_(-1, 1)
    return table.a[i] * x + table.b[i] * torch.where(known, images, x0)


def inpaint(adapter: PatchDM, images: Tensor, hole: Tensor, seeds: Sequence[int], steps: int = 50,
            repeats: int = REPEATS) -> Tensor:
    """uint8 images [B, 3, H, W] with their hole (bool [B or 1, 1, H, W]) filled.

    The code is that of the image with the mean of its known pixels in the hole.
    """
    x = from_uint8(images)
    known = ~hole.expand(len(x), 1, *x.shape[2:])
    mean = (x * known).sum((2, 3), keepdim=True) / known.sum((2, 3), keepdim=True).clamp(min=1)
    codes = encode(adapter, torch.where(known, x, mean))
    return to_uint8(fill_in(adapter, x, known, codes, seeds, steps, repeats))


def outpaint(adapter: PatchDM, images: Tensor, canvas: Resolution, corner: tuple[int, int], seeds: Sequence[int],
             steps: int = 50, repeats: int = REPEATS) -> Tensor:
    """uint8 images [B, 3, h, w] continued to a canvas (H, W), on which their top left corner lies at `corner` (row, column).

    The code is that of the given image, and so are the positions: patches around it count on from it, below zero too (with
    option positions: stretch, the canvas takes the trained range instead).
    """
    height, width = images.shape[2:]
    top, left = corner
    if not (0 <= top <= canvas[0] - height and 0 <= left <= canvas[1] - width):
        raise SpecError(f"patch-dm: outpainting: {height}x{width} px at ({top}, {left}) do not lie on a canvas of "
                        f"{canvas[0]}x{canvas[1]} px")
    given = torch.zeros(len(images), 3, *canvas)
    known = torch.zeros(1, 1, *canvas, dtype=torch.bool)
    inside = (..., slice(top, top + height), slice(left, left + width))
    given[inside], known[inside] = from_uint8(images), True
    codes, relocate = encode(adapter, from_uint8(images)), None
    if adapter.options["positions"] == "extend":
        offset = torch.tensor([top, left], device=adapter.device) / adapter.patch
        relocate = lambda where: where - offset                                             # noqa: E731
    return to_uint8(fill_in(adapter, given, known, codes, seeds, steps, repeats, relocate))


def outpainting(adapter: PatchDM, resolution: Resolution, seeds: Sequence[int], steps: int) -> list[tuple[str, Tensor]]:
    """Scenes in the middle of a larger canvas, of the trained size where that is larger, else of half its sides."""
    from hibench.references import scenes

    patch, trained = adapter.patch, int(adapter.config["img_size"])
    larger = max(resolution) > trained
    height, width = (min(side, trained) if larger else max(patch, side // 2) for side in resolution)
    top, left = ((side - part) // 2 // patch * patch for side, part in zip(resolution, (height, width)))
    images = scenes.render(seeds, height, width)
    given = torch.full((len(images), 3, *resolution), 127, dtype=torch.uint8)
    given[..., top : top + height, left : left + width] = images
    return [("given", given), ("outpainted", outpaint(adapter, images, resolution, (top, left), seeds, steps).cpu())]


def inpainting(adapter: PatchDM, resolution: Resolution, seeds: Sequence[int], steps: int) -> list[tuple[str, Tensor]]:
    """Scenes with a hole of half their sides in the middle."""
    from hibench.references import scenes

    images = scenes.render(seeds, *resolution)
    hole = torch.zeros(1, 1, *resolution, dtype=torch.bool)
    hole[..., resolution[0] // 4: resolution[0] * 3 // 4, resolution[1] // 4: resolution[1] * 3 // 4] = True
    given = torch.where(hole, torch.tensor(127, dtype=torch.uint8), images)
    return [("original", images), ("given", given), ("inpainted", inpaint(adapter, images, hole, seeds, steps).cpu())]


TASKS = {"outpainting": outpainting, "inpainting": inpainting}


def run_task(adapter: PatchDM, task: str, resolution: Resolution, seeds: Sequence[int],
             steps: int) -> list[tuple[str, Tensor]]:
    """Rows (label, uint8 [B, 3, H, W]) of one of TASKS; SpecError for another name, AdapterError for an impossible canvas."""
    if task not in TASKS:
        raise SpecError(f"patch-dm: no task '{task}'; there are: {', '.join(TASKS)}")
    reason = adapter.supports({"height": resolution[0], "width": resolution[1], "steps": steps})
    if reason:
        raise AdapterError(f"patch-dm: {reason}")
    return TASKS[task](adapter, resolution, list(seeds), steps)
