"""∞-Diff behind the contract: sampling dense and sparse, options, checkpoints of every kind, applications."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hibench import conformance
from hibench.adapter import Adapter, Stage
from hibench.errors import AdapterError, MissingWeights, SpecError
from hibench.show import run_show_task
from methods.infty_diff import InftyDiff, adapter, checkpoint, configs, interpolation, options, sampling, tasks
from methods.infty_diff.checkpoint import build
from methods.infty_diff.geometry import Canvas, Points
from methods.infty_diff.process import Process
from methods.ldm.model import randomise
from methods.nn.attention import to_tokens

TINY = {"config": "tiny", "prior_steps": 5}
FIXED = TINY | {"compat": "fixed"}
AXES = {"height": 32, "width": 32, "steps": 4, "sparsity": 0.0}


class Recorder(Stage):
    """Writes down what an adapter reports."""

    def __init__(self) -> None:
        self.log: list = []

    def __call__(self, name: str):  # type: ignore[no-untyped-def]
        self.log.append(name)
        return super().__call__(name)

    def step(self) -> None:
        self.log.append("step")

    def effective(self, **done) -> None:  # type: ignore[no-untyped-def]
        self.log.append(done)


@pytest.fixture(scope="module")
def tiny() -> InftyDiff:
    method = InftyDiff("random", dict(FIXED))
    method.load()
    return method


@pytest.mark.parametrize("compat", ["fixed", "official"])
def test_conformance(compat: str) -> None:
    findings = conformance.check_adapter(InftyDiff, weights="random", options=TINY | {"compat": compat})
    assert [str(finding) for finding in findings if finding.ok is False] == []
    assert sum(finding.ok is True for finding in findings) >= 16


def test_contract(tiny: InftyDiff) -> None:
    assert isinstance(tiny, Adapter)
    before, stage = torch.get_rng_state(), Recorder()
    images = tiny.generate_batch((24, 40), [3, 4], steps=4, stage=stage)
    assert images.shape == (2, 3, 24, 40)
    assert images.dtype == torch.uint8
    done = {"steps": 4, "nfe": 4, "tiles": 1, "sparsity": 0.0, "coordinates": 4 * 24 * 40}
    assert stage.log == ["encode", "denoise", *["step"] * 4, "decode", done]
    assert torch.equal(before, torch.get_rng_state())
    assert len(tiny.weights_digest()) == 64
    assert tiny.parameters() == InftyDiff("random", dict(FIXED)).parameters() > 5000


@pytest.mark.parametrize(("sparsity", "subset"), [(0.0, "auto"), (0.75, "auto"), (0.8, "uniform")])
def test_a_batch_equals_single_images(sparsity: float, subset: str) -> None:
    method = InftyDiff("random", FIXED | {"subset": subset})
    seeds = [0, 7, 123_456_789, 2]
    batch = method.generate_batch((16, 24), seeds, steps=3, sparsity=sparsity)
    single = torch.stack([method.generate((16, 24), seed, steps=3, sparsity=sparsity) for seed in seeds])
    assert (batch.int() - single.int()).abs().max() <= 2
    assert len({image.numpy().tobytes() for image in batch}) == 4


def test_sparse_sampling_reports_what_it_did(tiny: InftyDiff) -> None:
    stage = Recorder()
    tiny.generate((32, 32), 0, steps=20, sparsity=0.875, stage=stage)
    done = {"steps": 20, "nfe": 18 + 2 * 8, "tiles": 1, "sparsity": 0.875, "coordinates": 18 * 128 + 2 * 1024}
    assert stage.log[-1] == done                                    # a finish by parts: the mollifier is wide (2 px)
    tiny.generate((16, 16), 0, steps=20, sparsity=0.875, stage=stage)
    assert stage.log[-1] == done | {"nfe": 20, "coordinates": 18 * 32 + 2 * 256}
    tiny.generate((32, 32), 0, steps=10, sparsity=0.6, stage=stage)
    assert stage.log[-1]["nfe"] == 9 * 2 + 5
    assert stage.log[-1]["sparsity"] == pytest.approx(0.6, abs=0.005)
    tiny.generate((32, 32), 0, steps=2, sparsity=0.95, stage=stage)
    assert stage.log[-1]["sparsity"] == pytest.approx(0.95, abs=0.005)
    assert stage.log[-1]["nfe"] == 1 + 21


def test_sparsity_zero_is_dense_sampling(tiny: InftyDiff) -> None:
    from methods.infty_diff.process import ddim_step

    networks, plan = tiny.ready(), tiny.plan((24, 32), 6)
    assert [len(step) for step in plan.schedule] == [1] * 6
    with torch.inference_mode():
        codes = networks.decoder.codes(tiny.codes([5]))
        x = sampling.mollified_noise(plan, [5])
        support = networks.decoder.support(Points(plan.canvas))
        for i, t in enumerate(plan.table.timesteps):
            out = networks.decoder(to_tokens(x), support, networks.decoder.times(torch.tensor([float(t)])), codes)
            x = ddim_step(x, out.transpose(1, 2).unflatten(2, (24, 32)), plan.table, i).x
        expected = adapter.to_uint8(plan.blur.undo(x))[0]
    image = tiny.generate((24, 32), 5, steps=6, sparsity=0.0)
    assert (image.int() - expected.int()).abs().float().mean() < 0.05       # rounding is amplified 2e4 times at t = 999
    assert torch.equal(tiny.generate((24, 32), 5, steps=6), image)


def test_one_seed_is_one_function_at_all_resolutions(tiny: InftyDiff) -> None:
    noises = {side: sampling.mollified_noise(tiny.plan((side, 2 * side), 2), [3]) for side in (16, 32, 64, 128)}
    for large, small, most in ((128, 64, 0.05), (64, 32, 0.1), (64, 16, 0.3)):
        pooled = torch.nn.functional.avg_pool2d(noises[large], large // small)
        assert (pooled - noises[small]).abs().max() < most * noises[small].std()
    plan = sampling.make_plan(tiny.networks.decoder, Process(0.0), (16, 16), 2)
    assert sampling.mollified_noise(plan, [3]).std() == pytest.approx(1, abs=0.1)


def test_its_distribution_is_that_of_blurred_white_noise(tiny: InftyDiff) -> None:
    plan = tiny.plan((48, 32), 2)
    ours = sampling.mollified_noise(plan, range(200))
    white = torch.randn(200, 3, 48, 32, generator=torch.Generator().manual_seed(0))
    theirs = plan.blur(white * plan.canvas.ratio)
    for shift in ((0, 0), (0, 1), (2, 0), (3, 2)):                  # covariances of pixels that far apart
        a, b = ((x * x.roll(shift, (2, 3)))[..., 3:, 3:].mean().item() for x in (ours, theirs))
        assert a == pytest.approx(b, abs=0.03 * theirs.var().item())


def test_every_part_of_a_dense_finish_is_written(tiny: InftyDiff) -> None:
    """Where the network does not look at its neighbours, evaluating part by part equals evaluating everything."""
    networks = build(tiny.config | {"decoder": tiny.config["decoder"] | {"kernel_size": 1}}, "fixed", "fixed")
    decoder = networks.decoder.eval()
    with torch.inference_mode():
        randomise(decoder, 0)
        decoder.uno_linear_out.weight.zero_()                       # nothing comes back from the grid
        codes = decoder.codes(torch.zeros(1, 8))
        results = []
        for sparsity, subset in ((0.0, "auto"), (0.75, "auto"), (0.7, "uniform")):
            plan = sampling.make_plan(decoder, Process(2.0, True), (16, 16), 3, sparsity=sparsity, subset=subset, finish=1.0)
            results.append(sampling.reverse(decoder, plan, sampling.mollified_noise(plan, [0]), codes))
        assert plan.nfe == 12
    assert torch.allclose(results[1], results[0], atol=1e-5)
    assert torch.allclose(results[2], results[0], atol=1e-5)


def test_visits_are_even() -> None:
    canvas = Canvas(16, 24, 16, 8, 2)
    schedule, left_out = sampling.sparse_schedule(canvas, 18, 0.75, "auto", 0.1, sigma=2.0)
    visits = torch.zeros(16 * 24)
    for step in schedule[:16]:
        visits[step[0].flat()[0]] += 1
    assert torch.equal(visits, torch.full((16 * 24,), 4.0))
    assert left_out == pytest.approx(0.75)
    assert [len(step) for step in schedule[16:]] == [4, 4]          # by parts, and all at once where the mollifier is narrow
    narrow, _ = sampling.sparse_schedule(canvas, 18, 0.75, "auto", 0.1, sigma=0.5)
    assert [step[0].dense for step in narrow[15:]] == [False, True, True]
    assert len({step[0].stride for step in schedule} | {step[0].phase for step in schedule}) > 3
    with pytest.raises(SpecError, match=r"no lattices leave out 0\.987"):
        sampling.sparse_schedule(canvas, 4, 0.987, "lattice", 0.1, sigma=1.0)


@pytest.mark.parametrize("points", [Points(Canvas(24, 32, 16, 8), stride=(2, 3), phase=(1, 1)),
                                    Points(Canvas(24, 32, 16, 8), torch.arange(0, 24 * 32, 5)[None])])
def test_interpolation_to_what_was_left_out(points: Points) -> None:
    rows, columns = torch.linspace(0, 3, 24)[:, None], torch.linspace(0, 2, 32)
    image = torch.stack([rows.sin() * columns.cos(), rows + columns, torch.ones(24, 32)])[None]
    spread = interpolation.Spread(points)
    out = spread(spread.take(image))
    assert torch.allclose(spread.take(out), spread.take(image), atol=1e-6)
    assert (out - image)[..., 4:-4, 4:-4].abs().max() < 0.12
    again = torch.zeros_like(image)
    spread.put(spread.take(image), again)
    assert (again != 0).sum() == (spread.take(image) != 0).sum()


def test_supports_says_why_not(tiny: InftyDiff) -> None:
    assert tiny.supports(AXES | {"width": 53, "height": 37}) is None
    assert "smaller than 8 px" in tiny.supports(AXES | {"height": 4})
    assert "the ratio of the sides is above 16" in tiny.supports(AXES | {"height": 8, "width": 512})
    assert "not between 1 and 1000" in tiny.supports(AXES | {"steps": 1001})
    assert "fewer than 8 of the coordinates" in tiny.supports(AXES | {"sparsity": 0.999})
    official = InftyDiff("random", dict(TINY))
    assert "official read-back knows square images only" in official.supports(AXES | {"width": 48})
    assert InftyDiff("random", TINY | {"read_back": "fixed"}).supports(AXES | {"width": 48}) is None
    with pytest.raises(AdapterError, match="infty-diff: 4x32 is smaller"):
        tiny.generate((4, 32), 0)


@pytest.mark.parametrize(("weights", "given", "message"), [
    ("random", {"confg": "tiny"}, "no option 'confg'; did you mean 'config'"),
    ("random", {"config": "ffhq"}, "no configuration 'ffhq'"),
    ("random", {"compat": "new"}, "option compat: 'new' is not one of None, official, fixed"),
    ("random", {"variant": "8x"}, "option variant is for weights: reference"),
    ("reference", {"variant": "16x"}, "option variant: '16x' is not one of main, 1x"),
    ("reference", {"config": "tiny"}, "weights: reference has its own configuration"),
    ("random", {"prior_steps": 0}, "option prior_steps: 0 is not a whole number from 1 to 1000"),
    ("random", {"start": 1.5}, "option start: 1.5 is not a whole number from 0 to 999"),
    ("random", {"finish": 2}, "option finish: 2 is not a number from 0 to 1"),
    ("random", {"finish": None}, "option finish: None"),
    ("random", {"inv_snr": True}, "option inv_snr: True is not a number"),
    ("random", {"ema": 1}, "option ema: 1 is not true or false"),
    ("random", {"latent": 3}, "option latent: 3 is not the path"),
    ("random", {"conv": "slow"}, "option conv: 'slow' is not one of auto"),
    ("random", {"subset": "odd"}, "option subset: 'odd' is not one of auto"),
])
def test_wrong_options_are_refused_at_once(weights: str, given: dict, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        InftyDiff(weights, given)


def test_options_change_what_they_say(tiny: InftyDiff) -> None:
    image = tiny.generate((32, 32), 1, steps=4)
    for more in ({"compat": "official"}, {"read_back": "official"}, {"inv_snr": 0.5}, {"prior_steps": 9}):
        assert not torch.equal(InftyDiff("random", FIXED | more).generate((32, 32), 1, steps=4), image), more
    for how in ("fft", "factorised", "gather"):
        other = InftyDiff("random", FIXED | {"conv": how}).generate((32, 32), 1, steps=4)
        assert (other.int() - image.int()).abs().max() <= 1
    sparse = tiny.generate((32, 32), 1, steps=4, sparsity=0.75)
    assert not torch.equal(sparse, image)
    for more in ({"subset": "uniform"}, {"finish": 0.5}):
        assert not torch.equal(InftyDiff("random", FIXED | more).generate((32, 32), 1, steps=4, sparsity=0.75), sparse), more


def write_folder(folder: Path, seed: int = 0) -> dict:
    """hibench's own layout, with random weights."""
    config = configs.model_config("tiny") | {"compat": "fixed", "sampling": {"prior_steps": 3}}
    networks = build(config, "fixed", "fixed")
    folder.mkdir(parents=True, exist_ok=True)
    for name, module in zip(("decoder", "encoder", "prior"), networks.modules()):
        randomise(module, seed)
        state = {k: v.half() for k, v in module.state_dict().items()}
        if name == "prior":
            state |= {"latents.mean": torch.full((8,), 0.5), "latents.std": torch.full((8,), 2.0)}
        save_file(state, folder / f"{name}.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return config


def test_folder_of_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "w")
    method = InftyDiff(str(tmp_path / "w"))
    image = method.generate((16, 24), 0, steps=2)
    assert image.shape == (3, 16, 24)
    assert "decoder, encoder and prior of" in method.loaded
    assert method.codes([0]).shape == (1, 8)
    unscaled = sampling.sample_codes(method.networks.prior, [0], 3)
    assert torch.allclose(method.codes([0]), 2 * unscaled + 0.5)
    digest = method.weights_digest()
    write_folder(tmp_path / "w", seed=1)
    assert InftyDiff(str(tmp_path / "w")).weights_digest() != digest
    monkeypatch.setattr(adapter, "REFERENCE", tmp_path / "w")
    assert InftyDiff().generate((16, 16), 0, steps=2).shape == (3, 16, 16)
    (tmp_path / "w" / "prior.safetensors").unlink()
    with pytest.raises(MissingWeights, match=r"prior.safetensors is missing; get them with: hibench train infty-diff"):
        InftyDiff().load()
    variant = InftyDiff("reference", {"variant": "8x"})
    assert variant.supports(AXES) is None
    with pytest.raises(MissingWeights, match=r"hibench train infty-diff --variant 8x --out .*8x$"):
        variant.load()


def official_files(folder: Path, dense: bool = False) -> tuple[dict, checkpoint.Networks]:
    """The three official files with random weights; raw and averaged ones differ."""
    config = configs.model_config("tiny")
    networks = build(config, "official", "official")
    states = []
    for seed in (0, 1):
        for module in networks.modules():
            randomise(module, seed)
        states.append([{k: v.clone() for k, v in module.state_dict().items()} for module in networks.modules()])
    raw, averaged = states

    def style(state: dict) -> dict:
        state = dict(state) | {"uno_coords": torch.zeros(1, 64, 2), "normalising_conv.kernel": torch.ones(49, 1, 1)}
        return to_dense(state) if dense else state

    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"global_step": 7, "model_state_dict": style(raw[0]), "encoder_state_dict": style(averaged[1]),
                "model_ema_state_dict": style(averaged[0]), "optimizer_state_dict": {}}, folder / "checkpoint.pkl")
    torch.save({"global_step": 9, "model_state_dict": raw[2], "model_ema_state_dict": averaged[2],
                "optimizer_state_dict": {}}, folder / "latent_checkpoint.pkl")
    torch.save((torch.zeros(4, 8), torch.zeros(1, 8), torch.zeros(8), torch.full((8,), 2.0)), folder / "latents.pkl")
    return config, networks


def to_dense(state: dict) -> dict:
    """The keys and shapes of the official backend torch_dense."""
    out = {}
    for key, value in state.items():
        if key.startswith("uno.") or not key.startswith(("down_blocks", "up_blocks", "linear", "uno_linear", "normalising")):
            out[key] = value
        elif key.endswith("conv.kernel"):
            side = round(value.shape[0] ** 0.5)
            out[key.replace("kernel", "weight")] = value.view(side, side, *value.shape[1:]).permute(3, 2, 1, 0).contiguous()
        elif ".norm" in key:
            if key.endswith("weight"):
                out[key.replace("weight", "g")] = value.view(1, -1, 1, 1)
        elif value.dim() == 2 and not any(part in key for part in ("time_mlp", "z_mlp")):
            out[key] = value[..., None, None]
        else:
            out[key] = value
    return out


@pytest.mark.parametrize("dense", [False, True])
def test_official_checkpoints(tmp_path: Path, dense: bool) -> None:
    _, networks = official_files(tmp_path / "x", dense)             # `networks` hold the averaged weights
    method = InftyDiff(str(tmp_path / "x"), {"config": "tiny", "prior_steps": 3})
    method.load()
    style = "torch_dense" if dense else "torchsparse"
    assert f"step 7, averaged weights, {style} keys" in method.loaded
    for ours, theirs in zip(method.networks.modules(), networks.modules()):
        a, b = ours.state_dict(), theirs.state_dict()
        assert all(torch.equal(a[k], b[k]) for k in b)
    assert torch.equal(method.networks.std, torch.full((8,), 2.0))
    assert method.networks.encoder.down_blocks[0].plain is not dense
    image = method.generate((16, 16), 0, steps=2)
    raw = InftyDiff(str(tmp_path / "x" / "checkpoint.pkl"), {"config": "tiny", "prior_steps": 3, "ema": False})
    assert not torch.equal(raw.generate((16, 16), 0, steps=2), image)
    moved = tmp_path / "latent"
    moved.mkdir()
    for name in checkpoint.OFFICIAL[1:]:
        (tmp_path / "x" / name).rename(moved / name)
    with pytest.raises(MissingWeights, match=r"latent_checkpoint.pkl is missing; .* options: latent"):
        InftyDiff(str(tmp_path / "x"), {"config": "tiny"}).load()
    elsewhere = InftyDiff(str(tmp_path / "x"), {"config": "tiny", "prior_steps": 3, "latent": str(moved)})
    assert torch.equal(elsewhere.generate((16, 16), 0, steps=2), image)
    assert elsewhere.weights_digest() != InftyDiff(str(tmp_path / "x"), {"config": "tiny"}).weights_digest()


def test_strict_loading_lists_what_differs(tmp_path: Path) -> None:
    official_files(tmp_path)
    with pytest.raises(MissingWeights, match=r"no config.json at .* options: config \(ffhq_128, "):
        InftyDiff(str(tmp_path)).load()
    content = torch.load(tmp_path / "checkpoint.pkl", weights_only=True)
    state = content["model_ema_state_dict"]
    state["extra"] = state.pop("linear_in.bias")
    state["linear_out.bias"] = torch.zeros(4)
    torch.save(content, tmp_path / "checkpoint.pkl")
    with pytest.raises(AdapterError) as error:
        InftyDiff(str(tmp_path), {"config": "tiny"}).load()
    text = str(error.value)
    assert "model_ema_state_dict" in text
    assert "1 missing (linear_in.bias)" in text
    assert "1 unexpected (extra)" in text
    assert "1 of another shape (linear_out.bias [4] instead of [3])" in text
    assert "\n" not in text


def test_files_that_are_not_what_they_should_be(tmp_path: Path) -> None:
    options = {"config": "tiny"}
    official_files(tmp_path)
    torch.save((torch.zeros(4, 8), torch.zeros(8)), tmp_path / "latents.pkl")
    with pytest.raises(AdapterError, match="not the tuple"):
        InftyDiff(str(tmp_path), options).load()
    torch.save((0, 0, torch.zeros(8), torch.zeros(7)), tmp_path / "latents.pkl")
    with pytest.raises(AdapterError, match="the std of the codes is missing or does not have 8 numbers"):
        InftyDiff(str(tmp_path), options).load()
    torch.save({"step": 1}, tmp_path / "checkpoint.pkl")
    with pytest.raises(AdapterError, match="has no model_ema_state_dict; it holds: step"):
        InftyDiff(str(tmp_path), options).load()
    torch.save([1], tmp_path / "checkpoint.pkl")
    with pytest.raises(AdapterError, match="holds a list, not a checkpoint"):
        InftyDiff(str(tmp_path), options).load()
    (tmp_path / "checkpoint.pkl").write_bytes((tmp_path / "latents.pkl").read_bytes()[:300])
    with pytest.raises(AdapterError, match="not a readable checkpoint"):
        InftyDiff(str(tmp_path), options).load()
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(AdapterError, match="not a readable configuration"):
        InftyDiff(str(tmp_path)).load()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(AdapterError, match="not a configuration of ∞-Diff"):
        InftyDiff(str(tmp_path)).load()
    with pytest.raises(MissingWeights, match="no weights at"):
        InftyDiff(str(tmp_path / "nothing")).load()


def test_half_precision_stays_near(tiny: InftyDiff) -> None:
    half = InftyDiff("random", dict(FIXED), dtype="bfloat16")
    image = half.generate((32, 32), 0, steps=2)
    full = tiny.generate((32, 32), 0, steps=2)
    assert 0 < (image.int() - full.int()).abs().float().mean() < 0.25 * full.float().std()


def test_super_resolution(tiny: InftyDiff) -> None:
    rows = dict(tiny.run_task("super-resolution", (32, 48), [1, 2], steps=3))
    assert [tuple(images.shape) for images in rows.values()] == [(2, 3, 8, 12), *[(2, 3, 32, 48)] * 3]
    assert all(images.dtype == torch.uint8 for images in rows.values())
    low = tasks.scenes([1], 8, 12, "cpu")
    far, near = (tasks.super_resolve(tiny, low, (32, 48), [0], 50, start) for start in (None, 20))
    bicubic = torch.nn.functional.interpolate(low, (32, 48), mode="bicubic").clamp(-1, 1)
    assert (near - bicubic).abs().mean() < 0.5 * (far - bicubic).abs().mean()


def test_inpainting_keeps_what_is_known(tiny: InftyDiff) -> None:
    images = tasks.scenes([1, 2], 32, 24, "cpu")
    known = torch.ones(32, 24, dtype=torch.bool)
    known[8:20, 6:18] = False
    out = tasks.inpaint(tiny, images, known, [3, 4], 3)
    assert torch.equal(out[:, :, known], images[:, :, known])
    assert (out - images)[:, :, ~known].abs().mean() > 0.05
    assert not torch.equal(tasks.inpaint(tiny, images, known, [5, 6], 3), out)
    hidden = torch.where(known, images, 0.7)
    assert torch.equal(tasks.inpaint(tiny, hidden, known, [3, 4], 3), out)              # what is not known is not looked at
    single = tasks.inpaint(tiny, images[1:], known, [4], 3)
    assert torch.allclose(single, out[1:], atol=0.02)
    labels = [label for label, _ in tiny.run_task("inpainting", (32, 32), [1], steps=2)]
    assert labels == ["scene", "known", "inpainted", "inpainted, other noise"]


def test_encoding_known_coordinates_only(tiny: InftyDiff) -> None:
    encoder, images = tiny.networks.encoder, tasks.scenes([1, 2], 16, 16, "cpu")
    with torch.inference_mode():
        every = tasks.encode(encoder, images, torch.ones(16, 16, dtype=torch.bool))
        assert torch.allclose(every, tasks.encode(encoder, images), atol=1e-5)
        known = torch.rand(16, 16, generator=torch.Generator().manual_seed(0)) < 0.5
        part = tasks.encode(encoder, images, known)
        assert torch.equal(part, tasks.encode(encoder, torch.where(known, images, 9.0), known))
    assert not torch.allclose(part, every, atol=1e-3)


def test_a_task_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "w")
    monkeypatch.setattr(adapter, "REFERENCE", tmp_path / "w")
    source = "from methods.infty_diff import InftyDiff as Mine\n"
    (tmp_path / "mine.py").write_text(source)
    out = tmp_path / "rows.png"
    assert run_show_task(f"{tmp_path / 'mine.py'}:Mine", "inpainting", resolution=(16, 16), count=2, seed=0, out=out, steps=2,
                         device="cpu") == 0
    assert out.stat().st_size > 1000
    with pytest.raises(SpecError, match="it has: super-resolution, inpainting"):
        run_show_task(f"{tmp_path / 'mine.py'}:Mine", "colours", resolution=(16, 16), count=2, seed=0, out=out)


def test_importing_the_adapter_does_not_import_torch() -> None:
    code = ("import sys, methods.infty_diff as m; method = m.InftyDiff('random', {'config': 'tiny'}); "
            "method.supports({'height': 64, 'width': 64, 'steps': 50}); print('torch' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


@pytest.mark.parametrize("module", [adapter, checkpoint, interpolation, options, sampling, tasks])
def test_all_names_exist(module) -> None:  # type: ignore[no-untyped-def]
    assert all(hasattr(module, name) for name in module.__all__)
    assert module.__doc__
