"""Metrics against closed forms, brute force and high-precision oracles."""

from __future__ import annotations

import math
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch

from hibench.errors import SpecError
from hibench.features import Extractors
from hibench.metrics import anyres, frechet, kernel, neighbours, pairs, scores, sliced
from hibench.metrics.evaluate import FeatureSet, evaluate
from hibench.metrics.plan import parse
from hibench.stats import blocks_of


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def with_moments(mean: np.ndarray, root: np.ndarray, n: int, seed: int) -> np.ndarray:
    """n rows whose sample mean is `mean` and whose sample covariance is rootᵀ root, to rounding."""
    x = rng(seed).standard_normal((n, len(mean)))
    x -= x.mean(0)
    q, _ = np.linalg.qr(x)
    return q * math.sqrt(n - 1) @ root + mean


def oracle(x: np.ndarray, y: np.ndarray) -> float:
    """Fréchet distance in 40 digits: the nuclear norm of A Bᵀ by mpmath's singular values."""
    with mpmath.workdps(40):

        def centred(v: np.ndarray) -> tuple[mpmath.matrix, mpmath.matrix]:
            m = mpmath.matrix(v.tolist())
            mean = [mpmath.fsum(m[i, j] for i in range(m.rows)) / m.rows for j in range(m.cols)]
            scale = mpmath.sqrt(m.rows - 1)
            return mpmath.matrix(mean), mpmath.matrix(
                [[(m[i, j] - mean[j]) / scale for j in range(m.cols)] for i in range(m.rows)]
            )

        (mx, a), (my, b) = centred(x), centred(y)
        product = a * b.T
        singular = mpmath.svd_r(product, compute_uv=False)
        trace = mpmath.fsum(v * v for v in a) + mpmath.fsum(v * v for v in b)
        return float(mpmath.fsum((p - q) ** 2 for p, q in zip(mx, my)) + trace - 2 * mpmath.fsum(singular))


def test_frechet_distance_of_commuting_gaussians_has_its_closed_form() -> None:
    d = 24
    a, b = np.linspace(0.5, 3, d), np.linspace(2, 0.1, d)
    mean = np.arange(d) / 10
    x, y = with_moments(np.zeros(d), np.diag(a), 200, 1), with_moments(mean, np.diag(b), 150, 2)
    expected = (mean**2).sum() + ((a - b) ** 2).sum()
    assert frechet.frechet_distance(x, y) == pytest.approx(expected, rel=1e-12)
    assert frechet.frechet_from_moments(x.mean(0), np.cov(x.T), y.mean(0), np.cov(y.T)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("n", "m", "d"), [(5, 7, 12), (4, 30, 12), (40, 6, 12), (13, 13, 12), (2, 2, 3)])
def test_frechet_distance_equals_a_forty_digit_oracle_at_every_rank(n: int, m: int, d: int) -> None:
    x, y = rng(n).standard_normal((n, d)) * 2, rng(m + 50).standard_normal((m, d)) + 0.3
    assert frechet.frechet_distance(x, y) == pytest.approx(oracle(x, y), rel=1e-12, abs=1e-11)


@pytest.mark.parametrize("kind", ["few", "many", "duplicates", "constant", "tiny"])
def test_identical_sets_have_distance_zero_and_never_below(kind: str) -> None:
    x = rng().standard_normal((64 if kind == "few" else 400, 96))
    if kind == "duplicates":
        x[:, 40:] = x[:, :56]  # rank 40 of 96, N > d: Cholesky alone would fail
    if kind == "constant":
        x[:] = 3.0
    if kind == "tiny":
        x *= 1e-6
    value = frechet.frechet_distance(x, x.copy())
    assert -1e-8 <= value <= 1e-6 * max(1e-6, x.var())


def test_frechet_distance_with_64_images_and_2048_features_is_exact() -> None:
    x, y = rng(1).standard_normal((64, 2048)).astype(np.float32), rng(2).standard_normal((64, 2048)).astype(np.float32) * 1.5
    a, b = ((v.astype(np.float64) - v.astype(np.float64).mean(0)) / math.sqrt(63) for v in (x, y))
    expected = (
        ((x.astype(np.float64).mean(0) - y.astype(np.float64).mean(0)) ** 2).sum()
        + (a**2).sum()
        + (b**2).sum()
        - 2 * np.linalg.svd(a @ b.T, compute_uv=False).sum()
    )
    assert frechet.frechet_distance(x, y) == pytest.approx(expected, rel=1e-11)


def test_low_rank_and_full_forms_agree() -> None:
    x, y = rng(1).standard_normal((300, 40)), rng(2).standard_normal((250, 40))
    low = frechet.distance(frechet.fit(x, low_rank=True), frechet.fit(y, low_rank=True))
    assert low == pytest.approx(frechet.frechet_distance(x, y), rel=1e-11)


def test_frechet_distance_ignores_order_and_needs_two_finite_images() -> None:
    x, y = rng(1).standard_normal((30, 8)), rng(2).standard_normal((20, 8))
    assert frechet.frechet_distance(x[::-1], y) == pytest.approx(frechet.frechet_distance(x, y), rel=1e-12)
    with pytest.raises(SpecError, match="at least 2 images, got 1"):
        frechet.fit(x[:1])
    x[3, 2] = np.nan
    with pytest.raises(SpecError, match="NaN"):
        frechet.fit(x)


def test_frechet_infinity_removes_the_bias_of_few_samples() -> None:
    x, y = rng(1).standard_normal((2000, 16)), rng(2).standard_normal((20000, 16))
    reference = frechet.fit(y)
    value, curve = frechet.frechet_infinity(x, reference)
    assert len(curve) == 15
    assert curve[0][1] > curve[-1][1] > 0
    assert abs(value) < 0.5 * curve[-1][1]  # truth: 0
    assert frechet.frechet_infinity(x, reference)[0] == value  # seeded


@pytest.mark.parametrize("n", [20, 75])
def test_fits_without_blocks_equal_fits_of_the_rest(n: int) -> None:
    x = (rng(2).standard_normal((n, 12)) * 3 + 100).astype(np.float32)
    cuts = blocks_of(n, 4)
    other = frechet.fit(rng(3).standard_normal((40, 12)))
    for block, fitted in zip(cuts, frechet.fits_without_blocks(x, cuts)):
        rest = frechet.fit(np.delete(x, block, axis=0))
        assert fitted.n == rest.n == n - len(block)
        assert frechet.distance(fitted, rest) == pytest.approx(0, abs=1e-9)
        assert frechet.distance(fitted, other) == pytest.approx(frechet.distance(rest, other), rel=1e-12)


class Named:
    name, weights_sha256, resize = "scenes-clip", "", "none"
    outputs, roles = {"embed": 16}, {"features": "embed"}


def test_the_error_of_a_frechet_distance_covers_what_it_should_and_is_no_wider_than_needed() -> None:
    draw, scale = rng(7), np.linspace(1.5, 0.3, 16)
    opened = Extractors({"scenes-clip": Named()}, {})  # type: ignore[dict-item]
    found = []
    for _ in range(40):
        x, y = ((draw.standard_normal((64, 16)) * scale + s).astype(np.float32) for s in (0.25, 0.0))
        sets = [FeatureSet({"scenes-clip/embed": v}, 64) for v in (x, y)]
        found.append(evaluate([parse("fid")], *sets, opened).values["fd@scenes-clip"])
    values, pm = (np.array([f[k] for f in found]) for k in ("value", "pm"))
    assert np.mean(np.abs(values - values.mean()) <= pm) >= 0.9
    assert np.median(pm) <= 2 * 1.96 * values.std()
    assert np.all(pm < values)


def test_a_fitted_reference_is_read_instead_of_fitted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, path = rng(4).standard_normal((40, 8)).astype(np.float32), tmp_path / "kept" / "x.fit.npz"
    made = frechet.cached_fit(x, path)
    assert frechet.cached_fit(x[:8], tmp_path / "few.npz").n == 8
    assert [p.name for p in tmp_path.rglob("*.npz")] == ["x.fit.npz"]
    with monkeypatch.context() as patch:
        patch.setattr(frechet, "fit", None)
        again = frechet.cached_fit(x, path)
    assert (again.trace, again.n) == (made.trace, made.n)
    assert torch.equal(again.factor, made.factor)
    path.write_bytes(b"cut")
    assert frechet.cached_fit(x, path).trace == made.trace


def test_kernel_distance_is_the_brute_force_sum_on_both_paths() -> None:
    x, y = rng(1).standard_normal((60, 8)).astype(np.float32), rng(2).standard_normal((50, 8)).astype(np.float32) + 0.2

    def brute(a: np.ndarray, b: np.ndarray) -> float:
        m, total = len(a), 0.0
        for i in range(m):
            for j in range(m):
                total += (((a[i] @ a[j]) / 8 + 1) ** 3 + ((b[i] @ b[j]) / 8 + 1) ** 3) / (m * (m - 1)) * (i != j)
                total -= 2 * ((a[i] @ b[j]) / 8 + 1) ** 3 / (m * m)
        return total

    state = np.random.RandomState(2020)
    values = [
        brute(x[state.choice(60, 20, replace=False)].astype(float), y[state.choice(50, 20, replace=False)].astype(float))
        for _ in range(3)
    ]
    assert kernel.kernel_distance(x, y, 3, 20) == (
        pytest.approx(np.mean(values), abs=1e-6),
        pytest.approx(np.std(values), abs=1e-6),
        20,
    )
    whole = kernel._from_whole(torch.tensor(x), torch.tensor(y), [(np.arange(20), np.arange(5, 25))])
    assert whole[0] == pytest.approx(kernel._mmd2(torch.tensor(x[:20]), torch.tensor(y[5:25])), abs=1e-7)


def test_exact_kernel_distance_is_the_average_over_many_subsets() -> None:
    x, y = rng(1).standard_normal((120, 8)).astype(np.float32), rng(2).standard_normal((90, 8)).astype(np.float32) + 0.5
    mean, deviation, _ = kernel.kernel_distance(x, y, 2000, 40)
    assert kernel.kernel_distance_exact(x, y) == pytest.approx(mean, abs=4 * deviation / math.sqrt(2000))


def test_cmmd_is_the_biased_statistic_in_float64() -> None:
    x, y = rng(1).standard_normal((30, 6)).astype(np.float32), rng(2).standard_normal((20, 6)).astype(np.float32) + 1
    a, b = (v.astype(np.float64) / np.linalg.norm(v.astype(np.float64), axis=1, keepdims=True) for v in (x, y))

    def mean(p: np.ndarray, q: np.ndarray) -> float:
        return float(np.exp(-((p[:, None] - q[None]) ** 2).sum(2) / 200).mean())

    assert kernel.cmmd(x, y) == pytest.approx(1000 * (mean(a, a) + mean(b, b) - 2 * mean(a, b)), rel=1e-9)
    assert abs(kernel.cmmd(x, x)) < 1e-10


def test_neighbours_equal_a_loop_and_stay_between_bounds() -> None:
    x, y = rng(1).standard_normal((40, 5)).astype(np.float32), rng(2).standard_normal((30, 5)).astype(np.float32) + 0.5

    def radii(v: np.ndarray, k: int) -> np.ndarray:
        return np.sort(np.linalg.norm(v[:, None] - v[None], axis=2), axis=1)[:, k]

    between = np.linalg.norm(x[:, None].astype(float) - y[None], axis=2)
    found = neighbours.neighbours(x, y, rows=7)
    assert found.precision == np.mean((between <= radii(y, 3)[None]).any(1))
    assert found.recall == np.mean((radii(x, 3)[None] >= between.T).any(1))
    assert found.density == pytest.approx((between < radii(y, 5)[None]).sum() / (5 * 40))
    assert found.coverage == np.mean((between < radii(y, 5)[None]).any(0))
    far = neighbours.neighbours(x, y + 1000)
    assert (far.precision, far.recall, far.density, far.coverage) == (0, 0, 0, 0)
    with pytest.raises(SpecError, match="more than 3 images"):
        neighbours.neighbours(x[:3], y)


def test_inception_score_of_certain_balanced_classes_is_their_number() -> None:
    logits = np.eye(8, dtype=np.float32)[np.tile(np.arange(8), 50)] * 1000
    assert scores.inception_score(logits, splits=1) == (pytest.approx(8, rel=1e-12), 0)
    assert scores.inception_score(np.zeros((40, 8), np.float32))[0] == pytest.approx(1, rel=1e-12)
    with pytest.raises(SpecError, match="at least 10 images"):
        scores.inception_score(logits[:9])


def test_clip_score_is_a_hundred_times_the_clamped_cosine() -> None:
    images = np.array([[1, 0], [3, 4], [0, -2], [0, 0]], np.float32)
    prompts = np.array([[5, 0], [4, 3], [0, 1], [1, 1]], np.float32)
    assert scores.clip_scores(images, prompts).tolist() == pytest.approx([100, 96, 0, 0])
    with pytest.raises(SpecError, match="one prompt per image"):
        scores.clip_scores(images, prompts[:2])


def test_mind_of_a_shift_is_three_times_its_squared_length() -> None:
    x = rng(1).standard_normal((100, 32)).astype(np.float32)
    shift = np.zeros(32, np.float32)
    shift[3] = 2
    assert sliced.mind(x, x + shift, directions=20000) == pytest.approx(3 * 4, rel=0.05)
    assert sliced.mind(x, x[::-1].copy()) == 0
    assert sliced.mind(x, (x + shift)[:60]) == pytest.approx(sliced.mind((x + shift)[:60], x), rel=0.3)


def test_sliced_wasserstein_grows_with_the_change_and_matches_unequal_counts() -> None:
    x = rng(1).standard_normal((40, 4 * 147)).astype(np.float32)
    mild, strong = np.tanh(x), np.sign(x).astype(np.float32)
    assert sliced.swd_level(x, x) == 0
    assert 0 < sliced.swd_level(x, mild) < sliced.swd_level(x, strong)
    assert sliced.swd_level(x, strong[:25]) == pytest.approx(sliced.swd_level(x, strong), rel=0.4)


def test_spectrum_distance_of_a_doubled_amplitude_is_six_decibels() -> None:
    power = rng(1).random((10, 17)).astype(np.float32) + 1
    assert anyres.spectrum_distance(power, 4 * power) == pytest.approx(20 * math.log10(2), rel=1e-5)
    assert anyres.spectrum_distance(power, power) == 0


def test_seam_ratio_is_one_on_a_ramp_and_large_at_a_stitch() -> None:
    from hibench.extractors.pixels import Seams

    ramp = torch.arange(64, dtype=torch.float32)[None, None, None, :].expand(2, 3, 64, 64) + torch.arange(64)[:, None] * 1.0
    noise = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 30
    plain = (ramp + noise + 60).to(torch.uint8)
    stitched = plain.clone()
    stitched[..., :, 16:32] += 40  # borders at 16 and 32 columns: a period of 16
    seams = Seams(16)
    even = anyres.seam_ratio(seams(plain)["gradient"].numpy())
    assert even == pytest.approx(1, abs=0.12)
    assert anyres.seam_ratio(seams(stitched)["gradient"].numpy()) > even + 0.4
    with pytest.raises(SpecError, match="no gradient"):
        anyres.seam_ratio(seams(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))["gradient"].numpy())


def test_power_spectrum_of_a_wave_peaks_at_its_frequency() -> None:
    from hibench.extractors.pixels import radial_power

    x = torch.arange(64) / 64
    wave = torch.sin(2 * math.pi * 10 * x).expand(1, 64, 64)
    assert int(radial_power(wave)[0, 1:].argmax()) + 1 == 10


def test_psnr_and_ssim_have_their_values() -> None:
    a = torch.full((2, 3, 16, 16), 100, dtype=torch.uint8)
    b = a.clone()
    b[0] += 5
    assert pairs.psnr(a, b).tolist() == [pytest.approx(20 * math.log10(255 / 5)), math.inf]
    noise = torch.randint(0, 256, (1, 3, 11, 11), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    other = (noise.float() * 0.7 + 20).to(torch.uint8)
    g = np.exp(-((np.arange(11) - 5) ** 2) / 4.5)
    w = np.outer(g, g) / g.sum() ** 2
    expected = []
    for channel in range(3):  # one window: the formula by hand
        p, q = noise[0, channel].double().numpy(), other[0, channel].double().numpy()
        mp, mq = (w * p).sum(), (w * q).sum()
        vp, vq, c = (w * p * p).sum() - mp**2, (w * q * q).sum() - mq**2, (w * p * q).sum() - mp * mq
        expected.append((2 * mp * mq + 2.55**2) * (2 * c + 7.65**2) / ((mp**2 + mq**2 + 2.55**2) * (vp + vq + 7.65**2)))
    assert float(pairs.ssim(noise, other)) == pytest.approx(np.mean(expected), rel=1e-9)
    assert float(pairs.ssim(noise, noise)) == pytest.approx(1)
    with pytest.raises(SpecError, match="11 px window"):
        pairs.ssim(noise[..., :8], noise[..., :8])
    with pytest.raises(SpecError, match="pairs of one size"):
        pairs.psnr(a, b[..., :8])


def test_scale_consistency_of_a_box_downsampled_image_is_only_rounding() -> None:
    high = torch.randint(0, 256, (2, 3, 64, 48), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    low = torch.nn.functional.avg_pool2d(high.float(), 4).round().to(torch.uint8)
    found = anyres.scale_consistency(high, low)
    assert float(found["mae"].max()) <= 0.5
    assert float(found["psnr"].min()) > 55
    assert "ssim" not in anyres.scale_consistency(high[..., :32, :], low[..., :8, :])
    with pytest.raises(SpecError, match="no whole multiple"):
        anyres.scale_consistency(high, low[..., :5, :])
