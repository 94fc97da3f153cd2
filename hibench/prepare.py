"""What is known about cells before any of them runs: ids, digests, and verdicts (skip, missing, error) that need no worker."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from hibench.adapter import Adapter
from hibench.cells import Cell, canonical, cell_id
from hibench.errors import HibenchError, MissingWeights, SpecError, Unfit, UnknownMethod
from hibench.job import one_line
from hibench.reconstruct import no_first_stage
from hibench.registry import adapter_digest, load_adapter
from hibench.spec import KINDS

__all__ = ["Task", "Verdict", "cuda_devices", "prepare", "resolve_device", "shard_of"]


@dataclass(frozen=True)
class Verdict:
    """An outcome other than a measurement."""

    status: str                                                # skip | missing | error | oom | timeout | died
    reason: str                                                # one line
    failure: dict[str, Any] | None = None
    inferred_from: str | None = None                           # the key of the cell from which this follows


@dataclass(frozen=True)
class Task:
    """A cell with its device decided and everything that identifies it."""

    cell: Cell
    id: str
    adapter_digest: str
    weights_digest: str | None
    verdict: Verdict | None = None                             # None = it has to run

    @property
    def method_key(self) -> str:
        """The same for cells that load the same weights in the same way."""
        cell = self.cell
        return canonical([cell.method, cell.adapter, cell.weights, cell.options, cell.device, cell.dtype])


def prepare(cells: Iterable[Cell], env: dict[str, Any], device: str | None = None) -> list[Task]:
    """One task per cell, in order; methods are imported and made, but load nothing.

    `device` stands in for the device of every cell (None or "auto": as the spec says). Raises UnknownMethod, SpecError (a
    method does not take its options) with everything that is wrong, and Unfit (the asked device is not there).
    """
    probe = _Probe()
    env_digest = hashlib.sha256(canonical([env["hardware_digest"], env["software_digest"]]).encode()).hexdigest()[:16]
    if device not in (None, "auto") and str(device).startswith("cuda") and not cuda_devices():
        raise Unfit(f"--device {device}: torch sees no CUDA device here; drop --device, or look at `hibench doctor`")
    tasks = []
    for cell in cells:
        cell = replace(cell, device=resolve_device(cell.device if device in (None, "auto") else str(device)))
        code, weights = probe.digests(cell)
        id = cell_id(cell, adapter_digest=code, weights_digest=weights, env_digest=env_digest)
        tasks.append(Task(cell, id, code, weights, probe.verdict(cell)))
    probe.raise_problems()
    return tasks


def resolve_device(device: str) -> str:
    """`auto` becomes `cuda` where torch can use a GPU, else `cpu`; anything else stays."""
    return ("cuda" if cuda_devices() else "cpu") if device == "auto" else device


@lru_cache(maxsize=1)
def cuda_devices() -> int:
    """How many GPUs torch can use; torch is imported only where NVML sees a GPU, and no CUDA context is made."""
    from hibench.env import torch_build
    from hibench.gpu import open_gpu

    if torch_build()["torch_cuda"] is None or open_gpu() is None:
        return 0
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def shard_of(tasks: Iterable[Task], shard: tuple[int, int] | None) -> list[Task]:
    """The tasks of part I of N (I from 1), the same parts on every machine; None = all."""
    if shard is None:
        return list(tasks)
    part, parts = shard
    if not 1 <= part <= parts:
        raise SpecError(f"--shard {part}/{parts}: the part has to lie between 1 and {parts}")
    return [t for t in tasks if int(hashlib.sha256(t.cell.key.encode()).hexdigest(), 16) % parts == part - 1]


class _Probe:
    """Asks adapter classes and instances, each once; collects what is wrong with the spec."""

    def __init__(self) -> None:
        self.adapters: dict[str, type[Adapter] | Verdict] = {}
        self.codes: dict[str, str] = {}
        self.instances: dict[str, Adapter | Verdict] = {}
        self.weights: dict[str, str | Verdict | None] = {}
        self.unknown: dict[str, None] = {}
        self.wrong: dict[str, None] = {}

    def raise_problems(self) -> None:
        if self.unknown:
            raise UnknownMethod("; ".join(self.unknown))
        if self.wrong:
            raise SpecError("; ".join(self.wrong))

    def digests(self, cell: Cell) -> tuple[str, str | None]:
        """Of the adapter's source, and of the weights as far as they can be known without loading."""
        if cell.adapter not in self.codes:
            try:
                self.codes[cell.adapter] = adapter_digest(cell.adapter)
            except UnknownMethod as error:
                self.unknown[str(error)] = None
                self.codes[cell.adapter] = ""
        weights = self._weights(cell)
        return self.codes[cell.adapter], weights if isinstance(weights, str) else None

    def verdict(self, cell: Cell) -> Verdict | None:
        """What can be said about a cell without running it."""
        adapter = self._instance(cell)
        if isinstance(adapter, Verdict):
            return adapter
        reason = _device_problem(cell.device)
        if cell.kind not in KINDS:
            reason = f"this hibench does not measure {cell.kind}"
        if reason is None:
            try:
                reason = no_first_stage(adapter) if cell.settings.get("reconstruct") else adapter.supports(cell.axes)
            except SpecError as error:
                self.wrong[f"methods.{cell.method}: {error}"] = None
                return None
            except (Exception, SystemExit) as error:
                return _verdict_of(error)
        if reason is None and cell.sparsity > 0 and "sparsity" not in adapter.axes:
            reason = f"{adapter.name} cannot skip coordinates: it has no axis 'sparsity'"
        if reason is None and cell.kind == "quality" and cell.weights == "random":
            reason = "random weights make no images: quality is not measured; use weights: reference or a checkpoint"
        if reason is not None:
            return Verdict("skip", " ".join(str(reason).split()))
        weights = self._weights(cell)
        return weights if isinstance(weights, Verdict) else _absent_files(cell)

    def _class(self, name: str) -> type[Adapter] | Verdict:
        if name not in self.adapters:
            try:
                self.adapters[name] = load_adapter(name)
            except UnknownMethod as error:
                self.unknown[str(error)] = None
                self.adapters[name] = Verdict("error", str(error))
            except HibenchError as error:
                self.adapters[name] = _verdict_of(error)
        return self.adapters[name]

    def _instance(self, cell: Cell) -> Adapter | Verdict:
        key = _instance_key(cell)
        if key not in self.instances:
            cls = self._class(cell.adapter)
            if isinstance(cls, Verdict):
                self.instances[key] = cls
            else:
                try:
                    self.instances[key] = cls(weights=cell.weights, options=dict(cell.options), device=cell.device,
                                              dtype=cell.dtype)
                except SpecError as error:
                    self.wrong[f"methods.{cell.method}: {error}"] = None
                    self.instances[key] = _verdict_of(error)
                except (Exception, SystemExit) as error:
                    self.instances[key] = _verdict_of(error)
        return self.instances[key]

    def _weights(self, cell: Cell) -> str | Verdict | None:
        """The digest; a verdict when they are not there; None = nobody knows before they are loaded."""
        key = _instance_key(cell)
        if key not in self.weights:
            adapter = self._instance(cell)
            question = None if isinstance(adapter, Verdict) else getattr(adapter, "weights_digest", None)
            found: str | Verdict | None = None
            if callable(question):
                try:
                    found = question()
                except MissingWeights as error:
                    found = _verdict_of(error)
                except Exception:                              # it needs load(), say; then only the worker can tell
                    found = None
            self.weights[key] = found if found is not None else _path_digest(cell.weights)
        return self.weights[key]


def _instance_key(cell: Cell) -> str:
    return canonical([cell.adapter, cell.weights, cell.options, cell.device, cell.dtype])


def _verdict_of(error: BaseException) -> Verdict:
    status = "missing" if isinstance(error, MissingWeights) else "error"
    text = one_line(error)
    return Verdict(status, text, {"stage": "open", "type": type(error).__name__, "message": text, "requested_bytes": None,
                                  "allocated_bytes": None, "reserved_bytes": None, "free_bytes": None})


def _device_problem(device: str) -> str | None:
    if not device.startswith("cuda"):
        return None
    number, there = int(device.partition(":")[2] or 0), cuda_devices()
    return None if number < there else f"needs {device}, and torch sees {there or 'no'} CUDA device{'s' * (there > 1)} here"


def _path_digest(weights: str) -> str | None:
    """SHA-256 of a weights file or of all files of a folder; None for what is no path."""
    from hibench.weights import sha256_of

    path = Path(weights).expanduser()
    if weights in ("reference", "random") or not path.is_absolute() or not path.exists():
        return None
    if path.is_file():
        return sha256_of(path)
    lines = [f"{file.relative_to(path)} {sha256_of(file)}" for file in sorted(path.rglob("*")) if file.is_file()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _absent_files(cell: Cell) -> Verdict | None:
    """Weights, prompts and references that are named by a path and are not there."""
    reference = cell.settings.get("reference")
    folder = reference.get("path") if isinstance(reference, dict) else None
    wanted = [("weights", cell.weights if Path(cell.weights).is_absolute() else None),
              ("prompts", cell.prompts if isinstance(cell.prompts, str) else None), ("the reference's folder", folder)]
    for what, path in wanted:
        if path and not Path(path).exists():
            return Verdict("missing", f"{cell.method}: {what} {path}: no such file; put it there, or correct the path")
    return None
