"""The built-in image world: scenes, continuous captioned images that can be rendered exactly at any resolution.

A scene f_seed is a function on the plane with values in RGB; the unit square [0, 1]² is its main view, and the shorter side of
every rendering spans it (a wider rendering shows more of the same plane on both sides). It is made of

* *ground*: dead leaves (Lee, Mumford and Huang, IJCV 2001), occluding ellipses or bricks whose radii follow a power law r⁻³;
* *objects*: one salient object, sometimes a tiny companion, both named truthfully by the caption;
* *finish*: plane waves of 40 to 400 cycles per unit on every surface, most of them beyond the Nyquist limit of a 64-pixel
  image (32 cycles), so that a higher resolution holds detail which a lower one cannot.

A pixel is the mean of f over its square: supersampling for the edges, and for each wave the analytic mean over the
sub-sample's cell (a product of sincs), so rendering at R and box-downsampling to r equals rendering at r up to edge sampling.

All randomness is a counter-based integer hash (splitmix64) of the seed: the same on every platform.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hibench.errors import SpecError
from hibench.references.scene_content import (
    COLOURS,
    FINISHES,
    GROUNDS,
    MATERIALS,
    POSITIONS,
    SHAPES,
    SIZES,
    VERSION,
    Scene,
    captions,
    class_index,
    describe,
    digest,
    scene,
)
from hibench.references.scene_painter import Painter

if TYPE_CHECKING:
    import torch

__all__ = [
    "COLOURS",
    "FINISHES",
    "GROUNDS",
    "MATERIALS",
    "POSITIONS",
    "SHAPES",
    "SIZES",
    "VERSION",
    "Scene",
    "captions",
    "class_index",
    "describe",
    "digest",
    "render",
    "scene",
]

_BAND_SAMPLES = 1 << 20  # samples held at once: rendering memory does not grow with the image


def _supersampling(height: int, width: int) -> int:
    """Samples per pixel side: 2 from 96 pixels on, more below, so that edges are always sampled at 192 per unit or finer."""
    return max(2, -(-192 // min(height, width)))


def render(
    seeds: "Sequence[int | Scene]", height: int, width: int | None = None, device: "str | torch.device" = "cpu"
) -> "torch.Tensor":
    """Render scenes, given by seed or as edited `Scene`s, at height × width pixels (the shorter side spans the unit square).

    Returns uint8 [B, 3, H, W] on `device`. Memory beyond the result does not grow with the resolution.
    Raises SpecError for a side below 1 pixel or an aspect ratio beyond 16.
    """
    import torch

    width = height if width is None else width
    if min(height, width) < 1 or max(height, width) > 16 * min(height, width):
        raise SpecError(f"scenes: cannot render {height}x{width}: sides must be at least 1 px and their ratio at most 16")
    ss = _supersampling(height, width)
    band = max(1, _BAND_SAMPLES // (ss * ss * width))  # pixel rows per band
    out = torch.empty(len(seeds), 3, height, width, dtype=torch.uint8, device=device)
    with torch.inference_mode():
        for i, seed in enumerate(seeds):
            painter = Painter(seed if isinstance(seed, Scene) else scene(int(seed)), height, width, ss, device)
            for row in range(0, height, band):
                end = min(row + band, height)
                rgb = painter.shade(painter.paint(row * ss, end * ss), row * ss)
                out[i, :, row:end] = (rgb * 255).round_().to(torch.uint8)
    return out
