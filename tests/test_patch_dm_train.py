"""Training Patch-DM: windows and their targets, variants, stages, resuming."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hibench import training
from hibench.errors import MissingWeights, SpecError
from hibench.references import scenes
from methods.diffusion.losses import truncated_weight
from methods.patch_dm import PatchDM, options, train, variants, window
from methods.patch_dm.collage import pad_half, to_patches
from methods.patch_dm.encoder import SemanticEncoder
from methods.patch_dm.model import build, diffusion_alphas_cumprod
from methods.patch_dm.variants import VARIANTS

CUMPROD = torch.from_numpy(diffusion_alphas_cumprod()).float()
SMALL = {"unet": {"model_channels": 8, "channel_mult": [1, 2], "norm_groups": 4, "attention_resolutions": [32]},
         "encoder": {"model_channels": 8, "channel_mult": [1, 2], "norm_groups": 4, "attention_resolutions": []},
         "prior": {"num_hid_channels": 32, "num_layers": 3, "skip_layers": [1, 2]}}


@pytest.fixture
def quick(monkeypatch, tmp_path: Path) -> Path:
    """A small network, small batches, its own cache; returns an empty folder."""
    monkeypatch.setenv("HIBENCH_CACHE", str(tmp_path / "cache"))
    config = json.loads(json.dumps(train.CONFIG))
    config["BeatGANsAutoencConfig"] |= SMALL["unet"]
    config["BeatGANsAutoencConfig"]["latent_net_conf"] |= SMALL["prior"]
    config["BeatGANsEncoderConfig"] |= SMALL["encoder"]
    monkeypatch.setattr(train, "CONFIG", config)
    monkeypatch.setitem(train._UNET, "batch", 4)
    held_out = train._held_out
    monkeypatch.setattr(train, "_held_out", lambda *rest: held_out(*rest, count=4))
    return tmp_path / "out"


# -- windows ---------------------------------------------------------------------------------------------------------------


def test_windows_are_cut_where_they_say() -> None:
    images = torch.randn(3, 3, 64, 48)
    corners = torch.tensor([[0, 0], [48, 32], [-5, 17]])
    cut = window.cut(images, corners, 16)
    padded = pad_half(images, 16)
    assert torch.equal(cut.x[0], padded[0, :, :32, :32])
    assert torch.equal(cut.x[1], padded[1, :, 48:80, 32:64])
    assert torch.equal(cut.x[2, :, 13:], images[2, :, :19, 9:41])
    assert not cut.x[2, :, :13].any()
    assert torch.equal(cut.mask.bool(), cut.x[:, :1] != 0)
    assert cut.where[:4].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert cut.where[4:8].tolist() == [[3, 2], [3, 3], [4, 2], [4, 3]]
    assert cut.where[8].tolist() == [-5 / 16, 17 / 16]


@pytest.mark.parametrize("side", [2, 3, 5])
def test_the_tiles_between_are_what_sampling_predicts(side: int) -> None:
    """The shifted prediction of a window is a part of the prediction for the whole image, with the same weights."""
    from methods.ldm.model import randomise
    from methods.patch_dm.denoise import Denoiser
    from methods.patch_dm.fast import FastUNet

    unet = build(train.CONFIG, encoder=False, prior=False).unet.eval()
    randomise(unet)
    image, t = torch.randn(1, 3, 64, 64), torch.tensor([321])
    code = torch.randn(1, unet.code_channels)
    with torch.no_grad():
        whole = Denoiser(FastUNet(unet), 16, code, (4, 4), t).predict(image, 0)
        top, left = (0, 0) if side == 5 else (32, 16)
        cut = window.cut(image, torch.tensor([[top, left]]), 16, side)
        both = window.predict(unet, cut.x, t, code, cut.where, 16)
        one = window.predict(unet, cut.x, t, code, cut.where, 16, chosen=torch.tensor([side + 1]))
    size, close = 16 * (side - 1), 1e-4 * whole.abs().max()
    assert (both.shift - whole[:, :, top:top + size, left:left + size]).abs().max() <= close
    assert (one.shift - both.shift).abs().max() <= close
    assert (one.noshift - both.noshift[:, :, 16:32, 16:32]).abs().max() <= close


def test_losses_count_zeros_outside_the_image() -> None:
    target = torch.zeros(1, 3, 32, 32)
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 16:, :] = 1
    both = window.window_losses(window.Prediction(torch.full((1, 3, 16, 16), 2.0), torch.ones(1, 3, 32, 32)), target, mask)
    assert [loss.item() for loss in both] == [4.0, 0.5]
    alone = window.window_losses(window.Prediction(None, torch.ones(1, 3, 32, 32)), target, mask)
    assert [loss.item() for loss in alone] == [0.0, 0.5]


def test_a_coarse_error_counts_more_than_a_fine_one() -> None:
    target, mask = torch.zeros(1, 3, 32, 32), torch.ones(1, 1, 32, 32)
    fine = torch.ones(1, 3, 32, 32)
    fine[..., ::2] = -1                                             # no 4 x 4 mean sees it
    for error, losses in ((fine, [1.0, 1.0]), (torch.ones(1, 3, 32, 32), [5.0, 5.0])):
        prediction = window.Prediction(error[:, :, 8:-8, 8:-8], error)
        assert [loss.item() for loss in window.window_losses(prediction, target, mask, coarse={4: 4.0})] == losses


def test_a_pooled_code_keeps_layout() -> None:
    half = torch.zeros(1, 3, 32, 32)
    half[..., :16] = 1
    codes = {}
    for pool in (1, 4):
        torch.manual_seed(0)
        encoder = SemanticEncoder(16, 3, 8, 6, 1, (), channel_mult=(1, 2), norm_groups=4, pool_size=pool)
        with torch.no_grad():
            codes[pool] = encoder(half) - encoder(half.flip(3))
    assert codes[4].abs().mean() > 4 * codes[1].abs().mean()


@pytest.mark.parametrize(("collage", "side", "corners"), [(True, 2, {0, 16, 32, 48}), (True, 5, {0}), (False, 2, range(-7, 56)),
                                                          (False, 4, range(-7, 24))])
def test_corners(collage: bool, side: int, corners: Collection[int]) -> None:
    images, variant = torch.zeros(64, 3, 64, 64), variants.Variant(collage=collage, window=side)
    draws = torch.cat([train._corners(images, variant, training.step_generator(k)) for k in range(20)])
    assert set(draws.unique().tolist()) == set(corners)
    ends = torch.tensor([[min(corners), max(corners)]])
    cut = window.cut(torch.ones(1, 3, 64, 64), ends, 16, side)
    assert to_patches(cut.mask, 16).flatten(1).any(1).all()             # every patch sees some of the image


def test_the_weight_of_v_is_bounded() -> None:
    weight = truncated_weight(CUMPROD)
    snr = CUMPROD / (1 - CUMPROD)
    torch.testing.assert_close(weight * (snr + 1), (snr + 1).clamp(max=6.0))


# -- variants --------------------------------------------------------------------------------------------------------------


def losses_of(name: str, seed: int = 0, held_out: bool = True) -> tuple[dict, PatchDM]:
    torch.manual_seed(0)
    config = train.variant_config(name, 8)
    config["BeatGANsAutoencConfig"] |= SMALL["unet"]
    if config["BeatGANsEncoderConfig"]:
        config["BeatGANsEncoderConfig"] |= SMALL["encoder"]
    model = build(config, prior=False)
    with torch.no_grad():
        for p in model.unet.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * 0.05)
    images = scenes.render(range(8), 64).float() / 127.5 - 1
    source = torch.arange(8) if VARIANTS[name].table else images
    weight, draw = truncated_weight(CUMPROD), training.step_generator(seed)
    return train.window_loss(model, images, source, VARIANTS[name], CUMPROD, weight, draw, held_out=held_out), model


@pytest.mark.parametrize("name", VARIANTS)
def test_what_a_variant_does_not_know_has_no_gradient(name: str) -> None:
    losses, model = losses_of(name)
    assert set(losses) == ({"shift", "noshift"} if VARIANTS[name].collage else {"noshift"})
    sum(losses.values()).backward()
    unet, variant = model.unet, VARIANTS[name]
    assert (unet.time_embed.pos_embed[0].weight.grad.abs().max() > 0) == variant.position
    assert (unet.res_blocks[0].cond_emb_layers[1].weight.grad.abs().max() > 0) == variant.code
    assert (unet.encoder is not None) == variant.code
    if variant.code:
        assert all(p.grad is not None for p in unet.encoder.parameters())
    assert unet.input_blocks[0][0].weight.grad.abs().max() > 0


def test_dropout_withholds_code_and_position() -> None:
    told, _ = losses_of("main")
    dropped, _ = losses_of("main", held_out=False)
    assert told["shift"] != dropped["shift"]
    assert told["shift"] == losses_of("main")[0]["shift"]               # a function of the step alone
    assert told["shift"] != losses_of("main", seed=1)[0]["shift"]


@pytest.mark.parametrize("name", ["main", "none", "no-position", "no-code", "table"])
def test_variants_train_and_generate(quick: Path, name: str) -> None:
    done = train.train(quick, variant=name, steps=2, images=16)
    assert set(done) == ({"unet", "prior"} if VARIANTS[name].code else {"unet"})
    said = json.loads((quick / "training-unet.json").read_text())
    assert said["variant"] == name
    assert said["steps"] == 2
    assert said["held_out"] is None if VARIANTS[name].table else said["held_out"]["noshift"] > 0
    trained = PatchDM(str(quick), {"collage": "feature" if VARIANTS[name].collage else "none"})
    assert trained.generate((32, 48), 1, steps=2).shape == (3, 32, 48)
    assert trained.config["position"] == VARIANTS[name].position
    assert (trained.ready().std is not None) == VARIANTS[name].code


def test_table_starts_from_image_features(quick: Path, monkeypatch) -> None:
    from hibench import scenes_clip
    from hibench.references.scene_cache import rendered

    monkeypatch.setitem(train._UNET, "rate", 0.0)
    train.train(quick, stage="unet", variant="table", steps=1, images=16)
    pixels = torch.tensor(rendered(16, 64))
    wanted = scenes_clip.load().encode_image(pixels)
    got = load_file(quick / "unet.safetensors")["encoder.semantic_enc.weight"].float()
    torch.testing.assert_close(got, wanted, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("stage", train.STAGES)
def test_a_resumed_training_equals_an_undisturbed_one(quick: Path, stage: str) -> None:
    parts = quick.with_name("parts")
    for folder in (quick, parts):
        if stage == "prior":
            train.train(folder, stage="unet", steps=1, images=16)
    train.train(quick, stage=stage, steps=4, images=16)
    stopped = train.train(parts, stage=stage, steps=4, images=16, max_seconds=0)
    assert not stopped[stage]["finished"]
    train.train(parts, stage=stage, steps=4, images=16)
    whole, resumed = (load_file(folder / f"{stage}.safetensors") for folder in (quick, parts))
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)


def test_training_can_start_from_other_weights(quick: Path) -> None:
    train.train(quick, stage="unet", steps=1, images=8)
    before = load_file(quick / "unet.safetensors")
    after = quick.parent / "after"
    train.train(after, stage="unet", variant="no-code", steps=1, init=str(quick), images=8)
    state = load_file(after / "unet.safetensors")
    assert all((state[k].float() - before[k].float()).abs().max() < 5e-3 for k in state)     # one step of Adam moves 1e-3
    said = json.loads((after / "training-unet.json").read_text())["init"]
    assert said == f"{len(state)} of {len(state)} tensors from weights {train.sha256_of(quick / 'unet.safetensors')}"
    with pytest.raises(MissingWeights, match="init: no U-Net at"):
        train.train(after, stage="unet", init=str(quick.parent), images=8)


def test_what_cannot_be_trained_is_said_at_once(tmp_path: Path) -> None:
    for arguments, text in (({"stage": "decoder"}, "it is one of: unet, prior"), ({"variant": "mian"}, "did you mean 'main'"),
                            ({"variant": "pixel"}, "weights of 'none'"),
                            ({"variant": "no-code", "stage": "prior"}, "has no code")):
        with pytest.raises(SpecError, match=text):
            train.train(tmp_path, **arguments)
    with pytest.raises(MissingWeights, match="train it first"):
        train.train(tmp_path, stage="prior")


def test_all_is_true() -> None:
    for module in (train, variants, window, options):
        for name in module.__all__:
            assert hasattr(module, name), (module.__name__, name)
