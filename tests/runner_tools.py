"""For tests of the runner: a whole benchmark from a string, an adapter that needs no torch, and an engine of forked workers."""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import sys
import time
from multiprocessing import forkserver
from pathlib import Path

from hibench.cells import expand
from hibench.engines import Exit, LocalEngine
from hibench.runner import run_spec
from hibench.spec import load_spec

HERE = Path(__file__).parent
STUB = (sys.executable, str(HERE / "stub_worker.py"))


class Plain:
    """An adapter that can be asked everything, and generates nothing: the stub worker does not call it."""

    name = "plain"
    axes = frozenset({"resolution", "steps"})

    def __init__(self, weights, options, device, dtype):
        self.options = options

    def supports(self, axes):
        return "plain draws no 13 px" if axes["height"] == 13 else None

    def load(self): ...
    def generate(self, resolution, seed, *, steps=None, sparsity=0.0, prompt=None, stage=None): ...
    def close(self): ...


def features(images, seeds):
    """Two small arrays per image in place of feature networks."""
    flat = images.float().flatten(1)
    return {"stub/embed": flat[:, :8].numpy(), "stub/logits": flat.mean(1, keepdim=True).numpy()}


def score(paths, settings, cell, cache):
    import numpy as np

    merged = np.concatenate([np.load(path)["stub/embed"] for path in paths])
    return {"n": len(merged), "values": {"fd@stub": {"value": float(merged.mean()), "pm": 0.1}}, "missing": {},
            "bad": {"nan": 0, "constant": 0}}


def _child(job: str, log: str) -> None:
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    from hibench.worker import run_job

    run_job(json.loads(Path(job).read_text()), extract=features, score=score)


class ForkEngine:
    """Runs the real worker's code in children of a server that has imported torch once: real crashes, without the waiting."""

    def __init__(self) -> None:
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["runner_preload"])
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = str(HERE) if before is None else f"{HERE}{os.pathsep}{before}"
        try:
            forkserver.ensure_running()
        finally:
            del os.environ["PYTHONPATH"]
            if before is not None:
                os.environ["PYTHONPATH"] = before

    def run(self, job, log, *, timeout_s, gpu=None, tick=None):
        started = time.monotonic()
        process = self.context.Process(target=_child, args=(str(job), str(log)))
        process.start()
        process.join(timeout_s)
        timed_out = process.is_alive()
        process.kill()
        process.join()
        return Exit(process.exitcode, timed_out, time.monotonic() - started)

    def kill_all(self) -> None: ...


def bench(folder: Path, text: str, *, engine=None, out="results", overrides=(), only=None, **options):
    """Run a benchmark file given as text; returns the exit code and what was printed."""
    path = folder / "b.yaml"
    path.write_text("version: 1\n" + text)
    spec = load_spec(path, overrides)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = run_spec(spec, expand(spec, only), out=folder / out, only=only, progress="plain", report=False,
                        engine=engine or LocalEngine(STUB), **options)
    return code, printed.getvalue()


def records(folder: Path, out="results") -> dict[str, dict]:
    """Records by key."""
    found = [json.loads(path.read_text()) for path in sorted((folder / out).glob("cells/*/*/record.json"))]
    return {record["key"]: record for record in found}


def folder_of(folder: Path, record: dict, out="results") -> Path:
    return folder / out / "cells" / record["id"][:2] / record["id"]
