"""Memory and work of one image: weights, peaks, peaks per stage, FLOPs, and what an out-of-memory error says."""

from __future__ import annotations

import gc
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from hibench.stages import RecordingStage

__all__ = [
    "CpuMemory", "CudaMemory", "FLOPS_SOURCE", "PeakStage", "count_flops", "is_oom", "module_bytes", "oom_failure",
    "open_memory", "requested_bytes",
]

FLOPS_SOURCE = "FlopCounterMode"
PROC = Path("/proc/self")
_OOM = re.compile("out of memory|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED|can't allocate memory|unable to allocate",
                  re.IGNORECASE)
_SIZE = re.compile(r"(?:tried to allocate|Unable to allocate)\s+([\d.]+)\s*(bytes|[KMGTPE]i?B)", re.IGNORECASE)
_UNIT = {"bytes": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40, "pib": 2**50, "eib": 2**60}


class CpuMemory:
    """Resident memory of this process.

    `source` says how the peak is known: `VmHWM-reset` (the kernel's high-water mark, reset before each measurement),
    `VmHWM` (not resettable: the peak since the process began) or `ru_maxrss` (no /proc; the same).
    """

    def __init__(self, proc: Path = PROC) -> None:
        self.proc = proc
        self.source = "ru_maxrss" if self._field("VmHWM") is None else ("VmHWM-reset" if self._try_reset() else "VmHWM")
        self.idle_bytes = self.now_bytes()

    def _field(self, name: str) -> int | None:
        """One field of /proc/self/status in bytes, or None where the kernel does not say."""
        try:
            text = (self.proc / "status").read_text()
        except OSError:
            return None
        found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
        return int(found.group(1)) * 1024 if found else None

    def _try_reset(self) -> bool:
        try:
            (self.proc / "clear_refs").write_text("5")
        except OSError:
            return False
        return True

    def mark_idle(self) -> None:
        """Remember the process as it is now, before the method is loaded, as idle."""
        gc.collect()
        self.idle_bytes = self.now_bytes()

    def now_bytes(self) -> int | None:
        """Resident bytes now; None where the kernel does not say."""
        return self._field("VmRSS")

    def reset_peak(self) -> None:
        """Forget earlier peaks, where the kernel lets us (`source` says so)."""
        if self.source == "VmHWM-reset":
            self._try_reset()

    def peak_bytes(self) -> int:
        """Largest resident size since the last reset (or since the process began)."""
        peak = self._field("VmHWM")
        if peak is not None:
            return peak
        import resource

        scale = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale

    def stage_peak_bytes(self) -> int | None:
        """Peak over the idle process since the last reset; None where the kernel's mark cannot be reset."""
        if self.source != "VmHWM-reset" or self.idle_bytes is None:
            return None
        return max(0, self.peak_bytes() - self.idle_bytes)

    def weights_bytes(self) -> int | None:
        """Not known from the allocator on a CPU."""
        return None

    def report(self) -> dict[str, Any]:
        """The memory fields of a process in a speed record."""
        return {"peak_allocated_bytes": None, "peak_reserved_bytes": None,
                "peak_device_bytes": None, "peak_device_source": None,
                "idle_rss_bytes": self.idle_bytes, "peak_rss_bytes": self.peak_bytes(), "peak_rss_source": self.source,
                "alloc_retries": None}

    def state(self) -> dict[str, int | None]:
        """Allocated, reserved and free bytes now, for the record of a failure."""
        import psutil

        return {"allocated_bytes": self.now_bytes(), "reserved_bytes": None,
                "free_bytes": int(psutil.virtual_memory().available)}


class CudaMemory:
    """Torch's caching allocator on one CUDA device, and the device as NVML sees it; host memory beside it.

    Make it before the first CUDA call: what the device holds then is subtracted where NVML does not tell processes apart.
    `device_used` returns (bytes, source) of this process on the device, or None where unknown (see `hibench.gpu.device_used`).
    """

    def __init__(self, device: str, device_used: Callable[[], tuple[int, str] | None] = lambda: None, torch: Any = None,
                 host: CpuMemory | None = None) -> None:
        if torch is None:
            import torch
        self.device, self.device_used, self.torch = device, device_used, torch
        self.host = host or CpuMemory()
        self.source = "cuda-allocated"

    def mark_idle(self) -> None:
        self.host.mark_idle()

    def reset_peak(self) -> None:
        self.torch.cuda.reset_peak_memory_stats(self.device)
        self.host.reset_peak()

    def weights_bytes(self) -> int | None:
        """Bytes of live tensors on the device; call it after loading."""
        return int(self.torch.cuda.memory_allocated(self.device))

    def stage_peak_bytes(self) -> int | None:
        """Largest allocated size since the last reset; the allocator counts on the host, so nothing has to be synchronised."""
        return int(self.torch.cuda.max_memory_allocated(self.device))

    def report(self) -> dict[str, Any]:
        cuda = self.torch.cuda
        used = self.device_used()
        if used is None:
            free, total = cuda.mem_get_info(self.device)
            used = (int(total - free), "mem_get_info, everything on the device")
        return {**self.host.report(),
                "peak_allocated_bytes": int(cuda.max_memory_allocated(self.device)),
                "peak_reserved_bytes": int(cuda.max_memory_reserved(self.device)),
                "peak_device_bytes": used[0], "peak_device_source": used[1],
                "alloc_retries": int(cuda.memory_stats(self.device).get("num_alloc_retries", 0))}

    def state(self) -> dict[str, int | None]:
        cuda = self.torch.cuda
        try:
            free: int | None = int(cuda.mem_get_info(self.device)[0])
        except RuntimeError:                           # the context itself may be what did not fit
            free = None
        return {"allocated_bytes": int(cuda.memory_allocated(self.device)),
                "reserved_bytes": int(cuda.memory_reserved(self.device)), "free_bytes": free}


def open_memory(device: str) -> CpuMemory | CudaMemory:
    """The memory of `cpu`, `cuda` or `cuda:N`."""
    if not device.startswith("cuda"):
        return CpuMemory()
    from hibench.gpu import open_gpu

    gpu = open_gpu(index=int(device.partition(":")[2] or 0))
    return CudaMemory(device, gpu.process_used_since_now(os.getpid()) if gpu else lambda: None)


class PeakStage(RecordingStage):
    """A stage clock that notes the peak memory of each stage; for an untimed pass, because it resets counters."""

    def __init__(self, memory: CpuMemory | CudaMemory) -> None:
        super().__init__()
        self.memory = memory
        self.stage_peak_bytes: dict[str, int] = {}

    def __call__(self, name: str) -> AbstractContextManager[Any]:
        return self._watched(name, super().__call__(name))

    @contextmanager
    def _watched(self, name: str, stage: AbstractContextManager[Any]) -> Iterator[None]:
        self.memory.reset_peak()
        with stage:
            yield
        peak = self.memory.stage_peak_bytes()
        if peak is not None:
            self.stage_peak_bytes[name] = max(peak, self.stage_peak_bytes.get(name, 0))


def module_bytes(adapter: object) -> int | None:
    """Bytes of all parameters and buffers of the torch modules that an adapter holds as attributes; None when it holds none."""
    import torch

    modules = [value for value in vars(adapter).values() if isinstance(value, torch.nn.Module)]
    tensors = [t for module in modules for t in (*module.parameters(), *module.buffers())]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values()) or None


def count_flops(run: Callable[[], Any]) -> int:
    """Floating-point operations of `run()` as torch counts them: matrix products, convolutions, attention.

    One multiply-add counts as two. Attention fused for a CPU, which torch leaves out, counts as that fused for a GPU does."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    def fused(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]

    on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with FlopCounterMode(display=False, custom_mapping={on_cpu: fused}) as counter:
        run()
    return int(counter.get_total_flops())


def is_oom(error: BaseException) -> bool:
    """True if device or host memory ran out, also when an adapter wrapped the error in another one."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        if isinstance(current, MemoryError) or type(current).__name__ in ("OutOfMemoryError", "OutOfMemory"):
            return True
        if isinstance(current, RuntimeError) and _OOM.search(str(current)):
            return True
        current = current.__cause__ or current.__context__
    return False


def requested_bytes(text: str) -> int | None:
    """Bytes that an out-of-memory message says were asked for; None when it does not say.

    >>> requested_bytes("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has ...")
    21474836480
    """
    found = _SIZE.search(text)
    if not found:
        return None
    unit = found.group(2).lower()
    return round(float(found.group(1)) * _UNIT[unit if unit in _UNIT else unit.replace("b", "ib")])


def oom_failure(error: BaseException, stage: str | None, memory: CpuMemory | CudaMemory) -> dict[str, Any]:
    """The `failure` part of a record for an out-of-memory error; `stage` is None when it happened outside every stage."""
    text = " ".join(str(error).split())
    return {"stage": stage, "type": type(error).__name__, "message": text[:500] or "memory ran out",
            "requested_bytes": requested_bytes(text), **memory.state()}
