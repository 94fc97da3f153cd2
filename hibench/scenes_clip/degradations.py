"""Known damages of growing strength: a distance worth its name ranks them (what scenes-clip is tested with)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

from hibench.references import scenes

if TYPE_CHECKING:
    import torch

__all__ = ["DEGRADATIONS", "STRENGTHS", "degraded", "ranking"]

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


def _blur(images: "torch.Tensor", strength: float) -> "torch.Tensor":
    """Gaussian blur, σ up to 2 px at 64 px."""
    from torchvision.transforms.functional import gaussian_blur

    blurred: torch.Tensor = gaussian_blur(images, [13, 13], [max(2.0 * strength, 1e-3)] * 2)
    return blurred


def _noise(images: "torch.Tensor", strength: float) -> "torch.Tensor":
    """White noise, σ up to 40 grey levels."""
    import torch

    return images + 40 * strength * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))


def _hue(images: "torch.Tensor", strength: float) -> "torch.Tensor":
    """Rotation about the grey axis, up to 90 degrees; at 120 red is green, green is blue, and all is in the palette again."""
    import math

    import torch

    angle = math.pi / 2 * strength
    c, s = math.cos(angle), math.sin(angle)
    k = torch.full((3, 3), 1 / 3)
    cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    return torch.einsum("ij,bjhw->bihw", c * torch.eye(3) + (1 - c) * k + s * cross, images)


def _texture(images: "torch.Tensor", strength: float) -> "torch.Tensor":
    """The pixels of a share of all 4×4 blocks are shuffled: right colours, wrong texture."""
    import torch

    b, c, h, w = images.shape
    draw = torch.Generator().manual_seed(2)
    blocks = images.view(b, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 1, 3, 5).reshape(-1, c, 16)
    order = torch.rand(len(blocks), 16, generator=draw).argsort(1)
    order[torch.rand(len(blocks), generator=draw) >= strength] = torch.arange(16)
    blocks = blocks.gather(2, order[:, None].expand(-1, c, -1))
    return blocks.view(b, h // 4, w // 4, c, 4, 4).permute(0, 3, 1, 4, 2, 5).reshape(b, c, h, w)


DEGRADATIONS: dict[str, "Callable[[torch.Tensor, float], torch.Tensor] | None"] = {
    "blur": _blur,
    "noise": _noise,
    "hue": _hue,
    "texture": _texture,
    "objects": None,  # a share of the scenes is rendered without its objects
    "collapse": None,  # the same scenes again and again: at full strength one in thirty is distinct
}


def degraded(name: str, strength: float, count: int, first_seed: int) -> "torch.Tensor":
    """`count` scenes at 64 px with one damage of a strength in [0, 1]; uint8 [count, 3, 64, 64]."""
    import torch

    seeds = list(range(first_seed, first_seed + count))
    if name == "collapse":
        distinct = max(1, round(count * (1 - strength * 29 / 30)))
        seeds = [first_seed + i % distinct for i in range(count)]
    bare = round(count * strength) if name == "objects" else 0
    chosen = [dataclasses.replace(scenes.scene(s), objects=()) if i < bare else s for i, s in enumerate(seeds)]
    images = scenes.render(chosen, 64)
    damage = DEGRADATIONS[name]
    if damage is None or strength == 0:
        return images
    return damage(images.float(), strength).round().clamp(0, 255).to(torch.uint8)


def ranking(distance: "Callable[[torch.Tensor], float]", count: int, first_seed: int) -> dict[str, list[float]]:
    """distance(images) of every damage at every strength of STRENGTHS."""
    return {name: [distance(degraded(name, strength, count, first_seed)) for strength in STRENGTHS] for name in DEGRADATIONS}
