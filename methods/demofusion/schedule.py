"""What changes from step to step in a phase of DemoFusion: three cosine weights, and with them the width of the blur."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["StepWeights", "cosine_factor", "step_weights"]


class StepWeights(NamedTuple):
    """The weights of one sampler step."""

    skip: float  # c1: of the noised upsampled latents, against the latents
    dilated: float  # c2: of the dilated path, against the local one
    sigma: float  # of the Gaussian in front of the dilated path, in latents: sigma * c3


def cosine_factor(t: float, total: int = 1000) -> float:
    """Half a cosine over the training timesteps: 1 at t = total, 0 at t = 0 (DemoFusion, eq. 4)."""
    return 0.5 * (1.0 + math.cos(math.pi * (total - t) / total))


def step_weights(
    timesteps: Iterable[float],
    total: int = 1000,
    alpha: tuple[float, float, float] = (3.0, 1.0, 1.0),
    sigma: float = 1.0,
    skip: bool = True,
    dilated: bool = True,
) -> list[StepWeights]:
    """The weights of every step of a phase, as numbers of the host: nothing waits for the device inside a step.

    `alpha` are the exponents of the cosine factor for c1, c2 and c3; c3 runs from 1 to 0.01. `skip` and `dilated` switch a
    mechanism off: its weight is 0 in every step.
    """
    weights = []
    for t in timesteps:
        factor = cosine_factor(float(t), total)
        c1, c2, c3 = (factor**a for a in alpha)
        weights.append(StepWeights(c1 if skip else 0.0, c2 if dilated else 0.0, sigma * (0.99 * c3 + 0.01)))
    return weights
