"""The sizes through which DemoFusion goes: the native one first, then one multiple of it after the other up to the canvas."""

from __future__ import annotations

from typing import NamedTuple

from hibench.adapter import Resolution

__all__ = ["Phase", "phases"]


class Phase(NamedTuple):
    """One phase: its number is also the dilation of its global path."""

    scale: int  # s: 1 for the native phase
    height: int  # pixels
    width: int
    rows: int  # latents
    columns: int


def phases(size: Resolution, native: int, factor: int, progressive: bool = True) -> list[Phase]:
    """All phases up to a canvas of `size` (height, width) pixels, for a native side and an f of the first stage.

    The longer side grows by `native` per phase and the shorter one in proportion, rounded down, as in the released code. There
    the canvas has to be a multiple of `native`; here the last phase is the canvas whatever it is, so that its step may be
    smaller. A canvas within the native size has one phase. Without `progressive` the first phase is followed by the last.
    """
    longest, shortest = max(size), min(size)
    last = -(-longest // native)
    scales = [*range(1, last)] if progressive or last == 1 else [1]
    sizes = []
    for s in scales:
        short = max(factor, native * s * shortest // longest)
        height, width = (native * s, short) if size[0] >= size[1] else (short, native * s)
        sizes.append(Phase(s, height, width, height // factor, width // factor))
    return [*sizes, Phase(last, *size, size[0] // factor, size[1] // factor)]
