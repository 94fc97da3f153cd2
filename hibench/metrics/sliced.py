"""Sliced Wasserstein distances: MIND on features, and PGGAN's SWD on Laplacian-pyramid patches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hibench.errors import SpecError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

__all__ = ["mind", "swd_level"]


def mind(samples: "NDArray[np.float32]", reference: "NDArray[np.float32]", directions: int = 1000, seed: int = 2020) -> float:
    """MIND (2605.06797): 3d × the mean over unit directions and order statistics of |sort(uᵀx) − sort(uᵀy)|².

    Sets of unequal size: the larger one loses random rows, as torch-fidelity's development version does, from one CPU generator
    (seed 2020: subsets first, then directions), in float32.
    """
    import torch

    x, y = torch.as_tensor(samples).float(), torch.as_tensor(reference).float()
    n, d = min(len(x), len(y)), x.shape[1]
    if n < 1 or not bool(x.isfinite().all() and y.isfinite().all()):
        raise SpecError("mind needs finite features of at least one image on both sides")
    generator = torch.Generator("cpu").manual_seed(seed)
    if len(x) > n:
        x = x[torch.randperm(len(x), generator=generator)[:n]]
    if len(y) > n:
        y = y[torch.randperm(len(y), generator=generator)[:n]]
    u = torch.randn(directions, d, generator=generator)
    u = u / u.norm(dim=1, keepdim=True).clamp_min(1e-12)
    total = 0.0
    for part in u.split(256):  # [directions, N], sorted along the contiguous axis
        total += float(((part @ x.T).sort(1).values - (part @ y.T).sort(1).values).square().mean(1).double().sum())
    return 3.0 * d * total / directions


def swd_level(
    samples: "NDArray[np.float32]", reference: "NDArray[np.float32]", directions: int = 512, repeats: int = 4, seed: int = 0
) -> float:
    """PGGAN's SWD of one pyramid level (1710.10196), × 1000: patches [N, patches · 147] of both sets.

    Each set is standardised per colour channel, projected on `repeats` sets of
    `directions` unit vectors (128 there, seeded here),
    and the mean |difference| of sorted projections is averaged (W1). Unequal counts are matched by quantiles.
    """
    import numpy as np
    import torch

    x, y = (_standardise(torch.as_tensor(s).float()) for s in (samples, reference))
    if min(len(x), len(y)) < 2:
        raise SpecError("swd needs at least one image on both sides")
    generator = torch.Generator("cpu").manual_seed(seed)
    values = []
    for _ in range(repeats):
        u = torch.randn(directions // repeats, x.shape[1], generator=generator)
        u = u / u.norm(dim=1, keepdim=True)
        values.append(_w1((u @ x.T).sort(1).values, (u @ y.T).sort(1).values))
    return 1000 * float(np.mean(values))


def _standardise(patches: "torch.Tensor") -> "torch.Tensor":
    """[N, patches · 147] → [N · patches, 147], zero mean and unit deviation per channel over the set."""
    x = patches.reshape(-1, 3, 49)
    mean, std = x.mean((0, 2), keepdim=True), x.std((0, 2), keepdim=True)
    return ((x - mean) / std.clamp_min(1e-8)).reshape(-1, 147)


def _w1(a: "torch.Tensor", b: "torch.Tensor") -> float:
    """Mean absolute difference of sorted rows [D, N] and [D, M]; the longer one is read at the shorter one's quantiles."""
    import torch

    if a.shape[1] != b.shape[1]:
        short, long = (a, b) if a.shape[1] < b.shape[1] else (b, a)
        q = (torch.arange(short.shape[1]) + 0.5) / short.shape[1] * long.shape[1] - 0.5
        low = q.floor().long().clamp(0, long.shape[1] - 1)
        high = (low + 1).clamp_max(long.shape[1] - 1)
        b, a = long[:, low] + (long[:, high] - long[:, low]) * (q - low), short
    return float((a - b).abs().mean())
