"""Conditional LDM: warm starts, masks, training pools, variants through the adapter, tasks with numbers, and the row ldm-sr."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hibench.adapter import Adapter, Stage
from hibench.cli import main
from hibench.errors import AdapterError, MissingWeights, SpecError
from methods.ldm import LDM, LDMSR, adapter, checkpoint, classes, masks, pool, super_resolution, tasks, train_variant, variants
from methods.ldm.adapter import REFERENCE
from methods.ldm.model import LatentDiffusion, empty_model, random_model, randomise
from methods.nn.unet import UNet

CONFIG = json.loads((REFERENCE / "config.json").read_text())


def noise_images(count: int, side: int, **_: object) -> np.ndarray:
    """Stands in for rendered scenes: smooth, and different for every index."""
    draw = np.random.default_rng(side)
    small = draw.integers(0, 256, (count, 3, side // 8, side // 8), dtype=np.uint8)
    return small.repeat(8, 2).repeat(8, 3)


def small_config() -> dict:
    """The reference's configuration with narrow networks."""
    config = json.loads(json.dumps(CONFIG))
    config["first_stage_config"]["params"]["n_embed"] = 32
    config["unet_config"]["params"] |= {"model_channels": 32, "channel_mult": [1, 2], "attention_resolutions": [2]}
    return config


def train(base: Path, name: str, out: Path, **more: float) -> dict:
    """Train a variant for two steps of two."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "rendered", noise_images)
        patch.setitem(variants.VARIANTS, name, variants.VARIANTS[name]._replace(batch=2, images=4))
        return train_variant.train_variant(out, name, steps=2, base=base, **more)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an unconditional model, and with every variant trained from it in folders of it."""
    base = tmp_path_factory.mktemp("ldm")
    network = random_model(small_config())
    (base / "config.json").write_text(json.dumps(small_config()))
    save_file(network.first_stage_model.state_dict(), base / "first_stage.safetensors")
    save_file(network.unet.state_dict(), base / "unet.safetensors")
    for name in variants.VARIANTS:
        train(base, name, base / name)
        (base / name / "first_stage.safetensors").unlink()          # the one above serves all of them
    return base


# -- where variants start ------------------------------------------------------------------------------------------------


def test_a_warm_start_with_an_image_is_the_reference_whatever_the_image() -> None:
    state = {k: v.float() for k, v in load_file(REFERENCE / "unet.safetensors").items()}
    before = UNet.from_config(CONFIG["unet_config"]["params"])
    before.load_state_dict(state)
    after = UNet.from_config(variants.variant_config("super-resolution", CONFIG)["unet_config"]["params"])
    assert variants.warm_start(after, state) == []
    draw = torch.Generator().manual_seed(0)
    x, image = (torch.randn(2, 3, 16, 16, generator=draw) for _ in range(2))
    t = torch.tensor([100, 900])
    with torch.inference_mode():
        assert torch.allclose(after(x, t, concat=image), before(x, t), atol=1e-5)


def test_a_warm_start_with_classes_begins_without_them() -> None:
    state = {k: v.float() for k, v in load_file(REFERENCE / "unet.safetensors").items()}
    params = variants.variant_config("class", CONFIG)
    unet = LatentDiffusion(params).unet
    fresh = variants.warm_start(unet, state)
    assert fresh
    assert all(".1." in name or name.startswith("middle_block.1") for name in fresh)    # attention only
    assert torch.equal(unet.time_embed[0].weight, state["time_embed.0.weight"])
    x, t = torch.randn(1, 3, 16, 16), torch.tensor([500])
    with torch.inference_mode():
        a, b = (unet(x, t, context=torch.randn(1, 1, variants.CONTEXT)) for _ in range(2))
    assert torch.equal(a, b)                                        # the class has no say yet
    assert sum(p.numel() for p in unet.parameters()) * 2 < 8e6      # bytes of a float16 file
    assert CONFIG["unet_config"]["params"]["in_channels"] == 3      # the configuration given is left alone
    assert params["unconditional_class"] == variants.CLASSES


def test_unknown_variants_are_named() -> None:
    with pytest.raises(SpecError, match="no variant 'inpaintin'; did you mean 'inpainting'"):
        LDM("reference", {"variant": "inpaintin"})
    with pytest.raises(SpecError, match="option variant names trained weights"):
        LDM("random", {"variant": "class"})


# -- what training sees --------------------------------------------------------------------------------------------------


def test_masks_depend_on_their_seed_alone() -> None:
    both = masks.draw_masks(range(40), 64, 96)
    assert both.shape == (40, 1, 64, 96)
    assert set(both.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(both[7:9], masks.draw_masks([7, 8], 64, 96))
    share = both.mean((1, 2, 3))
    assert share.min() > 0.005
    assert share.max() < 0.8
    assert len({mask.numpy().tobytes() for mask in both}) == 40
    box = masks.box_mask(64, 64, torch.Generator().manual_seed(3))
    assert box.any()
    assert not box.all()


def test_images_for_super_resolution_come_from_three_scales(monkeypatch) -> None:
    monkeypatch.setattr(pool, "rendered", noise_images)
    images = pool.super_resolution_images(7)
    assert images.shape == (7, 3, 64, 64)
    assert torch.equal(images[:3], torch.from_numpy(noise_images(3, 64)))
    steps = (images[3:].float().diff(dim=-1).abs() > 8).float().mean((1, 2, 3))     # edges: 8-px blocks, or halved to 4 px
    assert (steps[1::2] > 1.4 * steps[::2]).all()
    assert torch.equal(pool.reduce(images.float(), 4)[0, 0, 0, 0], images[0, 0, :4, :4].float().mean())


def test_a_pool_is_encoded_once(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pool, "rendered", noise_images)
    seen: list[torch.Tensor] = []

    def encode(x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return x[:, :, ::4, ::4]

    first = pool.make_pool("inpainting", encode, 4, 4, tmp_path)
    assert first.latents.shape == (4, 3, 16, 16)
    assert first.concat.shape == (4, 4, 16, 16)
    hole = first.concat[:, 3:] > 0
    assert (first.concat[:, :3].masked_select(hole) == -1).all()                    # black where the hole is
    assert torch.equal(first.concat[:, :3].masked_select(~hole), first.latents.masked_select(~hole))
    calls = len(seen)
    again = pool.make_pool("inpainting", encode, 4, 4, tmp_path)
    assert len(seen) == calls
    assert torch.equal(again.concat, first.concat)
    assert pool.make_pool("inpainting", encode, 4, 4, tmp_path, b"another encoder").labels.numel() == 0
    assert len(seen) > calls


def test_the_first_stage_stays_and_training_resumes(trained: Path, tmp_path: Path) -> None:
    assert train(trained, "class", tmp_path, max_seconds=0)["steps"] == 1
    assert train(trained, "class", tmp_path)["finished"]
    whole, resumed = (load_file(folder / "unet.safetensors") for folder in (trained / "class", tmp_path))
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)
    assert (tmp_path / "first_stage.safetensors").read_bytes() == (trained / "first_stage.safetensors").read_bytes()
    said = json.loads((tmp_path / "training.json").read_text())
    assert (said["steps"], said["variant"], said["starts_from"]) == (2, "class", "the reference U-Net and first stage")


def test_a_variant_has_one_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["train", "ldm", "--variant", "class", "--stage", "unet", "--out", str(tmp_path), "--device", "cpu"]
    assert main(args) == 2
    assert "drop --stage" in capsys.readouterr().err


# -- variants behind the adapter -----------------------------------------------------------------------------------------


def test_classes_and_guidance_of_a_trained_folder(trained: Path) -> None:
    plain, guided = (LDM(str(trained), {"variant": "class", "class": 5, **more}) for more in ({}, {"guidance": 3.0}))
    for method in (plain, guided):
        method.load()
        randomise(method.model.unet)                                # two steps teach the classes nothing yet
    a, b = (method.generate_batch((32, 32), [1, 2], steps=2) for method in (plain, guided))
    assert a.shape == (2, 3, 32, 32)
    assert not torch.equal(a, b)
    assert plain.weights_digest() != LDM(str(trained)).weights_digest()
    assert checkpoint.folder_file(trained / "class", "first_stage") == trained / "first_stage.safetensors"
    with pytest.raises(SpecError, match="0 to 64"):
        LDM(str(trained), {"variant": "class", "class": 65}).generate((32, 32), 0, steps=2)


def test_the_digest_of_a_folder_does_not_see_its_variants(trained: Path) -> None:
    before = LDM(str(trained)).weights_digest()
    (trained / "other").mkdir()
    (trained / "other" / "unet.safetensors").write_bytes(b"x")
    assert LDM(str(trained)).weights_digest() == before
    (trained / "unet.safetensors").rename(trained / "kept")
    assert LDM(str(trained)).weights_digest() != before
    (trained / "kept").rename(trained / "unet.safetensors")


def test_missing_variants_say_how_to_get_them(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(adapter, "REFERENCE", tmp_path)
    with pytest.raises(MissingWeights, match="hibench train ldm --variant class --out"):
        LDM("reference", {"variant": "class"}).load()
    with pytest.raises(MissingWeights, match="variant inpainting starts from"):
        train_variant.train_variant(tmp_path / "out", "inpainting", base=tmp_path)


@pytest.mark.parametrize("task", ["super-resolution", "inpainting"])
def test_tasks_have_pictures_and_numbers(trained: Path, task: str) -> None:
    rows = LDM(str(trained)).run_task(task, (32, 48), [3, 4], steps=2)
    labels = [label for label, _ in rows]
    assert labels[0] == "given"
    assert labels[-1] == "truth"
    assert all("PSNR" in label and "SSIM" in label for label in labels[1:-1])
    assert all(images.dtype == torch.uint8 and len(images) == 2 for _, images in rows)
    assert rows[0][1].shape[-2:] == ((8, 12) if task == "super-resolution" else (32, 48))
    if task == "inpainting":
        outside = masks.draw_masks([3, 4], 32, 48).expand(-1, 3, -1, -1) < 0.5
        assert torch.equal(rows[1][1][outside], rows[2][1][outside])
        assert not torch.equal(rows[1][1], rows[2][1])


def test_tasks_that_cannot_be(trained: Path) -> None:
    method = LDM(str(trained))
    with pytest.raises(SpecError, match="no task 'inpaint'; did you mean 'inpainting'"):
        method.run_task("inpaint", (32, 32), [0])
    with pytest.raises(AdapterError, match="no multiple of 8 px"):
        method.run_task("inpainting", (44, 44), [0])
    with pytest.raises(AdapterError, match="random weights cannot do inpainting"):
        LDM("random", {"config": "tiny"}).run_task("inpainting", (32, 32), [0])


def test_scores_of_a_restoration_grow_with_its_error(monkeypatch) -> None:
    monkeypatch.setattr(tasks, "FRECHET_FROM", 8)
    truth = torch.from_numpy(noise_images(8, 64).copy())
    draw = torch.Generator().manual_seed(0)
    near, far = ((truth.float() + sigma * torch.randn(truth.shape, generator=draw)).clamp(0, 255).to(torch.uint8)
                 for sigma in (4, 40))
    a, b = tasks.restoration_scores(near[:2], truth[:2]), tasks.restoration_scores(near, truth)
    assert set(a) == {"psnr", "ssim"}
    assert set(b) == {"psnr", "ssim", "fd@scenes-clip"}
    c = tasks.restoration_scores(far, truth)
    assert b["psnr"] > c["psnr"] + 10
    assert b["ssim"] > c["ssim"]
    assert b["fd@scenes-clip"] < c["fd@scenes-clip"]


# -- ldm-sr --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "starts"), [
    ((64, 64), []), ((128, 128), [(64, 64)]), ((256, 256), [(64, 64)]), ((512, 512), [(64, 64), (128, 128)]),
    ((1024, 1024), [(64, 64), (256, 256)])])
def test_the_cascade_never_reduces_the_base(size: tuple[int, int], starts: list[tuple[int, int]]) -> None:
    assert super_resolution.cascade((64, 64), size) == starts


def test_ldm_sr_enlarges_what_the_ldm_makes(trained: Path, monkeypatch) -> None:
    method = LDMSR(str(trained), {"patch": 32, "patch_stride": 32})
    assert isinstance(method, Adapter)
    base = LDM(str(trained)).generate_batch((64, 64), [1, 2], steps=2)
    assert torch.equal(method.generate_batch((64, 64), [1, 2], steps=2), base)

    class Heard(Stage):
        def effective(self, **done: float) -> None:
            self.done = done

    stage = Heard()
    large = method.generate((128, 128), 2, steps=2, stage=stage)
    assert stage.done == {"steps": 2, "nfe": 2 + 2 * 4}             # the LDM, then four windows of 32 latents
    assert large.shape == (3, 128, 128)
    assert torch.equal(large, method.generate((128, 128), 2, steps=2))
    nearest = torch.nn.Upsample(scale_factor=4)
    monkeypatch.setattr(method, "_enlarge", lambda low, *_: nearest(low))
    repeated = method.generate((256, 256), 2, steps=2)
    assert (repeated[:, ::4, ::4].int() - base[1].int()).abs().max() <= 2      # the LDM's own image, here in a batch of one
    assert method.parameters() > LDM(str(trained)).parameters() * 1.9
    assert method.weights_digest() != method.base.weights_digest()


def test_what_ldm_sr_cannot_do(trained: Path) -> None:
    axes = {"steps": 50, "sparsity": 0.0}
    method = LDMSR(str(trained))
    assert "nothing to enlarge" in method.supports({"height": 32, "width": 32, **axes})
    assert "no whole-pixel canvas" in method.supports({"height": 112, "width": 130, **axes})
    assert method.supports({"height": 128, "width": 192, **axes}) is None
    for weights, options, said in (("random", {}, "no published configuration"), ("", {"variant": "class"}, "drop it")):
        with pytest.raises(SpecError, match=said):
            LDMSR(weights, options)


@pytest.mark.parametrize("module", [classes, masks, pool, super_resolution, tasks, train_variant, variants])
def test_all_names_exist(module) -> None:
    assert all(hasattr(module, name) for name in module.__all__)


def test_a_first_stage_of_its_own_is_preferred(tmp_path: Path) -> None:
    (tmp_path / "class").mkdir()
    for folder in (tmp_path, tmp_path / "class"):
        (folder / "first_stage.safetensors").write_bytes(b"")
    assert checkpoint.folder_file(tmp_path / "class", "first_stage").parent.name == "class"
    with pytest.raises(AdapterError):
        checkpoint.load_folder(empty_model(CONFIG), tmp_path)
