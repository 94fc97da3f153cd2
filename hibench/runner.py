"""Runs the cells of a spec: what can fail first, each in its own process, replicates interleaved; resumes what was begun."""

from __future__ import annotations

import os
import platform
import random
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hibench
from hibench.attempt import COOL_DOWN_S, Attempt, most_processes, processes_of, times
from hibench.cells import PROTOCOL, Plan, canonical, expand
from hibench.engines import Engine, LocalEngine, kill_orphans
from hibench.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, Unfit
from hibench.prepare import Task, Verdict, prepare, shard_of
from hibench.progress import Estimate, Progress, duration, status_table
from hibench.recording import GOOD, is_good, make_record
from hibench.spec import Spec
from hibench.store import Store, clean_errors, read_json, utc_now

__all__ = ["Options", "Run", "run_spec"]

OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)       # sent by somebody else, no fault of the method
OUTSIDE_ATTEMPTS = 3                                           # after so many deaths by such a signal it is the method's fault
DISK_BYTES = 100 * 2**20                                       # free space below which no cell is started


@dataclass(frozen=True)
class Options:
    """How to run, whatever the spec."""

    fail_fast: bool = False                                    # stop at the first cell that fails
    retry: bool = False                                        # run failed cells again
    infer_oom: bool = True                                     # larger resolutions than one that ran out of memory do not run
    jobs: int = 1                                              # quality cells side by side; speed cells always run alone
    cool_down_s: float = COOL_DOWN_S                           # before a throttled replicate is repeated
    cache: Path | None = None                                  # features of references; None = hibench's own place


class _Stop(Exception):
    """`--fail-fast`: a cell has failed."""


def run_spec(spec: Spec, plan: Plan, *, out: str | Path, only: Sequence[str] | None = None, dry_run: bool = False,
             fail_fast: bool = False, retry: bool = False, shard: tuple[int, int] | None = None, jobs: int = 1,
             device: str | None = None, progress: bool | str = "auto", infer_oom: bool = True, report: bool = True,
             engine: Engine | None = None, cache: Path | None = None, cool_down_s: float = COOL_DOWN_S) -> int:
    """Measure every cell of `plan` that has no record in `out` yet; returns the exit code.

    0: every cell is ok or skipped. 3: some cell is not, or no cell was measured at all. 130: interrupted; run again to resume.
    `shard` (i, n): only part i of n. `progress`: "auto" (a live line on a terminal), "plain", "none". `report`: write tables
    and plots to out/report when something is new. Raises UnknownMethod, SpecError and Unfit before the first cell, and
    HibenchError where results cannot be written.
    """
    from hibench.env import describe

    env = describe()
    tasks = shard_of(prepare(plan, env, device), shard)
    shown = Progress(len(tasks), silent=progress in (False, "none"), live=None if progress in (True, "auto") else False)
    options = Options(fail_fast, retry, infer_oom, max(1, jobs), cool_down_s, cache)
    run = Run(tasks, Store(out), env, options, shown, engine or LocalEngine())
    if dry_run:
        return run.dry_run()
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
        changed = run.manifest(spec, plan, only, shard, started, code)
        if report and code != EXIT_INTERRUPTED and (changed or not (run.store.root / "report").is_dir()):
            _report(run.store.root, shown)
    return code


@dataclass
class Run:
    """One invocation of `hibench run`: its tasks, and what has become of them."""

    tasks: list[Task]
    store: Store
    env: dict[str, Any]
    options: Options
    progress: Progress
    engine: Engine
    records: dict[str, dict[str, Any]] = field(default_factory=dict)           # by id: finished, now or before
    fresh: set[str] = field(default_factory=set)                               # ids that this run has finished
    shares: dict[str, float] = field(default_factory=dict)                     # by id: how much of a speed cell is left
    estimate: Estimate = field(default_factory=Estimate)
    left_s: float | None = None                                                # as of the last process that ended

    def __post_init__(self) -> None:
        self.tasks = list({task.id: task for task in self.tasks}.values())

    # -- the whole run -------------------------------------------------------------------------------------------------

    def everything(self) -> int:
        """Run what is to be run; returns the exit code."""
        for pid in kill_orphans(self.store.work):
            self.progress.say(f"ended a worker (pid {pid}) that an earlier, killed run has left behind")
        for repair in self.store.recover():
            self.progress.say(repair)
        todo = self.triage()
        if not todo:
            return self._nothing_to_do()
        self._check_machine(todo)
        self._announce(todo)
        try:
            for task in todo:
                if task.verdict is not None:
                    self.finish(task, make_record(task, self.env, verdict=task.verdict))
            for task in self.tasks:
                if self._ran_out_here(self.records.get(task.id)):
                    self._infer(task)
            self.speed([t for t in todo if t.cell.kind == "speed" and t.id not in self.records])
            self.drift([t for t in todo if t.cell.kind == "drift" and t.id not in self.records])
            self.quality([t for t in todo if t.cell.kind == "quality" and t.id not in self.records])
        except _Stop:
            self.progress.say("stopped at the first failure (--fail-fast); run again without it for the other cells")
        return self._summary()

    def triage(self) -> list[Task]:
        """Read the records that are there; returns the tasks that have to run."""
        found, problems = self.store.records()
        for problem in problems:
            self.progress.say(f"{problem}; if it is asked for, the cell is measured again")
        self.estimate = Estimate(sorted(found, key=lambda record: str(record.get("started_at"))))
        by_id = {record["id"]: record for record in found}
        for task in self.tasks:
            if task.id in by_id and not self._again(task, by_id[task.id]):
                self.records[task.id] = by_id[task.id]
        self.progress.total, self.progress.done = len(self.tasks), len(self.records)
        return [task for task in self.tasks if task.id not in self.records]

    def _again(self, task: Task, record: dict[str, Any]) -> bool:
        """Whether a cell that has a record is run again."""
        status, verdict, failure = record["status"], task.verdict, record.get("failure") or {}
        if verdict is not None:                                # known without running: told anew only if it has changed
            return status != "ok" and (status, record.get("reason")) != (verdict.status, verdict.reason)
        if status == "missing" or (status == "skip" and record.get("wall_s") is None):
            return True                                        # what it lacked may be there now; a worker's own skip stays
        if status == "died" and failure.get("signal") in OUTSIDE and failure.get("attempts", 1) < OUTSIDE_ATTEMPTS:
            return True
        if record.get("inferred_from") and not self.options.infer_oom:
            return True
        return self.options.retry and not is_good(record)

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
        up_to = "up to " if any(most_processes(task) > processes_of(task) for task in tasks) else ""
        for replicate in range(rounds):
            order = [t for t in tasks if t.id not in self.records]
            if not order:
                break
            random.Random(replicate).shuffle(order)
            if rounds > 1 and not self.progress.live:
                self.progress.say(f"speed: replicate {replicate + 1} of {up_to}{rounds}, {len(order)} cells")
            for task in order:
                if task.id not in self.records:                # it may have been inferred meanwhile
                    self._replicate(task, replicate)

    def _replicate(self, task: Task, replicate: int) -> None:
        """One process of a speed cell; after the last one the cell is finished."""
        attempt, count = self.attempt(task), processes_of(task)
        outcome = attempt.replicate(replicate)
        if isinstance(outcome, Verdict):
            self.fail(task, outcome)
            return
        self.shares[task.id] = max(0.0, 1 - (replicate + 1) / count)
        self.estimate.learn(task.cell, outcome * count)
        self.left_s = self._left()
        if attempt.enough(replicate + 1):
            self.finish(task, attempt.speed_record(replicate + 1))

    def drift(self, tasks: list[Task]) -> None:
        """Images of the fixed seeds, cell by cell."""
        for task in tasks:
            self._close(task, self.attempt(task).drift())

    def quality(self, tasks: list[Task]) -> None:
        """Quality cells in order, `jobs` of them side by side; what one shows may spare later ones."""
        jobs = self.options.jobs
        if jobs == 1:
            for task in tasks:
                if task.id not in self.records:
                    self._close(task, self.attempt(task).quality())
            return
        with ThreadPoolExecutor(jobs) as pool:
            try:
                for start in range(0, len(tasks), jobs):
                    wave = [task for task in tasks[start:start + jobs] if task.id not in self.records]
                    futures = {pool.submit(self.attempt(task).quality): task for task in wave}
                    for future in as_completed(futures):
                        self._close(futures[future], future.result())
            except BaseException:
                self.engine.kill_all()
                raise

    def _close(self, task: Task, outcome: Verdict | dict[str, Any]) -> None:
        if isinstance(outcome, Verdict):
            self.fail(task, outcome)
        else:
            self.finish(task, outcome)

    def attempt(self, task: Task) -> Attempt:
        """A task with the folder, engine and messages of this run."""
        return Attempt(task, self.store, self.engine, self.env, self.progress.say, self._show if self.progress.live else None,
                       self.options.cache, self.options.cool_down_s)

    # -- outcomes ------------------------------------------------------------------------------------------------------

    def fail(self, task: Task, verdict: Verdict) -> None:
        """Publish a failure, and what follows from it for other cells."""
        folder = self.attempt(task).open()
        if verdict.status == "died" and verdict.failure is not None:
            before = read_json(folder / "previous.json")
            verdict.failure["attempts"] = 1 + ((before.get("failure") or {}).get("attempts") or 0)
        self.finish(task, make_record(task, self.env, verdict=verdict, **times(folder)))
        if verdict.status == "oom":
            self._infer(task)
        if verdict.status == "missing" and (verdict.failure or {}).get("type") == "MissingWeights":
            for other in self._unfinished():
                if other.method_key == task.method_key:
                    self.finish(other, make_record(other, self.env, verdict=verdict))

    def finish(self, task: Task, record: dict[str, Any]) -> None:
        """Publish a record, show it, and stop at a failure under --fail-fast."""
        folder = self.attempt(task).open()
        patterns = [".*.tmp", "job-*.json", "session.json", "status.json", "previous.json"]
        patterns += ["speed-*.json", "quality.json"] if record["status"] == "ok" else []       # they are in the record
        for leftover in [path for pattern in patterns for path in folder.glob(pattern)]:
            leftover.unlink(missing_ok=True)
        log = self.store.publish(task.id, record) / "log.txt"
        self.records[task.id] = record
        self.fresh.add(task.id)
        self.estimate.add(record)
        self.left_s = self._left()
        self.progress.finished(record, self.left_s, None if record["status"] in GOOD or not log.exists() else log)
        if self.options.fail_fast and record["status"] not in GOOD:
            raise _Stop

    def _infer(self, task: Task) -> None:
        """Cells that need at least as much memory as one that ran out of it are not run: they get its status."""
        for other in self._unfinished() if self.options.infer_oom else ():
            if needs_as_much(other, task):
                reason = f"not run: {task.cell.key} has already run out of memory"
                failure = {"stage": None, "type": "OutOfMemory", "message": reason, "requested_bytes": None,
                           "allocated_bytes": None, "reserved_bytes": None, "free_bytes": None}
                self.finish(other, make_record(other, self.env, verdict=Verdict("oom", reason, failure, task.cell.key)))

    def _ran_out_here(self, record: dict[str, Any] | None) -> bool:
        """Whether an earlier run has seen this cell run out of memory on this hardware."""
        return (record is not None and record["status"] == "oom" and not record.get("inferred_from")
                and (record.get("env") or {}).get("hardware_digest") == self.env["hardware_digest"])

    def _unfinished(self) -> list[Task]:
        return [task for task in self.tasks if task.id not in self.records and task.verdict is None]

    # -- what is said --------------------------------------------------------------------------------------------------

    def _announce(self, todo: list[Task]) -> None:
        before = f", {len(self.records)} are measured already" if self.records else ""
        seconds = self.estimate.total([(t.cell, 1.0) for t in todo if t.verdict is None])
        about = f", about {duration(seconds)} by earlier records" if seconds else ""
        self.progress.say(f"{len(todo)} cells to run{before}{about}; results in {self.progress.path(self.store.root)}")

    def _show(self, text: str) -> None:
        left = f", ~{duration(self.left_s)} left" if self.left_s else ""
        self.progress.doing(f"[{self.progress.done}/{self.progress.total}{left}] {text}")

    def _left(self) -> float | None:
        """Seconds that the unfinished cells will take."""
        return self.estimate.total([(task.cell, self.shares.get(task.id, 1.0)) for task in self._unfinished()])

    def _nothing_to_do(self) -> int:
        bad = self._bad()
        kept = f" ({len(bad)} of them failed or are incomplete; `--retry` runs them again)" if bad else ""
        where = self.progress.path(self.store.root)
        self.progress.say(f"nothing to do: {len(self.tasks)} cells already measured in {where}{kept}")
        self._list(bad)
        return self._code()

    def _summary(self) -> int:
        self.progress.close()
        self.progress.say(status_table(self.records[task.id] for task in self.tasks if task.id in self.records))
        bad = self._bad()
        self._list([task for task in bad if task.id not in self.fresh])
        if bad:
            self.progress.say(f"{len(bad)} of {len(self.tasks)} cells failed or are incomplete; `--retry` runs them again")
        return self._code()

    def _bad(self) -> list[Task]:
        return [task for task in self.tasks if task.id in self.records and not is_good(self.records[task.id])]

    def _list(self, tasks: list[Task]) -> None:
        for task in tasks:
            log = self.store.cell(task.id) / "log.txt"
            self.progress.failure(self.records[task.id], log if log.exists() else None)

    def _code(self) -> int:
        records = [self.records[task.id] for task in self.tasks if task.id in self.records]
        measured = any(record["status"] == "ok" for record in records)
        if not measured:
            self.progress.say("nothing was measured: no cell is ok")
        return EXIT_OK if len(records) == len(self.tasks) and measured and all(map(is_good, records)) else EXIT_FAILED

    def dry_run(self) -> int:
        """Print what would happen to every cell, and how long it would take; nothing is written."""
        todo = self.triage()
        rows = []
        for task in self.tasks:
            seconds = self.estimate.cell(task.cell)
            if task.id in self.records:
                rows.append(("keep", task.cell.key, self.records[task.id]["status"]))
            elif task.verdict is not None:
                rows.append((task.verdict.status, task.cell.key, task.verdict.reason))
            else:
                rows.append(("run", task.cell.key, "time unknown" if seconds is None else f"~{duration(seconds)}"))
        width = max(len(key) for _, key, _ in rows) if rows else 0
        for what, key, why in rows:
            self.progress.say(f"{what:<8}{key:<{width}}  {why}")
        running = [task.cell for task in todo if task.verdict is None]
        total = self.estimate.total([(cell, 1.0) for cell in running])
        about = f" (about {duration(total)} by earlier records)" if total else ""
        self.progress.say(f"{len(rows)} cells: {len(running)} to run{about}, {len(self.records)} to keep, "
                          f"{len(todo) - len(running)} decided without running; nothing was run (--dry-run)")
        return EXIT_OK

    def manifest(self, spec: Spec, plan: Plan, only: Sequence[str] | None, shard: tuple[int, int] | None, started: str,
                 code: int) -> bool:
        """Store what was asked for, unless the newest manifest says the same and nothing is new; True if it was stored."""
        sweeps = plan.sweeps
        if only and sweeps:                                    # whole sweeps, so that the report shows what was not run, too
            sweeps = expand(spec, list(sweeps)).sweeps
        cells = {task.cell.key: task.id for task in self.tasks}
        newest = self.store.newest_manifest() or {}
        if not self.fresh and newest.get("sweeps") == sweeps and cells.items() <= (newest.get("cells") or {}).items():
            return False
        self.store.write_manifest({
            "schema": 1, "spec": str(spec.path), "spec_digest": spec.digest, "sweeps": sweeps, "cells": cells,
            "new": sorted(self.fresh), "started_at": started, "ended_at": utc_now(), "exit_code": code, "argv": sys.argv,
            "only": list(only or ()), "shard": list(shard) if shard else None, "protocol": PROTOCOL,
            "versions": {"hibench": hibench.__version__, "python": platform.python_version(),
                         "torch": self.env["software"].get("torch")},
            "hardware_digest": self.env["hardware_digest"], "software_digest": self.env["software_digest"],
        })
        return True


def needs_as_much(other: Task, task: Task) -> bool:
    """Whether `other` needs at least the memory of `task`: the same method and other axes, and no smaller canvas or batch."""
    a, b = task.cell, other.cell
    if (task.method_key, a.steps, a.sparsity) != (other.method_key, b.steps, b.sparsity):
        return False
    if b.height < a.height or b.width < a.width:
        return False
    if canonical(a.settings.get("vram_limit_bytes")) != canonical(b.settings.get("vram_limit_bytes")):
        return False
    larger = (b.height, b.width) != (a.height, a.width)
    if a.kind == "speed":                                      # one image at a time: no batch needs less
        return larger or b.kind == "quality"
    return larger and b.kind == "quality" and int(b.settings.get("batch", 16)) >= int(a.settings.get("batch", 16))


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
