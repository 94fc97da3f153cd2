"""What the machine and the software are, as far as they change a number, with a digest of each; imports no torch."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

__all__ = [
    "affinity_cores", "cpu_model", "describe", "digest", "driver", "git_state", "gpus", "hardware", "open_nvml",
    "software", "thread_settings", "torch_build",
]

PACKAGES = ("torch", "torchvision", "numpy", "open_clip_torch", "torch-fidelity", "clean-fid", "lpips",
            "safetensors", "pillow", "diffusers", "transformers", "triton", "xformers", "flash-attn")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def digest(value: Any) -> str:
    """16 hex digits of the SHA-256 of canonical JSON: order of keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]


def describe(nvml: Any = None) -> dict[str, Any]:
    """The `env` part of a record: hardware, software, a digest of each, and the state of the project's checkout.

    `nvml` stands in for the module pynvml in tests (None: the real one)."""
    hard, soft = hardware(nvml), software(nvml)
    return {"hardware": hard, "software": soft, "hardware_digest": digest(hard), "software_digest": digest(soft),
            "git": git_state()}


def hardware(nvml: Any = None) -> dict[str, Any]:
    """CPU model, cores that this process may use, RAM in whole GiB, GPUs."""
    import psutil

    return {"cpu": cpu_model(), "cores": os.cpu_count(), "usable_cores": affinity_cores(), "machine": platform.machine(),
            "ram_gib": round(psutil.virtual_memory().total / 2**30), "gpus": gpus(nvml)}


def software(nvml: Any = None) -> dict[str, Any]:
    """Python, operating system, driver, versions of packages that change results, thread settings; None where absent."""
    return {"python": platform.python_version(), "os": f"{platform.system()} {platform.release()}", "driver": driver(nvml),
            **torch_build(), "packages": {name: version for name in PACKAGES if (version := _version(name))},
            "threads": thread_settings()}


def thread_settings(environ: dict[str, str] | None = None) -> dict[str, Any]:
    """Thread variables that are set, and the number of cores this process may use."""
    environ = dict(os.environ) if environ is None else environ
    return {**{name: environ[name] for name in THREAD_VARIABLES if name in environ}, "usable_cores": affinity_cores()}


def affinity_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name as the kernel tells it."""
    try:
        for line in cpuinfo.read_text().splitlines():
            if line.lower().startswith(("model name", "hardware", "cpu model")):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def torch_build() -> dict[str, str | None]:
    """Version and CUDA version of the installed torch, read from its version file without importing torch."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return {"torch": None, "torch_cuda": None}
    values: dict[str, Any] = {}
    exec((Path(spec.origin).parent / "version.py").read_text(), values)
    return {"torch": str(values.get("__version__")), "torch_cuda": values.get("cuda")}


def open_nvml(nvml: Any = None) -> Any:
    """NVML, initialised, or None without a driver; `nvml` stands in for the module pynvml in tests."""
    if nvml is None:
        try:
            from hibench.gpu import import_nvml

            nvml = import_nvml()
        except ImportError:
            return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    return nvml


def gpus(nvml: Any = None) -> list[dict[str, Any]]:
    """Name and memory of every GPU in PCI order; empty without a driver."""
    from hibench.gpu import Gpu

    nvml = open_nvml(nvml)
    if nvml is None:
        return []
    found = []
    for index in range(nvml.nvmlDeviceGetCount()):
        gpu = Gpu(nvml, nvml.nvmlDeviceGetHandleByIndex(index))
        memory = gpu.memory()
        found.append({"name": gpu.name, "memory_gib": round(memory[1] / 2**30) if memory else None})
    return found


def driver(nvml: Any = None) -> str | None:
    """Version of the NVIDIA driver; None without one."""
    nvml = open_nvml(nvml)
    if nvml is None:
        return None
    text = nvml.nvmlSystemGetDriverVersion()
    return text.decode() if isinstance(text, bytes) else str(text)


def git_state(root: Path | None = None) -> dict[str, Any]:
    """Commit of the project, and whether tracked files differ from it; both None when it is not a git checkout.

    `root`: the folder of the project (None: the folder that holds the package `hibench`)."""
    root = root or Path(__file__).resolve().parent.parent
    nothing: dict[str, Any] = {"commit": None, "dirty": None}
    top = _git(root, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root.resolve():
        return nothing                                     # installed into somebody else's checkout
    status = _git(root, "status", "--porcelain", "--untracked-files=no")
    return {"commit": _git(root, "rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
