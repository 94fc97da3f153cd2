"""How much a method's first stage keeps: images through its encoder and decoder, beside the images (LDM's Table 8)."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hibench.errors import MissingWeights, SpecError

if TYPE_CHECKING:
    import torch

    from hibench.metrics.pair_scores import PairScore
    from hibench.references import Reference

__all__ = ["METRICS", "absent_pairs", "no_first_stage", "open_images", "originals", "pair_arrays", "parse_method",
           "reconstruct", "score_reconstruction"]

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


def no_first_stage(adapter: Any) -> str | None:
    """Why a method reconstructs no images; None = it does."""
    if callable(getattr(adapter, "reconstruct", None)):
        return None
    return (f"{adapter.name} has no first stage that reconstructs images (no `reconstruct`); ldm, infd and the diffusers "
            "methods have one")


# -- quality cells with `reconstruct: true` ----------------------------------------------------------------------------


def originals(settings: Mapping[str, Any], resolution: tuple[int, int], seeds: Sequence[int], first_seed: int,
              device: str) -> "torch.Tensor":
    """The images of the cell's reference that stand for these seeds, the first seed for the first: uint8 [B, 3, H, W].

    Raises SpecError where the reference has fewer images than the cell asks for.
    """
    import torch

    from hibench.references import open_reference

    source = open_reference(settings["reference"], resolution, int(settings["images"]))
    first = min(seeds) - first_seed
    if first + len(seeds) > len(source):
        raise SpecError(f"reconstruct: reference {source.name} has {len(source)} images, and {settings['images']} are asked "
                        "for; ask for fewer, or give a larger one")
    return torch.cat(list(source.images(resolution, first, len(seeds), len(seeds), device)))


def pair_arrays(metrics: Sequence[str], images: "torch.Tensor", truth: "torch.Tensor", absent: Iterable[str],
                device: str) -> dict[str, Any]:
    """What a shard stores of each pair metric, float64 [B] as `pairs/NAME`; those in `absent` lack their network."""
    import numpy as np

    arrays = {}
    for name, score in _pair_scores(metrics, set(absent), device).items():
        score.add(images, truth)
        arrays[f"pairs/{name}"] = np.array(score.values)
    return arrays


def absent_pairs(metrics: Sequence[str]) -> set[str]:
    """The pair metrics among these whose networks are not on this machine."""
    from hibench.metrics.plan import parse

    asked = {r.family.name for r in map(parse, metrics) if r.family.source == "pairs" and r.family.name != "scale-consistency"}
    absent = set()
    for name in asked:
        try:
            _pair_scores([name], set(), "cpu")
        except MissingWeights as error:
            print(f"{name} is missing: {error}", file=sys.stderr)
            absent.add(name)
    return absent


def _pair_scores(metrics: Sequence[str], absent: set[str], device: str) -> "dict[str, PairScore]":
    """Fresh collectors by the metric's name."""
    from hibench.metrics.pair_scores import PairScore
    from hibench.metrics.plan import parse

    families = {r.family.name: r.family for r in map(parse, metrics) if r.family.source == "pairs"}
    return {name: PairScore(family, device) for name, family in families.items()
            if name not in absent and name != "scale-consistency"}


def reconstruct(method: str, source: "Reference", resolution: tuple[int, int], out: Path, *, device: str = "cpu",
                options: dict[str, Any] | None = None, batch: int = 16) -> tuple[Path, Path]:
    """Write out/originals and out/reconstructions, PNG files of equal names; returns both folders.

    A folder's images are cropped in their centre and box-downsampled to `resolution` first. Raises SpecError for a method
    without a first stage, AdapterError for a size that it cannot take."""
    from PIL import Image

    from hibench.registry import load_adapter

    name, weights = parse_method(method)
    adapter: Any = load_adapter(name)(weights, options or {}, device, "float32")
    reason = no_first_stage(adapter)
    if reason is not None:
        raise SpecError(f"--reconstruction: {reason}")
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
