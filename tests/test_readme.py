"""What the README shows is what works: its method passes the conformance suite and runs in a sweep."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(code.strip().splitlines()) < 40
    path = tmp_path_factory.mktemp("readme")
    (path / "waves.py").write_text(code)
    return path


def hibench(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hibench.cli", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


def test_the_shown_method_keeps_the_contract(folder: Path) -> None:
    done = hibench(folder, "test", "./waves.py:Waves")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_shown_method_runs_in_a_sweep(folder: Path) -> None:
    (folder / "b.yaml").write_text(
        "version: 1\nmethods:\n  waves: {adapter: './waves.py:Waves'}\nreferences:\n  scenes: {kind: scenes, seed: 0}\n"
        "timing: {processes: 1, images: 2, warmup: 1}\n"
        "quality: {images: 8, reference: scenes, extractor: scenes-clip, metrics: [fid], shard: 8}\n"
        "sweeps:\n  s: {methods: [waves], measure: [speed, quality], resolution: [32], steps: [3]}\n")
    done = hibench(folder, "run", "b.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    records = [json.loads(p.read_text()) for p in (folder / "results" / "cells").rglob("record.json")]
    assert {r["kind"]: r["status"] for r in records} == {"speed": "ok", "quality": "ok"}
    speed = next(r for r in records if r["kind"] == "speed")
    assert speed["speed"]["nfe"] == 3


def test_the_shown_benchmark_file_is_valid(folder: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    text = text.replace("${PHOTOS}", str(folder)).replace("./my_method.py:MyMethod", "./waves.py:Waves")
    (folder / "shown.yaml").write_text(text)
    done = hibench(folder, "list", "cells", "shown.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mine/quality/96x160/steps=50" in done.stdout
