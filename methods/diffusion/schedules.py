"""Noise schedules and the timesteps that samplers visit, in float64 and exactly as published."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hibench.errors import SpecError

__all__ = ["alphas_cumprod", "check_steps", "cosine_betas", "linear_betas", "nearest_steps", "respaced_timesteps",
           "sqrt_linear_betas", "strided_timesteps"]

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]


def sqrt_linear_betas(start: float = 0.0015, end: float = 0.0195, n: int = 1000) -> Float64:
    """LDM's "linear": linspace(sqrt(start), sqrt(end), n)^2 (diffusers calls it "scaled_linear")."""
    return np.linspace(start**0.5, end**0.5, n, dtype=np.float64) ** 2


def linear_betas(start: float = 0.0001, end: float = 0.02, n: int = 1000) -> Float64:
    """DDPM's and ADM's "linear": linspace(start, end, n). INFD uses this with LDM's two numbers: another process."""
    return np.linspace(start, end, n, dtype=np.float64)


def cosine_betas(n: int = 1000, s: float = 0.008, max_beta: float = 0.999) -> Float64:
    """Improved DDPM (arXiv 2102.09672): alpha_bar(t) = cos^2((t + s) / (1 + s) * pi / 2)."""
    x = np.cos((np.linspace(0, 1, n + 1) + s) / (1 + s) * np.pi / 2) ** 2
    return np.minimum(1 - x[1:] / x[:-1], max_beta)


def alphas_cumprod(betas: Float64) -> Float64:
    """alpha_bar_t = prod_{s <= t} (1 - beta_s), float64 [n]."""
    return np.asarray(np.cumprod(1.0 - np.asarray(betas, dtype=np.float64)), dtype=np.float64)


def nearest_steps(steps: int, n: int = 1000) -> tuple[int, ...]:
    """The largest step count below and the smallest above `steps` that divide n (one of them where the other is missing)."""
    divisors = [d for d in range(1, n + 1) if n % d == 0]
    below = [d for d in divisors if d <= steps][-1:]
    above = [d for d in divisors if d >= steps][:1]
    return tuple(dict.fromkeys(below + above))


def check_steps(steps: int, n: int = 1000) -> str | None:
    """None when `steps` divides n (and is smaller); else what is wrong, with the nearest counts that work."""
    if 1 <= steps < n and n % steps == 0:
        return None
    usable = [s for s in nearest_steps(max(1, min(steps, n // 2)), n) if s < n]
    why = f"do not divide the {n} training steps" if 1 <= steps < n else f"are not between 1 and {n // 2}"
    return f"{steps} sampler steps {why}; the nearest that work: {', '.join(map(str, usable))}"


def strided_timesteps(steps: int, n: int = 1000, *, compat: bool = False) -> Int64:
    """LDM's DDIM timesteps, ascending int64: t_i = i * (n // steps) + 1.

    A count that does not divide n is a SpecError; `compat=True` gives what the official code does instead: 400 becomes 500
    timesteps, and a count such as 300 runs past the end (a SpecError here, an IndexError there).
    """
    problem = check_steps(steps, n)
    if problem and not (compat and 1 <= steps <= n):
        raise SpecError(f"steps: {problem}")
    timesteps = np.arange(0, n, n // steps, dtype=np.int64) + 1
    if timesteps[-1] >= n:
        raise SpecError(f"steps: {check_steps(steps, n)}; the official code fails here too, at timestep {timesteps[-1]}")
    return timesteps


def respaced_timesteps(section: str | int, n: int = 1000) -> Int64:
    """ADM's respacing, ascending int64 without the +1 shift.

    "ddim200": the integer stride that gives exactly 200 timesteps (0, 5, ..., 995), a SpecError where there is none;
    "200" or 200: 200 timesteps spread evenly from 0 to n - 1, rounded.
    """
    text = str(section)
    count = int(text.removeprefix("ddim"))
    if not 1 <= count <= n:
        raise SpecError(f"steps: {count} sampler steps of {n} training steps; use 1 to {n}")
    if not text.startswith("ddim"):
        stride = (n - 1) / (count - 1) if count > 1 else 1.0
        return np.array([round(i * stride) for i in range(count)], dtype=np.int64)
    for stride_ in range(1, n):
        timesteps = np.arange(0, n, stride_, dtype=np.int64)
        if len(timesteps) == count:
            return timesteps
    near = " or ".join(map(str, nearest_steps(count, n)))
    raise SpecError(f"steps: no integer stride gives {count} of {n} training steps; use {near}")
