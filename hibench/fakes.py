"""Fakes that are shipped, so that everybody can test timing and GPU code without a clock or a GPU: clock, events, NVML."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["FakeClock", "FakeEvent", "FakeGpu", "FakeNvml", "FakeNvmlError"]


class FakeClock:
    """A clock that moves only when it is told to.

    >>> clock = FakeClock(); clock.sleep(0.25); clock.perf_counter_ns()
    250000000
    """

    def __init__(self) -> None:
        self.now_ns = 0

    def perf_counter_ns(self) -> int:
        return self.now_ns

    def sleep(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)

    def event(self) -> "FakeEvent":
        """A device event that is stamped by this clock; pass this method where CUDA events are made."""
        return FakeEvent(self)


class FakeEvent:
    """A CUDA event on a fake clock; reading one that was never recorded is an error, as on a GPU."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.time_ns: int | None = None

    def record(self) -> None:
        if self.time_ns is not None:
            raise RuntimeError("an event was reused")
        self.time_ns = self.clock.now_ns

    def elapsed_time(self, end_event: "FakeEvent") -> float:
        if self.time_ns is None or end_event.time_ns is None:
            raise RuntimeError("an event was read before it was recorded")
        return (end_event.time_ns - self.time_ns) / 1e6


class FakeNvmlError(Exception):
    """What the fake raises where a GPU cannot say something."""


@dataclass
class FakeGpu:
    """State of one pretended GPU; a test changes it while the code under test looks at it. None = not supported."""

    name: str = "Fake GPU"
    uuid: str = "GPU-0000"
    sm_mhz: int = 1500
    memory_mhz: int = 2000
    temperature_c: int = 50
    power_mw: int | None = 200_000
    energy_mj: int | None = 0
    reasons: int = 0
    used_bytes: int = 1 << 30
    total_bytes: int = 24 << 30
    processes: dict[int, int | None] = field(default_factory=dict)       # pid -> bytes, None where NVML does not say
    ecc_uncorrected: int | None = 0
    mig: int | None = 0


@dataclass
class _Memory:
    total: int
    free: int
    used: int


@dataclass
class _Process:
    pid: int
    usedGpuMemory: int | None


class FakeNvml:
    """Stands in for the module `pynvml`: the calls that hibench uses, answered from `FakeGpu`s."""

    NVML_CLOCK_SM = 1
    NVML_CLOCK_MEM = 2
    NVML_TEMPERATURE_GPU = 0
    NVML_MEMORY_ERROR_TYPE_UNCORRECTED = 1
    NVML_VOLATILE_ECC = 0
    NVMLError = FakeNvmlError

    def __init__(self, *gpus: FakeGpu, driver: str = "555.00", broken: bool = False) -> None:
        self.gpus = list(gpus)
        self.driver = driver
        self.broken = broken                    # nvmlInit fails, as on a machine without a driver
        self.shut_down = 0

    def nvmlInit(self) -> None:
        if self.broken:
            raise FakeNvmlError("NVML Shared Library Not Found")

    def nvmlShutdown(self) -> None:
        self.shut_down += 1

    def nvmlSystemGetDriverVersion(self) -> str:
        return self.driver

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeGpu:
        if not 0 <= index < len(self.gpus):
            raise FakeNvmlError("Invalid Argument")
        return self.gpus[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: Any) -> FakeGpu:
        text = uuid.decode() if isinstance(uuid, bytes) else uuid
        for gpu in self.gpus:
            if gpu.uuid.startswith(text):
                return gpu
        raise FakeNvmlError("Not Found")

    def nvmlDeviceGetName(self, gpu: FakeGpu) -> str:
        return gpu.name

    def nvmlDeviceGetUUID(self, gpu: FakeGpu) -> str:
        return gpu.uuid

    def nvmlDeviceGetClockInfo(self, gpu: FakeGpu, kind: int) -> int:
        return gpu.sm_mhz if kind == self.NVML_CLOCK_SM else gpu.memory_mhz

    def nvmlDeviceGetTemperature(self, gpu: FakeGpu, kind: int) -> int:
        return gpu.temperature_c

    def nvmlDeviceGetPowerUsage(self, gpu: FakeGpu) -> int:
        return self._supported(gpu.power_mw)

    def nvmlDeviceGetTotalEnergyConsumption(self, gpu: FakeGpu) -> int:
        return self._supported(gpu.energy_mj)

    def nvmlDeviceGetCurrentClocksEventReasons(self, gpu: FakeGpu) -> int:
        return gpu.reasons

    def nvmlDeviceGetMemoryInfo(self, gpu: FakeGpu) -> _Memory:
        return _Memory(gpu.total_bytes, gpu.total_bytes - gpu.used_bytes, gpu.used_bytes)

    def nvmlDeviceGetComputeRunningProcesses(self, gpu: FakeGpu) -> list[_Process]:
        return [_Process(pid, used) for pid, used in gpu.processes.items()]

    def nvmlDeviceGetTotalEccErrors(self, gpu: FakeGpu, kind: int, counter: int) -> int:
        return self._supported(gpu.ecc_uncorrected)

    def nvmlDeviceGetMigMode(self, gpu: FakeGpu) -> tuple[int, int]:
        mode = self._supported(gpu.mig)
        return mode, mode

    @staticmethod
    def _supported(value: int | None) -> int:
        if value is None:
            raise FakeNvmlError("Not Supported")
        return value
