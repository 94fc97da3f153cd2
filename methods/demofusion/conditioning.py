"""What the U-Net of an SDXL-like model is told besides the latents: text, and the six numbers of its micro-conditioning."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hibench.adapter import Resolution

__all__ = ["Text", "time_ids", "window_ids"]


@dataclass(frozen=True)
class Text:
    """The prompts of B images; the negatives are None without guidance, the pooled ones where the U-Net takes none."""

    embeds: Tensor  # float [B, n, d]
    pooled: Tensor | None  # float [B, p]
    negative_embeds: Tensor | None = None  # float [B, n, d]
    negative_pooled: Tensor | None = None  # float [B, p]

    def rows(self, images: Tensor, guided: bool) -> tuple[Tensor, Tensor | None]:
        """Embeddings [N, n, d] and [N, p] of the images int64 [N]; guided: [2 N, ...], the negatives first."""
        embeds, pooled = self.embeds[images], None if self.pooled is None else self.pooled[images]
        if not guided:
            return embeds, pooled
        assert self.negative_embeds is not None
        if pooled is not None:
            assert self.negative_pooled is not None
            pooled = torch.cat([self.negative_pooled[images], pooled])
        return torch.cat([self.negative_embeds[images], embeds]), pooled


def time_ids(original: Resolution, crop: tuple[int, int], target: Resolution) -> np.ndarray:
    """Micro-conditioning of SDXL: (original height, width, crop top, left, target height, width), in pixels: float32 [6]."""
    return np.array([*original, *crop, *target], dtype=np.float32)


def window_ids(base: np.ndarray, corners: np.ndarray, factor: int, pad: int = 0) -> np.ndarray:
    """Micro-conditioning float32 [..., 6] of windows at `corners` (row, column) int [..., 2] of a frame, from the canvas's.

    The crop of a window is its corner in pixels of the frame less its padding of `pad` latents, and never negative. The
    released code does not take the padding off (pad = 0), so that every crop lies up to `pad` latents too far down and right.
    """
    ids = np.broadcast_to(base, (*corners.shape[:-1], 6)).copy()
    ids[..., 2:4] = np.maximum(corners - pad, 0) * factor
    return ids
