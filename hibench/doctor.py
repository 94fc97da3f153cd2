"""`hibench doctor`: is this machine fit to measure? One line per point, with what to do where it is not.

Points about the cells of a benchmark file are in hibench.preflight.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hibench.errors import EXIT_FAILED, EXIT_OK

__all__ = ["Check", "Machine", "diagnose", "run_doctor"]

BUSY_SHARE = 0.25                      # of one core: a process above this disturbs timings
DISK_FAIL_BYTES, DISK_WARN_BYTES = 1 << 30, 5 << 30
RAM_FAIL_BYTES, RAM_WARN_BYTES = 1 << 30, 4 << 30
LOOK_S = 1.0                           # how long other processes are watched


@dataclass(frozen=True)
class Check:
    """One point: `ok`, `warn` (measurements may be noisier) or `fail` (do not measure), a sentence, and what to do."""

    name: str
    level: str
    text: str
    action: str = ""

    def __str__(self) -> str:
        return f"{self.level:<4}  {self.name:<10}  {self.text}" + (f"; {self.action}" if self.action else "")


@dataclass
class Machine:
    """How the doctor looks at the machine; every answer can be replaced in tests."""

    sys: Path = Path("/sys")
    folder: Path = Path()                                        # where results will be written
    nvml: Any = None                                             # None: the real one
    environ: dict[str, str] | None = None
    look_s: float = LOOK_S
    load_average: Callable[[], float] = lambda: os.getloadavg()[0]
    busy: Callable[[float], list[tuple[int, str, float]]] = lambda seconds: busy_processes(seconds)
    available_bytes: Callable[[], int] = lambda: available_memory()
    free_bytes: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free
    torch_build: Callable[[], dict[str, str | None]] = lambda: _torch_build()
    cores: Callable[[], int] = lambda: _cores()
    quota: Callable[[], float | None] = lambda: cpu_quota()
    published: Callable[[], dict[str, str | None]] = lambda: published_weights()


def run_doctor(strict: bool = False, machine: Machine | None = None, write: Callable[[str], None] = print, *,
               spec: Path | None = None, only: Sequence[str] = (), overrides: Sequence[str] = (),
               device: str | None = None) -> int:
    """Write one line per point; 0, or 3 with `strict` when a point fails. `spec`: look at what its cells need, too."""
    checks = diagnose(machine)
    if spec is not None:
        from hibench.preflight import look_ahead

        checks += look_ahead(spec, only, overrides, device)
    for check in checks:
        write(str(check))
    count = {level: sum(check.level == level for check in checks) for level in ("warn", "fail")}
    if count["fail"]:
        write(f"not fit to measure: {count['fail']} of {len(checks)} points fail")
    elif count["warn"]:
        write(f"fit to measure, with {count['warn']} of {len(checks)} points to look at")
    else:
        write("fit to measure")
    return EXIT_FAILED if strict and count["fail"] else EXIT_OK


def diagnose(machine: Machine | None = None) -> list[Check]:
    """All points about the machine."""
    machine = machine or Machine()
    checks = [check_governor(machine), check_load(machine), check_processes(machine), check_threads(machine),
              check_memory(machine), check_disk(machine), check_torch(machine), check_weights(machine)]
    return [*checks, *check_gpus(machine)]


# -- processor -------------------------------------------------------------------------------------------------------------


def check_governor(machine: Machine) -> Check:
    """Does the clock of the processor stay where it is?"""
    files = sorted((machine.sys / "devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_governor"))
    if not files:
        return Check("governor", "ok", "the processor's clock is not governed from here (a virtual machine, or no cpufreq)")
    found = sorted({file.read_text().strip() for file in files})
    if found == ["performance"]:
        return Check("governor", "ok", "all cores run with the governor 'performance'")
    return Check("governor", "warn", f"the governor is {', '.join(found)}: clocks follow the load, timings the clocks",
                 "set it with `cpupower frequency-set -g performance`")


def check_load(machine: Machine) -> Check:
    """Is somebody else using the processor?"""
    load, cores = machine.load_average(), machine.cores()
    text = f"load average {load:.1f} on {cores} usable core(s)"
    if load > cores:
        return Check("load", "fail", text + ": more work than cores", "wait until it is over, or stop it")
    if load > cores / 2:
        return Check("load", "warn", text, "wait for a quiet machine for numbers to keep")
    return Check("load", "ok", text)


def check_processes(machine: Machine) -> Check:
    """Which processes keep a core busy?"""
    busy = machine.busy(machine.look_s)
    if not busy:
        return Check("processes", "ok", "no other process keeps a core busy")
    listed = ", ".join(f"{name} (pid {pid}, {share:.0%})" for pid, name, share in busy[:3])
    more = f" and {len(busy) - 3} more" if len(busy) > 3 else ""
    return Check("processes", "warn", f"other processes use the processor: {listed}{more}", "stop them before measuring speed")


def busy_processes(seconds: float) -> list[tuple[int, str, float]]:
    """(pid, name, share of one core) of the processes, other than this one and its parents, that work hard; busiest first."""
    import psutil

    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    before: dict[int, float] = {}
    for process in psutil.process_iter(["pid"]):
        times = _cpu_seconds(process)
        if times is not None and process.pid not in own:
            before[process.pid] = times
    time.sleep(seconds)
    found = []
    for process in psutil.process_iter(["pid", "name"]):
        after = _cpu_seconds(process) if process.pid in before else None
        share = (after - before[process.pid]) / seconds if after is not None else 0.0
        if share > BUSY_SHARE:
            found.append((process.pid, str(process.info["name"]), share))
    return sorted(found, key=lambda one: -one[2])


def _cpu_seconds(process: Any) -> float | None:
    import psutil

    try:
        times = process.cpu_times()
    except psutil.Error:
        return None
    return float(times.user + times.system)


def check_threads(machine: Machine) -> Check:
    """Do thread settings and the container's quota fit the cores?"""
    environ = dict(os.environ) if machine.environ is None else machine.environ
    cores, quota, setting = machine.cores(), machine.quota(), environ.get("OMP_NUM_THREADS")
    if quota is not None and quota < cores:
        text = f"the container may use {quota:g} of the {cores} cores it sees: threads will wait for each other"
        return Check("threads", "warn", text,
                     f"set OMP_NUM_THREADS={max(1, int(quota))}")
    if setting is None:
        return Check("threads", "ok", f"torch chooses its number of threads ({cores} usable cores)")
    if not setting.isdigit() or int(setting) < 1:
        return Check("threads", "fail", f"OMP_NUM_THREADS={setting} is not a number of threads", "unset it or write a number")
    if int(setting) > cores:
        return Check("threads", "warn", f"OMP_NUM_THREADS={setting}, and there are {cores} usable cores", "lower or unset it")
    return Check("threads", "ok", f"OMP_NUM_THREADS={setting} on {cores} usable cores; it is part of the software digest")


def cpu_quota(file: Path = Path("/sys/fs/cgroup/cpu.max")) -> float | None:
    """Cores that the control group allows; None without a limit."""
    try:
        quota, period = file.read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def _cores() -> int:
    from hibench.env import affinity_cores

    return affinity_cores()


# -- memory, disk, software ------------------------------------------------------------------------------------------------


def available_memory(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of RAM that can still be used: what the kernel calls available, or what the control group leaves."""
    import psutil

    available = int(psutil.virtual_memory().available)
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
    except (OSError, ValueError):
        return available
    return available if limit == "max" else min(available, max(0, int(limit) - used))


def check_memory(machine: Machine) -> Check:
    """Is there RAM left?"""
    free = machine.available_bytes()
    return _enough("memory", free, RAM_FAIL_BYTES, RAM_WARN_BYTES, "of RAM available", "close other programs")


def check_disk(machine: Machine) -> Check:
    """Is there room for results?"""
    free = machine.free_bytes(machine.folder)
    return _enough("disk", free, DISK_FAIL_BYTES, DISK_WARN_BYTES, "free for results", "make room, or write them elsewhere")


def _enough(name: str, free: int, fail: int, warn: int, text: str, action: str) -> Check:
    sentence = f"{free / 2**30:.1f} GiB {text}"
    if free < warn:
        return Check(name, "fail" if free < fail else "warn", sentence, action)
    return Check(name, "ok", sentence)


def _torch_build() -> dict[str, str | None]:
    from hibench.env import torch_build

    return torch_build()


def check_torch(machine: Machine) -> Check:
    """Do torch and the driver fit together?"""
    from hibench.env import driver, gpus

    build, version, found = machine.torch_build(), driver(machine.nvml), gpus(machine.nvml)
    if build["torch"] is None:
        return Check("torch", "fail", "torch is not installed", "pip install torch")
    if not found:
        return Check("torch", "ok", f"torch {build['torch']}; there is no NVIDIA GPU, everything runs on the CPU")
    if build["torch_cuda"] is None:
        return Check("torch", "fail", f"torch {build['torch']} is built without CUDA, and there is a GPU ({found[0]['name']})",
                     "install a CUDA build of torch, or write device: cpu")
    needs = NEEDED_DRIVER.get(int(build["torch_cuda"].split(".")[0]), 0)
    if version is not None and int(version.split(".")[0]) < needs:
        text = f"torch {build['torch']} needs driver {needs} or newer for CUDA {build['torch_cuda']}, not {version}"
        return Check("torch", "fail", text,
                     "update the driver, or install a torch for an older CUDA")
    return Check("torch", "ok", f"torch {build['torch']} with CUDA {build['torch_cuda']}, driver {version}")


def check_weights(machine: Machine) -> Check:
    """Are the published networks that are here what was published?"""
    found = machine.published()
    wrong = [problem for problem in found.values() if problem]
    if wrong:
        return Check("weights", "fail", f"{len(wrong)} of {len(found)} published weights files are damaged", "; ".join(wrong))
    told = f"{len(found)} published weights file{'s are' if len(found) != 1 else ' is'} here, as published"
    return Check("weights", "ok", told if found else "no published weights are here; see `hibench list weights`")


def published_weights() -> dict[str, str | None]:
    """What is wrong with each published weights file that is on this machine; None: it has the published hash."""
    from hibench.errors import MissingWeights
    from hibench.weights import CATALOG, find, resolve

    found: dict[str, str | None] = {}
    for name in CATALOG:
        if find(name) is not None:
            try:
                resolve(name)
                found[name] = None
            except MissingWeights as error:
                found[name] = str(error)
    return found


NEEDED_DRIVER = {11: 450, 12: 525, 13: 580}                      # CUDA's minor-version compatibility


# -- GPUs ------------------------------------------------------------------------------------------------------------------


def check_gpus(machine: Machine) -> Iterator[Check]:
    """Foreign processes, throttling, ECC errors and MIG of every GPU."""
    from hibench.env import open_nvml
    from hibench.gpu import Gpu

    nvml = open_nvml(machine.nvml)
    if nvml is None:
        return
    for index in range(nvml.nvmlDeviceGetCount()):
        yield from check_gpu(f"gpu {index}", Gpu(nvml, nvml.nvmlDeviceGetHandleByIndex(index)))


def check_gpu(name: str, gpu: Any) -> Iterator[Check]:
    """The points of one GPU; only those that are not well, or one line that all is."""
    from hibench.gpu import throttle_reasons

    wrong = []
    processes = gpu.processes()
    if processes:
        listed = ", ".join(str(pid) for pid in sorted(processes))
        text = f"{gpu.name}: other processes use it (pid {listed})"
        wrong.append(Check(name, "fail", text, "stop them, or choose another GPU"))
    reasons = throttle_reasons(gpu.sample().reasons or 0)
    if reasons:
        text = f"{gpu.name} slows itself down ({', '.join(reasons)})"
        wrong.append(Check(name, "fail", text, "let it cool down, and look at its power supply"))
    if gpu.ecc_errors():
        text = f"{gpu.name} had {gpu.ecc_errors()} uncorrected ECC error(s)"
        wrong.append(Check(name, "fail", text, "restart the machine; if they come back, replace the GPU"))
    if gpu.mig():
        wrong.append(Check(name, "warn", f"{gpu.name} is split by MIG: NVML does not tell memory and energy of a slice",
                           "measure on a whole GPU for numbers to compare"))
    memory = gpu.memory()
    if not wrong:
        size = f", {(memory[1] - memory[0]) / 2**30:.1f} of {memory[1] / 2**30:.1f} GiB free" if memory else ""
        wrong.append(Check(name, "ok", f"{gpu.name} is idle{size}"))
    yield from wrong
