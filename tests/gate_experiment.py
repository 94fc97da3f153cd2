"""The gate on real processes that sleep: `python tests/gate_experiment.py OUT.json`, on a machine that does nothing else.

`--minutes 5` begins no new night after so long, `--scale 0.2` asks for a fifth of the nights. Every finished night is a line of
OUT.nights.jsonl, and the same command goes on with those that lack; OUT.json says how many there are of how many.

Every replicate is a process of its own (forked, so that it starts in milliseconds) whose pace is drawn at its start; times are
taken by hibench.timing, pairs are ordered and stopped by hibench.compare, and verdicts are given by hibench.check.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
import traceback
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from pathlib import Path

import sleeper

from hibench import check, compare
from hibench.cells import Cell
from hibench.engines import Exit
from hibench.gate import PairRule
from hibench.judge import DEFAULTS
from hibench.limits import Limits
from hibench.prepare import Task
from hibench.progress import Progress
from hibench.runner import Options, Run
from hibench.store import Store

ENV = {"hardware": {"cpu": "any", "gpus": []}, "software": {}, "hardware_digest": "h", "software_digest": "s",
       "git": {"commit": "0" * 40, "dirty": False}}
SECONDS = 0.1                              # per image
SPREAD = 0.015                             # between processes


class ForkEngine:
    """Runs a job in a forked process."""

    def run(self, job, log, *, timeout_s, gpu=None, tick=None):
        started = time.monotonic()
        pid = os.fork()
        if pid == 0:
            code = 1
            with contextlib.suppress(BaseException):
                try:
                    sleeper.run(json.loads(job.read_text()))
                    code = 0
                except BaseException:
                    log.write_text(traceback.format_exc())
            os._exit(code)
        _, status = os.waitpid(pid, 0)
        return Exit(os.waitstatus_to_exitcode(status), False, time.monotonic() - started)

    def kill_all(self):
        pass


def task(name, adapter="Sleeper", height=8, **options):
    cell = Cell(name, f"sleeper.py:{adapter}", "speed", height, height, device="cpu",
                options={"seconds": SECONDS, "spread": SPREAD, **options}, settings={"processes": 3, "images": 3, "warmup": 1})
    return Task(cell, f"{abs(hash((name, height))):016x}"[:16], adapter, "w")


def night(base, head, root):
    """One comparison; returns the report."""
    runs = {}
    for side, tasks in (("base", base), ("head", head)):
        runs[side] = Run(list(tasks), Store(root / side), ENV, Options(), Progress(0, silent=True), ForkEngine())
        runs[side].store.create()
    (root / check.COMPARE_FILE).write_text(json.dumps(
        {"schema": check.COMPARE_SCHEMA, "base": {"label": "base"}, "head": {"label": "head"}, "itself": False,
         "tolerance": []}))
    compare.measure(runs, Limits(DEFAULTS), PairRule(), lambda text: None)
    return check.check(root)[0]


def scenarios():
    """Base and head tasks of one night, and how many nights, by name."""
    cells = [f"m{i}" for i in range(20)]
    same = [task(name) for name in cells]
    bimodal = [task(name, spread=0.002, modes=0.06) for name in cells]
    block = 100 * 2**20
    return {
        "identical": (same, same, 10),
        "ten_percent_slower": (same, [task(name, "Slower") for name in cells], 5),
        "one_of_20_slower": (same, [task(name, "Slower" if name == "m7" else "Sleeper") for name in cells], 5),
        "two_modes": (bimodal, bimodal, 3),
        "memory_2_percent_more": (
            [task(name, memory_bytes=block * 5) for name in cells[:5]],
            [task(name, memory_bytes=int(block * (5.1 if name == "m3" else 5))) for name in cells[:5]], 2),
        "runs_out_of_memory": ([task("m", height=h) for h in (8, 32, 64)],
                               [task("m", height=h, fails_above=16) for h in (8, 32, 64)], 2),
    }


def one_night(name):
    """Rows of one night of a scenario: (key, metric, verdict, pairs), and the exit code."""
    base, head, _ = scenarios()[name]
    with tempfile.TemporaryDirectory() as folder:
        report = night(base, head, Path(folder))
    return [(row.key, row.metric, row.verdict, row.pairs, row.change) for row in report.rows if row.gated], report.exit_code()


def summary(nights):
    """Verdicts on time, memory and status, exit codes, and what regressed, over the nights of a scenario."""
    counts = {metric: Counter(verdict for rows, _ in nights for _, name, verdict, _, _ in rows if name == metric)
              for metric in ("latency", "memory", "status")}
    timed = [(pairs, change) for rows, _ in nights for _, metric, _, pairs, change in rows if metric == "latency" and pairs]
    return {**{metric: dict(sorted(count.items())) for metric, count in counts.items()}, "nights": len(nights),
            "exit_codes": dict(sorted(Counter(str(code) for _, code in nights).items())),
            "mean_pairs": round(statistics.fmean(pairs for pairs, _ in timed), 2) if timed else None,
            "sd_of_change": round(statistics.stdev(change for _, change in timed), 4) if len(timed) > 1 else None,
            "regressed": [sorted(f"{key} {metric}" for key, metric, verdict, _, _ in rows if verdict == "regressed")
                          for rows, _ in nights]}


def kept_nights(path):
    """Finished nights in a file of lines, by scenario; a line that was cut by an interruption is no night."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path and path.is_file() else ():
        with contextlib.suppress(ValueError):
            night = json.loads(line)
            found.setdefault(night["scenario"], []).append((night["rows"], night["exit_code"]))
    return found


def experiment(scale=1.0, side_by_side=6, kept=None, seconds=None, run=one_night):
    """Every scenario, some nights at the same time (they sleep, and disturb each other little); `scale` < 1: fewer nights.

    `kept`: file of finished nights, which are not repeated (None: nothing is kept); `seconds`: no night begins later."""
    begun, found = time.monotonic(), kept_nights(kept)
    wanted = {name: max(1, round(nights * scale)) for name, (_, _, nights) in scenarios().items()}
    todo = [name for name, count in wanted.items() for _ in range(count - len(found.get(name, ())))]
    running = {}
    if kept and kept.is_file() and not kept.read_bytes().endswith(b"\n"):
        kept.write_bytes(kept.read_bytes() + b"\n")       # after a line that was cut
    with ProcessPoolExecutor(side_by_side, mp_context=multiprocessing.get_context("fork")) as pool:
        while todo or running:
            while todo and len(running) < side_by_side and (seconds is None or time.monotonic() - begun < seconds):
                name = todo.pop(0)
                running[pool.submit(run, name)] = name
            if not running:
                break
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                name, (rows, code) = running.pop(done), done.result()
                found.setdefault(name, []).append((rows, code))
                if kept:
                    with kept.open("a", encoding="utf-8") as file:
                        file.write(json.dumps({"scenario": name, "rows": rows, "exit_code": code}) + "\n")
    return {name: {**summary(found[name][:count]), "nights_wanted": count} for name, count in wanted.items() if name in found}


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--scale", type=float, default=1.0, help="part of the nights")
    parser.add_argument("--minutes", type=float, help="begin no night after so long")
    parser.add_argument("--side-by-side", type=int, default=6, help="nights at the same time")
    asked = parser.parse_args(arguments)
    nights, begun = asked.out.with_suffix(".nights.jsonl"), time.monotonic()
    result = experiment(asked.scale, asked.side_by_side, nights, asked.minutes and asked.minutes * 60)
    earlier = json.loads(asked.out.read_text(encoding="utf-8"))["wall_s"] if asked.out.is_file() else 0
    lacking = [name for name in scenarios() if name not in result or result[name]["nights"] < result[name]["nights_wanted"]]
    made = {"made_by": "python tests/gate_experiment.py", "seconds_per_image": SECONDS, "spread": SPREAD,
            "wall_s": earlier + round(time.monotonic() - begun), "complete": not lacking, **result}
    asked.out.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    print(f"{asked.out}: " + ", ".join(f"{name} {one['nights']}/{one['nights_wanted']}" for name, one in result.items()))


if __name__ == "__main__":
    main(sys.argv[1:])
