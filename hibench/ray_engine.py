"""The Ray engine: jobs as tasks on the machines of a cluster, one GPU (or CPU) each, speed cells alone on their machine."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hibench.cells import Cell
from hibench.cluster import ALONE, Host, Survey, adopt_threads, answer, choose, look, mismatch, usable
from hibench.engines import WORKER, Exit
from hibench.env import THREAD_VARIABLES
from hibench.errors import HibenchError, Unfit
from hibench.parcel import Parcel, do_job, inputs_of, unpack
from hibench.prepare import Task
from hibench.store import utc_now

__all__ = ["RayEngine"]

TRIES = 3  # times that a job is given to a machine, when machines get lost
SURVEY_S = 300.0  # how long a machine may take to say what it is
REACH_S = 10.0  # how long the cluster's head may take to accept a connection
KILLED = Exit(-signal.SIGKILL, False, 0.0)


def run_there(
    job: dict[str, Any],
    inputs: Sequence[tuple[str, Any]],
    timeout_s: float | None,
    threads: Mapping[str, str],
    command: Sequence[str],
) -> Parcel:
    """The Ray task: the job in a process of its own, as the local engine runs it; inputs are fetched one at a time."""
    import ray

    def fetch(ref: Any) -> Callable[[], bytes]:
        return lambda: bytes(ray.get(ref))

    before = dict(os.environ)  # the Ray worker may go on to another job
    if threads or job["task"] == "speed":  # otherwise a CPU task keeps to the threads that Ray gives it
        adopt_threads(threads)
    try:
        return do_job(job, [(name, fetch(ref)) for name, ref in inputs], timeout_s, command)
    finally:
        adopt_threads(before)


class RayEngine:
    """Runs jobs on a Ray cluster. No file system is shared: what a job needs and what it made travel by value.

    `address`: of a running cluster (`auto`, `ray://…`, `host:port`); None starts one on this machine for the time of the run.
    Every job is a process of its own; the Ray worker around it ends with a job that had a GPU, else it takes the next one.
    `prepare` connects, and compares what is installed on every machine with what is installed here. A job whose machine or
    Ray worker is lost is given to another one, up to TRIES times. Ended by `close`, or as a context manager.
    """

    def __init__(self, address: str | None = None, *, command: Sequence[str] = WORKER, **init: Any) -> None:
        self.address, self.command, self.init = address, tuple(command), init
        self.slots = self.hosts = 1
        self.threads = {name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ}
        self._free: queue.Queue[Host | None] = queue.Queue()  # machines on which no speed job runs; None: there are none left
        self._demand: dict[str, Any] = {}
        self._running: set[Any] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def __enter__(self) -> RayEngine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- the cluster ---------------------------------------------------------------------------------------------------

    def connect(self) -> list[Host]:
        """Join the cluster, or start one; its machines."""
        ray = import_ray()
        if not ray.is_initialized():
            _check_reachable(self.address)
            where = {} if self.address is None else {"address": self.address}
            quiet = {"log_to_driver": False, "logging_level": "ERROR", "include_dashboard": False if not where else None}
            asked = {**where, **{name: value for name, value in quiet.items() if value is not None}, **self.init}
            try:
                ray.init(**asked)
            except Exception as error:
                if type(error) is not Exception and not isinstance(error, (ConnectionError, RuntimeError, ValueError)):
                    raise  # a bare Exception is Ray's own: it was too slow to start
                text = " ".join(str(error).split())[:300]
                raise Unfit(
                    f"no Ray cluster answers at {self.address or 'this machine'} ({text}); look at `ray status`"
                ) from error
        return usable(ray.nodes())

    def prepare(self, cells: Iterable[Cell], device: str | None = None) -> tuple[dict[str, Any], list[Task]]:
        """Surroundings and tasks as the measuring machines see them; Unfit where some machine has other software or weights."""
        cells = list(cells)
        if device is not None and ":" in device:
            raise Unfit(f"--device {device}: with --engine ray the cluster hands out the GPUs; use cuda, cpu or auto")
        here = look(cells, "cpu", self.threads)
        surveys = self._survey(self.connect(), cells, device)
        for host, there in surveys.items():
            found = mismatch(here, there)
            if found is not None:
                raise Unfit(
                    f"machine {host.name} of the cluster differs: {found}; nothing was run: make them the same, and run again"
                )
        measuring = choose(surveys)
        self._hire(list(surveys), measuring)
        chosen = surveys[measuring[0]]
        return chosen.env, list(chosen.tasks)

    def _survey(self, hosts: list[Host], cells: list[Cell], device: str | None) -> dict[Host, Survey]:
        ray = import_ray()
        remote = ray.remote(max_retries=0)(answer)
        asked = {}
        for host in hosts:
            small = {"num_cpus": 0, "num_gpus": 1} if host.gpus else {"num_cpus": 1}
            asked[host] = remote.options(scheduling_strategy=_pinned(host), **small).remote(cells, device, self.threads)
        done = {}
        for host, ref in asked.items():
            try:
                done[host] = ray.get(ref, timeout=SURVEY_S)
            except ray.exceptions.GetTimeoutError:
                raise Unfit(
                    f"machine {host.name} of the cluster gave no answer in {SURVEY_S:.0f} s; look at `ray status`"
                ) from None
            except ray.exceptions.RayError as error:
                last = ([line for line in str(error).splitlines() if line.strip()] or [type(error).__name__])[-1].strip()
                raise Unfit(
                    f"machine {host.name} of the cluster cannot run this hibench ({last[:300]}); install the same there"
                ) from error
        return done

    def _hire(self, hosts: list[Host], measuring: list[Host]) -> None:
        """What one job gets, how many run at once, and which machines measure speed."""
        gpu = any(host.gpus for host in measuring)
        working = [host for host in hosts if bool(host.gpus) == gpu]
        widest = max(int(host.gpus if gpu else host.cpus) for host in working)
        self._demand = {"num_gpus": 1, "num_cpus": 0} if gpu else {"num_cpus": 1}
        if all(host.alone for host in working):
            self._demand["resources"] = {ALONE: round(min(host.alone for host in working) / widest, 4)}
        self.slots = max(1, sum(int(host.gpus if gpu else host.cpus) for host in working))
        self.hosts = len(measuring)
        self._free = queue.Queue()
        for host in measuring:
            self._free.put(host)

    # -- jobs ----------------------------------------------------------------------------------------------------------

    def run(
        self, job: Path, log: Path, *, timeout_s: float | None, gpu: Any = None, tick: Callable[[], None] | None = None
    ) -> Exit:
        """Run one job file on some machine, its files brought back; `gpu` is watched there, not here."""
        asked = json.loads(job.read_text(encoding="utf-8"))
        out = Path(asked["out"])
        for attempt in range(1, TRIES + 1):
            if self._stopped:
                return KILLED
            parcel, lost = self._once(asked, out, timeout_s, tick)
            if parcel is not None:
                unpack(parcel, out, log)
                return parcel.end
            if not self._stopped:
                with log.open("ab") as file:
                    file.write(
                        f"=== {utc_now()} {job.name}\nthe machine was lost (try {attempt} of {TRIES}): {lost}\n".encode()
                    )
        return KILLED

    def _once(
        self, asked: dict[str, Any], out: Path, timeout_s: float | None, tick: Callable[[], None] | None
    ) -> tuple[Parcel | None, str]:
        """One try: the parcel, or None and what happened to the machine."""
        ray = import_ray()
        host = self._take_host() if asked["task"] == "speed" else None
        try:
            options = self._demand if host is None else {**host.everything(), "scheduling_strategy": _pinned(host)}
            inputs = [(name, ray.put((out / name).read_bytes())) for name in inputs_of(asked, out)]
            task = ray.remote(max_calls=1 if options.get("num_gpus") else 0, max_retries=0)(run_there).options(**options)
            ref = task.remote(asked, inputs, timeout_s, self.threads, self.command)
            with self._lock:
                self._running.add(ref)
            try:
                return self._await(ref, tick), ""
            except ray.exceptions.RayTaskError as error:  # not the job failed, but what is around it: a full disk there, say
                text = " ".join(str(error.cause).split())
                raise HibenchError(f"a machine of the cluster could not run {asked['task']}: {text}; run again") from error
            except ray.exceptions.RayError as error:
                return None, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]
            finally:
                with self._lock:
                    self._running.discard(ref)
        finally:
            if host is not None:
                self._give_back(host)

    def _await(self, ref: Any, tick: Callable[[], None] | None) -> Parcel:
        ray = import_ray()
        while True:
            done, _ = ray.wait([ref], timeout=1.0)
            if done:
                parcel: Parcel = ray.get(ref)
                return parcel
            if self._stopped:  # begun while `kill_all` went through the others
                ray.cancel(ref, force=True)
                raise ray.exceptions.TaskCancelledError()
            if tick is not None:
                tick()

    def _take_host(self) -> Host:
        """A machine that measures nothing now; HibenchError when all of them are lost."""
        while True:
            host = self._free.get()
            if host is not None:
                return host
            if self.hosts == 0:
                self._free.put(None)
                raise HibenchError("every machine that measures speed is lost; start one of the same hardware, and run again")

    def _give_back(self, host: Host) -> None:
        """A machine is free again, or it is lost."""
        alive = self._stopped or any(node["NodeID"] == host.id and node["Alive"] for node in import_ray().nodes())
        if not alive:
            self.hosts -= 1
        self._free.put(host if alive else None)

    def kill_all(self) -> None:
        """End every job at once; `run` in other threads returns, and new ones end at once."""
        self._stopped = True
        ray = import_ray()
        with self._lock:
            running = list(self._running)
        for ref in running if ray.is_initialized() else ():
            ray.cancel(ref, force=True)

    def close(self) -> None:
        """Leave the cluster; one that was started for this run is gone with it."""
        ray = import_ray()
        if ray.is_initialized():
            ray.shutdown()


def import_ray() -> Any:
    """The module ray; Unfit where it is not installed."""
    try:
        import ray
    except ImportError as error:
        raise Unfit("--engine ray: Ray is not installed; get it with: pip install 'hibench[ray]'") from error
    return ray


def _check_reachable(address: str | None) -> None:
    """Unfit when nothing listens at `host:port` or `ray://host:port`: Ray tries for minutes, and then ends the process."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACH_S).close()
    except OSError as error:
        raise Unfit(f"no Ray cluster answers at {address} ({error.strerror or error}); look at `ray status` there") from error


def _pinned(host: Host) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node_id=host.id, soft=False)
