"""DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2): a second-order multistep solver, as a table of coefficients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Table", "dpm_table", "dpm_timesteps", "sample"]


@dataclass(frozen=True)
class Table:
    """Per-step coefficients in execution order, scalars on the device: x0 = c x + d eps, x' = a x + p x0 + q x0_before."""

    timesteps: Tensor                               # int64 [S], descending, on the device
    a: Sequence[Tensor]
    p: Sequence[Tensor]
    q: Sequence[Tensor]
    c: Sequence[Tensor]
    d: Sequence[Tensor]
    second_order: tuple[bool, ...]                  # is x0 of the step before used?

    @property
    def stochastic(self) -> tuple[bool, ...]:
        """This solver adds no noise."""
        return (False,) * len(self)

    def __len__(self) -> int:
        return len(self.second_order)


def dpm_timesteps(steps: int, n: int = 1000) -> NDArray[np.int64]:
    """Ascending timesteps spread evenly from near 0 to n - 1 (diffusers' "linspace" spacing)."""
    return np.linspace(0, n - 1, steps + 1).round().astype(np.int64)[1:]


def dpm_table(alphas_cumprod: NDArray[np.float64], timesteps: NDArray[np.int64], device: str | torch.device = "cpu") -> Table:
    """2M over ascending timesteps down to the clean image; the first and the last step are of first order.

    With lambda = log(alpha / sigma) and h_i = lambda_{i+1} - lambda_i:
    x' = (sigma'/sigma) x + alpha' (1 - e^-h) ((1 + h/2h_before) x0 - (h/2h_before) x0_before).
    """
    t = timesteps[::-1]
    alpha, sigma = np.sqrt(alphas_cumprod[t]), np.sqrt(1 - alphas_cumprod[t])
    alpha_next, sigma_next = np.append(alpha[1:], 1.0), np.append(sigma[1:], 0.0)
    shrink = sigma_next / sigma * alpha / alpha_next                # e^-h; 0 at the last step
    h = -np.log(shrink[:-1])
    half = np.zeros(len(t))
    half[1:-1] = 0.5 * h[1:] / h[:-1]
    gain = alpha_next * (1 - shrink)
    columns = np.stack([sigma_next / sigma, gain * (1 + half), -gain * half, 1 / alpha, -sigma / alpha])
    rows = torch.from_numpy(columns.astype(np.float32)).to(device)
    a, p, q, c, d = (row.unbind(0) for row in rows)
    return Table(torch.from_numpy(t.copy()).to(device), a, p, q, c, d, tuple(bool(v > 0) for v in half))


def sample(denoise: Callable[[Tensor, int], Tensor], x: Tensor, table: Table,
           after: Callable[[int, Tensor, Tensor, Tensor], None] | None = None) -> Tensor:
    """Run all steps from x_T [B, C, H, W]; `denoise` and `after` as in `methods.diffusion.ddim.sample`."""
    before = None
    for i, second in enumerate(table.second_order):
        eps = denoise(x, i)
        x0 = torch.addcmul(table.c[i] * x, table.d[i], eps.to(x.dtype))
        following = torch.addcmul(table.a[i] * x, table.p[i], x0)
        if second and before is not None:
            following = torch.addcmul(following, table.q[i], before)
        if after is not None:
            after(i, x, eps, following)
        x, before = following, x0
    return x
