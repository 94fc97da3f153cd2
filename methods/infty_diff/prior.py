"""The latent prior: an MLP with skip connections that denoises codes (official MLPSkipNet, from diffusion autoencoders)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Prior"]


class PriorLayer(nn.Module):
    """Linear, times (1 + a map of the time), layer norm, GELU (official MLPLNAct)."""

    def __init__(self, inputs: int, outputs: int, cond: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.cond_layers = nn.Sequential(nn.GELU(), nn.Linear(cond, outputs))
        self.norm = nn.LayerNorm(outputs)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        """[B, inputs] -> [B, outputs]; `scale` [B or 1, outputs] from `PriorLayer.scale`."""
        return F.gelu(self.norm(self.linear(x) * scale))

    def scale(self, embedded: Tensor) -> Tensor:
        """1 + the map of the embedded time."""
        return 1 + self.cond_layers(embedded)


class Prior(nn.Module):
    """Noise prediction in codes [B, channels]; the input joins every layer after the first."""

    def __init__(self, *, channels: int = 256, hid_channels: int = 2048, num_layers: int = 10, time_emb_channels: int = 128,
                 dropout: float = 0.0) -> None:
        super().__init__()
        self.channels, self.time_dim = channels, time_emb_channels
        self.time_embed = nn.Sequential(nn.Linear(time_emb_channels, channels), nn.GELU(), nn.Linear(channels, channels))
        self.in_layer = PriorLayer(channels, hid_channels, channels)
        self.layers = nn.ModuleList(
            PriorLayer(channels + hid_channels, hid_channels, channels) for _ in range(num_layers - 2))
        self.out_layer = nn.Linear(channels + hid_channels, channels)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Prior":
        """From the official constructor's arguments."""
        return cls(**config)

    def scales(self, t: Tensor) -> list[Tensor]:
        """What the times [B] do to every layer, [B, hid_channels] each."""
        half = self.time_dim // 2
        angles = t.float()[:, None] * torch.exp(torch.arange(half, device=t.device) * (-math.log(10000) / half))
        embedded = self.time_embed(torch.cat([angles.cos(), angles.sin()], -1).to(self.out_layer.weight.dtype))
        return [layer.scale(embedded) for layer in (self.in_layer, *self.layers)]

    def forward(self, x: Tensor, scales: list[Tensor]) -> Tensor:
        """Predicted noise [B, channels] of noisy codes [B, channels]."""
        h = self.in_layer(x, scales[0])
        for layer, scale in zip(self.layers, scales[1:]):
            h = layer(torch.cat([h, x], -1), scale)
        return self.out_layer(torch.cat([h, x], -1))
