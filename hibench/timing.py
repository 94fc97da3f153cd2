"""Latency of one cell in one process, and the summary of several processes: synchronised wall clock, every sample kept."""

from __future__ import annotations

import gc
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hibench.adapter import Stage
from hibench.stages import Event, HostEvent, ImageTrace, RecordingStage, cuda_event

__all__ = [
    "Clock", "Measurement", "bootstrap_ci", "compile_counters", "contended", "host_bound", "mad", "measure", "outliers",
    "percentile", "quiet_gc", "summarise", "waited_s", "warmed_up",
]

WARM_WITHIN = 0.02                     # the last two warm-up images differ by less than this ...
WARM_EXTRA = 5                         # ... or this many extra warm-up images were spent
HOST_BOUND = 0.10                      # share of the wall time during which the device had nothing left to do
WAIT_SHARE, WAIT_FLOOR_S = 0.05, 0.05  # of the timed seconds, and at least: threads that wait longer for a core are disturbed
MODIFIED_Z = 3.5                       # Iglewicz and Hoaglin's rule for outliers, as in hyperfine


@dataclass(frozen=True)
class Clock:
    """Where time comes from; a test puts a fake here."""

    now_ns: Callable[[], int] = time.perf_counter_ns
    synchronise: Callable[[], None] = lambda: None              # waits until the device has done everything
    make_event: Callable[[], Event] = HostEvent
    device_events: bool = False                                 # True: events are the device's, and gpu_s is measured

    @classmethod
    def of(cls, device: str) -> "Clock":
        """The real clock of `cpu`, `cuda` or `cuda:N`."""
        if not device.startswith("cuda"):
            return cls()
        import torch

        return cls(synchronise=lambda: torch.cuda.synchronize(device), make_event=cuda_event, device_events=True)


@dataclass
class Measurement:
    """Everything that one process measured; seconds throughout, one entry per timed image."""

    first_image_s: float = 0.0                                  # cold
    warmup_s: list[float] = field(default_factory=list)         # untimed images, the cold one first
    latency_s: list[float] = field(default_factory=list)        # wall clock, synchronised on both sides
    gpu_s: list[float] | None = None                            # between CUDA events around the image; None without CUDA
    stage_s: dict[str, list[float]] = field(default_factory=dict)
    step_s: list[float] = field(default_factory=list)           # all steps of all timed images
    effective: dict[str, int | float] = field(default_factory=dict)
    cpu_user_s: float = 0.0                                     # user CPU time of the timed loop
    cpu_wait_s: float | None = None                             # its threads were ready to run, and had no core; None = unknown

    @property
    def warmup_images(self) -> int:
        return len(self.warmup_s)


@contextmanager
def quiet_gc() -> Iterator[None]:
    """No garbage collection inside, and nothing old to look at; restores what it changed."""
    was_enabled, was_frozen = gc.isenabled(), gc.get_freeze_count() > 0
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
        if not was_frozen:
            gc.unfreeze()


def warmed_up(seconds: Sequence[float], warmup: int) -> bool:
    """True after `warmup` images whose last two differ by less than 2 %, or after 5 more."""
    if len(seconds) < max(1, warmup):
        return False
    if warmup <= 1 or len(seconds) >= warmup + WARM_EXTRA:
        return True
    last, before = seconds[-1], seconds[-2]
    return abs(last - before) <= WARM_WITHIN * max(last, before)


def waited_s(tasks: Path = Path("/proc/self/task")) -> float | None:
    """Seconds that the living threads of this process have been ready to run without a core; None where Linux does not tell."""
    total, known = 0, False
    with suppress(OSError):
        for task in tasks.iterdir():
            with suppress(OSError, ValueError, IndexError):     # a thread may end meanwhile
                total += int((task / "schedstat").read_text().split()[1])
                known = True
    return total / 1e9 if known else None


def measure(generate: Callable[[int, Stage], Any], *, device: str = "cpu", images: int = 10, warmup: int = 2,
            max_seconds: float | None = None, steps: int | None = None, first_seed: int = 0,
            check: Callable[[Any, ImageTrace], None] | None = None, clock: Clock | None = None,
            before_timing: Callable[[], None] | None = None) -> Measurement:
    """Time `generate(seed, stage)` image by image.

    The cold image and at least `warmup - 1` more are untimed; then `images` images, or fewer if `max_seconds` (None: no limit)
    are over, but at least one. `check(output, trace)` sees every image outside the timed region. `before_timing` runs between
    warm-up and the timed loop. `steps` says how many events to make ready per image.
    """
    clock = clock or Clock.of(device)
    result = Measurement()
    seed = first_seed
    spent = 0.0
    while not warmed_up(result.warmup_s, warmup):
        if max_seconds is not None and len(result.warmup_s) >= max(1, warmup) and spent >= max_seconds:
            break
        seconds, _, output, trace = _one(generate, seed, steps, clock)
        if check:
            check(output, trace)
        result.warmup_s.append(seconds)
        spent += seconds
        seed += 1
    result.first_image_s = result.warmup_s[0]
    if before_timing:
        before_timing()
    del output
    gpu: list[float] = []
    spent = 0.0
    user, waited = os.times().user, waited_s()
    with quiet_gc():
        while len(result.latency_s) < images and (max_seconds is None or spent < max_seconds or not result.latency_s):
            seconds, gpu_s, output, trace = _one(generate, seed, steps, clock)
            if check:
                check(output, trace)
            del output
            result.latency_s.append(seconds)
            gpu.append(gpu_s)
            for name, value in trace.stage_s.items():
                result.stage_s.setdefault(name, []).append(value)
            result.step_s.extend(trace.step_s)
            result.effective = trace.effective
            spent += seconds
            seed += 1
    result.cpu_user_s = os.times().user - user
    end = waited_s()
    result.cpu_wait_s = None if waited is None or end is None else max(0.0, end - waited)
    result.gpu_s = gpu if clock.device_events else None
    return result


def _one(generate: Callable[[int, Stage], Any], seed: int, steps: int | None,
         clock: Clock) -> tuple[float, float, Any, ImageTrace]:
    """One image: wall seconds, seconds between the device events around it, its output and its trace."""
    stage = RecordingStage(clock.make_event, steps)
    begin, end = clock.make_event(), clock.make_event()
    clock.synchronise()
    start_ns = clock.now_ns()
    begin.record()
    output = generate(seed, stage)
    end.record()
    clock.synchronise()
    wall_ns = clock.now_ns() - start_ns
    return wall_ns / 1e9, begin.elapsed_time(end) / 1e3, output, stage.finish()


def contended(latency_s: Sequence[float], cpu_wait_s: float | None) -> bool:
    """True when threads waited for a core for more than 5 % of the timed seconds, and for more than 50 ms."""
    return cpu_wait_s is not None and cpu_wait_s > max(WAIT_FLOOR_S, WAIT_SHARE * sum(latency_s))


def host_bound(latency_s: Sequence[float], gpu_s: Sequence[float] | None) -> bool:
    """True when the device was done more than 10 % of the wall time earlier than the host (None: not measured, False)."""
    if not gpu_s:
        return False
    wall, gpu = statistics.median(latency_s), statistics.median(gpu_s)
    return wall > 0 and (wall - gpu) / wall > HOST_BOUND


def compile_counters() -> dict[str, int] | None:
    """Graphs and recompiles that torch.compile counted, or None when nothing was compiled in this process."""
    dynamo = sys.modules.get("torch._dynamo")
    counters = getattr(getattr(dynamo, "utils", None), "counters", None)
    if not counters:
        return None
    stats = counters.get("stats", {})
    return {"graphs": int(stats.get("unique_graphs", 0)), "recompiles": int(sum(counters.get("recompiles", {}).values()))}


def percentile(values: Sequence[float], q: float) -> float:
    """Quantile q in [0, 1] with linear interpolation (numpy's default)."""
    ordered = sorted(values)
    where = (len(ordered) - 1) * q
    low = int(where)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (where - low)


def _residuals(processes: Sequence[Sequence[float]]) -> list[float]:
    """Distance of every image from the median of its own process."""
    return [x - statistics.median(one) for one in processes for x in one]


def mad(processes: Sequence[Sequence[float]]) -> float:
    """Median absolute deviation of the images from the median of their own process."""
    return statistics.median(abs(r) for r in _residuals(processes))


def outliers(processes: Sequence[Sequence[float]]) -> int:
    """Images with a modified z-score beyond 3.5 (Iglewicz and Hoaglin, 1993); they are counted, never removed."""
    residuals = [abs(r) for r in _residuals(processes)]
    scale = statistics.median(residuals) / 0.6745
    if scale == 0:                                   # more than half of them are equal: the authors' fallback
        scale = 1.253314 * statistics.fmean(residuals)
    return sum(r > MODIFIED_Z * scale for r in residuals) if scale > 0 else 0


def bootstrap_ci(processes: Sequence[Sequence[float]], level: float = 0.95, resamples: int = 2000,
                 seed: int = 0) -> tuple[float, float] | None:
    """Interval of the median of process medians by hierarchical bootstrap: resample processes, then images within them.

    None for a single process: images of one process are correlated and say nothing about the next process.
    """
    if len(processes) < 2:
        return None
    import numpy as np

    generator = np.random.default_rng(seed)
    arrays = [np.asarray(one, dtype=np.float64) for one in processes]
    drawn = []
    for _ in arrays:                                             # as many processes as there were, with replacement
        medians = np.stack([np.median(one[generator.integers(len(one), size=(resamples, len(one)))], axis=1) for one in arrays])
        drawn.append(medians[generator.integers(len(arrays), size=resamples), np.arange(resamples)])
    low, high = np.quantile(np.median(drawn, axis=0), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def summarise(processes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The summary part of a speed record from its `processes`; the unit of replication is the process.

    p50 and p90 are medians over processes of each process's percentile."""
    samples = [p["latency_s"] for p in processes]
    interval = bootstrap_ci(samples)
    return {
        "latency_p50_s": statistics.median(percentile(one, 0.5) for one in samples),
        "latency_p90_s": statistics.median(percentile(one, 0.9) for one in samples),
        "latency_ci_s": list(interval) if interval else None,
        "images": sum(len(one) for one in samples),
        "load_s": statistics.median(p["load_s"] for p in processes),
        "first_image_s": statistics.median(p["first_image_s"] for p in processes),
        "mad_s": mad(samples),
        "outliers": outliers(samples),
        **_peaks(processes),
        **{name: _median_or_none(processes, name) for name in ("weights_bytes", "flops", "nfe", "energy_j_per_image")},
    }


def _peaks(processes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The gated peak: allocated bytes on CUDA, RSS over the idle process on a CPU; the largest of the processes."""
    allocated = [p["peak_allocated_bytes"] for p in processes if p.get("peak_allocated_bytes") is not None]
    if allocated:
        return {"peak_bytes": max(allocated), "peak_source": "cuda-allocated"}
    over_idle = [p["peak_rss_bytes"] - p["idle_rss_bytes"] for p in processes
                 if p.get("peak_rss_bytes") is not None and p.get("idle_rss_bytes") is not None]
    return {"peak_bytes": max(over_idle) if over_idle else None, "peak_source": "rss-over-idle" if over_idle else None}


def _median_or_none(processes: Sequence[dict[str, Any]], name: str) -> Any:
    known = [p[name] for p in processes if p.get(name) is not None]
    if not known:
        return None
    return statistics.median_low(known) if all(isinstance(x, int) for x in known) else statistics.median(known)
