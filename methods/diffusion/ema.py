"""The exponential moving average of a network's weights, which starts from the weights themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["EMA"]


class EMA:
    """shadow <- decay * shadow + (1 - decay) * parameter, after every optimiser step.

    With `warmup` (LDM's LitEma) the decay of update n = 1, 2, ... is min(decay, (1 + n) / (10 + n)); without (INFD) it is
    constant.
    Buffers are not averaged: these networks have none that are trained.
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999, warmup: bool = True) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay {decay} is not in [0, 1)")
        self.decay = decay
        self.warmup = warmup
        self.updates = 0
        self.model = model
        self.shadow: dict[str, Tensor] = {k: p.detach().clone().float() for k, p in model.named_parameters()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the model's present parameters into the average."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.warmup else self.decay
        parameters = [p.detach().float() for p in self.model.parameters()]
        torch._foreach_lerp_(list(self.shadow.values()), parameters, 1.0 - decay)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Write the average into a model of the same architecture."""
        for name, parameter in model.named_parameters():
            parameter.copy_(self.shadow[name])

    @contextmanager
    def applied(self) -> Iterator[nn.Module]:
        """The model with averaged weights; the trained ones come back at the end."""
        kept = [p.detach().clone() for p in self.model.parameters()]
        self.copy_to(self.model)
        try:
            yield self.model
        finally:
            with torch.no_grad():
                for parameter, value in zip(self.model.parameters(), kept):
                    parameter.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints."""
        return {"updates": self.updates, "shadow": dict(self.shadow)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint; names must match."""
        if state["shadow"].keys() != self.shadow.keys():
            raise ValueError("the EMA checkpoint belongs to another network: its parameter names differ")
        self.updates = int(state["updates"])
        for name, value in state["shadow"].items():
            self.shadow[name].copy_(value)
