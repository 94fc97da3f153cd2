"""The encoder: one code per image from any set of its coordinates (official SparseEncoder)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from typing import Any

from torch import Tensor, nn

from methods.infty_diff.geometry import Canvas, Points, apply_bag
from methods.infty_diff.sparse import SparseBlock, Support, make_support
from methods.infty_diff.uno import UNO

__all__ = ["Encoder"]


class Encoder(nn.Module):
    """Sparse blocks, kNN interpolation to the grid, the U-Net's first half, mean over the grid, linear map.

    `official`: the blocks leave their norms out (see `SparseBlock`), which weights trained with the official code need.
    """

    def __init__(self, *, channels: int = 3, nf: int = 64, img_size: int = 128, num_conv_blocks: int = 3, uno_res: int = 64,
                 uno_mults: Sequence[int] = (1, 2, 4, 8), out_channels: int = 256, depthwise_sparse: bool = True,
                 kernel_size: int = 7, blocks_per_level: Sequence[int] = (2, 2, 2, 2), attn_res: Sequence[int] = (16, 8),
                 dropout_res: int = 16, dropout: float = 0.1, uno_base_nf: int = 64, official: bool = True) -> None:
        super().__init__()
        self.size, self.uno_res, self.kernel = img_size, uno_res, kernel_size
        self.linear_in, self.linear_out = nn.Linear(channels, nf), nn.Linear(out_channels, out_channels)
        self.down_blocks = nn.ModuleList(
            SparseBlock(nf, kernel_size, time_dim=nf, depthwise=depthwise_sparse, plain=official)
            for _ in range(num_conv_blocks))
        self.uno_linear_in = nn.Linear(nf, uno_base_nf)
        self.uno = UNO(uno_base_nf, uno_mults, blocks_per_level, uno_res, attn_res, nf, None, out_channels=out_channels,
                       dropout=dropout, dropout_res=dropout_res, eps_by_dtype=official, encoder=True)

    @classmethod
    def from_config(cls, config: dict[str, Any], official: bool = True) -> "Encoder":
        """From the official constructor's arguments; those that select a backend are left out."""
        ignored = ("knn_neighbours", "conv_type", "backend", "optimise_dense", "stochastic", "z_dim")
        return cls(**{k: v for k, v in config.items() if k not in ignored}, official=official)

    def canvas(self, height: int, width: int) -> Canvas:
        """The geometry of an image of this size."""
        return Canvas(height, width, self.size, self.uno_res, self.uno.multiple)

    def support(self, points: Points) -> Support:
        """What an evaluation at these points needs to know of them."""
        return make_support(points, self.kernel, official_read_back=False)

    def forward(self, x: Tensor, support: Support) -> Tensor:
        """Tokens [B, L, 3] in [-1, 1] at the points -> codes [B, z_dim]."""
        x = self.linear_in(x)
        for block in self.down_blocks:
            x = block(x, support)
        grid = self.uno_linear_in(apply_bag(x, support.knn))
        grid, _ = self.uno(grid, support.points.canvas.grid, repeat(None))
        return self.linear_out(grid.mean(1))
