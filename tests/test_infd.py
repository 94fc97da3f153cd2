"""INFD: parity with the official tensors, the geometry of neural fields, tiles, renderers, and the adapter contract."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hibench.adapter import Stage, seeded_noise, to_uint8
from hibench.conformance import check_adapter
from hibench.errors import AdapterError, MissingWeights, SpecError
from hibench.golden import run_golden
from hibench.resize import pil_resize
from methods.infd import (
    INFD,
    adapter,
    checkpoint,
    configs,
    data,
    geometry,
    golden,
    losses,
    model,
    options,
    patches,
    render,
    renderers,
    sampling,
    tasks,
    train,
)
from methods.infd.geometry import Query, centres, nearest, whole
from methods.infd.render import Tiles, View, render_float, render_uint8, spans
from methods.infd.renderers import LIIF, build_renderer, look_up

GOLDEN = Path(__file__).parent / "golden" / "infd"
CASES = sorted(p.name for p in GOLDEN.iterdir() if p.is_dir())
TINY = {"config": "tiny"}
RENDERERS = ["clif", "liif", "liif-ensemble", "fixed"]


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
def tiny() -> INFD:
    infd = INFD("random", TINY)
    infd.load()
    return infd


@pytest.fixture(scope="module")
def phi(tiny: INFD) -> torch.Tensor:
    with torch.inference_mode():
        return tiny.model.features(seeded_noise((3, 8, 8), [0, 1]))


@pytest.mark.parametrize("case", CASES)
def test_golden(case: str) -> None:
    lines: list[str] = []
    assert run_golden("infd", GOLDEN / case, lines.append) == 0, [line for line in lines if line.startswith("FAIL")]
    assert len(lines) > 1


def test_golden_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for name in ("inputs", "outputs"):
        np.savez(tmp_path / f"{name}.npz", x=np.zeros(1))
    with pytest.raises(AdapterError, match="not an INFD golden case"):
        list(INFD.golden(tmp_path))


# -- geometry ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resolution", [32, 64, 96, 128, 160, 256, 37, 1000])
def test_the_look_up_is_that_of_grid_sample(resolution: int) -> None:
    """Row by row and column by column, it finds what the official look-up finds pixel by pixel, ties included."""
    field = torch.randn(1, 4, 64, 64)
    grid = torch.stack(torch.meshgrid(centres(resolution), centres(resolution), indexing="ij"), -1)[None]
    expected = F.grid_sample(field, grid.flip(-1), mode="nearest", align_corners=False)
    found = look_up(field, whole(resolution, resolution))
    assert torch.equal(found[:, :4], expected)
    cells = torch.stack(torch.meshgrid(centres(64), centres(64), indexing="ij"))[None]
    cell = F.grid_sample(cells, grid.flip(-1), mode="nearest", align_corners=False)
    assert torch.allclose(found[:, 4:6], (grid.permute(0, 3, 1, 2) - cell) * 64, atol=1e-6)
    assert torch.allclose(found[:, 6:], torch.tensor(2 * 64 / resolution).expand_as(found[:, 6:]))
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_ties_go_to_the_even_cell() -> None:
    """At 0.5 and 1.5 times the map pixels lie half-way; a rule that rounds halves up reads other cells there."""
    def halves_up(resolution: int) -> torch.Tensor:
        return F.interpolate(torch.arange(64.0).view(1, 1, -1), resolution, mode="nearest-exact").long().flatten()

    for resolution, ties in ((32, 32), (96, 32), (64, 0), (128, 0), (256, 0)):
        index = nearest(centres(resolution), 64)
        assert (index != halves_up(resolution)).sum() <= ties
        exact = (torch.arange(resolution, dtype=torch.float64) + 0.5) / resolution * 64 - 0.5
        at_half = exact.frac() == 0.5
        assert at_half.sum() == ties
        assert torch.equal(index[~at_half], exact[~at_half].round().long())
        assert ((index[at_half] - exact[at_half]).abs() == 0.5).all()
    assert (nearest(centres(32), 64) != halves_up(32)).any()


def test_queries_of_a_crop_are_those_of_the_image() -> None:
    crop, all_of_it = patches.crop_query(90, 12, 30, 24), whole(90, 90)
    assert torch.allclose(crop.rows[0], all_of_it.rows[0, 12:36], atol=1e-6)
    assert torch.allclose(crop.columns[0], all_of_it.columns[0, 30:54], atol=1e-6)
    assert torch.equal(crop.cell, all_of_it.cell)
    moved = all_of_it.to("cpu")[0:1]
    assert torch.equal(moved.rows, all_of_it.rows)


# -- rendering -----------------------------------------------------------------------------------------------------------


def test_tiles_cover_the_image_and_look_inside_only() -> None:
    found = spans(60, Tiles(24, 8))
    assert [(s.start, s.stop) for s in found] == [(0, 24), (24, 48), (48, 60)]
    assert [(s.outer_start, s.outer_stop) for s in found] == [(0, 32), (16, 56), (40, 60)]
    assert [(s.outer_start, s.outer_stop) for s in spans(60, Tiles(None, 8))] == [(0, 60)]
    assert render.tiles_of(60, 20, Tiles(24, 8)) == 3


def test_tiles_and_the_whole_image_are_two_renderings(tiny: INFD, phi: torch.Tensor) -> None:
    """Normalisation sees a tile or the image: they differ; without it tiles that see six pixels further are exact."""
    with torch.inference_mode():
        tiled, at_once = (render_float(tiny.model, phi, 48, 48, tiles) for tiles in (Tiles(16, 8), Tiles(None)))
        difference = (tiled - at_once).abs().mean() / at_once.std()
        assert 0.01 < difference < 1
        bare = model.random_model(tiny.args)
        for block in [m for m in bare.renderer.modules() if isinstance(m, renderers.ResnetBlock)]:
            block.norm1 = block.norm2 = torch.nn.Identity()
        bare.renderer.net.norm_out = torch.nn.Identity()
        exact = render_float(bare, phi, 48, 48, Tiles(None))
        for padding, equal in ((6, True), (8, True), (3, False)):
            same = torch.allclose(render_float(bare, phi, 48, 48, Tiles(16, padding)), exact, rtol=1e-4, atol=1e-5)
            assert same == equal
    assert tiny.model.renderer.radius == 6


@pytest.mark.parametrize("name", RENDERERS)
def test_any_batching_of_tiles_gives_the_same_image_in_bounded_memory(name: str, phi: torch.Tensor) -> None:
    net = model.random_model(configs.with_renderer(configs.config_args("tiny"), name))
    seen, inner = [], net.renderer.forward

    def watched(phi: torch.Tensor, query: Query | None = None, images: torch.Tensor | None = None) -> torch.Tensor:
        if query is not None:
            seen.append(len(images) * query.rows.shape[1] * query.columns.shape[1])
        return inner(phi, query, images)

    net.renderer.forward = watched
    with torch.inference_mode():
        many = render_uint8(net, phi, 40, 56, Tiles(16, 8), at_once=1 << 20)
        few = render_uint8(net, phi, 40, 56, Tiles(16, 8), at_once=1)
        alone = torch.cat([render_uint8(net, one[None], 40, 56, Tiles(16, 8)) for one in phi])
    assert (many.int() - few.int()).abs().max() <= 1
    assert (many.int() - alone.int()).abs().max() <= 1
    assert name == "fixed" or min(seen) <= 32 * 32
    seen.clear()
    with torch.inference_mode():
        render_uint8(net, phi[:1], 200, 100, Tiles(16, 8), at_once=2048)
    assert all(pixels <= 2048 for pixels in seen)


def test_a_finer_rendering_shows_the_same_field(tiny: INFD, phi: torch.Tensor) -> None:
    """With colours that are the looked-up features, a rendering at four times the size is the small one, pixel by pixel."""
    net = model.random_model(tiny.args)
    net.renderer.forward = lambda phi, query, images: look_up(phi, query, images)[:, :3]
    with torch.inference_mode():
        small, large = (render_float(net, phi, side, side, Tiles(16, 8)) for side in (16, 64))
        assert torch.allclose(F.avg_pool2d(large, 4), small, atol=1e-6)
        part = render_float(net, phi, 32, 32, Tiles(None), View((-1.0, 0.0), (0.0, 1.0)))
        assert torch.equal(part, large[..., :32, 32:])


def test_one_latent_serves_every_size(tiny: INFD) -> None:
    shapes = [tiny.canvas(*size) for size in ((16, 16), (64, 64), (37, 37), (1024, 1024))]
    assert {shape for shape, _ in shapes} == {(3, 8, 8)}
    assert all(view == View() for _, view in shapes)
    assert tiny.canvas(16, 32)[0] == tiny.canvas(64, 128)[0] == (3, 8, 16)
    shape, view = tiny.canvas(37, 53)                               # 8 x 11.46 latents: the middle of 8 x 12
    assert shape == (3, 8, 12)
    query = whole(37, 53, view.rows, view.columns)
    assert view.rows == (-1, 1)
    assert query.cell[0, 0].item() * 8 == pytest.approx(query.cell[0, 1].item() * 12)      # square pixels
    assert tiny.canvas(53, 37)[0] == (3, 12, 8)


def test_a_seed_shows_one_image_at_two_sizes(tiny: INFD, monkeypatch) -> None:
    drawn = []
    sample = tiny.sample
    monkeypatch.setattr(tiny, "sample", lambda *args: drawn.append(sample(*args)) or drawn[-1])
    for size in ((16, 16), (32, 32), (21, 21)):
        tiny.generate(size, 3, steps=4)
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])
    if (adapter.REFERENCE / "autoencoder.safetensors").exists() and (adapter.REFERENCE / "unet.safetensors").exists():
        reference = INFD()
        small, large = (reference.generate((side, side), 0, steps=10).float() for side in (64, 128))
        assert (F.avg_pool2d(large, 2) - small).abs().mean() < 0.25 * (small - small.flip(-1)).abs().mean()


# -- renderers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unfold", [True, False])
def test_liif_is_a_point_wise_mlp(unfold: bool) -> None:
    field, query = torch.randn(2, 8, 10, 12), whole(23, 31)
    net = LIIF(8, (16, 16), unfold, ensemble=False)
    wide = F.unfold(field, 3, padding=1).view(2, -1, 10, 12) if unfold else field
    expected = net.net(look_up(wide, query).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    assert torch.allclose(net(field, query), expected, atol=1e-5)
    swapped = net(field, query, torch.tensor([1, 0]))
    assert torch.allclose(swapped, expected.flip(0), atol=1e-5)


def test_local_ensemble_removes_the_seams_between_cells() -> None:
    field = torch.randn(1, 8, 6, 6)
    across = centres(2001, -0.5, 0.5)[None]
    query = Query(torch.full((1, 1), 0.05), across, torch.full((1, 2), 0.01))
    jumps = {}
    for ensemble in (True, False):
        torch.manual_seed(0)
        net = LIIF(8, (16, 16), True, ensemble)
        jumps[ensemble] = net(field, query).diff(dim=-1).abs().max().item()
    assert jumps[True] < 0.1 * jumps[False]


def test_the_fixed_renderer_has_one_size(phi: torch.Tensor) -> None:
    net = model.random_model(configs.with_renderer(configs.config_args("tiny"), "fixed"))
    with torch.inference_mode():
        native = to_uint8(net.renderer(phi))
        assert torch.equal(render_uint8(net, phi, 16, 16, Tiles(16)), native)
        large = render_uint8(net, phi, 32, 64, Tiles(16))
        assert large.shape == (2, 3, 32, 64)
        assert torch.equal(large, pil_resize(native, 32, 64, "lanczos"))
        with pytest.raises(ValueError, match="gives 16x16 only, not 20x20"):
            net.render(phi, whole(20, 20))


@pytest.mark.parametrize(("spec", "message"), [
    ({"name": "renderer_mlp", "args": {}}, "renderer 'renderer_mlp' with net 'None' is not known"),
    ({"name": "renderer_concat_wrapper", "args": {"net": {"name": "simple_renderer_net"}, "co_pe_dim": 8}},
     "argument 'co_pe_dim' that is not supported"),
    ({"name": "renderer_concat_wrapper", "args": {"net": {"name": "simple_renderer_net", "args": {"hiden_channels": 8}}}},
     "did you mean 'hidden_channels'"),
    ({"name": "liif", "args": {"width": 3}}, "renderer liif has an argument 'width'"),
])
def test_unknown_renderers_are_refused(spec: dict, message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        build_renderer(spec, 32)


def test_renderers_of_one_configuration_are_of_one_size() -> None:
    args = configs.config_args("reference")
    count = {}
    for name in RENDERERS:
        with torch.device("meta"):
            net = model.INFDModel(configs.with_renderer(args, name))
        count[name] = sum(p.numel() for p in net.renderer.parameters())
    assert count["liif"] == count["liif-ensemble"] == pytest.approx(count["clif"], rel=0.1)
    larger = build_renderer({"name": "renderer_concat_wrapper", "args": {"net": {"name": "simple_renderer_net_larger"}}}, 128)
    assert len(larger.net.model) == 4
    with pytest.raises(SpecError, match="no renderer 'clip'; did you mean 'clif'"):
        configs.with_renderer(args, "clip")


def test_the_published_configuration_has_the_published_size() -> None:
    with torch.device("meta"):
        net = model.INFDModel(configs.config_args("ffhq"))
    million = {name: sum(p.numel() for p in child.parameters()) for name, child in net.named_children()}
    assert million == {"encoder": 22_337_423, "quantizer": 24_576, "decoder": 32_957_068, "renderer": 2_674_179,
                       "z_dm": 274_056_163}
    assert configs.PUBLISHED.keys() == {"ffhq", "ffhq-6k-mix"}


# -- the adapter ---------------------------------------------------------------------------------------------------------


def test_conformance() -> None:
    findings = check_adapter(INFD, weights="random", options=TINY)
    assert [str(f) for f in findings if f.ok is False] == []
    assert sum(f.ok is True for f in findings) > 10


def test_stages_and_what_was_done(tiny: INFD) -> None:
    stage = Recorder()
    images = tiny.generate_batch((40, 24), [3, 4], steps=5, stage=stage)
    assert images.shape == (2, 3, 40, 24)
    assert stage.log == ["denoise", *["step"] * 5, "decode", {"steps": 5, "nfe": 5, "tiles": 6}]
    assert images.float().std((1, 2, 3)).min() > 5
    assert tiny.parameters() == sum(p.numel() for p in tiny.model.parameters())
    assert len(tiny.weights_digest()) == 64
    assert tiny.weights_digest() != INFD("random", TINY | {"renderer": "fixed"}).weights_digest()


@pytest.mark.parametrize("given", [{"eta": 0.0}, {"eta": 1.0}, {"tiles": "whole"}, {"tiles": 24, "padding": 6},
                                   *({"renderer": name} for name in RENDERERS[1:])])
def test_a_batch_equals_single_images(given: dict) -> None:
    infd = INFD("random", TINY | given)
    infd.load()
    seeds = [0, 7, 123_456_789]
    batch = infd.generate_batch((36, 24), seeds, steps=4)
    single = torch.stack([infd.generate((36, 24), s, steps=4) for s in seeds])
    assert (batch.int() - single.int()).abs().max() <= 2
    assert len({image.numpy().tobytes() for image in batch}) == 3


def test_options_change_the_image(tiny: INFD) -> None:
    images = {"default": tiny.generate((40, 40), 0, steps=5)}
    for name, given in {"eta 1": {"eta": 1.0}, "eta 0": {"eta": 0.0}, "whole": {"tiles": "whole"}}.items():
        images[name] = INFD("random", TINY | given).generate((40, 40), 0, steps=5)
    assert torch.equal(images["default"], images["eta 1"])
    assert not torch.equal(images["default"], images["eta 0"])
    assert not torch.equal(images["default"], images["whole"])


def test_velocity_prediction_is_sampled_as_its_noise() -> None:
    """Two networks, one that says eps and one that says the same as v, give one trajectory."""
    nets = [model.random_model({**configs.config_args("tiny"), "z_dp": {"parameterization": kind}}) for kind in ("eps", "v")]
    cumprod = torch.from_numpy(nets[0].alphas_cumprod).float()
    plans = [sampling.make_plan(net, "ddim5") for net in nets]
    x = seeded_noise((3, 8, 8), [0])
    with torch.inference_mode():
        for i, t in enumerate(plans[0].table.timesteps.tolist()):
            v = nets[1].unet(x, torch.tensor([t]))
            eps = cumprod[t].sqrt() * v + (1 - cumprod[t]).sqrt() * x
            assert torch.allclose(sampling.denoiser(nets[1], plans[1])(x, i), eps, atol=1e-4)
    assert plans[0].velocity is None
    with pytest.raises(AdapterError, match="parameterization 'x0' is not known"):
        model.INFDModel({**configs.config_args("tiny"), "z_dp": {"parameterization": "x0"}})


def test_supports(tiny: INFD) -> None:
    axes = {"height": 64, "width": 64, "steps": 50, "sparsity": 0.0}
    assert tiny.supports(axes) is None
    assert tiny.supports(axes | {"height": 37, "width": 91, "steps": 1000}) is None
    assert "no integer stride gives 300 of 1000 training steps; use 250 or 500" in tiny.supports(axes | {"steps": 300})
    assert "0 sampler steps" in tiny.supports(axes | {"steps": 0})
    assert "ratio at most 16" in tiny.supports(axes | {"width": 2000})
    assert "no sparsity axis" in tiny.supports(axes | {"sparsity": 0.5})
    assert "sides up to 65536" in tiny.supports(axes | {"height": 70_000, "width": 70_000})
    assert "16 px do not fit" in INFD("random", TINY | {"padding": 16}).supports(axes)
    with pytest.raises(AdapterError, match="no integer stride gives 300"):
        tiny.generate((16, 16), 0, steps=300)


@pytest.mark.parametrize(("weights", "given", "message"), [
    ("random", {"tile": "whole"}, "no option 'tile'; did you mean 'tiles'"),
    ("random", {"config": "fhq"}, "no configuration 'fhq'; did you mean 'ffhq'"),
    ("random", {"renderer": "lif"}, "option renderer: 'lif' is not known; did you mean 'liif'"),
    ("random", {"tiles": 4}, "option tiles: 4 is not 'official', 'whole' or a side"),
    ("random", {"padding": -1}, "option padding: -1"),
    ("random", {"eta": 2}, "option eta: 2 is not a number from 0 to 1"),
    ("random", {"ema": 1}, "option ema: 1 is not true or false"),
    ("random", {"latents": "ldm"}, "random weights do not understand the latents"),
    ("reference", {"latents": None}, "option latents: None is not"),
    ("reference", {"config": "tiny"}, "these weights have their own configuration"),
])
def test_wrong_options_are_refused_at_once(weights: str, given: dict, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        INFD(weights, given)


def test_missing_reference_weights(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(adapter, "REFERENCE", tmp_path / "nothing")
    infd = INFD()
    assert infd.supports({"height": 64, "width": 64, "steps": 50, "sparsity": 0.0}) is None
    with pytest.raises(MissingWeights, match=r"hibench train infd --out .*nothing$"):
        infd.load()
    with pytest.raises(MissingWeights, match="no weights at"):
        INFD(str(tmp_path / "x.pth")).load()


def test_importing_the_adapter_does_not_import_torch() -> None:
    code = ("import sys, methods.infd as m; infd = m.INFD('random', {'config': 'tiny'}); "
            "infd.supports({'height': 64, 'width': 64, 'steps': 50}); print('torch' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


@pytest.mark.parametrize("module", [adapter, checkpoint, configs, data, geometry, golden, losses, model, options, patches,
                                    render, renderers, sampling, tasks, train])
def test_all_names_exist(module) -> None:
    assert all(hasattr(module, name) for name in module.__all__)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_a_gpu(dtype: str, tiny: INFD) -> None:
    infd = INFD("random", TINY, "cuda", dtype)
    images = infd.generate_batch((64, 40), [0, 1], steps=10)
    assert images.device.type == "cuda"
    if dtype == "float32":
        infd.model.load_state_dict({k: v.cuda() for k, v in tiny.model.state_dict().items()})
        images = infd.generate_batch((64, 40), [0, 1], steps=10)
        assert (tiny.generate_batch((64, 40), [0, 1], steps=10).int() - images.cpu().int()).float().abs().mean() < 2
