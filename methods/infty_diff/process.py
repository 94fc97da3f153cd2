"""The two diffusion processes: clamped DDIM steps of the decoder, ancestral steps of the latent prior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from methods.diffusion.schedules import alphas_cumprod, cosine_betas
from methods.infty_diff.mollifier import gain

__all__ = ["DdimTable", "Process", "Step", "advance", "ancestral_step", "clean_estimate", "ddim_step", "ddim_table",
           "latent_alphas", "process_alphas"]


def process_alphas(n: int = 1000) -> NDArray[np.float64]:
    """alpha_bar of the decoder's process: the cosine schedule."""
    return alphas_cumprod(cosine_betas(n))


def latent_alphas(n: int = 1000) -> NDArray[np.float64]:
    """alpha_bar of the latent prior's process: constant betas of 0.008."""
    return alphas_cumprod(np.full(n, 0.008))


@dataclass(frozen=True)
class Process:
    """What the decoder was trained on, and how its output is to be read.

    The official network predicts T xi. With `velocity` the prediction is v = sqrt(ab) T xi - sqrt(1 - ab) T x0 (arXiv
    2202.00512), and with `data_std` s it is v = k x + c_out F(c_in x), F the network, as Karras et al. (arXiv 2206.00364)
    derive for images of std s: then F has nothing to do with what a multiple of x explains already, at any noise level.
    """

    sigma: float = 1.0                              # std of the mollifier in pixels of the training images; 0: white noise
    velocity: bool = False
    data_std: float | None = None                   # of T x0; None: no preconditioning
    inv_snr: float = 0.05                           # of the Wiener inverse
    size: int = 64                                  # side of the training images, for the std of T xi

    @classmethod
    def from_config(cls, config: dict[str, Any], size: int, inv_snr: float | None = None) -> "Process":
        """From the section `diffusion` of a configuration."""
        return cls(config.get("gaussian_filter_std", 1.0), config.get("predicts") == "velocity", config.get("data_std"),
                   inv_snr or config.get("inv_snr", 0.05), size)

    @property
    def noise_std(self) -> float:
        """Mean std of T xi: the mean over frequencies of the squared gain, of one side and so of both."""
        return float(gain(self.size, self.sigma).square().mean())

    def coefficients(self, ab: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
        """(c_in, k, c_out) at noise levels ab [n]: the network sees c_in x, and k x + c_out F is v or T xi."""
        if self.data_std is None:
            return np.ones_like(ab), np.zeros_like(ab), np.ones_like(ab)
        data, noise = self.data_std**2, self.noise_std**2
        std = np.sqrt(ab * data + (1 - ab) * noise)
        return 1 / std, np.sqrt(ab * (1 - ab)) * (noise - data) / std**2, np.sqrt(data * noise) / std


@dataclass(frozen=True)
class DdimTable:
    """Coefficients of deterministic DDIM in execution order, Python floats: x0 = c x + d F(e x), x' = u x + v x0."""

    timesteps: NDArray[np.int64]                    # descending
    c: tuple[float, ...]
    d: tuple[float, ...]
    e: tuple[float, ...]
    u: tuple[float, ...]
    v: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.c)


def ddim_table(timesteps: NDArray[np.int64], process: Process = Process(), ab: NDArray[np.float64] | None = None) -> DdimTable:
    """DDIM with eta 0 over ascending timesteps down to the clean image (arXiv 2010.02502, eq. 12)."""
    ab = process_alphas() if ab is None else ab
    now = ab[timesteps]
    after = np.concatenate([[1.0], now[:-1]])
    u = np.sqrt((1 - after) / (1 - now))
    c, d = (np.sqrt(now), -np.sqrt(1 - now)) if process.velocity else (1 / np.sqrt(now), -np.sqrt(1 / now - 1))
    c_in, k, c_out = process.coefficients(now)
    columns = (c + d * k, d * c_out, c_in, u, np.sqrt(after) - u * np.sqrt(now))
    return DdimTable(timesteps[::-1].copy(), *(tuple(float(value) for value in column[::-1]) for column in columns))


class Step(NamedTuple):
    """A state after one step, and the clean T x0 that the step assumed."""

    x: Tensor
    x0: Tensor


def clean_estimate(x: Tensor, out: Tensor, table: DdimTable, i: int) -> Tensor:
    """The T x0 that the network's output implies at step i, clamped to [-1, 1] as in the official sampler."""
    return torch.add(x * table.c[i], out, alpha=table.d[i]).clamp_(-1, 1)


def advance(x: Tensor, x0: Tensor, table: DdimTable, i: int) -> Tensor:
    """The state after step i under the assumption that T x0 is `x0`."""
    return torch.add(x * table.u[i], x0, alpha=table.v[i])


def ddim_step(x: Tensor, out: Tensor, table: DdimTable, i: int) -> Step:
    """One step."""
    x0 = clean_estimate(x, out, table, i)
    return Step(advance(x, x0, table, i), x0)


def ancestral_step(x: Tensor, eps: Tensor, t: int, ab: NDArray[np.float64], noise: Tensor | None,
                   before: int | None = None) -> Step:
    """One DDPM step from time t to `before` (None: t - 1) with the large variance (FIXED_LARGE), unclamped."""
    before = t - 1 if before is None else before
    now, past = float(ab[t]), float(ab[before]) if before >= 0 else 1.0
    beta = 1 - now / past
    x0 = x * now**-0.5 - eps * (1 / now - 1) ** 0.5
    mean = (beta * past**0.5 / (1 - now)) * x0 + ((1 - past) * (1 - beta) ** 0.5 / (1 - now)) * x
    return Step(mean if noise is None else mean + beta**0.5 * noise, x0)
