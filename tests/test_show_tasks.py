"""show --task: what a method can do besides generating, its rows drawn with labels; train --variant."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hibench import show
from hibench.cli import main
from hibench.errors import SpecError

LARGE = np.array([200, 9, 9], np.uint8).reshape(1, 3, 1, 1)
SOURCE = """
import torch
from hibench.toy import Toy

class Mine(Toy):
    tasks = ("inpainting", "outpainting")

    def run_task(self, task, resolution, seeds, *, steps=None):
        assert (task, resolution, list(seeds), steps) == ("inpainting", (16, 32), [3, 4], 7)
        small = torch.zeros(2, 3, 8, 16, dtype=torch.uint8)
        large = torch.tensor([200, 9, 9], dtype=torch.uint8).view(1, 3, 1, 1).expand(2, 3, 16, 32)
        return [("low", small), ("high", large)]

    @classmethod
    def train(cls, out, *, variant="main", **more):
        print("variant", variant, out.name)

class Plain(Toy):
    @classmethod
    def train(cls, out, *, device, resume):
        raise AssertionError
"""


@pytest.fixture
def method(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(SOURCE)
    return f"{tmp_path / 'mine.py'}:Mine"


def test_a_task_is_drawn(method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sub" / "rows.png"
    args = ["--task", "inpainting", "--resolution", "16x32", "--count", "2", "--seed", "3", "--steps", "7", "--out", str(out)]
    assert main(["show", method, *args, "--device", "cpu"]) == 0
    assert capsys.readouterr().out == f"{out}: inpainting, 2 rows of 2 images\n"
    pixels = np.asarray(Image.open(out))
    assert (pixels == [200, 9, 9]).all(-1).sum() == 2 * 16 * 32             # the large ones 1:1
    assert (pixels == 0).all(-1).sum() == 2 * 16 * 32               # the small ones enlarged to their size


@pytest.mark.parametrize(("task", "said"), [
    ("inpaintin", "no task 'inpaintin'; did you mean 'inpainting'?; it has: inpainting, outpainting"),
    ("fly", "no task 'fly'; it has: inpainting, outpainting"),
])
def test_an_unknown_task_says_which_there_are(method: str, task: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", method, "--task", task, "--device", "cpu"]) == 2
    assert said in capsys.readouterr().err


def test_what_does_not_go_together(method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "toy", "--task", "inpainting"]) == 2
    assert "toy has no task 'inpainting'; it has none" in capsys.readouterr().err
    assert main(["show", method, "--task", "inpainting", "--sparsity", "0.5"]) == 2
    assert "--sparsity does not go together with --task" in capsys.readouterr().err
    assert main(["show", method, "--task", "inpainting", "--out", "a.txt"]) == 2
    assert "unknown picture format '.txt'" in capsys.readouterr().err
    with pytest.raises(SpecError, match="0 images"):
        show.run_show_task(method, "inpainting", resolution=(8, 8), count=0, seed=0, out=tmp_path / "a.png")


def test_rows_of_unequal_shape_are_centred_in_one_size() -> None:
    sheet = show.labelled_rows([("a", np.zeros((1, 3, 4, 4), np.uint8)), ("b", np.tile(LARGE, (3, 1, 8, 16)))])
    pixels = np.asarray(sheet)
    assert (pixels == [200, 9, 9]).all(-1).sum() == 3 * 8 * 16
    assert (pixels == 0).all(-1).sum() == 16 * 16


def test_train_passes_the_variant_on(method: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                                     capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", method, "--variant", "8x", "--out", "w", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.startswith("variant 8x w\n")
    assert main(["train", method.replace("Mine", "Plain"), "--variant", "8x"]) == 2
    assert "--variant 8x" in (said := capsys.readouterr().err)
    assert "has no variants" in said
