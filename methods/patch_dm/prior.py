"""The prior over semantic codes: an MLP with skips that denoises normalised codes (DiffAE, arXiv 2111.15640, app. A)."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from methods.diffusion.schedules import alphas_cumprod
from methods.nn.unet import timestep_embedding

__all__ = ["LatentPrior", "Layer", "prior_alphas_cumprod"]

BETA, TIMESTEPS = 0.008, 1000                       # "const0.008"


def prior_alphas_cumprod() -> NDArray[np.float64]:
    """alpha_bar of the constant schedule, float64 [1000]."""
    return alphas_cumprod(np.full(TIMESTEPS, BETA))


class Layer(nn.Module):
    """Linear, times (bias + projected time), LayerNorm, SiLU; the last layer of the prior is linear only."""

    def __init__(self, channels: int, out_channels: int, cond_channels: int | None, bias: float = 1.0, use_norm: bool = True,
                 dropout: float = 0.0) -> None:
        super().__init__()
        self.bias, self.plain = bias, cond_channels is None
        self.linear = nn.Linear(channels, out_channels)
        if cond_channels is not None:
            self.linear_emb = nn.Linear(cond_channels, out_channels)
            self.norm = nn.LayerNorm(out_channels) if use_norm else nn.Identity()
            self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        """[B, C] and the activated time embedding [B, E] -> [B, C']."""
        x = self.linear(x)
        return x if self.plain else self.dropout(F.silu(self.norm(x * (self.bias + self.linear_emb(cond)))))


class LatentPrior(nn.Module):
    """eps of codes [B, D] at timesteps [B] (MLPSkipNet, with its official argument names); layers named in `skip_layers` read
    (h, x) side by side."""

    def __init__(self, num_channels: int = 512, num_hid_channels: int = 2048, num_layers: int = 10,
                 skip_layers: Sequence[int] = tuple(range(1, 10)), num_time_emb_channels: int = 64, num_time_layers: int = 2,
                 use_norm: bool = True, condition_bias: float = 1.0, dropout: float = 0.0, time_last_act: bool = False) -> None:
        super().__init__()
        self.time_channels, self.skip_layers = num_time_emb_channels, frozenset(skip_layers)
        time: list[nn.Module] = []
        for i in range(num_time_layers):
            time.append(nn.Linear(num_channels if i else num_time_emb_channels, num_channels))
            if i < num_time_layers - 1 or time_last_act:
                time.append(nn.SiLU())
        self.time_embed = nn.Sequential(*time)
        self.layers = nn.ModuleList()
        for i in range(num_layers):
            width = (num_hid_channels if i else num_channels) + (num_channels if i in self.skip_layers else 0)
            last = i == num_layers - 1
            self.layers.append(Layer(width, num_channels if last else num_hid_channels, None if last else num_channels,
                                     condition_bias, use_norm, dropout))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """[B, D] and timesteps [B] -> eps [B, D]."""
        dtype = self.time_embed[0].weight.dtype
        cond = F.silu(self.time_embed(timestep_embedding(t, self.time_channels).to(dtype)))
        x = h = x.to(dtype)
        for i, layer in enumerate(self.layers):
            h = layer(torch.cat([h, x], dim=1) if i in self.skip_layers else h, cond)
        return h

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "LatentPrior":
        """From an official `latent_net_conf`."""
        known = inspect.signature(cls).parameters
        return cls(**{k: v for k, v in config.items() if k in known})
