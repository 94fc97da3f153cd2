"""`hibench compare`: two sides measured in one job, replicate by replicate next to each other, until each cell is decided."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import hibench
from hibench.check import COMPARE_FILE, COMPARE_SCHEMA
from hibench.engines import LocalEngine
from hibench.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, SpecError
from hibench.gate import PairRule
from hibench.judge import DEFAULTS, open_numbers
from hibench.limits import Limits, to_json
from hibench.prepare import Task, Verdict
from hibench.progress import Progress
from hibench.recording import make_record
from hibench.revisions import Planned, Revision, here, open_revision, plan
from hibench.runner import Options, Run
from hibench.store import Store, utc_now, write_json

__all__ = ["Pair", "measure", "run_compare"]

Say = Callable[[str], None]
SIDES = ("base", "head")


@dataclass
class Pair:
    """A cell on both sides; a task is None where the side does not have the cell."""

    key: str
    tasks: dict[str, Task]                                       # by side
    counts: dict[str, int] = field(default_factory=dict)         # replicates that are done, by side
    closed: bool = False


def run_compare(spec: Path, *, base: str | None = None, head: str | None = None, base_spec: Path | None = None, out: Path,
                only: Sequence[str] = (), overrides: Sequence[str] = (), pairs: int = PairRule.cap, device: str | None = None,
                progress: str = "auto") -> int:
    """Measure two sides into out/base and out/head; `hibench check out` gives the verdict.

    `base`, `head`: git revisions, folders, or interpreters (head None: the code that is running). `base_spec`: another
    benchmark file for base, on the same code unless `base` is given. Returns 0, 3 when nothing was measured on both sides, 130
    when interrupted: the same command goes on from there.
    """
    if base is None and base_spec is None:
        raise SpecError("hibench compare needs --base REVISION, or --base-spec FILE")
    if pairs < PairRule.confirm:
        raise SpecError(f"--pairs {pairs}: at least {PairRule.confirm}, or no regression could be told from chance")
    shown = Progress(0, silent=progress == "none", live=False)
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        names = {"base": base, "head": head}
        sides = {side: here() if names[side] is None else stack.enter_context(
            open_revision(str(names[side]), out.absolute() / "revisions" / side, shown.say)) for side in SIDES}
        specs = {"base": base_spec or spec, "head": spec}
        plans = {side: plan(sides[side], specs[side], out / "revisions", only=only, overrides=overrides, device=device)
                 for side in SIDES}
        if base_spec is not None:
            sides["base"] = replace(sides["base"], label=f"{base_spec} on {sides['base'].label}")
        runs = {side: Run(plans[side].tasks, Store(out / side), plans[side].env, Options(), Progress(0, silent=True),
                          LocalEngine(sides[side].worker)) for side in SIDES}
        _note(out, sides, plans, pairs)
        for side in SIDES:
            runs[side].store.create()
            stack.enter_context(runs[side].store.lock())
        try:
            code = measure(runs, Limits(DEFAULTS, plans["head"].limits), PairRule(cap=pairs), shown.say)
        except KeyboardInterrupt:
            for run in runs.values():
                run.engine.kill_all()
            shown.say("interrupted: what is finished is kept; the same command goes on from there")
            return EXIT_INTERRUPTED
        finally:
            for side in SIDES:
                _manifest(runs[side], plans[side], specs[side])
    shown.say(f"measured; the verdict: hibench check {out}")
    return code


def _note(out: Path, sides: dict[str, Revision], plans: dict[str, Planned], pairs: int) -> None:
    """compare.json: what the two sides are, whether they are the same code, and the limits of the head's benchmark file."""
    said = {side: {"label": sides[side].label, "commit": sides[side].commit} for side in SIDES}
    base, head = ((sides[side].commit, sides[side].dirty, [task.id for task in plans[side].tasks]) for side in SIDES)
    itself = base == head and base[1] is False
    write_json(out / COMPARE_FILE, {"schema": COMPARE_SCHEMA, **said, "itself": itself, "pairs": pairs, "at": utc_now(),
                                    "tolerance": to_json(plans["head"].limits), "hibench": hibench.__version__})


def _manifest(run: Run, planned: Planned, spec: Path) -> None:
    run.store.write_manifest({"schema": 1, "spec": None, "compared_spec": str(spec), "sweeps": planned.sweeps,
                              "cells": {task.cell.key: task.id for task in planned.tasks}, "ended_at": utc_now()})


# -- measuring -----------------------------------------------------------------------------------------------------------------


def measure(runs: dict[str, Run], limits: Limits, rule: PairRule, say: Say) -> int:
    """Everything that both sides have to measure; returns the exit code."""
    for run in runs.values():
        run.store.recover()
        for task in run.triage():
            if task.verdict is not None:
                run.finish(task, make_record(task, run.env, verdict=task.verdict))
    pairs = _pairs(runs)
    speed(pairs, runs, limits, replace(rule, tests=max(1, _tests(pairs))), say)
    for run in runs.values():
        todo = [task for task in run.tasks if task.id not in run.records]
        run.drift([task for task in todo if task.cell.kind == "drift"])
        run.quality([task for task in todo if task.cell.kind == "quality" and task.id not in run.records])
    both = [key for key in _ok_keys(runs["base"]) if key in _ok_keys(runs["head"])]
    failed = [f"{side} {record['key']}: {record['status']}, {record.get('reason')}" for side, run in runs.items()
              for record in run.records.values() if record["status"] not in ("ok", "skip")]
    for text in failed:
        say(f"  {text}")
    if not both:
        say("nothing was measured: no cell is ok on both sides")
    return EXIT_OK if both else EXIT_FAILED


def _ok_keys(run: Run) -> list[str]:
    return [record["key"] for record in run.records.values() if record["status"] == "ok"]


def _pairs(runs: dict[str, Run]) -> list[Pair]:
    """The speed cells of both sides by key, with those that a side has still to measure."""
    found: dict[str, Pair] = {}
    for side, run in runs.items():
        for task in run.tasks:
            if task.cell.kind == "speed":
                found.setdefault(task.cell.key, Pair(task.cell.key, {})).tasks[side] = task
    return list(found.values())


def _tests(pairs: list[Pair]) -> int:
    """How many noisy numbers the night will judge: time and, on a CPU, memory of every cell that both sides have."""
    both = [pair for pair in pairs if len(pair.tasks) == 2]
    return sum(1 if pair.tasks["head"].cell.device.startswith("cuda") else 2 for pair in both)


def speed(pairs: list[Pair], runs: dict[str, Run], limits: Limits, rule: PairRule, say: Say) -> None:
    """Rounds over all cells that are not decided: one process of base and one of head back to back, whose turn it is first."""
    for replicate in range(rule.cap):
        todo = [pair for pair in pairs if _open_sides(pair, runs)]
        if not todo:
            return
        say(f"pair {replicate + 1} of up to {rule.cap}: {len(todo)} cells")
        random.Random(replicate).shuffle(todo)
        for position, pair in enumerate(todo):
            order = SIDES if (replicate + position) % 2 == 0 else SIDES[::-1]
            for side in [side for side in order if side in _open_sides(pair, runs)]:
                _one(pair, side, runs[side], replicate)
            _close(pair, runs, limits, rule, say)


def _open_sides(pair: Pair, runs: dict[str, Run]) -> list[str]:
    """The sides that have no record of this cell yet (one may have been inferred meanwhile)."""
    return [side for side, task in pair.tasks.items() if task.id not in runs[side].records]


def _one(pair: Pair, side: str, run: Run, replicate: int) -> None:
    outcome = run.attempt(pair.tasks[side]).replicate(replicate)
    if isinstance(outcome, Verdict):
        run.fail(pair.tasks[side], outcome)
    else:
        pair.counts[side] = replicate + 1


def _close(pair: Pair, runs: dict[str, Run], limits: Limits, rule: PairRule, say: Say) -> None:
    """Write the records of a cell when it is decided; a side that is alone needs no more than the first look."""
    still = _open_sides(pair, runs)
    if not still:
        return
    records = {side: runs[side].attempt(pair.tasks[side]).speed_record(pair.counts[side]) for side in still}
    done = min(pair.counts[side] for side in still)
    if len(still) == 2:
        undecided = open_numbers(records["base"], records["head"], limits, rule)
    else:
        (alone,) = still
        other = next((run.records[task.id] for name, run in runs.items() if name != alone
                      and (task := pair.tasks.get(name)) is not None and task.id in run.records), None)
        wanted = len(((other or {}).get("speed") or {}).get("processes") or ()) or rule.first
        undecided = ["more replicates"] if done < wanted else []
    if undecided and done < rule.cap:
        return
    for side, record in records.items():
        runs[side].finish(pair.tasks[side], record)
    say(_told(pair.key, {side: run.records.get(pair.tasks[side].id) for side, run in runs.items() if side in pair.tasks}, done))


def _told(key: str, records: dict[str, Any], pairs: int) -> str:
    """One line per finished cell."""
    from hibench.verdicts import shown

    parts = [f"{side} {shown(record['speed']['latency_p50_s'], 's') if record.get('speed') else record['status']}"
             for side, record in records.items() if record]
    return f"done    {key}   {'   '.join(parts)}   {pairs} pairs"
