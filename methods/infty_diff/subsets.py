"""Random subsets of coordinates: banks of them for training, and the subsets that sparse sampling visits."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

from hibench.errors import SpecError
from methods.infty_diff.geometry import Canvas, Points

__all__ = ["fraction_of", "halton", "lattices", "partition", "subset_bank"]

LARGEST, NEAR = 16, 0.002                           # lattices at most; how near 1 - s a fraction m / n has to be


def halton(count: int, base: int, shift: float = 0.0) -> Tensor:
    """The first `count` members of the van der Corput sequence of a base, shifted on the circle, float64 in [0, 1)."""
    value, scale, i = torch.zeros(count, dtype=torch.float64), 1.0, torch.arange(1, count + 1)
    while i.max() > 0:
        scale /= base
        value += scale * (i % base)
        i = i // base
    return (value + shift) % 1.0


def halton_subset(canvas: Canvas, count: int, draw: torch.Generator) -> Tensor:
    """`count` different pixels that a randomly shifted Halton sequence (bases 2 and 3) visits first, ascending int64."""
    shift = torch.rand(2, generator=draw).tolist()
    length = count
    while True:
        length *= 2
        rows, columns = (halton(length, base, s) * n
                         for base, s, n in zip((2, 3), shift, (canvas.height, canvas.width)))
        flat = rows.long() * canvas.width + columns.long()
        first = torch.full((canvas.height * canvas.width,), length)
        first.scatter_reduce_(0, flat, torch.arange(length), "amin")
        if (first < length).sum() >= count:
            return first.argsort(stable=True)[:count].sort().values


def subset_bank(canvas: Canvas, subsample: int, count: int, kind: str = "uniform", seed: int = 0) -> Points:
    """`count` subsets of every `subsample`-th part of the pixels; subsample 1 is the one set of all pixels.

    "uniform": without replacement (the official training); "halton": quasi-Monte-Carlo. They depend on `seed` alone.
    """
    if kind not in ("uniform", "halton"):
        raise SpecError(f"coordinates '{kind}' are not known; use uniform or halton")
    if subsample == 1:
        return Points(canvas)
    pixels, draw = canvas.height * canvas.width, torch.Generator().manual_seed(seed)
    if kind == "halton":
        return Points(canvas, torch.stack([halton_subset(canvas, pixels // subsample, draw) for _ in range(count)]))
    sets = [torch.randperm(pixels, generator=draw)[: pixels // subsample].sort().values for _ in range(count)]
    return Points(canvas, torch.stack(sets))


def fraction_of(sparsity: float) -> tuple[int, int] | None:
    """(m, n) with m / n = 1 - sparsity and n at most 16; None where there is no such fraction."""
    share = Fraction(1 - sparsity).limit_denominator(LARGEST)
    return None if abs(float(share) - (1 - sparsity)) > NEAR or not share else (share.numerator, share.denominator)


def lattices(canvas: Canvas, n: int, draw: torch.Generator) -> list[Points] | None:
    """The n interleaved lattices of every a-th row and b-th column (a b = n, as equal as possible, along rows or columns by
    chance) in random order: disjoint, and together every pixel. None where the canvas is too small for them."""
    a = max(a for a in range(1, int(n**0.5) + 1) if n % a == 0)
    stride = (a, n // a) if torch.rand((), generator=draw) < 0.5 else (n // a, a)
    if min(canvas.height, canvas.width) < 2 * max(stride):
        return None
    order = torch.randperm(n, generator=draw).tolist()
    return [Points(canvas, stride=stride, phase=divmod(i, stride[1])) for i in order]


def partition(canvas: Canvas, sparsity: float, draw: torch.Generator) -> list[Points]:
    """Uniformly random subsets of a fraction 1 - sparsity, together every pixel (the last one overlaps the others)."""
    pixels = canvas.height * canvas.width
    size = max(3, round((1 - sparsity) * pixels))
    order = torch.randperm(pixels, generator=draw)
    starts = [min(i, pixels - size) for i in range(0, pixels, size)]
    return [Points(canvas, order[i : i + size].sort().values[None]) for i in starts]
