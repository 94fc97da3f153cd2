"""INFD's diffusion: linear in beta, spaced timesteps without LDM's shift, eta = 1, on latents without a scale factor."""

from __future__ import annotations

import torch

from methods.diffusion.ddim import ddim_table
from methods.diffusion.schedules import respaced_timesteps
from methods.infd.model import INFDModel
from methods.ldm.sampling import Plan, denoiser, run, sample_latents, velocity_scales

__all__ = ["Plan", "denoiser", "make_plan", "run", "sample_latents"]


def make_plan(model: INFDModel, respacing: str, eta: float = 1.0, device: str | torch.device = "cpu") -> Plan:
    """Coefficients and embeddings of the official SpacedDiffusion; SpecError for a count that no integer stride gives.

    respacing "ddim200" visits t = 995, 990, ..., 0; the last step lands on alpha_bar = 1. Nothing is clipped.
    """
    timesteps = respaced_timesteps(respacing, len(model.alphas_cumprod))
    table = ddim_table(model.alphas_cumprod, timesteps, eta, device, final=1.0)
    columns = model.unet.embed(table.timesteps)
    embeddings = tuple(tuple(column[i:i + 1] for column in columns) for i in range(len(table)))
    scales = velocity_scales(model.alphas_cumprod, table, device) if model.parameterization == "v" else None
    return Plan(table, embeddings, scales)
