"""The floor: true scenes, so that a metric shows what it measures between two sets of the same distribution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from hibench.adapter import NULL_STAGE, Batched, Resolution, Stage
from hibench.errors import SpecError
from hibench.references import scenes

__all__ = ["Real"]


class Real(Batched):
    """Scene number `seed`, rendered at the asked resolution: seeds below 10⁶, which no reference and no training uses."""

    name: ClassVar[str] = "real"
    axes: ClassVar[frozenset[str]] = frozenset({"resolution"})
    licence: ClassVar[str] = "MIT"

    def __init__(
        self, weights: str = "reference", options: dict[str, Any] | None = None, device: str = "cpu", dtype: str = "float32"
    ) -> None:
        if options:
            raise SpecError(f"real: no option '{next(iter(options))}'; it has none")
        self.device = device

    def supports(self, axes: dict[str, Any]) -> str | None:
        """Every resolution of an aspect ratio up to 16; no steps, no sparsity."""
        if axes.get("steps") is not None or axes.get("sparsity"):
            return "true scenes are rendered: there are no steps and no sparsity"
        height, width = axes["height"], axes["width"]
        return None if max(height, width) <= 16 * min(height, width) else "scenes have an aspect ratio of at most 16"

    def load(self) -> None:
        """Nothing to load."""

    def generate_batch(
        self,
        resolution: Resolution,
        seeds: Sequence[int],
        *,
        steps: int | None = None,
        sparsity: float = 0.0,
        prompts: Sequence[str] | None = None,
        stage: Stage = NULL_STAGE,
    ) -> Tensor:
        """Scenes uint8 [B, 3, H, W]."""
        with stage("decode"):
            return scenes.render(seeds, *resolution, device=torch.device(self.device))

    @staticmethod
    def captions(seeds: Sequence[int]) -> list[str]:
        """What the images show, for the CLIP score of true images."""
        return scenes.captions(seeds)

    def close(self) -> None:
        """Nothing to free."""

    def weights_digest(self) -> str:
        """The version of scenes."""
        return scenes.digest()

    def parameters(self) -> int:
        """None to learn."""
        return 0
