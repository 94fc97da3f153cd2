"""Where the ± of a metric comes from: disjoint seed blocks, or the jackknife that leaves one out at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from hibench.stats import block_pm, block_rule, blocks_of, jackknife_pm, jackknife_rule

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "BLOCKS",
    "BOTH",
    "RECOMPUTED",
    "Blocks",
    "Pair",
    "by_blocks",
    "by_jackknife",
    "left_out",
    "of_mean",
    "rows_of_crops",
    "too_few",
]

BLOCKS = 8  # seed blocks behind every ±
RECOMPUTED = 4096  # largest set over which a distance of all pairs is computed again for each block
Pair = Callable[["NDArray[np.float32]", "NDArray[np.float32]"], float]
Blocks = list["NDArray[np.int64]"]
BOTH = "samples and reference"


def by_blocks(
    function: Pair, x: "NDArray[np.float32]", y: "NDArray[np.float32]", blocks: int, least: int = 2
) -> tuple[float | None, str]:
    """± from disjoint blocks of both sets; None with the reason when a block would hold fewer than `least` images."""
    blocks = min(blocks, len(x) // max(least, 2), len(y) // max(least, 2))
    if blocks < 2:
        return None, f"too few images for two disjoint blocks of {least}"
    values = [function(x[a], y[b]) for a, b in zip(blocks_of(len(x), blocks), blocks_of(len(y), blocks))]
    return block_pm(values), block_rule(blocks, BOTH)


def left_out(n: int, m: int, blocks: int, least: int = 2) -> tuple[Blocks, Blocks] | None:
    """Blocks of samples and of reference to be left out together; None where fewer than `least` images would remain."""
    blocks = min(blocks, n, m)
    if blocks < 2 or min(n - math.ceil(n / blocks), m - math.ceil(m / blocks)) < max(least, 2):
        return None
    return blocks_of(n, blocks), blocks_of(m, blocks)


def too_few(least: int) -> str:
    return f"too few images for a jackknife that leaves {least}"


def by_jackknife(
    function: Pair, x: "NDArray[np.float32]", y: "NDArray[np.float32]", blocks: int, least: int = 2
) -> tuple[float | None, str]:
    """± by leaving out one block of both sets at a time; from disjoint blocks where `RECOMPUTED` images are exceeded.

    Distances between sets are biased in small blocks, and their spread there exceeds that of the whole set many times.
    """
    import numpy as np

    if max(len(x), len(y)) > RECOMPUTED:
        return by_blocks(function, x, y, blocks, least)
    cut = left_out(len(x), len(y), blocks, least)
    if cut is None:
        return None, too_few(max(least, 2))
    values = [function(np.delete(x, a, axis=0), np.delete(y, b, axis=0)) for a, b in zip(*cut)]
    return jackknife_pm(values), jackknife_rule(len(values), BOTH)


def of_mean(values: Sequence[float], blocks: int) -> tuple[float | None, str]:
    """± of a mean of per-image values, from disjoint blocks of samples."""
    blocks = min(blocks, len(values))
    if blocks < 2:
        return None, "too few images for two disjoint blocks"
    return block_pm([sum(values[i] for i in b) / len(b) for b in blocks_of(len(values), blocks)]), block_rule(blocks, "samples")


def rows_of_crops(values: "NDArray[np.float32]", blocks: Blocks) -> Blocks:
    """Blocks of images [N, ..., D] as blocks of the rows of their crops."""
    count = math.prod(values.shape[1:-1])
    return [(b[:, None] * count + range(count)).reshape(-1) for b in blocks]
