"""Merging results directories: everything arrives whole, nothing that contradicts or is damaged gets in."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from hibench import cli
from hibench import merge as module
from hibench.errors import SpecError
from hibench.merge import Conflict, run_merge
from hibench.store import Store
from hibench.weights import sha256_of


def record(id: str, kind: str = "speed", **changes) -> dict:
    return {
        "schema": 1,
        "id": id,
        "key": f"toy/{kind}/{id}",
        "kind": kind,
        "status": "ok",
        "method": {"name": "toy"},
        "axes": {"height": 1, "width": 1},
        "wall_s": 1.0,
        "speed": {"latency_p50_s": 0.5} if kind == "speed" else None,
        "quality": {"values": {"fd@x": {"value": 2.0}}, "samples": ["samples/0.png"]} if kind == "quality" else None,
        **changes,
    }


def add(store: Store, id: str, kind: str = "speed", **changes) -> Path:
    """A finished cell with its files."""
    store.create()
    folder = store.staging(id)
    (folder / "log.txt").write_text(f"log of {id}")
    if kind == "quality":
        (folder / "samples").mkdir()
        (folder / "samples" / "0.png").write_bytes(b"png")
        np.savez(folder / "shard-0-4.npz", seeds=np.arange(4), **{"x/embed": np.ones((4, 64), np.float32)})
    return store.publish(id, record(id, kind, **changes))


def tree(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != "lock"
    }


@pytest.fixture
def shards(tmp_path):
    """Two directories with a manifest each, three cells together, and one cell that both have."""
    first, second = Store(tmp_path / "a"), Store(tmp_path / "b")
    add(first, "aa01")
    add(first, "bb01", "quality")
    add(second, "cc01")
    add(second, "bb01", "quality", wall_s=9.0)
    for store in (first, second):
        store.write_manifest({"sweeps": {store.root.name: []}})
    return first, second


def test_cells_and_manifests_of_all_directories_arrive(shards, tmp_path, capsys):
    first, second = shards
    assert cli.main(["merge", str(first.root), str(second.root), "--out", str(tmp_path / "out")]) == 0
    assert "3 cells; 3 copied, 1 were there already or came twice, 2 manifests copied" in capsys.readouterr().out
    merged = tree(tmp_path / "out")
    for store in (second, first):  # of two equal results the first one stays
        cells = tree(store.root)
        assert {name: merged[name] for name in cells if not (store is second and "bb01" in name)} == {
            name: data for name, data in cells.items() if not (store is second and "bb01" in name)
        }
    assert os.listdir(tmp_path / "out" / "work") == []


def test_merging_again_changes_nothing_and_an_interrupted_merge_goes_on(shards, tmp_path, capsys, monkeypatch):
    sources, out = [store.root for store in shards], tmp_path / "out"
    real, copied = module._copy, []

    def stops(folder, *rest):
        copied.append(folder)
        if len(copied) == 2:
            shutil.copytree(folder, out / "work" / folder.name)  # half of a copy, and then `kill -9`
            raise KeyboardInterrupt
        real(folder, *rest)

    monkeypatch.setattr(module, "_copy", stops)
    with pytest.raises(KeyboardInterrupt):
        run_merge(sources, out)
    monkeypatch.setattr(module, "_copy", real)
    run_merge(sources, out)
    before = tree(out)
    run_merge(sources, out)
    assert "0 copied, 4 were there already or came twice, 0 manifests copied" in capsys.readouterr().out
    assert tree(out) == before
    assert [found["id"] for found in Store(out).records()[0]] == ["bb01", "aa01", "cc01"]


@pytest.mark.parametrize("kind", ["speed", "quality"])
def test_two_different_results_of_one_cell_are_refused_before_anything_is_copied(shards, tmp_path, kind):
    first, second = shards
    other = {"speed": {"latency_p50_s": 0.6}} if kind == "speed" else {"quality": {"values": {}, "samples": []}}
    add(first, "dd01", kind)
    add(second, "dd01", kind, **other)
    with pytest.raises(Conflict, match=f"nothing was merged: toy/{kind}/dd01 has two different results, in .* and .*"):
        run_merge([first.root, second.root], tmp_path / "out")
    assert list((tmp_path / "out" / "cells").iterdir()) == []


def test_a_good_record_takes_the_place_of_a_failed_one_and_not_the_other_way_round(shards, tmp_path):
    first, second = shards
    for good, bad, id in ((first, second, "e1"), (second, first, "e2")):
        add(good, id)
        add(bad, id, status="died", speed=None)
    run_merge([first.root, second.root], tmp_path / "out")
    merged = Store(tmp_path / "out")
    assert [merged.record(id)["status"] for id in ("e1", "e2")] == ["ok", "ok"]


def test_damaged_cells_are_named(shards, tmp_path):
    first, second = shards
    out = tmp_path / "out"

    def refused(text):
        with pytest.raises(Conflict, match=text):
            run_merge([first.root, second.root], out)

    cell = first.cell("bb01")
    shard, whole = cell / "shard-0-4.npz", (cell / "shard-0-4.npz").read_bytes()
    place = whole.index(np.ones(8, np.float32).tobytes())
    shard.write_bytes(whole[:place] + b"!" + whole[place + 1 :])  # one bit flips on the disk
    refused("shard-0-4.npz: is damaged|Bad CRC|cannot be read")
    shard.write_bytes(whole[:100])
    refused("shard-0-4.npz: cannot be read")
    shard.write_bytes(whole)
    (cell / "samples" / "0.png").unlink()
    refused("samples/0.png is not there")
    (cell / "samples" / "0.png").write_bytes(b"png")
    (second.cell("cc01") / "record.json").write_text('{"half')
    refused("record.json: is corrupt")
    (second.cell("cc01") / "record.json").write_text(json.dumps(record("cc01")))
    run_merge([first.root, second.root], out)


def test_images_of_drift_cells_are_compared_with_their_digests(tmp_path):
    store = Store(tmp_path / "a")
    store.create()
    folder = store.staging("ff01")
    (folder / "0.png").write_bytes(b"png")
    drift = {"samples": {"0": "0.png"}, "sha256": {"0": sha256_of(folder / "0.png")}}
    cell = store.publish("ff01", record("ff01", "drift", drift=drift))
    run_merge([store.root], tmp_path / "out")
    (cell / "0.png").write_bytes(b"gnp")
    with pytest.raises(Conflict, match=r"0\.png: is damaged"):
        run_merge([store.root], tmp_path / "out2")


def test_unfinished_cells_stay_where_they_are_and_are_told(shards, tmp_path, capsys):
    shards[0].staging("9999")
    run_merge([store.root for store in shards], tmp_path / "out")
    assert f"{shards[0].root}: 1 cells are unfinished" in capsys.readouterr().out


def test_what_is_no_results_directory_is_a_usage_error(tmp_path):
    with pytest.raises(SpecError, match=r"not a results directory: .*nowhere"):
        run_merge([tmp_path / "nowhere"], tmp_path / "out")
    Store(tmp_path / "out").create()
    with pytest.raises(SpecError, match="nothing to merge"):
        run_merge([tmp_path / "out"], tmp_path / "out")
    assert not (tmp_path / "nowhere").exists()


def test_a_full_disk_is_a_clean_stop(shards, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device", str(tmp_path))

    monkeypatch.setattr("shutil.copytree", full)
    with pytest.raises(module.HibenchError, match=r"cannot copy .*no space left on the device.*run again"):
        run_merge([shards[0].root], tmp_path / "out")
