"""Where the coordinates lie: canvases of any size, sets of points on them, and interpolation between points and the grid."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Bag", "Canvas", "LatticeRead", "Points", "apply_bag", "crop_bag", "knn_bag", "nearest", "read_back_bag"]

NEIGHBOURS = 3                                      # k of the kNN interpolation
WINDOW = 6                                          # lattice points per axis among which the nearest are searched
BRUTE = 1 << 22                                     # up to so many distances the nearest are found by computing all


@dataclass(frozen=True)
class Canvas:
    """An image of height x width pixels whose shorter side spans the unit that the training images span.

    For a square canvas this is the official geometry: pixel i lies at i/(S-1). The grid of the U-Net keeps its density on the
    longer side, so a canvas twice as wide has a grid twice as wide; the official code knows square images only.
    """

    height: int
    width: int
    size: int                                       # side of the training images in pixels
    uno_res: int                                    # cells of the grid along the shorter side
    multiple: int = 1                               # the grid's sides are multiples of this (levels of the U-Net)

    @property
    def side(self) -> int:
        """The shorter side in pixels."""
        return min(self.height, self.width)

    @property
    def ratio(self) -> float:
        """Resolution relative to training."""
        return self.side / self.size

    @cached_property
    def grid(self) -> tuple[int, int]:
        """Cells of the grid (rows, columns)."""
        cells = [self.uno_res * n / self.side for n in (self.height, self.width)]
        rows, columns = (max(self.multiple, round(n / self.multiple) * self.multiple) for n in cells)
        return rows, columns

    def kernel_size(self, kernel: int) -> int:
        """Odd size k' of a kernel of the training resolution here: max(3, 2 round((k ratio - 1)/2) + 1), halves to even."""
        return kernel if self.ratio == 1 else max(3, 2 * round((kernel * self.ratio - 1) / 2) + 1)

    def axis(self, count: int, along: int) -> Tensor:
        """Positions of `count` evenly spread places on axis 0 (down) or 1 (right), first and last on the border, float32."""
        extent = (self.height, self.width)[along] / self.side
        return torch.linspace(0, 1, count) * extent

    def cells(self) -> Tensor:
        """Positions (row, column) of the grid's cells, float32 [cells, 2]."""
        rows, columns = self.grid
        return mesh(self.axis(rows, 0), self.axis(columns, 1))


def mesh(rows: Tensor, columns: Tensor) -> Tensor:
    """All pairs, row-major, [rows * columns, 2]."""
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).flatten(0, 1)


@dataclass(frozen=True)
class Bag:
    """A linear map between sets of tokens: out[p, m] = sum_k weight[p, m, k] tokens[p, index[p, m, k]]."""

    index: Tensor                                   # int64 [P, M, K]; P = 1: the same for all images
    weight: Tensor                                  # float32 [P, M, K]

    def pick(self, which: Tensor) -> "Bag":
        """The maps `which` int64 [B] of a bank of maps."""
        return Bag(self.index[which], self.weight[which])

    def to(self, device: str | torch.device) -> "Bag":
        """On a device."""
        return Bag(self.index.to(device), self.weight.to(device))


def apply_bag(tokens: Tensor, bag: Bag) -> Tensor:
    """Tokens [B, L, C] through a map: [B, M, C]."""
    batch, length, channels = tokens.shape
    shift = torch.arange(batch, device=tokens.device).view(-1, 1, 1) * length
    index = (bag.index + shift).flatten(0, 1)
    weight = bag.weight.to(tokens.dtype).expand(batch, -1, -1).flatten(0, 1)
    out = F.embedding_bag(index, tokens.reshape(-1, channels), mode="sum", per_sample_weights=weight)
    return out.view(batch, -1, channels)


@dataclass(frozen=True)
class Points:
    """P sets of L coordinates on a canvas: lattices (all pixels, or every a-th row and b-th column), or any pixels."""

    canvas: Canvas
    index: Tensor | None = None                     # int64 [P, L] flat pixels; None: a lattice
    stride: tuple[int, int] = (1, 1)                # of the lattice; (1, 1): all pixels
    phase: tuple[int, int] = (0, 0)                 # its first pixel

    @property
    def lattice(self) -> tuple[int, int]:
        """Rows and columns of the lattice."""
        sides = (self.canvas.height, self.canvas.width)
        rows, columns = (-(-(n - p) // s) for n, p, s in zip(sides, self.phase, self.stride))
        return rows, columns

    @property
    def dense(self) -> bool:
        """All pixels in row-major order?"""
        return self.index is None and self.stride == (1, 1)

    def __len__(self) -> int:
        return self.lattice[0] * self.lattice[1] if self.index is None else self.index.shape[1]

    def flat(self) -> Tensor:
        """Flat pixel indices int64 [P, L]."""
        if self.index is not None:
            return self.index
        rows, columns = (torch.arange(p, n, s) for p, n, s in zip(self.phase, (self.canvas.height, self.canvas.width),
                                                                  self.stride))
        return (rows[:, None] * self.canvas.width + columns).flatten()[None]

    def positions(self) -> Tensor:
        """Positions (row, column) in units of the shorter side, float32 [P, L, 2]."""
        rows, columns = self.canvas.axis(self.canvas.height, 0), self.canvas.axis(self.canvas.width, 1)
        flat = self.flat().cpu()
        return torch.stack([rows[flat // self.canvas.width], columns[flat % self.canvas.width]], -1)

    def norm(self, kernel: int) -> Tensor:
        """Present neighbours in the k' x k' window, itself included, over k^2 of training: float32 [P, L, 1]."""
        size, sides = self.canvas.kernel_size(kernel), (self.canvas.height, self.canvas.width)
        if self.index is None:
            counts = [axis_counts(n, p, s, size // 2) for n, p, s in zip(sides, self.phase, self.stride)]
            return (counts[0][:, None] * counts[1]).view(1, -1, 1) / kernel**2
        mask = torch.zeros(len(self.index), sides[0] * sides[1]).scatter_(1, self.index.cpu(), 1.0)
        mask = mask.view(-1, 1, *sides)
        for shape, pad in (((size, 1), (size // 2, 0)), ((1, size), (0, size // 2))):
            mask = F.conv2d(mask, torch.ones(1, 1, *shape), padding=pad)
        return mask.flatten(1).gather(1, self.index.cpu()).round()[..., None] / kernel**2


def axis_counts(n: int, phase: int, stride: int, radius: int) -> Tensor:
    """How many of the positions phase, phase + stride, ... < n lie within `radius` of each of them."""
    places = torch.arange(phase, n, stride)
    first, last = (places - radius).clamp(min=0), (places + radius).clamp(max=n - 1)
    below = torch.searchsorted(places, first)
    return (torch.searchsorted(places, last, right=True) - below).float()


def nearest(points: Points, count: int = NEIGHBOURS) -> tuple[Tensor, Tensor]:
    """The nearest points to every cell of the grid: squared distances and positions in the set, both [P, cells, count].

    Distances are float32 as in the official code; a small problem is solved by computing all of them, a lattice by looking at
    the lattice points around a cell only (the same result).
    """
    cells = points.canvas.cells()
    if points.index is None and len(cells) * len(points) > BRUTE:
        return nearest_on_lattice(points, cells, count)
    near = [nearest_of(cells, positions, count) for positions in points.positions()]
    return torch.stack([d for d, _ in near]), torch.stack([i for _, i in near])


def nearest_of(cells: Tensor, positions: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Squared distances and indices [cells, count] of the nearest of `positions` [L, 2], a bounded number at a time."""
    rows = max(1, BRUTE // len(positions))
    parts = []
    for some in cells.split(rows):
        delta = some[:, None] - positions
        parts.append((delta * delta).sum(-1).topk(min(count, len(positions)), dim=1, largest=False))
    return torch.cat([p.values for p in parts]), torch.cat([p.indices for p in parts])


def nearest_on_lattice(points: Points, cells: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`nearest` for a lattice: only the lattice points around a cell are looked at."""
    canvas, shape = points.canvas, points.lattice
    rows, columns = canvas.grid
    windows = []
    for along, (n, cell_count) in enumerate(((canvas.height, rows), (canvas.width, columns))):
        place = (torch.arange(cell_count) * ((n - 1) / max(1, cell_count - 1)) - points.phase[along]) / points.stride[along]
        width = min(WINDOW, shape[along])
        first = (place.floor().long() - (width // 2 - 1)).clamp(0, shape[along] - width)
        windows.append(first[:, None] + torch.arange(width))
    index = windows[0][:, None, :, None] * shape[1] + windows[1][None, :, None, :]
    index = index.flatten(0, 1).flatten(1)
    delta = cells[:, None] - points.positions()[0][index]
    found = (delta * delta).sum(-1).topk(count, dim=1, largest=False)
    return found.values[None], index.gather(1, found.indices)[None]


def knn_bag(distances: Tensor, index: Tensor) -> Bag:
    """Weights 1 / max(d^2, 1e-16), normalised: interpolation from points to the cells of the grid."""
    weight = 1 / distances.clamp(min=1e-16)
    return Bag(index, weight / weight.sum(-1, keepdim=True))


def read_places(points: Points, position: Tensor, along: int, official: bool) -> Tensor:
    """Where positions on an axis (units of the shorter side) read the grid, in cells along the axis that is read."""
    canvas = points.canvas
    if official:
        return ((position + 1) * canvas.grid[1 - along] - 1) / 2
    side = (canvas.height, canvas.width)[along]
    return position * canvas.side / side * (canvas.grid[along] - 1)


def read_back_bag(points: Points, official: bool) -> Bag:
    """Bilinear interpolation from the cells of the grid to the points.

    `official` repeats what the official code does (row and column in [0, 1] given to `grid_sample` as x and y in [-1, 1],
    align_corners=False, zeros outside): only the lower right quadrant is read, transposed, its border blended with zeros.
    Weights trained with that code need it. Otherwise a position reads the place in the grid where it lies.
    """
    rows, columns = points.canvas.grid
    position = points.positions()
    down, right = (read_places(points, position[..., axis], axis, official) for axis in (0, 1))
    y, x = (right, down) if official else (down, right)
    index, weight = [], []
    for below in (0, 1):
        for beside in (0, 1):
            cell_y, cell_x = y.floor() + below, x.floor() + beside
            share = (1 - (y - cell_y).abs()) * (1 - (x - cell_x).abs())
            inside = (cell_y >= 0) & (cell_y < rows) & (cell_x >= 0) & (cell_x < columns)
            index.append(cell_y.clamp(0, rows - 1).long() * columns + cell_x.clamp(0, columns - 1).long())
            weight.append(share * inside)
    return Bag(torch.stack(index, -1), torch.stack(weight, -1))


@dataclass(frozen=True)
class LatticeRead:
    """`read_back_bag` of a lattice, by one matrix per side."""

    rows: Tensor                                    # float32 [rows of the lattice, cells read]
    columns: Tensor
    swapped: bool                                   # rows of the lattice read columns of the grid

    @classmethod
    def make(cls, points: Points, official: bool) -> "LatticeRead":
        """For the whole grid."""
        canvas, matrices = points.canvas, []
        for along, n in enumerate((canvas.height, canvas.width)):
            position = canvas.axis(n, along)[points.phase[along] :: points.stride[along]]
            place = read_places(points, position, along, official)
            cells = torch.arange(canvas.grid[1 - along if official else along])
            matrices.append((1 - (place[:, None] - cells).abs()).clamp(min=0))
        return cls(matrices[0], matrices[1], official)

    def crop(self) -> tuple["LatticeRead", tuple[int, int]]:
        """For the part of the grid that is read, and that part's first row and column."""
        first = [int((matrix != 0).any(0).nonzero().min()) for matrix in (self.rows, self.columns)]
        row, column = reversed(first) if self.swapped else first
        return LatticeRead(self.rows[:, first[0] :], self.columns[:, first[1] :], self.swapped), (row, column)

    def to(self, device: str | torch.device) -> "LatticeRead":
        """On a device."""
        return LatticeRead(self.rows.to(device), self.columns.to(device), self.swapped)

    def __call__(self, grid: Tensor) -> Tensor:
        """Tokens [B, cells, C] of the (cropped) grid -> tokens [B, L, C]."""
        rows, columns = self.rows.to(grid.dtype), self.columns.to(grid.dtype)
        if self.swapped:
            grid = grid.unflatten(1, (columns.shape[1], rows.shape[1])).transpose(1, 2)
        half = rows @ grid.reshape(len(grid), rows.shape[1], -1)
        return (columns @ half.unflatten(2, (columns.shape[1], -1))).flatten(1, 2)


def crop_bag(bag: Bag, columns: int) -> tuple[Bag, tuple[int, int]]:
    """A map from a grid of so many columns as a map from the part of the grid that it reads, and that part's first cell."""
    read = bag.index[bag.weight != 0]
    row, column = (int((read // columns).min()), int((read % columns).min())) if len(read) else (0, 0)
    rest = (bag.index // columns - row).clamp(min=0) * (columns - column) + (bag.index % columns - column).clamp(min=0)
    return Bag(rest, bag.weight), (row, column)
