"""The baselines: what they draw, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hibench.errors import MissingWeights, SpecError
from hibench.references import scenes
from methods.baselines import Gaussian, Real, Upsample
from methods.ldm import LDM


def test_real_draws_scenes() -> None:
    real = Real()
    assert torch.equal(real.generate((48, 64), 7), scenes.render([7], 48, 64)[0])
    assert real.supports({"height": 64, "width": 64, "steps": 10, "sparsity": 0.0}) is not None


def test_gaussian_has_the_mean_and_the_variance_of_scenes() -> None:
    gaussian = Gaussian()
    drawn = gaussian.generate_batch((64, 64), range(300)).float()
    true = scenes.render(range(10**6, 10**6 + 300), 64).float()
    assert (drawn.mean(0) - true.mean(0)).abs().mean() < 8
    assert float(drawn.var(0).mean() / true.var(0).mean()) == pytest.approx(0.8, abs=0.15)      # 256 components: 83 %
    assert torch.equal(gaussian.generate_batch((64, 64), [3, 4])[1], gaussian.generate((64, 64), 4))


def test_gaussian_enlarges_and_refuses_other_shapes() -> None:
    gaussian = Gaussian()
    small, large = gaussian.generate((64, 64), 1).float(), gaussian.generate((128, 128), 1).float()
    assert (torch.nn.functional.avg_pool2d(large, 2) - small).abs().mean() < 3
    assert "square" in str(gaussian.supports({"height": 64, "width": 128, "steps": None, "sparsity": 0.0}))


def test_upsample_is_the_ldm_at_64_px_enlarged() -> None:
    upsample, ldm = Upsample(), LDM()
    large = upsample.generate((128, 256), 5, steps=2)
    assert large.shape == (3, 128, 256)
    small = ldm.generate((64, 128), 5, steps=2)
    assert (torch.nn.functional.avg_pool2d(large.float(), 2) - small.float()).abs().mean() < 3
    assert torch.equal(upsample.generate((64, 64), 5, steps=2), ldm.generate((64, 64), 5, steps=2))


@pytest.mark.parametrize(("size", "reason"),
    [((32, 32), "nothing to enlarge"), ((96, 97), "whole-pixel"), ((128, 136), "multiple of 16")])
def test_upsample_says_what_it_cannot_do(size: tuple[int, int], reason: str) -> None:
    assert reason in str(Upsample().supports({"height": size[0], "width": size[1], "steps": 10, "sparsity": 0.0}))


def test_bad_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="real: no option 'x'"):
        Real(options={"x": 1})
    with pytest.raises(MissingWeights, match="hibench train gaussian"):
        Gaussian(str(tmp_path / "none")).load()
