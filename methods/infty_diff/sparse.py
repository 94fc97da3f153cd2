"""The sparse level: submanifold convolutions and residual blocks on tokens [B, L, C] at a set of coordinates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.infty_diff.conv import choose, depthwise
from methods.infty_diff.geometry import Bag, LatticeRead, Points, crop_bag, knn_bag, nearest, read_back_bag
from methods.nn.attention import from_tokens, to_tokens

__all__ = ["Modulation", "SparseBlock", "SparseConv", "Support", "gather", "make_support", "modulate"]

CHUNK = 2048                                        # tokens that are worked on at a time where there are many
Modulation = tuple[Tensor, Tensor] | None           # (scale, shift) [B or 1, 1, C]: h * scale + shift


@dataclass(frozen=True)
class Support:
    """All that one network evaluation needs to know of its coordinates, made once and used at every step."""

    points: Points
    inverse_norm: Tensor                            # float32 [P, L, 1]
    knn: Bag                                        # points -> cells of the grid
    read: Bag | LatticeRead | None                  # cells -> points; None: plain bilinear resizing (all pixels)
    origin: tuple[int, int] = (0, 0)                # first row and column of the grid that `read` reads, and counts from

    def to(self, device: str | torch.device) -> "Support":
        """On a device."""
        points, read = self.points, self.read
        if points.index is not None:
            points = Points(points.canvas, points.index.to(device))
        return Support(points, self.inverse_norm.to(device), self.knn.to(device), None if read is None else read.to(device),
                       self.origin)

    def pick(self, which: Tensor) -> "Support":
        """The sets `which` int64 [B] of a bank of sets."""
        index = self.points.index
        if index is None:
            return self
        read = self.read.pick(which) if isinstance(self.read, Bag) else None
        return Support(Points(self.points.canvas, index[which]), self.inverse_norm[which], self.knn.pick(which), read,
                       self.origin)


def make_support(points: Points, kernel: int, official_read_back: bool, whole_grid: bool = False) -> Support:
    """Neighbour counts, nearest neighbours and read-back of a set of coordinates (Bond-Taylor & Willcocks, §3.2).

    The official read-back reads a quadrant of the grid only, so only that is computed, unless the `whole_grid` is wanted.
    """
    inverse, knn = 1 / points.norm(kernel), knn_bag(*nearest(points))
    if points.dense and not official_read_back:
        return Support(points, inverse, knn, None)
    origin, crop = (0, 0), official_read_back and not whole_grid
    if points.index is None:
        lattice = LatticeRead.make(points, official_read_back)
        lattice, origin = lattice.crop() if crop else (lattice, origin)
        return Support(points, inverse, knn, lattice, origin)
    read = read_back_bag(points, official_read_back)
    read, origin = crop_bag(read, points.canvas.grid[1]) if crop else (read, origin)
    return Support(points, inverse, knn, read, origin)


def modulate(h: Tensor, modulation: Modulation) -> Tensor:
    """h * scale + shift, broadcast over tokens."""
    return h if modulation is None else torch.addcmul(modulation[1], h, modulation[0])


class ThinnedGradient(torch.autograd.Function):
    """`conv2d` whose weight gradient is estimated from every n-th image of the batch (times n); all else is exact.

    On a CPU the gradient of a large depthwise kernel costs as much as everything else in the block, and it has few values.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, padding: tuple[int, int], groups: int, thin: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how = (padding, groups, thin)
        return F.conv2d(x, weight, padding=padding, groups=groups)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), (padding, groups, thin) = ctx.saved_tensors, ctx.how

        def gradient(which: slice, mask: tuple[bool, bool, bool]) -> tuple[Tensor, ...]:
            return torch.ops.aten.convolution_backward(grad[which], x[which], weight, None, (1, 1), padding, (1, 1), False,
                                                       (0, 0), groups, mask)

        return (gradient(slice(None), (True, False, False))[0],
                gradient(slice(None, None, thin), (False, True, False))[1] * thin, None, None, None)


class SparseConv(nn.Module):
    """A submanifold convolution without bias: outputs at the input coordinates only, absent neighbours count as zero.

    `kernel` has the layout of torchsparse, (k*k, in / groups, out) with flat index (w + k//2) * k + (h + k//2). `thin` is for
    training: see `ThinnedGradient`.
    """

    thin = 1
    how = "auto"                                    # at inference: auto, direct, factorised, fft (see `conv`), or gather

    def __init__(self, channels: int, size: int, depthwise: bool = True) -> None:
        super().__init__()
        self.size, self.channels, self.depthwise = size, channels, depthwise
        self.kernel = nn.Parameter(torch.empty(size * size, 1 if depthwise else channels, channels))
        bound = (size * size * self.kernel.shape[1]) ** -0.5
        nn.init.uniform_(self.kernel, -bound, bound)

    def image_kernel(self) -> Tensor:
        """The kernel as `conv2d` wants it, [C, C / groups, k, k]."""
        return self.kernel.view(self.size, self.size, -1, self.channels).permute(3, 2, 1, 0)

    def weight(self, points: Points) -> Tensor:
        """Weights of `conv2d` [C, C / groups, k', k'] for a set of points.

        At another resolution the values are resized bilinearly to k' x k' and not rescaled; on a lattice only the taps that
        hit it are kept.
        """
        weight, size = self.image_kernel(), points.canvas.kernel_size(self.size)
        if size != self.size:
            weight = F.interpolate(weight, (size, size), mode="bilinear", align_corners=False)
        rows, columns = points.stride
        return weight[..., size // 2 % rows::rows, size // 2 % columns::columns]

    def forward(self, x: Tensor, points: Points) -> Tensor:
        """Tokens [B, L, C] -> [B, L, C], before the division by the norm.

        A lattice is an image; other points are written into one that is zero elsewhere (masked-dense). `gather` computes the
        same from the points alone.
        """
        if points.index is None:
            return to_tokens(self.convolve(from_tokens(x, *points.lattice), points))
        if self.how == "gather":
            return gather(x, self.weight(points), points, self.depthwise)
        height, width = points.canvas.height, points.canvas.width
        shift = torch.arange(len(x), device=x.device)[:, None] * (height * width)
        flat = (points.index + shift).flatten()
        dense = x.new_zeros(len(x) * height * width, x.shape[2]).index_copy(0, flat, x.flatten(0, 1))
        image = from_tokens(dense.view(len(x), height * width, -1), height, width)
        out = to_tokens(self.convolve(image, points))
        return out.flatten(0, 1).index_select(0, flat).view_as(x)

    def convolve(self, image: Tensor, points: Points) -> Tensor:
        """An image [B, C, H, W] with zeros where no point is."""
        size = points.canvas.kernel_size(self.size)
        how = choose(size) if self.how in ("auto", "gather") else self.how
        if how != "direct" and self.depthwise and points.stride == (1, 1) and not torch.is_grad_enabled():
            return depthwise(image, self.image_kernel(), size, how)
        weight, groups = self.weight(points), self.channels if self.depthwise else 1
        padding = (weight.shape[2] // 2, weight.shape[3] // 2)
        if self.thin > 1 and torch.is_grad_enabled():
            return ThinnedGradient.apply(image, weight, padding, groups, self.thin)
        return F.conv2d(image, weight, padding=padding, groups=groups)


def gather(x: Tensor, weight: Tensor, points: Points, depthwise: bool) -> Tensor:
    """The convolution of tokens [B, L, C] at any points without an image of features: tap by tap, from neighbours by index.

    Memory follows the number of points, but for one index map of the canvas per set.
    """
    height, width, (batch, length, channels) = points.canvas.height, points.canvas.width, x.shape
    radius = weight.shape[2] // 2
    assert points.index is not None
    index = points.index.expand(batch, -1)
    place = torch.full((batch, (height + 2 * radius) * (width + 2 * radius)), length, device=x.device)
    corner = (index // width) * (width + 2 * radius) + index % width                     # of the window around each point
    place.scatter_(1, corner + radius * (width + 2 * radius) + radius,
                   torch.arange(length, device=x.device).expand(batch, -1))
    table = torch.cat([x, x.new_zeros(batch, 1, channels)], 1)
    out = torch.zeros_like(x)
    for row in range(weight.shape[2]):
        for column in range(weight.shape[3]):
            found = place.gather(1, corner + row * (width + 2 * radius) + column)
            values = table.gather(1, found[..., None].expand(-1, -1, channels))
            tap = weight[:, :, row, column]
            out = torch.addcmul(out, values, tap[:, 0]) if depthwise else out + values @ tap.T
    return out


class SparseBlock(nn.Module):
    """Convolution and MLP, each with layer norm, modulation by time and code, and a residual (official SparseConvResBlock).

    With `time_dim` None there is no modulation. `plain` is the official encoder's block, which leaves both norms out and feeds
    the convolution's output instead of the stream to the MLP; the norms' weights exist all the same.
    """

    def __init__(self, channels: int, kernel: int = 7, mult: int = 2, skip: int = 0, time_dim: int | None = None,
                 z_dim: int | None = None, depthwise: bool = True, eps: float = 1e-5, plain: bool = False) -> None:
        super().__init__()
        self.plain = plain
        self.block = block = nn.Module()
        if skip:
            block.skip_linear = nn.Linear(channels + skip, channels)
        block.norm1, block.norm2 = nn.LayerNorm(channels, eps), nn.LayerNorm(channels, eps)
        block.conv = SparseConv(channels, kernel, depthwise)
        block.mlp = nn.Sequential(nn.Linear(channels, mult * channels), nn.GELU(), nn.Linear(mult * channels, channels))
        for i in (1, 2):
            if time_dim is not None:
                setattr(block, f"time_mlp{i}", nn.Sequential(nn.GELU(), nn.Linear(time_dim, 2 * channels)))
            if z_dim is not None:
                code = nn.Sequential(nn.Linear(z_dim, channels), nn.GELU(), nn.Linear(channels, channels))
                setattr(block, f"z_mlp{i}", code)

    def sites(self) -> list[tuple[nn.Module, nn.Module | None]]:
        """(time, code) projections in the order in which `forward` uses them."""
        return [(getattr(self.block, f"time_mlp{i}"), getattr(self.block, f"z_mlp{i}", None)) for i in (1, 2)]

    def forward(self, x: Tensor, support: Support, first: Modulation = None, second: Modulation = None,
                skip: Tensor | None = None) -> Tensor:
        """Tokens [B, L, C] (and skip [B, L, D]) -> [B, L, C]."""
        block = self.block
        if skip is not None:
            x = block.skip_linear(torch.cat([x, skip], -1))
        if self.plain:
            conv = block.conv(x, support.points) * support.inverse_norm.to(x.dtype)
            return x + conv + block.mlp(conv)
        if x.shape[1] > CHUNK and not torch.is_grad_enabled():
            return self.in_chunks(x, support, first, second)
        h = block.conv(modulate(block.norm1(x), first), support.points)
        x = torch.addcmul(x, h, support.inverse_norm.to(x.dtype))
        return x + block.mlp(modulate(block.norm2(x), second))

    def in_chunks(self, x: Tensor, support: Support, first: Modulation, second: Modulation) -> Tensor:
        """The rest of `forward` with everything but the convolution done for some tokens at a time, while they are in the
        cache: the same result with a third of the memory."""
        block, h, inverse = self.block, torch.empty_like(x), support.inverse_norm.to(x.dtype)
        chunk = CHUNK if x.device.type == "cpu" else 512 * CHUNK

        def parts(tensor: Tensor, i: int) -> tuple[Tensor, ...]:
            return tensor[i if len(tensor) > 1 else 0].split(chunk)

        def of_image(modulation: Modulation, i: int) -> Modulation:
            return modulation and (modulation[0][i if len(modulation[0]) > 1 else 0], modulation[1][i if len(x) > 1 else 0])

        for i in range(len(x)):
            for source, out in zip(parts(x, i), parts(h, i)):
                out.copy_(modulate(block.norm1(source), of_image(first, i)))
        h = block.conv(h, support.points)
        for i in range(len(x)):
            for source, out, inverted in zip(parts(x, i), parts(h, i), parts(inverse, i)):
                stream = torch.addcmul(source, out, inverted)
                torch.add(stream, block.mlp(modulate(block.norm2(stream), of_image(second, i))), out=out)
        return h
