"""Fréchet distance between Gaussians fitted to features: symmetric, exact when there are fewer samples than features, fast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hibench.errors import SpecError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

__all__ = [
    "Gaussian",
    "cached_fit",
    "distance",
    "factor_of",
    "fit",
    "fits_without_blocks",
    "frechet_distance",
    "frechet_from_moments",
    "frechet_infinity",
]


@dataclass(frozen=True)
class Gaussian:
    """Mean, trace of the covariance Σ (with 1/(N − 1)), and a factor F [r, d] with Σ = FᵀF; all float64."""

    mean: "torch.Tensor"
    trace: float
    factor: "torch.Tensor"
    n: int


def fit(features: "NDArray[np.floating[Any]] | torch.Tensor", low_rank: bool | None = None) -> Gaussian:
    """Fit a Gaussian to features [N, d] in float64.

    N ≤ d: the factor is the centred data (rotated to N − 1 rows), no d × d matrix is formed. N > d: Cholesky of the
    covariance, or its
    eigenvectors where it is singular. `low_rank` overrides that choice. Raises SpecError for fewer than two rows or NaN.
    """
    import numpy as np
    import torch

    x = torch.as_tensor(np.ascontiguousarray(features)).double()
    if x.ndim != 2 or len(x) < 2:
        raise SpecError(f"a Fréchet distance needs at least 2 images, got {len(x)}; give more samples")
    if not bool(x.isfinite().all()):
        raise SpecError("features hold NaN or infinity; see the count of bad images")
    n, d = x.shape
    mean = x.mean(0)
    centred = (x - mean) / (n - 1) ** 0.5
    trace = float(centred.square().sum())
    if low_rank if low_rank is not None else n <= d:
        return Gaussian(mean, trace, _without_mean_direction(centred), n)
    return Gaussian(mean, trace, factor_of(centred.T @ centred), n)


def cached_fit(features: "NDArray[np.floating[Any]]", path: Path | None) -> Gaussian:
    """`fit`, kept in a file where it saves work: for N > d, whose d × d matrix costs N·d² operations.

    `path`: named after the content of the features (None = not kept); a damaged file is made again.
    """
    import zipfile

    import numpy as np
    import torch

    from hibench.extractors.cache import keep

    if path is None or len(features) <= features.shape[1]:
        return fit(features)
    try:
        with np.load(path, allow_pickle=False) as held:
            mean, factor = torch.from_numpy(held["mean"]), torch.from_numpy(held["factor"])
            return Gaussian(mean, float(held["trace"]), factor, int(held["n"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        made = fit(features)
    keep(path, {"mean": made.mean.numpy(), "factor": made.factor.numpy(), "trace": made.trace, "n": made.n})
    return made


def fits_without_blocks(features: "NDArray[np.floating[Any]]", blocks: "Sequence[NDArray[np.int64]]") -> list[Gaussian]:
    """The Gaussian of features [N, d] without each of the blocks of rows.

    N > 2d: each block's sums are taken once and subtracted, so that all together cost one pass over the features and a
    Cholesky factorisation each; otherwise the rows that are left are fitted.
    """
    import numpy as np
    import torch

    n, d = features.shape
    if n <= 2 * d:
        return [fit(np.delete(features, block, axis=0)) for block in blocks]
    middle = torch.from_numpy(features.mean(0, dtype=np.float64))
    sums, squares = [], []
    for block in blocks:
        part = torch.from_numpy(features[block]).double() - middle
        sums.append(part.sum(0))
        squares.append(part.T @ part)
    total = torch.stack(squares).sum(0)
    fits = []
    for block, first, second in zip(blocks, sums, squares):
        left = n - len(block)
        mean = -first / left  # the sum of all centred rows is zero
        covariance = (total - second - left * mean[:, None] * mean) / (left - 1)
        fits.append(Gaussian(mean + middle, float(covariance.trace()), factor_of(covariance), left))
    return fits


def factor_of(covariance: "torch.Tensor") -> "torch.Tensor":
    """F with Σ = FᵀF for a symmetric positive semi-definite float64 [d, d]; null directions are dropped exactly."""
    import torch

    lower, info = torch.linalg.cholesky_ex(covariance)
    diagonal = lower.diagonal().abs()
    if int(info) == 0 and float(diagonal.min()) > 1e-6 * float(diagonal.max()):
        upper: torch.Tensor = lower.T
        return upper
    values, vectors = torch.linalg.eigh(covariance)
    keep = values > max(float(values[-1]), 0.0) * len(values) * 2.3e-16
    root: torch.Tensor = (vectors[:, keep] * values[keep].sqrt()).T
    return root


def _without_mean_direction(centred: "torch.Tensor") -> "torch.Tensor":
    """Rows of centred data [n, d] rotated so that their null direction (1, …, 1) becomes a row of zeros, which is dropped: [n
    − 1, d]."""
    n = len(centred)
    root = n**0.5
    v = centred.new_full((n,), 1 / root)  # Householder reflection that takes 1/√n · (1, …, 1) to −e₁
    v[0] += 1
    return centred[1:] - v[1:, None] * (v @ centred) * (2 / float(v @ v))


def _nuclear_norm(a: "torch.Tensor", b: "torch.Tensor") -> float:
    """tr (Σ₁Σ₂)^½ = ‖A Bᵀ‖_* for Σ₁ = AᵀA, Σ₂ = BᵀB.

    Square roots of the eigenvalues of the smaller Gram matrix; where their rounding error, of up to ε·λ_max/2√λ each, would
    be felt
    (rank-deficient data), the singular values themselves, which are two to three times slower.
    """
    import torch

    product = a @ b.T
    if min(product.shape) == 0:
        return 0.0
    gram = product @ product.T if product.shape[0] <= product.shape[1] else product.T @ product
    values = torch.linalg.eigvalsh(gram).clamp_min_(0)
    noise = 2.3e-16 * float(values[-1])
    roots = values.sqrt()
    error = float((noise / (2 * roots.clamp_min(noise**0.5 + 1e-300))).sum())
    if error > 1e-10 * max(float(roots.sum()), 1e-300):
        return float(torch.linalg.svdvals(product).sum())
    return float(roots.sum())


def distance(x: Gaussian, y: Gaussian) -> float:
    """‖μ₁ − μ₂‖² + tr Σ₁ + tr Σ₂ − 2 tr(Σ₁Σ₂)^½ (Dowson & Landau 1982); the trace term is symmetric by construction."""
    if x.mean.shape != y.mean.shape:
        raise SpecError(f"features of different width: {len(x.mean)} and {len(y.mean)}")
    return float((x.mean - y.mean).square().sum()) + x.trace + y.trace - 2 * _nuclear_norm(x.factor, y.factor)


def frechet_distance(
    samples: "NDArray[np.floating[Any]] | torch.Tensor", reference: "NDArray[np.floating[Any]] | torch.Tensor"
) -> float:
    """Fréchet distance of two feature sets [N, d], [M, d]."""
    return distance(fit(samples), fit(reference))


def frechet_from_moments(
    mean1: "NDArray[np.floating[Any]]",
    cov1: "NDArray[np.floating[Any]]",
    mean2: "NDArray[np.floating[Any]]",
    cov2: "NDArray[np.floating[Any]]",
) -> float:
    """The same from given means [d] and covariances [d, d] (clean-fid's, ADM's and pytorch-fid's files hold these)."""
    import torch

    c1, c2 = torch.as_tensor(cov1).double(), torch.as_tensor(cov2).double()
    x = Gaussian(torch.as_tensor(mean1).double(), float(c1.trace()), factor_of(c1), 0)
    y = Gaussian(torch.as_tensor(mean2).double(), float(c2.trace()), factor_of(c2), 0)
    return distance(x, y)


def frechet_infinity(
    samples: "NDArray[np.floating[Any]]", reference: Gaussian, points: int = 15, seed: int = 0, smallest: int = 5000
) -> tuple[float, list[tuple[int, float]]]:
    """FID∞ (Chong & Forsyth 1911.07023): the intercept of a straight line through (1/N, FD_N) at `points` sizes N.

    Subsets are seeded and without replacement; sizes run evenly from min(5000, N/10, but at least 10) to N. Returns the
    intercept
    and the points. Raises SpecError below 20 samples.
    """
    import numpy as np

    n = len(samples)
    if n < 20:
        raise SpecError(f"fid-inf needs at least 20 samples, got {n}; give more samples")
    rng = np.random.default_rng(seed)
    sizes = np.unique(np.linspace(max(10, min(smallest, n // 10)), n, points).astype(int))
    curve = [(int(k), distance(fit(samples[rng.permutation(n)[:k]]), reference)) for k in sizes]
    slope_intercept = np.polyfit([1 / k for k, _ in curve], [v for _, v in curve], 1)
    return float(slope_intercept[1]), curve
