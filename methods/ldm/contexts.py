"""What cross-attention sees: the context of an image's class or prompt, and of nothing, for guidance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hibench.errors import AdapterError
from methods.ldm.classes import class_context
from methods.ldm.text import TextEncoder, find_tokenizer, text_context

if TYPE_CHECKING:
    from torch import Tensor

    from methods.ldm.adapter import LDM

__all__ = ["contexts"]


def contexts(adapter: LDM, seeds: Sequence[int], prompts: Sequence[str] | None) -> tuple[Tensor, Tensor | None]:
    """Context of each image, [B, M, D], and under guidance the same of nothing.

    A class is that of the options or one that the seed picks; a prompt that of `prompts`, or the caption of the scene with the
    image's seed. Raises AdapterError for another number of prompts than of seeds.
    """
    assert adapter.model is not None
    encoder = adapter.model.cond_stage_model
    if not isinstance(encoder, TextEncoder):
        null_class = adapter.params.get("unconditional_class")
        return class_context(adapter.model, seeds, adapter.options, null_class, adapter.device)
    texts = adapter.captions(seeds) if prompts is None else prompts
    if len(texts) != len(seeds):
        raise AdapterError(f"ldm: {len(seeds)} seeds but {len(texts)} prompts; give one prompt per seed")
    if adapter.tokenizer is None:
        adapter.tokenizer = find_tokenizer(encoder, adapter.path, adapter.options["vocabulary"], adapter.weights == "random")
    return text_context(encoder, adapter.tokenizer, texts, adapter.options, adapter.device)
