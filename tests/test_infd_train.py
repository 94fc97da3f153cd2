"""Training INFD: what a step sees, its losses, stages and variants, resuming; and inverse problems that a field can solve."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from hibench.adapter import seeded_noise
from hibench.cli import main
from hibench.errors import MissingWeights, SpecError
from hibench.references import scenes
from hibench.scenes_clip import load as load_clip
from methods.infd import INFD, configs, data, losses, model, tasks, train
from methods.infd.data import Mix, Scales, area_patch, draw
from methods.infd.patches import official_size
from methods.infd.renderers import look_up
from methods.ldm.adapter import REFERENCE as LDM_REFERENCE
from methods.nn.discriminator import NLayerDiscriminator, gradient_l1

AXES = {"height": 64, "width": 64, "steps": 10, "sparsity": 0.0}


@pytest.fixture(scope="module")
def mix() -> Mix:
    """Both sets, of the same few scenes."""
    seeds = range(12)
    return Mix(scenes.render(seeds, data.SMALL).numpy(), scenes.render(seeds, data.LARGE).numpy())


@pytest.fixture
def quick(monkeypatch, tmp_path: Path) -> Path:
    """Small batches, no evaluation, its own cache; returns an empty folder."""
    monkeypatch.setenv("HIBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(train._AUTOENCODER, "batch", 6)
    monkeypatch.setitem(train._UNET, "batch", 4)
    monkeypatch.setattr(train, "_reconstruction", lambda *_: {"scenes": 0})
    return tmp_path / "out"


# -- what a step sees ----------------------------------------------------------------------------------------------------


def test_area_averaging_is_rendering_at_the_smaller_size(mix: Mix) -> None:
    image = torch.from_numpy(mix.large[3]).float()
    small = area_patch(image, 64, 0, 0, 64)
    assert (small - torch.from_numpy(mix.small[3]).float()).abs().mean() < 1.5
    patch = area_patch(image, 100, 30, 50, 32)
    assert torch.allclose(patch, area_patch(image, 100, 0, 0, 100)[:, 30:62, 50:82], atol=1e-3)
    assert torch.equal(area_patch(image, 256, 5, 6, 20), image[:, 5:25, 6:26])


@pytest.mark.parametrize("crop", [None, 8])
def test_targets_lie_where_the_queries_say(mix: Mix, crop: int | None) -> None:
    """A map of the image's own pixels, looked up where the query says, is the target (blurred to the map's cells)."""
    patch = 64 if crop is None else 32
    for step in (0, 1, 2):
        batch = draw(mix, step, 8, patch, 16, crop, Scales())
        images = torch.from_numpy(mix.small[batch.index.numpy()]).float() / 127.5 - 1
        if crop is not None:
            images = torch.stack([one[:, 4 * i:4 * i + 32, 4 * j:4 * j + 32]
                                  for one, i, j in zip(images, *(places.tolist() for places in batch.window))])
        seen = look_up(images, batch.query)[:, :3]
        assert seen.shape == batch.target.shape == (8, 3, patch, patch)
        error = (seen - batch.target).abs().mean((1, 2, 3))
        shifted = (seen.roll(6, -1) - batch.target).abs().mean((1, 2, 3))
        assert error[:4].max() < 1e-5                               # from 64-px images: the very pixels
        assert (error[4:] < 0.7 * shifted[4:]).all()
        cells = batch.query.cell[:, 0] * (64 if crop is None else 32)
        assert cells[:4].tolist() == [2.0] * 4
        assert ((cells[4:] >= 0.5) & (cells[4:] <= 2.0)).all()


def test_scales_of_the_variants(mix: Mix) -> None:
    def sides(scales: Scales, steps: int = 24) -> list[int]:
        return [round(2 / c) for k in range(steps) for c in draw(mix, k, 4, 64, 16, None, scales).query.cell[:, 0].tolist()]

    mixed = sides(Scales(below=False))
    assert mixed.count(64) >= 48
    assert len(set(mixed)) > 20
    assert max(mixed) <= 256
    assert set(sides(Scales(mixed=False, below=False), 4)) == {64}
    assert set(sides(Scales(largest_only=True, below=False))) <= {64, *(mix.size(i) for i in range(12))}
    small = draw(mix, 7, 4, 64, 16, None, Scales())
    assert 32 <= small.target.shape[-1] < 64
    assert torch.equal(draw(mix, 5, 4, 64, 16, None, Scales()).target, draw(mix, 5, 4, 64, 16, None, Scales()).target)


def test_the_published_mix_of_sizes() -> None:
    sizes = [official_size(i) for i in range(6000)]
    assert sizes[:2] == [512, 512]
    assert sizes[2500] == 512 + round(512 * 2500 / 4999)
    assert sizes[4999:] == [1024] * 1001


# -- losses --------------------------------------------------------------------------------------------------------------


def test_the_adaptive_weight_balances_the_gradients() -> None:
    torch.manual_seed(0)
    last = torch.nn.Conv2d(4, 3, 3, padding=1)
    features, real = torch.randn(2, 4, 16, 16), torch.rand(2, 3, 16, 16) * 2 - 1
    disc, fake = NLayerDiscriminator(ndf=8, n_layers=2), last(features)
    found = losses.generator_loss(fake, real, torch.tensor(0.5), last.weight, gradient_l1, disc, gan_weight=0.75)
    (of_images,) = torch.autograd.grad(F.l1_loss(fake, real) + gradient_l1(fake, real), last.weight, retain_graph=True)
    (of_critic,) = torch.autograd.grad(found.adversarial, last.weight, retain_graph=True)
    assert found.weight == pytest.approx((of_images.norm() / (of_critic.norm() + 1e-4)).item(), rel=1e-5)
    expected = found.l1 + found.perceptual + 0.5 + 0.75 * found.weight * found.adversarial
    assert found.total.item() == pytest.approx(expected.item(), rel=1e-6)
    plain = losses.generator_loss(fake, real, torch.tensor(0.5), last.weight, gradient_l1)
    assert plain.adversarial is None
    assert plain.total.item() == pytest.approx((found.l1 + found.perceptual + 0.5).item(), rel=1e-6)


def test_the_stand_in_is_named(monkeypatch) -> None:
    monkeypatch.setattr(losses, "find", lambda name: None)
    name, function = losses.perceptual("cpu")
    assert "stand-in" in name
    assert function is gradient_l1
    assert losses.psnr(torch.full((2, 3, 4, 4), 0.5), torch.zeros(2, 3, 4, 4)).item() == pytest.approx(12.0412, abs=1e-3)


# -- stages --------------------------------------------------------------------------------------------------------------


def test_autoencoder_from_the_ldm_then_its_variants_and_the_unet(quick: Path) -> None:
    made = train.train(quick, steps=2, images=16)
    assert set(made) == {"autoencoder", "unet"}
    train.train(quick, steps=2, images=16, variant="liif")
    state, ldm = load_file(quick / "autoencoder.safetensors"), load_file(LDM_REFERENCE / "first_stage.safetensors")
    assert torch.equal(state["quantizer.embedding.weight"], ldm["quantize.embedding.weight"])           # taken over, frozen
    assert torch.equal(state["encoder.0.mid.block_1.conv1.weight"], ldm["encoder.mid.block_1.conv1.weight"])
    assert not torch.equal(state["decoder.1.mid.block_1.conv1.weight"], ldm["decoder.mid.block_1.conv1.weight"])
    for given in ({}, {"renderer": "liif"}, {"latents": "ldm"}):
        infd = INFD(str(quick), given)
        assert infd.supports(AXES) is None
        image = infd.generate((48, 96), 0, steps=2)
        assert image.shape == (3, 48, 96)
        assert image.float().std() > 1
    config = json.loads((quick / "config.json").read_text())
    assert set(config["variants"]) == set(train.VARIANTS) - {"main"}
    said = json.loads((quick / "training-autoencoder.json").read_text())
    assert said["init"] == "ldm"
    assert "stand-in" in said["perceptual"] or "LPIPS" in said["perceptual"]
    assert said["trained"] < said["parameters"]
    assert json.loads((quick / "training-unet.json").read_text())["init"] == "the U-Net of the reference LDM"


def test_from_nothing_everything_is_trained(quick: Path) -> None:
    with pytest.raises(MissingWeights, match="--stage autoencoder --init none"):
        train.train(quick, stage="unet", init="none", steps=1, images=16)
    train.train(quick, stage="autoencoder", init="none", steps=1, images=16)
    said = json.loads((quick / "training-autoencoder.json").read_text())
    assert said["trained"] == said["parameters"]
    assert said["curve"][0][1]["codebook"] > 0
    train.train(quick, stage="unet", init="none", steps=1, images=16)
    assert INFD(str(quick)).generate((32, 32), 0, steps=2).shape == (3, 32, 32)


@pytest.mark.parametrize(("stage", "file"), [("autoencoder", "autoencoder"), ("unet", "unet")])
def test_a_resumed_training_equals_an_undisturbed_one(quick: Path, stage: str, file: str) -> None:
    train.train(quick, stage=stage, steps=4, images=16)
    stopped = train.train(quick.with_name("parts"), stage=stage, steps=4, images=16, max_seconds=0)
    assert not stopped[stage]["finished"]
    assert stopped[stage]["steps"] < 4
    train.train(quick.with_name("parts"), stage=stage, steps=4, images=16)
    whole, parts = (load_file(folder / f"{file}.safetensors") for folder in (quick, quick.with_name("parts")))
    assert all(torch.equal(whole[k], parts[k]) for k in whole)


@pytest.mark.parametrize(("arguments", "message"), [
    (["--stage", "autoencodr"], "stage 'autoencodr' is not known; did you mean 'autoencoder'"),
    (["--variant", "lif"], "variant 'lif' is not known; did you mean 'liif'"),
    (["--init", "sd"], "init 'sd' is not known; it is one of: ldm, none"),
    (["--variant", "liif", "--init", "none"], "variant liif is a decoder and renderer for the encoder of the reference LDM"),
    (["--variant", "fixed", "--stage", "unet"], "it has no stage unet"),
])
def test_what_cannot_be_trained_is_said_at_once(arguments: list[str], message: str, tmp_path: Path, capsys) -> None:
    assert main(["train", "infd", "--out", str(tmp_path), "--device", "cpu", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_held_out_scenes_are_scored_at_four_sizes() -> None:
    net = model.random_model(configs.config_args("reference"))
    found = train._reconstruction(net, "cpu", count=2)
    assert set(found) == {"scenes", "32", "64", "128", "256"}
    assert all(found[side]["psnr_db"] < 20 and found[side]["sharpness"] > 0 for side in ("32", "64", "128", "256"))


# -- inverse problems ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny() -> INFD:
    infd = INFD("random", {"config": "tiny"})
    infd.load()
    return infd


def test_a_region_is_rendered_without_the_image_around_it(tiny: INFD) -> None:
    with torch.no_grad():
        phi = tiny.model.features(seeded_noise((3, 8, 8), [0]))
        tiny_part = tasks.region_images(tiny.model, phi, tasks.Region("a", 0.5, 0.25, 1.0, 0.75), 8)
    assert tiny_part.shape == (1, 3, 8, 8)
    with pytest.raises(SpecError, match=r"region 'a': 0.5, 0 to 0.2, 1 is not a part of the image"):
        tasks.Region("a", top=0.5, bottom=0.2)


def test_guidance_raises_the_similarity_of_every_image(tiny: INFD) -> None:
    clip = load_clip()
    regions = [tasks.Region("a red circle", right=0.5), tasks.Region("a blue square", left=0.5)]
    texts = [text.clone() for text in clip.encode_text([region.prompt for region in regions])]

    def score(z: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            phi = tiny.model.features(z)
            seen = [tasks.similarity(clip, tasks.region_images(tiny.model, phi, r, 64), t) for r, t in zip(regions, texts)]
        return torch.stack(seen).mean(0)

    def latents(seeds: list[int], strength: float) -> torch.Tensor:
        return tasks.layout_latents(tiny.model, regions, seeds, 10, clip=clip, shape=(3, 8, 8), strength=strength)

    plain, guided = latents([0, 1], 0.0), latents([0, 1], 1.0)
    assert torch.allclose(plain, tiny.sample((3, 8, 8), [0, 1], 10), atol=1e-2)
    assert (score(guided) > score(plain)).all()
    assert (score(latents([1], 1.0))[0] - score(guided)[1]).abs() < 0.05


def test_tasks_give_labelled_rows(tiny: INFD) -> None:
    rows = tiny.run_task("layout", (16, 24), [0], steps=4)
    assert [label.partition(" (")[0] for label, _ in rows] == ["no prompts", "left: a red circle, right: a blue square"]
    assert all(images.shape == (1, 3, 16, 24) and images.dtype == torch.uint8 for _, images in rows)
    rows = tiny.run_task("scales", (96, 48), [0, 1], steps=4)
    assert [(label, tuple(images.shape)) for label, images in rows] == [
        ("64 x 32 px", (2, 3, 64, 32)), ("96 x 48 px", (2, 3, 96, 48))]
    with pytest.raises(SpecError, match="no task 'scale'; did you mean 'scales'"):
        tiny.run_task("scale", (16, 16), [0])
