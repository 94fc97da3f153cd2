"""Crops of an image as an extractor: where they lie depends on the plan and on the image's id alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hibench.errors import SpecError

if TYPE_CHECKING:
    import torch

__all__ = ["CropExtractor", "CropPlan"]


@dataclass(frozen=True)
class CropPlan:
    """`count` random crops of `size` px from every image.

    `scale="native"`: from the image as it is (INFD's pFID with count 1, DemoFusion's FID_c with count 10).
    `scale="uniform"`: the image is first resized (bicubic, antialiased) so that its shorter side is uniform in [size,
    native]: AnyRes-GAN's
    scale-matched patches (2204.07156), with the same law for both sides.
    """

    size: int
    count: int = 1
    scale: str = "native"
    seed: int = 0

    @property
    def label(self) -> str:
        """What a metric's name carries: count, scale law and seed (the size stands before it)."""
        return f"x{self.count}-{self.scale}-s{self.seed}"

    def places(self, image_id: int, height: int, width: int) -> list[tuple[int, int, int, int]]:
        """(resized height, resized width, top, left) of each crop of image `image_id`."""
        if min(height, width) < self.size:
            raise SpecError(
                f"crop of {self.size} px does not fit a {width}x{height} px image; "
                f"use a smaller crop, e.g. pfid@{min(height, width)}"
            )
        draws = _uniform(f"{self.seed}/{image_id}/{self.size}/{self.scale}", 3 * self.count)
        out = []
        for i in range(self.count):
            short, h, w = min(height, width), height, width
            if self.scale == "uniform":
                target = self.size + int(draws[3 * i] * (short - self.size + 1))
                h, w = max(target, round(height * target / short)), max(target, round(width * target / short))
            out.append((h, w, int(draws[3 * i + 1] * (h - self.size + 1)), int(draws[3 * i + 2] * (w - self.size + 1))))
        return out

    def cut(self, images: "torch.Tensor", ids: Sequence[int]) -> "torch.Tensor":
        """uint8 [B, 3, H, W] → uint8 [B · count, 3, size, size], the crops of one image side by side."""
        import torch

        from hibench.resize import bicubic_antialias

        height, width = images.shape[-2:]
        out = []
        for image, image_id in zip(images, ids):
            for h, w, top, left in self.places(int(image_id), height, width):
                scaled = image if (h, w) == (height, width) else bicubic_antialias(image[None], h, w)[0].round().to(torch.uint8)
                out.append(scaled[:, top : top + self.size, left : left + self.size])
        return torch.stack(out)


def _uniform(key: str, n: int) -> list[float]:
    """n numbers in [0, 1) that depend on the key alone, on every platform."""
    out: list[float] = []
    block = 0
    while len(out) < n:
        digest = hashlib.sha256(f"{key}/{block}".encode()).digest()
        out.extend(int.from_bytes(digest[k : k + 8], "big") / 2**64 for k in range(0, 32, 8))
        block += 1
    return out[:n]


class CropExtractor:
    """Another extractor over the crops of a plan: every output is [B, count, D]."""

    needs_ids = True

    def __init__(self, base: Any, plan: CropPlan) -> None:
        self.base, self.plan = base, plan
        self.name = f"{base.name}+crop{plan.size}-{plan.label}"
        self.weights_sha256, self.resize, self.roles = base.weights_sha256, base.resize, base.roles
        self.outputs: dict[str, int] = dict(base.outputs)

    def __call__(self, images: "torch.Tensor", ids: Sequence[int] | None = None) -> "dict[str, torch.Tensor]":
        """uint8 [B, 3, H, W] and one id per image → {output: float32 [B, count, D]}."""
        import torch

        if ids is None:
            raise SpecError("crop metrics need each image's id (its seed or its place in the folder)")
        crops = self.plan.cut(images, ids)
        parts = [self.base(crops[i : i + 32]) for i in range(0, len(crops), 32)]
        return {k: torch.cat([p[k] for p in parts]).view(len(images), self.plan.count, -1) for k in parts[0]}
