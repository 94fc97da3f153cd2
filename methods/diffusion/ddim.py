"""DDIM (arXiv 2010.02502) and ancestral DDPM sampling, written as a table of coefficients and one step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Table", "ddim_sigmas", "ddim_table", "ddpm_table", "guide", "no_noise", "predict_x0", "previous", "sample", "step"]


@dataclass(frozen=True)
class Table:
    """Per-step coefficients in execution order (descending t): x' = a x + b eps + sigma noise, x0 = c x + d eps.

    They are computed once in float64 and live on the device as float32 scalars, so that the loop never waits for the host.
    """

    timesteps: Tensor                               # int64 [S], on the device
    a: Sequence[Tensor]                             # S scalars each
    b: Sequence[Tensor]
    c: Sequence[Tensor]
    d: Sequence[Tensor]
    sigma: Sequence[Tensor]
    stochastic: tuple[bool, ...]                    # is noise added at this step?

    def __len__(self) -> int:
        return len(self.stochastic)


def ddim_sigmas(alpha: NDArray[np.float64], alpha_prev: NDArray[np.float64], eta: float) -> NDArray[np.float64]:
    """sigma_t = eta sqrt((1 - ab_prev) / (1 - ab)) sqrt(1 - ab / ab_prev)."""
    return eta * np.sqrt((1 - alpha_prev) / (1 - alpha) * (1 - alpha / alpha_prev))


def previous(alphas_cumprod: NDArray[np.float64], timesteps: NDArray[np.int64], final: float | None) -> NDArray[np.float64]:
    """alpha_bar of the timestep before each (ascending); before the first it is `final`, None = alpha_bar[0] (LDM's rule)."""
    first = alphas_cumprod[0] if final is None else final
    return np.concatenate([[first], alphas_cumprod[timesteps[:-1]]])


def pack(timesteps: NDArray[np.int64], alpha: NDArray[np.float64], a: NDArray[np.float64], b: NDArray[np.float64],
         sigma: NDArray[np.float64], device: str | torch.device) -> Table:
    """Reverse to execution order and move to the device in one copy."""
    columns = np.stack([a, b, 1 / np.sqrt(alpha), -np.sqrt((1 - alpha) / alpha), sigma])[:, ::-1]
    rows = torch.from_numpy(columns.astype(np.float32)).to(device)
    steps = torch.from_numpy(timesteps[::-1].copy()).to(device)
    of_x, of_eps, c, d, of_noise = (row.unbind(0) for row in rows)
    return Table(steps, of_x, of_eps, c, d, of_noise, tuple(bool(s > 0) for s in columns[4]))


def ddim_table(alphas_cumprod: NDArray[np.float64], timesteps: NDArray[np.int64], eta: float = 0.0,
               device: str | torch.device = "cpu", final: float | None = None) -> Table:
    """DDIM over ascending `timesteps`: eta 0 is deterministic, eta 1 has the variance of DDPM.

    `final` is alpha_bar after the last step: None = alpha_bar[0] (LDM), 1.0 = clean (ADM, INFD).
    """
    alpha = alphas_cumprod[timesteps]
    alpha_prev = previous(alphas_cumprod, timesteps, final)
    sigma = ddim_sigmas(alpha, alpha_prev, eta)
    a = np.sqrt(alpha_prev / alpha)
    b = np.sqrt(np.maximum(1 - alpha_prev - sigma**2, 0)) - a * np.sqrt(1 - alpha)
    return pack(timesteps, alpha, a, b, sigma, device)


def ddpm_table(alphas_cumprod: NDArray[np.float64], timesteps: NDArray[np.int64], device: str | torch.device = "cpu") -> Table:
    """Ancestral sampling (arXiv 2006.11239, eq. 7, small variance) over ascending `timesteps`; no noise at the last step."""
    alpha = alphas_cumprod[timesteps]
    alpha_prev = previous(alphas_cumprod, timesteps, 1.0)
    beta = 1 - alpha / alpha_prev
    a = 1 / np.sqrt(1 - beta)
    sigma = np.sqrt(beta * (1 - alpha_prev) / (1 - alpha))
    return pack(timesteps, alpha, a, -a * beta / np.sqrt(1 - alpha), sigma, device)


def step(x: Tensor, eps: Tensor, table: Table, i: int, noise: Tensor | None = None) -> Tensor:
    """x after step i: a_i x + b_i eps + sigma_i noise, float32."""
    x = torch.addcmul(table.a[i] * x, table.b[i], eps.to(x.dtype))
    return x if noise is None else torch.addcmul(x, table.sigma[i], noise)


def predict_x0(x: Tensor, eps: Tensor, table: Table, i: int) -> Tensor:
    """The clean latent that eps implies: (x - sqrt(1 - ab) eps) / sqrt(ab)."""
    return torch.addcmul(table.c[i] * x, table.d[i], eps.to(x.dtype))


def guide(eps: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (arXiv 2207.12598) of eps [2B, ...] = [unconditional, conditional]: e_u + scale (e_c - e_u)."""
    unconditional, conditional = eps.chunk(2)
    return torch.lerp(unconditional, conditional, scale)


def no_noise(i: int) -> Tensor:
    """For deterministic tables: it is an error when noise is asked for."""
    raise ValueError(f"step {i} of this sampler adds noise: give a noise function")


def sample(denoise: Callable[[Tensor, int], Tensor], x: Tensor, table: Table, noise: Callable[[int], Tensor] = no_noise,
           after: Callable[[int, Tensor, Tensor, Tensor], None] | None = None) -> Tensor:
    """Run all steps from x_T [B, C, H, W]: `denoise(x, i)` is eps at step i (time `table.timesteps[i]`).

    `noise(i)` [B, C, H, W] is asked for at stochastic steps only; `after(i, x_i, eps, x_next)` observes every step.
    """
    for i, stochastic in enumerate(table.stochastic):
        eps = denoise(x, i)
        following = step(x, eps, table, i, noise(i) if stochastic else None)
        if after is not None:
            after(i, x, eps, following)
        x = following
    return x
