"""Super-resolution and inpainting of scenes by the trained variants: rows of pictures, and the paper's columns of numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hibench.adapter import Resolution, to_uint8
from hibench.errors import AdapterError, SpecError, did_you_mean
from methods.ldm.conditional import inpaint, super_resolve
from methods.ldm.masks import draw_masks
from methods.ldm.pool import reduce

if TYPE_CHECKING:
    from methods.ldm.adapter import LDM
    from methods.ldm.model import LatentDiffusion

__all__ = ["TASKS", "Rows", "restoration_scores", "restore", "run_task", "variant_model"]

Rows = list[tuple[str, Tensor]]
FRECHET_FROM = 64                                   # images; fewer say too little about a distribution


def variant_model(adapter: LDM, variant: str) -> LDM:
    """The adapter itself if its weights are of this variant, else a new one beside it with the same options; loaded."""
    if adapter.options["variant"] != variant:
        if adapter.weights == "random":
            raise AdapterError(f"ldm: random weights cannot do {variant}; use weights: reference")
        adapter = type(adapter)(adapter.weights, {**adapter.options, "variant": variant}, adapter.device, adapter.dtype)
    if adapter.model is None:
        adapter.load()
    return adapter


def restoration_scores(restored: Tensor, truth: Tensor, device: str = "cpu") -> dict[str, float]:
    """Means of PSNR in dB and of SSIM over pairs uint8 [B, 3, H, W], as in the paper's Tables 5 and 7.

    From 64 pairs on also the Frechet distance of scenes-clip features between both sets, `fd@scenes-clip`.
    """
    from hibench.metrics import pairs

    restored, truth = restored.cpu(), truth.cpu()
    scores = {"psnr": float(pairs.psnr(restored, truth).mean()), "ssim": float(pairs.ssim(restored, truth).mean())}
    if len(truth) >= FRECHET_FROM:
        from hibench.features import Collector, get_extractor
        from hibench.metrics.frechet import frechet_distance

        extractor = get_extractor("scenes-clip", device)
        layer = f"{extractor.name}/{extractor.roles['features']}"
        features = []
        for images in (restored, truth):
            collector = Collector([extractor])
            for part in images.split(32):
                collector.add(part)
            features.append(collector.finish()[layer])
        scores["fd@scenes-clip"] = frechet_distance(*features)
    return scores


def restore(task: str, model: LatentDiffusion, truth: Tensor, seeds: Sequence[int], steps: int) -> tuple[Tensor, Tensor]:
    """(what was given, what was made of it) for images uint8 [B, 3, H, W], on the CPU as uint8.

    Super-resolution is given the images averaged over f x f pixels; inpainting the images with one hole per seed, grey here.
    """
    device = next(model.parameters()).device
    x = truth.to(device).float() / 127.5 - 1
    if task == "super-resolution":
        low = reduce(x, model.first_stage_model.factor)
        return to_uint8(low).cpu(), to_uint8(super_resolve(model, low, seeds, steps=steps, eta=0.0)).cpu()
    mask = draw_masks(seeds, *truth.shape[2:]).to(device)
    given = torch.where(mask > 0.5, 0.0, x)
    return to_uint8(given).cpu(), to_uint8(inpaint(model, x, mask, seeds, steps=steps)).cpu()


def _said(name: str, restored: Tensor, truth: Tensor) -> str:
    """A row's label with its numbers."""
    values = restoration_scores(restored, truth)
    parts = [f"PSNR {values['psnr']:.1f} dB", f"SSIM {values['ssim']:.2f}"]
    parts += [f"fd@scenes-clip {values['fd@scenes-clip']:.1f}"] if "fd@scenes-clip" in values else []
    return f"{name} ({', '.join(parts)})"


def _super_resolution(adapter: LDM, truth: Tensor, seeds: Sequence[int], steps: int) -> Rows:
    """Given, bicubic, LDM-SR, truth."""
    assert adapter.model is not None
    low, high = restore("super-resolution", adapter.model, truth, seeds, steps)
    bicubic = F.interpolate(low.float() / 127.5 - 1, truth.shape[2:], mode="bicubic", align_corners=False)
    bicubic = to_uint8(bicubic)
    return [("given", low), (_said("bicubic", bicubic, truth), bicubic), (_said("LDM-SR", high, truth), high), ("truth", truth)]


def _inpainting(adapter: LDM, truth: Tensor, seeds: Sequence[int], steps: int) -> Rows:
    """Given, inpainted, truth."""
    assert adapter.model is not None
    given, filled = restore("inpainting", adapter.model, truth, seeds, steps)
    return [("given", given), (_said("inpainted", filled, truth), filled), ("truth", truth)]


TASKS: dict[str, Callable[[Any, Tensor, Sequence[int], int], Rows]] = {
    "super-resolution": _super_resolution, "inpainting": _inpainting}


def run_task(adapter: LDM, task: str, resolution: Resolution, seeds: Sequence[int], steps: int) -> Rows:
    """Rows (label, uint8 [B, 3, h, w]) on the scenes of these seeds; SpecError for another task, AdapterError for a canvas that
    the network cannot take."""
    from hibench.references import scenes

    if task not in TASKS:
        raise SpecError(f"ldm: no task '{task}'{did_you_mean(task, TASKS)}; there are: {', '.join(TASKS)}")
    adapter = variant_model(adapter, task)
    if resolution[0] % adapter.multiple or resolution[1] % adapter.multiple:
        raise AdapterError(f"ldm: {resolution[0]}x{resolution[1]} px is no multiple of {adapter.multiple} px (f x U-Net)")
    return TASKS[task](adapter, scenes.render(seeds, *resolution), list(seeds), steps)
