"""Drift: images of fixed seeds against golden images: largest pixel, PSNR, LPIPS, and the distance that scenes-clip sees.

A wrong scheduler step, dtype or resize changes every image at once, long before a Fréchet distance over a thousand can tell.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hibench.errors import HibenchError, NoBaseline
from hibench.weights import sha256_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["SEEDS", "Distance", "Golden", "compare", "pixel_distance", "read_image"]

SEEDS = 8                                      # images of a drift cell


@dataclass(frozen=True)
class Distance:
    """The largest distance over all seeds; None where the network that it needs has no weights here."""

    max_pixel: float                           # of 1 = the full range
    psnr_db: float                             # the smallest; inf = identical
    clip: float | None = None                  # 1 - cosine of scenes-clip embeddings
    lpips: float | None = None                 # AlexNet, at native size
    seed: int | None = None                    # of the worst image

    @property
    def perceptual(self) -> float | None:
        """The larger of what the networks see."""
        known = [value for value in (self.clip, self.lpips) if value is not None]
        return max(known) if known else None

    def text(self) -> str:
        """All distances in one line."""
        if self.max_pixel == 0:
            return "identical"
        parts = [f"largest pixel {round(255 * self.max_pixel)}/255", f"PSNR {self.psnr_db:.1f} dB"]
        parts += [f"scenes-clip {self.clip:.4f}"] if self.clip is not None else []
        parts += [f"LPIPS {self.lpips:.4f}"] if self.lpips is not None else []
        return ", ".join(parts) + (f" (seed {self.seed})" if self.seed is not None else "")


def read_image(path: Path) -> "NDArray[np.uint8]":
    """An image file as uint8 [H, W, 3]; HibenchError names a file that cannot be read."""
    import numpy as np
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError:
        raise HibenchError(f"{path}: there is no such image") from None
    except (OSError, ValueError, SyntaxError) as error:
        raise HibenchError(f"{path}: is no readable image ({' '.join(str(error).split())})") from error


def pixel_distance(golden: "NDArray[np.uint8]", image: "NDArray[np.uint8]") -> tuple[float, float]:
    """Largest absolute difference (of 1) and PSNR in dB of two images uint8 [H, W, 3]; (1, 0) where the sizes differ."""
    import numpy as np

    if golden.shape != image.shape:
        return 1.0, 0.0
    difference = (golden.astype(np.float64) - image.astype(np.float64)) / 255
    mse = float((difference**2).mean())
    return float(np.abs(difference).max()), math.inf if mse == 0 else -10 * math.log10(mse)


def compare(golden: Mapping[int, Path], images: Mapping[int, Path], networks: bool = True) -> Distance:
    """The largest distances over the seeds of `golden` to the images of the same seeds; NoBaseline when one is not there.

    `networks` False leaves scenes-clip and LPIPS out; identical images need neither.
    """
    absent = sorted(set(golden) - set(images))
    if not golden:
        raise NoBaseline("there are no golden images; write the baseline anew")
    if absent:
        raise NoBaseline(f"there is no image of seed {absent[0]}; run the cell again")
    pairs = {seed: (read_image(golden[seed]), read_image(images[seed])) for seed in sorted(golden)}
    found = {seed: pixel_distance(*pair) for seed, pair in pairs.items()}
    worst = max(found, key=lambda seed: (found[seed][0], -found[seed][1]))
    pixel, psnr = max(p for p, _ in found.values()), min(d for _, d in found.values())
    differ = [pair for pair in pairs.values() if pair[0].shape == pair[1].shape and (pair[0] != pair[1]).any()]
    if not differ or not networks:
        return Distance(pixel, psnr, seed=worst if pixel else None)
    return Distance(pixel, psnr, _clip(differ), _lpips(differ), worst)


def _tensors(pairs: Sequence[Any], side: int) -> list[Any]:
    import torch

    return [torch.from_numpy(pair[side].copy()).permute(2, 0, 1)[None] for pair in pairs]


def _clip(pairs: Sequence[Any]) -> float | None:
    """Largest 1 - cosine of scenes-clip embeddings; None without its weights."""
    import torch

    from hibench import scenes_clip
    from hibench.errors import MissingWeights

    try:
        model = scenes_clip.load("cpu")
    except MissingWeights:
        return None
    with torch.no_grad():
        found = [1 - float(torch.nn.functional.cosine_similarity(model.encode_image(a).float(), model.encode_image(b).float()))
                 for a, b in zip(_tensors(pairs, 0), _tensors(pairs, 1))]
    return max(0.0, *found)


def _lpips(pairs: Sequence[Any]) -> float | None:
    """Largest LPIPS (AlexNet) of the pairs; None unless the weights of AlexNet are on this machine: nothing is downloaded."""
    import torch

    hub = Path(os.environ.get("TORCH_HOME", Path.home() / ".cache" / "torch")) / "hub" / "checkpoints"
    if not any(hub.glob("alexnet-*.pth")):
        return None
    import lpips

    model = lpips.LPIPS(net="alex", verbose=False).eval()
    with torch.no_grad():
        found = [float(model(a.float() / 127.5 - 1, b.float() / 127.5 - 1))
                 for a, b in zip(_tensors(pairs, 0), _tensors(pairs, 1)) if min(a.shape[-2:]) >= 32]
    return max(found) if found else None


@dataclass(frozen=True)
class Golden:
    """A folder of golden images, each named by the SHA-256 of its bytes."""

    folder: Path

    def path(self, digest: str) -> Path:
        """Where an image lies; NoBaseline when it is not there or is not what its name says."""
        path = self.folder / f"{digest}.png"
        if not path.is_file():
            raise NoBaseline(f"golden image {path} is not there; restore it, or write the baseline anew")
        if sha256_of(path) != digest:
            raise NoBaseline(f"golden image {path} is damaged: its content has another SHA-256; restore it")
        return path

    def add(self, image: Path) -> str:
        """Keep an image; returns its digest."""
        digest = sha256_of(image)
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / f"{digest}.png").exists():
            shutil.copyfile(image, self.folder / f"{digest}.png")
        return digest

    def prune(self, used: set[str]) -> None:
        """Remove the images that no baseline in the folder above uses any more."""
        for path in self.folder.glob("*.png"):
            if path.stem not in used:
                path.unlink()
