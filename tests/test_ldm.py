"""LDM: parity with the official tensors, the adapter contract, and checkpoints of every kind, good and bad."""

from __future__ import annotations

import dataclasses
import json
import pickle
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hibench.adapter import Adapter, Stage, seeded_noise, to_uint8
from hibench.errors import AdapterError, MissingWeights, SpecError
from hibench.golden import run_golden
from methods.ldm import LDM, adapter, checkpoint, conditional, configs, golden, model, sampling, tiling
from methods.ldm import options as ldm_options
from methods.ldm.model import LatentDiffusion

GOLDEN = Path(__file__).parent / "golden" / "ldm"
CHECKPOINT = GOLDEN / "e_checkpoint" / "model.ckpt"
CASES = sorted(p.name for p in GOLDEN.iterdir() if p.is_dir())


class Recorder(Stage):
    """Writes down what an adapter reports."""

    def __init__(self) -> None:
        self.log: list = []

    def __call__(self, name: str):
        self.log.append(name)
        return super().__call__(name)

    def step(self) -> None:
        self.log.append("step")

    def effective(self, **done) -> None:
        self.log.append(done)


@pytest.fixture(scope="module")
def tiny() -> LDM:
    ldm = LDM("random", {"config": "tiny"})
    ldm.load()
    return ldm


@pytest.fixture(scope="module")
def official() -> dict:
    return json.loads((GOLDEN / "e_checkpoint" / "config.json").read_text())["model"]["params"]


@pytest.mark.parametrize("case", CASES)
def test_golden(case: str) -> None:
    lines: list[str] = []
    assert run_golden("ldm", GOLDEN / case, lines.append) == 0, [line for line in lines if line.startswith("FAIL")]
    assert len(lines) > 1


def test_golden_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    import numpy as np

    (tmp_path / "config.json").write_text("{}")
    for name in ("inputs", "outputs"):
        np.savez(tmp_path / f"{name}.npz", x=np.zeros(1))
    with pytest.raises(AdapterError, match="not an LDM golden case"):
        list(LDM.golden(tmp_path))


def test_contract(tiny: LDM) -> None:
    assert isinstance(tiny, Adapter)
    before = torch.get_rng_state()
    stage = Recorder()
    images = tiny.generate_batch((64, 96), [3, 4], steps=5, stage=stage)
    assert images.shape == (2, 3, 64, 96)
    assert images.dtype == torch.uint8
    assert stage.log == ["denoise", *["step"] * 5, "decode", {"steps": 5, "nfe": 5, "tiles": 1}]
    assert torch.equal(before, torch.get_rng_state())
    assert images.float().std((1, 2, 3)).min() > 5
    torch.manual_seed(99)
    assert torch.equal(images, tiny.generate_batch((64, 96), [3, 4], steps=5))
    assert len(tiny.weights_digest()) == 64
    assert tiny.parameters() == LDM("random", {"config": "tiny"}).parameters() > 1_000_000


@pytest.mark.parametrize("options", [{"eta": 0.0}, {"eta": 1.0}, {"sampler": "ddpm"}, {"sampler": "dpm++2m"}])
def test_a_batch_equals_single_images(options: dict) -> None:
    ldm = LDM("random", {"config": "tiny", **options})
    ldm.load()
    seeds = [0, 7, 123_456_789, 2, 3, 4, 5, 6]
    batch = ldm.generate_batch((16, 24), seeds, steps=5)
    single = torch.stack([ldm.generate((16, 24), s, steps=5) for s in seeds])
    assert (batch.int() - single.int()).abs().max() <= 2
    assert len({image.numpy().tobytes() for image in batch}) == 8


def test_eta_one_adds_noise_of_the_seed(tiny: LDM) -> None:
    noisy = LDM("random", {"config": "tiny", "eta": 1.0})
    a, b = (noisy.generate((32, 32), s, steps=5) for s in (0, 0))
    assert torch.equal(a, b)
    assert (a.int() - tiny.generate((32, 32), 0, steps=5).int()).abs().max() > 10


def test_half_precision_stays_near(tiny: LDM) -> None:
    half = LDM("random", {"config": "tiny"}, dtype="bfloat16")
    half.load()
    half.model.load_state_dict({k: v.bfloat16() for k, v in tiny.model.state_dict().items()})
    image = half.generate((32, 32), 0, steps=4)
    assert image.dtype == torch.uint8
    difference = (image.int() - tiny.generate((32, 32), 0, steps=4).int()).abs().float().mean()
    assert 0 < difference < 0.25 * tiny.generate((32, 32), 0, steps=4).float().std()


def test_random_weights_are_the_same_every_time(tiny: LDM) -> None:
    again = LDM("random", {"config": "tiny"})
    again.load()
    a, b = tiny.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert again.weights_digest() == tiny.weights_digest() != LDM("random", {"config": "cin256"}).weights_digest()


def test_supports_says_what_is_nearest(tiny: LDM) -> None:
    axes = {"height": 64, "width": 64, "steps": 50, "sparsity": 0.0}
    assert tiny.supports(axes) is None
    assert tiny.supports(axes | {"height": 60}) == "60x64 is not a multiple of 8 px (f x U-Net); the nearest is 64x64"
    assert "250, 500" in tiny.supports(axes | {"steps": 300})
    assert "do not fit a U-Net of 2 levels" in LDM("random", {"config": "tiny", "patch": 15}).supports(axes)
    assert "sparsity" in tiny.supports(axes | {"sparsity": 0.5})
    assert LDM("random", {"config": "tiny", "sampler": "ddpm"}).supports(axes | {"steps": 1000}) is None
    assert LDM("random", {"config": "lsun_churches256"}).supports(axes | {"width": 192}) == (
        "64x192 is not a multiple of 128 px (f x U-Net); the nearest is 128x256")
    with pytest.raises(AdapterError, match="not a multiple of 8"):
        tiny.generate((60, 64), 0)
    with pytest.raises(SpecError, match="the nearest that work: 250, 500"):
        tiny.generate((64, 64), 0, steps=300)


@pytest.mark.parametrize(("weights", "options", "message"), [
    ("random", {"confg": "tiny"}, "no option 'confg'; did you mean 'config'"),
    ("random", {"config": "ffhq"}, "no configuration 'ffhq'; did you mean 'ffhq256'"),
    ("random", {"eta": -1}, "option eta: -1 is not a number >= 0"),
    ("random", {"guidance": "high"}, "option guidance: 'high'"),
    ("random", {"sampler": "plms"}, "option sampler: 'plms' is not one of ddim, ddpm, dpm"),
    ("random", {"class": "dog"}, "option class: 'dog' is not the number of a class"),
    ("random", {"ema": "no"}, "option ema: 'no' is not true or false"),
    ("random", {"patch": 0}, "option patch: 0 is not a number of latents"),
    ("reference", {"config": "tiny"}, "weights: reference has its own configuration"),
])
def test_wrong_options_are_refused_at_once(weights: str, options: dict, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        LDM(weights, options)


def test_classes_and_guidance(monkeypatch) -> None:
    params = configs.model("vq-f4", 16, 3, 32, [1, 2], [2], classes=5, class_dim=16)
    params["unet_config"]["params"]["num_res_blocks"] = 1
    params["first_stage_config"] = configs.tiny()["first_stage_config"]
    for module in (adapter, ldm_options):
        monkeypatch.setattr(module, "model_params", lambda name: params)
    base = {"config": "small", "null_class": 4}
    images = {}
    for name, options in {"plain": {}, "guided": {"guidance": 4.0}, "other": {"class": 2}, "same": {"class": 1}}.items():
        stage = Recorder()
        images[name] = LDM("random", base | options).generate((32, 32), 1, steps=4, stage=stage)
        assert stage.log[0] == "encode"
        assert stage.log[-1] == {"steps": 4, "nfe": 8 if name == "guided" else 4, "tiles": 1}
    assert torch.equal(images["plain"], images["same"])             # seed 1 picks class 1
    assert not torch.equal(images["plain"], images["other"])
    assert not torch.equal(images["plain"], images["guided"])
    guided = LDM("random", base | {"guidance": 4.0})
    batch = guided.generate_batch((32, 32), [0, 1], steps=4)
    assert (batch[1].int() - images["guided"].int()).abs().max() <= 2
    with pytest.raises(SpecError, match="option class: 7 is not one of the model's 5 classes"):
        LDM("random", base | {"class": 7}).generate((32, 32), 0, steps=2)
    with pytest.raises(SpecError, match="guidance needs a model that was trained with a class for 'none'"):
        LDM("random", {"config": "small", "guidance": 2.0}).generate((32, 32), 0, steps=2)


def test_patchwise_denoising_follows_the_official_fold() -> None:
    """ddpm.py, split_input_params: unfold, weight, fold, normalise; for sizes that the stride divides."""
    x, more = torch.randn(2, 3, 24, 16), torch.randn(2, 1, 24, 16)
    patches = sampling.Patches(size=8, stride=4)

    def evaluate(part: torch.Tensor, extra: torch.Tensor) -> torch.Tensor:
        return part.cumsum(-1) + extra * part.mean((2, 3), keepdim=True)

    ours = sampling.patchwise(evaluate, x, more, patches)
    corner = torch.tensor([7.0, 7.0]).view(1, 1, 2)
    place = torch.stack(torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij"), -1) / corner
    weight = torch.minimum(place.amin(-1), (1 - place).amin(-1)).clamp(0.01, 0.5)
    unfold, count = torch.nn.Unfold(8, stride=4), 5 * 3
    parts = [u.view(2, -1, 8, 8, count) for u in (unfold(x), unfold(more))]
    out = torch.stack([evaluate(parts[0][..., i], parts[1][..., i]) * weight for i in range(count)], -1)
    fold = torch.nn.Fold((24, 16), 8, stride=4)
    expected = fold(out.view(2, -1, count)) / fold(weight.view(1, 64, 1).expand(1, 64, count))
    assert torch.allclose(ours, expected, atol=1e-5)
    assert torch.allclose(sampling.patchwise(evaluate, x, more, sampling.Patches(32, 16)), evaluate(x, more), atol=1e-5)
    assert sampling.patch_origins(21, patches) == [0, 4, 8, 12, 13]
    assert sampling.patch_origins(5, patches) == [0]


def test_patchwise_sampling_through_the_adapter(tiny: LDM) -> None:
    stage = Recorder()
    image = LDM("random", {"config": "tiny", "patch": 8, "patch_stride": 4}).generate((64, 48), 0, steps=2, stage=stage)
    assert stage.log[-1] == {"steps": 2, "nfe": 2 * 3 * 2, "tiles": 6}
    assert not torch.equal(image, tiny.generate((64, 48), 0, steps=2))
    whole = LDM("random", {"config": "tiny", "patch": 16}).generate((64, 48), 0, steps=2)
    assert (whole.int() - tiny.generate((64, 48), 0, steps=2).int()).abs().max() <= 2


def test_official_checkpoint_through_the_adapter() -> None:
    ldm = LDM(str(CHECKPOINT))
    image = ldm.generate((24, 24), 0, steps=10)
    assert image.shape == (3, 24, 24)
    assert "averaged U-Net weights" in ldm.loaded
    raw = LDM(str(CHECKPOINT), {"ema": False})
    assert not torch.equal(raw.generate((24, 24), 0, steps=10), image)
    assert "raw U-Net weights" in raw.loaded
    state = checkpoint.read_state_dict(CHECKPOINT)
    names = checkpoint.ema_names(ldm.model.unet)
    assert len(set(names.values())) == len(names)
    assert torch.equal(dict(ldm.model.unet.named_parameters())["out.2.weight"], state["model_ema.diffusion_modelout2weight"])


def test_adapter_follows_the_official_sampler() -> None:
    """The adapter's own noise through the path of the golden cases gives the adapter's image."""
    ldm = LDM(str(CHECKPOINT), {"eta": 1.0})
    image = ldm.generate((24, 24), 5, steps=10)
    noise = torch.stack([seeded_noise((3, 12, 12), [5], stream=1 + i) for i in range(10)])
    inputs = {"x_T": seeded_noise((3, 12, 12), [5]), "noise": noise}
    with torch.inference_mode():
        z, *_ = golden.run_ddim(ldm.model, inputs, {"S": 10, "eta": 1.0}, None, None)
        expected = to_uint8(ldm.model.decode(z))[0]
    assert (image.int() - expected.int()).abs().max() <= 2


def write_folder(folder: Path, params: dict, seed: int = 0) -> LatentDiffusion:
    network = LatentDiffusion(params)
    model.randomise(network, seed)
    folder.mkdir(exist_ok=True)
    save_file({k: v.half() for k, v in network.first_stage_model.state_dict().items()}, folder / "first_stage.safetensors")
    save_file({k: v.half() for k, v in network.unet.state_dict().items()}, folder / "unet.safetensors")
    (folder / "config.json").write_text(json.dumps(params | {"scale_factor": 0.5}))
    return network


@pytest.mark.parametrize("sampler", ["ddim", "dpm++2m"])
def test_a_network_that_predicts_v_samples_as_one_that_predicts_eps(sampler: str) -> None:
    """v = (eps - sqrt(1 - ab) x) / sqrt(ab), whatever the sampler, with guidance and concatenation as well."""
    models = [LatentDiffusion({**configs.model_params("tiny"), "parameterization": kind}).eval() for kind in ("eps", "v")]
    ab = torch.from_numpy(models[0].alphas_cumprod).float()
    now: list[torch.Tensor] = []

    def eps(x: torch.Tensor) -> torch.Tensor:
        return torch.sin(3 * x) + 0.3 * x.flip(-1)

    def network(kind: str):
        def forward(x: torch.Tensor, embeddings, **_: object) -> torch.Tensor:
            t = now[int(embeddings[0])]
            return eps(x) if kind == "eps" else (eps(x) - (1 - ab[t]).sqrt() * x) / ab[t].sqrt()
        return forward

    out = []
    for diffusion in models:
        plan = sampling.make_plan(diffusion, 10, sampler)
        assert (plan.velocity is not None) == (diffusion.parameterization == "v")
        now[:] = plan.table.timesteps
        plan = dataclasses.replace(plan, embeddings=tuple((torch.tensor(i),) for i in range(len(plan))))
        diffusion.model.diffusion_model.forward = network(diffusion.parameterization)
        out.append(sampling.sample_latents(diffusion, plan, (3, 8, 8), [4, 5]))
    assert (out[0] - out[1]).abs().max() <= 1e-4 * out[0].abs().max()
    with pytest.raises(SpecError, match="parameterization 'x0' is not known; it is eps or v"):
        LatentDiffusion({**configs.model_params("tiny"), "parameterization": "x0"})


def test_folder_of_safetensors(tmp_path: Path, official: dict) -> None:
    network = write_folder(tmp_path / "w", official)
    ldm = LDM(str(tmp_path / "w"))
    ldm.load()
    assert ldm.model.scale_factor == 0.5
    assert ldm.generate((24, 24), 0, steps=2).shape == (3, 24, 24)
    assert torch.equal(ldm.model.unet.out[2].weight, network.unet.out[2].weight.half().float())
    digest = ldm.weights_digest()
    write_folder(tmp_path / "w", official, seed=1)
    assert LDM(str(tmp_path / "w")).weights_digest() != digest
    (tmp_path / "w" / "unet.safetensors").unlink()
    with pytest.raises(MissingWeights, match=r"unet.safetensors is missing; get it with: hibench train ldm --out .*w$"):
        LDM(str(tmp_path / "w")).load()


def test_reference_weights_that_are_not_there(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(adapter, "REFERENCE", tmp_path / "nothing")
    ldm = LDM()
    assert ldm.supports({"height": 64, "width": 64, "steps": 50, "sparsity": 0.0}) is None
    with pytest.raises(MissingWeights, match=r"hibench train ldm --out .*nothing$"):
        ldm.load()
    with pytest.raises(MissingWeights, match="no weights at"):
        LDM(str(tmp_path / "x.ckpt")).load()


def save_checkpoint(path: Path, state: dict) -> str:
    torch.save({"state_dict": state, "global_step": 1}, path)
    (path.parent / "config.json").write_text((GOLDEN / "e_checkpoint" / "config.json").read_text())
    return str(path)


def test_strict_loading_lists_what_differs(tmp_path: Path) -> None:
    state = {k: v.clone() for k, v in checkpoint.read_state_dict(CHECKPOINT).items() if not k.startswith("model_ema.")}
    state["model.diffusion_model.extra"] = torch.zeros(1)
    del state["first_stage_model.encoder.conv_in.bias"]
    state["first_stage_model.quant_conv.bias"] = torch.zeros(5)
    path = save_checkpoint(tmp_path / "model.ckpt", state)
    with pytest.raises(AdapterError) as error:
        LDM(path).load()
    text = str(error.value)
    assert "1 missing (first_stage_model.encoder.conv_in.bias)" in text
    assert "1 unexpected (model.diffusion_model.extra)" in text
    assert "1 of another shape (first_stage_model.quant_conv.bias [5] instead of [3])" in text
    assert "\n" not in text


def test_incomplete_averages_are_not_mixed_with_raw_weights(tmp_path: Path) -> None:
    state = {k: v.clone() for k, v in checkpoint.read_state_dict(CHECKPOINT).items()}
    del state["model_ema.diffusion_modelout2weight"]
    path = save_checkpoint(tmp_path / "model.ckpt", state)
    with pytest.raises(AdapterError, match=r"incomplete: 1 missing \(diffusion_modelout2weight\); use options: ema: false"):
        LDM(path).load()
    LDM(path, {"ema": False}).load()


def test_what_sampling_does_not_need_is_ignored_and_the_scale_is_taken(tmp_path: Path, official: dict) -> None:
    state = {k: v.clone() for k, v in checkpoint.read_state_dict(CHECKPOINT).items()}
    state |= {"first_stage_model.loss.discriminator.main.0.weight": torch.zeros(3), "logvar": torch.zeros(1000),
              "scale_factor": torch.tensor(0.25)}
    network = LatentDiffusion(official)
    loaded = checkpoint.load_checkpoint(network, state)
    assert network.scale_factor == loaded.scale_factor == 0.25
    assert loaded.tensors == len(network.state_dict())
    assert loaded.tensors + loaded.ignored == len(state) + len(checkpoint.ema_names(network.unet))
    assert "latent scale 0.25" in str(loaded)


def test_zip_and_first_stage_checkpoints(tmp_path: Path, official: dict) -> None:
    with zipfile.ZipFile(tmp_path / "vq-f4.zip", "w") as archive:
        archive.write(CHECKPOINT, "model.ckpt")
    state = checkpoint.read_state_dict(tmp_path / "vq-f4.zip")
    assert state.keys() == checkpoint.read_state_dict(CHECKPOINT).keys()
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as archive:
        archive.writestr("readme.txt", "no")
    with pytest.raises(AdapterError, match=r"holds 0 .ckpt files"):
        checkpoint.read_state_dict(tmp_path / "empty.zip")
    (tmp_path / "cut.zip").write_bytes((tmp_path / "vq-f4.zip").read_bytes()[:5000])
    with pytest.raises(AdapterError, match="truncated"):
        checkpoint.read_state_dict(tmp_path / "cut.zip")


def test_first_stage_alone(tmp_path: Path, official: dict) -> None:
    config = official["first_stage_config"]
    whole = checkpoint.load_first_stage(CHECKPOINT, config)
    state = whole.state_dict() | {"loss.discriminator.main.0.weight": torch.zeros(2)}
    torch.save({"state_dict": state}, tmp_path / "model.ckpt")
    with zipfile.ZipFile(tmp_path / "vq-f4.zip", "w") as archive:
        archive.write(tmp_path / "model.ckpt", "model.ckpt")
    alone = checkpoint.load_first_stage(tmp_path / "vq-f4.zip", config)
    x = torch.rand(1, 3, 24, 24) * 2 - 1
    with torch.inference_mode():
        assert torch.equal(alone.encode(x), whole.encode(x))
    with pytest.raises(AdapterError, match="does not fit the configured network"):
        checkpoint.load_first_stage(CHECKPOINT, configs.first_stage_config("vq-f4"))


def conditional_model(extra: int) -> LatentDiffusion:
    params = configs.tiny()
    params["unet_config"]["params"]["in_channels"] += extra
    return model.random_model(params)


def test_super_resolution_follows_its_input() -> None:
    network, low = conditional_model(3), torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    high = conditional.super_resolve(network, low, [0, 1], steps=4)
    assert high.shape == (2, 3, 64, 96)
    assert high.abs().max() <= 1
    alone = conditional.super_resolve(network, low[1:], [1], steps=4)
    assert (high[1:] - alone).abs().mean() < 0.01
    assert (conditional.super_resolve(network, -low, [0, 1], steps=4) - high).abs().mean() > 0.05
    assert conditional.super_resolve(network, low, [0, 1], steps=2, patches=sampling.Patches(16, 8)).shape == high.shape
    with pytest.raises(ValueError, match="takes 3 channels of condition, not 4"):
        conditional.inpaint(network, high, high[:, :1], [0, 1])


def test_inpainting_changes_the_hole_only() -> None:
    network, image = conditional_model(4), torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 8:24, 8:20] = 1
    filled = conditional.inpaint(network, image, mask, [0], steps=4)
    inside = mask.bool().expand_as(image)
    assert torch.equal(filled[~inside], image[~inside])
    assert (filled[inside] - image[inside]).abs().mean() > 0.05
    changed = torch.where(inside, torch.rand_like(image), image)    # what lies in the hole is never looked at
    assert torch.equal(conditional.inpaint(network, changed, mask, [0], steps=4), filled)
    condition = conditional.inpainting_condition(network, image, mask)
    assert condition.shape == (1, 4, 8, 8)
    assert condition[0, 3].unique().tolist() == [-1, 1]
    assert (condition[0, 3] == 1).sum() == 4 * 3


def test_tiled_decoding_covers_everything_and_approaches_the_whole() -> None:
    def decode(z: torch.Tensor) -> torch.Tensor:                    # a decoder without global context: tiles are exact
        return torch.nn.functional.interpolate(z, scale_factor=4.0)

    z = torch.randn(2, 3, 21, 34)
    tiled = tiling.decode_tiled(decode, z, 4, tile=8, overlap=3)
    assert torch.allclose(tiled, decode(z), atol=1e-5)
    assert tiling.tile_spans(21, 8, 3) == [(0, 8), (5, 13), (10, 18), (13, 21)]
    assert tiling.tile_spans(5, 8, 3) == [(0, 5)]
    assert tiling.ramp(0, 4, 8, 2, 1).tolist() == [1, 1, 0.75, 0.25]
    with pytest.raises(ValueError, match="does not fit"):
        tiling.tile_spans(9, 4, 4)


def test_an_image_of_4096_px_is_decoded_a_tile_at_a_time() -> None:
    largest = 0

    def decode(z: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        largest = max(largest, z.shape[0] * z.shape[2] * z.shape[3])
        return torch.nn.functional.interpolate(z, scale_factor=4.0)

    z = torch.arange(1024.0).expand(1, 3, 1024, 1024)
    image = tiling.decode_tiled(decode, z, 4, tile=128, overlap=32)
    assert image.shape == (1, 3, 4096, 4096)
    assert largest == 128 * 128                                     # what the decoder holds does not grow with the image
    assert torch.allclose(image[0, :, 77], torch.arange(1024.0).repeat_interleave(4).expand(3, -1), atol=1e-2)


def test_tiled_decoding_through_the_adapter(tiny: LDM) -> None:
    whole = tiny.generate((64, 64), 0, steps=2).float()
    exact = LDM("random", {"config": "tiny", "decode_tile": 16}).generate((64, 64), 0, steps=2).float()
    tiled = LDM("random", {"config": "tiny", "decode_tile": 12}).generate((64, 64), 0, steps=2).float()
    assert (exact - whole).abs().max() <= 1
    assert 0 < (tiled - whole).abs().mean() < 0.5 * (whole - whole.flip(-1)).abs().mean()


class Evil:
    """Would run code if it were unpickled by the ordinary loader."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('code ran')",))


@pytest.mark.parametrize("kind", ["truncated", "garbage", "empty", "code", "pickled code", "list", "safetensors"])
def test_bad_files_are_one_clear_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("model.safetensors" if kind == "safetensors" else "model.ckpt")
    if kind == "truncated":
        path.write_bytes(CHECKPOINT.read_bytes()[:300_000])
    elif kind in ("garbage", "safetensors"):
        path.write_bytes(b"not a checkpoint at all" * 10)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "code":
        torch.save({"state_dict": {"a": torch.zeros(1), "b": Evil()}}, path)
    elif kind == "pickled code":
        path.write_bytes(pickle.dumps(Evil()))
    else:
        torch.save([torch.zeros(1)], path)
    with pytest.raises(AdapterError) as error:
        checkpoint.read_state_dict(path)
    text = str(error.value)
    assert str(path) in text
    assert "\n" not in text
    expected = {"code": "pickled code", "pickled code": "", "list": "holds a list"}.get(kind, "not a readable")
    assert expected in text


def test_classes_that_old_lightning_files_name_are_harmless(tmp_path: Path, monkeypatch) -> None:
    name = "pytorch_lightning.callbacks.model_checkpoint"
    module = types.ModuleType(name)
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": name})
    with monkeypatch.context() as patch:
        for part in ("pytorch_lightning", "pytorch_lightning.callbacks", name):
            patch.setitem(sys.modules, part, module)
        saved = {"callbacks": {module.ModelCheckpoint: {"best": 1}}, "state_dict": {"w": torch.ones(2)}}
        torch.save(saved, tmp_path / "old.ckpt")
    assert name not in sys.modules
    assert checkpoint.read_state_dict(tmp_path / "old.ckpt")["w"].tolist() == [1, 1]


def test_configurations_are_found_beside_the_weights(tmp_path: Path, official: dict) -> None:
    import yaml

    (tmp_path / "model.ckpt").write_bytes(CHECKPOINT.read_bytes())
    with pytest.raises(MissingWeights, match="no configuration beside"):
        LDM(str(tmp_path / "model.ckpt")).load()
    (tmp_path / "2021-project.yaml").write_text(yaml.safe_dump({"model": {"params": official}}))
    assert LDM(str(tmp_path)).generate((24, 24), 0, steps=2).shape == (3, 24, 24)
    (tmp_path / "config.yaml").write_text("a: [")
    with pytest.raises(AdapterError, match="not a readable configuration"):
        LDM(str(tmp_path)).load()
    (tmp_path / "config.yaml").write_text("a: 1")
    with pytest.raises(AdapterError, match="not an LDM configuration"):
        LDM(str(tmp_path)).load()


@pytest.mark.parametrize("name", configs.MODELS)
def test_every_published_configuration_builds(name: str) -> None:
    with torch.device("meta"):
        network = LatentDiffusion(configs.model_params(name))
    assert network.unet.in_channels >= network.latent_channels == network.first_stage_model.embed_dim
    ldm = LDM("random", {"config": name})
    assert ldm.multiple == network.multiple
    axes = {"height": 512, "width": 512, "steps": 50, "sparsity": 0.0}
    assert ldm.supports(axes) is None
    million = {"ffhq256": 274.1, "lsun_churches256": 295.0, "cin256": 395.0, "cin256-v2": 400.9, "inpainting_big": 387.2}
    if name in million:
        assert sum(p.numel() for p in network.unet.parameters()) / 1e6 == pytest.approx(million[name], abs=0.05)


def test_published_names() -> None:
    assert set(configs.MODELS) == set(configs.models())
    assert configs.PUBLISHED.keys() <= set(configs.MODELS)
    assert configs.PUBLISHED_FIRST_STAGES.keys() == configs.FIRST_STAGES.keys()


def test_networks_that_need_an_image_say_so(tmp_path: Path) -> None:
    params = configs.tiny()
    params["unet_config"]["params"]["in_channels"] = 6
    (tmp_path / "config.json").write_text(json.dumps(params))
    axes = {"height": 64, "width": 64, "steps": 50, "sparsity": 0.0}
    assert "needs an image to start from" in LDM(str(tmp_path)).supports(axes)


def test_importing_the_adapter_does_not_import_torch() -> None:
    code = ("import sys, methods.ldm as m; ldm = m.LDM('random', {'config': 'tiny'}); "
            "ldm.supports({'height': 64, 'width': 64, 'steps': 50}); print('torch' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


@pytest.mark.parametrize("module", [adapter, checkpoint, configs, golden, model, sampling, tiling, conditional, ldm_options])
def test_all_names_exist(module) -> None:
    assert all(hasattr(module, name) for name in module.__all__)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_a_gpu(dtype: str) -> None:
    ldm = LDM("random", {"config": "tiny", "eta": 1.0}, "cuda", dtype)
    images = ldm.generate_batch((64, 64), [0, 1], steps=10)
    assert images.device.type == "cuda"
    if dtype == "float32":
        cpu = LDM("random", {"config": "tiny", "eta": 1.0})
        cpu.load()
        cpu.model.load_state_dict({k: v.cpu() for k, v in ldm.model.state_dict().items()})
        assert (cpu.generate_batch((64, 64), [0, 1], steps=10).int() - images.cpu().int()).float().abs().mean() < 1
