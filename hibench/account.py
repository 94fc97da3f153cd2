"""What a run says about itself before, after and instead of running, and the manifest that it leaves behind."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence

import hibench
from hibench.board import Board
from hibench.cells import PROTOCOL, Plan, expand
from hibench.errors import EXIT_FAILED, EXIT_OK
from hibench.prepare import Task
from hibench.progress import duration, status_table
from hibench.recording import is_good
from hibench.spec import Spec
from hibench.store import utc_now

__all__ = ["announce", "dry_run", "manifest", "nothing_to_do", "summary"]


def announce(run: Board, todo: list[Task]) -> None:
    before = f", {len(run.records)} are measured already" if run.records else ""
    seconds = run.estimate.total([(t.cell, 1.0) for t in todo if t.verdict is None])
    about = f", about {duration(seconds)} by earlier records" if seconds else ""
    run.progress.say(f"{len(todo)} cells to run{before}{about}; results in {run.progress.path(run.store.root)}")


def nothing_to_do(run: Board) -> int:
    bad = _bad(run)
    kept = f" ({len(bad)} of them failed or are incomplete; `--retry` runs them again)" if bad else ""
    where = run.progress.path(run.store.root)
    run.progress.say(f"nothing to do: {len(run.tasks)} cells already measured in {where}{kept}")
    _list(run, bad)
    return _code(run)


def summary(run: Board) -> int:
    run.progress.close()
    run.progress.say(status_table(run.records[task.id] for task in run.tasks if task.id in run.records))
    bad = _bad(run)
    _list(run, [task for task in bad if task.id not in run.fresh])
    if bad:
        run.progress.say(f"{len(bad)} of {len(run.tasks)} cells failed or are incomplete; `--retry` runs them again")
    return _code(run)


def _bad(run: Board) -> list[Task]:
    return [task for task in run.tasks if task.id in run.records and not is_good(run.records[task.id])]


def _list(run: Board, tasks: list[Task]) -> None:
    for task in tasks:
        log = run.store.cell(task.id) / "log.txt"
        run.progress.failure(run.records[task.id], log if log.exists() else None)


def _code(run: Board) -> int:
    records = [run.records[task.id] for task in run.tasks if task.id in run.records]
    measured = any(record["status"] == "ok" for record in records)
    if not measured:
        run.progress.say("nothing was measured: no cell is ok")
    return EXIT_OK if len(records) == len(run.tasks) and measured and all(map(is_good, records)) else EXIT_FAILED


def dry_run(run: Board) -> int:
    """Print what would happen to every cell, and how long it would take; nothing is written."""
    todo = run.triage()
    rows = []
    for task in run.tasks:
        seconds = run.estimate.cell(task.cell)
        if task.id in run.records:
            rows.append(("keep", task.cell.key, run.records[task.id]["status"]))
        elif task.verdict is not None:
            rows.append((task.verdict.status, task.cell.key, task.verdict.reason))
        else:
            rows.append(("run", task.cell.key, "time unknown" if seconds is None else f"~{duration(seconds)}"))
    width = max(len(key) for _, key, _ in rows) if rows else 0
    for what, key, why in rows:
        run.progress.say(f"{what:<8}{key:<{width}}  {why}")
    running = [task.cell for task in todo if task.verdict is None]
    total = run.estimate.total([(cell, 1.0) for cell in running])
    about = f" (about {duration(total)} by earlier records)" if total else ""
    run.progress.say(f"{len(rows)} cells: {len(running)} to run{about}, {len(run.records)} to keep, "
                      f"{len(todo) - len(running)} decided without running; nothing was run (--dry-run)")
    return EXIT_OK


def manifest(run: Board, spec: Spec, plan: Plan, only: Sequence[str] | None, shard: tuple[int, int] | None, started: str,
             code: int) -> bool:
    """Store what was asked for, unless the newest manifest says the same and nothing is new; True if it was stored."""
    sweeps = plan.sweeps
    if only and sweeps:                                    # whole sweeps, so that the report shows what was not run, too
        sweeps = expand(spec, list(sweeps)).sweeps
    cells = {task.cell.key: task.id for task in run.tasks}
    newest = run.store.newest_manifest() or {}
    if not run.fresh and newest.get("sweeps") == sweeps and cells.items() <= (newest.get("cells") or {}).items():
        return False
    run.store.write_manifest({
        "schema": 1, "spec": str(spec.path), "spec_digest": spec.digest, "sweeps": sweeps, "cells": cells,
        "new": sorted(run.fresh), "started_at": started, "ended_at": utc_now(), "exit_code": code, "argv": sys.argv,
        "only": list(only or ()), "shard": list(shard) if shard else None, "protocol": PROTOCOL,
        "versions": {"hibench": hibench.__version__, "python": platform.python_version(),
                     "torch": run.env["software"].get("torch")},
        "hardware_digest": run.env["hardware_digest"], "software_digest": run.env["software_digest"],
    })
    return True
