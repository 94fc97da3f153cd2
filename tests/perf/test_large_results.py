"""How long the commands take on a results directory of 100 000 records: `pytest tests/perf/test_large_results.py -m perf -s`.

`HIBENCH_PERF_RECORDS` (100000) and `HIBENCH_PERF_SWEEPS` (20) make it smaller. Each command runs twice in a process of its own:
without an index (every file is read), and with the one that the first run left. Printed are seconds on the clock and of CPU
and the most memory; README.md beside this file holds what was measured. No time is asserted, only that no record is lost.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import records

pytestmark = pytest.mark.perf
RECORDS = int(os.environ.get("HIBENCH_PERF_RECORDS", "100000"))
SWEEPS = int(os.environ.get("HIBENCH_PERF_SWEEPS", "20"))
METHODS = ("ldm", "infd", "infty-diff", "patch-dm", "upsample", "real", "gaussian", "demofusion", "direct", "multidiffusion")
SIZES = (64, 96, 128, 192, 256, 384, 512, (64, 128), (128, 256), 768)
STEPS, SPARSITY = (5, 10, 20, 25, 40, 50, 75, 100, 150, 200), (0, 0.5, 0.75, 0.875, 0.9375)
STATUSES = (*["ok"] * 17, "skip", "oom", "error")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory: speed and quality records of ten methods, 15 % of them failed."""
    root = tmp_path_factory.mktemp("large") / "results"
    sweeps: dict[str, list[str]] = {}
    ids: dict[str, str] = {}
    for sweep in range(SWEEPS):
        variants = ({"variant": f"{sweep}-{number}"} for number in itertools.count())
        cells = ((options, *rest) for options in variants
                 for rest in itertools.product(STEPS, SIZES, METHODS, ("speed", "quality"), SPARSITY))
        made = [records.record(method, kind, size, steps, sparsity, options=options, status=STATUSES[at * 7 % len(STATUSES)])
                for at, (options, steps, size, method, kind, sparsity) in enumerate(itertools.islice(cells, RECORDS // SWEEPS))]
        records.write(root, made)
        sweeps[f"s{sweep}"] = [one["key"] for one in made]
        ids |= {one["key"]: one["id"] for one in made}
    (root / "runs").mkdir()
    (root / "runs" / "20261121T100000Z.json").write_text(json.dumps({"sweeps": sweeps, "cells": ids}))
    return root


def timed(name: str, cache: Path, *words: str, out: Path) -> str:
    """Run `hibench` in a process of its own and print what it took; its stdout."""
    code = ("import resource, sys; from hibench.cli import main; code = main(sys.argv[1:]); sys.stdout.flush()\n"
            "used = resource.getrusage(resource.RUSAGE_SELF)\n"
            "print(used.ru_utime + used.ru_stime, used.ru_maxrss // 1024, file=sys.stderr); sys.exit(code)")
    started = time.perf_counter()
    with out.open("w") as stdout:
        done = subprocess.run([sys.executable, "-c", code, *words], env={**os.environ, "HIBENCH_CACHE": str(cache)},
                              stdout=stdout, stderr=subprocess.PIPE, text=True)
    cpu_s, mib = done.stderr.split()[-2:]
    print(f"{name}: {time.perf_counter() - started:.1f} s, CPU {float(cpu_s):.1f} s, {mib} MiB", flush=True)
    assert done.returncode in (0, 3), done.stderr
    return out.read_text()


def test_commands_on_a_large_results_directory(results: Path, tmp_path: Path) -> None:
    count = RECORDS // SWEEPS * SWEEPS
    print(f"\n{count} records in {SWEEPS} sweeps, load {os.getloadavg()[0]:.1f}")
    for index in ("without an index", "with it"):
        if index == "without an index":
            shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        text = timed(f"report --format csv, {index}", tmp_path / "cache", "report", str(results), "--format", "csv",
                     out=tmp_path / "records.csv")
        assert len(list(csv.reader(text.splitlines()))) == count + 1
    timed("report", tmp_path / "cache", "report", str(results), "--out", str(tmp_path / "report"), out=tmp_path / "out.txt")
    assert f"{count} records" in (tmp_path / "report" / "report.md").read_text()
    timed("check of two directories", tmp_path / "cache", "check", str(results), str(results), out=tmp_path / "out.txt")
