"""First stages of LDM alone: small versions of the published ones, what they start from, training, and published files."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hibench.cli import main
from hibench.errors import AdapterError, MissingWeights, SpecError
from hibench.references import scenes
from methods.ldm import LDM, adapter, coding, configs, first_stages, train_first_stage
from methods.ldm.adapter import REFERENCE
from methods.ldm.model import randomise
from methods.nn.autoencoder import build_first_stage

STATE = {k: v.float() for k, v in load_file(REFERENCE / "first_stage.safetensors").items()}


def train(out: Path, name: str, steps: int = 5, **more: object) -> dict:
    """Train a small version for a few steps, in which every phase of the training occurs."""
    draw = np.random.default_rng(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_first_stage, "rendered",
                      lambda count, side, **_: draw.integers(0, 256, (count, 3, side, side), np.uint8))
        patch.setattr(train_first_stage, "reconstruction_of", lambda *_: {"scenes": 0})
        patch.setattr(train_first_stage, "WARM", train_first_stage.WARM | {"batch": 3, "crop": 32, "codes_from": 1})
        return train_first_stage.train_named(out, name, steps=steps, images=64 if name.startswith("vq") else 16, **more)


# -- configurations and starts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", configs.FIRST_STAGES)
def test_small_versions_keep_what_the_name_says(name: str) -> None:
    large, small = (config["params"] for config in (configs.first_stage_config(name), first_stages.small_first_stage(name)))
    assert len(small["ddconfig"]["ch_mult"]) == len(large["ddconfig"]["ch_mult"])
    for key in ("z_channels", "double_z", "attn_type"):
        assert small["ddconfig"][key] == large["ddconfig"][key]
    assert small["embed_dim"] == large["embed_dim"]
    assert small.get("n_embed") == (min(4096, large["n_embed"]) if "n_embed" in large else None)
    with torch.device("meta"):
        network = build_first_stage({"params": small})
    assert network.factor == int(name.split("-f")[1].split("-")[0])
    assert sum(p.numel() for p in network.parameters()) * 2 < 8e6                   # bytes of a float16 file
    with torch.device("meta"):
        published = build_first_stage({"params": large})
    blocks = [sum("attn" in key and key.endswith("q.weight") for key, _ in n.named_parameters()) for n in (network, published)]
    assert bool(blocks[0]) == bool(blocks[1])


def test_a_kl_first_stage_starts_as_the_reference_with_a_narrow_posterior() -> None:
    torch.manual_seed(0)
    kl, vq = (build_first_stage(first_stages.small_first_stage(name)).eval() for name in ("kl-f4", "vq-f4"))
    vq.load_state_dict(STATE)
    assert first_stages.start_from(kl, STATE) == sum(1 for _ in kl.parameters())
    x = scenes.render(range(2), 32).float() / 127.5 - 1
    with torch.inference_mode():
        posterior, latent = kl.encode(x), vq.encode(x)
        assert torch.allclose(posterior.mode(), latent, atol=1e-4)
        assert torch.allclose(posterior.std, torch.full_like(posterior.std, np.exp(-4.0)))
        assert torch.allclose(kl.decode(latent), vq.decode(latent, force_not_quantize=True), atol=1e-4)


def test_what_does_not_fit_stays_as_it_was() -> None:
    torch.manual_seed(0)
    model = build_first_stage(first_stages.small_first_stage("vq-f8"))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    placed = first_stages.start_from(model, STATE)
    after = model.state_dict()
    same = {k for k in before if torch.equal(before[k], after[k])}
    assert 100 < placed < len(before)
    assert {"encoder.conv_out.weight", "quant_conv.weight", "quantize.embedding.weight"} <= same
    assert "decoder.up.3.block.0.conv1.weight" in same
    assert torch.equal(after["encoder.down.1.block.0.conv1.weight"], STATE["encoder.down.1.block.0.conv1.weight"])


# -- training --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["kl-f4", "vq-f8"])
def test_training_writes_weights_that_reconstruct(tmp_path: Path, name: str) -> None:
    result = train(tmp_path, name)
    assert {"l1", "disc", "kl" if name == "kl-f4" else "codebook"} <= result["curve"][-1][1].keys()
    said = json.loads((tmp_path / "training.json").read_text())
    assert (said["first_stage"], said["steps"]) == (name, 5)
    assert said["starts_from"].startswith("the reference first stage")
    method = LDM(str(tmp_path))
    images = scenes.render(range(3), 64)
    made = method.reconstruct(images)
    assert made.shape == images.shape
    assert made.dtype == torch.uint8
    error = (made.float() - images.float()).abs().mean()
    assert error < 20 if name == "kl-f4" else error > 20            # one starts from all of the reference, the other does not
    moments = load_file(tmp_path / "first_stage.safetensors")["quant_conv.weight"]
    assert moments.dtype == torch.float16
    latents = method.coder.encode(images.float() / 127.5 - 1)
    assert 0.3 < latents.std() < 3                                  # scale_factor is that of these latents


def test_training_resumes(tmp_path: Path) -> None:
    train(tmp_path / "whole", "kl-f4", 3)
    assert train(tmp_path / "parts", "kl-f4", 3, max_seconds=0)["steps"] == 1
    assert train(tmp_path / "parts", "kl-f4", 3)["finished"]
    whole, parts = (load_file(tmp_path / folder / "first_stage.safetensors") for folder in ("whole", "parts"))
    assert all(torch.equal(whole[k], parts[k]) for k in whole)


def test_the_command_line_of_first_stages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*words: str) -> str:
        assert main(["train", "ldm", *words, "--out", str(tmp_path), "--device", "cpu"]) == 2
        return capsys.readouterr().err

    assert "no first stage 'kl-f5'; did you mean 'kl-f" in said("--stage", "first-stage", "--variant", "kl-f5")
    assert "drop --init" in said("--stage", "unet", "--variant", "kl-f4")
    assert "fewer than 4 x 4 latents" in said("--variant", "kl-f32")
    assert "drop --stage" in said("--stage", "first-stage", "--variant", "class")


def test_centring_changes_no_image() -> None:
    for name in ("kl-f4", "vq-f4"):
        model = build_first_stage(first_stages.small_first_stage(name)).eval()
        randomise(model)
        x = scenes.render(range(2), 16).float() / 127.5 - 1
        with torch.inference_mode():
            z = train_first_stage.encode(model, x)
            before = model.decode(z)
            train_first_stage.centre(model, z.mean((0, 2, 3)))
            z = train_first_stage.encode(model, x)
            assert z.mean((0, 2, 3)).abs().max() < 1e-4
            assert torch.allclose(model.decode(z), before, atol=1e-3)


# -- behind the adapter ----------------------------------------------------------------------------------------------------


def test_the_reference_by_name_is_its_first_stage_alone() -> None:
    images = scenes.render(range(2), 64)
    alone, whole = LDM("vq-f4"), LDM()
    assert torch.equal(alone.reconstruct(images), whole.reconstruct(images))
    assert alone.parameters() == sum(v.numel() for v in STATE.values()) < whole.parameters()
    assert alone.weights_digest() != whole.weights_digest()
    assert alone.supports({"height": 64, "width": 64, "steps": 10}) == (
        "vq-f4 is a first stage alone: it reconstructs images and generates none")
    with pytest.raises(AdapterError, match="generates none"):
        alone.generate((64, 64), 0)


def test_a_name_without_weights_says_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "REFERENCE", tmp_path)
    with pytest.raises(MissingWeights, match="hibench train ldm --stage first-stage --variant kl-f8 --out"):
        LDM("kl-f8").load()
    with pytest.raises(MissingWeights, match="first stage kl-f4 starts from"):
        train_first_stage.train_named(tmp_path / "out", "kl-f4", base=tmp_path)
    with pytest.raises(SpecError, match="no first stage 'kl-f9'"):
        first_stages.small_first_stage("kl-f9")


def test_published_files_are_known_by_their_name_or_their_configuration(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = first_stages.small_first_stage("kl-f8")
    network = build_first_stage(config)
    randomise(network)
    state = {**network.state_dict(), "loss.logvar": torch.zeros(()), "loss.discriminator.main.0.weight": torch.zeros(2)}
    (tmp_path / "a").mkdir()
    torch.save({"state_dict": state, "global_step": 3}, tmp_path / "a" / "model.ckpt")
    with zipfile.ZipFile(tmp_path / "kl-f8.zip", "w") as archive:
        archive.write(tmp_path / "a" / "model.ckpt", "model.ckpt")
    official = {"model": {"base_learning_rate": 4.5e-6, "target": "ldm.models.autoencoder.AutoencoderKL",
                          "params": {**config["params"], "monitor": "val/rec_loss", "lossconfig": {}}}}
    (tmp_path / "a" / "config.yaml").write_text(json.dumps(official))
    monkeypatch.setattr(first_stages, "first_stage_config", lambda name: config)
    images = scenes.render(range(2), 32)
    made = [LDM(str(tmp_path / place)).reconstruct(images) for place in ("kl-f8.zip", "a/model.ckpt", "a")]
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[1], made[2])
    assert coding.Coding.alone.__doc__
    with pytest.raises(AdapterError, match="no multiple of the first stage's factor 8"):
        LDM(str(tmp_path / "a")).reconstruct(scenes.render(range(1), 20))
    save_file({k: v for k, v in network.state_dict().items() if not k.startswith("quant_conv")}, tmp_path / "kl-f8.safetensors")
    with pytest.raises(AdapterError, match=r"2 missing \(quant_conv"):
        LDM(str(tmp_path / "kl-f8.safetensors")).load()


@pytest.mark.parametrize("module", [coding, first_stages, train_first_stage])
def test_all_names_exist(module) -> None:
    assert all(hasattr(module, name) for name in module.__all__)
