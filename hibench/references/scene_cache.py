"""Scenes rendered ahead: a memory-mapped file of uint8 images that training reads instead of rendering again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hibench.references import scenes
from hibench.weights import cache_directory

__all__ = ["TRAINING_SEED", "about", "cache_directory", "rendered", "say"]

TRAINING_SEED = 10**9  # training uses seeds from here on; samples and references use smaller ones
_CHUNK = 500


def rendered(
    count: int,
    resolution: int,
    first_seed: int = TRAINING_SEED,
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.uint8]:
    """Scenes first_seed … first_seed + count − 1 as a read-only uint8 array [count, 3, R, R] on disk.

    Rendering is resumed where an interrupted call stopped; `progress(done, count)` is told after every 500 images.
    """
    folder = (cache or cache_directory()) / "scenes" / scenes.digest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    path = next(
        (found for found, done in _files(folder, first_seed, resolution) if done >= count),
        folder / f"{first_seed}+{count}@{resolution}.u8",
    )
    mark = path.with_suffix(".done")
    total = int(path.stem.partition("+")[2].partition("@")[0])
    done = int(mark.read_text()) if mark.exists() and path.exists() else 0
    if done < count:
        begun = path.exists() and path.stat().st_size == count * 3 * resolution**2
        images = np.memmap(path, np.uint8, "r+" if begun else "w+", shape=(count, 3, resolution, resolution))
        done = done if begun else 0
        while done < count:
            end = min(done + _CHUNK, count)
            images[done:end] = scenes.render(range(first_seed + done, first_seed + end), resolution).numpy()
            images.flush()
            mark.write_text(str(end))
            done = end
            if progress:
                progress(done, count)
    return np.memmap(path, np.uint8, "r", shape=(total, 3, resolution, resolution))[:count]


def about(count: int, resolution: int) -> str:
    """What training.json says of `count` training scenes: version, seeds and resolution in px."""
    return f"scenes v{scenes.VERSION}, seeds {TRAINING_SEED}+{count}, {resolution} px"


def say(done: int, total: int) -> None:
    """Progress for people: a line every 5000 scenes."""
    if done % 5000 == 0 or done == total:
        print(f"scenes: rendered {done}/{total}", flush=True)


def _files(folder: Path, first_seed: int, resolution: int) -> Iterator[tuple[Path, int]]:
    """Files of these scenes that are there, and how many images of each are rendered."""
    for path in sorted(folder.glob(f"{first_seed}+*@{resolution}.u8")):
        mark = path.with_suffix(".done")
        yield path, int(mark.read_text()) if mark.exists() else 0
