"""The doctor, on pretended machines."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hibench.doctor import Machine, available_memory, busy_processes, cpu_quota, diagnose, run_doctor
from hibench.fakes import FakeGpu, FakeNvml

GIB = 2**30


def machine(**changes) -> Machine:
    """A machine with nothing wrong."""
    return Machine(**{"sys": Path("/nowhere"), "nvml": FakeNvml(broken=True), "environ": {}, "look_s": 0.0,
                      "load_average": lambda: 0.1, "busy": lambda seconds: [], "available_bytes": lambda: 32 * GIB,
                      "free_bytes": lambda folder: 100 * GIB, "cores": lambda: 8, "quota": lambda: None,
                      "torch_build": lambda: {"torch": "2.9.0+cu130", "torch_cuda": "13.0"}, **changes})


def point(name: str, **changes):
    (check,) = [check for check in diagnose(machine(**changes)) if check.name == name]
    return check


def test_a_good_machine_is_fit():
    lines: list[str] = []
    assert run_doctor(True, machine(), lines.append) == 0
    assert len(lines) == 8
    assert all(line.startswith("ok") for line in lines[:-1])
    assert lines[-1] == "fit to measure"


@pytest.mark.parametrize(("name", "changes", "level", "words"), [
    ("load", {"load_average": lambda: 5.0}, "warn", "load average 5.0 on 8"),
    ("load", {"load_average": lambda: 9.0}, "fail", "more work than cores"),
    ("processes", {"busy": lambda s: [(7, "ffmpeg", 0.97), (8, "a", 0.5), (9, "b", 0.4), (10, "c", 0.3)]}, "warn",
     "ffmpeg (pid 7, 97%), a (pid 8, 50%), b (pid 9, 40%) and 1 more"),
    ("threads", {"quota": lambda: 2.0}, "warn", "set OMP_NUM_THREADS=2"),
    ("threads", {"quota": lambda: 0.5}, "warn", "set OMP_NUM_THREADS=1"),
    ("threads", {"environ": {"OMP_NUM_THREADS": "16"}}, "warn", "there are 8 usable cores"),
    ("threads", {"environ": {"OMP_NUM_THREADS": "many"}}, "fail", "not a number of threads"),
    ("threads", {"environ": {"OMP_NUM_THREADS": "4"}}, "ok", "OMP_NUM_THREADS=4"),
    ("memory", {"available_bytes": lambda: 3 * GIB}, "warn", "3.0 GiB of RAM available"),
    ("memory", {"available_bytes": lambda: GIB // 2}, "fail", "close other programs"),
    ("disk", {"free_bytes": lambda f: 2 * GIB}, "warn", "2.0 GiB free for results"),
    ("disk", {"free_bytes": lambda f: 0}, "fail", "make room"),
    ("torch", {"torch_build": lambda: {"torch": None, "torch_cuda": None}}, "fail", "torch is not installed"),
    ("torch", {}, "ok", "there is no NVIDIA GPU"),
    ("torch", {"nvml": FakeNvml(FakeGpu("H200"), driver="550.1")}, "fail",
     "needs driver 580 or newer for CUDA 13.0, not 550.1"),
    ("torch", {"nvml": FakeNvml(FakeGpu("H200"), driver="580.1")}, "ok", "with CUDA 13.0, driver 580.1"),
    ("torch", {"nvml": FakeNvml(FakeGpu("H200")), "torch_build": lambda: {"torch": "2.9+cpu", "torch_cuda": None}}, "fail",
     "is built without CUDA, and there is a GPU (H200)"),
    ("gpu 0", {"nvml": FakeNvml(FakeGpu("H200"))}, "ok", "H200 is idle, 23.0 of 24.0 GiB free"),
    ("gpu 0", {"nvml": FakeNvml(FakeGpu(processes={5: 1, 4: None}))}, "fail", "other processes use it (pid 4, 5)"),
    ("gpu 0", {"nvml": FakeNvml(FakeGpu(reasons=0x40))}, "fail", "slows itself down (hardware thermal slowdown)"),
    ("gpu 0", {"nvml": FakeNvml(FakeGpu(reasons=0x4))}, "ok", "is idle"),
    ("gpu 0", {"nvml": FakeNvml(FakeGpu(ecc_uncorrected=3))}, "fail", "3 uncorrected ECC error(s)"),
    ("gpu 0", {"nvml": FakeNvml(FakeGpu(ecc_uncorrected=None, mig=None))}, "ok", "is idle"),
    ("gpu 0", {"nvml": FakeNvml(FakeGpu(mig=1))}, "warn", "split by MIG"),
    ("gpu 1", {"nvml": FakeNvml(FakeGpu(), FakeGpu("B"))}, "ok", "B is idle"),
])
def test_every_point(name, changes, level, words):
    check = point(name, **changes)
    assert check.level == level
    assert words in str(check)
    assert check.level == "ok" or check.action                     # what is not well says what to do


def test_the_governor(tmp_path):
    for core, governor in enumerate(("performance", "powersave")):
        folder = tmp_path / f"devices/system/cpu/cpu{core}/cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_governor").write_text(governor + "\n")
    assert point("governor", sys=tmp_path).level == "warn"
    assert "performance, powersave" in point("governor", sys=tmp_path).text
    (tmp_path / "devices/system/cpu/cpu1/cpufreq/scaling_governor").write_text("performance\n")
    assert point("governor", sys=tmp_path).level == "ok"


def test_strict_fails_only_when_a_point_fails():
    lines: list[str] = []
    warned = machine(load_average=lambda: 5.0)
    assert run_doctor(True, warned, lines.append) == 0
    assert lines[-1] == "fit to measure, with 1 of 7 points to look at"
    failing = machine(load_average=lambda: 50.0)
    assert run_doctor(False, failing, lines.append) == 0
    assert run_doctor(True, failing, lines.append) == 3
    assert lines[-1] == "not fit to measure: 1 of 7 points fail"


def test_limits_of_a_container(tmp_path):
    file = tmp_path / "cpu.max"
    file.write_text("150000 100000\n")
    assert cpu_quota(file) == 1.5
    file.write_text("max 100000\n")
    assert cpu_quota(file) is None
    assert cpu_quota(tmp_path / "absent") is None
    (tmp_path / "memory.max").write_text("2000\n")
    (tmp_path / "memory.current").write_text("1500\n")
    assert available_memory(tmp_path) == 500
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory(tmp_path) > 2000
    assert available_memory(tmp_path / "absent") > 2000


def test_a_busy_process_is_seen():
    process = subprocess.Popen([sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=subprocess.PIPE)
    try:
        process.stdout.readline()
        found = {pid: share for pid, _, share in busy_processes(0.5)}
    finally:
        process.kill()
        process.communicate()
    assert found.get(process.pid, 0) > 0.25


def test_this_machine_gets_a_verdict():
    lines: list[str] = []
    assert run_doctor(False, Machine(look_s=0.05), lines.append) == 0
    assert len(lines) >= 8
    assert all(line.split()[0] in ("ok", "warn", "fail") for line in lines[:-1])
