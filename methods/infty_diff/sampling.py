"""Sampling images: plans for dense and sparse evaluation of the coordinates, and the reverse process itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hibench.adapter import NULL_STAGE, Stage, seeded_noise
from hibench.errors import SpecError
from methods.diffusion.schedules import respaced_timesteps
from methods.infty_diff.decoder import Decoder
from methods.infty_diff.geometry import Canvas, Points
from methods.infty_diff.interpolation import Spread
from methods.infty_diff.mollifier import Mollifier
from methods.infty_diff.prior import Prior
from methods.infty_diff.process import DdimTable, Process, advance, ancestral_step, clean_estimate, ddim_table, latent_alphas
from methods.infty_diff.sparse import Support
from methods.infty_diff.subsets import fraction_of, lattices, partition
from methods.nn.attention import from_tokens, to_tokens

__all__ = ["Evaluation", "Plan", "make_plan", "mollified_noise", "reverse", "sample_codes"]

DRAW = 20_240_501                                   # seed of the order in which subsets are visited; not of images
STREAM = 5_000_000                                  # noise streams of the prior; those below belong to the decoder


@dataclass(frozen=True)
class Evaluation:
    """One set of points, with what the network needs to know of it; made once per plan."""

    points: Points
    support: Support
    spread: Spread | None                           # None: all pixels


@dataclass
class Plan:
    """What does not change between images of one size and step count."""

    canvas: Canvas
    table: DdimTable
    times: list[list[tuple[Tensor, Tensor]]]        # [step][site] -> (1 + scale, shift)
    blur: Mollifier
    scale: float                                    # of the white noise: the ratio of the resolutions (1 for white noise)
    schedule: list[list[Points]]                    # the sets that each step evaluates
    sparsity: float                                 # mean fraction left out at the sparse steps
    device: str | torch.device = "cpu"
    prepared: dict[object, Evaluation] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.table)

    @property
    def nfe(self) -> int:
        """Network evaluations per image."""
        return sum(map(len, self.schedule))

    @property
    def coordinates(self) -> int:
        """Coordinates evaluated per image over all steps."""
        return sum(len(points) for step in self.schedule for points in step)

    def evaluation(self, decoder: Decoder, points: Points) -> Evaluation:
        """The set, prepared once; random sets of one visit are not kept."""
        key = (points.stride, points.phase)
        if points.index is None and key in self.prepared:
            return self.prepared[key]
        with lasting():
            support = decoder.support(points).to(self.device)
            made = Evaluation(support.points, support, None if points.dense else Spread(support.points, self.device))
        if points.index is None:
            self.prepared[key] = made
        return made


@contextmanager
def lasting() -> Iterator[None]:
    """For tensors that outlive the inference mode in which they may be made, and may take part in a gradient later."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def make_plan(decoder: Decoder, process: Process, resolution: tuple[int, int], steps: int, *, sparsity: float = 0.0,
              subset: str = "auto", finish: float = 0.1, start: int | None = None,
              device: str | torch.device = "cpu") -> Plan:
    """The official spacing of `steps` timesteps, and which coordinates each of them evaluates (see `reverse`).

    `start`: begin at the largest timestep of the spacing that is not above it instead of at 999.
    """
    times = respaced_timesteps(steps)
    if start is not None:
        times = times[times <= start]
    canvas = decoder.canvas(*resolution)
    table = ddim_table(times, process)
    with lasting():
        columns = decoder.times(torch.from_numpy(table.timesteps).to(device))
        rows = [[(scale[i : i + 1], shift[i : i + 1]) for scale, shift in columns] for i in range(len(table))]
        blur = Mollifier.make(*resolution, process.sigma * canvas.ratio, process.inv_snr, device)
    schedule, did = sparse_schedule(canvas, len(table), sparsity, subset, finish)
    return Plan(canvas, table, rows, blur, canvas.ratio if process.sigma else 1.0, schedule, did, device)


def sparse_schedule(canvas: Canvas, steps: int, sparsity: float, subset: str,
                    finish: float) -> tuple[list[list[Points]], float]:
    """The sets that every step evaluates, and the mean fraction of the coordinates that the sparse steps leave out."""
    if not sparsity:
        return [[Points(canvas)]] * steps, 0.0
    draw = torch.Generator().manual_seed(DRAW)
    last = min(steps, math.ceil(finish * steps))
    schedule: list[list[Points]] = []
    many, everything = sets(canvas, sparsity, subset, draw)
    cycle: list[Points] = []
    for _ in range(steps - last):
        if len(cycle) < many:
            _, cycle = sets(canvas, sparsity, subset, draw)
        schedule.append([cycle.pop() for _ in range(many)])
    done = sum(len(points) for step in schedule for points in step)
    left_out = 1 - done / (len(schedule) * canvas.height * canvas.width) if schedule else sparsity
    return schedule + [everything] * last, left_out


def sets(canvas: Canvas, sparsity: float, subset: str, draw: torch.Generator) -> tuple[int, list[Points]]:
    """Disjoint subsets that together are every pixel, in random order, and how many of them are a fraction 1 - sparsity."""
    share = fraction_of(sparsity) if subset != "uniform" else None
    found = share and lattices(canvas, share[1], draw)
    if share and found:
        return share[0], found
    if subset == "lattice":
        raise SpecError(f"infty-diff: option subset: no lattices leave out {sparsity:g} of {canvas.height}x{canvas.width} "
                        "pixels (1 - sparsity has to be a fraction m/n with n up to 16); use subset: uniform")
    return 1, partition(canvas, sparsity, draw)


def mollified_noise(plan: Plan, seeds: Sequence[int], device: str | torch.device = "cpu") -> Tensor:
    """x_T float32 [B, 3, H, W]: T of white noise times the ratio of the resolutions, which keeps its std."""
    white = seeded_noise((3, plan.canvas.height, plan.canvas.width), seeds, device)
    return plan.blur(white * plan.scale)


def reverse(decoder: Decoder, plan: Plan, x: Tensor, codes: list[Tensor], stage: Stage = NULL_STAGE,
            guide: Callable[[Tensor, Tensor, int], Tensor] | None = None) -> Tensor:
    """T x0 float32 [B, 3, H, W] from x_T (or from the plan's first time): deterministic DDIM with T x0 clamped to [-1, 1].

    Sparsity s. With 1 - s = m/n the pixels are divided into n interleaved lattices (every a-th row and b-th column, a b = n,
    along rows or columns by chance). A sparse step asks the network for m of them, one after the other, in a random order that
    comes to each before any comes again; every coordinate is as likely to be evaluated as any other. The network sees the
    coordinates of one lattice only. (Where there is no such m/n with n up to 16, and with `subset` "uniform", it is one
    uniformly random subset of a fraction 1 - s.) The T x0 that it predicts there is interpolated to the coordinates that were
    left out (`interpolation.Spread`): T x0 is smooth, so at a high resolution little is lost. Then every coordinate takes the
    same DDIM step from its own x, so that all of them stay at one noise level and nothing is stale.

    The last steps (`finish`, a tenth of them) are dense: every coordinate is evaluated. That happens part by part, one lattice
    (or subset) after the other at the same x, so that memory stays that of a part; with s = 0 there is one part, all pixels,
    and every step is exactly dense sampling. `nfe` counts network evaluations, parts included; `coordinates` sums the
    coordinates of all evaluations.

    `guide(x, x0, i)` may replace the predicted T x0 of step i before the step is taken.
    """
    dtype = decoder.linear_in.weight.dtype
    for i, parts in enumerate(plan.schedule):
        x0 = None
        for points in parts:
            e = plan.evaluation(decoder, points)
            tokens = to_tokens(x) if e.spread is None else e.spread.take(x)
            out = decoder((tokens * plan.table.e[i]).to(dtype), e.support, plan.times[i], codes).float()
            clean = clean_estimate(tokens, out, plan.table, i)
            if e.spread is None:
                x0 = from_tokens(clean, plan.canvas.height, plan.canvas.width)
            elif x0 is None:
                x0 = e.spread(clean)
            else:
                e.spread.put(clean, x0)
        assert x0 is not None
        if guide is not None:
            x0 = guide(x, x0, i)
        x = advance(x, x0, plan.table, i)
        stage.step()
    return x


def sample_codes(prior: Prior, seeds: Sequence[int], steps: int, device: str | torch.device = "cpu") -> Tensor:
    """Normalised codes float32 [B, z] of the prior: ancestral sampling over `steps` of 1000 times (official: all of them)."""
    ab, times = latent_alphas(), respaced_timesteps(steps)[::-1]
    dtype = prior.out_layer.weight.dtype
    noise = seeded_noise((len(times), prior.channels), seeds, device, stream=STREAM)
    scales = prior.scales(torch.from_numpy(times.copy()).to(device))
    x = noise[:, 0]
    for i, t in enumerate(times):
        before = int(times[i + 1]) if i + 1 < len(times) else -1
        eps = prior(x.to(dtype), [scale[i : i + 1] for scale in scales]).float()
        x = ancestral_step(x, eps, int(t), ab, noise[:, i + 1] if before >= 0 else None, before).x
    return x
