"""The U-Net under classifier-free guidance, for windows of several images, a bounded number at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from methods.demofusion.conditioning import Text

__all__ = ["Network", "rescaled"]


class Network:
    """Predicts the noise in windows; equal windows in equal batches, whatever their order."""

    def __init__(
        self, unet: Any, text: Text, guidance: float = 7.5, rescale: float = 0.0, max_windows: int | None = 16
    ) -> None:
        self.unet, self.text, self.rescale = unet, text, rescale
        self.guidance, self.guided = guidance, guidance > 1.0
        self.max_windows = max_windows
        self.micro = getattr(unet.config, "addition_embed_type", None) == "text_time"
        self.evaluations = 0  # network evaluations so far, both sides of the guidance counted

    def __call__(self, x: Tensor, images: Tensor, ids: Tensor, t: Tensor) -> Tensor:
        """Predictions float32 [N, C, h, w] for scaled windows x of the images int64 [N], with time ids float32 [N, 6]."""
        size = self.max_windows or len(x)
        parts = [self._some(a, b, c, t) for a, b, c in zip(x.split(size), images.split(size), ids.split(size))]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _some(self, x: Tensor, images: Tensor, ids: Tensor, t: Tensor) -> Tensor:
        dtype = self.unet.dtype
        embeds, pooled = self.text.rows(images, self.guided)
        if self.guided:
            x, ids = x.repeat(2, 1, 1, 1), ids.repeat(2, 1)
        self.evaluations += len(x)
        added = {"text_embeds": pooled.to(dtype), "time_ids": ids} if self.micro and pooled is not None else None
        out = self.unet(x.to(dtype), t, encoder_hidden_states=embeds.to(dtype), added_cond_kwargs=added, return_dict=False)[0]
        out = out.float()
        if not self.guided:
            return out
        without, given = out.chunk(2)
        guided = without + self.guidance * (given - without)
        return rescaled(guided, given, self.rescale) if self.rescale > 0 else guided


def rescaled(guided: Tensor, given: Tensor, share: float) -> Tensor:
    """A guided prediction [N, C, h, w] moved by `share` towards the spread of the conditional one (Lin et al. 2024, eq. 16)."""
    spread = given.std((1, 2, 3), keepdim=True) / guided.std((1, 2, 3), keepdim=True)
    return guided * (share * spread + 1.0 - share)
