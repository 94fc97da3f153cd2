"""Precision, recall, density and coverage from one pass over blocks of distances."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hibench.errors import SpecError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

__all__ = ["Neighbours", "neighbours"]


@dataclass(frozen=True)
class Neighbours:
    """Improved precision and recall (1904.06991), density and coverage (2002.09797)."""

    precision: float
    recall: float
    density: float
    coverage: float


def neighbours(
    samples: "NDArray[np.float32]", reference: "NDArray[np.float32]", k: int = 3, k_density: int = 5, rows: int = 2048
) -> Neighbours:
    """All four, O(N · rows) memory.

    Radii are distances to the k-th neighbour other than itself. Precision and recall count `distance <= radius`, as
    torch-fidelity;
    density and coverage use the reference's radii and `<`, as prdc. Distances by torch.cdist in float32 as torch-fidelity's.
    Density and coverage are NaN where the reference has no more than k_density images. Raises SpecError for k or fewer.
    """
    import torch

    n, m = len(samples), len(reference)
    if min(n, m) <= k:
        raise SpecError(
            f"precision and recall with k = {k} need more than {k} images on both sides, got {n} and {m}; give more"
        )
    x, y = torch.as_tensor(samples).float(), torch.as_tensor(reference).float()
    if not bool(x.isfinite().all() and y.isfinite().all()):
        raise SpecError("features hold NaN or infinity; see the count of bad images")
    wide = m > k_density
    radius_x = _radii(x, (k,), rows)[0]
    radius_y, *rest = _radii(y, (k, k_density) if wide else (k,), rows)
    inside_y = torch.zeros(n, dtype=torch.bool)
    recalled, covered, dense = 0, 0, 0
    for i in range(0, m, rows):
        distances = torch.cdist(y[i : i + rows], x)  # reference rows × sample columns
        recalled += int((distances <= radius_x).any(1).sum())
        inside_y |= (distances <= radius_y[i : i + rows, None]).any(0)
        if wide:
            within = distances < rest[0][i : i + rows, None]
            dense += int(within.sum())
            covered += int(within.any(1).sum())
    nan = float("nan")
    return Neighbours(
        int(inside_y.sum()) / n, recalled / m, dense / (k_density * n) if wide else nan, covered / m if wide else nan
    )


def _radii(x: "torch.Tensor", ks: tuple[int, ...], rows: int) -> "list[torch.Tensor]":
    """Distance of every row to its k-th nearest other row, for each k."""
    import torch

    parts = [torch.cdist(x[i : i + rows], x).topk(max(ks) + 1, dim=1, largest=False).values for i in range(0, len(x), rows)]
    nearest = torch.cat(parts)
    return [nearest[:, k] for k in ks]
