"""The contract between hibench and a method: the adapter protocol, the stage clock it reports to, and seeded noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

__all__ = ["NULL_STAGE", "STAGES", "Adapter", "Batched", "Resolution", "Stage", "from_uint8", "seeded_noise", "to_uint8"]

Resolution = tuple[int, int]  # (height, width) in pixels
STAGES = ("encode", "denoise", "decode")


class Stage:
    """What an adapter tells the harness while it generates; this base class listens to nothing and costs nothing.

    >>> with stage("denoise"):
    ...     for _ in range(steps):
    ...         ...
    ...         stage.step()
    """

    def __call__(self, name: str) -> AbstractContextManager[Any]:
        """Open a stage: one of `STAGES`."""
        return nullcontext()

    def step(self) -> None:
        """Mark the end of one sampler step (inside `denoise`)."""

    def effective(self, **done: int | float) -> None:
        """Report what was done: steps=, nfe= (network evaluations per image), tiles=, sparsity=, coordinates=."""

    def flops(self, count: int) -> None:
        """Add floating-point operations that torch's counter cannot see (custom kernels)."""


NULL_STAGE = Stage()


@runtime_checkable
class Adapter(Protocol):
    """What a method has to offer (DESIGN §3).

    Optional: `generate_batch(resolution, seeds, *, steps=None, sparsity=0.0, prompts=None, stage=NULL_STAGE)` which returns
    uint8 [B, 3, H, W] (class `Batched` then gives `generate`); `train(out, ...)`, behind `hibench train`; `golden(case)`,
    behind `hibench test --golden`; `reconstruct(images)`, uint8 [B, 3, H, W] to the same through the first stage, behind
    `hibench score --reconstruction`; `weights_digest()`, the SHA-256 of what was loaded; `parameters()`, the number of
    parameters; `default_steps: ClassVar[int]`, what `steps=None` means; `licence: ClassVar[str]`, of the weights.
    """

    name: ClassVar[str]
    axes: ClassVar[frozenset[str]]

    def __init__(self, weights: str, options: dict[str, Any], device: str, dtype: str) -> None: ...

    def supports(self, axes: dict[str, Any]) -> str | None:
        """None = yes; else the reason, which is shown and stored with status `skip`.

        `axes` holds height, width, steps (int or None) and sparsity."""
        ...

    def load(self) -> None:
        """Bring the weights to the device; timed apart; may raise MissingWeights."""
        ...

    def generate(
        self,
        resolution: Resolution,
        seed: int,
        *,
        steps: int | None = None,
        sparsity: float = 0.0,
        prompt: str | None = None,
        stage: Stage = NULL_STAGE,
    ) -> "torch.Tensor":
        """One image, uint8 [3, H, W] on the device."""
        ...

    def close(self) -> None:
        """Free everything."""
        ...


class Batched:
    """`generate` for an adapter that has `generate_batch`: a batch of one."""

    generate_batch: "Callable[..., torch.Tensor]"

    def generate(
        self,
        resolution: Resolution,
        seed: int,
        *,
        steps: int | None = None,
        sparsity: float = 0.0,
        prompt: str | None = None,
        stage: Stage = NULL_STAGE,
    ) -> "torch.Tensor":
        """One image, uint8 [3, H, W] on the device."""
        prompts = None if prompt is None else [prompt]
        return self.generate_batch(resolution, [seed], steps=steps, sparsity=sparsity, prompts=prompts, stage=stage)[0]


def seeded_noise(
    shape: Sequence[int],
    seeds: Sequence[int],
    device: "str | torch.device" = "cpu",
    dtype: "torch.dtype | None" = None,
    stream: int = 0,
) -> "torch.Tensor":
    """Standard normal noise [B, *shape], one CPU generator per seed: image i depends on seeds[i] alone.

    `stream` separates independent draws of one image (0: the initial noise, 1 + step: a sampler's noise at that step).
    The global random state is neither read nor moved.
    """
    import torch

    rows = []
    for seed in seeds:
        generator = torch.Generator("cpu").manual_seed((int(seed) * 1_000_003 + stream) % (2**63))
        rows.append(torch.randn(tuple(shape), generator=generator))
    return torch.stack(rows).to(device=device, dtype=dtype or torch.float32)


def to_uint8(images: "torch.Tensor") -> "torch.Tensor":
    """Float images in [-1, 1] to uint8 [..., H, W], rounded to the nearest level."""
    import torch

    return (images.float().clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8)


def from_uint8(images: "torch.Tensor | NDArray[np.uint8]", device: "str | torch.device | None" = None) -> "torch.Tensor":
    """uint8 images of any shape to float32 in [-1, 1], on `device` (None: where they are); an array, also one mapped from
    disk, is copied."""
    import torch

    tensor = images if isinstance(images, torch.Tensor) else torch.tensor(images)
    return (tensor if device is None else tensor.to(device)).float() / 127.5 - 1
