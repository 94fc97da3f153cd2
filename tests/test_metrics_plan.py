"""Metric names: grammar, honesty, evaluation of a cell, and what is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hibench import features, metrics
from hibench.errors import SpecError
from hibench.metrics.evaluate import FeatureSet, evaluate
from hibench.metrics.plan import FAMILIES, honest_name, parse, requirements
from hibench.weights import CATALOG


class Fixed:
    name, resize = "inception-v3-compat", "none"

    def __init__(self, sha: str) -> None:
        self.weights_sha256 = sha


PUBLISHED = Fixed(CATALOG["inception-v3-compat"].sha256)


@pytest.mark.parametrize(
    ("text", "extractor", "sha", "name"),
    [
        ("fid", "inception-v3-compat", PUBLISHED.weights_sha256, "fid"),
        ("kid", "inception-v3-compat", PUBLISHED.weights_sha256, "kid"),
        ("precision", "inception-v3-compat", PUBLISHED.weights_sha256, "precision"),
        ("fid", "inception-v3-compat", "12" * 32, "fd@inception-v3-compat-12121212"),
        ("fid", "inception-v3-clean", PUBLISHED.weights_sha256, "clean-fid"),
        ("clean-fid", "scenes-clip", PUBLISHED.weights_sha256, "clean-fid"),
        ("recall", "inception-v3-clean", PUBLISHED.weights_sha256, "recall@inception-v3-clean"),
        ("fid", "scenes-clip", "34" * 32, "fd@scenes-clip"),
        ("kid", "scenes-clip", "34" * 32, "kd@scenes-clip"),
        ("fd@scenes-clip", "inception-v3-compat", "34" * 32, "fd@scenes-clip"),
        ("clip-score", "scenes-clip", "34" * 32, "clip-score@scenes-clip"),
        ("sfid", "scenes-clip", PUBLISHED.weights_sha256, "sfid"),
        ("fid-clip", "scenes-clip", CATALOG["clip-vit-b-32"].sha256, "fid-clip"),
        ("fid-clip", "scenes-clip", "56" * 32, "fid-clip@clip-vit-b-32-56565656"),
        ("pfid@32", "inception-v3-compat", PUBLISHED.weights_sha256, "pfid@32/128-x1-native-s0"),
        ("pfid@32/128", "scenes-clip", "34" * 32, "pfd@scenes-clip@32/128-x1-native-s0"),
        ("anyres-pfid@32", "scenes-clip", "34" * 32, "anyres-pfd@scenes-clip@32/128-x1-uniform-s0"),
        ("fid-crop@64", "inception-v3-compat", PUBLISHED.weights_sha256, "fid-crop@64/128-x10-native-s0"),
        ("seam@16", "scenes-clip", "", "seam@16"),
        ("swd", "scenes-clip", "", "swd"),
        ("scale-consistency@2", "scenes-clip", "", "scale-consistency@2"),
    ],
)
def test_a_number_carries_its_network_weights_and_crops(text: str, extractor: str, sha: str, name: str) -> None:
    assert honest_name(parse(text, extractor), Fixed(sha), (128, 128)) == name  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fidd", "unknown metric 'fidd'; did you mean 'fid'"),
        ("fid@scenes-clp", "no extractor named 'scenes-clp'; did you mean 'scenes-clip'"),
        ("fid@32", "fid takes no size"),
        ("seam", "say the period of the patch borders"),
        ("pfid@0", "at least 1 px"),
        ("pfid@64/32", "not larger than the image"),
        ("sfid@scenes-clip", "defined with inception-v3-compat"),
        ("scale-consistency@1", "the factor is a whole number from 2 on"),
    ],
)
def test_wrong_names_are_explained(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse(text)


def test_a_crop_metric_needs_a_size_that_fits() -> None:
    with pytest.raises(SpecError, match="say the crop size"):
        requirements(parse("pfid"))
    opened = features.open_extractors({"metrics": ["pfid@64", "pfid@16/64"]}, "cpu", (32, 32))
    reasons = list(opened.inapplicable.values())
    assert [("does not fit" in r, "not 64 px" in r) for r in reasons] == [(True, False), (False, True)]
    assert opened.missing == {}


def test_a_metric_without_meaning_here_is_inapplicable_and_not_missing() -> None:
    opened = features.open_extractors({"metrics": ["seam@32", "seam@16", "psnr"]}, "cpu", (32, 48))
    scores = evaluate(
        [parse(m) for m in ("seam@32", "seam@16", "psnr", "scale-consistency")], FeatureSet({}, 9, (32, 48)), None, opened
    )
    assert "have no border at a period of 32 px" in scores.inapplicable["seam@32"]
    assert "compares pairs" in scores.inapplicable["psnr"]
    assert set(scores.inapplicable) == {"seam@32", "psnr"}
    assert "measure them again" in scores.missing["seam@16"]
    assert "no images at 4·R were made" in scores.missing["scale-consistency"]


def test_every_family_can_be_computed_or_compares_pairs() -> None:
    from hibench.metrics.computing import COMPUTE
    from hibench.metrics.plan import FAMILY

    assert set(COMPUTE) == {"scale-consistency"} | {n for n, f in FAMILY.items() if f.source != "pairs"}
    assert set(FAMILIES) == {row["name"] for row in metrics.describe()}
    for row in metrics.describe():
        assert row["available"] or row["next"].startswith("hibench ")


class Plain:
    """A feature network on mean colours, with text."""

    name, weights_sha256, resize = "plain", "78" * 32, "none"
    outputs = {"embed": 12, "logits": 4}  # noqa: RUF012
    roles = {"features": "embed", "logits": "logits", "text": "embed"}  # noqa: RUF012

    def __init__(self, device: str = "cpu", weights: str | None = None) -> None: ...

    def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        x = torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 2).flatten(1)
        return {"embed": x, "logits": x[:, :4] * 3}

    def encode_text(self, prompts: list[str]) -> torch.Tensor:
        return torch.tensor([[len(p) * 1.0] * 12 for p in prompts])


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    known = {**features.EXTRACTORS, "plain": features.Entry("test_metrics_plan:Plain", None, "")}
    monkeypatch.setattr(features, "EXTRACTORS", known)
    for name in ("HIBENCH_CACHE", "TORCH_HOME", "HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    return tmp_path


EVERYTHING = [
    "fid",
    "kid",
    "is",
    "precision",
    "recall",
    "density",
    "coverage",
    "mind",
    "fid-inf",
    "clip-score",
    "pfid@16",
    "anyres-pfid@16",
    "fid-crop@16",
    "is-crop@16",
    "spectrum",
    "seam@16",
    "swd",
    "sfid",
    "clean-fid",
    "fid-clip",
    "fd-dinov2",
    "cmmd",
    "psnr",
]


def shards(folder: Path, settings: dict[str, object], size: int, seeds: range, per: int = 20) -> list[Path]:
    from hibench.references.scenes import render

    extractors = features.open_extractors(settings, "cpu", (size, size))
    paths = []
    for first in range(seeds.start, seeds.stop, per):
        part = range(first, min(first + per, seeds.stop))
        arrays = features.run(extractors, render(part, size), part)
        paths.append(folder / f"shard-{first}.npz")
        np.savez(paths[-1], seeds=np.array(part), bad_nan=0, bad_constant=1, **arrays)
    return paths


def test_a_cell_is_scored_from_its_shards_in_any_order(plain: Path) -> None:
    settings = {
        "metrics": EVERYTHING,
        "extractor": "plain",
        "reference": {"name": "scenes", "kind": "scenes", "seed": 0},
        "first_seed": 0,
    }
    cell = {"height": 32, "width": 32, "adapter": "real", "device": "cpu"}
    paths = shards(plain, settings, 32, range(32))
    quality = metrics.score_cell(paths, settings, cell, plain)
    assert quality == metrics.score_cell(paths[::-1], settings, cell, plain)
    assert set(quality["missing"]) == {"sfid", "clean-fid", "fid-clip", "fd-dinov2", "cmmd"}
    assert all("hibench fetch" in reason for reason in quality["missing"].values())
    assert list(quality["inapplicable"]) == ["psnr"]
    assert set(quality["values"]) == {
        *(
            f"{n}@plain"
            for n in ("fd", "kd", "is", "precision", "recall", "density", "coverage", "mind", "fd-inf", "clip-score")
        ),
        "pfd@plain@16/32-x1-native-s0",
        "anyres-pfd@plain@16/32-x1-uniform-s0",
        "fd-crop@plain@16/32-x10-native-s0",
        "is-crop@plain@16/32-x10-native-s0",
        "spectrum",
        "seam@16",
        "swd",
    }
    for name, entry in quality["values"].items():
        assert np.isfinite(entry["value"]), name
        assert entry["pm"] is None or entry["pm"] >= 0
        assert entry["pm_rule"]
        assert (entry["n"], entry["name"]) == (32, name)
    fd = quality["values"]["fd@plain"]
    assert fd["pm_rule"] == "95 % two-sided t interval by a jackknife over 8 disjoint seed blocks of samples and reference"
    assert (fd["extractor"], fd["weights_sha256"], fd["resize"], fd["reference"], fd["n_reference"]) == (
        "plain",
        "78" * 32,
        "none",
        "scenes",
        32,
    )
    assert quality["values"]["clip-score@plain"]["prompts_digest"]
    assert quality["values"]["seam@16"]["reference_value"] > 0
    assert quality["bad"] == {"nan": 0, "constant": 2}


def test_a_method_without_prompts_has_no_clip_score(plain: Path) -> None:
    settings = {"metrics": ["fid", "clip-score"], "extractor": "plain", "reference": {"kind": "scenes"}}
    cell = {"height": 16, "width": 16, "adapter": "toy", "device": "cpu"}
    paths = shards(plain, settings, 16, range(20))
    quality = metrics.score_cell(paths, settings, cell, plain)
    assert quality["missing"] == {}
    assert quality["inapplicable"] == {"clip-score": "clip-score: the method takes no prompt"}
    assert "clip-score@plain" in metrics.score_cell(paths, settings, {**cell, "prompts": ["a", "bb"]}, plain)["values"]


def test_a_broken_reference_leaves_the_metrics_missing_with_its_reason(plain: Path) -> None:
    settings = {"metrics": ["fid", "is"], "extractor": "plain", "reference": {"kind": "folder", "path": str(plain / "none")}}
    quality = metrics.score_cell(
        shards(plain, settings, 16, range(20)), settings, {"height": 16, "width": 16, "device": "cpu"}, plain
    )
    assert list(quality["values"]) == ["is@plain"]
    assert "not a folder of images" in quality["missing"]["fid"]


def test_features_that_are_not_finite_make_a_metric_missing_not_wrong(plain: Path) -> None:
    extractors = features.open_extractors({"metrics": ["fid@plain"]}, "cpu")
    x = np.random.default_rng(0).random((20, 12), dtype=np.float32)
    bad = x.copy()
    bad[3] = np.nan
    scores = evaluate(
        [parse("fid@plain")],
        FeatureSet({"plain/embed": bad}, 20, bad={"nan": 1, "constant": 0}),
        FeatureSet({"plain/embed": x}, 20),
        extractors,
    )
    assert scores.values == {}
    assert "NaN" in scores.missing["fid@plain"]
    few = FeatureSet({"plain/embed": x[:2]}, 2)
    entry = evaluate([parse("fid@plain")], few, FeatureSet({"plain/embed": x}, 20), extractors).values["fd@plain"]
    assert entry["pm"] is None
    assert entry["pm_rule"] == "too few images for a jackknife that leaves 2"


def test_shards_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", seeds=np.arange(2), **{"x/y": np.zeros((2, 1))})
    np.savez(tmp_path / "b.npz", seeds=np.arange(2, 4), **{"x/z": np.zeros((2, 1))})
    with pytest.raises(SpecError, match="shards hold different features"):
        metrics.merge_shards([tmp_path / "a.npz", tmp_path / "b.npz"])
    (tmp_path / "c.npz").write_bytes(b"cut")
    with pytest.raises(SpecError, match=r"c\.npz: not a readable shard"):
        metrics.merge_shards([tmp_path / "c.npz"])
    with pytest.raises(SpecError, match="no shard"):
        metrics.merge_shards([])
