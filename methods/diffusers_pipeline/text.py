"""Prompts as the conditioning of a Stable-Diffusion-like pipeline: token states of its text encoders, and a pooled vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hibench.errors import AdapterError
from hibench.references import scenes

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Conditioning", "default_prompts", "encode", "is_sdxl_like"]


@dataclass(frozen=True)
class Conditioning:
    """What the denoiser is told, for a batch of B prompts of L tokens; all in the dtype and on the device of the encoders."""

    prompt: Tensor                                  # [B, L, D], the encoders' states side by side
    negative: Tensor                                # [B, L, D], what guidance leads away from
    pooled: Tensor | None = None                    # [B, P], of the last encoder; None: the denoiser takes none
    negative_pooled: Tensor | None = None           # [B, P]

    def __getitem__(self, rows: slice) -> Conditioning:
        """Some of the batch."""
        return Conditioning(*(None if x is None else x[rows] for x in (self.prompt, self.negative)),
                            *(None if x is None else x[rows] for x in (self.pooled, self.negative_pooled)))


def default_prompts(seeds: Sequence[int]) -> list[str]:
    """The caption of each seed's scene: the prompts where a spec names none."""
    return scenes.captions(seeds)


def is_sdxl_like(pipe: Any) -> bool:
    """Whether the denoiser takes a pooled text vector and six time ids beside the token states."""
    unet = getattr(pipe, "unet", None)
    return unet is not None and unet.config.get("addition_embed_type") == "text_time"


def encode(pipe: Any, prompts: Sequence[str], negative: str | Sequence[str] | None = None) -> Conditioning:
    """The conditioning of a batch of prompts; one or two CLIP text encoders, as the pipeline has them.

    SDXL-like (2307.01952 §2.1): the states before the last layer of each encoder, side by side, and the pooled projection of
    the last encoder. Others (SD 1.x, 2.x): the normalised last states. `negative`: one text for all or one per prompt; None =
    none, which is zeros where the pipeline was trained so (`force_zeros_for_empty_prompt`), else the empty text.
    Raises AdapterError where the pipeline has no tokenizer or text encoder.
    """
    import torch

    with torch.no_grad():
        states, pooled = _states(pipe, list(prompts))
        if negative is None and is_sdxl_like(pipe) and pipe.config.get("force_zeros_for_empty_prompt", True):
            return Conditioning(states, torch.zeros_like(states), pooled, None if pooled is None else torch.zeros_like(pooled))
        texts = [negative or ""] * len(prompts) if negative is None or isinstance(negative, str) else list(negative)
        if len(texts) != len(prompts):
            raise AdapterError(f"{len(prompts)} prompts but {len(texts)} negative ones; give one text, or one for each")
        no_states, no_pooled = _states(pipe, texts)
    return Conditioning(states, no_states, pooled, no_pooled)


def _states(pipe: Any, texts: list[str]) -> tuple[Tensor, Tensor | None]:
    """States [B, L, D] and, for an SDXL-like pipeline, the pooled vector [B, P]."""
    import torch

    pairs: list[tuple[Any, Any]] = [(getattr(pipe, f"tokenizer{i}", None), getattr(pipe, f"text_encoder{i}", None))
                                    for i in ("", "_2")]
    pairs = [(tokenizer, encoder) for tokenizer, encoder in pairs if encoder is not None]
    if not pairs or any(tokenizer is None for tokenizer, _ in pairs):
        raise AdapterError(f"this {type(pipe).__name__} has no {'tokenizer' if pairs else 'text encoder'}: it takes no prompts")
    sdxl, states, pooled = is_sdxl_like(pipe), [], None
    for tokenizer, encoder in pairs:
        ids = tokenizer(texts, padding="max_length", max_length=_length(tokenizer, encoder), truncation=True,
                        return_tensors="pt").input_ids
        out = encoder(ids.to(pipe._execution_device), output_hidden_states=sdxl)
        states.append(out.hidden_states[-2] if sdxl else out[0])
        pooled = out[0] if sdxl and out[0].ndim == 2 else pooled
    return torch.cat(states, -1), pooled


def _length(tokenizer: Any, encoder: Any) -> int:
    """Tokens per prompt: what the tokenizer says, at most what the encoder has positions for."""
    return min(int(tokenizer.model_max_length), int(encoder.config.max_position_embeddings))
