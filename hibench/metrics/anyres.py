"""Any-resolution diagnostics: power-spectrum distance, seam ratio and scale consistency."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hibench.errors import SpecError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

__all__ = ["scale_consistency", "seam_ratio", "spectrum_distance"]


def spectrum_distance(samples: "NDArray[np.float32]", reference: "NDArray[np.float32]") -> float:
    """Mean over frequencies of |10 log₁₀ P_samples(f) − 10 log₁₀ P_reference(f)| in dB, P averaged over images [N, F].

    The mean (f = 0) is left out, and powers below 1e-10 (far under one grey level of noise) count as 1e-10.
    """
    import numpy as np

    if samples.shape[1] != reference.shape[1] or samples.shape[1] < 2:
        raise SpecError("spectrum: samples and reference must have one size of at least 2 px")
    a, b = (np.log10(np.maximum(s[:, 1:].astype(np.float64).mean(0), 1e-10)) for s in (samples, reference))
    return float(10 * np.abs(a - b).mean())


def seam_ratio(gradients: "NDArray[np.float32]") -> float:
    """Mean gradient across patch borders over the mean elsewhere, both orientations: [N, 2, period] → 1 where there is no seam.

    Phase 0 is the border. A set without any gradient (constant images) is an error: the ratio means nothing.
    """
    x = gradients.astype("float64").reshape(len(gradients), 2, -1).mean((0, 1))
    elsewhere = float(x[1:].mean())
    if elsewhere <= 0:
        raise SpecError("seam: the images have no gradient away from the borders; nothing to compare with")
    return float(x[0]) / elsewhere


def scale_consistency(high: "torch.Tensor", low: "torch.Tensor") -> "dict[str, torch.Tensor]":
    """Images at a multiple of R, box-downsampled in float, against the images at R with the same seeds.

    uint8 [B, 3, kH, kW] and [B, 3, H, W] → psnr (dB, data range 255, at most 100), mean absolute error (grey levels) and, from
    11 px on, ssim, each [B].
    """
    import torch
    import torch.nn.functional as F

    from hibench.metrics.pairs import ssim

    kh, kw = high.shape[-2] / low.shape[-2], high.shape[-1] / low.shape[-1]
    if kh != kw or kh != int(kh) or kh < 1:
        raise SpecError(
            f"scale-consistency: {high.shape[-1]}x{high.shape[-2]} px is no whole multiple "
            f"of {low.shape[-1]}x{low.shape[-2]} px"
        )
    small = F.avg_pool2d(high.float(), int(kh)) if kh > 1 else high.float()
    target = low.float()
    error = (small - target).square().mean((1, 2, 3))
    psnr = (10 * torch.log10(255.0**2 / error.clamp_min(1e-10))).clamp_max(100)
    found = {"psnr": psnr, "mae": (small - target).abs().mean((1, 2, 3))}
    return found | {"ssim": ssim(small, target)} if min(low.shape[-2:]) >= 11 else found
