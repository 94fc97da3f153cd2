"""Three ways of computing one large depthwise convolution: directly, by the exact factors of a resized kernel, by FFT."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["choose", "depthwise", "direct", "factorised", "fft", "resize_matrix"]

LARGE = 40                                          # side of a kernel from which on the FFT is faster, see `choose`
AT_ONCE = 1 << 25                                   # values of an intermediate result, at most (or those of one channel)


def choose(size: int) -> str:
    """The fastest way for a kernel of `size` x `size`.

    Measured on one CPU core, 32 channels, batch 1, channels last, ms: side 13 at 128 px: direct 7, FFT 8; side 29 at 256 px:
    40, 57; side 57 at 512 px: 658, 379. The factors took 85, 408 and 2457 there; they are for devices without fast direct
    depthwise convolutions, and not chosen without being asked for.
    """
    return "direct" if size < LARGE else "fft"


def resize_matrix(small: int, large: int) -> Tensor:
    """The bilinear resizing of a kernel's side as a matrix A [large, small]: resized = A kernel A^T (align_corners=False)."""
    eye = torch.eye(small)[None, None]
    return F.interpolate(eye, (large, small), mode="bilinear", align_corners=False)[0, 0]


def depthwise(x: Tensor, kernel: Tensor, size: int, how: str = "auto") -> Tensor:
    """[B, C, H, W] with the kernel [C, 1, k, k] resized to size x size, zero padding; `how`: as option conv."""
    how = choose(size) if how == "auto" else how
    if how == "factorised":
        return factorised(x, kernel, size)
    if how == "fft":
        return fft(x, kernel, size)
    same = size == kernel.shape[2]
    return direct(x, kernel if same else F.interpolate(kernel, (size, size), mode="bilinear", align_corners=False))


def direct(x: Tensor, weight: Tensor) -> Tensor:
    """conv2d with one group per channel."""
    return F.conv2d(x, weight, padding=(weight.shape[2] // 2, weight.shape[3] // 2), groups=x.shape[1])


def factorised(x: Tensor, kernel: Tensor, size: int) -> Tensor:
    """Exact: with K = A k A^T, rows of A over columns of pixels, k between the factors, rows of A over rows of pixels.

    k' x k' products per output become about 2 * 7 k' where A is dense, 7 + 7 + 49 taps of weight in all (k = 7).
    """
    small, pad = kernel.shape[2], size // 2
    matrix = resize_matrix(small, size).T.to(x)                     # [k, k']
    across, down = matrix.view(small, 1, 1, size), matrix.view(1, small, size, 1)
    parts = []
    for part, weights in chunks(x, kernel, small):
        batch, channels, height, width = part.shape
        columns = F.conv2d(part.reshape(-1, 1, height, width), across, padding=(0, pad))
        mixed = torch.matmul(weights[:, 0], columns.view(batch, channels, small, -1))
        parts.append(F.conv2d(mixed.view(-1, small, height, width), down, padding=(pad, 0)).view(part.shape))
    return torch.cat(parts, 1).contiguous(memory_format=torch.channels_last)


def fft(x: Tensor, kernel: Tensor, size: int) -> Tensor:
    """Exact up to rounding: a product in the frequency domain, some channels at a time, in float32 or wider.

    The spectrum of the resized kernel is that of its factors: (F A) k (F A)^T.
    """
    height, width = x.shape[2:]
    pad = size // 2
    rows, columns = (smooth(n + 2 * pad) for n in (height, width))
    dtype = torch.promote_types(x.dtype, torch.float32)
    matrix = resize_matrix(kernel.shape[2], size).to(x.device, dtype)
    down, across = torch.fft.fft(matrix, n=rows, dim=0).conj(), torch.fft.rfft(matrix, n=columns, dim=0).conj()
    parts = []
    for part, weights in chunks(x, kernel, 2):
        spectrum = torch.fft.rfft2(part.to(dtype).contiguous(), s=(rows, columns))
        spectrum *= down @ weights[:, 0].to(down.dtype) @ across.T
        full = torch.fft.irfft2(spectrum, s=(rows, columns)).roll((pad, pad), (2, 3))
        parts.append(full[..., :height, :width].to(x.dtype))
    return torch.cat(parts, 1).contiguous(memory_format=torch.channels_last)


def chunks(x: Tensor, weight: Tensor, copies: int) -> list[tuple[Tensor, Tensor]]:
    """Channels of x [B, C, H, W] and of the weight, as many at a time as intermediate results of `copies` times that allow."""
    per_channel = copies * x.shape[0] * x.shape[2] * x.shape[3]
    at_once = max(1, AT_ONCE // per_channel)
    return list(zip(x.split(at_once, 1), weight.split(at_once)))


def smooth(n: int) -> int:
    """The smallest product of 2s, 3s and 5s that is at least n, and even."""
    while True:
        rest = n
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1 and n % 2 == 0:
            return n
        n += 1
