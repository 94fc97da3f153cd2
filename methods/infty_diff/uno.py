"""The dense U-Net on the regular grid ("UNO" with plain convolutions), on channels-last tokens [B, H*W, C]."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.infty_diff.sparse import Modulation, modulate
from methods.nn.attention import from_tokens, to_tokens

__all__ = ["UNO", "ChannelNorm", "ConvBlock", "GridAttention"]

Grid = tuple[int, int]
HEAD = 32                                           # channels of an attention head


def convolve(conv: nn.Conv2d | nn.ConvTranspose2d, tokens: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
    """A convolution of tokens, and the grid that it leaves."""
    out = conv(from_tokens(tokens, *grid))
    return to_tokens(out), (out.shape[2], out.shape[3])


def pointwise(conv: nn.Conv2d, tokens: Tensor) -> Tensor:
    """A 1x1 convolution of tokens."""
    return F.linear(tokens, conv.weight[:, :, 0, 0], conv.bias)


class ChannelNorm(nn.Module):
    """Layer norm over channels with parameters (1, C, 1, 1).

    The official epsilon is 1e-5 for float32 activations and 1e-3 for every other type (`eps_by_dtype`); else 1e-5 always.
    """

    def __init__(self, channels: int, eps_by_dtype: bool) -> None:
        super().__init__()
        self.eps_by_dtype = eps_by_dtype
        self.weight, self.bias = (nn.Parameter(torch.full((1, channels, 1, 1), value)) for value in (1.0, 0.0))

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., C] -> [..., C]."""
        eps = 1e-3 if self.eps_by_dtype and tokens.dtype != torch.float32 else 1e-5
        return F.layer_norm(tokens, tokens.shape[-1:], self.weight.flatten(), self.bias.flatten(), eps)


class ConvBlock(nn.Module):
    """Norm, GELU, 3x3; norm, modulation, GELU, dropout, 3x3; plus the input."""

    def __init__(self, channels: int, out: int, time_dim: int, z_dim: int | None, dropout: float, eps_by_dtype: bool) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(ChannelNorm(channels, eps_by_dtype), nn.GELU(), nn.Conv2d(channels, out, 3, padding=1))
        self.norm = ChannelNorm(out, eps_by_dtype)
        self.out_layers = nn.Sequential(nn.GELU(), nn.Dropout(dropout), nn.Conv2d(out, out, 3, padding=1))
        self.time = nn.Sequential(nn.GELU(), nn.Linear(time_dim, 2 * out))
        if z_dim is not None:
            self.z_mlp = nn.Sequential(nn.Linear(z_dim, out), nn.GELU(), nn.Linear(out, out))
        if channels != out:
            self.res_conv = nn.Conv2d(channels, out, 1)

    def sites(self) -> list[tuple[nn.Module, nn.Module | None]]:
        """(time, code) projections."""
        return [(self.time, getattr(self, "z_mlp", None))]

    def forward(self, x: Tensor, grid: Grid, modulation: Modulation) -> Tensor:
        """[B, H*W, C] -> [B, H*W, out]."""
        norm, act, conv = self.in_layers
        h, _ = convolve(conv, act(norm(x)), grid)
        act, drop, conv = self.out_layers
        h, _ = convolve(conv, drop(act(modulate(self.norm(h), modulation))), grid)
        return h + (pointwise(self.res_conv, x) if hasattr(self, "res_conv") else x)


class GridAttention(nn.Module):
    """Residual self-attention of max(C // 32, 4) heads of 32 channels, without positions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = max(channels // HEAD, 4)
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * self.heads * HEAD)
        self.attn_linear = nn.Linear(self.heads * HEAD, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, C] -> [B, N, C]."""
        q, k, v = self.qkv(self.norm(x)).unflatten(2, (3, self.heads, HEAD)).permute(2, 0, 3, 1, 4)
        return x + self.attn_linear(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class UNO(nn.Module):
    """The U-Net; with `encoder` its first half only, which ends in a 1x1 convolution to `out_channels`."""

    def __init__(self, channels: int, mults: Sequence[int], blocks: Sequence[int], res: int, attn_res: Sequence[int],
                 time_dim: int, z_dim: int | None, *, out_channels: int | None = None, dropout: float = 0.0,
                 dropout_res: int = 16, eps_by_dtype: bool = True, encoder: bool = False) -> None:
        super().__init__()

        def level(width_in: int, width_out: int, number: int) -> nn.ModuleList:
            drop = dropout if current <= dropout_res else 0.0
            return nn.ModuleList(
                nn.ModuleList([ConvBlock(width_in, width_out, time_dim, z_dim, drop, eps_by_dtype),
                               GridAttention(width_out) if current in attn_res else nn.Identity()]) for _ in range(number))

        dims = [channels, *(channels * m for m in mults)]
        pairs = list(zip(dims[:-1], dims[1:], blocks))
        last, current = len(pairs) - 1, res
        self.fc0 = nn.Conv2d(channels, channels, 1)
        self.downs = nn.ModuleList()
        for i, (inner, outer, number) in enumerate(pairs):
            down = nn.Conv2d(inner, outer, 3, stride=1 if i == last else 2, padding=1)
            self.downs.append(nn.ModuleList([level(inner, inner, number), down]))
            current = current if i == last else current // 2
        drop = dropout if current <= dropout_res else 0.0
        self.mid_block1, self.mid_block2 = (
            ConvBlock(dims[-1], dims[-1], time_dim, z_dim, drop, eps_by_dtype) for _ in range(2))
        self.mid_attn = GridAttention(dims[-1])
        if encoder:
            self.fc1 = nn.Conv2d(dims[-1], out_channels or channels, 1)
            return
        self.ups = nn.ModuleList()
        for i, (inner, outer, number) in reversed(list(enumerate(pairs))):
            up = nn.Conv2d(outer, inner, 3, padding=1) if i == 0 else nn.ConvTranspose2d(outer, inner, 4, 2, 1)
            self.ups.append(nn.ModuleList([level(outer + inner, outer, number), up]))
            current = current if i == 0 else current * 2
        self.fc1, self.fc2 = nn.Conv2d(channels, 128, 1), nn.Conv2d(128, out_channels or channels, 1)

    @property
    def multiple(self) -> int:
        """Sides of the grid have to be multiples of this."""
        return 2 ** (len(self.downs) - 1)

    def sites(self) -> list[tuple[nn.Module, nn.Module | None]]:
        """(time, code) projections in the order in which `forward` uses them."""
        blocks = [pair[0] for level, _ in self.downs for pair in level] + [self.mid_block1, self.mid_block2]
        blocks += [pair[0] for level, _ in getattr(self, "ups", ()) for pair in level]
        return [site for block in blocks for site in block.sites()]

    def forward(self, x: Tensor, grid: Grid, modulations: Iterator[Modulation], origin: Grid = (0, 0)) -> tuple[Tensor, Grid]:
        """Tokens [B, H*W, C] and what modulates every block -> tokens [B, h*w, out] and their grid.

        `origin`: only the output from this row and column on is wanted, and what it does not depend on is not computed.
        """
        x, skips = pointwise(self.fc0, x), []
        for level, down in self.downs:
            for block, attention in level:
                x = attention(block(x, grid, next(modulations)))
                skips.append((x, grid))
            x, grid = convolve(down, x, grid)
        x = self.mid_block1(x, grid, next(modulations))
        x = self.mid_block2(self.mid_attn(x), grid, next(modulations))
        if not hasattr(self, "ups"):
            return pointwise(self.fc1, x), grid
        starts = list(zip(*(self.first_needed(place) for place in origin)))
        at = (0, 0)
        for (level, up), start in zip(self.ups, starts):
            x, grid = crop(x, grid, (start[0] - at[0], start[1] - at[1]))
            for block, attention in level:
                skip, _ = crop(*skips.pop(), start)
                x = attention(block(torch.cat([x, skip], -1), grid, next(modulations)))
            x, grid = convolve(up, x, grid)
            at = start if isinstance(up, nn.Conv2d) else (2 * start[0], 2 * start[1])
        x, grid = crop(x, grid, (origin[0] - at[0], origin[1] - at[1]))
        return pointwise(self.fc2, F.gelu(pointwise(self.fc1, x))), grid

    def first_needed(self, place: int) -> list[int]:
        """The first row (or column) of the input of every up level on which the output from `place` on depends.

        A 3x3 convolution reaches one row further up, the 4x4 transposed one from row y to (y - 1) // 2; attention needs all.
        """
        starts: list[int] = []
        for level, up in reversed(list(self.ups)):
            place = place - 1 if isinstance(up, nn.Conv2d) else (place - 1) // 2
            everything = any(isinstance(attention, GridAttention) for _, attention in level)
            place = 0 if everything else max(0, place - 2 * len(level))
            starts.insert(0, place)
        return starts


def crop(tokens: Tensor, grid: Grid, start: Grid) -> tuple[Tensor, Grid]:
    """Tokens without the first rows and columns, and their grid."""
    if start == (0, 0):
        return tokens, grid
    part = tokens.unflatten(1, grid)[:, start[0] :, start[1] :]
    return part.flatten(1, 2), (part.shape[1], part.shape[2])
