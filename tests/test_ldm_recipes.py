"""Recipes of published LDMs: what each says, and that sharing a batch between passes changes nothing that is learned."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from hibench import training
from hibench.cli import main
from hibench.errors import MissingWeights, SpecError
from methods.ldm import LDM, configs, recipe_loop, recipes
from methods.ldm.model import LatentDiffusion
from methods.nn.autoencoder import build_first_stage


def params_of(extra: int = 0, classes: int = 0, kl: bool = False) -> dict:
    """A network of the smallest size, at 16 px, that is conditioned in one of the paper's ways."""
    params = configs.model("kl-f4" if kl else "vq-f4", 4, 3, 32, [1, 2], [2], extra_in=extra, classes=classes, class_dim=8)
    params["unet_config"]["params"]["num_res_blocks"] = 1
    first = params["first_stage_config"]["params"]
    first["ddconfig"] |= {"ch": 32, "ch_mult": [1, 1, 1], "num_res_blocks": 1, "resolution": 16}
    if not kl:
        first["n_embed"] = 16
    return params | ({"unconditional_class": classes - 1} if classes else {}) | ({"scale_by_std": True} if kl else {})


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder of images in two classes, and a function that trains a small network on them."""
    draw = np.random.default_rng(0)
    for number in range(8):
        file = tmp_path / "images" / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (20, 18, 3), dtype=np.uint8)).save(file)

    def train(out: str, params: dict, name: str = "tiny", **more) -> dict[str, torch.Tensor]:
        monkeypatch.setattr(recipes, "model_params", lambda _: json.loads(json.dumps(params)))
        torch.manual_seed(0)
        first = build_first_stage(params["first_stage_config"])
        save_file(first.state_dict(), tmp_path / "first.safetensors")
        recipes.train_config(tmp_path / out, name, data=tmp_path / "images", first_stage=tmp_path / "first.safetensors",
                             **{"steps": 2, "batch": 4} | more)
        return load_file(tmp_path / out / "unet.safetensors")

    return train


def test_recipes_are_those_of_the_paper() -> None:
    without = {"semantic_synthesis256", "semantic_synthesis512", *configs.TEXT_MODELS}
    assert set(recipes.RECIPES) | without == set(configs.MODELS)
    with pytest.raises(SpecError, match="conditioned on pairs of images and texts"):
        recipes.check_recipe("text2img256")
    ffhq = recipes.check_recipe("ffhq256")
    assert (ffhq.batch, ffhq.steps) == (42, 635_000)
    assert ffhq.rate == pytest.approx(2e-6 * 42)                    # the official base rate times the batch
    assert recipes.check_recipe("celebahq256").rate == pytest.approx(2e-6 * 48)
    assert recipes.check_recipe("lsun_churches256").warmup == 10_000
    with pytest.raises(SpecError, match="label maps"):
        recipes.check_recipe("semantic_synthesis256")
    with pytest.raises(SpecError, match="did you mean 'ffhq256'"):
        recipes.check_recipe("ffhq25")


@pytest.mark.parametrize("kind", [{"extra": 0}, {"extra": 3}, {"extra": 4}, {"classes": 3}, {"kl": True}])
def test_accumulation_learns_the_same(made, kind: dict, tmp_path: Path) -> None:
    params = params_of(**kind)
    whole, shared = made("whole", params), made("shared", params, accumulate=2)
    assert all((whole[k] - shared[k]).abs().max() < 2e-4 for k in whole)
    fresh = LatentDiffusion(params).unet.state_dict()
    assert any((whole[k] - fresh[k]).abs().max() > 0 for k in whole if k.startswith("out."))
    said = json.loads((tmp_path / "shared" / "training.json").read_text())
    assert (said["batch"], said["accumulate"], said["processes"], said["steps"]) == (4, 2, 1, 2)
    if kind.get("kl"):
        assert json.loads((tmp_path / "shared" / "config.json").read_text())["scale_factor"] != 1.0
    if "extra" not in kind or not kind["extra"]:
        assert LDM(str(tmp_path / "shared")).generate((16, 16), 0, steps=2).shape == (3, 16, 16)


def test_a_recipe_resumes(made, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = made("whole", params_of(), steps=3)
    half = made("half", params_of(), steps=3, max_seconds=0.0)
    resumed = made("half", params_of(), steps=3)
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)
    assert not all(torch.equal(whole[k], half[k]) for k in whole)


def test_classes_are_subfolders(made, tmp_path: Path) -> None:
    made("any", params_of())
    pictures = recipes.open_images(tmp_path / "images", 16, 0, 2)
    assert pictures.labels(list(range(8))) == [0, 0, 0, 0, 1, 1, 1, 1]
    assert pictures.get([0, 5]).shape == (2, 3, 16, 16)
    with pytest.raises(SpecError, match="has 2 subfolders, and the configuration 1 classes"):
        recipes.open_images(tmp_path / "images", 16, 0, 1)


def test_what_cannot_be_trained_is_said_first(made, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="a batch of 4 cannot be shared by 1 process"):
        made("out", params_of(), accumulate=3)
    with pytest.raises(SpecError, match="say how many with --steps"):
        made("out", params_of(), name="inpainting_big", steps=None)
    assert recipe_loop.shares(12, 2, 3) == 2
    with pytest.raises(MissingWeights, match="--first-stage"):
        recipes.train_config(tmp_path / "x", "tiny")


@pytest.mark.parametrize(("args", "said"), [
    (["--config", "ffhq25"], "did you mean 'ffhq256'"), (["--config", "tiny", "--stage", "unet"], "drop --stage"),
    (["--config", "tiny", "--first-stage", "none.zip"], "which is not at none.zip")])
def test_the_command_line(args: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "ldm", *args, "--device", "cpu", "--out", str(tmp_path / "x")]) != 0
    assert said in capsys.readouterr().err


def test_other_processes_resume_from_the_first(tmp_path: Path) -> None:
    assert recipes.share_checkpoint(tmp_path, "a", 0) == tmp_path
    (tmp_path / "a.ckpt").write_bytes(b"state")
    own = recipes.share_checkpoint(tmp_path, "a", 1)
    assert own != tmp_path
    assert (own / "a.ckpt").read_bytes() == b"state"
    (tmp_path / "a.ckpt").unlink()
    assert not (recipes.share_checkpoint(tmp_path, "a", 1) / "a.ckpt").exists()


def test_the_rate_warms_up(made, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    monkeypatch.setattr(training, "set_rate", lambda optimizer, rate: rates.append(rate))
    monkeypatch.setitem(recipes.RECIPES, "tiny", recipes.RECIPES["tiny"]._replace(warmup=2, rate=1.0, flip=True))
    made("out", params_of(), steps=3)
    assert rates == [0.5, 1.0, 1.0]


@pytest.mark.parametrize("module", [recipes, recipe_loop])
def test_all_names_exist(module) -> None:
    assert all(hasattr(module, name) for name in module.__all__)
