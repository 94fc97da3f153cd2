"""What LDM does with its first stage alone: decoding in bounded memory, reconstruction, and weights without a U-Net."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hibench.adapter import Batched, Resolution, to_uint8
from hibench.errors import AdapterError
from methods.ldm.diffusers_format import is_pipeline

if TYPE_CHECKING:
    from torch import Tensor

    from methods.ldm.model import Coder

__all__ = ["DECODE_PIXELS", "Coding"]

DECODE_PIXELS = 1 << 22                             # decode at most this many pixels at a time


class Coding(Batched):
    """The part of the LDM adapter that needs no U-Net."""

    weights: str
    options: dict[str, Any]
    device: str
    loaded: str
    coder: Coder | None                             # the model, or a first stage alone; None before load()

    if TYPE_CHECKING:                               # what the class that has a U-Net defines

        name: ClassVar[str]

        @property
        def path(self) -> Path: ...

        @cached_property
        def params(self) -> dict[str, Any]: ...

        def load(self) -> None: ...

    @cached_property
    def alone(self) -> dict[str, Any] | None:
        """The configuration of weights that are a first stage without a U-Net; None where there is one."""
        if self.weights in ("reference", "random") or self.options["config"] is not None or not self.path.exists():
            return None
        if self.weights == "vq-f4":
            from methods.ldm.checkpoint import read_mapping

            return {key: value for key, value in read_mapping(self.path / "config.json").items() if key != "unet_config"}
        from methods.ldm.first_stages import params_alone

        return None if is_pipeline(self.path) else params_alone(self.path)

    def _load_first_stage(self, dtype: Any) -> None:
        """Fill a first stage alone, strictly."""
        from methods.ldm.checkpoint import fill, read_state_dict
        from methods.ldm.first_stages import file_alone
        from methods.ldm.model import empty_first_stage

        file = file_alone(self.path)
        state = {k: v for k, v in read_state_dict(file).items() if not k.startswith(("loss.", "model_ema."))}
        self.coder = empty_first_stage(self.params, self.device, dtype).requires_grad_(False)
        fill(self.coder.first_stage_model, state, str(file))
        self.loaded = f"a first stage alone, {len(state)} tensors"

    def _decode(self, z: Tensor, resolution: Resolution) -> Tensor:
        """Latents to uint8 [B, 3, H, W], a bounded number of pixels at a time."""
        import torch

        assert self.coder is not None
        at_once, tile = max(1, DECODE_PIXELS // (resolution[0] * resolution[1])), self.options["decode_tile"]
        if tile is None:
            return torch.cat([to_uint8(self.coder.decode(part)) for part in z.split(at_once)]).contiguous()
        from methods.ldm.tiling import decode_tiled

        factor = self.coder.first_stage_model.factor
        return torch.cat([to_uint8(decode_tiled(self.coder.decode, part, factor, tile, tile // 4)) for part in z.split(1)])

    def reconstruct(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] through encoder, quantisation or posterior mean, and decoder; AdapterError for other sizes."""
        import torch

        if self.coder is None:
            self.load()
        assert self.coder is not None
        factor, (height, width) = self.coder.first_stage_model.factor, images.shape[-2:]
        if height % factor or width % factor:
            raise AdapterError(f"{self.name}: {width}x{height} px images are no multiple of the first stage's factor {factor}")
        with torch.inference_mode():
            dtype = self.coder.first_stage_model.post_quant_conv.weight.dtype
            z = self.coder.encode((images.to(self.device).float() / 127.5 - 1).to(dtype))
            return self._decode(z, (height, width))
