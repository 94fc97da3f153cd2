"""Extractors: registry, one pass, batches of many sizes, crops, descriptors, and the cache of reference features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hibench import features
from hibench.errors import SpecError
from hibench.extractors.cache import cache_key
from hibench.extractors.crops import CropExtractor, CropPlan
from hibench.extractors.pixels import Spectrum, SwdPatches
from hibench.references import FolderReference, ScenesReference


class Mean:
    """Mean colour and its negative, with a resize step of its own."""

    name, weights_sha256, resize = "mean", "0" * 64, "none"
    outputs = {"colour": 3}  # noqa: RUF012
    roles = {"features": "colour"}  # noqa: RUF012

    def __init__(self, device: str = "cpu", weights: str | None = None) -> None:
        self.batches: list[int] = []

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images.float(), 2)

    def network(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        self.batches.append(len(x))
        return {"colour": x.mean((2, 3))}

    def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.network(self.prepare(images))


def noise(n: int, height: int = 8, width: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, height, width), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_run_names_arrays_by_extractor_and_layer() -> None:
    x = noise(4)
    found = features.run([Mean()], x)
    assert list(found) == ["mean/colour"]
    assert found["mean/colour"].dtype == np.float32
    assert np.allclose(found["mean/colour"], x.float().mean((2, 3)).numpy(), atol=1e-4)


def test_a_collector_joins_sizes_into_batches_and_keeps_the_order() -> None:
    extractor = Mean()
    collector = features.Collector([extractor], batch=3)
    parts = [noise(1, 8, 8, 0), noise(1, 12, 6, 1), noise(2, 4, 4, 2), noise(3, 8, 8, 3)]
    for part in parts:
        collector.add(part)
    found = collector.finish()["mean/colour"]
    assert extractor.batches == [3, 3, 1]
    assert np.allclose(found, np.concatenate([p.float().mean((2, 3)).numpy() for p in parts]), atol=1e-4)
    assert collector.n == 7


def test_constant_images_and_nan_are_counted() -> None:
    x = noise(4)
    x[1] = 7
    x[2, 0], x[2, 1], x[2, 2] = 1, 2, 3  # one colour, not grey
    assert features.count_bad(x) == (0, 2)
    y = x.float()
    y[0, 0, 0, 0] = float("nan")
    assert features.count_bad(y)[0] == 1


def test_an_unknown_extractor_is_corrected_and_an_own_one_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no extractor named 'scenes-clp'; did you mean 'scenes-clip'"):
        features.get_extractor("scenes-clp")
    file = tmp_path / "own.py"
    file.write_text(
        "class Own:\n    name, weights_sha256, resize, outputs, roles = 'own', '', 'none', {}, {}\n"
        "    def __init__(self, device, weights): pass\n"
        "class Bad:\n    def __init__(self, device, weights): pass\n"
    )
    assert features.get_extractor(f"{file}:Own").name == "own"
    with pytest.raises(SpecError, match="has no attribute name, weights_sha256"):
        features.get_extractor(f"{file}:Bad")
    with pytest.raises(SpecError, match="has no class Other"):
        features.get_extractor(f"{file}:Other")
    with pytest.raises(SpecError, match="no file"):
        features.get_extractor("nothing.py:Own")


def test_missing_weights_do_not_stop_the_other_extractors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HIBENCH_CACHE", "TORCH_HOME", "HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setattr(features, "EXTRACTORS", {**features.EXTRACTORS, "mean": features.Entry("test_features:Mean", None, "")})
    settings = {"metrics": ["fid@mean", "fid", "spectrum", "sfid"], "extractor": "inception-v3-compat"}
    opened = features.open_extractors(settings, "cpu", (16, 16))
    assert [e.name for e in opened] == ["mean", "spectrum"]
    assert list(opened.missing) == ["inception-v3-compat"]
    assert opened.missing["inception-v3-compat"].endswith("hibench fetch inception-v3-compat")
    assert {row["name"]: row["available"] for row in features.describe()}["vgg16"] is False


class Counting(ScenesReference):
    rendered = 0

    def images(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        Counting.rendered += 1
        return super().images(*args, **kwargs)


def test_reference_features_are_made_once_per_content_and_resolution(tmp_path: Path) -> None:
    Counting.rendered = 0

    def get(reference: ScenesReference, size: int = 16) -> np.ndarray:
        return features.reference_features(reference, [Mean()], (size, size), tmp_path)["mean/colour"]

    first = get(Counting(0, 5))
    assert first.shape == (5, 3)
    assert np.array_equal(get(Counting(0, 5)), first)
    assert Counting.rendered == 1
    get(Counting(1, 5)), get(Counting(0, 6)), get(Counting(0, 5), 12)
    assert Counting.rendered == 4
    for path in tmp_path.rglob("*.npz"):
        path.write_bytes(b"damaged")
    assert np.array_equal(get(Counting(0, 5)), first)


def test_the_cache_key_follows_everything_a_number_depends_on(tmp_path: Path) -> None:
    Image.fromarray(noise(1)[0].permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    extractor = Mean()
    keys = {cache_key(FolderReference(tmp_path), extractor, None)}
    for attribute, value in (("name", "other"), ("weights_sha256", "1" * 64), ("resize", "tf1")):
        changed = Mean()
        setattr(changed, attribute, value)
        keys.add(cache_key(FolderReference(tmp_path), changed, None))
    keys.add(cache_key(FolderReference(tmp_path), extractor, (8, 8)))
    keys.add(cache_key(FolderReference(tmp_path), CropExtractor(extractor, CropPlan(4)), None))
    keys.add(cache_key(FolderReference(tmp_path), CropExtractor(extractor, CropPlan(4, seed=1)), None))
    Image.fromarray(noise(1, seed=5)[0].permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    keys.add(cache_key(FolderReference(tmp_path), extractor, None))
    assert len(keys) == 8


def test_crops_depend_on_plan_and_id_alone() -> None:
    x = noise(3, 20, 30)
    plan = CropPlan(6, 4)
    whole = plan.cut(x, [5, 6, 7])
    assert whole.shape == (12, 3, 6, 6)
    assert torch.equal(whole[4:8], plan.cut(x[1:2], [6]))
    assert not torch.equal(whole[4:8], CropPlan(6, 4, seed=1).cut(x[1:2], [6]))
    _, _, top, left = plan.places(6, 20, 30)[0]
    assert torch.equal(whole[4], x[1, :, top : top + 6, left : left + 6])
    tops = [plan.places(i, 20, 30)[0][2] for i in range(400)]
    assert {min(tops), max(tops)} == {0, 14}  # both ends are reached
    with pytest.raises(SpecError, match="does not fit a 30x20 px image"):
        CropPlan(21).cut(x, [1, 2, 3])


def test_uniform_scale_crops_cover_the_scales_evenly() -> None:
    plan = CropPlan(8, 1, "uniform")
    sizes = [plan.places(i, 32, 48)[0][:2] for i in range(2000)]
    shorter = [min(s) for s in sizes]
    assert (min(shorter), max(shorter)) == (8, 32)
    assert np.mean(shorter) == pytest.approx(20, abs=0.7)
    assert all(abs(w / h - 1.5) < 0.07 for h, w in sizes)
    assert plan.cut(noise(2, 32, 48), [1, 2]).shape == (2, 3, 8, 8)


def test_crop_features_are_rows_per_image() -> None:
    found = features.run([CropExtractor(Mean(), CropPlan(4, 5))], noise(3), ids=[0, 1, 2])
    assert found["mean+crop4-x5-native-s0/colour"].shape == (3, 5, 3)
    with pytest.raises(SpecError, match="need each image's id"):
        features.run([CropExtractor(Mean(), CropPlan(4))], noise(1))


def test_descriptors_without_weights_have_their_shapes_and_limits() -> None:
    found = features.run([Spectrum((40, 64)), SwdPatches((40, 64), 16)], noise(2, 40, 64), ids=[0, 1])
    assert found["spectrum/power"].shape == (2, 21)
    assert {k: v.shape for k, v in found.items() if k.startswith("swd")} == {
        f"swd16/level-{s}": (2, 16 * 147) for s in (40, 20)
    }
    with pytest.raises(SpecError, match="smaller than the pyramid's lowest level"):
        features.run([SwdPatches((8, 8))], noise(1), ids=[0])


def test_a_large_image_passes_in_bounded_memory() -> None:
    x = noise(1, 64, 64).repeat(1, 1, 64, 64)  # 4096²
    assert features.run([Mean()], x)["mean/colour"].shape == (1, 3)
