"""The recording stage clock: how long encode, denoise, decode and every sampler step of one image took, and what was done."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol

from hibench.adapter import STAGES, Stage
from hibench.errors import ContractError, did_you_mean

__all__ = ["Event", "HostEvent", "ImageTrace", "RecordingStage", "check_effective", "cuda_event", "intervals"]

SPARE_EVENTS = 8                       # stage borders of one image, beyond one event per step


class Event(Protocol):
    """A point in time on the device; `torch.cuda.Event(enable_timing=True)` is one."""

    def record(self) -> None: ...

    def elapsed_time(self, end_event: Any) -> float:
        """Milliseconds from this event to `end_event`."""
        ...


class HostEvent:
    """A point in time on the host, with the interface of a CUDA event."""

    __slots__ = ("clock_ns", "time_ns")

    def __init__(self, clock_ns: Callable[[], int] = time.perf_counter_ns) -> None:
        self.clock_ns = clock_ns
        self.time_ns = 0

    def record(self) -> None:
        self.time_ns = self.clock_ns()

    def elapsed_time(self, end_event: "HostEvent") -> float:
        return (end_event.time_ns - self.time_ns) / 1e6


def cuda_event() -> Event:
    """A CUDA event that is recorded on the current stream and synchronises nothing."""
    import torch

    cuda: Any = torch.cuda
    event: Event = cuda.Event(enable_timing=True)
    return event


@dataclass
class ImageTrace:
    """What one image (or one batch) reported: seconds per stage, seconds per sampler step, and what was done."""

    stage_s: dict[str, float] = field(default_factory=dict)      # total over all visits of the stage
    step_s: list[float] = field(default_factory=list)            # one per `stage.step()`, step 0 included
    effective: dict[str, int | float] = field(default_factory=dict)
    flops: int = 0                                                # only what the adapter added itself


class RecordingStage(Stage):
    """Listens to one image. Make a new one per image: nothing is carried over from image to image.

    On CUDA the events are made here, before the image is timed, and are read in `finish()`, after the caller's final
    synchronisation; inside the image nothing waits for the device.
    """

    def __init__(self, make_event: Callable[[], Event] = HostEvent, steps: int | None = None) -> None:
        self._make_event = make_event
        self._spare = [make_event() for _ in range((steps or 0) + SPARE_EVENTS)]
        self._marks: list[tuple[str, str, Event]] = []            # (what, stage, when)
        self._effective: dict[str, int | float] = {}
        self._flops = 0
        self.current: str | None = None                           # the open stage
        self.failed_in: str | None = None                         # the stage through which an exception left

    def _mark(self, what: str, stage: str) -> None:
        event = self._spare.pop() if self._spare else self._make_event()
        event.record()
        self._marks.append((what, stage, event))

    def __call__(self, name: str) -> AbstractContextManager[Any]:
        if name not in STAGES:
            hint = did_you_mean(name, STAGES)
            raise ContractError(f"the method opened the unknown stage {name!r}; known: {', '.join(STAGES)}{hint}")
        return _OpenStage(self, name)

    def _enter(self, name: str) -> None:
        if self.current is not None:
            raise ContractError(f"the method opened stage {name!r} inside stage {self.current!r}; stages follow one another")
        self.current = name
        self._mark("enter", name)

    def _exit(self, name: str, failed: bool) -> None:
        self._mark("exit", name)
        self.current = None
        if failed and self.failed_in is None:
            self.failed_in = name

    def step(self) -> None:
        if self.current != "denoise":
            where = f"inside stage {self.current!r}" if self.current else "outside every stage"
            raise ContractError(f"the method called stage.step() {where}; a sampler step belongs into stage 'denoise'")
        self._mark("step", "denoise")

    def effective(self, **done: int | float) -> None:
        self._effective.update(done)

    def flops(self, count: int) -> None:
        self._flops += int(count)

    def finish(self) -> ImageTrace:
        """What happened; on CUDA call it only after the device was synchronised. Raises ContractError if a stage is open."""
        if self.current is not None:
            raise ContractError(f"the method left stage {self.current!r} open; use it as a context manager")
        stage_s, step_s = intervals(self._marks)
        return ImageTrace(stage_s, step_s, dict(self._effective), self._flops)


class _OpenStage(AbstractContextManager[None]):
    """One visit of one stage."""

    def __init__(self, stage: RecordingStage, name: str) -> None:
        self.stage, self.name = stage, name

    def __enter__(self) -> None:
        self.stage._enter(self.name)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stage._exit(self.name, failed=kind is not None)


def intervals(marks: list[tuple[str, str, Event]]) -> tuple[dict[str, float], list[float]]:
    """Seconds per stage and seconds per step from marks in order of time.

    A step lasts from the mark before it *inside the same visit of `denoise`* (its beginning for step 0), so neither a decode
    nor the next image's encode can ever be part of a step, and step 0 is timed.
    """
    stage_s: dict[str, float] = {}
    step_s: list[float] = []
    opened: Event | None = None
    previous: Event | None = None
    for what, stage, event in marks:
        if what == "enter":
            opened = previous = event
        elif what == "step" and previous is not None:
            step_s.append(previous.elapsed_time(event) / 1e3)
            previous = event
        elif what == "exit" and opened is not None:
            stage_s[stage] = stage_s.get(stage, 0.0) + opened.elapsed_time(event) / 1e3
            opened = previous = None
    return stage_s, step_s


def check_effective(trace: ImageTrace, *, axes: frozenset[str], steps: int | None, sparsity: float, pixels: int) -> None:
    """Compare what was done with what was asked; raises ContractError that names both numbers.

    An axis that the method declares has to be reported: a requested mode that is silently ignored is worse than an error.
    Sparsity may differ by what whole pixels and whole blocks allow (0.005, or one pixel)."""
    done = trace.effective
    did_steps = done.get("steps", len(trace.step_s) or None)
    if steps is not None and did_steps is None and "steps" in axes:
        raise ContractError(f"{steps} steps were asked for, and the method reported none; "
                            "call stage.step() or stage.effective(steps=…)")
    if steps is not None and did_steps is not None and did_steps != steps:
        raise ContractError(f"{steps} steps were asked for, and the method did {did_steps:g}")
    if "nfe" in done and done["nfe"] <= 0:
        raise ContractError(f"the method reported nfe={done['nfe']:g}: its network was never evaluated")
    if "sparsity" in axes and sparsity > 0 and "sparsity" not in done:
        raise ContractError(f"sparsity {sparsity:g} was asked for, and the method reported none; "
                            "call stage.effective(sparsity=…)")
    if "sparsity" in done and abs(done["sparsity"] - sparsity) > max(0.005, 1.0 / pixels):
        raise ContractError(f"sparsity {sparsity:g} was asked for, and the method did {done['sparsity']:g}")
