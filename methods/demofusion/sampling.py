"""DemoFusion and MultiDiffusion from the first noise to the last latents, with every random draw from the seeds alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from hibench.adapter import NULL_STAGE, Stage, seeded_noise
from methods.demofusion import windows
from methods.demofusion.conditioning import time_ids
from methods.demofusion.denoise import OnStep, Refinement, Rules, denoise_whole, upsampled
from methods.demofusion.filters import match, moments
from methods.demofusion.network import Network
from methods.demofusion.phases import Phase
from methods.demofusion.scheduler import Stepper

__all__ = ["Draws", "Job", "SeedDraws", "Stop", "demofusion", "multidiffusion"]

# Streams of hibench.adapter.seeded_noise; 0 is the initial noise. Phase s: PHASE + s, and so on.
PHASE, SHIFTS, STEPS, POSTERIOR = 1_000, 2_000, 3_000, 4_000


class Draws(Protocol):
    """Where random numbers come from."""

    def initial(self, shape: tuple[int, ...]) -> Tensor:
        """Noise float32 [B, *shape] of the first phase."""
        ...

    def noise(self, s: int, shape: tuple[int, ...]) -> Tensor:
        """The one noise float32 [B, *shape] of phase s."""
        ...

    def shifts(self, s: int, ranges: np.ndarray, steps: int) -> np.ndarray:
        """Shifts of windows int64 [steps, B, V, 2] of phase s within `ranges` [V, 2, 2]."""
        ...

    def generators(self, s: int) -> list[torch.Generator]:
        """Generators of the scheduler's own noise in phase s, one per image."""
        ...


class SeedDraws:
    """All draws from the seeds: image i depends on seeds[i] alone, and global random states are neither read nor moved.

    With `official` the shifts are those that the released code draws after `random.seed(seed)`, phase after phase; its noise
    comes from the global generator of the device, which is not followed.
    """

    def __init__(self, seeds: Sequence[int], device: Any = "cpu", official: bool = False) -> None:
        self.seeds, self.device = list(seeds), device
        self._python = [random.Random(seed) for seed in seeds] if official else None

    def initial(self, shape: tuple[int, ...]) -> Tensor:
        return seeded_noise(shape, self.seeds, self.device)

    def noise(self, s: int, shape: tuple[int, ...]) -> Tensor:
        return seeded_noise(shape, self.seeds, self.device, stream=PHASE + s)

    def posterior(self, shape: tuple[int, ...]) -> Tensor:
        """Noise float32 [B, *shape] for latents of a given image."""
        return seeded_noise(shape, self.seeds, self.device, stream=POSTERIOR)

    def shifts(self, s: int, ranges: np.ndarray, steps: int) -> np.ndarray:
        if self._python is not None:
            drawn = [windows.draw_shifts_official(ranges, steps, draw) for draw in self._python]
        else:
            drawn = [windows.draw_shifts(ranges, steps, generator) for generator in self._streams(SHIFTS + s)]
        return np.stack(drawn, axis=1)

    def generators(self, s: int) -> list[torch.Generator]:
        return self._streams(STEPS + s)

    def _streams(self, stream: int) -> list[torch.Generator]:
        """As in hibench.adapter.seeded_noise."""
        return [torch.Generator("cpu").manual_seed((int(seed) * 1_000_003 + stream) % (2**63)) for seed in self.seeds]


@dataclass
class Job:
    """What a run needs besides its size."""

    network: Network
    scheduler: Any  # made by make_scheduler
    rules: Rules
    draws: Draws
    batch: int
    channels: int  # of the latents
    steps: int
    device: Any = "cpu"
    eta: float = 0.0
    ids: np.ndarray | None = None  # micro-conditioning float32 [6] of whole canvases; None = the final size, uncropped
    stage: Stage = NULL_STAGE
    on_step: "Callable[[int, int, Tensor], None] | None" = None  # (s, evaluation, latents)
    reorder: "Callable[[int], np.ndarray] | None" = None  # another order of V windows; for tests
    done: dict[int, int] = field(default_factory=dict)  # sampler steps of each phase so far

    def stepper(self, s: int) -> Stepper:
        """A fresh scheduler for phase s."""
        return Stepper(self.scheduler, self.steps, self.draws.generators(s), self.eta)

    def watch(self, s: int, stepper: Stepper) -> OnStep:
        """Reports each finished sampler step to the stage clock, and each evaluation to `on_step`."""
        self.done[s] = 0

        def seen(i: int, z: Tensor) -> None:
            for _ in range(self.done[s], stepper.done(i)):
                self.stage.step()
            self.done[s] = stepper.done(i)
            if self.on_step is not None:
                self.on_step(s, i, z)

        return seen


class Stop(NamedTuple):
    """The end of a phase."""

    phase: Phase
    latents: Tensor  # float32 [B, C, rows, columns]
    windows: int  # in the network per step and image: local and dilated
    corners: np.ndarray | None  # of the local ones, in the frame with padding: int64 [steps or 1, B, V, 2]


def demofusion(job: Job, sizes: Sequence[Phase], image: Tensor | None = None) -> Iterator[Stop]:
    """Every phase in turn: native sampling, then upsampling, diffusing and denoising, each matched to the first one's moments.

    `image`: latents float32 [B, C, h, w] of a given image at the native size; then nothing is sampled natively and the first
    phase is a refinement as well (the image-to-image entry).
    """
    z, final = image, (sizes[-1].height, sizes[-1].width)
    anchor = None if z is None else moments(z)
    ids = time_ids(final, (0, 0), final) if job.ids is None else job.ids  # in every phase, as released
    for number, phase in enumerate(sizes):
        stepper = job.stepper(phase.scale)
        watch = job.watch(phase.scale, stepper)
        if z is None:
            noise = job.draws.initial((job.channels, phase.rows, phase.columns)) * stepper.initial
            z = denoise_whole(noise, stepper, job.network, ids, watch)
            anchor = moments(z)
            yield Stop(phase, z, 1, None)
            continue
        assert anchor is not None
        z = upsampled(z, (phase.rows, phase.columns))
        work = _refinement(job, phase, stepper, ids, later=number > 0)
        z = match(work.run(z, job.draws.noise(phase.scale, tuple(z.shape[1:])), watch), *anchor)
        yield Stop(phase, z, work.views + (phase.scale**2 if job.rules.dilated else 0), work.corners)


def multidiffusion(job: Job, phase: Phase) -> Stop:
    """MultiDiffusion (Bar-Tal et al., ICML 2023, arXiv 2302.08113): windows over a canvas of noise, and nothing else."""
    job = replace(job, rules=replace(job.rules, skip=False, dilated=False, reach=0))
    stepper, size = job.stepper(1), (phase.height, phase.width)
    work = _refinement(job, phase, stepper, time_ids(size, (0, 0), size), later=False)
    noise = job.draws.initial((job.channels, phase.rows, phase.columns)) * stepper.initial
    return Stop(phase, work.denoise(noise, on_step=job.watch(1, stepper)), work.views, work.corners)


def _refinement(job: Job, phase: Phase, stepper: Stepper, ids: np.ndarray, later: bool) -> Refinement:
    """A refinement with the shifts of its phase."""
    size, rules = (phase.rows, phase.columns), job.rules
    corners, shifts = windows.origins(size, rules.window, rules.stride, rules.cover), None
    if rules.reach > 0:
        ranges = windows.shift_ranges(corners, size, rules.window, rules.reach)
        shifts = job.draws.shifts(phase.scale, ranges, len(stepper.timesteps))
    order = job.reorder(len(corners)) if job.reorder is not None else None
    return Refinement(
        rules, job.network, stepper, size, job.batch, ids, job.device, s=phase.scale, shifts=shifts, later=later, order=order
    )
