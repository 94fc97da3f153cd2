"""Predictions for whole images from the U-Net on patches: constant parts once, and patches in bounded batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hibench.errors import SpecError
from methods.patch_dm.collage import from_patches, positions, to_patches
from methods.patch_dm.fast import FastUNet
from methods.patch_dm.unet import Modulation, position_embedding

__all__ = ["Block", "Denoiser", "blocks_of"]

CPU_PATCHES = 128                                   # at once, without max_tiles, where one image has fewer
CACHED_TILES = 1024                                 # position projections of at most this many tiles are kept


class Block(NamedTuple):
    """Tiles [top, bottom) x [left, right) of the grid, evaluated together."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def grid(self) -> tuple[int, int]:
        return self.bottom - self.top, self.right - self.left


def blocks_of(grid: tuple[int, int], most: int, border: int = 1) -> list[Block]:
    """Blocks of tiles that cover a P x Q grid, each of (rows + border)(columns + border) <= `most` patches.

    Patches that neighbouring blocks share are encoded in both: of the shapes that fit, that with the fewest patches wins.
    """
    if most < (1 + border) ** 2:
        raise SpecError(f"patch-dm: option max_tiles: {most} patches are too few: a tile needs {(1 + border) ** 2}")
    rows, columns = grid

    def cost(r: int, c: int) -> int:
        return (rows + border * -(-rows // r)) * (columns + border * -(-columns // c))

    fits = [(r, c) for r in range(1, rows + 1) if (c := min(columns, most // (r + border) - border)) >= 1]
    r, c = min(fits, key=lambda shape: (cost(*shape), -shape[0] * shape[1]))
    return [Block(i, min(i + r, rows), j, min(j + c, columns)) for i in range(0, rows, r) for j in range(0, columns, c)]


class Place(NamedTuple):
    """Where the patches of one evaluation lie: pixels of the image [top, top + height) x [left, ...), and grid positions."""

    top: int
    left: int
    grid: tuple[int, int]
    first: tuple[float, float]                      # position of the first patch


class Denoiser:
    """The network's output (eps, or v) for B images [B, 3, P p, Q p] at each of S timesteps.

    codes: [B, D]. times: int64 [S]. guidance: e_none + guidance (e - e_none), where e_none knows neither code nor position
    (1 = no guidance; the official code's w is guidance - 1).
    mode: "feature" | "pixel" (tiles on their own, on a grid that moves from step to step: `shift` "fixed" alternates between
    the image's grid and half a patch off it, "random" moves anywhere) | "none" (tiles on their own).
    max_tiles: at most so many patches are in the network at once; None = all of them (on a CPU, those of some images). The
    result is the same.
    position: whether the network is told positions; relocate: what it is told instead of (row, column) [N, 2] (None = that).
    """

    def __init__(self, network: FastUNet, patch: int, codes: Tensor, grid: tuple[int, int], times: Tensor, *,
                 guidance: float = 1.0, max_tiles: int | None = None, mode: str = "feature", shift: str = "fixed",
                 position: bool = True, relocate: Callable[[Tensor], Tensor] | None = None) -> None:
        unet = network.unet
        self.network, self.embed, self.halves = network, unet.time_embed, network.halves
        self.patch, self.grid, self.mode, self.shift = patch, grid, mode, shift
        self.guidance, self.position, self.relocate = guidance, position, relocate
        self.dtype, self.device = unet.time_embed.time_embed[0].weight.dtype, codes.device
        self.images, self.max_tiles = len(codes), max_tiles
        time = unet.time_embed.time(times)
        self.time = [half.time(time) for half in self.halves]                               # [S, 2C] each
        none = unet.time_embed.pos_embed(torch.zeros(1, 128, device=self.device, dtype=self.dtype))
        self.no_position = [half.position(none)[None, None] for half in self.halves]        # [1, 1, 1, 2C]
        codes = codes.to(self.dtype)
        codes = codes[None] if guidance == 1.0 else torch.stack([codes, torch.zeros_like(codes)])
        self.codes = [half.code(codes) for half in self.halves]                             # [branches, B, C]
        self.cache: dict[tuple[Place, int], Tensor] = {}
        self.caching = (grid[0] + 1) * (grid[1] + 1) <= CACHED_TILES
        self.outputs: list[Tensor] | None = None                                            # for tests: of both branches

    @property
    def branches(self) -> int:
        """1, or 2 with guidance."""
        return 1 if self.guidance == 1.0 else 2

    def evaluations(self, i: int) -> int:
        """Tiles that the decoder evaluates for one image at step i, all branches together."""
        rows, columns = self._tiles(i)[0]
        return rows * columns * self.branches

    def predict(self, x: Tensor, i: int) -> Tensor:
        """Guided output [B, 3, H, W], float32, for x [B, 3, H, W] at step i."""
        out = torch.empty_like(x, dtype=torch.float32)
        for images, place in self._work(i):
            value = self._evaluate(x[images], images, place, i)
            top, left = max(place.top, 0), max(place.left, 0)
            part = value[:, :, top - place.top:, left - place.left:]
            part = part[:, :, : x.shape[2] - top, : x.shape[3] - left]
            out[images, :, top: top + part.shape[2], left: left + part.shape[3]] = part
        return out

    # -- dividing the work -------------------------------------------------------------------------------------------------

    def _tiles(self, i: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """The grid of tiles at step i, and the pixel where its first tile begins."""
        if self.mode != "pixel":
            return self.grid, (0, 0)
        if self.shift == "fixed":
            off = (0, 0) if i % 2 == 0 else (self.patch // 2,) * 2
        else:
            off = tuple(torch.randint(self.patch, (2,), generator=torch.Generator().manual_seed(i)).tolist())
        return (self.grid[0] + (off[0] > 0), self.grid[1] + (off[1] > 0)), (-off[0], -off[1])

    def _work(self, i: int) -> Iterator[tuple[slice, Place]]:
        """Some images, and a part of their tiles, at a time."""
        grid, (top, left) = self._tiles(i)
        border = int(self.mode == "feature")
        patches = (grid[0] + border) * (grid[1] + border)
        most = self.max_tiles
        if most is None:                            # on a CPU, batches that stay in its cache are faster
            images = max(1, CPU_PATCHES // (patches * self.branches)) if self.device.type == "cpu" else self.images
            most = patches * self.branches * images
        blocks = blocks_of(grid, most, border)
        largest = max((b.grid[0] + border) * (b.grid[1] + border) for b in blocks)
        at_once = max(1, most // (largest * self.branches))
        for start in range(0, self.images, at_once):
            for block in blocks:
                first = block.top + 0.5 + top / self.patch, block.left + 0.5 + left / self.patch
                yield (slice(start, min(start + at_once, self.images)),
                       Place(top + block.top * self.patch, left + block.left * self.patch, block.grid, first))

    def _window(self, x: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
        """Pixels [B, 3, height, width] from (top, left) on, zero outside the image."""
        bottom, right = top + height, left + width
        inside = x[:, :, max(top, 0): bottom, max(left, 0): right]
        pad = max(-left, 0), max(right - x.shape[3], 0), max(-top, 0), max(bottom - x.shape[2], 0)
        return F.pad(inside, pad) if any(pad) else inside

    # -- the network -------------------------------------------------------------------------------------------------------

    def _positions(self, place: Place, half: int) -> Tensor:
        """Projected positions [1, 1, T, 2C]: of the patches that are encoded (half 0) or the tiles that are decoded (1)."""
        if (place, half) in self.cache:
            return self.cache[place, half]
        grid, first = place.grid, place.first
        if half == 0 and self.mode == "feature":
            grid, first = (grid[0] + 1, grid[1] + 1), (first[0] - 0.5, first[1] - 0.5)
        where = positions(grid, first, self.device)
        where = where if self.relocate is None else self.relocate(where)
        embedding = self.embed.pos_embed(position_embedding(where).to(self.dtype))
        projected = self.halves[half].position(embedding)[None, None]
        if self.caching and self.shift == "fixed":
            self.cache[place, half] = projected
        return projected

    def _modulations(self, half: int, images: slice, place: Place, i: int, branches: slice) -> list[Modulation]:
        """Weights and biases of every block of one half, [N, C_i] with N = branches x images x tiles."""
        none, known = self.no_position[half], self._positions(place, half)
        none = none.expand_as(known)
        position = torch.cat([known if self.position else none, none][branches])
        code = self.codes[half][branches, images]
        return self.halves[half].modulations(self.time[half][i], position, code[:, :, None])

    def _evaluate(self, x: Tensor, images: slice, place: Place, i: int) -> Tensor:
        """Guided eps [b, 3, rows p, columns p] of the tiles at a place."""
        collaged, p = self.mode == "feature", self.patch
        margin, rows, columns = p // 2 if collaged else 0, place.grid[0] + collaged, place.grid[1] + collaged
        patches = to_patches(self._window(x, place.top - margin, place.left - margin, rows * p, columns * p), p).to(self.dtype)
        both = self.branches == 1 or self.max_tiles is None or 2 * len(patches) <= self.max_tiles
        parts = [slice(0, self.branches)] if both else [slice(0, 1), slice(1, 2)]
        eps = torch.cat([self._branches(patches, images, place, i, branches) for branches in parts])
        eps = from_patches(eps.float(), place.grid)
        if self.outputs is not None:
            self.outputs.append(eps)
        if self.branches == 1:
            return eps
        conditional, unconditional = eps.chunk(2)
        return torch.lerp(unconditional, conditional, self.guidance)

    def _branches(self, patches: Tensor, images: slice, place: Place, i: int, branches: slice) -> Tensor:
        """eps of tiles [branches b P Q, 3, p, p], in the network's type."""
        encode, decode = (self._modulations(half, images, place, i, branches) for half in (0, 1))
        h, skips = self.network.encode(patches, encode, len(range(self.branches)[branches]))
        grid = place.grid if self.mode == "feature" else None
        return self.network.decode(h, skips, [*encode, *decode], grid)
