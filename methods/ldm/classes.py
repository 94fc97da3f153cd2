"""Contexts of class-conditional models: which class an image gets, and what guidance is measured from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hibench.errors import SpecError
from methods.ldm.model import LatentDiffusion

__all__ = ["class_context"]


def class_context(model: LatentDiffusion, seeds: Sequence[int], options: Mapping[str, Any], configured_null: int | None,
                  device: str = "cpu") -> tuple[Tensor, Tensor | None]:
    """Context [B, 1, D] of the classes (the seed picks one that is not given), and that of no class under guidance.

    `options`: class, null_class and guidance of the adapter; `configured_null` is what null_class: None means.
    """
    embedder: Any = model.cond_stage_model
    classes = embedder.embedding.num_embeddings
    chosen, null = options["class"], options["null_class"]
    null = configured_null if null is None else null
    for word, value in (("class", chosen), ("null_class", null)):
        if value is not None and not 0 <= value < classes:
            raise SpecError(f"ldm: option {word}: {value} is not one of the model's {classes} classes (0 to {classes - 1})")
    names = [c for c in range(classes) if c != null]
    labels = torch.tensor([names[seed % len(names)] if chosen is None else chosen for seed in seeds], device=device)
    if options["guidance"] == 1.0:
        return embedder(labels), None
    if null is None:
        raise SpecError("ldm: guidance needs a model that was trained with a class for 'none'; name it: null_class")
    return embedder(labels), embedder(torch.full_like(labels, null))
