"""Image distributions that samples are compared with: the built-in scenes, and folders."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from hibench.errors import SpecError, did_you_mean
from hibench.references.folder import FolderReference

if TYPE_CHECKING:
    import torch

__all__ = ["KINDS", "Reference", "ScenesReference", "open_reference"]

KINDS = ("scenes", "folder")
SCENES_BLOCK = 10**6  # reference seed s holds scenes [(s + 1)·10⁶, (s + 2)·10⁶): never those of samples or training
SCENES_DEFAULT = 1000


class Reference(Protocol):
    """What every reference offers; images come in a fixed order, so that a count names a set."""

    name: str

    @property
    def digest(self) -> str:
        """Identifies the content (without the resolution)."""
        ...

    def __len__(self) -> int: ...

    def images(
        self,
        resolution: tuple[int, int] | None = None,
        first: int = 0,
        count: int | None = None,
        batch: int = 32,
        device: str = "cpu",
    ) -> "Iterator[torch.Tensor]":
        """uint8 [b, 3, H, W] batches at (height, width); None = each image's own size."""
        ...

    def captions(self, first: int, count: int) -> list[str] | None:
        """One caption per image, or None where there is none."""
        ...


class ScenesReference:
    """`count` scenes rendered at the asked resolution; disjoint from the seeds of samples and of training."""

    def __init__(
        self, seed: int = 0, count: int | None = None, name: str = "scenes", resolution: tuple[int, int] = (64, 64)
    ) -> None:
        if not 0 <= seed < 900:
            raise SpecError(f"reference {name}: seed {seed} must be in 0..899")
        count = SCENES_DEFAULT if count is None else count
        if not 1 <= count <= SCENES_BLOCK:
            raise SpecError(f"reference {name}: images: {count} must be in 1..{SCENES_BLOCK}")
        self.seed, self.count, self.name, self.resolution = seed, count, name, resolution

    def __len__(self) -> int:
        return self.count

    @property
    def digest(self) -> str:
        """SHA-256 of the scenes' version, the seed and the count."""
        from hibench.references import scenes

        return hashlib.sha256(f"{scenes.digest()}/{self.seed}/{self.count}".encode()).hexdigest()

    def seeds(self, first: int = 0, count: int | None = None) -> range:
        """The scene seeds of a part of this reference."""
        start = (self.seed + 1) * SCENES_BLOCK
        end = self.count if count is None else min(self.count, first + count)
        return range(start + first, start + end)

    def images(
        self,
        resolution: tuple[int, int] | None = None,
        first: int = 0,
        count: int | None = None,
        batch: int = 32,
        device: str = "cpu",
    ) -> "Iterator[torch.Tensor]":
        """uint8 [b, 3, H, W] rendered batches."""
        from hibench.references.scenes import render

        height, width = resolution or self.resolution
        seeds = self.seeds(first, count)
        size = max(1, min(batch, (1 << 26) // (3 * height * width)))
        for i in range(0, len(seeds), size):
            yield render(seeds[i : i + size], height, width, device=device)

    def captions(self, first: int, count: int) -> list[str] | None:
        """The truthful caption of each scene."""
        from hibench.references.scenes import captions

        return captions(self.seeds(first, count))


def open_reference(
    definition: Mapping[str, Any] | str, resolution: tuple[int, int] | None = None, n: int | None = None
) -> Reference:
    """The reference that a spec's definition (`{kind: scenes, seed: 0}`, `{kind: folder, path: ...}`) or a bare name describes.

    `resolution`: what a scenes reference renders at by default; `n`: how many images (None = all of a folder, 1000 scenes).
    The definition's own `images` wins over `n`; a folder takes all it has. Raises SpecError.
    """
    if isinstance(definition, str):
        definition = {"kind": "scenes"} if definition == "scenes" else {"kind": "folder", "path": definition}
    kind = definition.get("kind", "folder" if "path" in definition else None)
    name = definition.get("name")
    if kind == "scenes":
        return ScenesReference(
            int(definition.get("seed", 0)), definition.get("images", n), name or "scenes", resolution or (64, 64)
        )
    if kind == "folder":
        if not definition.get("path"):
            raise SpecError("reference: a folder reference needs a path, e.g. {kind: folder, path: images/}")
        return FolderReference(definition["path"], name, definition.get("images"))
    raise SpecError(f"reference: unknown kind {kind!r}{did_you_mean(str(kind), KINDS)}; known: {', '.join(KINDS)}")
