"""Sampling images: plans for dense and sparse evaluation of the coordinates, and the reverse process itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
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
CUTOFF = (2 * math.log(1e6)) ** 0.5                # frequency, in std of the mollifier's gain, where the gain is 1e-6
KEPT = 1 << 20                                      # points of a lattice whose neighbours and norms are kept
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
    cutoff: int | None                              # frequencies of the noise along the shorter side; None: all pixels
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
        """The set, prepared once; random sets, which come only once, and very large ones are not kept."""
        key = (points.stride, points.phase)
        if points.index is None and key in self.prepared:
            return self.prepared[key]
        with lasting():
            support = decoder.support(points).to(self.device)
            made = Evaluation(support.points, support, None if points.dense else Spread(support.points, self.device))
        if points.index is None and (points.dense or len(points) <= KEPT):
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
    schedule, did = sparse_schedule(canvas, len(table), sparsity, subset, finish, process.sigma * canvas.ratio)
    cutoff = math.ceil(decoder.size / (math.pi * process.sigma) * CUTOFF) if process.sigma else None
    return Plan(canvas, table, rows, blur, canvas.ratio if process.sigma else 1.0, cutoff, schedule, did, device)


def sparse_schedule(canvas: Canvas, steps: int, sparsity: float, subset: str, finish: float,
                    sigma: float) -> tuple[list[list[Points]], float]:
    """The sets that every step evaluates, and the mean fraction of the coordinates that the sparse steps leave out.

    `sigma` is the std of the mollifier in pixels of the canvas.
    """
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
    dense = everything if by_parts(everything[0], sigma) else [Points(canvas)]
    return schedule + [dense] * last, left_out


def by_parts(points: Points, sigma: float) -> bool:
    """May all coordinates be evaluated one lattice after the other? The parts do not see each other, so they differ a little.

    That difference repeats with the lattice. It vanishes with the Wiener inverse where T passes less than 5 % of the lattice's
    lowest frequency: exp(-2 pi^2 sigma^2 / b^2) < 0.05 for every b-th column, that is sigma > 0.39 b. Random subsets do so only
    if the same holds for their mean distance.
    """
    area = points.canvas.height * points.canvas.width / len(points)
    period = max(points.stride) if points.index is None else area**0.5
    return math.exp(-2 * (math.pi * sigma / period) ** 2) < 0.05


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
    """x_T float32 [B, 3, H, W]: T of white noise times the ratio of the resolutions, which keeps its std.

    The noise is drawn as coefficients of the cosine transform in which T is diagonal, and only those that T lets through
    (gain above 1e-6): their number does not depend on the resolution. So one seed is one function: at 64, 128 and 512 pixels
    x_T holds the values of the same function, and white noise at the output's size is never made. The distribution is that of
    the official x_T. White-noise diffusion (no mollifier) draws every pixel on its own.
    """
    blur, canvas = plan.blur, plan.canvas
    if plan.cutoff is None:
        return seeded_noise((3, canvas.height, canvas.width), seeds, device)
    drawn = [math.ceil(plan.cutoff * n / canvas.side) for n in (canvas.height, canvas.width)]
    rows, columns = (min(n, k) for n, k in zip((canvas.height, canvas.width), drawn))
    white = seeded_noise((3, *drawn), seeds, device)[:, :, :rows, :columns] * plan.scale
    return blur.dct_rows[:rows].T @ (blur.gaussian[:rows, :columns] * white) @ blur.dct_columns[:columns]


def reverse(decoder: Decoder, plan: Plan, x: Tensor, codes: list[Tensor], stage: Stage = NULL_STAGE) -> Tensor:
    """T x0 float32 [B, 3, H, W] from x_T (or from the plan's first time): deterministic DDIM with T x0 clamped to [-1, 1].

    Sparsity s. With 1 - s = m/n the pixels are divided into n interleaved lattices (every a-th row and b-th column, a b = n,
    along rows or columns by chance). A sparse step asks the network for m of them, one after the other, in a random order that
    comes to each before any comes again; every coordinate is as likely to be evaluated as any other. The network sees the
    coordinates of one lattice only. (Where there is no such m/n with n up to 16, and with `subset` "uniform", it is one
    uniformly random subset of a fraction 1 - s.) The coordinates that were left out keep the T x0 of the step before, plus the
    change of T x0 at the evaluated ones, interpolated (`interpolation.Spread`; at the first step, T x0 itself). Then every
    coordinate takes the same DDIM step from its own x, so that all of them stay at one noise level.

    The last steps (`finish`, a tenth of them) are dense: every coordinate is evaluated. At high resolutions that happens part
    by part, one lattice (or subset) after the other at the same x, so that memory stays that of a part: see `by_parts`. With
    s = 0 every step is exactly dense sampling. `nfe` counts network evaluations, parts included; `coordinates` sums the
    coordinates of all evaluations. Which coordinates a step evaluates depends on the plan only, never on the seed.
    """
    dtype = decoder.linear_in.weight.dtype
    before: Tensor | None = None
    for i, parts in enumerate(plan.schedule):
        x0: Tensor | None = None
        for points in parts:
            e = plan.evaluation(decoder, points)
            tokens = to_tokens(x) if e.spread is None else e.spread.take(x)
            out = decoder((tokens * plan.table.e[i]).to(dtype), e.support, plan.times[i], codes).float()
            clean = clean_estimate(tokens, out, plan.table, i)
            if e.spread is None:
                x0 = from_tokens(clean, plan.canvas.height, plan.canvas.width)
            elif x0 is None:
                x0 = e.spread(clean) if before is None else before + e.spread(clean - e.spread.take(before))
            else:
                e.spread.put(clean, x0)
        assert x0 is not None
        x, before = advance(x, x0, plan.table, i), x0
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
