"""What DemoFusion is compared with: an SDXL-like pipeline asked for the large size at once, or enlarged from its own size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from hibench.adapter import NULL_STAGE, Resolution, Stage
from hibench.errors import SpecError
from hibench.resize import pil_resize
from methods.diffusers_pipeline.adapter import CALLING, DiffusersPipeline
from methods.diffusers_pipeline.geometry import Geometry

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Direct", "DirectUpsample"]

SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
FILTERS = ("lanczos", "bicubic")


class Direct(DiffusersPipeline):
    """An SDXL-like pipeline at H x W directly: beyond the size it was trained at, objects repeat."""

    name: ClassVar[str] = "direct"
    hub_weights: ClassVar[tuple[str, ...]] = (SDXL,)

    def _size_problem(self, found: Geometry, height: int, width: int) -> str | None:
        if not found.sdxl_like:
            return "this pipeline is not like SDXL (a U-Net with size and crop conditioning); use adapter: diffusers"
        return super()._size_problem(found, height, width)


class DirectUpsample(Direct):
    """An SDXL-like pipeline at the size it was trained at (the shorter side), then PIL's Lanczos or bicubic filter."""

    name: ClassVar[str] = "direct-upsample"
    own_options: ClassVar[dict[str, Any]] = {**CALLING, "filter": "lanczos", "native": None}    # px; None = as configured

    def _check_options(self) -> None:
        super()._check_options()
        native = self.options["native"]
        if self.options["filter"] not in FILTERS:
            raise SpecError(f"{self.name}: option filter: {self.options['filter']!r} is not one of {', '.join(FILTERS)}")
        if native is not None and (type(native) is not int or native < 1):
            raise SpecError(f"{self.name}: option native: {native!r} is not a number of pixels")

    def _base_size(self, found: Geometry, height: int, width: int) -> Resolution | None:
        """The canvas of the same shape whose shorter side is the native one, if it has whole pixels."""
        side, short = self.options["native"] or found.native, min(height, width)
        if side is None or height * side % short or width * side % short:
            return None
        return height * side // short, width * side // short

    def _size_problem(self, found: Geometry, height: int, width: int) -> str | None:
        side = self.options["native"] or found.native
        if side is None:
            return "the configuration does not state the native size; give it in px: options: native"
        if min(height, width) < side:
            return f"the base image has {side} px on its shorter side: nothing to enlarge"
        base = self._base_size(found, height, width)
        if base is None:
            return f"no whole-pixel canvas with {side} px on its shorter side has this shape"
        return super()._size_problem(found, *base)

    def generate_batch(self, resolution: Resolution, seeds: Sequence[int], *, steps: int | None = None, sparsity: float = 0.0,
                       prompts: Sequence[str] | None = None, stage: Stage = NULL_STAGE) -> Tensor:
        """Images uint8 [B, 3, H, W] on the device."""
        if self.pipe is None:
            self.load()                             # says what is missing before sizes are worked out
        base = self._base_size(self.geometry, *resolution)
        small = super().generate_batch(base or resolution, seeds, steps=steps, sparsity=sparsity, prompts=prompts, stage=stage)
        with stage("decode"):
            return pil_resize(small, *resolution, self.options["filter"])
