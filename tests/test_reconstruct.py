"""score --reconstruction: the first stages of the methods, against images that keep their names and sizes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hibench import reconstruct
from hibench.cli import main
from hibench.errors import SpecError
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
