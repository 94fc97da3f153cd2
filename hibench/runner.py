"""Runs the cells of a spec: what can fail first, each in its own process, replicates interleaved; resumes what was begun."""

from __future__ import annotations

import os
import random
import shutil
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any, TypeVar

from hibench import account
from hibench.attempt import COOL_DOWN_S, most_processes, processes_of
from hibench.board import Board, Options, Stop
from hibench.cells import Plan
from hibench.engines import Engine, LocalEngine, hosts_of, kill_orphans, slots_of
from hibench.env import affinity_cores
from hibench.errors import EXIT_INTERRUPTED, Unfit
from hibench.prepare import Task, Verdict, prepare, shard_of
from hibench.progress import Progress
from hibench.recording import make_record
from hibench.spec import Spec
from hibench.store import Store, clean_errors, utc_now

__all__ = ["Options", "Run", "run_spec"]

T = TypeVar("T")
DISK_BYTES = 100 * 2**20                                       # free space below which no cell is started


def run_spec(spec: Spec, plan: Plan, *, out: str | Path, only: Sequence[str] | None = None, dry_run: bool = False,
             fail_fast: bool = False, retry: bool = False, shard: tuple[int, int] | None = None, jobs: int | None = 1,
             device: str | None = None, progress: bool | str = "auto", infer_oom: bool = True, report: bool = True,
             engine: Engine | None = None, cache: Path | None = None, cool_down_s: float = COOL_DOWN_S) -> int:
    """Measure every cell of `plan` that has no record in `out` yet; returns the exit code.

    0: every cell is ok or skipped. 3: some cell is not, or no cell was measured at all. 130: interrupted; run again to resume.
    `shard` (i, n): only part i of n. `jobs`: quality cells side by side; None: on a CPU one per core (at most 4), which share
    the cores, on a GPU one. `progress`: "auto" (a live line on a terminal), "plain", "none". `report`: write tables
    and plots to out/report when something is new. Raises UnknownMethod, SpecError and Unfit before the first cell, and
    HibenchError where results cannot be written.
    """
    engine = engine or LocalEngine()
    env, tasks = _prepared(engine, plan, device)
    tasks = shard_of(tasks, shard)
    shown = Progress(len(tasks), silent=progress in (False, "none"), live=None if progress in (True, "auto") else False)
    options = Options(fail_fast, retry, infer_oom, max(1, jobs or _jobs(env)), cool_down_s, cache)
    run = Run(tasks, Store(out), env, options, shown, engine)
    if dry_run:
        return account.dry_run(run)
    run.store.create()
    with run.store.lock(shard), _interruptible():
        started = utc_now()
        try:
            code = run.everything()
        except KeyboardInterrupt:
            run.engine.kill_all()
            shown.close()
            shown.say(f"interrupted: {shown.done} of {shown.total} cells are measured; "
                      "run the same command again to go on from here")
            code = EXIT_INTERRUPTED
        finally:
            shown.close()
        changed = account.manifest(run, spec, plan, only, shard, started, code)
        if report and code != EXIT_INTERRUPTED and (changed or not (run.store.root / "report").is_dir()):
            _report(run.store.root, shown)
    return code


def _jobs(env: dict[str, Any]) -> int:
    """Quality cells side by side, where nobody says how many."""
    return 1 if env["hardware"]["gpus"] else min(4, affinity_cores())


def _prepared(engine: Engine, plan: Plan, device: str | None) -> tuple[dict[str, Any], list[Task]]:
    """The surroundings in which cells will be measured, and the tasks there: an engine with `prepare` asks its machines."""
    from hibench.env import describe

    ask = getattr(engine, "prepare", None)
    if ask is not None:
        env, tasks = ask(plan, device)
        return env, tasks
    env = describe()
    return env, prepare(plan, env, device)


class Run(Board):
    """One invocation of `hibench run`: it measures what the board says is to be measured."""

    # -- the whole run -------------------------------------------------------------------------------------------------

    def everything(self) -> int:
        """Run what is to be run; returns the exit code."""
        for pid in kill_orphans(self.store.work):
            self.progress.say(f"ended a worker (pid {pid}) that an earlier, killed run has left behind")
        for repair in self.store.recover():
            self.progress.say(repair)
        todo = self.triage()
        if not todo:
            return account.nothing_to_do(self)
        self._check_machine(todo)
        account.announce(self, todo)
        try:
            for task in todo:
                if task.verdict is not None:
                    self.finish(task, make_record(task, self.env, verdict=task.verdict))
            for task in self.tasks:
                if self.ran_out_here(self.records.get(task.id)):
                    self.infer(task)
            self.speed([t for t in todo if t.cell.kind == "speed" and t.id not in self.records])
            self.drift([t for t in todo if t.cell.kind == "drift" and t.id not in self.records])
            self.quality([t for t in todo if t.cell.kind == "quality" and t.id not in self.records])
        except Stop:
            self.progress.say("stopped at the first failure (--fail-fast); run again without it for the other cells")
        return account.summary(self)

    def _check_machine(self, todo: list[Task]) -> None:
        """Disk and surroundings, before the first cell."""
        with clean_errors(f"look at {self.store.root}"):
            free = shutil.disk_usage(self.store.root).free
        if free < DISK_BYTES:
            raise Unfit(f"{self.store.root}: only {free / 2**20:.0f} MiB are free; make room or choose another --out")
        if int(os.environ.get("WORLD_SIZE") or 1) > 1 and any(t.cell.kind == "speed" for t in todo):
            raise Unfit(f"WORLD_SIZE={os.environ['WORLD_SIZE']}: speed is not measured beside other processes of a distributed "
                        "job; unset WORLD_SIZE, or use --only quality")

    # -- cells ---------------------------------------------------------------------------------------------------------

    def speed(self, tasks: list[Task]) -> None:
        """All replicates of all speed cells: replicate by replicate, each time in another order."""
        self.shares = {task.id: 1.0 for task in tasks}
        rounds = max((most_processes(task) for task in tasks), default=0)
        hosts = hosts_of(self.engine)
        up_to = "up to " if any(most_processes(task) > processes_of(task) for task in tasks) else ""
        for replicate in range(rounds):
            order = [t for t in tasks if t.id not in self.records]
            if not order:
                break
            random.Random(replicate).shuffle(order)
            if rounds > 1 and not self.progress.live:
                self.progress.say(f"speed: replicate {replicate + 1} of {up_to}{rounds}, {len(order)} cells")
            with closing(self._side_by_side(order, partial(self._process, replicate), hosts)) as outcomes:
                for task, outcome in outcomes:
                    self._replicated(task, replicate, outcome)

    def _process(self, replicate: int, task: Task) -> Verdict | float:
        return self.attempt(task).replicate(replicate)

    def _replicated(self, task: Task, replicate: int, outcome: Verdict | float) -> None:
        """Note one process of a speed cell; after the last one the cell is finished."""
        if isinstance(outcome, Verdict):
            self.fail(task, outcome)
            return
        attempt, count = self.attempt(task), processes_of(task)
        self.shares[task.id] = max(0.0, 1 - (replicate + 1) / count)
        self.estimate.learn(task.cell, outcome * count)
        self.left_s = self.left()
        if attempt.enough(replicate + 1):
            self.finish(task, attempt.speed_record(replicate + 1))

    def drift(self, tasks: list[Task]) -> None:
        """Images of the fixed seeds, cell by cell."""
        self._close_all(tasks, lambda task: self.attempt(task).drift(), slots_of(self.engine))

    def quality(self, tasks: list[Task]) -> None:
        """Quality cells in order, `jobs` or the engine's `slots` of them side by side; what one shows may spare later ones."""
        slots = slots_of(self.engine)
        width = max(self.options.jobs, slots)
        wanted = 1 if slots == 1 else ceil(2 * slots / max(1, min(len(tasks), width)))       # parts of a cell
        if isinstance(self.engine, LocalEngine) and width > 1 and not self.env["hardware"]["gpus"]:
            self.engine.threads = max(1, affinity_cores() // width)
        try:
            self._close_all(tasks, lambda task: self.attempt(task).quality(wanted), width)
        finally:
            if isinstance(self.engine, LocalEngine):
                self.engine.threads = None

    def _close_all(self, tasks: list[Task], work: Callable[[Task], Verdict | dict[str, Any]], width: int) -> None:
        with closing(self._side_by_side(tasks, work, width)) as outcomes:
            for task, outcome in outcomes:
                if isinstance(outcome, Verdict):
                    self.fail(task, outcome)
                else:
                    self.finish(task, outcome)

    def _side_by_side(self, tasks: Sequence[Task], work: Callable[[Task], T], width: int,
                      ) -> Generator[tuple[Task, T], None, None]:
        """Tasks with what came of them, as they end; one that has a record by the time of its turn is left out.

        At most `width` run at a time, 1 in this thread. Closed before its end, it ends what still runs."""
        if width == 1:
            for task in tasks:
                if task.id not in self.records:
                    yield task, work(task)
            return
        waiting, running = list(reversed(tasks)), dict[Future[T], Task]()
        with ThreadPoolExecutor(width) as pool:
            try:
                while True:
                    while waiting and len(running) < width:
                        task = waiting.pop()
                        if task.id not in self.records:
                            self.busy.add(task.id)
                            running[pool.submit(work, task)] = task
                    if not running:
                        return
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        task = running.pop(future)
                        self.busy.discard(task.id)
                        yield task, future.result()
            except BaseException:                              # also the consumer's
                self.engine.kill_all()
                raise


def _report(root: Path, progress: Progress) -> None:
    """Tables and plots; whatever goes wrong there, the records stay and the exit code is that of the run."""
    try:
        from hibench.report import write_report

        write_report(root, root / "report")
    except Exception as error:
        progress.say(f"the report could not be written ({type(error).__name__}: {error}); the records are safe: "
                     f"`hibench report {progress.path(root)}` tries again")
        return
    progress.say(f"tables and plots: {progress.path(root / 'report' / 'report.md')}")


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP interrupt like Ctrl-C, so that workers are ended and staging is kept."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    mine = [number for number, handler in before.items() if handler != signal.SIG_IGN]       # nohup: SIGHUP stays ignored
    for number in mine:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, before[number] or signal.SIG_DFL)
