"""Sampling of Patch-DM: codes from the prior, then clamped DDIM with the official spacing, from noise seeded per image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hibench.adapter import NULL_STAGE, Stage, seeded_noise
from methods.diffusion import ddim
from methods.diffusion.schedules import respaced_timesteps
from methods.patch_dm.model import PatchDM, diffusion_alphas_cumprod
from methods.patch_dm.prior import LatentPrior, prior_alphas_cumprod

__all__ = ["Table", "ddim_run", "image_table", "latent_run", "renoised", "sample_codes"]

CODE_STREAM = 1_000_001                             # of seeded_noise; the image's own noise is stream 0


class Table(NamedTuple):
    """Deterministic DDIM with clamped x0, in the order of execution: x0 = clamp(c x + d output), x' = a x + b x0."""

    timesteps: NDArray[np.int64]
    alphas_cumprod: NDArray[np.float64]
    a: tuple[float, ...]
    b: tuple[float, ...]
    c: tuple[float, ...]
    d: tuple[float, ...]


def image_table(steps: int, target: str = "eps", schedule: str = "linear") -> Table:
    """Coefficients for "ddim<steps>": timesteps 0, k, 2k, ...; the step before the first of them is the clean image.

    eps is taken anew from the clamped x0, as the official sampler does: x' = sqrt(ab') x0 + sqrt(1 - ab') eps(x, x0).
    target: what the network predicts, "eps", or "v" = sqrt(ab) eps - sqrt(1 - ab) x0. schedule: of the noise.
    """
    times = respaced_timesteps(f"ddim{steps}")
    alpha = diffusion_alphas_cumprod(schedule)[times]
    before = np.concatenate([[1.0], alpha[:-1]])
    a = np.sqrt((1 - before) / (1 - alpha))
    c, d = (np.sqrt(alpha), -np.sqrt(1 - alpha)) if target == "v" else (1 / np.sqrt(alpha), -np.sqrt(1 / alpha - 1))
    rows = np.stack([a, np.sqrt(before) - a * np.sqrt(alpha), c, d])[:, ::-1]
    return Table(times[::-1].copy(), alpha[::-1].copy(), *(tuple(row.tolist()) for row in rows))


def ddim_run(predict: Callable[[Tensor, int], Tensor], x: Tensor, table: Table, stage: Stage = NULL_STAGE,
             after: Callable[[int, Tensor, Tensor], None] | None = None) -> Tensor:
    """Run all steps of a table on x [B, 3, H, W], in place; what `predict(x, i)` returns is overwritten.

    `after(i, x0, x)` observes. Nothing of the image's size is allocated besides x and the network's output.
    """
    for i in range(len(table.timesteps)):
        x0 = predict(x, i).mul_(table.d[i]).add_(x, alpha=table.c[i]).clamp_(-1, 1)
        x.mul_(table.a[i]).add_(x0, alpha=table.b[i])
        stage.step()
        if after is not None:
            after(i, x0, x)
    return x


def renoised(x: Tensor, noise: Tensor, table: Table, i: int) -> Tensor:
    """What comes after step i, brought back to its beginning with fresh noise; not for the last step."""
    keep = float(table.alphas_cumprod[i] / table.alphas_cumprod[i + 1])
    return x * keep**0.5 + noise * (1 - keep) ** 0.5


def latent_run(prior: LatentPrior, x: Tensor, steps: int) -> Tensor:
    """Normalised codes [B, D] from noise: DDIM with the official spacing, nothing clamped."""
    table = ddim.ddim_table(prior_alphas_cumprod(), respaced_timesteps(f"ddim{steps}"), 0.0, x.device, final=1.0)
    return ddim.sample(lambda x, i: prior(x, table.timesteps[i: i + 1]).float(), x, table)


def sample_codes(model: PatchDM, seeds: Sequence[int], steps: int, device: str | torch.device) -> Tensor:
    """Semantic codes float32 [B, D], one per seed; zeros for a network without codes."""
    prior, channels = model.unet.latent_net, model.unet.code_channels
    if prior is None:
        return torch.zeros(len(seeds), channels, device=device)
    assert isinstance(prior, LatentPrior)
    noise = seeded_noise((channels,), seeds, device, stream=CODE_STREAM)
    return model.denormalise(latent_run(prior, noise, steps)).float()
