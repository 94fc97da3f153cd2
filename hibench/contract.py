"""The points of the adapter contract: what `hibench test METHOD` checks one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from hibench.adapter import NULL_STAGE, Resolution
from hibench.errors import ContractError
from hibench.global_state import kept_random_state, random_states, seed_everything, settings
from hibench.job import check_images
from hibench.stages import ImageTrace, RecordingStage, check_effective

if TYPE_CHECKING:
    import torch

__all__ = ["NotApplicable", "Suite", "need"]

SQUARES = ((64, 64), (32, 32), (128, 128), (96, 96), (256, 256), (512, 512), (1024, 1024))  # the first that is supported
OBLONGS = ((64, 96), (96, 64), (64, 128), (128, 64), (32, 64), (128, 256), (256, 512), (512, 1024), (1024, 2048))
ODD = (37, 53)
STEPS = (2, 4, 5, 3, 1, 8, 10, 20, 25, 50)                                                  # the first two that are supported
BATCH = 8
NEAR = 2                               # levels of 255: batches, and repeats on a GPU


class NotApplicable(Exception):
    """The point says nothing about this adapter."""


def need(condition: bool, text: str) -> None:
    """Raise ContractError with `text` unless the condition holds."""
    if not condition:
        raise ContractError(text)


class Suite:
    """The points of the contract for one adapter; each check returns what it saw, or raises."""

    def __init__(self, adapter: Any, device: str) -> None:
        self.adapter, self.device = adapter, device
        self.settings = settings()
        self.axes = frozenset(adapter.axes)
        self.square = self._first(SQUARES)
        self.oblong = self._first(OBLONGS)
        known = [count for count in STEPS if self.square and self.reason(self.square, steps=count) is None]
        self.counts: list[int] = known[:2] if "steps" in self.axes else []

    def checks(self) -> Iterator[tuple[str, Callable[[], str]]]:
        """Name and check, in order."""
        for name in ("supports", "plain call", "image", "repeatable", "seeds", "batch", "order", "random state", "side effects",
                     "gradient", "oblong", "odd size", "steps", "no steps", "sparsity", "no sparsity", "stages", "reload"):
            yield name, getattr(self, "check_" + name.replace(" ", "_"))

    # -- tools -------------------------------------------------------------------------------------------------------------

    def reason(self, resolution: Resolution, steps: int | None = None, sparsity: float = 0.0) -> str | None:
        """What supports() says."""
        height, width = resolution
        answer = self.adapter.supports({"height": height, "width": width, "steps": steps, "sparsity": sparsity})
        need(answer is None or (isinstance(answer, str) and bool(answer.strip())),
             f"supports() returned {answer!r}; it has to be None or a sentence")
        return answer if answer is None else str(answer)

    def _first(self, candidates: tuple[Resolution, ...]) -> Resolution | None:
        return next((size for size in candidates if self.reason(size) is None), None)

    @property
    def size(self) -> Resolution:
        """The square resolution that is used throughout."""
        need(self.square is not None, "supports() refuses every square from 32 to 1024 pixels")
        assert self.square is not None
        return self.square

    @property
    def steps(self) -> int | None:
        """A small number of steps, None where the method has no such axis."""
        return self.counts[0] if self.counts else None

    def make(self, seed: int, resolution: Resolution | None = None, steps: int | None = None, sparsity: float = 0.0,
             stage: Any = NULL_STAGE) -> torch.Tensor:
        """One checked image on the CPU."""
        resolution = resolution or self.size
        image = self.adapter.generate(resolution, seed, steps=steps or self.steps, sparsity=sparsity, stage=stage)
        check_images(image, (3, *resolution), self.device)
        copy: torch.Tensor = image.cpu()
        return copy

    def trace(self, steps: int | None = None, sparsity: float = 0.0) -> ImageTrace:
        """What one image reports."""
        import torch

        stage = RecordingStage()
        self.make(0, steps=steps, sparsity=sparsity, stage=stage)
        if self.device != "cpu":
            torch.cuda.synchronize()
        return stage.finish()

    def same(self, a: torch.Tensor, b: torch.Tensor, what: str, levels: int | None = None) -> int:
        """Largest difference in levels of 255; raises ContractError beyond `levels` (None: 0 on a CPU, 2 on a GPU)."""
        allowed = (0 if self.device == "cpu" else NEAR) if levels is None else levels
        difference = int((a.int() - b.int()).abs().max())
        need(difference <= allowed, f"{what} by up to {difference}/255 ({allowed}/255 allowed)")
        return difference

    # -- the points --------------------------------------------------------------------------------------------------------

    def check_supports(self) -> str:
        height, width = self.size
        return f"supports() takes {height}x{width}" + (f" with {self.steps} steps" if self.steps else "")

    def check_plain_call(self) -> str:
        if self.counts and getattr(self.adapter, "default_steps", 0) > 100:
            raise NotApplicable("its default number of steps takes too long here")
        image = self.adapter.generate(self.size, 0)
        check_images(image, (3, *self.size), self.device)
        return "generate(resolution, seed) works with nothing else"

    def check_image(self) -> str:
        image = self.make(0)
        need(int(image.min()) < int(image.max()), f"the image has one value everywhere: {int(image.min())}")
        return f"uint8 [3, {self.size[0]}, {self.size[1]}] on {self.device}"

    def check_repeatable(self) -> str:
        difference = self.same(self.make(1), self.make(1), "two images of one seed differ")
        return "one seed gives one image" + (f" (within {difference}/255)" if difference else ", bit by bit")

    def check_seeds(self) -> str:
        need(not self.make(0).equal(self.make(1)), "seeds 0 and 1 give the same image")
        return "two seeds give two images"

    def _batch(self, seeds: list[int]) -> torch.Tensor:
        if not callable(getattr(self.adapter, "generate_batch", None)):
            raise NotApplicable("it has no generate_batch; hibench calls generate one by one")
        images = self.adapter.generate_batch(self.size, seeds, steps=self.steps)
        check_images(images, (len(seeds), 3, *self.size), self.device)
        copy: torch.Tensor = images.cpu()
        return copy

    def check_batch(self) -> str:
        together = self._batch(list(range(BATCH)))
        what = f"image {{}} of a batch of {BATCH} differs from the same seed alone"
        worst = max(self.same(together[i], self.make(i), what.format(i), NEAR) for i in range(BATCH))
        return f"batch 1 equals batch {BATCH} within {worst}/255"

    def check_order(self) -> str:
        seeds = [5, 2, 7]
        there, back = self._batch(seeds), self._batch(seeds[::-1])
        self.same(there, back.flip(0), "the order of the seeds in a batch changes images", NEAR)
        first = self.make(2)
        self.make(3)
        self.same(first, self.make(2), "an image changes when others are made before it")
        return "an image does not depend on its neighbours or on what came before"

    def check_random_state(self) -> str:
        with kept_random_state():
            seed_everything(1)
            before = random_states()
            first = self.make(4)
            moved = [name for name, state in random_states().items() if state != before[name]]
            need(not moved, f"generate() moved the random state of {', '.join(moved)}; use hibench.adapter.seeded_noise")
            seed_everything(2)
            self.same(first, self.make(4), "the image depends on the global random state, it differs")
        return "global random states are neither read nor moved"

    def check_side_effects(self) -> str:
        self.make(0)
        before = self.settings
        changed = [f"{name}: {before[name]} became {value}" for name, value in settings().items() if value != before[name]]
        need(not changed, f"load() or generate() changed global settings ({'; '.join(changed)})")
        return "torch's global settings are as before"

    def check_gradient(self) -> str:
        image = self.adapter.generate(self.size, 0, steps=self.steps)
        need(not image.requires_grad and image.grad_fn is None, "the image carries a gradient; generate under torch.no_grad()")
        return "no gradient is kept"

    def check_oblong(self) -> str:
        if self.oblong is None:
            raise NotApplicable(f"refused: {self.reason(OBLONGS[0])}")
        self.make(0, self.oblong)
        return f"[3, {self.oblong[0]}, {self.oblong[1]}] for {self.oblong[0]}x{self.oblong[1]}"

    def check_odd_size(self) -> str:
        reason = self.reason(ODD)
        if reason is None:
            self.make(0, ODD)
            return f"{ODD[0]}x{ODD[1]} works, as supports() says"
        return f"{ODD[0]}x{ODD[1]} is refused: {reason}"

    def check_steps(self) -> str:
        if "steps" not in self.axes:
            raise NotApplicable("it has no axis 'steps'")
        need(bool(self.counts), f"it has the axis 'steps', and supports() refuses each of {', '.join(map(str, STEPS))}")
        calls = {}
        for count in self.counts:
            trace = self.trace(count)
            check_effective(trace, axes=self.axes, steps=count, sparsity=0.0, pixels=self.size[0] * self.size[1])
            calls[count] = len(trace.step_s)
        need(len({number / count for count, number in calls.items()}) == 1 and min(calls.values()) >= min(calls),
             "stage.step() does not follow the steps: " + ", ".join(f"{n} calls in {c} steps" for c, n in calls.items()))
        return f"{' and '.join(map(str, self.counts))} steps are done and reported"

    def check_no_steps(self) -> str:
        """Zero steps cannot be done, so they have to be refused."""
        if "steps" not in self.axes:
            raise NotApplicable("it has no axis 'steps'")
        reason = self.reason(self.size, steps=0)
        if reason is None:
            self._refused({"steps": 0}, "supports() accepts steps=0, and generate() returns an image for it")
        return f"0 steps are refused{': ' + reason if reason else ''}"

    def _refused(self, arguments: dict[str, Any], complaint: str) -> None:
        """Raise ContractError with `complaint` unless generate() refuses these arguments."""
        try:
            self.adapter.generate(self.size, 0, **arguments)
        except Exception:
            return
        raise ContractError(complaint)

    def check_sparsity(self) -> str:
        if "sparsity" not in self.axes:
            raise NotApplicable("it has no axis 'sparsity'")
        share = next((s for s in (0.5, 0.75) if self.reason(self.size, self.steps, s) is None), None)
        if share is None:
            raise ContractError(f"it has the axis 'sparsity', and refuses 0.5: {self.reason(self.size, self.steps, 0.5)}")
        pixels = self.size[0] * self.size[1]
        for asked in (share, 0.0):
            check_effective(self.trace(self.steps, asked), axes=self.axes, steps=self.steps, sparsity=asked, pixels=pixels)
        return f"sparsity {share:g} is done and reported"

    def check_no_sparsity(self) -> str:
        if "sparsity" in self.axes:
            raise NotApplicable("it has the axis 'sparsity'")
        reason = self.reason(self.size, self.steps, 0.5)
        need(reason is not None, "supports() accepts sparsity 0.5, and the axes of the method do not hold 'sparsity'")
        return f"sparsity is refused: {reason}"

    def check_stages(self) -> str:
        trace = self.trace(self.steps)
        need(bool(trace.stage_s), "no stage was opened; wrap the parts of generate() in stage('encode' | 'denoise' | 'decode')")
        return f"stages {', '.join(trace.stage_s)} are opened and closed in turn"

    def check_reload(self) -> str:
        first = self.make(6)
        self.adapter.close()
        self.adapter.load()
        self.same(first, self.make(6), "after close() and load() the image differs")
        return "close() and load() again give the same image"
