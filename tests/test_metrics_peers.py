"""What was seen to go wrong in the libraries that metrics usually come from goes right here; more of it is in parity."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from inception_weights import make
from PIL import Image

from hibench.errors import MissingWeights, SpecError
from hibench.extractors.cache import keep
from hibench.extractors.contract import Extractors
from hibench.extractors.inception import open_compat
from hibench.metrics import frechet, kernel, neighbours, pairs, scores, sliced
from hibench.metrics.evaluate import FeatureSet, evaluate
from hibench.metrics.plan import parse
from hibench.score import score_folders


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def rows(seed: int, *shape: int) -> np.ndarray:
    return rng(seed).standard_normal(shape).astype(np.float32)


class Named:
    """An extractor whose features are given."""

    name, weights_sha256, resize = "own.py:Named", "12" * 32, "none"
    outputs = {"embed": 6, "logits": 5}  # noqa: RUF012
    roles = {"features": "embed", "logits": "logits"}  # noqa: RUF012


def value(metric: str, samples: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> dict[str, object]:
    """The value object of one metric over given features."""
    key = f"own.py:Named{'+crop4-x10-native-s0' if 'crop' in metric else ''}"

    class Made(Named):
        name = key

    def of(some: dict[str, np.ndarray]) -> FeatureSet:
        return FeatureSet({f"{key}/{k}": v for k, v in some.items()}, len(next(iter(some.values()))))

    opened = Extractors({key: Made()}, {}, set(), {})  # type: ignore[dict-item]
    found = evaluate([parse(metric, "own.py:Named")], of(samples), of(reference), opened)
    assert found.missing == {}
    return next(iter(found.values.values()))


def test_equal_images_give_equal_numbers_twice() -> None:
    """clean-fid's KID, torchmetrics' KID and IS, and dgm-eval's FID∞ draw subsets without a seed: two calls differ."""
    x, y = rows(1, 300, 8), rows(2, 260, 8) + 0.3
    for measure in (lambda: kernel.kernel_distance(x, y, 20, 50), lambda: scores.inception_score(x),
                    lambda: frechet.frechet_infinity(x, frechet.fit(y)), lambda: sliced.mind(x, y)):
        torch.manual_seed(int(rng(0).integers(1 << 30)))
        np.random.seed(1)
        first = measure()
        np.random.seed(2)
        torch.manual_seed(2)
        assert measure() == first


def test_the_inception_score_is_of_the_samples_and_of_the_logits() -> None:
    """dgm-eval scores the real set; torchmetrics with FeatureShare scores FID's features."""
    samples = {"embed": rows(1, 40, 6), "logits": rows(2, 40, 5) * 4}
    first = value("is", samples, {"embed": rows(3, 40, 6), "logits": rows(4, 40, 5)})
    assert first["value"] == scores.inception_score(samples["logits"])[0]
    assert value("is", {**samples, "embed": rows(9, 40, 6)}, {"embed": rows(5, 30, 6), "logits": rows(6, 30, 5)}) == first
    assert first["n_reference"] is None


def test_precision_is_of_the_samples_and_recall_of_the_reference() -> None:
    """torch-fidelity's PRC took its two inputs the other way round (its issues 58 and 66)."""
    spread, narrow = rows(1, 200, 4) * 3, rows(2, 200, 4) * 0.3
    found = neighbours.neighbours(narrow, spread)         # few modes, all of them real
    assert found.precision > 0.9
    assert found.recall < 0.3


def test_a_deviation_over_crops_is_by_image() -> None:
    """Ten crops of one image are no ten images: with equal crops the ± is that of one crop, not smaller by √10."""
    x, y = rows(1, 64, 1, 6), rows(2, 64, 1, 6) + 0.5
    ten = [{"embed": np.repeat(v, 10, axis=1)} for v in (x, y)]
    one = value("fid", {"embed": x[:, 0]}, {"embed": y[:, 0]})
    crops = value("fid-crop@4", *ten)
    assert crops["value"] == pytest.approx(one["value"], rel=0.02)
    assert crops["pm"] == pytest.approx(one["pm"], rel=0.05)  # type: ignore[arg-type]
    assert crops["n"] == 64
    as_images = value("fid", *({"embed": v["embed"].reshape(-1, 6)} for v in ten))
    assert as_images["pm"] < one["pm"] * 1.2              # what a count of crops would have said, at best


def folder(root: Path, n: int, seed: int) -> Path:
    root.mkdir()
    for i in range(n):
        Image.fromarray(rng(seed + i).integers(0, 256, (20, 20, 3), np.uint8)).save(root / f"{i}.png")
    return root


def test_a_weights_file_goes_to_its_own_network_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch-fidelity loads the one path into Inception and into VGG16, and crashes."""
    for name in ("HIBENCH_CACHE", "TORCH_HOME", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    a, b, weights = folder(tmp_path / "a", 2, 0), folder(tmp_path / "b", 2, 50), make(tmp_path / "weights.pth")
    values, missing = score_folders(a, b, metrics="fid,precision@vgg16", weights=weights, device="cpu")
    assert list(values) == ["fid"]
    assert missing["precision@vgg16"].endswith("hibench fetch vgg16")


def test_features_are_float32_and_sums_float64(tmp_path: Path) -> None:
    """torch-fidelity takes float64 for its network and computes in float32; means of many float32 rows drift in float32."""
    network = open_compat("cpu", str(make(tmp_path / "w.pth")))
    assert network(torch.zeros(1, 3, 9, 9, dtype=torch.uint8))["2048"].dtype == torch.float32
    x = np.full((200_000, 2), 16_777.217, np.float32) + rows(1, 200_000, 2)
    fitted = frechet.fit(x)
    assert fitted.mean.dtype == torch.float64
    assert np.abs(fitted.mean.numpy() - x.astype(np.float64).mean(0)).max() < 1e-9


def test_a_cache_that_cannot_be_written_costs_time_and_no_number(tmp_path: Path) -> None:
    """clean-fid keeps statistics in site-packages and fails where that is read-only."""
    (tmp_path / "file").write_text("in the way")
    own = tmp_path / "own.py"
    own.write_text(
        "import torch\nclass Own:\n    name, weights_sha256, resize = 'own', 'ab' * 32, 'area-2'\n"
        "    outputs, roles = {'embed': 12}, {'features': 'embed'}\n    def __init__(self, device, weights): pass\n"
        "    def __call__(self, images):\n"
        "        return {'embed': torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 2).flatten(1)}\n")
    a, b = folder(tmp_path / "a", 20, 0), folder(tmp_path / "b", 20, 50)
    with pytest.warns(UserWarning, match=r"cannot be kept .* set HIBENCH_CACHE"):
        values, _ = score_folders(a, b, metrics="fid", extractor=f"{own}:Own", device="cpu", cache=tmp_path / "file")
    kept, _ = score_folders(a, b, metrics="fid", extractor=f"{own}:Own", device="cpu", cache=tmp_path / "cache")
    assert values == kept
    assert not list((tmp_path / "cache").rglob("*.part*"))


def test_a_full_disk_leaves_no_half_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(part: Path, **arrays: object) -> None:
        Path(part).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.warns(UserWarning, match="No space left"):
        keep(tmp_path / "x.npz", {"a": np.zeros(3)})
    assert list(tmp_path.iterdir()) == []


def test_what_lpips_cannot_compare_is_said() -> None:
    """The lpips package crashes on 16 px images, and takes images in 0..1 for images in -1..1: another distance, no word."""
    small = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    with pytest.raises(SpecError, match="16x16 px is too small; it needs 32 px"):
        pairs.lpips_distance(small, small, None)
    unit = torch.zeros(1, 3, 64, 64)
    with pytest.raises(SpecError, match="must be uint8 in grey levels"):
        pairs.lpips_distance(unit, unit, None)
    with pytest.raises(SpecError, match="pairs of one size"):
        pairs.psnr(unit, torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize("name", ["inception-v3-compat", "clip-vit-b-32", "dinov2-vit-s-14", "vgg16"])
def test_no_network_is_ever_random_because_its_weights_are_missing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                                   no_network: None) -> None:
    """open_clip warns in its log and goes on with random weights; the others download or die in the middle of a run."""
    from hibench.features import get_extractor

    for variable in ("HIBENCH_CACHE", "TORCH_HOME", "HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
    with pytest.raises(MissingWeights, match=f"hibench fetch {name}$"):
        get_extractor(name)
