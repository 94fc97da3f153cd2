"""Random Inception weights in the format of the published file: for parity with the peers, which compute on the same file."""

from __future__ import annotations

import unittest.mock
from functools import lru_cache
from pathlib import Path

import torch

from hibench.extractors.inception import shapes


def make(path: Path, seed: int = 0) -> Path:
    """Write the random weights of this seed."""
    torch.save(_state(seed), path)
    return path


@lru_cache(maxsize=1)
def _state(seed: int) -> dict[str, torch.Tensor]:
    """He-initialised convolutions, batch-norm statistics calibrated on noise so that activations keep their scale."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, torch.Tensor] = {}
    for name, shape in shapes().items():
        if name.endswith("conv.weight"):
            fan = shape[1] * shape[2] * shape[3]
            state[name] = torch.randn(shape, generator=generator) * (2 / fan) ** 0.5
        elif name.endswith("bn.weight"):
            state[name] = torch.rand(shape, generator=generator) * 0.4 + 0.8
        elif name.endswith("bn.bias"):
            state[name] = torch.randn(shape, generator=generator) * 0.1
        elif name.endswith("running_mean"):
            state[name] = torch.randn(shape, generator=generator) * 0.05
        elif name.endswith("running_var"):
            state[name] = torch.rand(shape, generator=generator) * 0.5 + 0.75
            state[name.replace("running_var", "num_batches_tracked")] = torch.tensor(0)
        elif name == "fc.weight":
            state[name] = torch.randn(shape, generator=generator) * 0.05
        else:
            state[name] = torch.randn(shape, generator=generator) * 0.1
    _calibrate(state)
    return state


def _calibrate(state: dict[str, torch.Tensor]) -> None:
    """Give every batch norm the mean and variance of its input on a small batch, block by block, by the plain network."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Plain(FeatureExtractorInceptionV3):
        def load_state_dict(self, *args, **kwargs):
            pass

    with unittest.mock.patch("torch.load", return_value={}):
        plain = Plain("inception-v3-compat", ["2048"], feature_extractor_weights_path="none")
    torch.nn.Module.load_state_dict(plain, state)
    plain.train()
    for module in plain.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        noise = torch.rand(4, 3, 24, 24, generator=torch.Generator().manual_seed(1))
        plain((torch.nn.functional.interpolate(noise, 96, mode="bilinear") * 255).to(torch.uint8))
    state.update({k: v.clone() for k, v in plain.state_dict().items()})
    for branch in ("branch1x1", "branch3x3_2a", "branch3x3_2b", "branch3x3dbl_3a", "branch3x3dbl_3b", "branch_pool"):
        for kind in ("weight", "bias"):  # features of the published network's size, about 0.4
            state[f"Mixed_7c.{branch}.bn.{kind}"] *= 0.05
