"""DemoFusion's parts: schedules, phases, windows, filters, schedulers, both paths, tiles."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hibench.errors import AdapterError, SpecError
from methods.demofusion import decode, denoise, filters, sampling, schedule, scheduler, windows
from methods.demofusion.conditioning import Text, time_ids, window_ids
from methods.demofusion.denoise import Refinement, Rules
from methods.demofusion.network import Network, rescaled
from methods.demofusion.phases import phases

GOLDEN = Path(__file__).parent / "golden" / "demofusion"


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.inference_mode():
        yield


# -- schedules and sizes ---------------------------------------------------------------------------------------------------


def test_cosine_weights_fall_from_one_to_zero() -> None:
    first, middle, last = schedule.step_weights([1000, 500, 0], alpha=(3, 1, 2), sigma=0.8)
    assert (first.skip, first.dilated) == (1.0, 1.0)
    assert first.sigma == pytest.approx(0.8)
    assert middle.skip == pytest.approx(0.125)
    assert middle.dilated == pytest.approx(0.5)
    assert middle.sigma == pytest.approx(0.8 * (0.99 * 0.25 + 0.01))
    assert last.skip == last.dilated == 0.0
    assert last.sigma == pytest.approx(0.008)
    off = schedule.step_weights([900], skip=False, dilated=False)[0]
    assert (off.skip, off.dilated) == (0.0, 0.0)


def test_phases_are_the_official_ones_where_the_canvas_is_a_multiple() -> None:
    assert [p[3:] for p in phases((128, 192), 64, 4)] == [(10, 16), (21, 32), (32, 48)]
    assert [p[1:3] for p in phases((4096, 4096), 1024, 8)] == [(1024, 1024), (2048, 2048), (3072, 3072), (4096, 4096)]
    assert [p.scale for p in phases((4096, 2048), 1024, 8, progressive=False)] == [1, 4]


@pytest.mark.parametrize("size", [(64, 64), (32, 48), (96, 96), (100, 132), (64, 512), (512, 64), (4, 256)])
def test_phases_end_at_any_canvas(size: tuple[int, int]) -> None:
    found = phases(size, 64, 4)
    assert found[-1][1:] == (*size, size[0] // 4, size[1] // 4)
    assert len(found) == -(-max(size) // 64)
    assert all(p.rows >= 1 and p.columns >= 1 for p in found)
    assert [max(p.height, p.width) for p in found[:-1]] == [64 * s for s in range(1, len(found))]


# -- windows ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "window", "stride"), [(16, 16, 8), (17, 16, 8), (40, 16, 8), (41, 16, 5), (7, 16, 8), (48, 16, 16)]
)
def test_windows_cover_every_latent(side: int, window: int, stride: int) -> None:
    found = windows.starts(side, window, stride)
    width = min(window, side)
    assert {i for s in found for i in range(s, s + width)} == set(range(side))
    assert len(found) == len(set(found))
    assert found[-1] + width == side


def test_released_multidiffusion_leaves_the_rest_of_a_stride_out() -> None:
    assert windows.starts(35, 16, 8, cover=False) == [0, 8, 16]
    assert windows.starts(35, 16, 8) == [0, 8, 16, 19]


def test_shifts_stay_in_their_ranges_and_at_borders_point_outwards() -> None:
    corners = windows.origins((32, 16), 16, 8)
    ranges = windows.shift_ranges(corners, (32, 16), 16, 2)
    assert ranges.tolist() == [[[-2, 0], [0, 0]], [[-2, 2], [0, 0]], [[0, 2], [0, 0]]]
    drawn = windows.draw_shifts(ranges, 200, torch.Generator().manual_seed(0))
    assert drawn.shape == (200, 3, 2)
    assert sorted(set(drawn[:, 1, 0].tolist())) == [-2, -1, 0, 1, 2]
    assert sorted(set(drawn[:, 0, 0].tolist())) == [-2, -1, 0]
    assert not drawn[..., 1].any()


def test_official_shifts_are_drawn_column_first() -> None:
    ranges = windows.shift_ranges(windows.origins((32, 32), 16, 8), (32, 32), 16, 2)
    drawn = windows.draw_shifts_official(ranges, 2, random.Random(7))
    reference = random.Random(7)
    assert drawn[0, 0].tolist()[::-1] == [reference.randint(-2, 0), reference.randint(-2, 0)]
    assert drawn[0, 1].tolist()[::-1] == [reference.randint(-2, 2), reference.randint(-2, 0)]
    stored = np.load(GOLDEN / "a_euler_S3_corrected" / "inputs.npz")
    table, flat = stored["jitter_phase2"], iter(stored["jitter_draws"].tolist())

    class Replay:
        def randint(self, low: int, high: int) -> int:
            value = next(flat)
            assert low <= value <= high
            return value

    assert np.array_equal(windows.draw_shifts_official(ranges, len(table), Replay()), table)


def test_cutting_and_laying_back_is_the_mean() -> None:
    canvas = torch.randn(2, 3, 21, 33, generator=torch.Generator().manual_seed(0))
    corners = np.broadcast_to(windows.origins((21, 33), 16, 8), (2, 8, 2))
    cut = windows.cut(canvas, corners, (16, 16))
    back = windows.lay(cut, corners, (21, 33)) / windows.coverage(corners, (16, 16), (21, 33))
    assert cut.shape == (16, 3, 16, 16)
    assert torch.allclose(back, canvas, atol=1e-6)


def test_windows_are_told_where_they_are() -> None:
    base, corners = time_ids((128, 192), (0, 0), (128, 192)), np.array([[0, 1], [5, 10]])
    assert window_ids(base, corners, 4).tolist() == [[128, 192, 0, 4, 128, 192], [128, 192, 20, 40, 128, 192]]
    assert window_ids(base, corners, 4, pad=2)[:, 2:4].tolist() == [[0, 0], [12, 32]]


# -- filters ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 9])
def test_blur_in_two_passes_is_the_square_kernel(size: int) -> None:
    z = torch.randn(2, 4, 20, 13, generator=torch.Generator().manual_seed(0))
    weights = filters.gaussian(size, 0.8)
    kernel = torch.outer(weights, weights).expand(4, 1, size, size)
    assert weights.sum().item() == pytest.approx(1)
    assert torch.allclose(filters.blur(z, weights), F.conv2d(z, kernel, padding=size // 2, groups=4), atol=1e-6)


def test_match_gives_each_image_its_moments() -> None:
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * torch.tensor([2.0, 0.5])[:, None, None, None]
    mean, std = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1), torch.tensor([3.0, 0.1]).view(2, 1, 1, 1)
    found = filters.moments(filters.match(z, mean, std))
    assert torch.allclose(found[0], mean, atol=1e-5)
    assert torch.allclose(found[1], std, atol=1e-5)


# -- schedulers ------------------------------------------------------------------------------------------------------------

NAMES = [
    "ddim",
    "euler",
    "ddpm",
    "dpm++2m",
    "unipc",
    "heun",
    "pndm",
    "lms",
    "lcm",
    "EulerAncestralDiscreteScheduler",
    "DPMSolverSinglestepScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DEISMultistepScheduler",
    "SASolverScheduler",
]


def made(name: str | None):
    import diffusers

    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    own = scheduler.make_scheduler(diffusers.DDIMScheduler(**config, clip_sample=False, set_alpha_to_one=False), None)
    return scheduler.make_scheduler(own, name)


class Linear(torch.nn.Module):
    """A U-Net that is a convolution of its input, so that windows and canvas can be told apart at their borders alone."""

    config = type("Config", (), {"addition_embed_type": "text_time"})
    dtype = torch.float32

    def __init__(self, point: bool = True) -> None:
        super().__init__()
        self.point, self.seen, self.calls = point, [], []

    def forward(self, x, t, encoder_hidden_states, added_cond_kwargs, return_dict):
        self.seen.append(added_cond_kwargs["time_ids"])
        self.calls.append(len(x))
        out = 0.3 * x + 0.1 * encoder_hidden_states.mean((1, 2))[:, None, None, None]
        return (out if self.point else out + 0.1 * F.avg_pool2d(x, 3, 1, 1),)


def text(batch: int = 1) -> Text:
    draw = torch.Generator().manual_seed(3)
    return Text(*(torch.randn(batch, *shape, generator=draw) for shape in ((5, 8), (6,), (5, 8), (6,))))


def work(name: str, rules: Rules, size=(16, 16), batch: int = 1, steps: int = 4, s: int = 1, unet=None, **more) -> Refinement:
    generators = [torch.Generator().manual_seed(9 + i) for i in range(batch)]
    stepper = scheduler.Stepper(made(name), steps, generators)
    network = Network(unet or Linear(), text(batch), 3.0, max_windows=more.pop("max_windows", 16))
    return Refinement(rules, network, stepper, size, batch, time_ids((64, 64), (0, 0), (64, 64)), "cpu", s=s, **more)


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", NAMES)
def test_every_scheduler_does_windows_as_it_does_the_whole(name: str) -> None:
    """With a network that looks at single latents, windows are ordinary sampling: memory and noise per position."""
    rules = Rules(8, 4, 4, 0, skip=False, dilated=False)
    windowed = work(name, rules)
    z = noise(1, 4, 16, 16) * windowed.stepper.initial
    whole = scheduler.Stepper(made(name), 4, [torch.Generator().manual_seed(9)])
    expected = denoise.denoise_whole(z, whole, Network(Linear(), text(), 3.0), windowed.ids)
    got = windowed.denoise(z)
    assert windowed.views == 9
    assert (got - expected).abs().max() <= 2e-5 * expected.abs().max()
    assert windowed.stepper.done(len(windowed.stepper.timesteps) - 1) == 4


@pytest.mark.parametrize("name", NAMES)
def test_skip_residual_reaches_the_samples_of_every_scheduler(name: str) -> None:
    """Where the weight of the guide is 1 in every step, the last sample comes from the guide alone, not from the start."""
    rules = Rules(8, 4, 4, 0, alpha=(0.0, 1.0, 1.0), dilated=False)
    results = []
    for seed in (1, 2):
        run = work(name, rules)
        results.append(run.denoise(noise(1, 4, 16, 16, seed=seed) * run.stepper.initial, lambda i: torch.ones(1, 4, 16, 16)))
    assert torch.allclose(*results, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("DPMSolverSDEScheduler", "Brownian"),
        ("RePaintScheduler", "original_image"),
        ("FlowMatchEulerDiscreteScheduler", "cannot step"),
        ("IPNDMScheduler", "noised"),
        ("DPMSolverMultistepInverseScheduler", "towards the noise"),
    ],
)
def test_schedulers_that_cannot_do_it_say_why(name: str, why: str) -> None:
    with pytest.raises(AdapterError, match=why):
        made(name)


def test_unknown_scheduler_and_impossible_steps() -> None:
    with pytest.raises(SpecError, match="did you mean 'ddim'"):
        scheduler.scheduler_class("ddims")
    with pytest.raises(AdapterError, match="cannot do 2000 steps"):
        scheduler.Stepper(made("ddim"), 2000)


def test_official_factors_depend_on_the_batch() -> None:
    stepper = scheduler.Stepper(made("euler"), 4)
    sigma = stepper.scheduler.sigmas.double()
    right, next_, last = (1 / (sigma[k] ** 2 + 1).sqrt() for k in (1, 2, 4))
    factors = stepper.official_factors(1, 5, 4, 3, later=True)
    assert np.allclose(factors, [right] * 3 + [next_] * 6)
    assert np.allclose(stepper.official_factors(0, 5, 4, 3, later=True)[:3], last)
    assert np.allclose(scheduler.Stepper(made("ddim"), 4).official_factors(0, 5, 4, 3, later=True), 1)


# -- both paths ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(24, 24), (16, 25), (23, 17)])
def test_dilated_path_is_undone_exactly(size: tuple[int, int]) -> None:
    run = work("ddim", Rules(16, 4, 8, 0), size, batch=2, s=3)
    z = noise(2, 4, *size)
    x, images, ids = run._dilated_inputs(z, schedule.StepWeights(1, 1, 1e-3))
    assert x.shape == (18, 4, -(-size[0] // 3), -(-size[1] // 3))
    assert images.tolist() == [0] * 9 + [1] * 9
    assert ids[:, 2:4].abs().sum() == 0
    assert torch.allclose(run._lay_dilated(x), z, atol=1e-5)
    padded = F.pad(z, (-size[1] % 3, 0, -size[0] % 3, 0))
    assert torch.allclose(x[5], padded[0, :, 1::3, 2::3], atol=1e-5)


def test_order_and_number_of_windows_at_once_change_nothing() -> None:
    shifts = windows.draw_shifts(
        windows.shift_ranges(windows.origins((32, 32), 16, 8), (32, 32), 16, 2), 4, torch.Generator().manual_seed(0)
    )[:, None]
    order = np.random.default_rng(0).permutation(9)
    z, start = noise(1, 4, 32, 32), noise(1, 4, 32, 32, seed=2)
    for name in ("ddim", "euler", "unipc"):
        plain, *others = (
            work(name, Rules(16, 4, 8, 2), (32, 32), s=2, unet=Linear(point=False), shifts=shifts, **more).run(z, start)
            for more in ({}, {"max_windows": 1}, {"max_windows": None}, {"order": order})
        )
        for other in others:
            assert (plain - other).abs().max() <= 1e-5 * plain.abs().max()


def test_both_paths_share_batches_of_bounded_size() -> None:
    unet = Linear()
    work("ddim", Rules(16, 4, 8, 0), (32, 32), s=2, unet=unet, max_windows=13).run(noise(1, 4, 32, 32), noise(1, 4, 32, 32))
    assert unet.calls == [26] * 4
    unet.calls.clear()
    work("ddim", Rules(16, 4, 8, 0), (32, 32), s=2, unet=unet, max_windows=5).run(noise(1, 4, 32, 32), noise(1, 4, 32, 32))
    assert max(unet.calls) == 10


def test_a_path_without_weight_is_not_evaluated() -> None:
    unet = Linear()
    work("ddim", Rules(16, 4, 8, 0, dilated=False), (32, 32), s=2, unet=unet).run(noise(1, 4, 32, 32), noise(1, 4, 32, 32))
    assert unet.calls == [18] * 4


def test_local_windows_are_told_their_places_and_dilated_ones_the_canvas() -> None:
    for rules, places in ((Rules(16, 4, 8, 0), {0, 32, 64}), (Rules(16, 4, 8, 0, crops=False), {0})):
        unet = Linear()
        work("ddim", rules, (32, 32), s=2, unet=unet).run(noise(1, 4, 32, 32), noise(1, 4, 32, 32))
        assert {int(v) for ids in unet.seen for v in ids[:, 2:4].flatten()} == places
        assert (unet.seen[0].chunk(2)[0] == unet.seen[0].chunk(2)[1]).all()


def test_kernel_widths() -> None:
    assert [Rules(16, 4, 8, 2).blur_size(s) for s in (1, 2, 3, 4)] == [1, 5, 9, 13]
    assert [Rules(16, 4, 8, 2, kernel="2s-1").blur_size(s) for s in (1, 2, 3, 4)] == [1, 3, 5, 7]


def test_released_multidiffusion_has_zeros_behind_the_last_window() -> None:
    z = work("ddim", Rules(16, 4, 8, 0, skip=False, dilated=False, cover=False), (19, 24)).denoise(noise(1, 4, 19, 24))
    assert z[:, :, 16:].abs().max() == 0
    assert z[:, :, :16].abs().min() > 0


def test_rescaled_guidance_moves_the_spread() -> None:
    guided, given = 5 * noise(2, 4, 8, 8), noise(2, 4, 8, 8, seed=2)
    assert torch.allclose(rescaled(guided, given, 1.0).std((1, 2, 3)), given.std((1, 2, 3)), atol=1e-5)
    assert torch.equal(rescaled(guided, given, 0.0), guided)


# -- draws and decoding ----------------------------------------------------------------------------------------------------


def test_draws_come_from_the_seed_alone() -> None:
    ranges = windows.shift_ranges(windows.origins((32, 32), 16, 8), (32, 32), 16, 2)
    for official in (False, True):
        together, alone = sampling.SeedDraws([4, 7], official=official), sampling.SeedDraws([7], official=official)
        state = torch.get_rng_state(), random.getstate()
        assert torch.equal(together.noise(2, (4, 8, 8))[1:], alone.noise(2, (4, 8, 8)))
        shifts = together.shifts(2, ranges, 5)
        assert np.array_equal(shifts[:, 1:], alone.shifts(2, ranges, 5))
        assert not np.array_equal(shifts[:, 0], shifts[:, 1])
        assert torch.equal(state[0], torch.get_rng_state())
        assert state[1] == random.getstate()
    assert not torch.equal(alone.noise(2, (4, 8, 8)), alone.noise(3, (4, 8, 8)))


def test_tiles_at_once_change_nothing_and_cores_keep_their_places() -> None:
    def enlarge(z: torch.Tensor) -> torch.Tensor:
        return F.interpolate(z[:, :3] + 0.1 * z.mean((1, 2, 3), keepdim=True), scale_factor=4.0)

    z = noise(2, 4, 21, 34)
    rule = decode.tile_rule(16)
    one, some, every = (decode.decode_tiled(enlarge, z, 4, rule, n) for n in (1, 8, None))
    assert one.shape == (2, 3, 84, 136)
    assert torch.allclose(one, some, atol=1e-6)
    assert torch.allclose(one, every, atol=1e-6)
    assert torch.allclose(
        decode.decode_tiled(lambda x: F.interpolate(x[:, :3], scale_factor=4.0), z, 4, rule),
        F.interpolate(z[:, :3], scale_factor=4.0),
        atol=1e-6,
    )
    assert (one - enlarge(z)).abs().max() > 1e-3


def test_tile_rules_are_the_official_ones() -> None:
    assert decode.tile_rule(128) == (32, 32, 48)
    assert decode.tile_rule(128, small=True) == (32, 16, 32)
