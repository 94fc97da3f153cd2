"""The resize rules of the metric libraries, on tensors of any device: TF1 bilinear, PIL bicubic, box, and crop rules."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["bicubic_antialias", "pil_resize", "shortest_side_crop", "tf1_bilinear"]


def tf1_bilinear(images: "torch.Tensor", size: int) -> "torch.Tensor":
    """TensorFlow 1's resize_bilinear(align_corners=False): source = target · in/out, no half-pixel shift, no antialias.

    uint8 or float [B, C, H, W] → float32 [B, C, size, size]; the same operations in the same order as torch-fidelity's
    `interpolate_bilinear_2d_like_tensorflow1x`, hence bit-equal on a CPU, over gathered rows and columns only.
    """
    import torch

    h, w = images.shape[-2:]
    y_lo, y_hi, dy = _tf1_axis(h, size, images.device)
    x_lo, x_hi, dx = _tf1_axis(w, size, images.device)
    if h > 2 * size:  # interpolate along x only where a row is used
        rows, inverse = torch.unique(torch.cat([y_lo, y_hi]), return_inverse=True)
        images = images.index_select(2, rows)
        y_lo, y_hi = inverse[:size], inverse[size:]
    left = images.index_select(3, x_lo).float()
    right = images.index_select(3, x_hi).float()
    across = left + (right - left) * dx
    top, bottom = across.index_select(2, y_lo), across.index_select(2, y_hi)
    return top + (bottom - top) * dy[:, None]


def _tf1_axis(source: int, target: int, device: "torch.device") -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
    """Lower index, upper index and weight of the upper one, per target position."""
    import torch

    grid = torch.arange(target, dtype=torch.float32, device=device) * torch.tensor(source / target, dtype=torch.float32)
    low = grid.long()
    return low, (low + 1).clamp_max(source - 1), grid - low.float()


def bicubic_antialias(images: "torch.Tensor", height: int, width: int) -> "torch.Tensor":
    """clean-fid's resize (PIL bicubic in mode F, per channel, clipped to [0, 255], not re-quantised) on any device.

    uint8 or float [B, C, H, W] → float32 [B, C, height, width]; within 3e-3 grey levels of PIL.
    """
    import torch.nn.functional as F

    if images.shape[-2:] == (height, width):
        return images.float()
    return F.interpolate(images.float(), (height, width), mode="bicubic", antialias=True, align_corners=False).clamp_(0, 255)


def pil_resize(images: "torch.Tensor", height: int, width: int, kind: str = "bicubic") -> "torch.Tensor":
    """PIL's filter `kind` (bicubic, lanczos, …), exactly (on the CPU, an image at a time): uint8 [B, 3, H, W] of any device →
    [B, 3, height, width] there."""
    import numpy as np
    import torch
    from PIL import Image

    if images.shape[-2:] == (height, width):
        return images
    how = Image.Resampling[kind.upper()]
    rows = [np.asarray(Image.fromarray(i).resize((width, height), how)) for i in images.permute(0, 2, 3, 1).cpu().numpy()]
    return torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2).contiguous().to(images.device)


def shortest_side_crop(images: "torch.Tensor", size: int) -> "torch.Tensor":
    """torchvision's Resize(size, bicubic) on PIL images, then CenterCrop(size): uint8 [B, 3, H, W] → [B, 3, size, size]."""
    h, w = images.shape[-2:]
    short = min(h, w)
    height, width = (size, int(size * w / short)) if h <= w else (int(size * h / short), size)
    small = pil_resize(images, height, width)
    top, left = round((height - size) / 2), round((width - size) / 2)
    return small[..., top : top + size, left : left + size]
