"""A worker's job: opens the adapter, calls it, checks what comes back against the contract, and says what went wrong."""

from __future__ import annotations

import hashlib
import time
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hibench.adapter import Stage
from hibench.errors import ContractError, HibenchError, MissingWeights, SpecError
from hibench.reconstruct import no_first_stage
from hibench.stages import ImageTrace, RecordingStage, check_effective

if TYPE_CHECKING:
    import torch

__all__ = ["CellJob", "Skip", "check_images", "one_line", "prompts_digest", "prompts_for", "read_prompts",
           "resolve_device"]


class Skip(HibenchError):
    """The cell cannot be measured by this method, for a reason that is no fault."""


class CellJob:
    """A job with its adapter: opens it, calls it, checks what comes back, and says what went wrong."""

    def __init__(self, job: dict[str, Any], tools: dict[str, Any] | None = None) -> None:
        self.job, self.tools = job, tools or {}
        self.cell: dict[str, Any] = job["cell"]
        self.settings: dict[str, Any] = self.cell.get("settings") or {}
        self.out = Path(job["out"])
        self.height, self.width = int(self.cell["height"]), int(self.cell["width"])
        self.steps: int | None = self.cell.get("steps")
        self.sparsity = float(self.cell.get("sparsity") or 0.0)
        self.adapter: Any = None
        self.memory: Any = None
        self.device = "cpu"
        self.phase = "open"                                     # open, load, generate, features, score
        self.stage: RecordingStage | None = None                # the clock of the image that is being made
        self.first_seed = int(self.settings.get("first_seed", 0))
        self._prompts: list[str] | None = None

    @property
    def axes(self) -> dict[str, Any]:
        return {"height": self.height, "width": self.width, "steps": self.steps, "sparsity": self.sparsity}

    def open(self) -> dict[str, float]:
        """Import torch and the method, make the adapter, ask whether it supports the axes; seconds of the imports."""
        started = time.perf_counter()
        import torch

        self.device = resolve_device(self.cell.get("device", "auto"))
        from hibench.memory import open_memory

        self.memory = open_memory(self.device)
        limit = self.settings.get("vram_limit_bytes")
        if limit and self.device.startswith("cuda"):             # caps torch's allocator only
            total = torch.cuda.get_device_properties(self.device).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total), self.device)
        factory = self.tools.get("adapter")
        if factory is None:
            from hibench.registry import load_adapter

            factory = load_adapter(self.cell["adapter"])
        import_s = time.perf_counter() - started
        self.adapter = factory(weights=self.cell.get("weights", "reference"), options=dict(self.cell.get("options") or {}),
                               device=self.device, dtype=self.cell.get("dtype", "float32"))
        reason = self.unsupported()
        if reason is not None:
            raise Skip(reason)
        self._prompts = read_prompts(self.cell.get("prompts"))
        return {"import_s": import_s}

    def load(self) -> float:
        """Load the weights; seconds with the device synchronised."""
        from hibench.timing import Clock

        self.phase = "load"
        clock = Clock.of(self.device)
        self.memory.mark_idle()
        clock.synchronise()
        started = clock.now_ns()
        self.adapter.load()
        clock.synchronise()
        self.phase = "generate"
        return (clock.now_ns() - started) / 1e9

    def unsupported(self, scale: int = 1) -> str | None:
        """Why the method does not make the cell's images, or images `scale` times as high and wide; None = it does."""
        if self.settings.get("reconstruct"):
            return no_first_stage(self.adapter) or ("reconstructions have one size" if scale != 1 else None)
        axes = {**self.axes, "height": scale * self.height, "width": scale * self.width}
        reason = self.adapter.supports(axes)
        if reason is None and self.sparsity > 0 and "sparsity" not in self.adapter.axes:
            reason = f"{self.adapter.name} cannot skip coordinates: it has no axis 'sparsity'"
        return None if reason is None else str(reason)

    def generate(self, seed: int, stage: Stage, scale: int = 1) -> torch.Tensor:
        """One image, uint8 [3, scale · H, scale · W]."""
        if isinstance(stage, RecordingStage):
            self.stage = stage
        prompts = prompts_for(self._prompts, [seed], self.first_seed)
        image: torch.Tensor = self.adapter.generate(
            (scale * self.height, scale * self.width), seed, steps=self.steps, sparsity=self.sparsity,
            prompt=prompts[0] if prompts else None, stage=stage)
        return image

    def make(self, seeds: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Checked images of these seeds, uint8 [B, 3, H, W], and the originals where they are reconstructions."""
        if not self.settings.get("reconstruct"):
            return self.generate_batch(seeds), None
        from hibench.reconstruct import originals

        truth = originals(self.settings, (self.height, self.width), seeds, self.first_seed, self.device)
        images = self.adapter.reconstruct(truth)
        check_images(images, (len(seeds), 3, self.height, self.width), self.device)
        return images, truth

    def generate_batch(self, seeds: Sequence[int], scale: int = 1) -> torch.Tensor:
        """Checked images, uint8 [B, 3, scale · H, scale · W]; one by one where the adapter makes no batches."""
        import torch

        if not callable(getattr(self.adapter, "generate_batch", None)):
            return torch.stack([self._checked(self.generate(seed, stage, scale)[None], 1, stage, scale)[0]
                                for seed in seeds for stage in [RecordingStage()]])
        self.stage = stage = RecordingStage()
        images = self.adapter.generate_batch(
            (scale * self.height, scale * self.width), list(seeds), steps=self.steps, sparsity=self.sparsity,
            prompts=prompts_for(self._prompts, seeds, self.first_seed), stage=stage)
        return self._checked(images, len(seeds), stage, scale)

    def _checked(self, images: Any, count: int, stage: RecordingStage, scale: int) -> torch.Tensor:
        check_images(images, (count, 3, scale * self.height, scale * self.width), self.device)
        self.check_trace(stage.finish(), scale)
        checked: torch.Tensor = images
        return checked

    def check_image(self, image: Any, trace: ImageTrace) -> None:
        """Check one image of a speed cell and what was reported about it."""
        check_images(image, (3, self.height, self.width), self.device)
        self.check_trace(trace)

    def check_trace(self, trace: ImageTrace, scale: int = 1) -> None:
        """Compare what was done with what was asked for."""
        check_effective(trace, axes=frozenset(self.adapter.axes), steps=self.steps, sparsity=self.sparsity,
                        pixels=scale**2 * self.height * self.width)

    def verdict_of(self, error: BaseException) -> dict[str, Any]:
        """Status and failure that an exception stands for."""
        from hibench.memory import is_oom, oom_failure

        stage = (self.stage.failed_in or self.stage.current) if self.stage else None
        stage = stage or (self.phase if self.phase != "generate" else None)
        text = one_line(error)
        if isinstance(error, Skip):
            return {"status": "skip", "reason": text, "failure": None, "process": None}
        failure = {"stage": stage, "type": type(error).__name__, "message": text, "requested_bytes": None,
                   "allocated_bytes": None, "reserved_bytes": None, "free_bytes": None}
        status = "missing" if isinstance(error, MissingWeights) else "error"
        if is_oom(error):
            from hibench.memory import CpuMemory

            status, failure = "oom", oom_failure(error, stage, self.memory or CpuMemory())
        return {"status": status, "reason": failure["message"], "failure": failure, "process": None}

    def close(self) -> None:
        """Close the adapter; a failure to do so is told in the log and changes no verdict."""
        if self.adapter is None:
            return
        try:
            self.adapter.close()
        except Exception:
            traceback.print_exc()


def one_line(error: BaseException) -> str:
    """An error as one line; errors of others carry their type."""
    text = " ".join(str(error).split())[:500]
    if isinstance(error, HibenchError) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def resolve_device(device: str) -> str:
    """`auto` becomes `cuda` where there is a CUDA device, else `cpu`; a CUDA device that is not there is an error."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise SpecError(f"device '{device}' was asked for, and torch sees no CUDA device; write device: auto, "
                        "or look at `hibench doctor`")
    return device


def check_images(images: Any, shape: tuple[int, ...], device: str) -> None:
    """Raise ContractError unless `images` is a uint8 tensor of this shape on this device."""
    import torch

    if not isinstance(images, torch.Tensor):
        raise ContractError(f"the method returned {type(images).__name__}, not a tensor uint8 {list(shape)}")
    if images.dtype != torch.uint8:
        bad = "" if not images.is_floating_point() or bool(torch.isfinite(images).all()) else " with values that are not finite"
        name = str(images.dtype).removeprefix("torch.")
        raise ContractError(f"the method returned {name}{bad}, not uint8; end with hibench.adapter.to_uint8")
    if tuple(images.shape) != shape:
        raise ContractError(f"the method returned shape {list(images.shape)}, and {list(shape)} was asked for")
    if images.device.type != device.split(":")[0]:
        raise ContractError(f"the method returned an image on {images.device}, and it has to be on {device}")


def read_prompts(prompts: str | Sequence[str] | None) -> list[str] | None:
    """Prompts of a cell: a list, or a UTF-8 file with one prompt per line (empty lines do not count); None = no prompts."""
    if prompts is None:
        return None
    if isinstance(prompts, str):
        try:
            lines: Iterable[str] = Path(prompts).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SpecError(f"prompts: {prompts} cannot be read ({type(error).__name__}); "
                            "it has to be a UTF-8 text file") from error
    else:
        lines = prompts
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise SpecError(f"prompts: {prompts if isinstance(prompts, str) else 'the list'} holds no prompt; write one per line")
    return found


def prompts_digest(prompts: str | Sequence[str] | None) -> str | None:
    """SHA-256 of a cell's prompts, one per line, wherever they are written; None = no prompts, or they cannot be read."""
    try:
        known = read_prompts(prompts)
    except SpecError:
        return None                                             # the cell's own verdict says so
    return None if known is None else hashlib.sha256("\n".join(known).encode()).hexdigest()


def prompts_for(prompts: str | Sequence[str] | None, seeds: Sequence[int], first_seed: int = 0) -> list[str] | None:
    """The prompt of each seed: the first seed of a cell gets the first prompt, and so on, round and round."""
    known = read_prompts(prompts)
    return None if known is None else [known[(seed - first_seed) % len(known)] for seed in seeds]
