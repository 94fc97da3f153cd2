"""How long list, report and check take on 100 000 records: `pytest tests/perf/test_large_results.py -m perf -s`.

`HIBENCH_PERF_RECORDS` (100000) and `HIBENCH_PERF_SWEEPS` (20) make it smaller. Each command runs twice in a process of its own:
without an index (every file is read), and with the one that the first run left; outputs of both have to be the same. `check`
compares the records with as many others, whose times and values differ. Printed are seconds of CPU and on the clock and the
most memory; README.md beside this file holds what was measured. No time is asserted, only that no record is lost.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import records

pytestmark = pytest.mark.perf
RECORDS = int(os.environ.get("HIBENCH_PERF_RECORDS", "100000"))
SWEEPS = int(os.environ.get("HIBENCH_PERF_SWEEPS", "20"))
METHODS = ("ldm", "infd", "infty-diff", "patch-dm", "upsample", "real", "gaussian", "demofusion", "direct", "multidiffusion")
SIZES = (64, 96, 128, 192, 256, 384, 512, (64, 128), (128, 256), 768)
STEPS, SPARSITY = (5, 10, 20, 25, 40, 50, 75, 100, 150, 200), (0, 0.5, 0.75, 0.875, 0.9375)
STATUSES = (*["ok"] * 17, "skip", "oom", "error")
SPEC = """
version: 1
methods: {{toy: {{adapter: toy}}}}
sweeps:
  all:
    methods: [toy]
    measure: [speed, quality]
    resolution: [64, 96, 128, 192, 256, 384, 512, [64, 128], [128, 256], 768]
    steps: [5, 10, 20, 25, 40, 50, 75, 100, 150, 200]
    sparsity: [0, 0.5, 0.75, 0.875, 0.9375]
    options: {{waves: {waves}}}
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory base: speed and quality records of ten methods, 15 % of them failed; and beside it the directory head.

    In head times and values differ by some per cent, and every hundredth record is not there.
    """
    root, rng = tmp_path_factory.mktemp("large") / "base", random.Random(0)
    sweeps: dict[str, list[str]] = {}
    ids: dict[str, str] = {}
    for sweep in range(SWEEPS):
        variants = ({"variant": f"{sweep}-{number}"} for number in itertools.count())
        cells = ((options, *rest) for options in variants
                 for rest in itertools.product(STEPS, SIZES, METHODS, ("speed", "quality"), SPARSITY))
        made = [records.record(method, kind, size, steps, sparsity, options=options, status=STATUSES[at * 7 % len(STATUSES)])
                for at, (options, steps, size, method, kind, sparsity) in enumerate(itertools.islice(cells, RECORDS // SWEEPS))]
        records.write(root, made)
        records.write(root.with_name("head"), [moved(one, rng) for one in made if rng.random() > 0.01])
        sweeps[f"s{sweep}"] = [one["key"] for one in made]
        ids |= {one["key"]: one["id"] for one in made}
    for side in (root, root.with_name("head")):
        (side / "runs").mkdir()
        (side / "runs" / "20261121T100000Z.json").write_text(json.dumps({"sweeps": sweeps, "cells": ids}))
    return root


def moved(made: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """The record after 3 % of noise; one of 200 is half as slow again."""
    factor = rng.gauss(1, 0.03) + 0.5 * (rng.random() < 0.005)
    for process in (made["speed"] or {}).get("processes", ()):
        process["latency_s"] = [factor * rng.gauss(1, 0.01) * value for value in process["latency_s"]]
    for entry in (made["quality"] or {}).get("values", {}).values():
        entry["value"] *= rng.gauss(1, 0.02)
    return made


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
    print(f"{name}: CPU {float(cpu_s):.1f} s, {time.perf_counter() - started:.1f} s on the clock, {mib} MiB", flush=True)
    assert done.returncode in (0, 1, 3), done.stderr
    return out.read_text()


def test_commands_on_a_large_results_directory(results: Path, tmp_path: Path) -> None:
    count, cache, out = RECORDS // SWEEPS * SWEEPS, tmp_path / "cache", tmp_path / "out"
    print(f"\n{count} records in {SWEEPS} sweeps, load {os.getloadavg()[0]:.1f}")
    said: dict[str, set[str]] = {"list": set(), "report": set(), "check": set()}
    for index in ("without an index", "with it"):
        rows = timed(f"report --format csv, {index}", cache, "report", str(results), "--format", "csv", out=out)
        assert len(list(csv.reader(rows.splitlines()))) == count + 1
        said["list"].add(rows)
    for index in ("without an index", "with it"):
        told = timed(f"check, {index}", cache, "check", str(results), str(results.with_name("head")), out=out)
        assert told.splitlines()[-1].startswith("REGRESSED: ")
        said["check"].add(told)
    for rows_index in cache.glob("records/*-flatten.*"):
        rows_index.unlink()
    for index in ("without an index", "with it"):
        timed(f"report, {index}", cache, "report", str(results), "--out", str(tmp_path / "report"), out=out)
        said["report"].add((tmp_path / "report" / "report.md").read_text())
    assert f"{count} records" in min(said["report"])
    assert (tmp_path / "report" / "records.csv").read_text() == min(said["list"])
    assert {name: len(texts) for name, texts in said.items()} == {"list": 1, "report": 1, "check": 1}


def test_listing_as_many_cells(tmp_path: Path) -> None:
    waves = max(1, RECORDS // 1000)
    spec = tmp_path / "b.yaml"
    spec.write_text(SPEC.format(waves=list(range(1, waves + 1))))
    text = timed(f"list cells, {1000 * waves} of them", tmp_path, "list", "cells", str(spec), out=tmp_path / "out")
    assert len(text.splitlines()) == 1000 * waves + 1
    assert text.count(" will run") == 1000 * waves
