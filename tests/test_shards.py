"""Shards of features: float32 with checksums, whole or not there, merged in little memory and in any order."""

from __future__ import annotations

import errno
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from hibench.errors import SpecError
from hibench.metrics.shards import merge_shards, write_shard
from hibench.worker import shard_lacks

WIDE = 256


def shard(folder: Path, first: int, count: int = 4, width: int = WIDE, **more: object) -> Path:
    features = np.random.default_rng(first).random((count, width))
    path = folder / f"shard-{first}-{count}.npz"
    write_shard(path, {"x/embed": features, "x/logits": features[:, :3], "seeds": np.arange(first, first + count),
                       "missing": np.array([], dtype=str), "bad_nan": 1, "bad_constant": 0, **more})
    return path


def test_features_are_stored_as_float32_and_the_rest_as_it_is(tmp_path):
    with np.load(shard(tmp_path, 0)) as file:
        assert file["x/embed"].dtype == file["x/logits"].dtype == np.float32
        assert file["seeds"].dtype == np.int64
    assert [path.name for path in tmp_path.iterdir()] == ["shard-0-4.npz"]


def test_shards_merge_in_any_order_to_what_they_hold(tmp_path):
    paths = [shard(tmp_path, first, count) for first, count in ((4, 4), (0, 4), (8, 2))]
    merged = merge_shards(paths)
    assert (merged.n, merged.seeds, merged.bad) == (10, list(range(10)), {"nan": 3, "constant": 0})
    want = np.concatenate([np.random.default_rng(first).random((count, WIDE)) for first, count in ((0, 4), (4, 4), (8, 2))])
    assert np.array_equal(merged.arrays["x/embed"], want.astype(np.float32))
    assert merged.arrays["x/logits"].shape == (10, 3)


def test_shards_of_float64_are_merged_to_float32(tmp_path):
    values = np.random.default_rng(0).random((2, 3))
    np.savez(tmp_path / "old.npz", seeds=np.arange(2), **{"x/embed": values})
    merged = merge_shards([tmp_path / "old.npz"]).arrays["x/embed"]
    assert merged.dtype == np.float32
    assert np.array_equal(merged, values.astype(np.float32))


def test_merging_holds_the_features_once(tmp_path):
    paths = [shard(tmp_path, 64 * at, 64, 1024) for at in range(40)]
    features = 40 * 64 * 1027 * 4
    tracemalloc.start()
    try:
        assert merge_shards(paths).n == 2560
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert features < peak < 1.25 * features


@pytest.mark.parametrize("damage", ["a bit", "the end"])
def test_a_damaged_shard_is_named(tmp_path, damage):
    paths = [shard(tmp_path, 0), shard(tmp_path, 4)]
    data = bytearray(paths[1].read_bytes())
    if damage == "a bit":
        data[len(data) // 4] ^= 1                                           # within the features: only the checksum tells
    else:
        del data[len(data) // 2:]
    paths[1].write_bytes(data)
    with pytest.raises(SpecError, match=r"shard-4-4\.npz: not a readable shard of features .*delete it and run again"):
        merge_shards(paths)


def test_a_shard_whose_features_do_not_match_its_seeds_is_named(tmp_path):
    paths = [shard(tmp_path, 0), shard(tmp_path, 4, **{"x/embed": np.zeros((3, WIDE))})]
    with pytest.raises(SpecError, match=r"shard-4-4\.npz: 'x/embed' has shape \[3, 256\], not \[4, 256\]"):
        merge_shards(paths)
    with pytest.raises(SpecError, match=r"has shape \[4, 8\], not \[4, 256\]"):
        merge_shards([paths[0], shard(tmp_path, 8, width=8)])


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("where", ["os.replace", "numpy.savez"])
def test_where_a_shard_cannot_be_written_the_earlier_one_stays_and_no_half_is_left(tmp_path, monkeypatch, code, where):
    path = shard(tmp_path, 0)
    before = path.read_bytes()

    def refuse(*args, **kwargs):
        raise OSError(code, "refused")

    monkeypatch.setattr(where, refuse)
    with pytest.raises(OSError, match="refused"):
        shard(tmp_path, 0, bad_nan=2)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [other.name for other in tmp_path.iterdir()] == [path.name]
    assert shard_lacks(path, 0, 4) == set()
