"""The Gaussian blur in front of DemoFusion's dilated path, and matching of mean and spread."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["blur", "gaussian", "match", "moments"]


def gaussian(size: int, sigma: float) -> Tensor:
    """Weights of a Gaussian at the integers around 0, with sum 1: float32 [size]; `size` is odd."""
    x = torch.arange(size, dtype=torch.float64) - size // 2
    weights = torch.exp(-0.5 * (x / sigma) ** 2)
    return (weights / weights.sum()).float()


def blur(z: Tensor, weights: Tensor) -> Tensor:
    """Depthwise convolution of z [B, C, H, W] with weights [k] down the columns and along the rows; zeros beyond the border."""
    size, channels = len(weights), z.shape[1]
    if size == 1:
        return z
    kernel = weights.to(z).expand(channels, 1, size)
    z = F.conv2d(z, kernel[..., None], padding=(size // 2, 0), groups=channels)
    return F.conv2d(z, kernel[:, :, None], padding=(0, size // 2), groups=channels)


def moments(z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over all channels and positions of each image: [B, 1, 1, 1] each."""
    return z.mean((1, 2, 3), keepdim=True), z.std((1, 2, 3), keepdim=True)


def match(z: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """z [B, C, H, W] shifted and scaled to this mean and standard deviation [B, 1, 1, 1]."""
    now = moments(z)
    return (z - now[0]) / now[1] * std + mean
