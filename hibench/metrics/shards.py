"""Features of a quality cell in shards on disk: float32 with a checksum per array, merged shard by shard into one array."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hibench.errors import SpecError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hibench.metrics.sets import FeatureSet, ScalePairs

__all__ = ["merge_shards", "write_shard"]

SEEDS = "seeds"


def write_shard(path: Path, arrays: Mapping[str, Any]) -> None:
    """Store a shard: `NAME/layer` are features and become float32, the rest stays as it is; it appears when it is whole.

    The file is an uncompressed npz, which carries a CRC-32 of every array; whoever reads an array to its end compares it.
    Raises OSError where the disk is full or read-only (by which the runner stops the run); nothing of the shard is left then.
    """
    import numpy as np

    stored: dict[str, Any] = {name: np.asarray(value, np.float32) if "/" in name else value for name, value in arrays.items()}
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("wb") as file:
            np.savez(file, **stored)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def merge_shards(paths: Sequence[str | Path]) -> FeatureSet:
    """The features of all shards in the order of their seeds, float32; in memory are these and one array of one shard.

    Raises SpecError for a shard that cannot be read or whose checksum is wrong, and for shards that do not fit together.
    """
    import numpy as np

    from hibench.metrics.sets import FeatureSet

    if not paths:
        raise SpecError("no shard of features; generate the samples first")
    heads = [_head(Path(path)) for path in paths]
    if all(SEEDS in small for _, small, _ in heads):
        heads.sort(key=lambda head: int(head[1][SEEDS][0]))
    keys = list(heads[0][2])
    lacking = [key for _, _, there in heads for key in keys if key not in there]
    if lacking:
        raise SpecError(f"shards hold different features, '{lacking[0]}' is not in all of them; delete them and run again")
    counts = [len(small[SEEDS]) if SEEDS in small else next(iter(there.values()))[0] for _, small, there in heads]
    arrays = {key: _merged(key, heads, counts) for key in keys}
    smalls = [small for _, small, _ in heads]
    seeds = np.concatenate([small[SEEDS] for small in smalls]).tolist() if SEEDS in smalls[0] else list(range(sum(counts)))
    bad = {short: sum(int(small.get(f"bad_{short}", 0)) for small in smalls) for short in ("nan", "constant")}
    return FeatureSet(arrays, sum(counts), bad=bad, seeds=seeds, scales=_scale_pairs(smalls))


Head = tuple[Path, dict[str, Any], dict[str, tuple[int, ...]]]


def _head(path: Path) -> Head:
    """What a shard holds beside its features, and the shapes of those, which are not read."""
    with _opened(path) as file:
        small = {name: file[name] for name in file.files if "/" not in name}
        return path, small, {name: _shape(file, name) for name in file.files if "/" in name}


def _shape(file: Any, name: str) -> tuple[int, ...]:
    """The shape of a stored array, from its header."""
    from numpy.lib import format as npy

    with file.zip.open(f"{name}.npy") as member:
        version = npy.read_magic(member)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape: tuple[int, ...] = read(member)[0]
        return shape


def _merged(key: str, heads: Sequence[Head], counts: Sequence[int]) -> NDArray[np.float32]:
    """One feature of all shards, float32 [N, ...]."""
    import numpy as np

    whole = np.empty((sum(counts), *heads[0][2][key][1:]), np.float32)
    start = 0
    for (path, _, shapes), count in zip(heads, counts):
        if shapes[key] != (count, *whole.shape[1:]):
            raise SpecError(f"{path}: '{key}' has shape {list(shapes[key])}, not {[count, *whole.shape[1:]]}; delete it and "
                            "run again")
        with _opened(path) as file:
            whole[start : start + count] = file[key]
        start += count
    return whole


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A shard; SpecError where it cannot be read."""
    import numpy as np

    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            yield file
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        why = " ".join(str(error).split())
        raise SpecError(f"{path}: not a readable shard of features ({why}); delete it and run again") from error


def _scale_pairs(shards: Sequence[Mapping[str, Any]]) -> dict[int, ScalePairs]:
    """The pairs of all shards, by factor."""
    import numpy as np

    from hibench.metrics.sets import ScalePairs

    names = {k for s in shards for k in s if k.startswith("scale") and k[5:].isdigit()}
    out = {}
    for name in sorted(names):
        mine = [s for s in shards if name in s]
        reasons = [next((str(s[f"{name}:{kind}"]) for s in mine if str(s[f"{name}:{kind}"])), "")
                   for kind in ("inapplicable", "failed")]
        out[int(name[5:])] = ScalePairs(*np.concatenate([s[name] for s in mine]).T, *reasons)
    return out
