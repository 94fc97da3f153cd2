"""What a higher resolution must beat: the reference LDM at its own 64 px, enlarged by Lanczos interpolation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from hibench.adapter import NULL_STAGE, Batched, Resolution, Stage
from hibench.resize import pil_resize
from methods.ldm import LDM

__all__ = ["Upsample"]

SIDE = 64  # the shorter side that the LDM generates


class Upsample(Batched):
    """LDM at 64 px (the shorter side), then PIL's Lanczos filter; weights and options are the LDM's."""

    name: ClassVar[str] = "upsample"
    axes: ClassVar[frozenset[str]] = frozenset({"resolution", "steps"})
    default_steps: ClassVar[int] = LDM.default_steps
    licence: ClassVar[str] = LDM.licence

    def __init__(
        self, weights: str = "reference", options: dict[str, Any] | None = None, device: str = "cpu", dtype: str = "float32"
    ) -> None:
        self.base, self.device = LDM(weights, options or {}, device, dtype), device

    @staticmethod
    def _base_size(height: int, width: int) -> Resolution | None:
        """The canvas of the same shape whose shorter side is 64, if it has whole pixels."""
        short = min(height, width)
        if height * SIDE % short or width * SIDE % short:
            return None
        return height * SIDE // short, width * SIDE // short

    def supports(self, axes: dict[str, Any]) -> str | None:
        """What the LDM supports at the small canvas, enlarged (never shrunk)."""
        if min(axes["height"], axes["width"]) < SIDE:
            return f"the base image has {SIDE} px on its shorter side: nothing to enlarge"
        base = self._base_size(axes["height"], axes["width"])
        if base is None:
            return f"no whole-pixel canvas with {SIDE} px on its shorter side has this shape"
        return self.base.supports({**axes, "height": base[0], "width": base[1]})

    def load(self) -> None:
        """Load the LDM."""
        self.base.load()

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
        """Images uint8 [B, 3, H, W] on the device."""
        height, width = resolution
        small = self.base.generate_batch(
            self._base_size(height, width) or resolution, seeds, steps=steps, sparsity=sparsity, stage=stage
        )
        with stage("decode"):
            return pil_resize(small, height, width, "lanczos")

    def close(self) -> None:
        """Free the LDM."""
        self.base.close()

    def weights_digest(self) -> str:
        """The LDM's."""
        return self.base.weights_digest()

    def parameters(self) -> int:
        """The LDM's."""
        return self.base.parameters()
