"""DemoFusion against the released way of doing it, in one run: `pytest tests/perf/test_demofusion_speed.py -m perf -s`.

The plain path does per step what the released code does: windows are cut, scaled, evaluated and stepped in batches of their
own, local and dilated ones apart; the skip residual's noised latents are made for all steps before a phase; the blur is one
two-dimensional convolution with a kernel made in every step; every phase is decoded, one tile per call. Both have the same
weights, noise and shifts, and their latents must agree to 2e-4 before anything is timed.

HIBENCH_PERF_COMMUNITY names a copy of diffusers' community pipeline (examples/community/pipeline_demofusion_sdxl.py, no part
of diffusers' wheel), which is then timed as well: its random draws and its scaling of the inputs are its own, so its images
are not compared. HIBENCH_PERF_SIZES (256,384: 4 and 6 times the native 64), _STEPS (4), _ROUNDS (3), _THREADS.

Measured with tiny-sdxl in float32 on 2 cores that other work kept busy, 1 round of 3 steps at 256 px (4 times):

| threads | plain, s clock / CPU | community, s clock / CPU | ours, s clock / CPU | ratios on the clock | ratios in CPU time |
|---|---|---|---|---|---|
| 1 | 12.0 / 7.7 | 25.7 / 15.5 | 4.0 / 3.9 | 3.0x, 6.4x | 2.0x, 4.0x |
| 2 | 212.2 / 111.5 | 183.2 / 141.5 | 39.8 / 25.1 | 5.3x, 4.6x | 4.5x, 5.7x |

The clock, and threads that wait for each other on a busy machine, say little; CPU time on one thread says most. At 192 px on
one thread, twice, decoding took 3.1 and 3.3 times less CPU time than the plain path's, denoising 1.0 and 1.5 times less: on a
CPU the gain is in decoding the last phase alone. 384 px (6 times) did not end in the time there was; a GPU was not measured.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from methods.demofusion import decode, sampling, windows
from methods.demofusion.conditioning import Text
from methods.demofusion.denoise import Rules
from methods.demofusion.network import Network
from methods.demofusion.phases import phases
from methods.demofusion.schedule import cosine_factor
from methods.demofusion.scheduler import make_scheduler
from methods.diffusers_pipeline.loading import load

pytestmark = pytest.mark.perf
SIZES = [int(n) for n in os.environ.get("HIBENCH_PERF_SIZES", "256,384").split(",")]
STEPS = int(os.environ.get("HIBENCH_PERF_STEPS", "4"))
ROUNDS = int(os.environ.get("HIBENCH_PERF_ROUNDS", "3"))
THREADS = int(os.environ.get("HIBENCH_PERF_THREADS", str(min(2, os.cpu_count() or 1))))
CONFIG = os.environ.get("HIBENCH_PERF_CONFIG", "tiny-sdxl")
COMMUNITY = os.environ.get("HIBENCH_PERF_COMMUNITY")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
VIEW_BATCH, GUIDANCE, SIGMA, ALPHA = 16, 7.5, 0.8, (3.0, 1.0, 1.0)


def text() -> Text:
    draw = torch.Generator().manual_seed(0)
    width, pooled = (2048, 1280) if CONFIG == "sdxl" else (32, 16)
    shapes = ((77, width), (pooled,), (77, width), (pooled,))
    return Text(*(torch.randn(1, *shape, generator=draw).to(DEVICE) for shape in shapes))


# -- the plain path --------------------------------------------------------------------------------------------------------


class Plain:
    """As released (with the right step index), for one image."""

    def __init__(self, pipe: Any, told: Text, rules: Rules, draws: Any) -> None:
        self.pipe, self.told, self.rules, self.draws = pipe, told, rules, draws
        self.scheduler = make_scheduler(pipe.scheduler, "ddim")
        self.scheduler.set_timesteps(STEPS)

    def evaluate(self, x: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        """Guided prediction and step of some windows, negatives and positives interleaved."""
        told, n, dtype = self.told, len(x), self.pipe.unet.dtype
        both = self.scheduler.scale_model_input(x.repeat_interleave(2, dim=0), t)
        embeds = torch.cat([told.negative_embeds, told.embeds]).repeat(n, 1, 1).to(dtype)
        pooled = torch.cat([told.negative_pooled, told.pooled]).repeat(n, 1).to(dtype)
        added = {"text_embeds": pooled, "time_ids": ids.repeat_interleave(2, dim=0)}
        out = self.pipe.unet(both.to(dtype), t, encoder_hidden_states=embeds, added_cond_kwargs=added, return_dict=False)[
            0
        ].float()
        without, given = out[::2], out[1::2]
        return without + GUIDANCE * (given - without)

    def local(self, z: Tensor, t: Tensor, corners: np.ndarray, base: Tensor) -> Tensor:
        pad, window = self.rules.reach, self.rules.window
        padded = F.pad(z, (pad,) * 4)
        value, count = torch.zeros_like(padded), torch.zeros_like(padded)
        places = corners.tolist()
        for k in range(0, len(places), VIEW_BATCH):
            some = places[k : k + VIEW_BATCH]
            x = torch.cat([padded[:, :, r : r + window, c : c + window] for r, c in some])
            ids = []
            for r, c in some:
                own = base.clone()
                own[0, 2], own[0, 3] = r * self.rules.factor, c * self.rules.factor
                ids.append(own)
            x = self.scheduler.step(self.evaluate(x, t, torch.cat(ids)), t, x, return_dict=False)[0]
            for part, (r, c) in zip(x, some):
                value[:, :, r : r + window, c : c + window] += part
                count[:, :, r : r + window, c : c + window] += 1
        inner = slice(pad, -pad) if pad else slice(None)
        return value[:, :, inner, inner] / count[:, :, inner, inner]

    def dilated(self, z: Tensor, t: Tensor, s: int, sigma: float, base: Tensor) -> Tensor:
        rows, columns = -z.shape[2] % s, -z.shape[3] % s
        padded = F.pad(z, (columns, 0, rows, 0))
        size = 2 * s - 1
        line = torch.arange(size).float() - size // 2
        kernel = torch.exp(-0.5 * (line / sigma) ** 2)
        kernel = (torch.outer(kernel, kernel) / kernel.sum() ** 2).to(z).expand(z.shape[1], 1, size, size)
        std, mean = padded.std(), padded.mean()
        blurred = F.conv2d(padded, kernel, padding=size // 2, groups=z.shape[1])
        blurred = (blurred - blurred.mean()) / blurred.std() * std + mean
        result, places = torch.zeros_like(padded), [(h, w) for h in range(s) for w in range(s)]
        for k in range(0, len(places), VIEW_BATCH):
            some = places[k : k + VIEW_BATCH]
            eps = self.evaluate(torch.cat([blurred[:, :, h::s, w::s] for h, w in some]), t, base.repeat(len(some), 1))
            x = torch.cat([padded[:, :, h::s, w::s] for h, w in some])
            x = self.scheduler.step(eps, t, x, return_dict=False)[0]
            for part, (h, w) in zip(x, some):
                result[:, :, h::s, w::s] = part
        return result[:, :, rows:, columns:]

    def decode(self, z: Tensor) -> Tensor:
        """Tiled, one tile per call."""
        core, _, pad = decode.tile_rule(self.rules.window)
        config, factor, vae = self.pipe.vae.config, self.rules.factor, self.pipe.vae
        padded = F.pad(z / config.scaling_factor, (pad,) * 4)
        value = torch.zeros(1, 3, z.shape[2] * factor, z.shape[3] * factor, device=z.device)
        count = torch.zeros_like(value)
        for r, c in windows.origins((z.shape[2], z.shape[3]), core, core).tolist():
            tile = padded[:, :, r : r + core + 2 * pad, c : c + core + 2 * pad]
            image = vae.decode(tile.to(vae.dtype), return_dict=False)[0].float()
            image = image[:, :, pad * factor : (core + pad) * factor, pad * factor : (core + pad) * factor]
            value[:, :, r * factor : (r + core) * factor, c * factor : (c + core) * factor] += image
            count[:, :, r * factor : (r + core) * factor, c * factor : (c + core) * factor] += 1
        return value / count

    def __call__(self, size: int) -> tuple[Tensor, Tensor]:
        rules, factor = self.rules, self.rules.factor
        sizes = phases((size, size), rules.window * factor, factor)
        base = torch.tensor([[size, size, 0, 0, size, size]], dtype=torch.float32, device=DEVICE)
        z = self.draws.initial((4, rules.window, rules.window))
        for t in self.scheduler.timesteps:
            z = self.scheduler.step(self.evaluate(z, t, base), t, z, return_dict=False)[0]
        mean, std = z.mean(), z.std()
        image = self.pipe.vae.decode((z / self.pipe.vae.config.scaling_factor).to(self.pipe.vae.dtype), return_dict=False)[0]
        for phase in sizes[1:]:
            s = phase.scale
            z = F.interpolate(z, size=(phase.rows, phase.columns), mode="bicubic")
            noise = self.draws.noise(s, tuple(z.shape[1:]))
            noised = [self.scheduler.add_noise(z, noise, t[None]) for t in self.scheduler.timesteps]
            corners = windows.origins((phase.rows, phase.columns), rules.window, rules.stride)
            ranges = windows.shift_ranges(corners, (phase.rows, phase.columns), rules.window, rules.reach)
            shifts = self.draws.shifts(s, ranges, STEPS)[:, 0]
            z = noised[0]
            for i, t in enumerate(self.scheduler.timesteps):
                c1, c2, c3 = (cosine_factor(float(t)) ** a for a in ALPHA)
                z = z * (1 - c1) + noised[i] * c1
                local = self.local(z, t, corners + rules.reach + shifts[i], base)
                z = local * (1 - c2) + self.dilated(z, t, s, SIGMA * (0.99 * c3 + 0.01), base) * c2
            z = (z - z.mean()) / z.std() * std + mean
            image = self.decode(z)
        return z, image


# -- ours ------------------------------------------------------------------------------------------------------------------


def ours(pipe: Any, told: Text, rules: Rules, draws: Any, size: int, max_windows: int | None) -> tuple[Tensor, Tensor]:
    network = Network(pipe.unet, told, GUIDANCE, max_windows=max_windows)
    job = sampling.Job(network, make_scheduler(pipe.scheduler, "ddim"), rules, draws, 1, 4, STEPS, DEVICE)
    for stop in sampling.demofusion(job, phases((size, size), rules.window * rules.factor, rules.factor)):
        z = stop.latents
    unscaled = decode.unscaled(z, pipe.vae.config)
    return z, decode.decode_tiled(decode.decoder(pipe.vae), unscaled, rules.factor, decode.tile_rule(rules.window))


def community(pipe: Any, told: Text, rules: Rules) -> Callable[[int], Any]:
    """The call of the community pipeline on the same weights, with its own draws."""
    spec = importlib.util.spec_from_file_location("community_demofusion", str(COMMUNITY))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    parts = {k: v for k, v in pipe.components.items() if k not in ("image_encoder", "feature_extractor")}
    own = module.DemoFusionSDXLPipeline(**parts, add_watermarker=False)
    own.set_progress_bar_config(disable=True)
    own.check_inputs = lambda *_, **__: None  # it wants multiples of 1024 px

    def call(size: int) -> Any:
        return own(
            prompt_embeds=told.embeds,
            negative_prompt_embeds=told.negative_embeds,
            pooled_prompt_embeds=told.pooled,
            negative_pooled_prompt_embeds=told.negative_pooled,
            height=size,
            width=size,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            view_batch_size=VIEW_BATCH,
            stride=rules.stride,
            sigma=SIGMA,
            multi_decoder=True,
            show_image=False,
        )

    return call


def seconds(function: Callable[..., Any], *arguments: Any) -> tuple[float, float]:
    """On the clock, and of this process's CPU time."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter(), time.process_time()
    function(*arguments)
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start[0], time.process_time() - start[1]


@pytest.mark.parametrize("size", SIZES)
def test_time(size: int) -> None:
    torch.set_num_threads(THREADS)
    pipe, told = load("random", DEVICE, "float32", {"config": CONFIG}), text()
    window, factor = int(pipe.unet.config.sample_size), 2 ** (len(pipe.vae.config.block_out_channels) - 1)
    rules = Rules(window, factor, window // 2, window // 8, ALPHA, SIGMA, kernel="2s-1", padded_frame=True)
    draws = sampling.SeedDraws([1], DEVICE)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ways: dict[str, Callable[[], Any]] = {
            "plain": lambda: Plain(pipe, told, rules, draws)(size),
            "ours": lambda: ours(pipe, told, rules, draws, size, VIEW_BATCH),
        }
        (z, image), (z2, image2) = ways["plain"](), ways["ours"]()
        assert (z - z2).abs().max() <= 2e-4 * z.abs().max()
        assert (image - image2).abs().max() <= 1e-3 * image.abs().max()
        if COMMUNITY:
            call = community(pipe, told, rules)
            ways["community"] = lambda: call(size)
            call(2 * window * factor)  # the first call is longer
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, way in ways.items():
                taken[name].append(seconds(way))
    for name in [name for name in ways if name != "ours"]:
        for k, clock in enumerate(("clock", "CPU time")):
            theirs, own = [x[k] for x in taken[name]], [x[k] for x in taken["ours"]]
            ratio = statistics.median(a / b for a, b in zip(theirs, own))
            what = f"{size} px, {STEPS} steps, {THREADS} threads, {DEVICE}, {clock}"
            print(f"{what}: {name} {statistics.median(theirs):.2f} s, ours {statistics.median(own):.2f} s, {ratio:.2f}x")
