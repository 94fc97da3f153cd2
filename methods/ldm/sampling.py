"""Sampling in the latent space: plans of samplers, guidance, concatenated conditions, and patch-wise denoising."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hibench.adapter import NULL_STAGE, Stage, seeded_noise
from hibench.errors import SpecError
from methods.diffusion import ddim, dpm
from methods.diffusion.schedules import respaced_timesteps, strided_timesteps
from methods.ldm.model import LatentDiffusion

__all__ = ["Patches", "Plan", "denoiser", "make_plan", "patch_origins", "patch_weight", "patchwise",
           "run", "sample_latents", "velocity_scales"]

SAMPLERS = ("ddim", "ddpm", "dpm++2m")
Denoise = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class Plan:
    """What does not change between images: coefficients, and every embedding of every step."""

    table: ddim.Table | dpm.Table
    embeddings: tuple[tuple[Tensor, ...], ...]      # [step][residual block] -> [1, C_i]
    velocity: tuple[tuple[Tensor, Tensor], ...] | None = None   # v-prediction: (sqrt(ab), sqrt(1 - ab)) of each step

    def __len__(self) -> int:
        return len(self.table)


@dataclass(frozen=True)
class Patches:
    """Patch-wise denoising (the paper's `split_input_params`): windows of `size` latents, `stride` apart."""

    size: int = 128
    stride: int = 64


def make_plan(model: LatentDiffusion, steps: int, sampler: str = "ddim", eta: float = 0.0, compat: bool = False,
              device: str | torch.device = "cpu") -> Plan:
    """Coefficients and embeddings of a sampler; SpecError for a step count it cannot do.

    "ddim": LDM's timesteps; "ddpm": ancestral over an integer stride; "dpm++2m": DPM-Solver++(2M), any count.
    """
    ab = model.alphas_cumprod
    table: ddim.Table | dpm.Table
    if sampler == "dpm++2m":
        if not 1 <= steps < len(ab):
            raise SpecError(f"steps: {steps} sampler steps are not between 1 and {len(ab) - 1}")
        table = dpm.dpm_table(ab, dpm.dpm_timesteps(steps, len(ab)), device)
    elif sampler == "ddpm":
        table = ddim.ddpm_table(ab, respaced_timesteps(f"ddim{steps}", len(ab)), device)
    elif sampler == "ddim":
        table = ddim.ddim_table(ab, strided_timesteps(steps, len(ab), compat=compat), eta, device)
    else:
        raise SpecError(f"sampler '{sampler}' is not one of {', '.join(SAMPLERS)}")
    columns = model.unet.embed(table.timesteps)
    embeddings = tuple(tuple(column[i:i + 1] for column in columns) for i in range(len(table)))
    return Plan(table, embeddings, velocity_scales(ab, table, device) if model.parameterization == "v" else None)


def velocity_scales(ab: NDArray[np.float64], table: ddim.Table | dpm.Table,
                    device: str | torch.device) -> tuple[tuple[Tensor, Tensor], ...]:
    """(sqrt(ab), sqrt(1 - ab)) of each step, float32 scalars on the device: eps = sqrt(ab) v + sqrt(1 - ab) x_t."""
    alpha = ab[table.timesteps.cpu().numpy()]
    scales = torch.from_numpy(np.stack([np.sqrt(alpha), np.sqrt(1 - alpha)], 1).astype(np.float32)).to(device)
    return tuple((row[0], row[1]) for row in scales)


def denoiser(model: LatentDiffusion, plan: Plan, *, context: Tensor | None = None, null: Tensor | None = None,
             concat: Tensor | None = None, guidance: float = 1.0, patches: Patches | None = None) -> Denoise:
    """eps of a latent [B, C, h, w] at step i.

    `context` [B, M, D] goes to cross-attention and `concat` [B, k, h, w] to the input. With `null` [B, M, D], the context of
    nothing, and guidance != 1, both are evaluated as one batch: e_null + guidance (e - e_null).
    """
    guided = null is not None and guidance != 1.0
    if guided:
        assert null is not None
        assert context is not None
        context = torch.cat([null, context])
    dtype = model.unet.time_embed[0].weight.dtype

    def predict(x: Tensor, i: int, more: Tensor | None) -> Tensor:
        if not guided:
            return model.unet(x, context=context, embeddings=plan.embeddings[i], concat=more)
        twice = None if more is None else torch.cat([more, more])
        both = model.unet(torch.cat([x, x]), context=context, embeddings=plan.embeddings[i], concat=twice)
        return ddim.guide(both.float(), guidance)

    def evaluate(x: Tensor, i: int, more: Tensor | None) -> Tensor:
        predicted = predict(x.to(dtype), i, more)
        if plan.velocity is None:
            return predicted
        signal, noise = plan.velocity[i]
        return torch.addcmul(noise * x, signal, predicted.float())

    if patches is None:
        return lambda x, i: evaluate(x, i, concat)
    return lambda x, i: patchwise(lambda part, more: evaluate(part, i, more), x, concat, patches)


def run(denoise: Denoise, x: Tensor, plan: Plan, noise: Callable[[int], Tensor] = ddim.no_noise,
        after: Callable[[int, Tensor, Tensor, Tensor], None] | None = None) -> Tensor:
    """All steps of the plan's sampler from x_T [B, C, h, w], float32."""
    if isinstance(plan.table, dpm.Table):
        return dpm.sample(denoise, x, plan.table, after)
    return ddim.sample(denoise, x, plan.table, noise, after)


def sample_latents(model: LatentDiffusion, plan: Plan, shape: tuple[int, int, int], seeds: Sequence[int],
                   device: str | torch.device = "cpu", *, context: Tensor | None = None, null: Tensor | None = None,
                   concat: Tensor | None = None, guidance: float = 1.0, patches: Patches | None = None,
                   stage: Stage = NULL_STAGE) -> Tensor:
    """Latents float32 [B, *shape] from the noise of each seed: stream 0 is x_T, stream 1 + i the noise of step i."""

    def noise(i: int) -> Tensor:
        draw = seeded_noise(shape, seeds, stream=1 + i)
        return draw.pin_memory().to(device, non_blocking=True) if torch.device(device).type == "cuda" else draw

    x = seeded_noise(shape, seeds, device).contiguous(memory_format=torch.channels_last)
    denoise = denoiser(model, plan, context=context, null=null, concat=concat, guidance=guidance, patches=patches)
    return run(denoise, x, plan, noise, after=lambda *_: stage.step())


def patch_origins(side: int, patches: Patches) -> list[int]:
    """Where windows start along one side; the last one ends at the border, so that everything is covered."""
    last = max(0, side - patches.size)
    return sorted({*range(0, last + 1, patches.stride), last})


def patch_weight(height: int, width: int, device: str | torch.device = "cpu") -> Tensor:
    """Weight [height, width] within a window: distance to the nearest border as a share of the side, in [0.01, 0.5]."""
    rows, columns = (torch.arange(n, device=device, dtype=torch.float32) / max(1, n - 1) for n in (height, width))
    edge = torch.minimum(torch.minimum(rows, 1 - rows)[:, None], torch.minimum(columns, 1 - columns)[None])
    return edge.clamp(0.01, 0.5)


def patchwise(evaluate: Callable[[Tensor, Tensor | None], Tensor], x: Tensor, concat: Tensor | None,
              patches: Patches) -> Tensor:
    """eps of overlapping windows, averaged with border weights (latent-diffusion, ddpm.py, `split_input_params`)."""
    total, weights = torch.zeros_like(x, dtype=torch.float32), torch.zeros_like(x[:1, :1], dtype=torch.float32)
    size = min(patches.size, x.shape[2]), min(patches.size, x.shape[3])
    weight = patch_weight(*size, device=x.device)
    for top in patch_origins(x.shape[2], patches):
        for left in patch_origins(x.shape[3], patches):
            window = (..., slice(top, top + size[0]), slice(left, left + size[1]))
            total[window] += weight * evaluate(x[window], None if concat is None else concat[window])
            weights[window] += weight
    return total / weights
