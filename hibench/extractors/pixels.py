"""Descriptors that need no weights: radial power spectrum, Laplacian-pyramid patches, gradients across patch borders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hibench.errors import SpecError

if TYPE_CHECKING:
    import torch

__all__ = ["Seams", "Spectrum", "SwdPatches", "linear_luma", "radial_power"]


def linear_luma(images: "torch.Tensor") -> "torch.Tensor":
    """uint8 [B, 3, H, W] sRGB → float32 [B, H, W] linear Rec. 709 luminance in [0, 1]."""
    import torch

    x = images.float() / 255
    linear = torch.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    return (linear * torch.tensor([0.2126, 0.7152, 0.0722], device=x.device).view(3, 1, 1)).sum(1)


def radial_power(luma: "torch.Tensor") -> "torch.Tensor":
    """Radially averaged power spectrum, float32 [B, H, W] → [B, min(H, W)//2 + 1] (cycles per shorter side), Hann-windowed,
    mean removed."""
    import torch

    b, h, w = luma.shape
    bins = min(h, w) // 2 + 1
    window = (
        torch.outer(torch.hann_window(h, periodic=False), torch.hann_window(w, periodic=False)).to(luma)
        if min(h, w) > 2
        else torch.ones(h, w, device=luma.device)
    )
    power = torch.fft.fft2((luma - luma.mean((1, 2), keepdim=True)) * window).abs().square() / window.square().sum()
    fy, fx = torch.fft.fftfreq(h) * min(h, w), torch.fft.fftfreq(w) * min(h, w)
    radius = (fy[:, None].square() + fx.square()).sqrt().round().long().to(luma.device).flatten()
    inside = radius < bins
    count = torch.zeros(bins, device=luma.device).index_add_(
        0, radius[inside], torch.ones_like(radius[inside], dtype=torch.float32)
    )
    total = torch.zeros(b, bins, device=luma.device).index_add_(1, radius[inside], power.flatten(1)[:, inside])
    return total / count


class Spectrum:
    """Per-image radial power spectra, for the distance between average spectra."""

    name, weights_sha256, resize = "spectrum", "", "none"

    def __init__(self, resolution: tuple[int, int]) -> None:
        self.roles = {"features": "power"}
        self.outputs = {"power": min(resolution) // 2 + 1}

    def __call__(self, images: "torch.Tensor") -> "dict[str, torch.Tensor]":
        return {"power": radial_power(linear_luma(images))}


class Seams:
    """Mean absolute gradient of linear luma at every offset modulo a patch period: [B, 2, period] (rows, then columns)."""

    weights_sha256, resize = "", "none"

    def __init__(self, period: int) -> None:
        if period < 2:
            raise SpecError(f"seam@{period}: the period of the patch borders must be at least 2 px")
        self.period, self.name = period, f"seam{period}"
        self.roles = {"features": "gradient"}
        self.outputs = {"gradient": 2 * period}

    def __call__(self, images: "torch.Tensor") -> "dict[str, torch.Tensor]":
        import torch

        luma = linear_luma(images)
        if min(luma.shape[-2:]) <= self.period:
            raise SpecError(
                f"seam@{self.period}: a {luma.shape[-1]}x{luma.shape[-2]} px image has no border "
                f"at a period of {self.period} px"
            )
        rows = luma.diff(dim=1).abs().mean(2)  # [B, H − 1]: entry i is the step from row i to row i + 1
        columns = luma.diff(dim=2).abs().mean(1)
        return {"gradient": torch.stack([_by_phase(rows, self.period), _by_phase(columns, self.period)], 1)}


def _by_phase(steps: "torch.Tensor", period: int) -> "torch.Tensor":
    """Mean of [B, L] over positions with the same (position + 1) mod period: phase 0 is a patch border."""
    import torch

    phase = (torch.arange(steps.shape[1], device=steps.device) + 1) % period
    total = torch.zeros(len(steps), period, device=steps.device).index_add_(1, phase, steps)
    count = torch.zeros(period, device=steps.device).index_add_(0, phase, torch.ones_like(phase, dtype=torch.float32))
    return total / count.clamp_min(1)


class SwdPatches:
    """Random 7 × 7 × 3 patches of every Laplacian-pyramid level (PGGAN 1710.10196): outputs `level-SIDE`, [B, patches · 147].

    The place of a patch depends on the image's id. Levels halve the image until its shorter side falls below 16 px. Stored as
    they are; standardisation per channel needs the whole set and happens in the metric.
    """

    needs_ids = True
    weights_sha256, resize = "", "none"

    def __init__(self, resolution: tuple[int, int], patches: int = 64) -> None:
        self.patches, self.name = patches, f"swd{patches}"
        self.roles: dict[str, str] = {}
        self.sides: list[int] = []
        side = min(resolution)
        while side >= 16 or not self.sides:
            self.sides.append(side)
            side //= 2
        self.outputs = {f"level-{s}": patches * 147 for s in self.sides}

    def __call__(self, images: "torch.Tensor", ids: Sequence[int] | None = None) -> "dict[str, torch.Tensor]":
        import torch
        import torch.nn.functional as F

        if ids is None:
            raise SpecError("swd needs each image's id (its seed or its place in the folder)")
        if min(images.shape[-2:]) < 16:
            raise SpecError(
                f"swd: a {images.shape[-1]}x{images.shape[-2]} px image is smaller than the pyramid's lowest level, 16 px"
            )
        x = images.float()
        out = {}
        for i, side in enumerate(self.sides):
            if i + 1 < len(self.sides):
                low = F.avg_pool2d(x, 2, ceil_mode=False)
                detail = x - F.interpolate(low, x.shape[-2:], mode="bilinear", align_corners=False)
            else:
                low, detail = x, x
            out[f"level-{side}"] = torch.stack([self._cut(d, int(k), side) for d, k in zip(detail, ids)])
            x = low
        return out

    def _cut(self, level: "torch.Tensor", image_id: int, side: int) -> "torch.Tensor":
        """`patches` patches of one level [3, h, w] → [patches · 147], channel first within a patch."""
        import torch

        generator = torch.Generator("cpu").manual_seed((image_id * 1_000_003 + side) % 2**63)
        h, w = level.shape[-2:]
        top = torch.randint(h - 6, (self.patches,), generator=generator).to(level.device)
        left = torch.randint(w - 6, (self.patches,), generator=generator).to(level.device)
        window = torch.arange(7, device=level.device)
        return level[:, (top[:, None] + window)[:, :, None], (left[:, None] + window)[:, None, :]].permute(1, 0, 2, 3).flatten()
