"""The description of machine and software, and its digests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hibench.env import affinity_cores, cpu_model, describe, digest, git_state, gpus, thread_settings, torch_build
from hibench.fakes import FakeGpu, FakeNvml


def test_the_description_is_json_and_complete():
    env = describe(FakeNvml(FakeGpu("H200", total_bytes=141 << 30), driver="580.1"))
    assert json.loads(json.dumps(env)) == env
    assert env["hardware"]["gpus"] == [{"name": "H200", "memory_gib": 141}]
    assert env["hardware"]["ram_gib"] >= 1
    assert env["hardware"]["cpu"]
    assert env["software"]["driver"] == "580.1"
    assert {"torch", "numpy"} <= set(env["software"]["packages"])
    assert env["software"]["threads"]["usable_cores"] == affinity_cores() >= 1
    assert len(env["hardware_digest"]) == len(env["software_digest"]) == 16


def test_digests_change_with_what_changes_numbers_and_with_nothing_else():
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    none, one = describe(FakeNvml(broken=True)), describe(FakeNvml(FakeGpu()))
    assert none["hardware"]["gpus"] == []
    assert none["software"]["driver"] is None
    assert none["hardware_digest"] != one["hardware_digest"]
    assert describe(FakeNvml(FakeGpu()))["hardware_digest"] == one["hardware_digest"]
    busy = FakeGpu(temperature_c=90, sm_mhz=900, used_bytes=20 << 30, processes={5: 1})
    assert describe(FakeNvml(busy))["hardware_digest"] == one["hardware_digest"]


def test_threads_are_part_of_the_software(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    one = describe(FakeNvml(broken=True))["software_digest"]
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert describe(FakeNvml(broken=True))["software_digest"] != one
    assert thread_settings({"OMP_NUM_THREADS": "3", "HOME": "/"}) == {"OMP_NUM_THREADS": "3", "usable_cores": affinity_cores()}


def test_the_versions_of_torch_are_right_without_importing_it():
    code = ("import sys, json; from hibench.env import describe; e = describe(); "
            "assert 'torch' not in sys.modules; print(json.dumps(e['software']))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    import torch

    software = json.loads(done.stdout)
    assert software["torch"] == torch.__version__ == torch_build()["torch"]
    assert software["torch_cuda"] == torch.version.cuda


def test_the_cpu_s_name(tmp_path):
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel name\t: Fast CPU 3000\n")
    assert cpu_model(info) == "Fast CPU 3000"
    assert isinstance(cpu_model(tmp_path / "absent"), str)


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *arguments], check=True,
                          capture_output=True, text=True).stdout.strip()


def test_the_commit_of_a_checkout(tmp_path):
    assert git_state(tmp_path) == {"commit": None, "dirty": None}
    git(tmp_path, "init", "-q")
    assert git_state(tmp_path) == {"commit": None, "dirty": False}         # nothing committed yet
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-q", "-m", "x")
    clean = git_state(tmp_path)
    assert clean == {"commit": git(tmp_path, "rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "a").write_text("2")
    assert git_state(tmp_path) == {**clean, "dirty": True}
    inner = tmp_path / "site-packages"
    inner.mkdir()
    assert git_state(inner) == {"commit": None, "dirty": None}             # somebody else's checkout


@pytest.mark.gpu
def test_real_gpus_have_a_name():
    found = gpus()
    if not found:
        pytest.skip("no NVIDIA driver")
    assert all(gpu["name"] for gpu in found)
