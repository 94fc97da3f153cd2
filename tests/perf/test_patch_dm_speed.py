"""Patch-DM against a plain transcription of the official path: time and peak memory, in one run.

    pytest tests/perf/test_patch_dm_speed.py -m perf -s

The plain path does what the official code does per step: conditions projected tile by tile in every residual block,
normalisation, scale and shift one after the other in float32, skips cloned, collages by rearranging, cropping and rearranging,
and DDIM on padded patches with coefficients looked up in arrays. Both run the same weights on the same noise, and their samples
must agree to 1e-4.
HIBENCH_PERF_CONFIG names a configuration (e.g. ffhq256, for a GPU), HIBENCH_PERF_SIZE, _STEPS and _BATCH the work.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import statistics
import time
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from methods.ldm.model import randomise
from methods.nn.attention import AttentionBlock
from methods.patch_dm import configs, sampling, train
from methods.patch_dm.collage import positions
from methods.patch_dm.denoise import Denoiser
from methods.patch_dm.fast import FastUNet
from methods.patch_dm.model import diffusion_alphas_cumprod, empty
from methods.patch_dm.unet import PatchUNet, ResBlock

pytestmark = pytest.mark.perf
CONFIG = os.environ.get("HIBENCH_PERF_CONFIG", "reference")
SIZE = int(os.environ.get("HIBENCH_PERF_SIZE", "128"))
STEPS = int(os.environ.get("HIBENCH_PERF_STEPS", "4"))
BATCH = int(os.environ.get("HIBENCH_PERF_BATCH", "2"))
ROUNDS = int(os.environ.get("HIBENCH_PERF_ROUNDS", "3"))
THREADS = int(os.environ.get("HIBENCH_PERF_THREADS", str(min(2, os.cpu_count() or 1))))
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GUIDANCE = 1.5


def network() -> tuple[PatchUNet, int]:
    """Random weights of the configuration that is measured, and the size of a patch."""
    config = train.CONFIG if CONFIG == "reference" else configs.config_of(CONFIG)
    model = empty(config, DEVICE, encoder=False, prior=False)
    randomise(model.unet)
    model.unet.out[2].weight.mul_(0.1)              # so that samples do not all end at the clamp
    return model.unet.requires_grad_(False), model.patch


# -- the plain path --------------------------------------------------------------------------------------------------------


def plain_norm(layer: torch.nn.GroupNorm, h: Tensor) -> Tensor:
    return layer(h.float()).type(h.dtype)


def plain_block(block: ResBlock, x: Tensor, emb: Tensor, cond: Tensor) -> Tensor:
    """Both conditions are projected for every tile, and applied one by one."""
    h = F.silu(plain_norm(block.in_layers[0], x))
    if block.resample is not None:
        h, x = block.resample(h), block.resample(x)
    h = block.in_layers[2](h)
    scale, shift = block.emb_layers(emb)[:, :, None, None].chunk(2, dim=1)
    code = block.cond_emb_layers(cond)[:, :, None, None]
    h = plain_norm(block.out_layers[0], h) * (1 + scale) + shift
    h = h * (1 + code)
    return block.skip_connection(x) + block.out_layers[1:](h)


def plain_attention(layer: AttentionBlock, x: Tensor) -> Tensor:
    """Softmax of q k^T in float32, as two products."""
    b, c, height, width = x.shape
    tokens = x.reshape(b, c, -1)
    q, k, v = layer.qkv(plain_norm(layer.norm, tokens)).reshape(b * layer.heads, -1, height * width).chunk(3, dim=1)
    scale = q.shape[1] ** -0.25
    weight = torch.softmax(torch.einsum("bct,bcs->bts", q * scale, k * scale).float(), dim=-1).type(q.dtype)
    out = torch.einsum("bts,bcs->bct", weight, v).reshape(b, -1, height * width)
    return (tokens + layer.proj_out(out)).reshape(x.shape)


def plain_modules(modules: Any, h: Tensor, emb: Tensor, cond: Tensor) -> Tensor:
    for layer in modules:
        if isinstance(layer, ResBlock):
            h = plain_block(layer, h, emb, cond)
        else:
            h = plain_attention(layer, h) if isinstance(layer, AttentionBlock) else layer(h)
    return h


def join(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    n, c, p, _ = patches.shape
    tiles = patches.reshape(n // (grid[0] * grid[1]), *grid, c, p, p).permute(0, 3, 1, 4, 2, 5)
    return tiles.reshape(-1, c, grid[0] * p, grid[1] * p).contiguous()


def split(x: Tensor, p: int) -> Tensor:
    b, c, height, width = x.shape
    return x.reshape(b, c, height // p, p, width // p, p).permute(0, 2, 4, 1, 3, 5).reshape(-1, c, p, p).contiguous()


def plain_collage(h: Tensor, grid: tuple[int, int]) -> Tensor:
    size = h.shape[2]
    half = size // 2
    return split(join(h, (grid[0] + 1, grid[1] + 1))[:, :, half:-half, half:-half].contiguous(), size)


def plain_eps(unet: PatchUNet, patches: Tensor, t: Tensor, cond: Tensor, grid: tuple[int, int], known: Tensor) -> Tensor:
    """Tiles of padded patches [B (P+1)(Q+1), 3, p, p]; `known` [B] is 0 where code and position are left out."""
    rows, columns = grid
    batch, emb, code = len(t), [], []
    for n, where in ((((rows + 1) * (columns + 1)), positions((rows + 1, columns + 1), device=t.device)),
                     (rows * columns, positions(grid, (0.5, 0.5), device=t.device))):
        time_emb = unet.time_embed.time(t.repeat_interleave(n))
        position = unet.time_embed.position(where.repeat(batch, 1), known.repeat_interleave(n))
        emb.append(torch.cat([time_emb, position], dim=1))
        code.append((cond * known[:, None]).repeat_interleave(n, dim=0))
    h, skips, copies = patches, [], []
    for block in unet.input_blocks:
        h = plain_modules(block, h, emb[0], code[0])
        skips.append(h)
        copies.append(h.clone())
    h = plain_collage(plain_modules(unet.middle_block, h, emb[0], code[0]), grid)
    for block in unet.output_blocks:
        h = plain_modules(block, torch.cat([h, plain_collage(skips.pop(), grid)], dim=1), emb[1], code[1])
    return unet.out[2](F.silu(plain_norm(unet.out[0], h)))


def lookup(values: np.ndarray, i: int, x: Tensor) -> Tensor:
    """A coefficient from an array of the host, spread to the size of x."""
    index = torch.full((len(x),), i, device=x.device)
    return torch.from_numpy(values).to(x.device)[index].float()[:, None, None, None].expand(x.shape)


def plain_sample(unet: PatchUNet, p: int, x: Tensor, codes: Tensor) -> Tensor:
    """Guided DDIM on padded patches, which are put together, padded with zeros and cut again in every step."""
    table = sampling.image_table(STEPS)
    alpha = diffusion_alphas_cumprod()[table.timesteps]
    before = np.append(alpha[1:], 1.0)
    grid, batch = (x.shape[2] // p, x.shape[3] // p), len(x)
    known = torch.cat([torch.ones(batch), torch.zeros(batch)]).to(x.device)
    for i, t in enumerate(table.timesteps):
        patches = split(F.pad(x, (p // 2,) * 4), p)
        times = torch.full((2 * batch,), int(t), device=x.device)
        tiles = plain_eps(unet, patches.repeat(2, 1, 1, 1), times, codes.repeat(2, 1), grid, known)
        with_code, without = tiles.chunk(2)
        eps = split(F.pad(join(GUIDANCE * with_code + (1 - GUIDANCE) * without, grid), (p // 2,) * 4), p)
        x0 = lookup(np.sqrt(1 / alpha), i, patches) * patches - lookup(np.sqrt(1 / alpha - 1), i, patches) * eps
        x0 = x0.clamp(-1, 1)
        eps = (lookup(np.sqrt(1 / alpha), i, patches) * patches - x0) / lookup(np.sqrt(1 / alpha - 1), i, patches)
        patches = x0 * torch.sqrt(lookup(before, i, x0)) + torch.sqrt(1 - lookup(before, i, x0)) * eps
        x = join(patches, (grid[0] + 1, grid[1] + 1))[:, :, p // 2: -(p // 2), p // 2: -(p // 2)]
    return x


# -- ours ------------------------------------------------------------------------------------------------------------------


def our_sample(network: FastUNet, p: int, x: Tensor, codes: Tensor, max_tiles: int | None = None) -> Tensor:
    table = sampling.image_table(STEPS)
    denoiser = Denoiser(network, p, codes, (x.shape[2] // p, x.shape[3] // p), torch.from_numpy(table.timesteps).to(x.device),
                        guidance=GUIDANCE, max_tiles=max_tiles)
    return sampling.ddim_run(denoiser.predict, x.clone(), table)


def inputs(size: int, batch: int, channels: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(batch, 3, size, size, generator=draw)
    return noise.to(DEVICE), torch.randn(batch, channels, generator=draw).to(DEVICE)


def timed(function: Any, *arguments: Any) -> tuple[float, Tensor]:
    """Seconds on the clock, and the result."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = function(*arguments)
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def peak_rss() -> int:
    """Bytes that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak_bytes(which: str, size: int, batch: int, max_tiles: int | None, results: Any) -> None:
    """Of a fresh process: the network, and what one sample needs besides it, at its peak."""
    torch.set_num_threads(THREADS)
    with torch.inference_mode():
        unet, p = network()
        x, codes = inputs(size, batch, unet.code_channels)
        if DEVICE == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        else:
            our_sample(FastUNet(unet), p, *inputs(2 * p, 1, unet.code_channels))         # the libraries' own memory
            before = peak_rss()
        arguments = (unet, p, x, codes) if which == "plain" else (FastUNet(unet), p, x, codes, max_tiles)
        (plain_sample if which == "plain" else our_sample)(*arguments)
        results.put((torch.cuda.max_memory_allocated() if DEVICE == "cuda" else peak_rss()) - before)


def memory(which: str, size: int, batch: int, max_tiles: int | None = None) -> int:
    """Bytes, measured in a process of its own."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=peak_bytes, args=(which, size, batch, max_tiles, results))
    process.start()
    value = results.get(timeout=600)
    process.join()
    return int(value)


def test_time() -> None:
    torch.set_num_threads(THREADS)
    with torch.inference_mode():
        unet, p = network()
        fast = FastUNet(unet)
        x, codes = inputs(SIZE, BATCH, unet.code_channels)
        plain, ours = plain_sample(unet, p, x, codes), our_sample(fast, p, x, codes)
        assert (plain - ours).abs().max() <= 1e-4
        ratios = []
        for _ in range(ROUNDS):
            a, b = timed(plain_sample, unet, p, x, codes)[0], timed(our_sample, fast, p, x, codes)[0]
            ratios.append(a / b)
            print(f"{CONFIG} {SIZE} px x{BATCH}, {STEPS} steps, {DEVICE}: plain {a:.3f} s, ours {b:.3f} s, {a / b:.2f}x")
    print(f"median {statistics.median(ratios):.2f}x")
    assert statistics.median(ratios) > 1.0


def test_peak_memory() -> None:
    plain, ours = memory("plain", SIZE, BATCH), memory("ours", SIZE, BATCH)
    print(f"{CONFIG} {SIZE} px x{BATCH}, {DEVICE}: plain {plain >> 20} MiB, ours {ours >> 20} MiB, {plain / ours:.2f}x")
    assert ours < plain


def test_max_tiles_bounds_memory() -> None:
    """A canvas of 16 times the pixels, in bounded batches, takes less than the smaller one at once."""
    small, large = memory("ours", SIZE, 1), memory("ours", 4 * SIZE, 1, 8)
    print(f"{CONFIG}, {DEVICE}: {SIZE} px at once {small >> 20} MiB, {4 * SIZE} px with max_tiles 8 {large >> 20} MiB")
    assert large < small
