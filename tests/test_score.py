"""`hibench score`: two folders to one table or one JSON object."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from inception_weights import make
from PIL import Image

from hibench.errors import EXIT_FAILED, EXIT_OK, SpecError
from hibench.extractors.inception import open_compat
from hibench.metrics.frechet import frechet_distance
from hibench.score import run_score, score_folders

OWN = """
import torch
class Own:
    name, weights_sha256, resize = "own", "ab" * 32, "area-2"
    outputs, roles = {"embed": 12}, {"features": "embed"}
    def __init__(self, device, weights): pass
    def __call__(self, images):
        return {"embed": torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 2).flatten(1)}
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HIBENCH_CACHE", "TORCH_HOME", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))


def folder(root: Path, n: int, seed: int = 0, size: tuple[int, int] = (48, 48), gain: float = 1.0) -> Path:
    root.mkdir()
    generator = torch.Generator().manual_seed(seed)
    for i in range(n):
        x = torch.nn.functional.interpolate(torch.rand(1, 3, 6, 6, generator=generator) * gain, size, mode="bicubic").clamp(
            0, 1
        )
        Image.fromarray((x[0] * 255).byte().permute(1, 2, 0).numpy()).save(root / f"{i:03}.png")
    return root


@pytest.fixture
def own(tmp_path: Path) -> str:
    (tmp_path / "own.py").write_text(OWN)
    return f"{tmp_path / 'own.py'}:Own"


def test_json_holds_every_metric_and_nothing_else_on_stdout(
    tmp_path: Path, own: str, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = folder(tmp_path / "a", 24, 0), folder(tmp_path / "b", 30, 1, gain=0.8)
    metrics = "fid,kid,precision,recall,density,coverage,mind,pfid,spectrum,swd,seam@16"
    assert run_score(a, b, metrics=metrics, extractor=own, crop=16, as_json=True, device="cpu") == EXIT_OK
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert list(found) == ["metrics"]
    assert len(found["metrics"]) == 11
    name = f"fd@{own}"
    assert {"value", "pm", "n", "extractor", "weights_sha256", "resize", "n_reference", "reference_digest"} <= set(
        found["metrics"][name]
    )
    assert (found["metrics"][name]["n"], found["metrics"][name]["n_reference"]) == (24, 30)
    assert f"pfd@{own}@16/48-x1-native-s0" in found["metrics"]
    assert printed.err == ""


def test_equal_folders_have_distance_zero_and_all_recall(tmp_path: Path, own: str) -> None:
    a = folder(tmp_path / "a", 20)
    values, missing = score_folders(a, a, metrics="fid,precision,recall", extractor=own, device="cpu")
    assert missing == {}
    assert [abs(v["value"]) < 1e-8 if k.startswith("fd") else v["value"] == 1 for k, v in values.items()] == [True] * 3


def test_a_second_score_reads_the_reference_from_the_cache(tmp_path: Path, own: str) -> None:
    a, b = folder(tmp_path / "a", 8), folder(tmp_path / "b", 8, 1)
    first = score_folders(a, b, metrics="fid", extractor=own, device="cpu", cache=tmp_path / "cache")
    entries = list((tmp_path / "cache").rglob("*.npz"))
    assert len(entries) == 1
    with np.load(entries[0]) as held:
        doubled = {k: held[k] + 1 for k in held.files}
    np.savez(entries[0], **doubled)  # a changed cache changes the number: it was read
    assert score_folders(a, b, metrics="fid", extractor=own, device="cpu", cache=tmp_path / "cache") != first
    Image.fromarray(np.zeros((48, 48, 3), np.uint8)).save(b / "000.png")  # a changed reference makes a new entry
    score_folders(a, b, metrics="fid", extractor=own, device="cpu", cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").rglob("*.npz"))) == 2


def test_missing_weights_are_told_once_with_the_command_and_exit_3(
    tmp_path: Path, own: str, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = folder(tmp_path / "a", 8), folder(tmp_path / "b", 8, 1)
    code = run_score(a, b, metrics=f"fid,kid,fid@{own}", extractor="inception-v3-compat", device="cpu")
    out, err = capsys.readouterr()
    assert code == EXIT_FAILED
    assert out.startswith("fd@")
    assert err.count("\n") == 1
    assert err.startswith(
        "missing: fid, kid: inception-v3-compat: weights weights-inception-2015-12-05-6726825d.pth are not on this machine"
    )
    assert err.rstrip().endswith("hibench fetch inception-v3-compat")


def test_a_given_weights_file_is_used_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = make(tmp_path / "random.pth")
    a, b = folder(tmp_path / "a", 4), folder(tmp_path / "b", 3, 1, size=(40, 56))
    assert run_score(a, b, metrics="fid", weights=weights, as_json=True, device="cpu") == EXIT_OK
    found = json.loads(capsys.readouterr().out)["metrics"]["fid"]
    assert found["extractor"] == "inception-v3-compat"
    assert (
        found["name"] == f"fd@inception-v3-compat-{found['weights_sha256'][:8]}"
    )  # not the published weights: not `fid` in a table
    network, sets = open_compat("cpu", str(weights)), []
    for root in (a, b):
        x = torch.stack([torch.tensor(np.asarray(Image.open(p))).permute(2, 0, 1) for p in sorted(root.iterdir())])
        sets.append(network(x)["2048"])
    assert found["value"] == pytest.approx(frechet_distance(*sets), rel=1e-6)
    (tmp_path / "cut.pth").write_bytes(weights.read_bytes()[:5000])
    assert run_score(a, b, metrics="fid", weights=tmp_path / "cut.pth", device="cpu") == EXIT_FAILED
    assert "cut.pth is not a readable weights file" in capsys.readouterr().err
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "keys.pth")
    assert run_score(a, b, metrics="fid", weights=tmp_path / "keys.pth", device="cpu") == EXIT_FAILED
    assert "keys.pth has wrong keys" in capsys.readouterr().err


def test_pairs_are_compared_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = folder(tmp_path / "a", 4), folder(tmp_path / "b", 4, 1)
    values, missing = score_folders(a, b, metrics="psnr,ssim,lpips", device="cpu")
    assert sorted(values) == ["psnr", "ssim"]
    assert missing["lpips"].endswith("hibench fetch alexnet")
    assert 0 < values["psnr"]["value"] < 20
    assert "equal to the last bit" in score_folders(a, a, metrics="psnr", device="cpu")[1]["psnr"]
    (b / "003.png").rename(b / "004.png")
    with pytest.raises(SpecError, match=r"2 images have no partner of the same name, e.g. '003'"):
        score_folders(a, b, metrics="psnr", device="cpu")
    with pytest.raises(SpecError, match="compares pairs of images"):
        score_folders(a, "scenes", metrics="psnr", device="cpu")


def test_scale_consistency_pairs_a_large_image_with_its_small_self(tmp_path: Path) -> None:
    large, small = folder(tmp_path / "large", 4, size=(96, 64)), tmp_path / "small"
    small.mkdir()
    for path in large.iterdir():
        Image.open(path).resize((16, 24), Image.Resampling.BOX).save(small / path.name)
    values, _ = score_folders(large, small, metrics="scale-consistency", device="cpu")
    assert values["scale-consistency"]["value"] > 55
    assert values["scale-consistency"]["pm"] is not None


def test_mixed_sizes_grey_alpha_and_one_pixel_images_are_scored(
    tmp_path: Path, own: str, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = folder(tmp_path / "a", 8), folder(tmp_path / "b", 8, 1, size=(20, 70))
    Image.new("L", (1, 1), 77).save(a / "one.png")
    Image.new("RGBA", (3, 5), (10, 20, 30, 99)).save(a / "alpha.png")
    assert run_score(a, b, metrics="fid,spectrum", extractor=own, device="cpu") == EXIT_FAILED
    out, err = capsys.readouterr()
    assert "n=10/8" in out
    assert "note: 2 images of one colour" in out
    assert "missing: spectrum: spectrum: the images must have one size" in err
    with pytest.raises(SpecError, match="several sizes"):
        score_folders(a, "scenes", metrics="fid", extractor=own, device="cpu")


def test_one_image_is_a_clear_error_not_a_crash(tmp_path: Path, own: str) -> None:
    a, b = folder(tmp_path / "a", 1), folder(tmp_path / "b", 8, 1)
    values, missing = score_folders(a, b, metrics="fid,kid,precision,is@scenes-clip", extractor=own, device="cpu")
    assert values == {}
    assert "at least 2 images, got 1" in missing["fid"]
    assert "at least 2 images" in missing["kid"]
    assert "more than 3 images" in missing["precision"]


def test_scenes_are_a_reference_and_prompts_are_counted(tmp_path: Path, own: str) -> None:
    a = folder(tmp_path / "a", 6, size=(16, 16))
    values, _ = score_folders(a, "scenes", metrics="fid", extractor=own, device="cpu")
    assert values[f"fd@{own}"]["reference"] == "scenes"
    (tmp_path / "prompts.txt").write_text("one\ntwo\n")
    _, missing = score_folders(a, "scenes", metrics=f"clip-score@{own}", device="cpu", prompts=tmp_path / "prompts.txt")
    assert "has no text encoder" in missing[f"clip-score@{own}"]
    _, missing = score_folders(a, "scenes", metrics=f"clip-score@{own}", device="cpu")
    assert "no prompts were given" in missing[f"clip-score@{own}"]


def test_wrong_requests_are_refused_before_any_image_is_read(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="did you mean 'fid'"):
        score_folders(tmp_path / "none", "scenes", metrics="fidd", device="cpu")
    with pytest.raises(SpecError, match="not a folder"):
        score_folders(tmp_path / "none", "scenes", metrics="fid", device="cpu")
    with pytest.raises(SpecError, match="at least 1 px"):
        score_folders(tmp_path / "none", "scenes", metrics="fid", crop=0, device="cpu")
