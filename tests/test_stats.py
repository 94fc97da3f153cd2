"""Quantiles, intervals, blocks."""

from __future__ import annotations

import numpy as np
import pytest

from hibench import stats


@pytest.mark.parametrize(
    ("p", "dof", "expected"),
    [
        (0.975, 1, 12.7062),
        (0.975, 3, 3.18245),
        (0.975, 4, 2.77645),
        (0.95, 10, 1.81246),
        (0.975, 30, 2.04227),
        (0.025, 3, -3.18245),
        (0.995, 2, 9.92484),
    ],
)
def test_t_quantiles_equal_the_tables(p: float, dof: int, expected: float) -> None:
    assert stats.t_quantile(p, dof) == pytest.approx(expected, abs=2e-5)


def test_quantile_and_mad_equal_numpy() -> None:
    values = [3.0, 1.0, 4.0, 1.5, 9.0]
    for q in (0, 0.1, 0.5, 0.9, 1):
        assert stats.quantile(values, q) == pytest.approx(float(np.quantile(values, q)))
    assert stats.mad(values) == 1.5


def test_mean_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(1000):
        low, high = stats.mean_interval(rng.standard_normal(4).tolist()) or (0, 0)
        hits += low <= 0 <= high
    assert 925 <= hits <= 975
    assert stats.mean_interval([1.0]) is None


def test_bootstrap_resamples_whole_groups() -> None:
    mean = lambda v: sum(v) / len(v)  # noqa: E731
    narrow = stats.bootstrap_interval([[1.0, 1.1], [1.0, 1.1], [1.0, 1.1]], mean)
    wide = stats.bootstrap_interval([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]], mean)
    assert narrow is not None
    assert wide is not None
    assert wide[1] - wide[0] > 5 * (narrow[1] - narrow[0])
    assert stats.bootstrap_interval([[1.0, 2.0]], mean) is None
    assert stats.bootstrap_interval([[1.0], [2.0]], mean, seed=3) == stats.bootstrap_interval([[1.0], [2.0]], mean, seed=3)


def test_blocks_are_disjoint_and_give_the_spread_of_the_whole() -> None:
    blocks = stats.blocks_of(10, 3)
    assert sorted(np.concatenate(blocks).tolist()) == list(range(10))
    assert stats.block_pm([1.0, 2.0, 3.0]) == pytest.approx(4.302653 / 3**0.5)
    assert stats.block_pm([1.0]) is None
    assert stats.block_rule(4, "samples") == "95 % two-sided t interval over 4 disjoint seed blocks of samples"


def test_the_jackknife_of_a_mean_is_its_block_interval() -> None:
    values = np.random.default_rng(1).standard_normal(40)
    blocks = stats.blocks_of(40, 8)
    without = [float(np.delete(values, b).mean()) for b in blocks]
    assert stats.jackknife_pm(without) == pytest.approx(stats.block_pm([float(values[b].mean()) for b in blocks]) or 0.0)
    assert stats.jackknife_pm([1.0, float("nan")]) is None
    assert "jackknife over 8 disjoint seed blocks of samples" in stats.jackknife_rule(8, "samples")
