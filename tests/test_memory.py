"""Memory on the CPU for real, on CUDA with a fake; out-of-memory errors; floating-point operations."""

from __future__ import annotations

import mmap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hibench.memory import (
    CpuMemory,
    CudaMemory,
    PeakStage,
    count_flops,
    is_oom,
    module_bytes,
    oom_failure,
    open_memory,
    requested_bytes,
)

MIB = 2**20


def proc_folder(tmp_path: Path, resettable: bool) -> Path:
    (tmp_path / "status").write_text("Name:\tx\nVmHWM:\t  3000 kB\nVmRSS:\t  2000 kB\n")
    if resettable:
        (tmp_path / "clear_refs").write_text("")
    else:
        (tmp_path / "clear_refs").mkdir()                       # writing fails, as without permission
    return tmp_path


def test_the_source_of_the_peak_is_recorded(tmp_path):
    for name in "abc":
        (tmp_path / name).mkdir()
    reset = CpuMemory(proc_folder(tmp_path / "a", True))
    assert reset.source == "VmHWM-reset"
    assert (reset.now_bytes(), reset.peak_bytes()) == (2000 * 1024, 3000 * 1024)
    assert reset.stage_peak_bytes() == 1000 * 1024
    assert (tmp_path / "a" / "clear_refs").read_text() == "5"
    fixed = CpuMemory(proc_folder(tmp_path / "b", False))
    assert fixed.source == "VmHWM"
    assert fixed.stage_peak_bytes() is None                     # unknown, not 0
    nothing = CpuMemory(tmp_path / "c")
    assert nothing.source == "ru_maxrss"
    assert nothing.now_bytes() is None
    assert nothing.peak_bytes() > 10 * MIB
    assert nothing.report()["idle_rss_bytes"] is None


def test_peak_over_idle_sees_what_was_allocated_and_freed():
    memory = CpuMemory()
    if memory.source != "VmHWM-reset":
        pytest.skip("this kernel does not let a process reset its high-water mark")
    memory.mark_idle()
    memory.reset_peak()
    with mmap.mmap(-1, 64 * MIB) as block:                      # new pages: the allocator may have some at hand
        for _ in range(64):
            block.write(bytes(MIB))
    report = memory.report()
    assert 60 * MIB < report["peak_rss_bytes"] - report["idle_rss_bytes"] < 90 * MIB
    assert report["peak_allocated_bytes"] is None
    assert report["peak_device_bytes"] is None
    memory.reset_peak()
    assert memory.peak_bytes() - memory.idle_bytes < 40 * MIB   # forgotten


def test_peaks_per_stage():
    memory = CpuMemory()
    if memory.source != "VmHWM-reset":
        pytest.skip("this kernel does not let a process reset its high-water mark")
    stage = PeakStage(memory)
    with stage("denoise"):
        torch.ones(16 * MIB, dtype=torch.uint8)
    with stage("decode"):
        torch.ones(96 * MIB, dtype=torch.uint8)
    with stage("denoise"):
        stage.step()
    peaks = stage.stage_peak_bytes
    assert set(peaks) == {"denoise", "decode"}
    assert peaks["decode"] - peaks["denoise"] > 60 * MIB
    assert len(stage.finish().step_s) == 1


class FakeCuda:
    """torch.cuda's memory counters."""

    def __init__(self):
        self.resets = 0

    def memory_allocated(self, device):
        return 100

    def memory_reserved(self, device):
        return 400

    def max_memory_allocated(self, device):
        return 300

    def max_memory_reserved(self, device):
        return 500

    def reset_peak_memory_stats(self, device):
        self.resets += 1

    def mem_get_info(self, device):
        return 2000, 10000

    def memory_stats(self, device):
        return {"num_alloc_retries": 2}


def test_cuda_memory_takes_its_numbers_from_the_allocator_and_the_driver():
    cuda = FakeCuda()
    memory = CudaMemory("cuda", lambda: (900, "nvml-process"), SimpleNamespace(cuda=cuda))
    memory.mark_idle()
    memory.reset_peak()
    report = memory.report()
    assert cuda.resets == 1
    assert memory.weights_bytes() == 100
    assert (report["peak_allocated_bytes"], report["peak_reserved_bytes"]) == (300, 500)
    assert (report["peak_device_bytes"], report["peak_device_source"]) == (900, "nvml-process")
    assert report["alloc_retries"] == 2
    assert report["peak_rss_bytes"] > report["idle_rss_bytes"] / 2
    assert memory.state() == {"allocated_bytes": 100, "reserved_bytes": 400, "free_bytes": 2000}


def test_without_nvml_the_whole_device_is_told_with_its_source():
    memory = CudaMemory("cuda", torch=SimpleNamespace(cuda=FakeCuda()))
    report = memory.report()
    assert report["peak_device_bytes"] == 8000
    assert report["peak_device_source"] == "mem_get_info, everything on the device"


def test_cuda_stage_peaks_are_reset_at_every_stage():
    cuda = FakeCuda()
    stage = PeakStage(CudaMemory("cuda", torch=SimpleNamespace(cuda=cuda)))
    with stage("denoise"):
        pass
    with stage("decode"):
        pass
    assert cuda.resets == 2
    assert stage.stage_peak_bytes == {"denoise": 300, "decode": 300}


@pytest.mark.parametrize(("error", "size"), [
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has"), 20 * 2**30),
    (RuntimeError("CUDA out of memory. Tried to allocate 512.00 MiB (GPU 0; 7.93 GiB total capacity"), 512 * MIB),
    (RuntimeError("CUDA error: out of memory"), None),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), None),
    (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), None),
    (RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
                  "allocate 36028797018963968 bytes. Error code 12 (Cannot allocate memory)"), 1 << 55),
    (MemoryError(), None),
    (MemoryError("Unable to allocate 7.28 TiB for an array with shape (1000000000000,) and data type int64"),
     round(7.28 * 2**40)),
])
def test_out_of_memory_is_recognised_and_read(error, size):
    assert is_oom(error)
    assert requested_bytes(str(error)) == size


@pytest.mark.parametrize("error", [RuntimeError("shape mismatch"), ValueError("out of memory"), KeyError("x"), RuntimeError()])
def test_other_errors_are_not_out_of_memory(error):
    assert not is_oom(error)


def test_an_out_of_memory_error_is_found_inside_another_error():
    outer = ValueError("decoding failed")
    outer.__cause__ = torch.OutOfMemoryError("CUDA out of memory.")
    assert is_oom(outer)
    loop = ValueError("a")
    loop.__cause__ = loop
    assert not is_oom(loop)


def test_real_failures_to_allocate_are_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 55, dtype=torch.uint8)
    assert is_oom(caught.value)
    assert requested_bytes(str(caught.value)) == 1 << 55
    with pytest.raises(MemoryError) as caught_numpy:
        np.zeros(1 << 55, dtype=np.uint8)
    assert is_oom(caught_numpy.value)
    assert requested_bytes(str(caught_numpy.value)) == 1 << 55


def test_the_failure_of_a_record_says_where_and_how_much():
    failure = oom_failure(torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2.00 GiB."), "decode",
                          CudaMemory("cuda", torch=SimpleNamespace(cuda=FakeCuda())))
    assert failure == {"stage": "decode", "type": "OutOfMemoryError",
                       "message": "CUDA out of memory. Tried to allocate 2.00 GiB.",
                       "requested_bytes": 2 * 2**30, "allocated_bytes": 100, "reserved_bytes": 400, "free_bytes": 2000}
    on_cpu = oom_failure(MemoryError(), None, CpuMemory())
    assert on_cpu["message"] == "memory ran out"
    assert on_cpu["free_bytes"] > 0
    assert on_cpu["reserved_bytes"] is None


def test_weights_of_modules_are_counted_once():
    layer = torch.nn.Linear(4, 8)
    tied = torch.nn.Linear(4, 8)
    tied.weight = layer.weight
    assert module_bytes(SimpleNamespace(a=layer, b=tied, c="x")) == 4 * (32 + 8 + 8)
    assert module_bytes(SimpleNamespace(c="x")) is None


def test_flops_of_known_operations():
    a, b = torch.ones(3, 4), torch.ones(4, 5)
    image, kernel = torch.ones(1, 3, 8, 8), torch.ones(4, 3, 3, 3)
    query = torch.ones(1, 2, 16, 8)
    with torch.inference_mode():
        assert count_flops(lambda: a @ b) == 2 * 3 * 4 * 5
        assert count_flops(lambda: torch.nn.functional.conv2d(image, kernel, padding=1)) == 2 * 64 * 4 * 27
        attention = torch.nn.functional.scaled_dot_product_attention
        assert count_flops(lambda: attention(query, query, query)) == 4 * 2 * 16 * 16 * 8
        assert count_flops(lambda: a + 1) == 0


def test_memory_of_a_device():
    assert isinstance(open_memory("cpu"), CpuMemory)


@pytest.mark.gpu
def test_cuda_memory_for_real():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    memory = open_memory("cuda")
    memory.mark_idle()
    weights = torch.ones(8 * MIB, dtype=torch.uint8, device="cuda")
    assert memory.weights_bytes() >= 8 * MIB
    memory.reset_peak()
    torch.ones(64 * MIB, dtype=torch.uint8, device="cuda")
    report = memory.report()
    assert 72 * MIB <= report["peak_allocated_bytes"] < 80 * MIB <= report["peak_reserved_bytes"] + 8 * MIB
    assert report["peak_device_bytes"] is None or report["peak_device_bytes"] >= report["peak_allocated_bytes"]
    with pytest.raises(torch.OutOfMemoryError) as caught:
        torch.empty(1 << 42, dtype=torch.uint8, device="cuda")
    assert oom_failure(caught.value, "decode", memory)["requested_bytes"] == 1 << 42
    del weights
