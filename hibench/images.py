"""Read image files: any common format to uint8 RGB, in order, decoded beside the network."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from hibench.errors import SpecError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["EXTENSIONS", "decode", "folder_digest", "image_size", "in_parallel", "list_images", "stream"]

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
_MAX_PIXELS = 1 << 28  # 16384²: beyond it a file is refused by name (decompression bombs)
T = TypeVar("T")
S = TypeVar("S")


def list_images(folder: str | Path) -> list[Path]:
    """Every image file below `folder`, sorted by its path relative to it (the same order on every platform).

    Files with other endings than `EXTENSIONS`, and hidden files, are not images. Raises SpecError for no folder or no image.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise SpecError(f"{root}: not a folder of images; give a folder that holds {', '.join(EXTENSIONS[:4])}, ... files")
    files = [p for p in root.rglob("*") if p.suffix.lower() in EXTENSIONS and not p.name.startswith(".") and p.is_file()]
    if not files:
        raise SpecError(f"{root}: holds no image ({', '.join(EXTENSIONS)}); give another folder")
    return sorted(files, key=lambda p: p.relative_to(root).as_posix())


def decode(path: str | Path) -> "NDArray[np.uint8]":
    """One image file as uint8 [3, H, W].

    The EXIF orientation is applied; alpha is composited over white; greyscale becomes three equal channels; 16-bit samples are
    scaled by 255/65535 and rounded; CMYK and palettes are converted; of several frames the first is read. A file that cannot be
    read whole raises SpecError with its name.
    """
    import numpy as np
    from PIL import Image, ImageOps

    _silence()
    try:
        with Image.open(path) as opened:
            if opened.width * opened.height > _MAX_PIXELS:
                raise ValueError(f"{opened.width}x{opened.height} pixels are more than {_MAX_PIXELS}")
            opened.load()
            image = _to_rgb(ImageOps.exif_transpose(opened))
        return np.array(np.asarray(image).transpose(2, 0, 1), order="C")  # a copy: writable, contiguous
    except Exception as error:  # PIL raises many types, SyntaxError and struct.error among them
        raise _unreadable(path, error) from error


def image_size(path: str | Path) -> tuple[int, int]:
    """(height, width) after the EXIF orientation, from the file's header; SpecError with the file's name if it cannot be
    read."""
    from PIL import Image

    _silence()
    try:
        with Image.open(path) as opened:
            turned = opened.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            return (opened.width, opened.height) if turned else (opened.height, opened.width)
    except Exception as error:
        raise _unreadable(path, error) from error


def _silence() -> None:
    """Nothing about odd metadata and large images, of which PIL warns; their size is checked here.

    Only PIL's warnings, and for good: `warnings.catch_warnings` swaps a list that all threads share, and two threads that
    decode can leave every warning of the process ignored.
    """
    import warnings

    warnings.filterwarnings("ignore", module=r"PIL\.")


def _unreadable(path: str | Path, error: Exception) -> SpecError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return SpecError(f"{path}: not a readable image ({reason}); replace or remove the file")


def _to_rgb(image: "object") -> "object":
    """A PIL image in mode RGB."""
    import numpy as np
    from PIL import Image

    assert isinstance(image, Image.Image)
    if image.mode.startswith("I"):  # I;16, I;16B, I: 16-bit greyscale
        levels = np.asarray(image).astype(np.int64)
        if levels.size and (levels.min() < 0 or levels.max() > 65535):
            raise ValueError("32-bit integer samples outside 0..65535")
        return Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point samples, whose range is unknown")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def in_parallel(function: Callable[[S], T], items: Iterable[S], threads: int | None = None) -> Iterator[T]:
    """`map` on threads, results in order; at most two results per thread wait, so memory stays bounded for any number of items.

    `threads`: None = one per CPU core.
    """
    workers = threads or os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[object] = deque()
        iterator = iter(items)
        try:
            for item in iterator:
                waiting.append(pool.submit(function, item))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()  # type: ignore[attr-defined]
            while waiting:
                yield waiting.popleft().result()  # type: ignore[attr-defined]
        finally:
            for future in waiting:
                future.cancel()  # type: ignore[attr-defined]


def stream(paths: Sequence[str | Path], threads: int | None = None) -> "Iterator[NDArray[np.uint8]]":
    """Decode files in order, uint8 [3, H, W] each, ahead of whoever consumes them."""
    return in_parallel(decode, paths, threads)


def folder_digest(root: Path, paths: Sequence[Path], threads: int | None = None) -> str:
    """SHA-256 over the relative names and the bytes of the files: the content of a folder reference."""

    def one(path: Path) -> bytes:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest() if hasattr(hashlib, "file_digest") else _sha256(file.read())

    total = hashlib.sha256()
    for path, digest in zip(paths, in_parallel(one, paths, threads)):
        total.update(path.relative_to(root).as_posix().encode() + b"\0" + digest)
    return total.hexdigest()


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
