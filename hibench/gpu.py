"""What NVML says about one GPU while a worker runs: clocks, temperature, power, energy, throttling and foreign processes."""

from __future__ import annotations

import os
import statistics
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Gpu", "GpuSample", "GpuTrace", "Sampler", "foreign_pids", "import_nvml", "open_gpu", "own_pids", "throttle_reasons"]

THROTTLE_BITS = {                      # NVML clocks-event reasons that make a timing untrustworthy
    0x8: "hardware slowdown", 0x20: "software thermal slowdown", 0x40: "hardware thermal slowdown", 0x80: "power brake",
}
POWER_CAP_BIT = 0x4                    # normal at full load on 300-700 W parts: its share is stored, nothing is flagged
SAMPLE_EVERY_S = 0.1


def import_nvml() -> Any:
    """The module `pynvml`, not initialised (package nvidia-ml-py)."""
    import pynvml

    return pynvml


def throttle_reasons(bits: int) -> list[str]:
    """Names of the reasons in `bits` that slow the GPU down for heat or hardware.

    >>> throttle_reasons(0x4 | 0x20)
    ['software thermal slowdown']
    """
    return [name for bit, name in THROTTLE_BITS.items() if bits & bit]


@dataclass(frozen=True)
class GpuSample:
    """One look at the GPU; None where it does not say."""

    sm_mhz: int | None
    memory_mhz: int | None
    temperature_c: int | None
    power_w: float | None
    reasons: int | None
    pids: frozenset[int] | None


class Gpu:
    """One GPU through NVML; every question is answered by None where the driver does not support it."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self.nvml, self.handle = nvml, handle

    def _ask(self, name: str, *arguments: Any) -> Any:
        try:
            return getattr(self.nvml, name)(self.handle, *arguments)
        except (self.nvml.NVMLError, AttributeError):
            return None

    @property
    def name(self) -> str | None:
        return _text(self._ask("nvmlDeviceGetName"))

    @property
    def uuid(self) -> str | None:
        return _text(self._ask("nvmlDeviceGetUUID"))

    def memory(self) -> tuple[int, int] | None:
        """(used, total) bytes of the device."""
        info = self._ask("nvmlDeviceGetMemoryInfo")
        return (int(info.used), int(info.total)) if info is not None else None

    def processes(self) -> dict[int, int | None] | None:
        """Compute processes on the device: pid -> bytes, None where NVML does not say (containers, MIG, WSL)."""
        found = self._ask("nvmlDeviceGetComputeRunningProcesses")
        return None if found is None else {int(p.pid): p.usedGpuMemory for p in found}

    def energy_j(self) -> float | None:
        """Total energy since the driver was loaded, in joules (Volta and later)."""
        energy = self._ask("nvmlDeviceGetTotalEnergyConsumption")
        return None if energy is None else energy / 1e3

    def ecc_errors(self) -> int | None:
        """Uncorrected ECC errors since the last reboot."""
        kind, counter = self.nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, self.nvml.NVML_VOLATILE_ECC
        errors = self._ask("nvmlDeviceGetTotalEccErrors", kind, counter)
        return None if errors is None else int(errors)

    def mig(self) -> bool | None:
        """True when the device is split into MIG instances."""
        mode = self._ask("nvmlDeviceGetMigMode")
        return None if mode is None else bool(mode[0])

    def sample(self) -> GpuSample:
        reasons = self._ask("nvmlDeviceGetCurrentClocksEventReasons")
        if reasons is None:                                      # the name before driver 535
            reasons = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        power = self._ask("nvmlDeviceGetPowerUsage")
        processes = self.processes()
        return GpuSample(
            sm_mhz=self._ask("nvmlDeviceGetClockInfo", self.nvml.NVML_CLOCK_SM),
            memory_mhz=self._ask("nvmlDeviceGetClockInfo", self.nvml.NVML_CLOCK_MEM),
            temperature_c=self._ask("nvmlDeviceGetTemperature", self.nvml.NVML_TEMPERATURE_GPU),
            power_w=None if power is None else power / 1e3,
            reasons=reasons,
            pids=None if processes is None else frozenset(processes))

    def process_used_since_now(self, pid: int) -> Callable[[], tuple[int, str] | None]:
        """A function that says later how much of the device process `pid` holds, and how it knows.

        By NVML's own per-process number where it gives one; else what the device holds beyond what it held now, which is this
        process only if nothing else uses the GPU. The caching allocator keeps what it reserved, so asking after the last image
        gives the peak.
        """
        before = self.memory()

        def later() -> tuple[int, str] | None:
            own = (self.processes() or {}).get(pid)
            if own is not None:
                return int(own), "nvml-process"
            after = self.memory()
            if before is None or after is None:
                return None
            return max(0, after[0] - before[0]), "nvml-device-difference"

        return later


def _text(value: Any) -> str | None:
    return value.decode() if isinstance(value, bytes) else value


def open_gpu(visible: str | None = None, nvml: Any = None, index: int = 0) -> Gpu | None:
    """The GPU that a worker sees as `cuda:index`, or None without a GPU or a driver.

    `visible` is CUDA_VISIBLE_DEVICES (None: taken from the environment). It is read in PCI order, which hibench sets for its
    workers: otherwise torch and NVML may number GPUs differently.
    """
    if visible is None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(index + 1))))
    names = [name.strip() for name in visible.split(",")]
    if index >= len(names) or names[index] in ("", "-1", "NoDevFiles"):
        return None
    name = names[index]
    try:
        nvml = nvml or import_nvml()
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
        if name.isdigit():
            return Gpu(nvml, nvml.nvmlDeviceGetHandleByIndex(int(name)))
        return Gpu(nvml, nvml.nvmlDeviceGetHandleByUUID(name.encode()))
    except nvml.NVMLError:
        return None


def own_pids(pid: int) -> set[int]:
    """A process and all its descendants; empty when it is gone."""
    import psutil

    try:
        process = psutil.Process(pid)
        return {pid, *(child.pid for child in process.children(recursive=True))}
    except psutil.Error:
        return set()


def foreign_pids(before: Collection[int], during: Sequence[Collection[int]], own: Collection[int]) -> set[int]:
    """Processes on the GPU that are not ours.

    In a container NVML tells pids of the host, so our own may be missing from the list. Then a process that was there from
    before is foreign, and of those that came later one is taken for ours.
    """
    seen = set().union(*during) if during else set()
    if seen & set(own):
        return seen - set(own)
    new = [set(pids) - set(before) for pids in during]
    most = max(new, key=len, default=set())
    ours = {min(most)} if most else set()
    return (seen & set(before)) | (seen - set(before) - ours if len(most) > 1 else set())


@dataclass
class GpuTrace:
    """All samples of one worker's life, and what follows from them."""

    samples: list[GpuSample] = field(default_factory=list)
    before: frozenset[int] = frozenset()             # compute pids before the worker began
    own: set[int] = field(default_factory=set)       # pids of the worker and its children
    energy_j: float | None = None

    def _known(self, name: str) -> list[Any]:
        return [value for s in self.samples if (value := getattr(s, name)) is not None]

    def foreign(self) -> set[int]:
        return foreign_pids(self.before, self._known("pids"), self.own)

    def summary(self) -> dict[str, Any]:
        """Clock range, temperature, power and throttle shares for the record; None where unknown."""
        clocks, reasons = self._known("sm_mhz"), self._known("reasons")
        power, heat, memory = self._known("power_w"), self._known("temperature_c"), self._known("memory_mhz")
        return {
            "clock_mhz": {"min": min(clocks), "median": statistics.median(clocks), "max": max(clocks)} if clocks else None,
            "memory_clock_mhz": statistics.median(memory) if memory else None,
            "temperature_max_c": max(heat) if heat else None,
            "power_mean_w": statistics.fmean(power) if power else None,
            "power_cap_share": sum(bool(r & POWER_CAP_BIT) for r in reasons) / len(reasons) if reasons else None,
            "throttle_share": sum(bool(throttle_reasons(r)) for r in reasons) / len(reasons) if reasons else None,
            "energy_total_j": self.energy_j,
            "gpu_samples": len(self.samples),
        }

    def flags(self) -> list[dict[str, str]]:
        """Contamination, each with a sentence: `throttled`, `contended`."""
        found = []
        reasons = self._known("reasons")
        names = sorted({name for r in reasons for name in throttle_reasons(r)})
        if names:
            share = sum(bool(throttle_reasons(r)) for r in reasons) / len(reasons)
            text = (f"the GPU slowed itself down during {share:.0%} of the samples ({', '.join(names)}); "
                    "let it cool down, or look at its power supply, and measure again")
            found.append({"name": "throttled", "text": text})
        foreign = self.foreign()
        if foreign:
            listed = ", ".join(str(pid) for pid in sorted(foreign))
            text = f"other processes used the GPU at the same time (pid {listed}); stop them and measure again"
            found.append({"name": "contended", "text": text})
        return found


class Sampler:
    """Looks at a GPU ten times a second in a thread of the parent process, as long as the `with` block lasts.

    >>> with Sampler(open_gpu()) as sampler:      # None without a GPU: then it does nothing
    ...     sampler.watch(worker_pid)
    ...     ...
    >>> sampler.trace.flags()
    """

    def __init__(self, gpu: Gpu | None, every_s: float = SAMPLE_EVERY_S,
                 find_own: Callable[[int], set[int]] = own_pids) -> None:
        self.gpu, self.every_s, self.find_own = gpu, every_s, find_own
        self.trace = GpuTrace()
        self._pid: int | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._energy_before: float | None = None

    def watch(self, pid: int) -> None:
        """Tell which process (with its children) is ours."""
        self._pid = pid

    def look(self) -> None:
        """Take one sample now."""
        if self.gpu is None:
            return
        if self._pid is not None:
            self.trace.own |= self.find_own(self._pid) | {self._pid}
        self.trace.samples.append(self.gpu.sample())

    def __enter__(self) -> "Sampler":
        if self.gpu is not None:
            self.trace.before = frozenset(self.gpu.processes() or ())
            self._energy_before = self.gpu.energy_j()
            self._thread = threading.Thread(target=self._run, name="hibench-gpu-sampler", daemon=True)
            self._thread.start()
        return self

    def _run(self) -> None:
        while not self._stop.wait(self.every_s):
            self.look()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None and self.gpu is not None:
            self._thread.join()
            after = self.gpu.energy_j()
            if after is not None and self._energy_before is not None:
                self.trace.energy_j = after - self._energy_before
