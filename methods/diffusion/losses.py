"""Training losses of diffusion: noising, targets of eps- and v-prediction, L1 or L2, and the variational bound's weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from methods.diffusion.schedules import alphas_cumprod as cumprod

__all__ = ["EpsLoss", "eps_loss", "per_sample", "q_sample", "truncated_weight", "velocity", "vlb_weights"]


class EpsLoss(NamedTuple):
    """Losses of one batch; `loss` is what is minimised."""

    loss: Tensor                                    # simple + elbo_weight * vlb
    simple: Tensor
    vlb: Tensor
    x_noisy: Tensor                                 # [B, C, H, W]


def q_sample(z: Tensor, t: Tensor, noise: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """x_t = sqrt(ab_t) z + sqrt(1 - ab_t) noise, for t int64 [B]."""
    ab = alphas_cumprod[t].view(-1, *[1] * (z.dim() - 1))
    return (ab.sqrt() * z + (1 - ab).sqrt() * noise).to(z.dtype)


def velocity(z: Tensor, t: Tensor, noise: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """v = sqrt(ab_t) noise - sqrt(1 - ab_t) z (arXiv 2202.00512, appendix D), for t int64 [B]."""
    return q_sample(noise, t, -z, alphas_cumprod)


def truncated_weight(alphas_cumprod: Tensor, most: float = 6.0) -> Tensor:
    """Of the error of v at each timestep, [T]: min(SNR + 1, most) / (SNR + 1) (after Hang et al. 2023)."""
    snr = alphas_cumprod / (1 - alphas_cumprod)
    return (snr + 1).clamp(max=most) / (snr + 1)


def vlb_weights(betas: NDArray[np.float64]) -> NDArray[np.float64]:
    """beta^2 / (2 posterior_variance alpha (1 - ab)), float64 [n]; the first, which is infinite, is replaced by the second."""
    ab = cumprod(betas)
    previous = np.concatenate([[1.0], ab[:-1]])
    variance = betas * (1 - previous) / (1 - ab)
    with np.errstate(divide="ignore"):
        weights = betas**2 / (2 * variance * (1 - betas) * (1 - ab))
    weights[0] = weights[1]
    return weights


def per_sample(prediction: Tensor, target: Tensor, kind: str = "l2") -> Tensor:
    """Mean error of each sample, [B], in float32; kind is "l1" or "l2"."""
    if kind not in ("l1", "l2"):
        raise ValueError(f"loss '{kind}' is not known: use 'l1' or 'l2'")
    error = F.l1_loss if kind == "l1" else F.mse_loss
    return error(prediction.float(), target.float(), reduction="none").flatten(1).mean(1)


def eps_loss(denoise: Callable[[Tensor, Tensor], Tensor], z: Tensor, t: Tensor, noise: Tensor, alphas_cumprod: Tensor,
             kind: str = "l2", weights: Tensor | None = None, elbo_weight: float = 0.0) -> EpsLoss:
    """LDM's training loss: `denoise(x_t, t)` predicts the noise.

    `alphas_cumprod` and `weights` (from `vlb_weights`) are [n] on the device; without `weights` the vlb loss is nan.
    """
    x_noisy = q_sample(z, t, noise, alphas_cumprod)
    error = per_sample(denoise(x_noisy, t), noise, kind)
    simple = error.mean()
    vlb = torch.full_like(simple, torch.nan) if weights is None else (weights[t] * error).mean()
    return EpsLoss(simple + elbo_weight * vlb if elbo_weight else simple, simple, vlb, x_noisy)
