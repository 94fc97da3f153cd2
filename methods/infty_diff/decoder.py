"""The decoder: noise prediction at a set of coordinates, conditioned on time and code (official SparseUNet)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.infty_diff.geometry import Bag, Canvas, Points, apply_bag
from methods.infty_diff.sparse import Modulation, SparseBlock, Support, make_support
from methods.infty_diff.uno import UNO
from methods.nn.attention import from_tokens, to_tokens

__all__ = ["Decoder", "read_back", "sinusoidal"]


def sinusoidal(t: Tensor, dim: int) -> Tensor:
    """sin | cos embedding [B, dim] of times [B]; frequencies exp(-ln(1e4) i / (half - 1))."""
    half = dim // 2
    angles = t.float()[:, None] * torch.exp(torch.arange(half, device=t.device) * (-math.log(10000) / (half - 1)))
    return torch.cat([angles.sin(), angles.cos()], -1)


class Decoder(nn.Module):
    """Sparse blocks, kNN interpolation to the grid, the U-Net, read-back, sparse blocks.

    Keyword arguments carry the official names (`from_config`). `official` repeats the official read-back and the epsilon that
    depends on the data type, which weights trained with the official code need; see `read_back_bag` and `ChannelNorm`.
    """

    def __init__(self, *, channels: int = 3, nf: int = 64, time_emb_dim: int = 256, img_size: int = 128,
                 num_conv_blocks: int = 3, uno_res: int = 64, uno_mults: Sequence[int] = (1, 2, 4, 8), z_dim: int = 256,
                 depthwise_sparse: bool = True, kernel_size: int = 7, blocks_per_level: Sequence[int] = (2, 2, 2, 2),
                 attn_res: Sequence[int] = (16, 8), dropout_res: int = 16, dropout: float = 0.1, uno_base_nf: int = 64,
                 out_channels: int | None = None, official: bool = True) -> None:
        super().__init__()
        self.size, self.uno_res, self.kernel, self.official_read_back = img_size, uno_res, kernel_size, official
        self.time_dim, self.z_dim = time_emb_dim, z_dim

        def block(skip: int) -> SparseBlock:
            return SparseBlock(nf, kernel_size, 2, skip, time_emb_dim, z_dim, depthwise_sparse)

        self.linear_in, self.linear_out = nn.Linear(channels, nf), nn.Linear(nf, out_channels or channels)
        self.down_blocks = nn.ModuleList(block(0) for _ in range(num_conv_blocks))
        self.up_blocks = nn.ModuleList(block(nf) for _ in range(num_conv_blocks))
        self.uno_linear_in, self.uno_linear_out = nn.Linear(nf, uno_base_nf), nn.Linear(uno_base_nf, nf)
        self.uno = UNO(uno_base_nf, uno_mults, blocks_per_level, uno_res, attn_res, time_emb_dim, z_dim, dropout=dropout,
                       dropout_res=dropout_res, eps_by_dtype=official)
        self.time_mlp = nn.Sequential(nn.Identity(), nn.Linear(time_emb_dim, time_emb_dim), nn.GELU(),
                                      nn.Linear(time_emb_dim, time_emb_dim))

    @classmethod
    def from_config(cls, config: dict[str, Any], official: bool = True) -> "Decoder":
        """From the official constructor's arguments; those that select a backend are left out."""
        ignored = ("knn_neighbours", "conv_type", "backend", "optimise_dense")
        return cls(**{k: v for k, v in config.items() if k not in ignored}, official=official)

    def canvas(self, height: int, width: int) -> Canvas:
        """The geometry of an image of this size."""
        return Canvas(height, width, self.size, self.uno_res, self.uno.multiple)

    def support(self, points: Points, whole_grid: bool = False) -> Support:
        """What an evaluation at these points needs to know of them."""
        return make_support(points, self.kernel, self.official_read_back, whole_grid)

    def sites(self) -> list[tuple[nn.Module, nn.Module | None]]:
        """(time, code) projections in the order in which `forward` uses them."""
        down = [site for block in self.down_blocks for site in block.sites()]
        return down + self.uno.sites() + [site for block in self.up_blocks for site in block.sites()]

    def times(self, t: Tensor) -> list[tuple[Tensor, Tensor]]:
        """(1 + scale, shift) [B, 1, C] of every site for times float [B] in 0 ... 999."""
        weight = self.time_mlp[1].weight
        embedded = self.time_mlp(sinusoidal(t, self.time_dim).to(weight.dtype))
        active = F.gelu(embedded)
        pairs = (time[1](active)[:, None].chunk(2, -1) for time, _ in self.sites())
        return [(1 + scale, shift) for scale, shift in pairs]

    def codes(self, z: Tensor) -> list[Tensor]:
        """1 + scale [B, 1, C] of every site for codes [B, z_dim]."""
        z = z.to(self.linear_in.weight.dtype)
        return [1 + code(z)[:, None] for _, code in self.sites() if code is not None]

    def forward(self, x: Tensor, support: Support, times: list[tuple[Tensor, Tensor]], codes: list[Tensor]) -> Tensor:
        """The prediction (officially T xi) at the points, tokens [B, L, 3] from tokens [B, L, 3]."""
        mods = ((scale * code, shift * code) for (scale, shift), code in zip(times, codes))
        x, skips = self.linear_in(x), []
        for block in self.down_blocks:
            x = block(x, support, next(mods), next(mods))
            skips.append(x)
        x = self.through_grid(x, support, mods)
        for block in self.up_blocks:
            x = block(x, support, next(mods), next(mods), skip=skips.pop())
        return self.linear_out(x)

    def through_grid(self, x: Tensor, support: Support, mods: Iterator[Modulation]) -> Tensor:
        """Points to grid, U-Net, grid to points. Linear maps change places with the interpolation where that is cheaper."""
        canvas = support.points.canvas
        grid = self.uno_linear_in(apply_bag(x, support.knn))
        grid, _ = self.uno(grid, canvas.grid, mods, support.origin)
        if self.official_read_back:                                 # its weights do not add up to 1: the bias comes after
            return self.uno_linear_out(read_back(grid, support))
        return read_back(self.uno_linear_out(grid), support)


def read_back(grid: Tensor, support: Support) -> Tensor:
    """Tokens [B, cells, C] of the grid (of the part that is read) -> tokens [B, L, C] at the points."""
    if isinstance(support.read, Bag):
        return apply_bag(grid, support.read)
    if support.read is not None:
        return support.read(grid)
    canvas = support.points.canvas
    image = from_tokens(grid, *canvas.grid)
    return to_tokens(F.interpolate(image, (canvas.height, canvas.width), mode="bilinear", align_corners=True))
