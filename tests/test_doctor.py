"""The doctor, on pretended machines."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from hibench import cli
from hibench.doctor import Machine, available_memory, busy_processes, cpu_quota, diagnose, run_doctor
from hibench.fakes import FakeGpu, FakeNvml
from hibench.preflight import look_ahead

GIB = 2**30


def machine(**changes) -> Machine:
    """A machine with nothing wrong."""
    return Machine(**{"sys": Path("/nowhere"), "nvml": FakeNvml(broken=True), "environ": {}, "look_s": 0.0,
                      "load_average": lambda: 0.1, "busy": lambda seconds: [], "available_bytes": lambda: 32 * GIB,
                      "free_bytes": lambda folder: 100 * GIB, "cores": lambda: 8, "quota": lambda: None, "published": dict,
                      "torch_build": lambda: {"torch": "2.9.0+cu130", "torch_cuda": "13.0"}, **changes})


def point(name: str, **changes):
    (check,) = [check for check in diagnose(machine(**changes)) if check.name == name]
    return check


def test_a_good_machine_is_fit():
    lines: list[str] = []
    assert run_doctor(True, machine(), lines.append) == 0
    assert len(lines) == 9
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
    ("weights", {}, "ok", "no published weights are here"),
    ("weights", {"published": lambda: {"vgg16": None}}, "ok", "1 published weights file is here, as published"),
    ("weights", {"published": lambda: {"vgg16": None, "alexnet": "alexnet: a.pth has SHA-256 0…; remove it"}}, "fail",
     "1 of 2 published weights files are damaged; alexnet: a.pth"),
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
    assert lines[-1] == "fit to measure, with 1 of 8 points to look at"
    failing = machine(load_average=lambda: 50.0)
    assert run_doctor(False, failing, lines.append) == 0
    assert run_doctor(True, failing, lines.append) == 3
    assert lines[-1] == "not fit to measure: 1 of 8 points fail"


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
    assert len(lines) >= 9
    assert all(line.split()[0] in ("ok", "warn", "fail") for line in lines[:-1])


# -- what a benchmark file needs ------------------------------------------------------------------------------------------

SPEC = """
version: 1
methods:
  toy: {adapter: toy}
  other: {adapter: ldm, weights: ./absent}
references: {photos: {kind: folder, path: photos}, gone: {kind: folder, path: gone}}
quality: {images: 4}
sweeps:
  good: {methods: [toy], measure: [speed, quality], resolution: [16, 32], steps: [2]}
  bad:  {methods: [toy, other], measure: [quality], resolution: [16], quality: {metrics: [fid, clean-fid]}}
  photo: {methods: [toy], measure: [quality], resolution: [16], quality: {reference: photos, metrics: [kid]}}
  large: {methods: [toy], measure: [quality], resolution: [[16, 64]], quality: {reference: photos, metrics: [kid]}}
  none: {methods: [toy], measure: [quality], resolution: [16], quality: {reference: gone, metrics: [kid]}}
"""


@pytest.fixture
def spec(tmp_path, monkeypatch):
    """A benchmark file, and a machine without published weights."""
    for name in ("HIBENCH_CACHE", "HIBENCH_WEIGHTS", "TORCH_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "empty"))
    (tmp_path / "b.yaml").write_text(SPEC)
    (tmp_path / "photos").mkdir()
    for i in range(3):
        Image.new("RGB", (32, 32), (i, 0, 0)).save(tmp_path / "photos" / f"{i}.png")
    return tmp_path / "b.yaml"


def said(spec, *only):
    return [(check.name, check.level, str(check)) for check in look_ahead(spec, only)]


def test_a_file_whose_needs_are_met(spec):
    found = said(spec, "good")
    assert [(name, level) for name, level, _ in found] == [("cells", "ok"), ("networks", "ok"), ("reference", "ok")]
    assert "4 of 4 cells can run" in found[0][2]


def test_weights_and_networks_that_are_not_there(spec):
    cells, networks, reference = said(spec, "bad")
    assert cells[:2] == ("cells", "fail")
    assert "1 of 2 cells cannot run" in cells[2]
    assert "absent" in cells[2]
    assert networks[:2] == ("networks", "fail")
    assert "clean-fid cannot be measured" in networks[2]
    assert "hibench fetch inception-v3-compat" in networks[2]
    assert reference[1] == "ok"


def test_a_network_that_is_not_the_published_one(spec, tmp_path):
    from hibench.weights import CATALOG

    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / CATALOG["inception-v3-compat"].filename).write_bytes(b"truncated")
    (networks,) = [text for name, level, text in said(spec, "bad") if name == "networks"]
    assert "truncated or another file" in networks
    assert point("weights", published=Machine().published).level == "fail"


def test_reference_images_that_are_too_few_too_small_or_gone(spec):
    assert said(spec, "photo")[-1][1:] == ("warn", (
        "warn  reference   photos has 3 images, and cells have 4 samples; add images: distances of few images are biased"))
    assert said(spec, "large")[-1][1] == "fail"
    assert "photos has 3 images of 32x32 px, and samples are 64x16 px" in said(spec, "large")[-1][2]
    assert said(spec, "none")[0][1] == "fail"
    assert "gone: no such file" in said(spec, "none")[0][2]


def test_the_verb_with_a_file(spec, monkeypatch, capsys):
    monkeypatch.setattr("hibench.doctor.diagnose", lambda machine: [])
    assert cli.main(["doctor", str(spec), "--only", "good", "--strict"]) == 0
    assert capsys.readouterr().out.endswith("fit to measure\n")
    assert cli.main(["doctor", str(spec), "--strict"]) == 3
    assert "not fit to measure: " in capsys.readouterr().out
    assert cli.main(["doctor", "--only", "good"]) == 2
    assert cli.main(["doctor", str(spec.with_name("no.yaml"))]) == 2
