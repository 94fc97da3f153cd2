"""Renderers behind one seam: a feature map and a grid of coordinates to colours (CLIF, LIIF, the tail of the LDM decoder).

Every renderer is called as `renderer(phi, query)` with phi [B, C, H, W] and gives [B, 3, h, w], unclamped, [-1, 1] being the
range of an image. `images` says which feature map each grid of the query reads, so that tiles of one image share its map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hibench.errors import AdapterError, did_you_mean
from methods.infd.geometry import Query, nearest, relative

__all__ = ["LIIF", "ConcatRenderer", "FixedRenderer", "FixedTail", "SimpleRendererNet", "build_renderer", "look_up"]


def norm(channels: int) -> nn.GroupNorm:
    """Group normalisation with 32 groups and eps 1e-6."""
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    """norm-swish-conv twice and an identity skip, with convolutions of any odd size."""

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.norm1 = norm(channels)
        self.conv1 = nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2)
        self.norm2 = norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


class SimpleRendererNet(nn.Module):
    """CLIF's network: conv, `blocks` residual blocks, norm, swish, conv (official `simple_renderer_net`; `_larger`: 3 blocks).

    With kernel_size 3 and 2 blocks a colour depends on 13 x 13 pixels; with kernel_size 1 on its own pixel, apart from the
    statistics of the group normalisation.
    """

    def __init__(self, in_channels: int, hidden_channels: int = 256, out_channels: int = 3, kernel_size: int = 3,
                 blocks: int = 2) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.model = nn.Sequential(nn.Conv2d(in_channels, hidden_channels, kernel_size, padding=padding),
                                   *(ResnetBlock(hidden_channels, kernel_size) for _ in range(blocks)))
        self.norm_out = norm(hidden_channels)
        self.conv_out = nn.Conv2d(hidden_channels, out_channels, kernel_size, padding=padding)
        self.radius = (2 * blocks + 2) * padding    # pixels beyond its own on which a colour depends

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, h, w] -> [B, 3, h, w]."""
        return self.conv_out(F.silu(self.norm_out(self.model(x))))


def which(phi: Tensor, query: Query) -> Tensor:
    """The map of each grid, int64 [B]: the i-th reads the i-th map, or all read the only one."""
    batch = max(len(query.rows), len(phi))
    return torch.arange(batch, device=phi.device) % len(phi)


def look_up(phi: Tensor, query: Query, images: Tensor | None = None) -> Tensor:
    """The nearest feature and where the pixel lies in its cell, channels-last [B, C + 4, h, w].

    The channels are [feature, row and column offset in half cells, height and width of the pixel in half cells]
    (official `convert_liif_feat_coord_cell`). `images` int64 [B]: which map of phi; None: the i-th, or the only one.
    """
    height, width = phi.shape[2:]
    row, column = nearest(query.rows, height), nearest(query.columns, width)
    images = which(phi, query) if images is None else images
    batch = len(images)
    feature = phi.permute(0, 2, 3, 1)[images[:, None, None], row[:, :, None], column[:, None, :]]      # [B, h, w, C]
    shape = (batch, *feature.shape[1:3])
    offset = relative(query.rows, row, height)[:, :, None], relative(query.columns, column, width)[:, None, :]
    cell = (query.cell * query.cell.new_tensor([height, width]))[:, None, None]
    more = [*(part.expand(shape)[..., None] for part in offset), cell.expand(*shape, 2)]
    return torch.cat([feature, *(part.to(feature.dtype) for part in more)], dim=-1).permute(0, 3, 1, 2)


class ConcatRenderer(nn.Module):
    """CLIF (official `renderer_concat_wrapper`): what `look_up` finds, through a convolutional network."""

    def __init__(self, net: SimpleRendererNet) -> None:
        super().__init__()
        self.net = net

    @property
    def radius(self) -> int:
        """Pixels beyond its own on which a colour depends (group normalisation aside)."""
        return self.net.radius

    @property
    def last_layer(self) -> Tensor:
        """The weight with respect to which the adaptive discriminator weight is taken."""
        return self.net.conv_out.weight

    def forward(self, phi: Tensor, query: Query, images: Tensor | None = None) -> Tensor:
        """[B, C, H, W] -> [B, 3, h, w]."""
        return self.net(look_up(phi, query, images))


class FixedTail(nn.Module):
    """The output head of the LDM decoder: norm, swish, conv (official `fixres_original_tail`)."""

    def __init__(self, in_channels: int, out_channels: int = 3) -> None:
        super().__init__()
        self.norm_out = norm(in_channels)
        self.conv_out = nn.Conv2d(in_channels, out_channels, 3, padding=1)

    def forward(self, phi: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, 3, H, W]."""
        return self.conv_out(F.silu(self.norm_out(phi)))


class FixedRenderer(nn.Module):
    """The LDM autoencoder (official `renderer_fixres_wrapper`): an image of the feature map's size, whatever is asked for.

    It has no coordinates: other sizes are made of the native image by resampling, which is the caller's business.
    """

    radius = 0

    def __init__(self, net: FixedTail) -> None:
        super().__init__()
        self.net = net

    @property
    def last_layer(self) -> Tensor:
        """The weight with respect to which the adaptive discriminator weight is taken."""
        return self.net.conv_out.weight

    def forward(self, phi: Tensor, query: Query | None = None, images: Tensor | None = None) -> Tensor:
        """[B, C, H, W] -> [B, 3, H, W]; a query of another size is a ValueError."""
        size = phi.shape[2:] if query is None else (query.rows.shape[1], query.columns.shape[1])
        if tuple(size) != tuple(phi.shape[2:]):
            raise ValueError(f"the fixed renderer gives {phi.shape[2]}x{phi.shape[3]} only, not {size[0]}x{size[1]}")
        return self.net(phi if images is None else phi[images])


class LIIF(nn.Module):
    """LIIF (Chen et al., CVPR 2021, arXiv 2012.09161): a point-wise MLP of the nearest feature, offset and pixel size.

    unfold: the features of the 3 x 3 cells around are concatenated (§3.3 of the paper); ensemble: four predictions, from the
    four nearest cells, are blended by the areas of the opposite rectangles (§3.2). Linear layers with ReLU between.
    """

    radius = 0

    def __init__(self, in_channels: int, hidden: Sequence[int] = (256, 256, 256, 256), unfold: bool = True,
                 ensemble: bool = True) -> None:
        super().__init__()
        self.unfold, self.ensemble = unfold, ensemble
        layers: list[nn.Module] = []
        width = in_channels * (9 if unfold else 1) + 4
        for following in hidden:
            layers += [nn.Linear(width, following), nn.ReLU()]
            width = following
        self.net = nn.Sequential(*layers, nn.Linear(width, 3))

    @property
    def last_layer(self) -> Tensor:
        """The weight with respect to which the adaptive discriminator weight is taken."""
        return self.net[-1].weight

    def _cells(self, phi: Tensor) -> Tensor:
        """The first layer's part that depends on the feature alone, once per cell: [B, H, W, hidden]."""
        height, width = phi.shape[2:]
        if self.unfold:
            phi = F.unfold(phi, 3, padding=1).view(len(phi), -1, height, width)
        first = self.net[0]
        return F.linear(phi.permute(0, 2, 3, 1), first.weight[:, :-4], first.bias)

    def _at(self, cells: Tensor, query: Query, row: Tensor, column: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """Prediction from the cells [B, h], [B, w], float [B, h, w, 3], and the area of pixel and cell centre, [B, h, w]."""
        height, width = cells.shape[1:3]
        picked = cells[images[:, None, None], row[:, :, None], column[:, None, :]]
        down, right = relative(query.rows, row, height)[:, :, None], relative(query.columns, column, width)[:, None, :]
        shape = picked.shape[:3]
        size = (query.cell * query.cell.new_tensor([height, width]))[:, None, None].expand(*shape, 2)
        place = torch.cat([down.expand(shape)[..., None], right.expand(shape)[..., None], size], dim=-1).to(picked.dtype)
        colour = self.net[1:](picked + F.linear(place, self.net[0].weight[:, -4:]))
        return colour, (down * right).abs().expand(shape) + 1e-9

    def forward(self, phi: Tensor, query: Query, images: Tensor | None = None) -> Tensor:
        """[B, C, H, W] -> [B, 3, h, w]."""
        height, width = phi.shape[2:]
        cells = self._cells(phi)
        images = which(phi, query) if images is None else images
        batch = len(images)
        rows, columns = query.rows.expand(batch, -1), query.columns.expand(batch, -1)
        query = Query(rows, columns, query.cell.expand(batch, -1))
        if not self.ensemble:
            colour, _ = self._at(cells, query, nearest(rows, height), nearest(columns, width), images)
            return colour.permute(0, 3, 1, 2)
        places = [[nearest((axis + side / n + 1e-6).clamp(-1 + 1e-6, 1 - 1e-6), n) for side in (-1, 1)]
                  for axis, n in ((rows, height), (columns, width))]
        corners = [self._at(cells, query, row, column, images) for row in places[0] for column in places[1]]
        total = sum(area for _, area in corners)
        blended = sum(colour * (area / total)[..., None].to(colour.dtype)
                      for (colour, _), (_, area) in zip(corners, reversed(corners)))
        return blended.permute(0, 3, 1, 2)  # type: ignore[union-attr]


def _only(given: dict[str, Any], known: Sequence[str], what: str) -> None:
    for key in given:
        if key not in known:
            raise AdapterError(f"infd: {what} has an argument '{key}' that is not supported{did_you_mean(key, known)}; "
                               f"known: {', '.join(known)}")


def build_renderer(spec: dict[str, Any], channels: int) -> nn.Module:
    """From an official specification {"name", "args": {"net": {"name", "args"}}}, or {"name": "liif", "args": ...}.

    `channels` is that of the feature map. AdapterError for names and arguments that are not known.
    """
    name, args = spec.get("name"), dict(spec.get("args", {}))
    if name == "liif":
        _only(args, ("hidden", "unfold", "ensemble"), "renderer liif")
        return LIIF(channels, **args)
    net = args.get("net", {})
    net_name, net_args = net.get("name"), dict(net.get("args", {}))
    _only(args, ("z_dec_channels", "net"), f"renderer {name}")
    if name == "renderer_concat_wrapper" and net_name in ("simple_renderer_net", "simple_renderer_net_larger"):
        _only(net_args, ("hidden_channels", "kernel_size", "out_channels", "in_channels"), f"renderer {net_name}")
        net_args.pop("in_channels", None)
        blocks = 3 if net_name.endswith("larger") else 2
        return ConcatRenderer(SimpleRendererNet(channels + 4, blocks=blocks, **net_args))
    if name == "renderer_fixres_wrapper" and net_name == "fixres_original_tail":
        _only(net_args, ("in_channels", "out_channels"), f"renderer {net_name}")
        return FixedRenderer(FixedTail(channels, net_args.get("out_channels", 3)))
    raise AdapterError(f"infd: renderer '{name}' with net '{net_name}' is not known; there are: renderer_concat_wrapper with "
                       "simple_renderer_net or simple_renderer_net_larger, renderer_fixres_wrapper with "
                       "fixres_original_tail, liif")
