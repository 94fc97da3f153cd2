"""The randomness of scenes: a counter-based integer hash of the seed, the same on every platform."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["GOLDEN", "mix", "pick", "uniform"]

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # increment of splitmix64


def mix(z: "NDArray[np.uint64]") -> "NDArray[np.uint64]":
    """The finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = z ^ (z >> np.uint64(31))
    return mixed


def uniform(seed: int, stream: int, *shape: int) -> "NDArray[np.float64]":
    """Uniform numbers in [0, 1) that depend on (seed, stream) alone."""
    with np.errstate(over="ignore"):
        key = mix(mix(np.array([seed % 2**64], np.uint64) + GOLDEN) + np.uint64(stream % 2**64) * GOLDEN)
        z = mix(key + np.arange(1, int(np.prod(shape)) + 1, dtype=np.uint64) * GOLDEN)
    numbers: NDArray[np.float64] = (z >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return numbers.reshape(shape)


def pick(u: float, low: float, high: float) -> float:
    """The point of [low, high] that a uniform u picks."""
    return low + (high - low) * u
