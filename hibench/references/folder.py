"""A folder of image files as a reference: any sizes, any formats, in a fixed order."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from hibench.errors import SpecError
from hibench.images import decode, folder_digest, image_size, in_parallel, list_images

if TYPE_CHECKING:
    import torch

__all__ = ["FolderReference", "fit"]


class FolderReference:
    """The image files below a folder, in the order of their relative names.

    `resolution=None` yields them at their own sizes; otherwise each is cropped in its centre to the aspect ratio and
    box-downsampled, as the images of the paper's set would be. A broken file, or one smaller than asked for, is an error
    that names it.
    """

    def __init__(self, path: str | Path, name: str | None = None, limit: int | None = None) -> None:
        self.root = Path(path).expanduser()
        self.paths = list_images(self.root)[:limit]
        self.name = name or self.root.name or str(self.root)

    def __len__(self) -> int:
        return len(self.paths)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of names and contents, in order."""
        return folder_digest(self.root, self.paths)

    @cached_property
    def size(self) -> tuple[int, int] | None:
        """(height, width) where all images have one size, else None; read from the files' headers."""
        sizes = set(in_parallel(image_size, self.paths))
        return sizes.pop() if len(sizes) == 1 else None

    def images(
        self,
        resolution: tuple[int, int] | None = None,
        first: int = 0,
        count: int | None = None,
        batch: int = 32,
        device: str = "cpu",
    ) -> "Iterator[torch.Tensor]":
        """uint8 [b, 3, H, W] batches of consecutive images of one size (b = 1 where sizes differ)."""
        import torch

        paths = self.paths[first : None if count is None else first + count]

        def load(path: Path) -> torch.Tensor:
            image = torch.from_numpy(decode(path))
            return image if resolution is None else fit(image, resolution, str(path))

        held: list[torch.Tensor] = []
        for image in in_parallel(load, paths):
            limit = max(1, min(batch, (1 << 26) // image.numel()))  # at most 64 MiB of pixels per batch
            if held and (held[0].shape != image.shape or len(held) >= limit):
                yield torch.stack(held).to(device)
                held = []
            held.append(image)
        if held:
            yield torch.stack(held).to(device)

    def captions(self, first: int, count: int) -> list[str] | None:
        """A folder has no captions."""
        return None


def fit(image: "torch.Tensor", resolution: tuple[int, int], name: str) -> "torch.Tensor":
    """uint8 [3, H, W] cropped in its centre to the aspect ratio of `resolution` and averaged down to it."""
    import torch.nn.functional as F

    height, width = resolution
    h, w = image.shape[-2:]
    if (h, w) == (height, width):
        return image
    if h < height or w < width:
        raise SpecError(
            f"{name}: {w}x{h} px is smaller than the {width}x{height} px samples it is compared with; "
            "use larger reference images or a smaller resolution"
        )
    scale = min(h / height, w / width)
    ch, cw = min(h, round(height * scale)), min(w, round(width * scale))
    top, left = (h - ch) // 2, (w - cw) // 2
    crop = image[None, :, top : top + ch, left : left + cw].float()
    if ch % height == 0 and cw % width == 0:
        small = F.avg_pool2d(crop, (ch // height, cw // width))
    else:
        small = F.interpolate(crop, (height, width), mode="bilinear", antialias=True)
    return small[0].round().clamp(0, 255).to(image.dtype)
