"""The row `ldm-sr`: the reference LDM at its own 64 px, then LDM-SR x4 as often as the canvas asks for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from hibench.adapter import NULL_STAGE, Batched, Resolution, Stage, to_uint8
from hibench.errors import AdapterError, SpecError
from hibench.weights import digest_of
from methods.ldm.adapter import LDM

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LDMSR", "base_size", "cascade"]

SIDE = 64                                           # the shorter side that the base model generates
STREAM = 1_000_003                                  # added to the seed of each further stage, so that its noise is its own


def base_size(height: int, width: int) -> Resolution | None:
    """The canvas of the same shape whose shorter side is 64, if it has whole pixels."""
    short = min(height, width)
    return None if height * SIDE % short or width * SIDE % short else (height * SIDE // short, width * SIDE // short)


def cascade(base: Resolution, size: Resolution, factor: int = 4) -> list[Resolution]:
    """Canvases that super-resolution starts from, in order, until `size` is reached or passed.

    Pixels of the base are never thrown away; what super-resolution itself has made is reduced before the last stage where
    that would else pass the target: 64 -> 256 for 128 and 256 px, 64 -> 256, 128 -> 512 for 512 px.
    """
    starts: list[Resolution] = []
    current = base
    while current[0] < size[0]:
        if starts and current[0] * factor > size[0] and not size[0] % factor and not size[1] % factor:
            current = size[0] // factor, size[1] // factor
        starts.append(current)
        current = current[0] * factor, current[1] * factor
    return starts


class LDMSR(Batched):
    """LDM at 64 px (the shorter side), then its super-resolution network, at once or patch-wise (option patch, in latents).

    Weights and options are the LDM's; option variant is not one of them.
    """

    name: ClassVar[str] = "ldm-sr"
    axes: ClassVar[frozenset[str]] = frozenset({"resolution", "steps"})
    default_steps: ClassVar[int] = LDM.default_steps
    licence: ClassVar[str] = LDM.licence

    def __init__(self, weights: str = "reference", options: dict[str, Any] | None = None, device: str = "cpu",
                 dtype: str = "float32") -> None:
        options = dict(options or {})
        if weights == "random":
            raise SpecError("ldm-sr: no published configuration holds both networks; give weights: reference, or a folder with "
                            "an LDM and its super-resolution/ in it")
        if options.get("variant") is not None:
            raise SpecError("ldm-sr: option variant: both networks are given by the method; drop it")
        own: dict[str, Any] = {key: options[key] for key in ("patch", "patch_stride", "decode_tile") if key in options}
        self.base = LDM(weights, {k: v for k, v in options.items() if k not in own}, device, dtype)
        self.upper = LDM(weights, {**own, "variant": "super-resolution"}, device, dtype)
        self.device = device

    def supports(self, axes: dict[str, Any]) -> str | None:
        """What the LDM supports at the small canvas, enlarged (never shrunk)."""
        if min(axes["height"], axes["width"]) < SIDE:
            return f"the base image has {SIDE} px on its shorter side: nothing to enlarge"
        base = base_size(axes["height"], axes["width"])
        if base is None:
            return f"no whole-pixel canvas with {SIDE} px on its shorter side has this shape"
        if axes["height"] % 16 or axes["width"] % 16:
            return "sides must be multiples of 16 px (f x U-Net)"
        return self.base.supports({**axes, "height": base[0], "width": base[1]})

    def load(self) -> None:
        """Load both networks."""
        self.base.load()
        self.upper.load()

    def generate_batch(self, resolution: Resolution, seeds: Sequence[int], *, steps: int | None = None, sparsity: float = 0.0,
                       prompts: Sequence[str] | None = None, stage: Stage = NULL_STAGE) -> "Tensor":
        """Images uint8 [B, 3, H, W] on the device; image i depends on seeds[i] alone."""
        reason = self.supports({"height": resolution[0], "width": resolution[1], "steps": None, "sparsity": sparsity})
        base = base_size(*resolution)
        if reason or base is None:
            raise AdapterError(f"ldm-sr: {reason}")
        steps = self.default_steps if steps is None else steps
        images = self.base.generate_batch(base, seeds, steps=steps, sparsity=sparsity, stage=stage)
        starts, nfe = cascade(base, resolution), steps
        x = images.float() / 127.5 - 1
        for number, start in enumerate(starts):
            x = self._enlarge(_resized(x, start), [seed + STREAM * (number + 1) for seed in seeds], steps, stage)
            nfe += steps * self.upper._windows((start[0] * 4, start[1] * 4))
        stage.effective(steps=steps, nfe=nfe)
        return to_uint8(_resized(x, resolution))

    def _enlarge(self, low: "Tensor", seeds: Sequence[int], steps: int, stage: Stage) -> "Tensor":
        """Float images [B, 3, h, w] in [-1, 1] four times as large."""
        import torch

        from methods.ldm.sampling import sample_latents

        if self.upper.model is None:
            self.upper.load()
        model = self.upper.model
        assert model is not None
        with torch.inference_mode():
            with stage("denoise"):
                shape = (model.latent_channels, int(low.shape[2]), int(low.shape[3]))
                z = sample_latents(model, self.upper._plan(steps), shape, seeds, self.device, concat=low,
                                   patches=self.upper._patches(), stage=stage)
            with stage("decode"):
                factor = model.first_stage_model.factor
                pixels = self.upper._decode(z, (shape[1] * factor, shape[2] * factor))
        return pixels.float() / 127.5 - 1

    def close(self) -> None:
        """Free both networks."""
        self.base.close()
        self.upper.close()

    def weights_digest(self) -> str:
        """SHA-256 of both networks' digests."""
        return digest_of([self.base.weights_digest(), self.upper.weights_digest()])

    def parameters(self) -> int:
        """Of both networks."""
        return self.base.parameters() + self.upper.parameters()


def _resized(x: "Tensor", size: Resolution) -> "Tensor":
    """Float images [B, 3, H, W] reduced to `size`: pixel means for whole factors, else antialiased bicubic."""
    import torch.nn.functional as F

    height, width = int(x.shape[2]), int(x.shape[3])
    if (height, width) == tuple(size):
        return x
    if height % size[0] == 0 and width % size[1] == 0 and height // size[0] == width // size[1]:
        return F.avg_pool2d(x, height // size[0])
    return F.interpolate(x, size=tuple(size), mode="bicubic", antialias=True)
