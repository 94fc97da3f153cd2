"""Any diffusers scheduler over a canvas that is denoised in windows: one step per canvas, so that its memory is per position.

A window's step is linear in its sample and its prediction, and all windows of a step see the same canvas and the same
coefficients. So the mean of the windows' results is the step of the whole canvas with the mean of the predictions: equal to the
released code up to rounding for DDIM and Euler, and right for schedulers that remember earlier predictions (multistep) or draw
noise (ancestral), whose memory and noise then belong to a position of the canvas and not to a window that moves.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hibench.errors import AdapterError, SpecError, did_you_mean
from methods.diffusers_pipeline.options import SCHEDULERS

__all__ = ["Stepper", "make_scheduler", "refusal", "scheduler_class"]

STEP = ("self", "model_output", "timestep", "sample")
NOT_FOR_WINDOWS = "draws the noise of a whole batch from one Brownian path: an image would depend on its neighbours"
NOT_FOR_LATENTS = "is made for networks of another kind, or for another noise schedule"
KNOWN_REASONS = {
    "DPMSolverSDEScheduler": NOT_FOR_WINDOWS,
    "CosineDPMSolverMultistepScheduler": NOT_FOR_WINDOWS,
    "DPMSolverMultistepInverseScheduler": "runs towards the noise",
    "CMStochasticIterativeScheduler": NOT_FOR_LATENTS,
    "CogVideoXDDIMScheduler": NOT_FOR_LATENTS,
    "DDPMWuerstchenScheduler": NOT_FOR_LATENTS,
    "EDMDPMSolverMultistepScheduler": NOT_FOR_LATENTS,
    "EDMEulerScheduler": NOT_FOR_LATENTS,
    "UnCLIPScheduler": NOT_FOR_LATENTS,
}


def scheduler_class(name: str) -> type[Any]:
    """The scheduler of a short name or a diffusers class name; SpecError for an unknown one."""
    import diffusers

    full = SCHEDULERS.get(name, name)
    found = getattr(diffusers, full, None) if full.endswith("Scheduler") else None
    if not isinstance(found, type):
        known = [*SCHEDULERS, *(n for n in dir(diffusers) if n.endswith("Scheduler"))]
        raise SpecError(
            f"option scheduler: no '{name}'{did_you_mean(name, known)}; there are {', '.join(SCHEDULERS)} and the "
            "class names of diffusers' schedulers"
        )
    return found


def refusal(cls: type[Any]) -> str | None:
    """Why a scheduler cannot denoise in windows, or None."""
    name = cls.__name__
    if name in KNOWN_REASONS:
        return f"{name} {KNOWN_REASONS[name]}"
    for method in ("set_timesteps", "scale_model_input", "step"):
        if not callable(getattr(cls, method, None)):
            return f"{name} has no {method}(): it cannot step"
    extra = [
        p.name
        for p in inspect.signature(cls.step).parameters.values()
        if p.name not in STEP and p.default is p.empty and p.kind is not p.VAR_KEYWORD
    ]
    if extra:
        return f"{name}.step() needs more than a prediction and a sample: {', '.join(extra)}"
    if not callable(getattr(cls, "add_noise", None)):
        return f"{name} has no add_noise(): the upsampled latents of a phase cannot be noised"
    return None


def make_scheduler(own: Any, name: str | None) -> Any:
    """A fresh scheduler: `own` again (None), or another with the noise schedule of `own`; AdapterError if it cannot do it.

    What latents cannot do with and a configuration leaves open is set as SDXL's own configuration has it: clip_sample and
    set_alpha_to_one are false. PNDM never begins with Runge-Kutta steps, whose samples are no points of the path.
    """
    cls = type(own) if name is None else scheduler_class(name)
    reason = refusal(cls)
    if reason is not None:
        raise AdapterError(f"{reason}; name another with option scheduler: {', '.join(SCHEDULERS)}")
    accepts = inspect.signature(cls.__init__).parameters
    config = {k: v for k, v in own.config.items() if k in accepts and v is not None}
    for key in ("clip_sample", "set_alpha_to_one"):
        if key in accepts:
            config.setdefault(key, False)
    if cls.__name__ == "PNDMScheduler":
        config["skip_prk_steps"] = True
    with _old_numpy_ways():
        return cls(**config)


@contextmanager
def _old_numpy_ways() -> Iterator[None]:
    """diffusers makes arrays of tensors in a way that numpy 2 warns about; that is not the user's concern."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


class Stepper:
    """One run of a scheduler over a batch of canvases; its own tensors stay on the host, so that no step waits for a device."""

    def __init__(self, scheduler: Any, steps: int, generators: Sequence[torch.Generator] = (), eta: float = 0.0) -> None:
        self.scheduler = copy.deepcopy(scheduler)
        with _old_numpy_ways():
            try:
                self.scheduler.set_timesteps(steps)
            except (ValueError, AssertionError, IndexError, ZeroDivisionError) as error:
                raise AdapterError(
                    f"{type(scheduler).__name__} cannot do {steps} steps: {' '.join(str(error).split())}"
                ) from error
        self.steps = steps
        self.timesteps: Tensor = self.scheduler.timesteps
        self.total = int(self.scheduler.config.get("num_train_timesteps", 1000))
        self.initial = float(self.scheduler.init_noise_sigma)
        probe = copy.deepcopy(self.scheduler)
        one, zero = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
        self._signal = [float(probe.add_noise(one, zero, t[None])) for t in self.timesteps]
        self._noise = [float(probe.add_noise(zero, one, t[None])) for t in self.timesteps]
        accepts = inspect.signature(self.scheduler.step).parameters
        self._extra: dict[str, Any] = {"return_dict": False} if "return_dict" in accepts else {}
        if "generator" in accepts and generators:
            self._extra["generator"] = list(generators)
        if "eta" in accepts:
            self._extra["eta"] = eta

    def noised(self, z: Tensor, noise: Tensor, i: int) -> Tensor:
        """z [B, C, H, W] with noise of the level of step i."""
        return z * self._signal[i] + noise * self._noise[i]

    def scale(self, x: Tensor, i: int) -> Tensor:
        """What the network is given for samples x at step i."""
        return self.scheduler.scale_model_input(x, self.timesteps[i])

    def begins(self) -> bool:
        """Does a sampler step begin with the next evaluation (or is it a further evaluation of the step before)?"""
        scheduler = self.scheduler
        orders, index = getattr(scheduler, "order_list", None), getattr(scheduler, "step_index", None) or 0
        if orders is not None:  # singlestep: every order but the first goes on from an earlier sample
            return index >= len(orders) or orders[index] == 1
        return bool(getattr(scheduler, "state_in_first_order", True)) and getattr(scheduler, "cur_sample", None) is None

    def done(self, i: int) -> int:
        """Whole sampler steps after evaluation i: some schedulers evaluate N + 1 or 2 N - 1 times for N steps."""
        return (i + 1) * self.steps // len(self.timesteps)

    def moved(self) -> None:
        """Says that the samples were changed from outside: a corrector would go back to those before the change."""
        if getattr(self.scheduler, "last_sample", None) is not None:
            self.scheduler.last_sample = None

    def step(self, prediction: Tensor, i: int, z: Tensor) -> Tensor:
        """Samples [B, C, H, W] after evaluation i."""
        with _old_numpy_ways():
            result = self.scheduler.step(prediction, self.timesteps[i], z, **self._extra)
        return result[0] if isinstance(result, tuple) else result.prev_sample

    def official_factors(self, i: int, local: int, dilated: int, batch: int, later: bool) -> np.ndarray:
        """What the released code scales the inputs of step i with: float64 [local + dilated].

        It scales with the scheduler's index, which its own step() has moved on: only the first batch of `batch` windows of a
        step has the right one; and the first of a phase after another (`later`) still has the index behind the last step.
        """
        index = np.full(local + dilated, i + 1)
        index[: min(batch, local)] = len(self.timesteps) if later and i == 0 else i
        table = [self._factor(k) for k in range(len(self.timesteps) + 1)]
        return np.array(table)[index]

    def _factor(self, index: int) -> float:
        """What the scheduler multiplies inputs with at an index."""
        scheduler = self.scheduler
        if not hasattr(scheduler, "_step_index"):
            return 1.0
        kept, scheduler._step_index = scheduler._step_index, index
        try:
            return float(scheduler.scale_model_input(torch.ones(1), self.timesteps[min(index, len(self.timesteps) - 1)]))
        finally:
            scheduler._step_index = kept
