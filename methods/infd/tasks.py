"""Inverse problems with conditions at any scale, and what else an image neural field can do besides generating.

Layout to image (§4.4 of the paper): regions of the image, of any size, are decoded at the resolution that a CLIP sees, and
sampling is guided towards their similarity with a prompt each. The field makes this possible: a region is rendered directly,
without the image around it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hibench.adapter import Resolution, seeded_noise
from hibench.errors import SpecError
from hibench.scenes_clip import INPUT_SIZE, ScenesClip
from hibench.scenes_clip import load as load_scenes_clip
from methods.diffusion import ddim
from methods.infd.geometry import whole
from methods.infd.render import render_uint8
from methods.infd.sampling import denoiser, make_plan

if TYPE_CHECKING:
    from methods.infd.adapter import INFD
    from methods.infd.model import INFDModel

__all__ = ["TASKS", "Region", "layout_latents", "region_images", "similarity"]

LAYOUT = (("a red circle", 0.0), ("a blue square", 0.5))    # of the picture: prompts, and where their half of the image begins


@dataclass(frozen=True)
class Region:
    """A prompt for a part of the image: rows top to bottom and columns left to right, as shares of the image from 0 to 1."""

    prompt: str
    top: float = 0.0
    left: float = 0.0
    bottom: float = 1.0
    right: float = 1.0

    def __post_init__(self) -> None:
        if not (0 <= self.top < self.bottom <= 1 and 0 <= self.left < self.right <= 1):
            raise SpecError(f"infd: region '{self.prompt}': {self.top:g}, {self.left:g} to {self.bottom:g}, {self.right:g} is "
                            "not a part of the image; give shares from 0 to 1")


def region_images(model: INFDModel, phi: Tensor, region: Region, side: int) -> Tensor:
    """The region of every image at side x side pixels, float32 [B, 3, side, side] in about [-1, 1]; differentiable."""
    rows, columns = (region.top * 2 - 1, region.bottom * 2 - 1), (region.left * 2 - 1, region.right * 2 - 1)
    return model.render(phi, whole(side, side, rows, columns, phi.device)).float()


def similarity(clip: ScenesClip, images: Tensor, text: Tensor) -> Tensor:
    """Cosine of scenes-clip between images float [B, 3, 64, 64] in [-1, 1] and a text embedding [D], [B]; differentiable."""
    seen = F.interpolate(images.clamp(-1, 1), size=96, mode="bilinear", align_corners=False)    # the tower's size
    return F.normalize(clip.network.encode_image(seen), dim=-1) @ F.normalize(text, dim=-1)


def layout_latents(model: INFDModel, regions: Sequence[Region], seeds: Sequence[int], steps: int, *, clip: ScenesClip,
                   shape: tuple[int, int, int], strength: float = 1.0, repeats: int = 1, eta: float = 1.0,
                   device: str | torch.device = "cpu") -> Tensor:
    """Latents [B, *shape] whose decoded regions are similar to their prompts.

    At every step the clean latent that the network predicts is decoded (with a straight-through codebook), every region is
    rendered at the size of the CLIP, and the latent is moved along the gradient of the mean similarity (as in universal
    guidance, Bansal et al. 2023), by `strength` times the size of the step's own change, `repeats` times. Image i depends on
    seeds[i] alone.
    """
    plan = make_plan(model, f"ddim{steps}", eta, device)
    assert isinstance(plan.table, ddim.Table)
    denoise = denoiser(model, plan)
    texts = [text.clone() for text in clip.encode_text([region.prompt for region in regions])]

    def score(clean: Tensor) -> Tensor:
        phi = model.features(clean)
        found = [similarity(clip, region_images(model, phi, region, INPUT_SIZE), text) for region, text in zip(regions, texts)]
        return torch.stack(found).mean(0)                                                       # [B]

    x = seeded_noise(shape, seeds, device)
    for i, stochastic in enumerate(plan.table.stochastic):
        with torch.no_grad():
            eps = denoise(x, i).float()
            noise = seeded_noise(shape, seeds, device, stream=1 + i) if stochastic else None
        for _ in range(repeats):
            clean = ddim.predict_x0(x, eps, plan.table, i).requires_grad_()
            with torch.enable_grad():
                (gradient,) = torch.autograd.grad(score(clean).sum(), clean)
            size = gradient.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
            scale = clean.detach().flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            moved = clean.detach() + 0.1 * strength * scale * gradient / size
            eps = (moved - plan.table.c[i] * x) / plan.table.d[i]                               # the noise that this implies
        x = ddim.step(x, eps, plan.table, i, noise)
    return x


def _layout(adapter: INFD, resolution: Resolution, seeds: Sequence[int], steps: int) -> list[tuple[str, Tensor]]:
    """The same seeds without and with a prompt for the left and the right half; labels give the mean similarity."""
    model = adapter.ready()
    if adapter.ldm is not None:
        raise SpecError("infd: task layout guides INFD's own diffusion; drop option latents")
    clip = load_scenes_clip(adapter.device)
    shape, view = adapter.canvas(*resolution)
    low, high = ((edge + 1) / 2 for edge in view.columns)
    middle = (low + high) / 2
    regions = [Region(prompt, left=low if begin == 0 else middle, right=middle if begin == 0 else high)
               for prompt, begin in LAYOUT]
    with torch.no_grad():
        plain = adapter.sample(shape, seeds, steps)
        guided = layout_latents(model, regions, seeds, steps, clip=clip, shape=shape, device=adapter.device)
        rows = []
        for name, z in (("no prompts", plain), ("left: {}, right: {}".format(*(p for p, _ in LAYOUT)), guided)):
            phi = model.features(z)
            texts = clip.encode_text([region.prompt for region in regions])
            found = torch.stack([similarity(clip, region_images(model, phi, region, INPUT_SIZE), text)
                                 for region, text in zip(regions, texts)]).mean()
            rows.append((f"{name} (similarity {found:.2f})", render_uint8(model, phi, *resolution, adapter.tiles, view)))
    return rows


def _scales(adapter: INFD, resolution: Resolution, seeds: Sequence[int], steps: int) -> list[tuple[str, Tensor]]:
    """One latent per seed at a shorter side of 32 px, twice that, ... up to the resolution asked for."""
    model, short = adapter.ready(), min(resolution)
    with torch.inference_mode():
        shape, view = adapter.canvas(*resolution)
        phi = model.features(adapter.sample(shape, seeds, steps))
        sides = [side for side in (32 << k for k in range(12)) if side < short] + [short]
        sizes = [tuple(max(1, round(length * side / short)) for length in resolution) for side in sides]
        return [(f"{height} x {width} px", render_uint8(model, phi, height, width, adapter.tiles, view))
                for height, width in sizes]


TASKS: dict[str, Callable[[Any, Resolution, Sequence[int], int], list[tuple[str, Tensor]]]] = {
    "layout": _layout, "scales": _scales}
