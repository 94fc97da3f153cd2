"""∞-Diff's networks: parity with the official tensors, and every operator against a plain way of computing it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hibench.errors import AdapterError, SpecError
from hibench.golden import check_case
from methods.infty_diff import InftyDiff, configs, conv, geometry, mollifier, process, sparse, subsets
from methods.infty_diff.checkpoint import build
from methods.infty_diff.decoder import Decoder
from methods.infty_diff.encoder import Encoder
from methods.infty_diff.geometry import Canvas, Points
from methods.nn.attention import from_tokens, to_tokens

GOLDEN = Path(__file__).parent / "golden" / "infty_diff"
CASES = sorted(p.parent.name for p in GOLDEN.glob("*/config.json"))


@pytest.mark.parametrize("case", CASES)
def test_golden(case: str) -> None:
    lines = list(check_case(InftyDiff.golden, GOLDEN / case))
    assert [str(line) for line in lines if not line.ok] == []
    assert len(lines) > 1


def test_golden_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"kind": "cake"}')
    for name in ("inputs", "outputs"):
        np.savez(tmp_path / f"{name}.npz", x=np.zeros(1))
    with pytest.raises(AdapterError, match="kind 'cake' is not a case"):
        list(InftyDiff.golden(tmp_path))


def network(official: bool = False, **more) -> Decoder:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    options = {"nf": 8, "time_emb_dim": 16, "img_size": 16, "num_conv_blocks": 1, "uno_res": 8, "uno_mults": (1, 2), "z_dim": 8,
               "blocks_per_level": (1, 1), "attn_res": (), "uno_base_nf": 8, "dropout": 0.0}
    return Decoder(**(options | more), official=official).eval()


@torch.no_grad()
def predict(net: Decoder, x: torch.Tensor, points: Points, **more) -> torch.Tensor:  # type: ignore[no-untyped-def]
    z, t = torch.linspace(-1, 1, 16).view(2, 8), torch.tensor([3.0, 700.0])
    return net(x, net.support(points, **more), net.times(t), net.codes(z))


def random_points(canvas: Canvas, count: int, sets: int = 2) -> Points:
    draw = torch.Generator().manual_seed(1)
    index = torch.stack([torch.randperm(canvas.height * canvas.width, generator=draw)[:count] for _ in range(sets)])
    return Points(canvas, index)


@pytest.mark.parametrize("depthwise", [True, False])
@pytest.mark.parametrize("size", [(16, 16), (40, 24)])
def test_gather_equals_masked_dense(depthwise: bool, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer, points = sparse.SparseConv(6, 7, depthwise), random_points(Canvas(*size, 16, 8), 50)
    x = torch.randn(2, 50, 6)
    masked = layer(x, points)
    layer.how = "gather"
    assert torch.allclose(layer(x, points), masked, atol=1e-5)
    assert masked.abs().max() > 0.1


@pytest.mark.parametrize("stride", [(2, 1), (2, 4), (3, 3)])
@pytest.mark.parametrize("size", [(16, 16), (32, 32), (48, 33)])
def test_a_lattice_is_a_set_of_points_like_any_other(stride: tuple[int, int], size: tuple[int, int]) -> None:
    net = network(kernel_size=5)
    lattice = Points(net.canvas(*size), stride=stride, phase=(1, 0))
    same = Points(lattice.canvas, lattice.flat())
    assert torch.allclose(lattice.norm(5), same.norm(5))
    x = torch.randn(2, len(lattice), 3)
    assert torch.allclose(predict(net, x, lattice), predict(net, x, same), atol=1e-5)


def test_the_order_of_the_points_does_not_matter() -> None:
    net = network()
    points = random_points(net.canvas(16, 23), 60)                  # no cell has its 3rd and 4th neighbour equally far
    x, order = torch.randn(2, 60, 3), torch.randperm(60)
    shuffled = Points(points.canvas, points.index[:, order])
    assert torch.allclose(predict(net, x, points)[:, order], predict(net, x[:, order], shuffled), atol=1e-5)


@pytest.mark.parametrize("size", [13, 29, 57])
@pytest.mark.parametrize("how", ["factorised", "fft"])
def test_ways_of_convolving_agree(size: int, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    kernel, x = torch.randn(4, 1, 7, 7) / 7, torch.randn(2, 4, 40, 36)
    expected = conv.depthwise(x, kernel, size, "direct")
    assert torch.allclose(conv.depthwise(x, kernel, size, how), expected, atol=1e-4)
    monkeypatch.setattr(conv, "AT_ONCE", 1)                         # channel by channel
    assert torch.allclose(conv.depthwise(x, kernel, size, how), expected, atol=1e-4)
    assert expected.abs().max() > 1


def test_a_kernel_resized_is_its_factors() -> None:
    kernel = torch.randn(3, 1, 7, 7)
    a = conv.resize_matrix(7, 29)
    resized = F.interpolate(kernel, (29, 29), mode="bilinear", align_corners=False)
    assert torch.allclose(a @ kernel @ a.T, resized, atol=1e-6)
    assert [conv.choose(k) for k in (7, 29, 57)] == ["direct", "direct", "fft"]


def test_kernel_sizes_are_the_official_ones() -> None:
    sizes = {side: Canvas(side, side, 64, 32).kernel_size(7) for side in (16, 32, 64, 128, 256, 1024)}
    assert sizes == {16: 3, 32: 3, 64: 7, 128: 13, 256: 29, 1024: 113}
    assert Canvas(1024, 1024, 128, 64).kernel_size(7) == 57


@pytest.mark.parametrize("size", [(33, 33), (64, 96), (96, 64)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 4), (5, 1)])
def test_nearest_on_a_lattice_are_the_nearest(size: tuple[int, int], stride: tuple[int, int]) -> None:
    points = Points(Canvas(*size, 64, 24, 4), stride=stride, phase=(stride[0] - 1, 0))
    near, index = geometry.nearest_on_lattice(points, points.canvas.cells(), 3)
    all_near, _ = geometry.nearest_of(points.canvas.cells(), points.positions()[0], 3)
    assert torch.equal(near[0], all_near)
    chosen = points.positions()[0][index[0]]
    assert torch.allclose((chosen - points.canvas.cells()[:, None]).square().sum(-1), all_near, atol=1e-7)


def test_interpolation_goes_through_what_it_is_given() -> None:
    canvas = Canvas(32, 48, 16, 8, 2)
    assert canvas.grid == (8, 12)
    points = Points(canvas)
    plane = points.positions()[0] @ torch.tensor([[2.0], [-3.0]]) + 1
    knn = geometry.knn_bag(*geometry.nearest(points))
    grid = geometry.apply_bag(plane[None], knn)
    assert (grid[0] - (canvas.cells() @ torch.tensor([[2.0], [-3.0]]) + 1)).abs().max() < 0.05
    read = geometry.apply_bag(canvas.cells()[None], geometry.read_back_bag(points, official=False))
    assert torch.allclose(read[0], points.positions()[0], atol=1e-5)
    dense = F.interpolate(from_tokens(grid, *canvas.grid), (32, 48), mode="bilinear", align_corners=True)
    assert torch.allclose(to_tokens(dense), geometry.apply_bag(grid, geometry.read_back_bag(points, False)), atol=1e-5)


@pytest.mark.parametrize("official", [True, False])
@pytest.mark.parametrize(("size", "stride"), [((16, 16), (1, 1)), ((24, 24), (2, 3)), ((32, 48), (3, 1))])
def test_a_lattice_reads_back_like_any_points(official: bool, size: tuple[int, int], stride: tuple[int, int]) -> None:
    points = Points(Canvas(*size, 16, 8, 2), stride=stride, phase=(0, stride[1] - 1))
    grid = torch.randn(2, points.canvas.grid[0] * points.canvas.grid[1], 5)
    read = geometry.LatticeRead.make(points, official)
    expected = geometry.apply_bag(grid, geometry.read_back_bag(points, official))
    assert torch.allclose(read(grid), expected, atol=1e-5)
    cropped, (row, column) = read.crop()
    part = grid.unflatten(1, points.canvas.grid)[:, row:, column:].flatten(1, 2)
    assert torch.allclose(cropped(part), expected, atol=1e-5)
    assert (row > 2) is official


def test_the_official_read_back_is_grid_sample_of_the_wrong_places() -> None:
    canvas = Canvas(16, 16, 16, 8, 2)
    points, grid = random_points(canvas, 40), torch.randn(2, 64, 5)
    expected = F.grid_sample(from_tokens(grid, 8, 8), points.positions()[:, None], align_corners=False)[:, :, 0].transpose(1, 2)
    assert torch.allclose(geometry.apply_bag(grid, geometry.read_back_bag(points, True)), expected, atol=1e-6)


@pytest.mark.parametrize(("blocks", "attention", "res"), [((1, 1, 1), (), 24), ((2, 1, 1), (), 32), ((1, 2, 1), (8,), 32),
                                                          ((1, 1, 1, 1), (4,), 32)])
def test_what_is_never_read_is_not_needed(blocks: tuple[int, ...], attention: tuple[int, ...], res: int) -> None:
    net = network(True, uno_res=res, img_size=2 * res, uno_mults=(1, 2, 2, 2)[: len(blocks)], blocks_per_level=blocks,
                  attn_res=attention)
    points = Points(net.canvas(2 * res, 2 * res))
    x = torch.randn(2, len(points), 3)
    assert torch.allclose(predict(net, x, points), predict(net, x, points, whole_grid=True), atol=1e-5)
    assert net.support(points).origin[0] >= res // 2 - 1
    assert net.uno.first_needed(net.support(points).origin[0])[-1] > 0


def test_many_tokens_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    net = network()
    points = Points(net.canvas(24, 40))
    x = torch.randn(2, len(points), 3)
    whole = predict(net, x, points)
    monkeypatch.setattr(sparse, "CHUNK", 100)
    assert torch.allclose(predict(net, x, points), whole, atol=1e-5)


def test_the_thinned_gradient_is_right_on_average_and_else_exact() -> None:
    torch.manual_seed(0)
    layer, points = sparse.SparseConv(4, 5), random_points(Canvas(12, 12, 12, 4), 40, sets=8)
    x = torch.randn(8, 40, 4)
    target = torch.randn(8, 40, 4)

    def gradients(thin: int, which: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        layer.thin = thin
        layer.kernel.grad = None
        part = x[which].clone().requires_grad_()
        (layer(part, Points(points.canvas, points.index[which])) * target[which]).sum().backward()
        return part.grad, layer.kernel.grad

    everything = torch.arange(8)
    exact_x, exact = gradients(1, everything)
    estimates = []
    for first in range(4):                                          # every 4th image, from each of the first four
        order = torch.cat([everything[first:], everything[:first]])
        got, estimate = gradients(4, order)
        assert torch.allclose(got, exact_x[order], atol=1e-5)
        estimates.append(estimate)
    assert not torch.allclose(estimates[0], exact, atol=1e-3)
    assert torch.allclose(torch.stack(estimates).mean(0), exact, atol=1e-4)


def test_epsilon_follows_the_data_type_only_officially() -> None:
    from methods.infty_diff.uno import ChannelNorm

    x = torch.full((1, 4, 8), 0.02, dtype=torch.bfloat16) * torch.arange(8)
    outputs = [ChannelNorm(8, official)(x).float().std().item() for official in (True, False)]
    assert outputs[0] < outputs[1] - 0.05
    assert torch.equal(*(ChannelNorm(8, official)(x.float()) for official in (True, False)))


def test_encoder_takes_any_coordinates() -> None:
    torch.manual_seed(0)
    options = {"nf": 8, "img_size": 16, "num_conv_blocks": 1, "uno_res": 8, "uno_mults": (1, 2), "out_channels": 6,
               "blocks_per_level": (1, 1), "attn_res": (4,), "uno_base_nf": 8}
    fixed, official = (Encoder(**options, official=flag).eval() for flag in (False, True))
    official.load_state_dict(fixed.state_dict())
    image = F.interpolate(torch.randn(2, 3, 4, 4), (16, 16), mode="bicubic")
    with torch.no_grad():
        points = Points(fixed.canvas(16, 16))
        whole = fixed(to_tokens(image), fixed.support(points))
        larger = F.interpolate(image, (32, 32), mode="bicubic")
        other = fixed(to_tokens(larger), fixed.support(Points(fixed.canvas(32, 32))))
        plain = official(to_tokens(image), official.support(points))
    assert whole.shape == (2, 6)
    assert (other - whole).norm() < 0.5 * (whole[0] - whole[1]).norm() + 0.2 * whole.norm()
    assert not torch.allclose(plain, whole, atol=1e-3)


@pytest.mark.parametrize(("name", "counts"), [
    ("ffhq_128", (43_591_796 - 49, 16_573_041 - 49, 43_754_240)),
    ("ffhq_256", (321_513_332 - 49, 122_028_721 - 49, 75_705_344)),
    ("churches_256", (321_513_332 - 49, 122_028_721 - 49, 159_673_344)),
])
def test_published_sizes(name: str, counts: tuple[int, ...]) -> None:
    """The official counts contain the 49 ones of the normalising convolution, a constant that is not kept here."""
    with torch.device("meta"):
        networks = build(configs.model_config(name), "official", "official")
    assert tuple(sum(p.numel() for p in module.parameters()) for module in networks.modules()) == counts


def test_configurations_of_the_variants() -> None:
    main = configs.variant_config("main")
    assert main["decoder"]["img_size"] == configs.REFERENCE_SIZE
    assert configs.variant_config("white-noise")["diffusion"]["gaussian_filter_std"] == 0
    assert not configs.variant_config("full-kernel")["decoder"]["depthwise_sparse"]
    assert json.dumps(main | {"training": 0}) == json.dumps(configs.variant_config("8x") | {"training": 0})
    with pytest.raises(SpecError, match=r"no variant '8'; did you mean '8x'.*; there are: main, 1x"):
        configs.variant_config("8")


def test_mollifier_is_a_gaussian_blur_and_its_inverse() -> None:
    blur = mollifier.Mollifier.make(24, 32, 1.5)
    x = torch.randn(2, 3, 24, 32)
    assert torch.allclose(blur(torch.ones(1, 1, 24, 32)), torch.ones(1, 1, 24, 32), atol=1e-6)
    point = torch.zeros(1, 1, 24, 32)
    point[..., 12, 16] = 1
    expected = torch.exp(-0.5 * ((torch.arange(32.0) - 16) / 1.5) ** 2) / (1.5 * (2 * torch.pi) ** 0.5)
    assert torch.allclose(blur(point).sum(2)[0, 0], expected, atol=1e-4)
    smooth = F.interpolate(torch.randn(1, 3, 4, 4), (24, 32), mode="bicubic")
    assert (blur.undo(blur(smooth)) - smooth).abs().max() < 0.1
    white = mollifier.Mollifier.make(24, 32, 0.0)
    assert torch.allclose(white(x), x, atol=1e-5)
    assert torch.allclose(white.undo(x), x, atol=1e-5)


def test_preconditioning() -> None:
    """With F = 0 the prediction is the best multiple of x, and what is left for F has unit variance."""
    kind = process.Process(0.5, True, 0.25)
    noise = mollifier.Mollifier.make(64, 64, 0.5)(torch.randn(64, 1, 64, 64, generator=torch.Generator().manual_seed(0)))
    assert noise.std().item() == pytest.approx(kind.noise_std, rel=0.03)
    ab = np.array([0.999, 0.5, 0.001])
    c_in, k, c_out = kind.coefficients(ab)
    draw = np.random.default_rng(0)
    x0, xi = draw.normal(0, 0.25, 200_000), draw.normal(0, kind.noise_std, 200_000)
    for i, a in enumerate(ab):
        x, v = a**0.5 * x0 + (1 - a) ** 0.5 * xi, a**0.5 * xi - (1 - a) ** 0.5 * x0
        assert (c_in[i] * x).std() == pytest.approx(1, abs=0.01)
        left = (v - k[i] * x) / c_out[i]
        assert left.std() == pytest.approx(1, abs=0.01)
        assert abs(np.corrcoef(left, x)[0, 1]) < 0.01
    table = process.ddim_table(np.array([10, 500, 990]), kind)
    plain = process.ddim_table(np.array([10, 500, 990]), process.Process(0.5, True))
    out, x = torch.randn(5), torch.randn(5)
    c_in, k, c_out = kind.coefficients(process.process_alphas()[table.timesteps])
    for i in range(3):
        assert table.e[i] == pytest.approx(c_in[i])
        velocity = float(k[i]) * x + float(c_out[i]) * out
        expected = process.clean_estimate(x, velocity, plain, i)
        assert torch.allclose(process.clean_estimate(x, out, table, i), expected, atol=1e-5)


def test_subsets() -> None:
    canvas = Canvas(16, 24, 16, 8)
    bank = subsets.subset_bank(canvas, 8, 5)
    assert bank.index.shape == (5, 48)
    assert all(len(set(row.tolist())) == 48 for row in bank.index)
    assert torch.equal(bank.index, subsets.subset_bank(canvas, 8, 5).index)
    assert subsets.subset_bank(canvas, 1, 5).dense
    quasi = subsets.subset_bank(canvas, 4, 3, "halton").index
    assert all(len(set(row.tolist())) == 96 for row in quasi)
    counts = torch.zeros(3, 16 * 24).scatter_(1, quasi, 1.0).view(3, 4, 4, 6, 4).sum((2, 4))
    uniform = torch.zeros(5, 16 * 24).scatter_(1, subsets.subset_bank(canvas, 4, 5).index, 1.0).view(5, 4, 4, 6, 4).sum((2, 4))
    assert counts.std() < 0.85 * uniform.std()                       # a Halton sequence fills the canvas evenly
    with pytest.raises(SpecError, match="coordinates 'sobol'"):
        subsets.subset_bank(canvas, 4, 3, "sobol")
    assert [round(v, 3) for v in subsets.halton(4, 2).tolist()] == [0.5, 0.25, 0.75, 0.125]


@pytest.mark.parametrize("n", [2, 5, 8, 10, 16])
def test_lattices_are_disjoint_and_cover_everything(n: int) -> None:
    canvas = Canvas(37, 53, 16, 8)
    sets = subsets.lattices(canvas, n, torch.Generator().manual_seed(0))
    assert len(sets) == n
    assert torch.cat([points.flat()[0] for points in sets]).sort().values.tolist() == list(range(37 * 53))
    assert subsets.lattices(Canvas(8, 64, 16, 8), 5, torch.Generator()) is None
    assert {subsets.lattices(canvas, n, torch.Generator().manual_seed(i))[0].stride for i in range(9)} >= {sets[0].stride}


def test_fractions() -> None:
    assert [subsets.fraction_of(s) for s in (0.5, 0.875, 0.9, 0.6, 0.3)] == [(1, 2), (1, 8), (1, 10), (2, 5), (7, 10)]
    assert subsets.fraction_of(0.987) is None
    assert subsets.fraction_of(0.51) is None


def test_random_parts_cover_everything() -> None:
    canvas = Canvas(37, 53, 16, 8)
    parts = subsets.partition(canvas, 0.3, torch.Generator().manual_seed(0))
    assert set(torch.cat([points.index[0] for points in parts]).tolist()) == set(range(37 * 53))
    assert {len(points) for points in parts} == {round(0.7 * 37 * 53)}


@pytest.mark.parametrize("module", [configs, conv, geometry, mollifier, process, sparse, subsets])
def test_all_names_exist(module) -> None:  # type: ignore[no-untyped-def]
    assert all(hasattr(module, name) for name in module.__all__)
    assert module.__doc__
