"""score --reconstruction: the first stages of the methods, against images that keep their names and sizes."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hibench import reconstruct, weights, worker
from hibench.cli import main
from hibench.errors import SpecError
from hibench.job import CellJob, Skip
from hibench.metrics import pairs, score_cell
from hibench.references import ScenesReference
from hibench.spec import Quality
from methods.ldm import LDM


def test_method_and_weights() -> None:
    assert reconstruct.parse_method("ldm") == ("ldm", "reference")
    assert reconstruct.parse_method("ldm=a=b.ckpt") == ("ldm", "a=b.ckpt")
    with pytest.raises(SpecError, match="say a method"):
        reconstruct.parse_method("=x")


def test_scenes_through_the_first_stage_of_the_ldm(capsys) -> None:
    assert main(["score", "scenes", "--reconstruction", "ldm", "--count", "12", "--metrics", "psnr,ssim,fid", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)["metrics"]
    assert values["psnr"]["n"] == 12
    assert 26 < values["psnr"]["value"] < 34               # 29.4 dB over 200 held-out scenes, see training-first-stage.json
    assert 0.8 < values["ssim"]["value"] < 1
    assert "fd@scenes-clip" in values


def test_pictures_pair_up_and_are_what_the_adapter_gives(tmp_path: Path) -> None:
    source, size = reconstruct.open_images("scenes", 3, None)
    before, after = reconstruct.reconstruct("ldm", source, size, tmp_path, batch=2)
    for folder in (before, after):
        assert sorted(p.name for p in folder.iterdir()) == [f"{i:06d}.png" for i in range(3)]
    images = torch.cat(list(source.images()))
    adapter = LDM()
    expected = adapter.reconstruct(images[2:])[0].permute(1, 2, 0).numpy()
    assert np.array_equal(np.array(Image.open(before / "000002.png")), images[2].permute(1, 2, 0).numpy())
    assert np.abs(np.array(Image.open(after / "000002.png")).astype(int) - expected).max() <= 1


def test_what_cannot_be_reconstructed_is_one_line(tmp_path: Path, capsys) -> None:
    for i, side in enumerate((16, 20)):
        Image.new("RGB", (side, side), (i * 90, 40, 60)).save(tmp_path / f"{i}.png")
    assert main(["score", str(tmp_path), "--reconstruction", "ldm"]) == 2
    assert "several sizes; say one with --resolution" in capsys.readouterr().err
    assert main(["score", str(tmp_path), "--reconstruction", "real", "--resolution", "16"]) == 2
    assert "no first stage that reconstructs" in capsys.readouterr().err
    assert main(["score", str(tmp_path), "--reconstruction", "ldm", "--resolution", "10"]) != 0
    assert "no multiple of the first stage's factor 4" in capsys.readouterr().err


# -- quality cells with `reconstruct: true` ------------------------------------------------------------------------------


def quality_cell(tmp_path: Path, method: str, **settings: object) -> CellJob:
    """An opened job of a cell of six images in shards of four, as the runner would give it."""
    cell = {"method": method, "adapter": method, "kind": "quality", "height": 64, "width": 64, "device": "cpu", "settings": {
        "images": 6, "reference": {"kind": "scenes", "seed": 0}, "extractor": "scenes-clip", "metrics": ["fid", "psnr", "ssim"],
        "batch": 2, "reconstruct": True, **settings}}
    return CellJob({"cell": cell, "out": str(tmp_path), "shards": [[0, 4], [4, 2]]})


def test_a_cell_pairs_every_reconstruction_with_its_original(tmp_path: Path) -> None:
    job = quality_cell(tmp_path, "ldm")
    assert worker.run_quality(job)["status"] == "ok"
    shards = [tmp_path / "shard-4-2.npz", tmp_path / "shard-0-4.npz"]
    found = score_cell(shards, job.settings, job.cell, cache=tmp_path)["values"]
    truth = torch.cat(list(ScenesReference(0, 6).images()))
    made = LDM().reconstruct(truth)
    assert found["psnr"]["value"] == pytest.approx(float(pairs.psnr(made, truth).mean()), abs=0.02)
    assert found["ssim"]["value"] == pytest.approx(float(pairs.ssim(made, truth).mean()), abs=1e-3)
    assert (found["psnr"]["n"], found["psnr"]["reference"], found["psnr"]["unit"]) == (6, "scenes", "dB")
    assert "fd@scenes-clip" in found


def test_pair_metrics_wait_for_their_network(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HIBENCH_WEIGHTS", str(tmp_path / "none"))
    monkeypatch.setattr(weights, "find", lambda name: None)
    job = quality_cell(tmp_path, "ldm", metrics=["psnr", "psim"], images=2)
    job.job["shards"] = [[0, 2]]
    worker.run_quality(job)
    assert worker.shard_lacks(tmp_path / "shard-0-2.npz", 0, 2) == {"psim"}      # so that it is made again once vgg16 is there
    found = score_cell([tmp_path / "shard-0-2.npz"], job.settings, job.cell, cache=tmp_path)
    assert "hibench fetch vgg16" in found["missing"]["psim"]
    assert set(found["values"]) == {"psnr"}


def test_cells_that_cannot_reconstruct_say_so(tmp_path: Path) -> None:
    with pytest.raises(Skip, match="gaussian has no first stage"):
        quality_cell(tmp_path, "gaussian").open()
    job = quality_cell(tmp_path, "ldm", images=3, reference={"kind": "scenes", "seed": 0, "images": 3})
    job.open()
    with pytest.raises(SpecError, match="has 3 images, and 3 are asked for"):
        job.make([2, 3])


def test_other_cells_are_what_they_were() -> None:
    assert "reconstruct" not in {k for k, v in asdict(Quality()).items() if v is not None}      # nor is it in their ids
