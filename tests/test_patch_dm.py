"""Patch-DM: parity with the official tensors, the collage, bounded batches, the adapter contract, checkpoints, applications."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hibench.adapter import Adapter, Stage
from hibench.errors import AdapterError, MissingWeights, SpecError
from hibench.golden import run_golden
from methods.ldm.model import randomise
from methods.patch_dm import PatchDM, checkpoint, configs, denoise, encoder, golden, model, prior, sampling, tasks, unet
from methods.patch_dm import collage as collages
from methods.patch_dm import options as pdm_options
from methods.patch_dm.denoise import blocks_of
from methods.patch_dm.fast import FastUNet, upsampled_kernel
from methods.patch_dm.variants import REFERENCE

GOLDEN = Path(__file__).parent / "golden" / "patch_dm"
CASES = sorted(p.name for p in GOLDEN.iterdir() if p.name != "weights")
SEEDS = [3, 4, 5]


def adapter(**options) -> PatchDM:
    """Random weights of the tiny configuration: 16-px patches."""
    tiny = PatchDM("random", {"config": "tiny"} | options)
    tiny.load()
    return tiny


@pytest.fixture(scope="module")
def tiny() -> PatchDM:
    return adapter()


@pytest.fixture(scope="module")
def states(tiny: PatchDM) -> dict[str, torch.Tensor]:
    """The state dict of the tiny network."""
    return {k: v.clone() for k, v in tiny.ready().unet.state_dict().items()}


class Recorder(Stage):
    """Writes down what an adapter reports."""

    def __init__(self) -> None:
        self.done: dict = {}
        self.steps = 0

    def step(self) -> None:
        self.steps += 1

    def effective(self, **done) -> None:
        self.done = done


# -- parity ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_golden(case: str) -> None:
    lines: list[str] = []
    assert run_golden("patch-dm", GOLDEN / case, lines.append) == 0, [line for line in lines if line.startswith("FAIL")]
    assert len(lines) > 3


def test_golden_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(AdapterError, match="not a Patch-DM golden case"):
        list(PatchDM.golden(tmp_path))


@pytest.mark.parametrize(("name", "network", "whole"), [
    ("nature1024", 71_404_035, 71_404_035 + 54_109_696 + 21_443 * 512), ("ffhq256", 71_404_035, 146_410_179)])
def test_published_sizes(name: str, network: int, whole: int) -> None:
    """Parameter counts of the official modules."""
    config = configs.config_of(name)
    with torch.device("meta"):
        assert checkpoint.parameters(model.build(config, encoder=False, prior=False).unet) == network
    assert PatchDM("random", {"config": name}).parameters() == whole
    assert set(configs.PUBLISHED) <= set(configs.CONFIGS)


@pytest.mark.parametrize(("patch", "millions"), [("patch128", 102.1), ("patch256", 134.3)])
def test_other_patch_sizes(patch: str, millions: float) -> None:
    with torch.device("meta"):
        count = checkpoint.parameters(model.build(configs.config_of(patch), encoder=False, prior=False).unet)
    assert count / 1e6 == pytest.approx(millions, abs=0.05)


# -- the collage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (4, 2)])
def test_collage_cuts_the_image_that_the_patches_show(grid: tuple[int, int], layout: torch.memory_format) -> None:
    """Patches of a padded image, collaged, are the tiles of the image: in training, in sampling, and into a larger tensor."""
    image = torch.randn(2, 5, 8 * grid[0], 8 * grid[1])
    patches = collages.to_patches(collages.pad_half(image, 8), 8).contiguous(memory_format=layout)
    tiles = collages.to_patches(image, 8)
    assert torch.equal(collages.collage(patches, grid), tiles)
    assert torch.equal(collages.from_patches(tiles, grid), image)
    larger = torch.zeros(len(tiles), 9, 8, 8)
    assert torch.equal(collages.collage(patches, grid, out=larger[:, 3:8])[:], tiles)
    assert torch.equal(larger[:, 3:8], tiles)
    assert not larger[:, [0, 1, 2, 8]].any()


def test_collage_is_differentiable() -> None:
    patches = torch.randn(6, 3, 4, 4, requires_grad=True)
    with torch.no_grad():
        wanted = collages.collage(patches, (1, 2))
    tiles = collages.collage(patches, (1, 2))
    assert torch.equal(tiles, wanted)
    tiles.sum().backward()
    assert patches.grad is not None
    assert patches.grad.sum() == 2 * 3 * 16
    assert set(patches.grad.unique().tolist()) == {0.0, 1.0}


def test_positions_count_rows_first() -> None:
    assert collages.positions((2, 3)).tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert collages.positions((1, 2), (0.5, 0.5)).tolist() == [[0.5, 0.5], [0.5, 1.5]]
    row, column = unet.position_embedding(torch.tensor([[1.0, 2.0]])).chunk(2, dim=1)
    assert row[0, 0] == pytest.approx(np.cos(1.0))
    assert column[0, 32] == pytest.approx(np.sin(2.0))


def test_a_tile_depends_on_half_a_patch_around_it(tiny: PatchDM) -> None:
    """Features meet at half a patch: what is farther away does not reach a tile in one step, what is nearer does."""
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        network = tiny.denoiser(torch.zeros(1, 32), (64, 64), np.array([500]))
        before = network.predict(x, 0)
        x[:, :, 20, 20] += 1.0                     # in tile (1, 1); in the quarter that tile (0, 0) does see
        change = (network.predict(x, 0) - before).abs().amax(1)[0]
    assert change[:16, :16].max() > 1e-4
    assert change[16:32, 16:32].max() > 1e-4
    assert change[32:].max() < 1e-5
    assert change[:, 32:].max() < 1e-5


def test_ways_of_collage_differ_and_without_it_tiles_are_alone() -> None:
    images = {}
    for name, options in {"feature": {}, "none": {"collage": "none"}, "fixed": {"collage": "pixel"},
                          "random": {"collage": "pixel", "shift": "random"}}.items():
        images[name] = adapter(**options).generate_batch((32, 48), [1], steps=4).float()
    for a in images:
        for b in images:
            assert a == b or (images[a] - images[b]).abs().max() > 2, (a, b)
    alone = adapter(collage="none")
    x = torch.randn(1, 3, 32, 48)
    with torch.inference_mode():
        network = alone.denoiser(torch.zeros(1, 32), (32, 48), np.array([500]))
        before = network.predict(x, 0)
        x[:, :, :16, :16] += 1.0
        change = (network.predict(x, 0) - before).abs().amax(1)[0]
    assert change[:16, :16].min() > 0
    assert change[16:].max() < 1e-5
    assert change[:, 16:].max() < 1e-5


@pytest.mark.parametrize("options", [{}, {"collage": "none"}, {"collage": "pixel"}, {"collage": "pixel", "shift": "random"}])
def test_every_pixel_is_predicted_once(options: dict) -> None:
    """All modes write the whole canvas: with a network of constant output, the prediction is constant."""
    constant = adapter(**options)
    network = constant.ready().unet
    network.out[2].weight.zero_()
    network.out[2].bias.fill_(0.25)
    denoiser = constant.denoiser(torch.zeros(2, 32), (48, 32), np.arange(4) * 100)
    for i in range(4):
        out = denoiser.predict(torch.full((2, 3, 48, 32), torch.nan).nan_to_num(1.0), i)
        assert torch.equal(out, torch.full_like(out, 0.25))


# -- bounded batches -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(1, 1), (4, 4), (3, 7), (16, 5)])
@pytest.mark.parametrize("most", [4, 9, 25, 1000])
@pytest.mark.parametrize("border", [0, 1])
def test_blocks_cover_the_grid_once_and_fit(grid: tuple[int, int], most: int, border: int) -> None:
    seen = torch.zeros(grid)
    for block in blocks_of(grid, most, border):
        assert (block.grid[0] + border) * (block.grid[1] + border) <= most
        seen[block.top: block.bottom, block.left: block.right] += 1
    assert torch.equal(seen, torch.ones(grid))


def test_blocks_need_room_for_one_tile() -> None:
    with pytest.raises(SpecError, match="too few"):
        blocks_of((2, 2), 3)


@pytest.mark.parametrize("options", [{}, {"collage": "pixel"}, {"collage": "none"}, {"guidance": 1.0}])
@pytest.mark.parametrize("most", [4, 7, 20])
def test_max_tiles_changes_nothing(tiny: PatchDM, options: dict, most: int) -> None:
    whole, parts = adapter(**options), adapter(**options, max_tiles=most)
    x, codes, times = torch.randn(3, 3, 48, 64), torch.randn(3, 32), np.array([900, 300])
    largest = 0
    network = parts._network
    assert network is not None
    encode = network.encode

    def counting(patches: torch.Tensor, modulations: list, branches: int):
        nonlocal largest
        largest = max(largest, len(patches) * branches)
        return encode(patches, modulations, branches)

    network.encode = counting
    with torch.inference_mode():
        for i in range(2):
            wanted = whole.denoiser(codes, (48, 64), times).predict(x, i)
            got = parts.denoiser(codes, (48, 64), times).predict(x, i)
            assert (got - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    assert 0 < largest <= most


def test_projections_are_exact(tiny: PatchDM) -> None:
    """Time, position and code projected apart equal what the blocks compute from all of them at once."""
    network = tiny.ready().unet
    where, code = collages.positions((2, 2)), torch.randn(1, 32)
    time, position = network.time_embed.time(torch.tensor([400])), network.time_embed.position(where)
    wanted = network.modulations(time.expand(4, -1), position, code.expand(4, -1))
    half = FastUNet(network).halves
    got = [mod for h in half
           for mod in h.modulations(h.time(time)[0], h.position(position)[None, None], h.code(code)[None, :, None])]
    assert len(got) == len(wanted) == len(network.res_blocks)
    for (weight, bias), (w, b) in zip(got, wanted):
        torch.testing.assert_close(weight, w, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(bias, b, rtol=1e-5, atol=1e-5)


# -- the adapter -----------------------------------------------------------------------------------------------------------


def test_contract(tiny: PatchDM) -> None:
    assert isinstance(tiny, Adapter)
    before, stage = torch.get_rng_state(), Recorder()
    images = tiny.generate_batch((48, 32), SEEDS, steps=4, stage=stage)
    assert images.shape == (3, 3, 48, 32)
    assert images.dtype == torch.uint8
    assert torch.equal(torch.get_rng_state(), before)
    assert stage.done == {"steps": 4, "nfe": 4 * 6 * 2, "tiles": 6}
    assert stage.steps == 4
    for image, seed in zip(images, SEEDS):
        assert (tiny.generate((48, 32), seed, steps=4).int() - image.int()).abs().max() <= 2
    assert (images[0].int() - images[1].int()).abs().float().mean() > 2


def test_supports(tiny: PatchDM) -> None:
    def answer(height: int, width: int, **more) -> str | None:
        return tiny.supports({"height": height, "width": width, "steps": None, "sparsity": 0.0} | more)

    assert answer(16, 160) is None
    assert "64x48" in str(answer(60, 50))
    assert answer(64, 64, steps=3) is None
    assert "integer stride" in str(answer(64, 64, steps=600))
    assert "sparsity" in str(answer(64, 64, sparsity=0.5))
    with pytest.raises(AdapterError, match="whole number of patches"):
        tiny.generate((60, 64), 1)


def test_guidance_is_that_of_the_weights_unless_asked_for() -> None:
    assert PatchDM("reference").guidance == 4.0
    assert PatchDM("reference", {"guidance": 2}).guidance == 2.0
    assert [PatchDM("random", {"config": name}).guidance for name in ("ffhq256", "nature1024")] == [1.5, 1.0]


def test_guidance_and_what_it_leaves_out(tiny: PatchDM) -> None:
    """Scale 1 is one branch; 0 knows neither code nor position."""
    x, codes, times = torch.randn(1, 3, 32, 32), torch.randn(2, 32), np.array([500])
    with torch.inference_mode():
        def at(guidance: float, code: torch.Tensor, **more) -> torch.Tensor:
            other = adapter(guidance=guidance)
            return other.denoiser(code[None], (32, 32), times, **more).predict(x, 0)

        conditional, none, guided = at(1.0, codes[0]), at(0.0, codes[0]), at(1.5, codes[0])
        torch.testing.assert_close(guided, none + 1.5 * (conditional - none), rtol=1e-4, atol=1e-4)
        assert torch.equal(at(0.0, codes[1]), none)
        assert torch.equal(at(0.0, codes[0], relocate=lambda where: where + 3), none)
        assert not torch.allclose(at(1.0, codes[1]), conditional)
        assert not torch.allclose(at(1.0, codes[0], relocate=lambda where: where + 3), conditional)


def test_positions_beyond_the_training_grid() -> None:
    """They go on counting, or stay in the trained range; on the training grid there is no difference."""
    extend, stretch = adapter(), adapter(positions="stretch")
    assert torch.equal(extend.generate((64, 64), 1, steps=2), stretch.generate((64, 64), 1, steps=2))
    assert not torch.equal(extend.generate((64, 128), 1, steps=2), stretch.generate((64, 128), 1, steps=2))
    relocate = stretch._stretch((4, 8))
    assert relocate is not None
    assert relocate(torch.tensor([[4.0, 8.0]])).tolist() == [[4.0, 4.0]]


@pytest.mark.parametrize(("options", "weights", "text"), [
    ({"colage": "none"}, "random", "did you mean 'collage'"), ({"collage": "pixels"}, "random", "not one of feature, pixel"),
    ({"shift": 3}, "random", "shift"), ({"guidance": -1}, "random", "number >= 0"), ({"guidance": True}, "random", "guidance"),
    ({"max_tiles": 3}, "random", ">= 4"), ({"max_tiles": 0, "collage": "none"}, "random", ">= 1"),
    ({"latent_steps": 0}, "random", "latent_steps"), ({"ema": "no"}, "random", "ema"),
    ({"positions": "crop"}, "random", "extend"),
    ({"config": "ffhq25"}, "random", "did you mean 'ffhq256'"), ({"config": "tiny"}, "reference", "goes with weights: random"),
    ({"variant": "main"}, "random", "goes with weights: reference"), ({"variant": "mian"}, "reference", "did you mean 'main'"),
])
def test_options_are_checked(options: dict, weights: str, text: str) -> None:
    with pytest.raises(SpecError, match=text):
        PatchDM(weights, options)


def test_the_collage_chooses_the_reference_weights() -> None:
    assert PatchDM("reference").path == REFERENCE
    assert PatchDM("reference", {"collage": "pixel"}).path == REFERENCE / "none"
    assert PatchDM("reference", {"collage": "none", "variant": "no-code"}).path == REFERENCE / "no-code"


def test_random_weights_are_those_of_the_configuration(tiny: PatchDM) -> None:
    assert tiny.parameters() == PatchDM("random", {"config": "tiny"}).parameters()
    assert tiny.weights_digest() == PatchDM("random", {"config": "tiny"}).weights_digest()
    assert tiny.weights_digest() != PatchDM("random").weights_digest()
    other = adapter()
    other.close()
    assert torch.equal(other.generate((32, 32), 7, steps=2), tiny.generate((32, 32), 7, steps=2))


# -- sampling --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_perfect_network_recovers_the_image(schedule: str) -> None:
    """With the true noise, or the true v, every step predicts the image, and the sampler ends on it."""
    x0, noise = torch.rand(2, 3, 16, 16) * 2 - 1, torch.randn(2, 3, 16, 16)
    for target in ("eps", "v"):
        table = sampling.image_table(10, target, schedule)
        ab = torch.from_numpy(table.alphas_cumprod)

        def exact(x: torch.Tensor, i: int, target: str = target, ab: torch.Tensor = ab) -> torch.Tensor:
            eps = (x - ab[i].sqrt() * x0) / (1 - ab[i]).sqrt()
            return eps.float() if target == "eps" else (ab[i].sqrt() * eps - (1 - ab[i]).sqrt() * x0).float()

        got = sampling.ddim_run(exact, noise.clone(), table)
        torch.testing.assert_close(got, x0, rtol=1e-4, atol=1e-4)


def test_an_unknown_schedule_names_the_known_ones() -> None:
    with pytest.raises(SpecError, match="'sqrt' is not one of linear, cosine"):
        sampling.image_table(5, schedule="sqrt")


def test_renoised_has_the_noise_of_its_step() -> None:
    table = sampling.image_table(5)
    x = torch.zeros(1, 3, 64, 64)
    back = sampling.renoised(x, torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)), table, 1)
    assert back.var() == pytest.approx(1 - table.alphas_cumprod[1] / table.alphas_cumprod[2], rel=0.05)


def test_codes_depend_on_their_seed_alone(tiny: PatchDM) -> None:
    both = sampling.sample_codes(tiny.ready(), SEEDS, 5, "cpu")
    torch.testing.assert_close(sampling.sample_codes(tiny.ready(), SEEDS[1:2], 5, "cpu"), both[1:2])
    normalised = model.PatchDM(tiny.ready().unet, 16, {}, torch.full((1, 32), 2.0), torch.full((1, 32), 3.0))
    torch.testing.assert_close(sampling.sample_codes(normalised, SEEDS, 5, "cpu"), both * 3 + 2)
    torch.testing.assert_close(normalised.normalise(normalised.denormalise(both)), both)
    without = model.build(configs.config_of("tiny"), prior=False)
    assert not sampling.sample_codes(without, SEEDS, 5, "cpu").any()


# -- checkpoints -----------------------------------------------------------------------------------------------------------


def lightning(states: dict[str, torch.Tensor], path: Path, drop: str = "", **more: torch.Tensor) -> Path:
    """An official-looking file: `model.*` twice as large as `ema_model.*`, the prior's shared tensors twice."""
    twins = {k.replace(".linear_emb.", ".cond_layers.1."): v for k, v in states.items()}
    state = {f"{p}.{k}": v * f for p, f in (("model", 2.0), ("ema_model", 1.0)) for k, v in (states | twins).items()}
    state = {k: v for k, v in state.items() if not drop or drop not in k} | {"x_T": torch.zeros(1)} | more
    torch.save({"state_dict": state, "global_step": 3}, path)
    return path


def test_official_checkpoint(states: dict, tiny: PatchDM, tmp_path: Path) -> None:
    path = lightning(states, tmp_path / "last.ckpt")
    ema, raw = (PatchDM(str(path), {"config": "tiny", "ema": ema}) for ema in (True, False))
    ema.load()
    raw.load()
    assert "averaged" in ema.loaded
    assert "raw" in raw.loaded
    name = "input_blocks.0.0.weight"
    assert torch.equal(ema.ready().unet.state_dict()[name], states[name])
    assert torch.equal(raw.ready().unet.state_dict()[name], 2 * states[name])
    assert torch.equal(ema.generate((32, 32), 1, steps=2), tiny.generate((32, 32), 1, steps=2))
    (tmp_path / "config.json").write_text(json.dumps(configs.config_of("tiny") | {"latent_znormalize": True}))
    with pytest.raises(AdapterError, match=r"lacks conds_mean, conds_std"):
        PatchDM(str(path)).load()
    named = lightning(states, tmp_path / "full.ckpt", conds_mean=torch.ones(1, 32), conds_std=torch.ones(1, 32))
    normalised = PatchDM(str(named))
    normalised.load()
    assert torch.equal(normalised.ready().mean, torch.ones(1, 32))


@pytest.mark.parametrize(("change", "text"), [
    ({"drop": "middle_block"}, "missing"), ({"model.extra": torch.zeros(1), "ema_model.extra": torch.zeros(1)}, "unexpected"),
    ({"optimizer": torch.zeros(1)}, "not a Patch-DM checkpoint"), ({"drop": "ema_model."}, "only raw weights"),
    ({"ema_model.out.2.bias": torch.zeros(5)}, "another shape"),
    ({"ema_model.latent_net.layers.0.cond_layers.1.bias": torch.ones(64)}, "it is damaged"),
])
def test_checkpoints_that_do_not_fit_are_refused(states: dict, tmp_path: Path, change: dict, text: str) -> None:
    drop = change.pop("drop", "") if "drop" in change else ""
    path = lightning(states, tmp_path / "bad.ckpt", drop, **change)
    with pytest.raises(AdapterError, match=text):
        PatchDM(str(path), {"config": "tiny"}).load()


def test_parts_that_the_configuration_lacks_are_refused(states: dict) -> None:
    small = model.build(configs.config_of("tiny"), prior=False)
    with pytest.raises(AdapterError, match="holds latent_net"):
        checkpoint.fill_network(small, dict(states), "it")


def test_old_names_of_the_table_are_read() -> None:
    config = json.loads((GOLDEN / "a3_eps_table" / "config.json").read_text())
    state = load_file(GOLDEN / "weights" / "full.safetensors")
    state["semantic_enc.semantic_enc.weight"] = state.pop("encoder.semantic_enc.weight")
    whole = model.build(config)
    checkpoint.fill_network(whole, state, "it")
    assert torch.equal(whole.unet.encoder.semantic_enc.weight, state["semantic_enc.semantic_enc.weight"])


def test_missing_weights_name_the_command(tmp_path: Path) -> None:
    with pytest.raises(MissingWeights, match="weights: random"):
        PatchDM(str(tmp_path / "none.ckpt")).load()
    (tmp_path / "some.ckpt").write_bytes(b"")
    with pytest.raises(MissingWeights, match="no configuration beside"):
        PatchDM(str(tmp_path / "some.ckpt")).load()
    (tmp_path / "config.json").write_text(json.dumps(configs.config_of("tiny")))
    with pytest.raises(MissingWeights, match=r"hibench train patch-dm --out"):
        PatchDM(str(tmp_path)).load()
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(AdapterError, match="not a Patch-DM configuration"):
        PatchDM(str(tmp_path)).load()
    with pytest.raises(AdapterError, match="damaged"):
        PatchDM(str(tmp_path / "some.ckpt"), {"config": "tiny"}).load()


def test_folder_of_training_is_loaded(states: dict, tiny: PatchDM, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(configs.config_of("tiny")))
    save_file({k: v for k, v in states.items() if not k.startswith("latent_net.")}, tmp_path / "unet.safetensors")
    save_file({k: v for k, v in states.items() if k.startswith("latent_net.")}, tmp_path / "prior.safetensors")
    folder = PatchDM(str(tmp_path))
    folder.load()
    assert torch.equal(folder.generate((32, 32), 1, steps=2), tiny.generate((32, 32), 1, steps=2))
    digest = folder.weights_digest()
    save_file({k: v + 1 for k, v in states.items() if k.startswith("latent_net.")}, tmp_path / "prior.safetensors")
    assert PatchDM(str(tmp_path)).weights_digest() != digest


def test_table_of_codes(tmp_path: Path) -> None:
    codes = torch.randn(6, 4)
    torch.save({"model_state_dict": {"semantic_enc.weight": codes}}, tmp_path / "codes.pt")
    assert torch.equal(checkpoint.read_table(tmp_path / "codes.pt"), codes)
    torch.save({"weight": codes}, tmp_path / "other.pt")
    with pytest.raises(AdapterError, match="not a table of codes"):
        checkpoint.read_table(tmp_path / "other.pt")
    table = encoder.CodeTable(6, 4, gradient_scale=0.5)
    table(torch.tensor([2, 2])).sum().backward()
    assert torch.equal(table.semantic_enc.weight.grad[2], torch.full((4,), 1.0))      # two rows, each with half a gradient
    assert torch.equal(table(torch.tensor([1])), table.semantic_enc.weight[1:2])


# -- the encoder -----------------------------------------------------------------------------------------------------------


def test_encoder_reads_large_images_at_its_own_size() -> None:
    config = model.encoder_config(configs.config_of("tiny")) | {"input_size": 32}
    network = encoder.SemanticEncoder.from_config(config).eval()
    small = torch.rand(1, 3, 32, 48)
    large = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    with torch.inference_mode():
        torch.testing.assert_close(network(large), network(small))


def test_encoder_is_derived_from_the_network_where_nothing_is_written() -> None:
    config = configs.config_of("tiny") | {"BeatGANsEncoderConfig": None}
    assert model.encoder_config(config)["model_channels"] == config["BeatGANsAutoencConfig"]["model_channels"]


# -- applications ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", tasks.TASKS)
@pytest.mark.parametrize("size", [(64, 64), (64, 96)])
def test_tasks_keep_what_is_given(tiny: PatchDM, task: str, size: tuple[int, int]) -> None:
    assert task in PatchDM.tasks
    rows = dict(tiny.run_task(task, size, [1, 2], steps=3))
    given, filled = rows["given"], rows["outpainted" if task == "outpainting" else "inpainted"]
    assert given.shape == filled.shape == (2, 3, *size)
    assert filled.dtype == torch.uint8
    known = (given != 127).any(1, keepdim=True).expand_as(given)
    assert 0.1 < known.float().mean() < 0.9
    assert (given[known].int() - filled[known].int()).abs().max() <= 1
    assert filled[~known].float().std() > 1


def test_filling_does_not_depend_on_the_batch(tiny: PatchDM) -> None:
    images = torch.randint(256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    hole = torch.zeros(1, 1, 32, 32, dtype=torch.bool)
    hole[..., 8:24, 8:24] = True
    both = tasks.inpaint(tiny, images, hole, [1, 2], steps=3)
    alone = tasks.inpaint(tiny, images[1:], hole, [2], steps=3)
    assert (both[1:].int() - alone.int()).abs().max() <= 2


def test_tasks_that_cannot_be_done(tiny: PatchDM, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no task 'colouring'"):
        tiny.run_task("colouring", (64, 64), [1])
    with pytest.raises(AdapterError, match="whole number of patches"):
        tiny.run_task("inpainting", (60, 64), [1])
    with pytest.raises(SpecError, match="do not lie on a canvas"):
        tasks.outpaint(tiny, torch.zeros(1, 3, 64, 64, dtype=torch.uint8), (64, 96), (0, 48), [1])
    blind = adapter()
    blind.ready().unet.encoder = None
    with pytest.raises(AdapterError, match="no encoder of images"):
        blind.run_task("inpainting", (64, 64), [1])


def test_all_is_true() -> None:
    for module in (checkpoint, collages, configs, denoise, encoder, golden, model, pdm_options, prior, sampling, tasks, unet):
        for name in module.__all__:
            assert hasattr(module, name), (module.__name__, name)


def test_bfloat16_runs() -> None:
    network = PatchDM("random", {"config": "tiny"}, dtype="bfloat16")
    assert network.generate((32, 32), 1, steps=2).shape == (3, 32, 32)


@pytest.mark.parametrize("size", [4, 8])
def test_transposed_convolution_is_upsampling_and_convolution(size: int) -> None:
    conv = torch.nn.Conv2d(6, 5, 3, padding=1)
    x = torch.randn(2, 6, size, size)
    with torch.no_grad():
        wanted = conv(torch.nn.functional.interpolate(x, scale_factor=2, mode="nearest"))
        got = torch.nn.functional.conv_transpose2d(x, upsampled_kernel(conv.weight), conv.bias, stride=2, padding=1)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_randomised_prior_is_sampled_in_float32() -> None:
    net = prior.LatentPrior(8, 16, 3, (1, 2))
    randomise(net)
    assert sampling.latent_run(net, torch.randn(2, 8), 5).dtype == torch.float32
