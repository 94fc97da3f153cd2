"""Speed of ∞-Diff's dense and sparse sampling against a plain transcription of the official dense path, in one run.

`pytest tests/perf/test_infty_diff_speed.py -m perf -s`. The peer does per step what the official sampler does: images in
NCHW and tokens in turn, modulation written out per token, layer norms by hand, all pair distances for the nearest neighbours,
kernels resized anew, code projections anew, and the whole U-Net although a quadrant of its output is read. Outputs have to be
equal; printed are medians of ratios.

Measured on one thread of an AMD EPYC (Zen 4, 2.6 GHz), other work running, reference size (nf 32, U-Net of 24 x 24), seconds on
the clock, peer and hibench:

| what | peer, s | hibench, s | ratio | aim |
|---|---|---|---|---|
| dense, 64 px (training resolution), 4 steps | 0.33 | 0.07 | 4.8x | 1.5x |
| dense, 128 px, 2 steps | 0.72 | 0.17 | 4.4x | 3x |
| dense, 256 px, 2 steps | 9.87 | 0.68 | 14.5x | 5x |
| s = 0.875 against hibench's own dense sampling, 256 px, 20 steps | 7.05 | 1.01 | 7.0x | 2x |

Peak memory above the loaded process at 256 px, 20 steps: dense 77 MB, s = 0.875 20 MB; at 512 px 368 MB and 84 MB.
"""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.infty_diff.configs import variant_config
from methods.infty_diff.decoder import Decoder
from methods.infty_diff.geometry import Points
from methods.infty_diff.process import Process
from methods.infty_diff.sampling import make_plan, mollified_noise, reverse
from methods.nn.attention import from_tokens, to_tokens

pytestmark = pytest.mark.perf
ROUNDS = int(os.environ.get("HIBENCH_PERF_ROUNDS", "3"))


def norm_nchw(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Layer norm over channels of [B, C, H, W], by hand."""
    var, mean = torch.var_mean(x, 1, unbiased=False, keepdim=True)
    return (x - mean) * (var + 1e-5).rsqrt() * weight + bias


class Plain:
    """The official dense path with the weights of a Decoder, nothing kept from step to step."""

    def __init__(self, net: Decoder) -> None:
        self.net = net

    def __call__(self, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        """T xi of an image [B, 3, S, S]."""
        net, size = self.net, x.shape[-1]
        from methods.infty_diff.decoder import sinusoidal

        emb = net.time_mlp(sinusoidal(t, net.time_dim))
        x = F.conv2d(x, net.linear_in.weight[..., None, None], net.linear_in.bias)
        skips = []
        for block in net.down_blocks:
            x = self.sparse_block(block.block, x, emb, z, None)
            skips.append(x)
        coords = torch.linspace(0, 1, size)
        coords = torch.stack(torch.meshgrid(coords, coords, indexing="ij"), -1).view(1, -1, 2)
        features = net.uno_linear_in(to_tokens(x))
        x = self.read_back(self.uno(self.to_grid(features, coords), emb, z), coords.expand(len(x), -1, -1))
        x = net.uno_linear_out(x).transpose(1, 2).reshape(len(z), -1, size, size)
        for block in net.up_blocks:
            x = self.sparse_block(block.block, x, emb, z, skips.pop())
        return F.conv2d(x, net.linear_out.weight[..., None, None], net.linear_out.bias)

    def to_grid(self, features: Tensor, coords: Tensor) -> Tensor:
        """Inverse-distance interpolation from the three nearest of all pixels."""
        res = self.net.uno_res
        cells = torch.linspace(0, 1, res)
        cells = torch.stack(torch.meshgrid(cells, cells, indexing="ij"), -1).view(-1, 2)
        distance = (cells[:, None] - coords).square().sum(-1)
        near = distance.topk(3, largest=False)
        weight = 1 / near.values.clamp(min=1e-16)
        out = (features[:, near.indices] * weight[None, ..., None]).sum(2) / weight.sum(-1)[None, :, None]
        return out.transpose(1, 2).reshape(len(features), -1, res, res)

    def read_back(self, grid: Tensor, coords: Tensor) -> Tensor:
        return F.grid_sample(grid, coords[:, None], align_corners=False)[:, :, 0].transpose(1, 2)

    def sparse_block(self, block: Any, x: Tensor, emb: Tensor, z: Tensor, skip: Tensor | None) -> Tensor:
        batch, channels, size, _ = x.shape
        net = self.net
        if skip is not None:
            tokens = block.skip_linear(to_tokens(torch.cat([x, skip], 1)).flatten(0, 1))
            x = tokens.view(batch, size, size, channels).permute(0, 3, 1, 2).contiguous()

        def modulated(x: Tensor, i: int) -> Tensor:
            tokens = getattr(block, f"norm{i}")(to_tokens(x).flatten(0, 1))
            scale, shift = getattr(block, f"time_mlp{i}")(emb).repeat_interleave(size * size, 0).chunk(2, -1)
            tokens = tokens * (1 + scale) + shift
            return tokens * (1 + getattr(block, f"z_mlp{i}")(z).repeat_interleave(size * size, 0))

        def image(tokens: Tensor) -> Tensor:
            return tokens.view(batch, size, size, -1).permute(0, 3, 1, 2).contiguous()

        side = net.canvas(size, size).kernel_size(net.kernel)
        weight = block.conv.kernel.view(net.kernel, net.kernel, 1, channels).permute(3, 2, 1, 0)
        weight = F.interpolate(weight, (side, side), mode="bilinear", align_corners=False) if side != net.kernel else weight
        h = F.conv2d(image(modulated(x, 1)), weight, padding=side // 2, groups=channels)
        ones = torch.ones(batch, 1, size, size)
        h = h / F.conv2d(ones, torch.full((1, 1, side, side), 1 / net.kernel**2), padding=side // 2)
        x = x + h
        return x + image(block.mlp(modulated(x, 2)))

    def conv_block(self, block: Any, x: Tensor, emb: Tensor, z: Tensor) -> Tensor:
        norm, _, conv = block.in_layers
        h = conv(F.gelu(norm_nchw(x, norm.weight, norm.bias)))
        scale, shift = block.time(emb)[..., None, None].chunk(2, 1)
        h = norm_nchw(h, block.norm.weight, block.norm.bias) * (1 + scale) + shift
        h = block.out_layers[2](F.gelu(h * (1 + block.z_mlp(z)[..., None, None])))
        return h + (block.res_conv(x) if hasattr(block, "res_conv") else x)

    def attend(self, attention: nn.Module, x: Tensor) -> Tensor:
        if isinstance(attention, nn.Identity):
            return x
        return from_tokens(attention(to_tokens(x)), *x.shape[2:]).contiguous()

    def uno(self, x: Tensor, emb: Tensor, z: Tensor) -> Tensor:
        uno, skips = self.net.uno, []
        x = uno.fc0(x)
        for level, down in uno.downs:
            for block, attention in level:
                x = self.attend(attention, self.conv_block(block, x, emb, z))
                skips.append(x)
            x = down(x)
        x = self.attend(uno.mid_attn, self.conv_block(uno.mid_block1, x, emb, z))
        x = self.conv_block(uno.mid_block2, x, emb, z)
        for level, up in uno.ups:
            for block, attention in level:
                x = self.attend(attention, self.conv_block(block, torch.cat([x, skips.pop()], 1), emb, z))
            x = up(x)
        return uno.fc2(F.gelu(uno.fc1(x)))


def sample_plainly(plain: Plain, plan: Any, x: Tensor, z: Tensor) -> Tensor:
    """DDIM with the peer."""
    table = plan.table
    for i, t in enumerate(table.timesteps):
        out = plain(x, torch.full((len(x),), float(t)), z)
        x0 = (x * table.c[i] + out * table.d[i]).clamp(-1, 1)
        x = x * table.u[i] + x0 * table.v[i]
    return x


@pytest.fixture(scope="module")
def net() -> Decoder:
    """The decoder of the reference size, official read-back, arbitrary weights that keep a prediction near T xi."""
    torch.manual_seed(0)
    decoder = Decoder.from_config(variant_config("main")["decoder"], official=True).eval()
    return decoder.requires_grad_(False)


def race(name: str, peer: Callable[[], Tensor], ours: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """Both in turns; prints the median ratios of seconds on the clock and of CPU seconds."""
    ratios = []
    for turn in range(ROUNDS + 1):                                  # the first one warms up
        marks = [(time.perf_counter(), time.process_time())]
        results = []
        for function in (peer, ours):
            results.append(function())
            marks.append((time.perf_counter(), time.process_time()))
        if turn:
            spans = [[b[k] - a[k] for a, b in itertools.pairwise(marks)] for k in (0, 1)]
            ratios.append((*(p / o for p, o in spans), spans[0][0], spans[0][1]))
    wall, cpu, theirs, own = (statistics.median(r[k] for r in ratios) for k in range(4))
    print(f"\n{name}: {wall:.2f}x on the clock, {cpu:.2f}x in CPU time; {theirs:.2f} s, hibench {own:.2f} s "
          f"({torch.get_num_threads()} threads)", flush=True)
    return results[0], results[1]


@pytest.mark.parametrize("side", [64, 128, 256])
def test_dense_sampling(net: Decoder, side: int) -> None:
    steps, z = (4, 2, 2)[side // 128], torch.linspace(-1, 1, 64)[None]
    with torch.inference_mode():
        plan = make_plan(net, Process(0.5, True), (side, side), steps)
        x = mollified_noise(plan, [0])
        plain = Plain(net)
        theirs, ours = race(f"dense, {side} px, {steps} steps", lambda: sample_plainly(plain, plan, x, z),
                            lambda: reverse(net, plan, x, net.codes(z)))
    assert (theirs - ours).abs().max() < 1e-4
    one = plain(x, torch.tensor([500.0]), z)
    points = Points(plan.canvas)
    with torch.inference_mode():
        mine = net(to_tokens(x), net.support(points), net.times(torch.tensor([500.0])), net.codes(z))
    assert torch.allclose(to_tokens(one), mine, atol=1e-4)


def test_sparse_against_dense_sampling(net: Decoder) -> None:
    """s = 0.875 at four times the training resolution, 20 steps."""
    z = torch.linspace(-1, 1, 64)[None]
    with torch.inference_mode():
        dense, thin = (make_plan(net, Process(0.5, True), (256, 256), 20, sparsity=s) for s in (0.0, 0.875))
        x, codes = mollified_noise(dense, [0]), net.codes(z)
        race(f"s = 0.875 against dense, 256 px, 20 steps, {thin.nfe} evaluations",
             lambda: reverse(net, dense, x, codes), lambda: reverse(net, thin, x, codes))
    assert thin.coordinates < 0.3 * dense.coordinates
