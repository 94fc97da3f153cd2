"""Features of a reference and the Gaussians fitted to them, kept by content: made once per machine."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hibench.extractors.contract import Extractor
from hibench.extractors.passes import Collector
from hibench.weights import cache_directory

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hibench.references import Reference

__all__ = ["CACHE_VERSION", "cache_key", "fit_paths", "keep", "reference_features"]

CACHE_VERSION = 1  # raise whenever an extractor computes something else


def cache_key(reference: "Reference", extractor: Extractor, resolution: tuple[int, int] | None) -> str:
    """What reference features depend on: content, resolution, network, weights, resize or crop rule (part of the name),
    version."""
    parts = [
        CACHE_VERSION,
        reference.digest,
        len(reference),
        list(resolution) if resolution else None,
        extractor.name,
        extractor.weights_sha256,
        extractor.resize,
        sorted(extractor.outputs.items()),
        "float32",
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def fit_paths(
    reference: "Reference",
    extractors: Iterable[Extractor],
    resolution: tuple[int, int] | None = None,
    cache: str | Path | None = None,
) -> dict[str, Path]:
    """Where the Gaussians fitted to a reference's features are kept, beside the features: {"NAME/layer": file}."""
    folder = Path(cache or cache_directory()) / "features"
    return {
        f"{extractor.name}/{layer}": folder / f"{cache_key(reference, extractor, resolution)}.{layer}.fit.npz"
        for extractor in extractors
        for layer in extractor.outputs
    }


def reference_features(
    reference: "Reference",
    extractors: Iterable[Extractor],
    resolution: tuple[int, int] | None = None,
    cache: str | Path | None = None,
    batch: int = 32,
    device: str = "cpu",
) -> "dict[str, NDArray[np.float32]]":
    """Features of a whole reference, one pass for all extractors that are not cached; {"NAME/layer": float32 [N, ...]}.

    `cache`: a directory (None = HIBENCH_CACHE). Entries are keyed by content and never go stale; a damaged one is made again.
    """
    folder = Path(cache or cache_directory()) / "features"
    out: dict[str, NDArray[np.float32]] = {}
    todo: list[tuple[Extractor, Path]] = []
    for extractor in extractors:
        path = folder / f"{cache_key(reference, extractor, resolution)}.npz"
        held = _read(path)
        if held is None:
            todo.append((extractor, path))
        else:
            out.update({f"{extractor.name}/{layer}": values for layer, values in held.items()})
    if todo:
        collector = Collector([e for e, _ in todo], batch)
        for images in reference.images(resolution, batch=batch, device=device):
            collector.add(images)
        fresh = collector.finish()
        for extractor, path in todo:
            keep(path, {k.rpartition("/")[2]: v for k, v in fresh.items() if k.rpartition("/")[0] == extractor.name})
        out.update(fresh)
    return out


def keep(path: Path, arrays: "Mapping[str, Any]") -> None:
    """Write arrays aside and publish them by one rename; a cache that cannot be written costs time and no number: it warns."""
    import numpy as np

    part = path.with_name(f"{path.stem}.{os.getpid()}.part.npz")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            np.savez(part, **arrays)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        warnings.warn(
            f"{path.parent}: features of the reference cannot be kept ({error}) and will be computed again; "
            "set HIBENCH_CACHE to a directory with room that can be written",
            stacklevel=2,
        )


def _read(path: Path) -> "dict[str, NDArray[np.float32]] | None":
    import zipfile

    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as file:
            return {k: file[k] for k in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None
