"""The cells of a run and what has become of them: what is there already, what is published, and what follows from failures."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hibench.attempt import COOL_DOWN_S, Attempt, times
from hibench.cells import canonical
from hibench.engines import Engine
from hibench.prepare import Task, Verdict
from hibench.progress import Estimate, Progress, duration
from hibench.recording import GOOD, is_good, make_record
from hibench.store import Store, read_json

__all__ = ["Board", "Options", "Stop", "needs_as_much"]

OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)       # sent by somebody else, no fault of the method
OUTSIDE_ATTEMPTS = 3                                           # after so many deaths by such a signal it is the method's fault


@dataclass(frozen=True)
class Options:
    """How to run, whatever the spec."""

    fail_fast: bool = False                                    # stop at the first cell that fails
    retry: bool = False                                        # run failed cells again
    infer_oom: bool = True                                     # larger resolutions than one that ran out of memory do not run
    jobs: int = 1                                              # quality cells side by side; speed cells always run alone
    cool_down_s: float = COOL_DOWN_S                           # before a throttled replicate is repeated
    cache: Path | None = None                                  # features of references; None = hibench's own place


class Stop(Exception):
    """`--fail-fast`: a cell has failed."""


@dataclass
class Board:
    """The tasks of one run, and what has become of them."""

    tasks: list[Task]
    store: Store
    env: dict[str, Any]
    options: Options
    progress: Progress
    engine: Engine
    records: dict[str, dict[str, Any]] = field(default_factory=dict)           # by id: finished, now or before
    busy: set[str] = field(default_factory=set)                                # ids that are being measured now
    fresh: set[str] = field(default_factory=set)                               # ids that this run has finished
    shares: dict[str, float] = field(default_factory=dict)                     # by id: how much of a speed cell is left
    estimate: Estimate = field(default_factory=Estimate)
    left_s: float | None = None                                                # as of the last process that ended

    def __post_init__(self) -> None:
        self.tasks = list({task.id: task for task in self.tasks}.values())

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
            self.infer(task)
        if verdict.status == "missing" and (verdict.failure or {}).get("type") == "MissingWeights":
            for other in self._idle():
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
        self.left_s = self.left()
        self.progress.finished(record, self.left_s, None if record["status"] in GOOD or not log.exists() else log)
        if self.options.fail_fast and record["status"] not in GOOD:
            raise Stop

    def infer(self, task: Task) -> None:
        """Cells that need at least as much memory as one that ran out of it are not run: they get its status."""
        for other in self._idle() if self.options.infer_oom else ():
            if needs_as_much(other, task):
                reason = f"not run: {task.cell.key} has already run out of memory"
                failure = {"stage": None, "type": "OutOfMemory", "message": reason, "requested_bytes": None,
                           "allocated_bytes": None, "reserved_bytes": None, "free_bytes": None}
                self.finish(other, make_record(other, self.env, verdict=Verdict("oom", reason, failure, task.cell.key)))

    def ran_out_here(self, record: dict[str, Any] | None) -> bool:
        """Whether an earlier run has seen this cell run out of memory on this hardware."""
        return (record is not None and record["status"] == "oom" and not record.get("inferred_from")
                and (record.get("env") or {}).get("hardware_digest") == self.env["hardware_digest"])

    def _idle(self) -> list[Task]:
        """Unfinished tasks that nobody works on: the others come to an end of their own."""
        return [task for task in self.unfinished() if task.id not in self.busy]

    def unfinished(self) -> list[Task]:
        return [task for task in self.tasks if task.id not in self.records and task.verdict is None]

    def _show(self, text: str) -> None:
        left = f", ~{duration(self.left_s)} left" if self.left_s else ""
        self.progress.doing(f"[{self.progress.done}/{self.progress.total}{left}] {text}")

    def left(self) -> float | None:
        """Seconds that the unfinished cells will take."""
        return self.estimate.total([(task.cell, self.shares.get(task.id, 1.0)) for task in self.unfinished()])


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
