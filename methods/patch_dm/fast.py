"""The U-Net on patches as sampling runs it: in place, without what is computed twice, with the same output as the plain one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.nn.unet import Downsample, Upsample
from methods.patch_dm.collage import collage
from methods.patch_dm.unet import Block, Modulation, PatchUNet, ResBlock, modulated_norm

__all__ = ["FastUNet", "Projection", "upsampled_kernel"]


class Projection:
    """The conditioning layers of some residual blocks side by side, split into what time, position and code contribute.

    Exact: SiLU acts on each channel of the embedding, so W SiLU([time, position]) is a sum of two products. The affine part of
    the normalisation is folded into the result.
    """

    def __init__(self, blocks: Sequence[ResBlock]) -> None:
        def side_by_side(tensors: Sequence[Tensor], part: int) -> Tensor:
            return torch.cat([t.chunk(2)[part] for t in tensors])

        layers = [block.emb_layers[1] for block in blocks]
        weight = torch.cat([side_by_side([layer.weight for layer in layers], part) for part in (0, 1)])
        self.time_weight, self.position_weight = (w.contiguous() for w in weight.chunk(2, dim=1))
        self.bias = torch.cat([side_by_side([layer.bias for layer in layers], part) for part in (0, 1)])
        self.code_weight = torch.cat([block.cond_emb_layers[1].weight for block in blocks])
        self.code_bias = torch.cat([block.cond_emb_layers[1].bias for block in blocks]) + 1
        self.norm_weight = torch.cat([block.out_layers[0].weight for block in blocks])
        self.norm_bias = torch.cat([block.out_layers[0].bias for block in blocks])
        self.channels = [block.out_layers[0].num_channels for block in blocks]

    def time(self, embedding: Tensor) -> Tensor:
        """[S, E/2] -> [S, 2C], all scales and then all shifts."""
        return F.linear(F.silu(embedding), self.time_weight, self.bias)

    def position(self, embedding: Tensor) -> Tensor:
        """[T, E/2] -> [T, 2C]."""
        return F.linear(F.silu(embedding), self.position_weight)

    def code(self, codes: Tensor) -> Tensor:
        """[N, D] -> [N, C]."""
        return F.linear(F.silu(codes), self.code_weight, self.code_bias)

    def modulations(self, time: Tensor, position: Tensor, code: Tensor) -> list[Modulation]:
        """Time [2C], position [R, 1, T, 2C], code [R, B, 1, C] -> weight and bias of each block at one step, [R B T, C_i]."""
        scale, shift = (time + position).chunk(2, dim=-1)
        scale = (1 + scale) * code
        weight, bias = self.norm_weight * scale, torch.addcmul(shift * code, self.norm_bias, scale)
        parts = zip(weight.split(self.channels, dim=-1), bias.split(self.channels, dim=-1))
        return [(w.flatten(0, 2), b.flatten(0, 2)) for w, b in parts]


def upsampled_kernel(weight: Tensor) -> Tensor:
    """The 4 x 4 kernel [C, C', 4, 4] whose transposed convolution (stride 2, padding 1) equals nearest-neighbour upsampling
    followed by a 3 x 3 convolution [C', C, 3, 3], at 4/9 of its operations."""
    def widen(w: Tensor) -> Tensor:                 # along the last dimension
        a, b, c = w.unbind(-1)
        return torch.stack([c, b + c, a + b, a], dim=-1)

    wide = weight.float()
    return widen(widen(wide).transpose(2, 3)).transpose(2, 3).transpose(0, 1).to(weight.dtype).contiguous()


def halved(x: Tensor) -> Tensor:
    """Means of 2 x 2 pixels [N, C, H/2, W/2]: rows first, then columns, which is several times faster than pooling on a CPU."""
    rows = x.view(-1, 2, x.shape[3])
    pairs = (rows[:, 0] + rows[:, 1]).view(-1, 2)
    return (pairs[:, 0] + pairs[:, 1]).mul_(0.25).view(*x.shape[:2], x.shape[2] // 2, x.shape[3] // 2)


class FastUNet:
    """A U-Net without gradients: encode patches, then decode collaged tiles.

    With guidance the branches share what does not know time, position or code: the first convolution, which is also the largest
    skip, and the first convolution of the first block.
    """

    def __init__(self, unet: PatchUNet) -> None:
        self.unet = unet
        first = unet.encoder_blocks
        self.halves = Projection(unet.res_blocks[:first]), Projection(unet.res_blocks[first:])
        self.kernels = {block.index: upsampled_kernel(block.in_layers[2].weight) for block in unet.res_blocks
                        if isinstance(block.resample, Upsample)}
        self.trace: dict[str, Tensor] | None = None                     # for tests: maps on the way

    def encode(self, patches: Tensor, modulations: Sequence[Modulation], branches: int) -> tuple[Tensor, list[Tensor]]:
        """Patches [N, 3, p, p] to the middle block's output [branches N, C, s, s] and the skips, the first without branches."""
        blocks = list(self.unet.input_blocks)
        h = blocks[0][0](patches)
        skips = [h]
        for block in blocks[1:]:
            h = self._block(block, h, modulations, branches if len(skips) == 1 else 1)
            skips.append(h)
        h = self._block(self.unet.middle_block, h, modulations)
        if self.trace is not None:
            self.trace["mid_out"] = h
        return h, skips

    def decode(self, h: Tensor, skips: list[Tensor], modulations: Sequence[Modulation],
               grid: tuple[int, int] | None) -> Tensor:
        """Output [N, 3, p, p] of the tiles of a P x Q grid, collaged of (P+1) x (Q+1) patches; None = the patches on their own.

        `skips` is emptied on the way, so that each one is freed when it has been used.
        """
        h = h if grid is None else collage(h, grid)
        for block in self.unet.output_blocks:
            h = self._block(block, self._join(h, skips.pop(), grid), modulations)
        return self.unet.out[2](F.silu(self.unet.out[0](h), inplace=True))

    def _join(self, h: Tensor, skip: Tensor, grid: tuple[int, int] | None) -> Tensor:
        """h [N, C, s, s] and (the collage of) a skip side by side, each written once; one skip serves all branches."""
        channels = h.shape[1]
        both = h.new_empty(len(h), channels + skip.shape[1], *h.shape[2:])
        both[:, :channels] = h
        tiles = len(skip) if grid is None else len(skip) // ((grid[0] + 1) * (grid[1] + 1)) * grid[0] * grid[1]
        for place in both[:, channels:].split(tiles):
            if grid is None:
                place.copy_(skip)
            else:
                collage(skip, grid, out=place)
        if self.trace is not None:
            self.trace.setdefault("dec0", both)
            self.trace["declast"] = both
        return both

    def _block(self, block: Block, h: Tensor, modulations: Sequence[Modulation], branches: int = 1) -> Tensor:
        for layer in block:
            if isinstance(layer, ResBlock):
                h = self._residual(layer, h, modulations[layer.index], branches)
                branches = 1
            else:
                h = layer(h)
        return h

    def _residual(self, block: ResBlock, x: Tensor, modulation: Modulation, branches: int) -> Tensor:
        """One residual block, [N, C, H, W] -> [branches N, C', H', W']; its branches part where they become different."""
        assert block.out_layers is not None
        kernel, conv = self.kernels.get(block.index), block.in_layers[2]
        h = F.silu(block.in_layers[0](x), inplace=True)
        if kernel is not None:
            h = F.conv_transpose2d(h, kernel, conv.bias, stride=2, padding=1)
        else:
            if isinstance(block.resample, Downsample):
                h, x = halved(h), halved(x)
            h = conv(h)
        h = h.repeat(branches, 1, 1, 1) if branches > 1 else h
        h = F.silu(modulated_norm(h, block.out_layers[0], *modulation), inplace=True)
        h = block.out_layers[3](h)
        if kernel is None:
            h.unflatten(0, (branches, -1)).add_(block.skip_connection(x))
        else:                                       # every pixel of x is added to the four that it becomes
            h.unflatten(2, (-1, 2)).add_(x.repeat_interleave(2, dim=3)[:, :, :, None])
        return h
