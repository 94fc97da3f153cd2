"""Kernel distances between feature sets: KID as torch-fidelity draws it, the exact U-statistic, and CMMD."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hibench.errors import SpecError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

__all__ = ["cmmd", "kernel_distance", "kernel_distance_exact"]

_ROWS = 2048


def _rows(n: int) -> Iterator[slice]:
    return (slice(i, min(i + _ROWS, n)) for i in range(0, n, _ROWS))


def _poly(x: "torch.Tensor", y: "torch.Tensor") -> "torch.Tensor":
    """(xᵀy/d + 1)³: float32 product, float64 result [n, m]."""
    k = (x @ y.T).double().mul_(1.0 / x.shape[1]).add_(1.0)
    return k * k * k


def _check(samples: "NDArray[np.float32]", reference: "NDArray[np.float32]") -> None:
    import numpy as np

    if min(len(samples), len(reference)) < 2:
        raise SpecError(f"kid needs at least 2 images on both sides, got {len(samples)} and {len(reference)}; give more")
    if not (np.isfinite(samples).all() and np.isfinite(reference).all()):
        raise SpecError("features hold NaN or infinity; see the count of bad images")


def kernel_distance(
    samples: "NDArray[np.float32]",
    reference: "NDArray[np.float32]",
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 2020,
) -> tuple[float, float, int]:
    """KID (1801.01401): mean and standard deviation (ddof 0) over subsets of the unbiased MMD², kernel (xᵀy/d + 1)³; and the
    subset size.

    The subsets are torch-fidelity's: RandomState(2020).choice without replacement, first for the samples, then for the
    reference.
    `subset_size` is lowered to the smaller set. Sums in float64 over float32 products: within 1e-6 of torch-fidelity's float32.
    """
    import numpy as np
    import torch

    _check(samples, reference)
    n1, n2 = len(samples), len(reference)
    m = min(subset_size, n1, n2)
    rng = np.random.RandomState(seed)
    draws = [(rng.choice(n1, m, replace=False), rng.choice(n2, m, replace=False)) for _ in range(subsets)]
    x, y = torch.as_tensor(samples).float(), torch.as_tensor(reference).float()
    once = 0.5 * n1 * n1 + 0.5 * n2 * n2 + n1 * n2  # kernel entries: all of them once, or every subset by itself
    if once <= 2.0 * subsets * m * m:
        values = _from_whole(x, y, draws)
    else:
        values = [_mmd2(x[torch.from_numpy(a)], y[torch.from_numpy(b)]) for a, b in draws]
    return float(np.mean(values)), float(np.std(values)), m


def _mmd2(x: "torch.Tensor", y: "torch.Tensor") -> float:
    """Unbiased MMD² of two sets of one size m."""
    m = len(x)
    kx, ky = _poly(x, x), _poly(y, y)
    within = float(kx.sum() - kx.trace() + ky.sum() - ky.trace())
    return within / (m * (m - 1)) - 2 * float(_poly(x, y).sum()) / (m * m)


def _from_whole(
    x: "torch.Tensor", y: "torch.Tensor", draws: "list[tuple[NDArray[np.int64], NDArray[np.int64]]]"
) -> list[float]:
    """The same for many subsets: with K computed once in blocks of rows, a subset's sum is 1ₐᵀ K 1_b."""
    import torch

    m = len(draws[0][0])
    a = torch.zeros(len(draws), len(x), dtype=torch.float64)
    b = torch.zeros(len(draws), len(y), dtype=torch.float64)
    for i, (p, q) in enumerate(draws):
        a[i, torch.from_numpy(p)] = 1
        b[i, torch.from_numpy(q)] = 1
    within = _selected(x, x, a, a) - a @ _diagonal(x) + _selected(y, y, b, b) - b @ _diagonal(y)
    values: list[float] = (within / (m * (m - 1)) - 2 * _selected(x, y, a, b) / (m * m)).tolist()
    return values


def _selected(x: "torch.Tensor", y: "torch.Tensor", a: "torch.Tensor", b: "torch.Tensor") -> "torch.Tensor":
    """aᵢᵀ K(x, y) bᵢ for every row i of a and b, in blocks of rows of K; the symmetric case computes one half."""
    import torch

    total = torch.zeros(len(a), dtype=torch.float64)
    same = x is y
    for rows in _rows(len(x)):
        start = rows.start if same else 0
        block = _poly(x[rows], y[start:])
        picked = a[:, rows] @ block
        if same:
            width = rows.stop - rows.start
            total += (picked[:, :width] * b[:, rows]).sum(1) + 2 * (picked[:, width:] * b[:, rows.stop :]).sum(1)
        else:
            total += (picked * b).sum(1)
    return total


def _diagonal(x: "torch.Tensor") -> "torch.Tensor":
    k = x.square().sum(1).double() / x.shape[1] + 1
    return k**3


def kernel_distance_exact(samples: "NDArray[np.float32]", reference: "NDArray[np.float32]") -> float:
    """The unbiased MMD² over all pairs of both sets: no subset noise; may be negative."""
    import torch

    _check(samples, reference)
    x, y = torch.as_tensor(samples).float(), torch.as_tensor(reference).float()
    n, m = len(x), len(y)
    one, other = torch.ones(1, n, dtype=torch.float64), torch.ones(1, m, dtype=torch.float64)
    xx = float(_selected(x, x, one, one)) - float(_diagonal(x).sum())
    yy = float(_selected(y, y, other, other)) - float(_diagonal(y).sum())
    return xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2 * float(_selected(x, y, one, other)) / (n * m)


def cmmd(samples: "NDArray[np.float32]", reference: "NDArray[np.float32]", sigma: float = 10.0) -> float:
    """CMMD (2401.09603): 1000 × the biased V-statistic of unit vectors under exp(−‖x − y‖²/2σ²).

    Means of exp − 1 in float64 (expm1), since the kernel is close to 1 everywhere and float32 cancels.
    """
    import torch
    import torch.nn.functional as F

    _check(samples, reference)
    x, y = F.normalize(torch.as_tensor(samples).double(), dim=1), F.normalize(torch.as_tensor(reference).double(), dim=1)

    def mean(a: torch.Tensor, b: torch.Tensor) -> float:
        total = 0.0
        for rows in _rows(len(a)):
            squared = (2 - 2 * (a[rows] @ b.T)).clamp_min_(0)
            total += float(torch.expm1(squared.mul_(-0.5 / sigma**2)).sum())
        return total / (len(a) * len(b))

    return 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))
