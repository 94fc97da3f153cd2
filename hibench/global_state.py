"""The global state that a method must leave alone: random generators, and settings of torch."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["kept_random_state", "random_states", "seed_everything", "settings"]


def random_states() -> dict[str, Any]:
    """The state of every global random generator, comparable."""
    import numpy as np
    import torch

    states: dict[str, Any] = {"torch": torch.get_rng_state().numpy().tobytes(), "random": random.getstate(),
                              "numpy": repr(np.random.get_state(legacy=False))}
    if torch.cuda.is_available():
        states["torch.cuda"] = [state.numpy().tobytes() for state in torch.cuda.get_rng_state_all()]
    return states


def seed_everything(seed: int) -> None:
    """Seed the global generators of torch, NumPy and Python."""
    import numpy as np
    import torch

    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Give the caller's random states back afterwards."""
    import numpy as np
    import torch

    kept = torch.get_rng_state(), np.random.get_state(), random.getstate()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    try:
        yield
    finally:
        torch.set_rng_state(kept[0])
        np.random.set_state(kept[1])
        random.setstate(kept[2])
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


def settings() -> dict[str, Any]:
    """Global settings of torch that a method must leave alone."""
    import torch

    return {"grad mode": torch.is_grad_enabled(), "inference mode": torch.is_inference_mode_enabled(),
            "default dtype": torch.get_default_dtype(), "threads": torch.get_num_threads(),
            "deterministic": torch.are_deterministic_algorithms_enabled(), "cudnn.benchmark": torch.backends.cudnn.benchmark,
            "cudnn.enabled": torch.backends.cudnn.enabled}
