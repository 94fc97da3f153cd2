"""How much a method's first stage keeps: images through its encoder and decoder, beside the images (LDM's Table 8)."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hibench.errors import SpecError

if TYPE_CHECKING:
    from hibench.references import Reference

__all__ = ["METRICS", "open_images", "parse_method", "reconstruct", "score_reconstruction"]

METRICS = ("fid", "is", "psnr", "ssim", "psim")          # the paper's R-FID, R-IS, PSNR, SSIM and PSIM


def parse_method(text: str) -> tuple[str, str]:
    """`NAME` or `NAME=WEIGHTS` as (adapter, weights); without weights the reference ones."""
    name, _, weights = text.partition("=")
    if not name:
        raise SpecError(f"--reconstruction {text!r}: say a method, or METHOD=WEIGHTS, e.g. ldm=model.ckpt")
    return name, weights or "reference"


def open_images(images: str | Path, count: int, resolution: tuple[int, int] | None) -> tuple["Reference", tuple[int, int]]:
    """`scenes` that no method was trained on, or the first `count` images of a folder; and the size to take them at.

    `resolution`: None = 64 px for scenes, and a folder's own size, which must be one."""
    if str(images) == "scenes":
        from hibench.references import ScenesReference

        size = resolution or (64, 64)
        return ScenesReference(0, count, resolution=size), size
    from hibench.references.folder import FolderReference

    folder = FolderReference(images, limit=count)
    own = resolution or folder.size
    if own is None:
        raise SpecError(f"--reconstruction: the images below {images} have several sizes; say one with --resolution")
    return folder, own


def reconstruct(method: str, source: "Reference", resolution: tuple[int, int], out: Path, *, device: str = "cpu",
                options: dict[str, Any] | None = None, batch: int = 16) -> tuple[Path, Path]:
    """Write out/originals and out/reconstructions, PNG files of equal names; returns both folders.

    A folder's images are cropped in their centre and box-downsampled to `resolution` first. Raises SpecError for a method
    without a first stage, AdapterError for a size that it cannot take."""
    from PIL import Image

    from hibench.registry import load_adapter

    name, weights = parse_method(method)
    adapter: Any = load_adapter(name)(weights, options or {}, device, "float32")
    if not hasattr(adapter, "reconstruct"):
        raise SpecError(f"method '{name}' has no first stage that reconstructs images (no `reconstruct`); ldm, infd and the "
                        "diffusers methods have one")
    folders = out / "originals", out / "reconstructions"
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    adapter.load()
    done, told = 0, time.monotonic()
    try:
        for images in source.images(resolution, batch=batch, device=device):
            for folder, pixels in zip(folders, (images, adapter.reconstruct(images))):
                for k, picture in enumerate(pixels.permute(0, 2, 3, 1).cpu().numpy()):
                    Image.fromarray(picture).save(folder / f"{done + k:06d}.png", compress_level=1)
            done += len(images)
            if time.monotonic() - told > 10:
                told = time.monotonic()
                print(f"{name}: reconstructed {done}/{len(source)}", file=sys.stderr, flush=True)
    finally:
        adapter.close()
    return folders


def score_reconstruction(images: str | Path, method: str, count: int, resolution: tuple[int, int] | None, *, device: str,
                         metrics: list[str] | None = None, **score: Any) -> int:
    """Reconstruct, score against the originals and print; the pictures are temporary. Returns the exit code of `run_score`."""
    import tempfile

    from hibench.job import resolve_device
    from hibench.score import run_score

    source, size = open_images(images, count, resolution)
    with tempfile.TemporaryDirectory(prefix="hibench-reconstruction-") as folder:
        before, after = reconstruct(method, source, size, Path(folder), device=resolve_device(device))
        return run_score(after, before, metrics=metrics or METRICS, device=device, **score)
