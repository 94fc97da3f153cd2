"""What is read from NVML, with a fake NVML."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from hibench.fakes import FakeGpu, FakeNvml
from hibench.gpu import GpuSample, GpuTrace, Sampler, foreign_pids, open_gpu, own_pids, throttle_reasons

GIB = 2**30


def sample(**changes) -> GpuSample:
    return GpuSample(**{"sm_mhz": 1500, "memory_mhz": 2000, "temperature_c": 50, "power_w": 200.0, "reasons": 0,
                        "pids": frozenset(), **changes})


def test_without_a_driver_or_a_gpu_there_is_none():
    assert open_gpu(nvml=FakeNvml(broken=True)) is None
    assert open_gpu("0", FakeNvml()) is None
    assert open_gpu("", FakeNvml(FakeGpu())) is None
    assert open_gpu("-1", FakeNvml(FakeGpu())) is None
    assert open_gpu("5", FakeNvml(FakeGpu())) is None
    with Sampler(None) as sampler:                               # and a sampler of none does nothing
        sampler.watch(1)
        sampler.look()
    assert sampler.trace.samples == []
    assert sampler.trace.flags() == []
    assert sampler.trace.summary()["clock_mhz"] is None
    assert sampler.trace.summary()["energy_total_j"] is None


def test_the_gpu_that_the_worker_will_see(monkeypatch):
    nvml = FakeNvml(FakeGpu("first", "GPU-aaa"), FakeGpu("second", "GPU-bbb"))
    assert open_gpu("1,0", nvml).name == "second"
    assert open_gpu("1,0", nvml, index=1).name == "first"
    assert open_gpu("GPU-bb", nvml).name == "second"
    assert open_gpu("GPU-cc", nvml) is None
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert open_gpu(nvml=nvml).uuid == "GPU-aaa"
    assert open_gpu(nvml=nvml, index=1).uuid == "GPU-bbb"
    assert open_gpu(nvml=nvml, index=2) is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert open_gpu(nvml=nvml).name == "second"


def test_one_sample():
    gpu = open_gpu("0", FakeNvml(FakeGpu(reasons=0x4, processes={7: None})))
    assert gpu.sample() == GpuSample(1500, 2000, 50, 200.0, 0x4, frozenset({7}))
    assert gpu.memory() == (GIB, 24 * GIB)
    assert gpu.ecc_errors() == 0
    assert gpu.mig() is False


def test_what_a_gpu_does_not_say_is_none_and_never_zero():
    gpu = open_gpu("0", FakeNvml(FakeGpu(power_mw=None, energy_mj=None, ecc_uncorrected=None, mig=None)))
    assert gpu.sample().power_w is None
    assert gpu.energy_j() is None
    assert gpu.ecc_errors() is None
    assert gpu.mig() is None


def test_throttling_is_told_from_the_power_cap():
    assert throttle_reasons(0x4) == []                            # normal at full load
    assert throttle_reasons(0x1) == []                            # idle
    assert throttle_reasons(0x8 | 0x20 | 0x40 | 0x80) == ["hardware slowdown", "software thermal slowdown",
                                                          "hardware thermal slowdown", "power brake"]
    trace = GpuTrace([sample(reasons=0x4), sample(reasons=0x4), sample(reasons=0x44), sample()])
    assert trace.summary()["power_cap_share"] == 0.75
    assert trace.summary()["throttle_share"] == 0.25
    (flag,) = trace.flags()
    assert flag["name"] == "throttled"
    assert "25% of the samples (hardware thermal slowdown)" in flag["text"]
    assert GpuTrace([sample(reasons=0x4)]).flags() == []


def test_the_clock_range_is_kept():
    trace = GpuTrace([sample(sm_mhz=mhz) for mhz in (1000, 1400, 1500)], energy_j=12.0)
    summary = trace.summary()
    assert summary["clock_mhz"] == {"min": 1000, "median": 1400, "max": 1500}
    assert summary["energy_total_j"] == 12.0
    assert summary["power_mean_w"] == 200.0
    assert summary["gpu_samples"] == 3


@pytest.mark.parametrize(("before", "during", "own", "foreign"), [
    ([], [[10], [10]], [10, 11], []),                             # only us
    ([], [[10, 99]], [10], [99]),                                 # somebody came
    ([99], [[99, 10]], [10], [99]),                               # somebody was there
    ([99], [[10]], [10], []),                                     # ... and left before
    ([], [[5000], [5000]], [10], []),                             # a container: the host calls us 5000
    ([99], [[99, 5000]], [10], [99]),
    ([], [[5000], [5000, 6000]], [10], [6000]),
    ([], [], [10], []),
])
def test_foreign_processes(before, during, own, foreign):
    assert foreign_pids(before, during, own) == set(foreign)


def test_a_contended_gpu_is_flagged_with_a_sentence():
    trace = GpuTrace([sample(pids=frozenset({1, 77}))], own={1})
    (flag,) = trace.flags()
    assert flag["name"] == "contended"
    assert flag["text"] == "other processes used the GPU at the same time (pid 77); stop them and measure again"
    assert GpuTrace([sample(pids=None)], own={1}).flags() == []


def test_the_sampler_looks_ten_times_a_second_and_stops():
    fake = FakeGpu(energy_mj=5000, processes={42: GIB})
    gpu = open_gpu("0", FakeNvml(fake))
    with Sampler(gpu, every_s=0.01, find_own=lambda pid: {pid, 43}) as sampler:
        sampler.watch(4)
        fake.processes = {42: GIB, 4: GIB, 43: GIB}
        deadline = time.monotonic() + 5
        while len(sampler.trace.samples) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        fake.energy_mj = 8000
    count = len(sampler.trace.samples)
    assert count >= 3
    assert sampler.trace.energy_j == 3.0
    assert sampler.trace.before == frozenset({42})
    assert sampler.trace.own == {4, 43}
    assert [flag["name"] for flag in sampler.trace.flags()] == ["contended"]
    assert "pid 42" in sampler.trace.flags()[0]["text"]
    time.sleep(0.05)
    assert len(sampler.trace.samples) == count
    assert Sampler(gpu).every_s == 0.1


def test_device_bytes_of_a_process_with_their_source():
    fake = FakeGpu(used_bytes=2 * GIB)
    gpu = open_gpu("0", FakeNvml(fake))
    used = gpu.process_used_since_now(42)
    fake.used_bytes = 5 * GIB
    assert used() == (3 * GIB, "nvml-device-difference")
    fake.processes = {42: None, 43: GIB}                          # a container: NVML does not say
    assert used() == (3 * GIB, "nvml-device-difference")
    fake.processes = {42: 4 * GIB}
    assert used() == (4 * GIB, "nvml-process")


def test_own_processes_are_a_process_and_its_descendants():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert own_pids(os.getpid()) >= {os.getpid(), child.pid}
    finally:
        child.communicate(b"\n")
    assert own_pids(child.pid) == set()


@pytest.mark.gpu
def test_a_real_gpu_answers():
    gpu = open_gpu()
    if gpu is None:
        pytest.skip("no NVIDIA driver")
    with Sampler(gpu) as sampler:
        time.sleep(0.5)
    assert 2 <= len(sampler.trace.samples) <= 6
    assert sampler.trace.summary()["clock_mhz"]["min"] > 0
    assert gpu.memory()[1] > GIB
