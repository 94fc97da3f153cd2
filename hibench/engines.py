"""Where cells run: worker processes on this machine, each with a time limit, its own process group and its own log."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from hibench.store import clean_errors, utc_now

if TYPE_CHECKING:
    from hibench.gpu import GpuTrace

__all__ = ["Engine", "Exit", "LocalEngine", "WORKER", "die_with_parent", "gpu_of", "hosts_of", "kill_orphans", "slots_of",
           "worker_identity"]

WORKER = (sys.executable, "-m", "hibench.worker")
GRACE_S = 5.0                                                  # between SIGTERM and SIGKILL
STUCK_S = 30.0                                                 # how long a killed process may take to go (a hung driver)
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Exit:
    """How a worker process ended."""

    returncode: int | None                                     # negative: the signal; None: it could not even be killed
    timed_out: bool
    wall_s: float
    trace: GpuTrace | None = None                              # what the GPU did meanwhile; None = no GPU was watched


class Engine(Protocol):
    """Runs one job at a time per call, from several threads if need be.

    Optional: `slots` (how many jobs it runs at once; 1 where it does not say), `hosts` (how many of them alone on a machine),
    `prepare(cells, device)` (surroundings and tasks, as its machines see them).
    """

    def run(self, job: Path, log: Path, *, timeout_s: float | None, gpu: Any = None,
            tick: Callable[[], None] | None = None) -> Exit:
        """Run one job file to its end."""
        ...

    def kill_all(self) -> None:
        """End every worker at once."""
        ...


def slots_of(engine: Engine) -> int:
    """How many jobs the engine runs at once."""
    return int(getattr(engine, "slots", 1))


def hosts_of(engine: Engine) -> int:
    """How many speed jobs the engine runs at once, each alone on its machine."""
    return max(1, int(getattr(engine, "hosts", 1)))


@dataclass
class LocalEngine:
    """Worker processes on this machine. The parent sleeps in a system call until the worker ends: it uses no CPU time."""

    command: Sequence[str] = WORKER
    grace_s: float = GRACE_S
    threads: int | None = None                                 # of a worker, where the user's environment says nothing
    _running: set[int] = field(default_factory=set)            # process groups
    _stopped: bool = False

    def run(self, job: Path, log: Path, *, timeout_s: float | None, gpu: Any = None,
            tick: Callable[[], None] | None = None) -> Exit:
        """Run one job file to its end, its output appended to `log`; past `timeout_s` (None: no limit) its group is killed.

        `gpu` (hibench.gpu.Gpu, None: nothing to watch) is sampled meanwhile. `tick` is called once a second (None: never).
        """
        from hibench.gpu import Sampler

        with clean_errors(f"write {log}"), log.open("ab") as output:
            output.write(f"=== {utc_now()} {job.name}\n".encode())
            output.flush()
            with Sampler(gpu) as sampler:
                started = time.monotonic()
                process = subprocess.Popen([*self.command, str(job)], stdin=subprocess.DEVNULL, stdout=output,
                                           stderr=subprocess.STDOUT, start_new_session=True, env=self._environment())
                waiter = threading.Thread(target=process.wait, name=f"wait-{process.pid}", daemon=True)
                try:
                    self._running.add(process.pid)
                    waiter.start()                             # blocks in waitpid: Popen.wait(timeout) would poll
                    sampler.watch(process.pid)
                    timed_out = not self._wait(waiter, timeout_s, tick)
                finally:                                       # also after Ctrl-C
                    self._end(process, waiter)
                    self._running.discard(process.pid)
                wall_s = time.monotonic() - started
        return Exit(process.returncode, timed_out, wall_s, sampler.trace if gpu is not None else None)

    def _environment(self) -> dict[str, str] | None:
        """A worker's environment; None = this process's own."""
        if self.threads is None:
            return None
        return {"OMP_NUM_THREADS": str(self.threads), **os.environ}

    def _wait(self, waiter: threading.Thread, timeout_s: float | None, tick: Callable[[], None] | None) -> bool:
        """Sleep until the process ends; False when the time is over before."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while waiter.is_alive() and not self._stopped:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            if tick is None:
                waiter.join(left)
            else:
                waiter.join(1.0 if left is None else min(1.0, left))
                tick()
        return True

    def _end(self, process: subprocess.Popen[bytes], waiter: threading.Thread) -> None:
        """End the process if it still runs, and whatever it has left behind in its group."""
        try:
            if waiter.is_alive():
                signal_group(process.pid, signal.SIGTERM)
                waiter.join(self.grace_s)
        finally:                                               # a second Ctrl-C does not spare it
            signal_group(process.pid, signal.SIGKILL)
        waiter.join(STUCK_S)

    def kill_all(self) -> None:
        """End every worker at once; `run` in other threads returns, and new ones end at once."""
        self._stopped = True
        for group in list(self._running):
            signal_group(group, signal.SIGKILL)


def signal_group(group: int, number: int) -> None:
    """Send a signal to a process group; nothing happens when it is gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def worker_identity() -> dict[str, Any]:
    """Who starts a job: stored in the job file, so that a later run knows an orphan when it sees one."""
    import psutil

    return {"pid": os.getpid(), "created": psutil.Process().create_time()}


def kill_orphans(work: Path) -> list[int]:
    """End workers on jobs below `work` whose run is dead (killed by `kill -9`); returns their process ids."""
    import psutil

    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        last = (process.info["cmdline"] or [""])[-1]
        if last.startswith(f"{work}{os.sep}") and process.pid != os.getpid() and not _run_is_alive(Path(last)):
            signal_group(process.pid, signal.SIGKILL)
            with contextlib.suppress(psutil.Error):
                process.kill()
                process.wait(STUCK_S)
            found.append(process.pid)
    return found


def _run_is_alive(job: Path) -> bool:
    """Whether the run that started a job still lives."""
    import psutil

    try:
        parent = json.loads(job.read_text(encoding="utf-8"))["parent"]
        return bool(abs(psutil.Process(parent["pid"]).create_time() - parent["created"]) < 1.0)
    except (OSError, ValueError, KeyError, TypeError, psutil.Error):
        return False


def die_with_parent() -> None:
    """Called in a worker: the kernel ends it when the run that started it dies (Linux; elsewhere nothing happens)."""
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def gpu_of(device: str) -> Any:
    """The GPU (hibench.gpu.Gpu) behind `cuda` or `cuda:N`; None for a CPU, or where NVML does not answer."""
    from hibench.gpu import open_gpu

    return open_gpu(index=int(device.partition(":")[2] or 0)) if device.startswith("cuda") else None
