"""Schedules, samplers, losses and EMA against diffusers, closed forms, and the numbers of the papers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from hibench.errors import SpecError
from methods.diffusion import ddim, dpm, ema, losses, schedules
from methods.diffusion.ema import EMA

LDM = {"beta_schedule": "scaled_linear", "steps_offset": 1, "set_alpha_to_one": False}
INFD = {"beta_schedule": "linear", "steps_offset": 0, "set_alpha_to_one": True}


def eps_model(x: torch.Tensor, i: int) -> torch.Tensor:
    """A fixed nonlinear stand-in for a network, of unit scale."""
    return torch.sin(3 * x + 0.1 * i) + 0.3 * x.flip(-1)


def tables(kind: str, steps: int, eta: float) -> ddim.Table:
    if kind == "ldm":
        ab = schedules.alphas_cumprod(schedules.sqrt_linear_betas(0.0015, 0.0195))
        return ddim.ddim_table(ab, schedules.strided_timesteps(steps), eta)
    ab = schedules.alphas_cumprod(schedules.linear_betas(0.0015, 0.0195))
    return ddim.ddim_table(ab, schedules.respaced_timesteps(f"ddim{steps}"), eta, final=1.0)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize(("kind", "options"), [("ldm", LDM), ("infd", INFD)])
def test_ddim_equals_diffusers(kind: str, options: dict, eta: float) -> None:
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(beta_start=0.0015, beta_end=0.0195, clip_sample=False, timestep_spacing="leading", **options)
    scheduler.set_timesteps(20)
    table = tables(kind, 20, eta)
    assert scheduler.timesteps.tolist() == table.timesteps.tolist()
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(2, 3, 8, 8, generator=generator)
    noise = torch.randn(20, 2, 3, 8, 8, generator=generator)
    theirs = start
    for i, t in enumerate(scheduler.timesteps):
        variance = noise[i] if eta else None
        theirs = scheduler.step(eps_model(theirs, i), t, theirs, eta=eta, variance_noise=variance).prev_sample
    ours = ddim.sample(eps_model, start, table, noise.__getitem__)
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def test_ddpm_equals_diffusers() -> None:
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.0015, beta_end=0.0195, clip_sample=False)
    scheduler.set_timesteps(25)
    ab = schedules.alphas_cumprod(schedules.sqrt_linear_betas())
    table = ddim.ddpm_table(ab, schedules.respaced_timesteps("ddim25"))
    assert scheduler.timesteps.tolist() == table.timesteps.tolist()
    assert table.stochastic == (True,) * 24 + (False,)
    start = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    theirs, kept = start, []
    for i, t in enumerate(scheduler.timesteps):
        generator = torch.Generator().manual_seed(i)
        theirs = scheduler.step(eps_model(theirs, i), t, theirs, generator=generator).prev_sample
        kept.append(torch.randn(start.shape, generator=torch.Generator().manual_seed(i)))
    ours = ddim.sample(eps_model, start, table, kept.__getitem__)
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")      # diffusers on numpy 2
@pytest.mark.parametrize("steps", [1, 2, 3, 12, 20])
def test_dpm_solver_equals_diffusers(steps: int) -> None:
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(beta_schedule="scaled_linear", beta_start=0.0015, beta_end=0.0195,
                                            timestep_spacing="linspace", final_sigmas_type="zero")
    scheduler.set_timesteps(steps)
    ab = schedules.alphas_cumprod(schedules.sqrt_linear_betas())
    table = dpm.dpm_table(ab, dpm.dpm_timesteps(steps))
    assert scheduler.timesteps.tolist() == table.timesteps.tolist()
    start = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    theirs = start
    for i, t in enumerate(scheduler.timesteps):
        theirs = scheduler.step(eps_model(theirs, i), t, theirs).prev_sample
    ours = dpm.sample(eps_model, start, table)
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()
    assert len(table) == len(table.stochastic) == steps


def test_eta_one_over_every_timestep_is_ddpm() -> None:
    ab = schedules.alphas_cumprod(schedules.sqrt_linear_betas())
    times = np.arange(1000)
    a, b = ddim.ddim_table(ab, times, 1.0, final=1.0), ddim.ddpm_table(ab, times)
    for name in ("a", "b", "sigma"):
        mine, other = torch.stack(tuple(getattr(a, name))), torch.stack(tuple(getattr(b, name)))
        assert torch.allclose(mine, other, atol=1e-6), name


def test_clean_latents_are_recovered_by_a_perfect_network() -> None:
    ab = schedules.alphas_cumprod(schedules.sqrt_linear_betas())
    times = schedules.strided_timesteps(10)
    table = ddim.ddim_table(ab, times, 0.0, final=1.0)
    clean = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    bars = ab[times][::-1]
    seen = []

    def perfect(x: torch.Tensor, i: int) -> torch.Tensor:
        return (x - bars[i] ** 0.5 * clean) / (1 - bars[i]) ** 0.5

    out = ddim.sample(perfect, torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1)), table,
                      after=lambda i, x, eps, _: seen.append(ddim.predict_x0(x, eps, table, i)))
    assert torch.allclose(out, clean, atol=1e-4)
    assert len(seen) == 10
    assert all(torch.allclose(x0, clean, atol=1e-3) for x0 in seen)


def test_noise_is_asked_for_only_when_it_is_used() -> None:
    asked = []

    def noise(i: int) -> torch.Tensor:
        asked.append(i)
        return torch.zeros(1, 3, 4, 4)

    x = torch.ones(1, 3, 4, 4)
    ddim.sample(eps_model, x, tables("ldm", 5, 0.0), noise)
    assert asked == []
    ddim.sample(eps_model, x, tables("infd", 5, 1.0), noise)
    assert asked == [0, 1, 2, 3]                    # the last step of INFD ends at the clean image
    with pytest.raises(ValueError, match="adds noise"):
        ddim.sample(eps_model, x, tables("ldm", 5, 1.0))


def test_guidance_extrapolates_from_unconditional_to_conditional() -> None:
    eps = torch.tensor([[1.0], [3.0]])              # unconditional, conditional
    assert [ddim.guide(eps, s).item() for s in (0.0, 1.0, 2.5)] == [1.0, 3.0, 6.0]


def test_the_two_linear_schedules_are_different_processes() -> None:
    ldm = schedules.alphas_cumprod(schedules.sqrt_linear_betas(0.0015, 0.0195))
    infd = schedules.alphas_cumprod(schedules.linear_betas(0.0015, 0.0195))
    assert ldm[[250, 500, 750]] == pytest.approx([0.508, 0.115, 0.0083], rel=5e-3)
    assert infd[[250, 500, 750]] == pytest.approx([0.389, 0.0489, 0.00197], rel=5e-3)
    assert (ldm[-1], infd[-1]) == (pytest.approx(1.42e-4, rel=5e-3), pytest.approx(2.57e-5, rel=5e-3))
    assert ldm.dtype == np.float64


def test_cosine_schedule_reaches_noise() -> None:
    ab = schedules.alphas_cumprod(schedules.cosine_betas())
    assert ab[0] > 0.999
    assert ab[-1] < 1e-4
    assert (np.diff(ab) < 0).all()


@pytest.mark.parametrize(("steps", "first", "last"), [(50, 1, 981), (200, 1, 996), (500, 1, 999), (1, 1, 1)])
def test_strided_timesteps(steps: int, first: int, last: int) -> None:
    times = schedules.strided_timesteps(steps)
    assert (len(times), times[0], times[-1]) == (steps, first, last)


@pytest.mark.parametrize(("steps", "near"), [(300, "250, 500"), (400, "250, 500"), (7, "5, 8"), (1000, "500"), (0, "1")])
def test_a_step_count_that_does_not_divide_names_the_nearest(steps: int, near: str) -> None:
    with pytest.raises(SpecError, match=rf"^steps: {steps} sampler steps .*; the nearest that work: {near}$"):
        schedules.strided_timesteps(steps)


def test_compat_does_what_the_official_code_does() -> None:
    assert len(schedules.strided_timesteps(400, compat=True)) == 500      # the README's "400 DDIM steps"
    with pytest.raises(SpecError, match="the official code fails here too, at timestep 1000"):
        schedules.strided_timesteps(300, compat=True)


def test_respacing() -> None:
    assert schedules.respaced_timesteps("ddim200")[[0, 1, -1]].tolist() == [0, 5, 995]
    assert schedules.respaced_timesteps("250")[[0, 1, -1]].tolist() == [0, 4, 999]
    assert len(schedules.respaced_timesteps("ddim1000")) == 1000
    with pytest.raises(SpecError, match=r"no integer stride gives 300 of 1000 training steps; use 250 or 500"):
        schedules.respaced_timesteps("ddim300")
    with pytest.raises(SpecError, match="use 1 to 1000"):
        schedules.respaced_timesteps(0)


def test_losses_follow_their_formulas() -> None:
    betas = schedules.sqrt_linear_betas()
    ab = schedules.alphas_cumprod(betas)
    z, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    t = torch.tensor([0, 600])
    result = losses.eps_loss(lambda x, _: torch.zeros_like(x), z, t, noise, torch.from_numpy(ab), "l1",
                             torch.from_numpy(losses.vlb_weights(betas)), elbo_weight=0.5)
    expected = ab[600] ** 0.5 * z[1] + (1 - ab[600]) ** 0.5 * noise[1]
    assert torch.allclose(result.x_noisy[1], expected.float(), atol=1e-5)
    errors = noise.abs().flatten(1).mean(1)
    assert result.simple.item() == pytest.approx(errors.mean().item(), rel=1e-5)
    weights = losses.vlb_weights(betas)
    assert weights[0] == weights[1]
    variance = betas[600] * (1 - ab[599]) / (1 - ab[600])
    assert weights[600] == pytest.approx(betas[600] ** 2 / (2 * variance * (1 - betas[600]) * (1 - ab[600])))
    assert result.vlb.item() == pytest.approx((weights[[0, 600]] * errors.numpy()).mean(), rel=1e-5)
    assert result.loss.item() == pytest.approx(result.simple.item() + 0.5 * result.vlb.item(), rel=1e-5)
    with pytest.raises(ValueError, match="'l1' or 'l2'"):
        losses.per_sample(z, z, "huber")
    assert losses.eps_loss(lambda x, _: x, z, t, noise, torch.from_numpy(ab)).vlb.isnan()


def test_velocity_equals_diffusers() -> None:
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.0015, beta_end=0.0195)
    generator = torch.Generator().manual_seed(0)
    z, noise = torch.randn(2, 3, 3, 8, 8, generator=generator)
    t = torch.tensor([3, 500, 999])
    ab = torch.from_numpy(schedules.alphas_cumprod(schedules.sqrt_linear_betas(0.0015, 0.0195))).float()
    torch.testing.assert_close(losses.velocity(z, t, noise, ab), scheduler.get_velocity(z, noise, t), rtol=1e-5, atol=1e-6)


def test_ema_starts_from_the_model_and_warms_up() -> None:
    model = nn.Linear(1, 1)
    nn.init.constant_(model.weight, 1.0)
    nn.init.constant_(model.bias, 0.0)
    average = EMA(model, decay=0.9999)
    nn.init.constant_(model.weight, 2.0)
    average.update()                                # decay min(.9999, 2/11)
    assert average.shadow["weight"].item() == pytest.approx(1 + 9 / 11)
    constant = EMA(model, decay=0.9, warmup=False)
    nn.init.constant_(model.weight, 3.0)
    constant.update()
    assert constant.shadow["weight"].item() == pytest.approx(2.1)
    with constant.applied():
        assert model.weight.item() == pytest.approx(2.1)
    assert model.weight.item() == 3.0
    other = EMA(nn.Linear(1, 1), decay=0.9)
    other.load_state_dict(constant.state_dict())
    assert other.shadow["weight"].item() == pytest.approx(2.1)
    assert other.updates == 1
    with pytest.raises(ValueError, match="another network"):
        other.load_state_dict({"updates": 1, "shadow": {}})
    with pytest.raises(ValueError, match="decay"):
        EMA(model, decay=1.0)


@pytest.mark.parametrize("module", [ddim, dpm, ema, losses, schedules])
def test_all_names_exist(module) -> None:
    assert sorted(module.__all__, key=str.lower) == sorted(set(module.__all__), key=str.lower)
    assert all(hasattr(module, name) for name in module.__all__)
