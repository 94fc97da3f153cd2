"""The index of records: what it gives is what the files say, whatever has happened to them, and to it, in between."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import weakref
from pathlib import Path

import pytest

from hibench import record_index as module
from hibench import rows
from hibench.errors import HibenchError
from hibench.store import Store, write_json

ENV = {"hardware": {"cpu": "x"}, "hardware_digest": "h", "software_digest": "s"}


def record(id: str, **changes) -> dict:
    return {"schema": 1, "id": id, "key": f"toy/speed/{id}", "kind": "speed", "status": "ok", "method": {"name": "toy"},
            "axes": {"height": 1, "width": 1}, "env": dict(ENV), "wall_s": 0.1, **changes}


def put(root: Path, id: str, **changes) -> Path:
    folder = root / "cells" / id[:2] / id
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "record.json", record(id, **changes), durable=False)
    return folder / "record.json"


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A directory of 40 cells whose index is written as soon as one record is new."""
    monkeypatch.setenv("HIBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "FEWEST", 0)
    root = tmp_path / "results"
    for number in range(40):
        put(root, f"{number % 4:02}{number:02}")
    return root


def read_count(monkeypatch) -> list[str]:
    """Paths of the files that are read from now on."""
    read, real = [], module._content
    monkeypatch.setattr(module, "_content", lambda path: (read.append(path), real(path))[1])
    return read


class Knot:
    """An object that can be watched, in a cycle."""

    def __init__(self, knot: list) -> None:
        self.knot = knot
        knot.append(self)


def ids(root: Path) -> list[str]:
    return [one["id"] for one in Store(root).records()[0]]


def test_the_index_gives_what_the_files_say_without_reading_them(results, monkeypatch):
    first, problems = Store(results).records()
    assert problems == []
    assert [one["key"] for one in first] == sorted(f"toy/speed/{number % 4:02}{number:02}" for number in range(40))
    read = read_count(monkeypatch)
    assert Store(results).records() == (first, [])
    assert read == []
    assert module.index_file(results).stat().st_mode & 0o077 == 0


def test_few_records_get_no_index(results, monkeypatch):
    monkeypatch.setattr(module, "FEWEST", 40)
    assert len(ids(results)) == 40
    assert not module.index_file(results).exists()


def test_a_published_cell_an_edited_one_and_a_removed_one_are_seen(results):
    ids(results)
    store = Store(results)
    store.create()
    store.staging("9999")
    store.publish("9999", record("9999"))
    path = results / "cells" / "01" / "0105" / "record.json"
    before = path.stat()
    path.write_text(path.read_text().replace('"ok"', '"ko"'))                # as long as before, and dated back
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    shutil.rmtree(results / "cells" / "02" / "0206")
    found = {one["id"]: one for one in store.records()[0]}
    assert len(found) == 40
    assert found["9999"] == record("9999")
    assert found["0105"]["status"] == "ko"
    assert "0206" not in found


def test_two_cells_that_change_places_are_not_mixed_up(results):
    ids(results)
    one, two = (results / "cells" / "00" / id / "record.json" for id in ("0000", "0004"))
    aside = one.with_name("aside")
    one.rename(aside)
    two.rename(one)
    aside.rename(two)
    found, problems = Store(results).records()
    assert len(found) == 38
    assert len(problems) == 2
    assert "it says id 0004, its folder 0000" in problems[0]


def test_a_copy_is_read_from_its_own_files(results, tmp_path):
    ids(results)
    copy = tmp_path / "copy"
    shutil.copytree(results, copy)                                          # with the times of the original
    put(copy, "0000", status="died")
    assert Store(copy).records()[0][0]["status"] == "died"
    assert Store(results).records()[0][0]["status"] == "ok"
    shutil.rmtree(results)
    copy.rename(results)                                                    # under the name that has an index
    assert Store(results).records()[0][0]["status"] == "died"


@pytest.mark.parametrize("damage", [
    lambda data: data[:-1],
    lambda data: data[:-9] + b"!" + data[-8:],
    lambda data: b"",
    lambda data: data.replace(b'"marshal"', b'"marshaL"'),
    lambda data: data.replace(b"results", b"resultz"),
])
def test_a_damaged_or_foreign_index_is_not_believed(results, damage):
    want = ids(results)
    path = module.index_file(results)
    path.write_bytes(damage(path.read_bytes()))
    assert module._Index.read(results).stamps == {}
    assert ids(results) == want
    assert len(module._Index.read(results).stamps) == 40                           # it is written again


def test_an_index_of_another_user_is_not_believed(results, monkeypatch):
    ids(results)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert module._Index.read(results).stamps == {}


def test_where_no_index_can_be_written_the_files_are_read(results, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    assert len(ids(results)) == 40
    assert len(ids(results)) == 40
    assert list(module.index_file(results).parent.iterdir()) == []


def test_without_a_home_there_is_no_index(results, monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("HIBENCH_CACHE")
    monkeypatch.setattr(Path, "home", homeless)
    assert len(ids(results)) == 40
    assert len(ids(results)) == 40


def test_the_indexes_of_directories_that_are_gone_go_too(results, tmp_path):
    put(tmp_path / "other", "0000")
    ids(tmp_path / "other")
    ids(results)
    assert module.index_file(tmp_path / "other").exists()
    shutil.rmtree(tmp_path / "other")
    put(results, "9999")
    put(results, "9998")
    put(results, "9997")
    ids(results)
    assert [path.name for path in module.index_file(results).parent.iterdir()] == [module.index_file(results).name]


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"schema": 1}', b'{"half', b"\xff\xfe", b'{"schema": 1}, {"schema": 1}'])
def test_one_damaged_record_is_named_and_its_neighbours_are_there(results, content):
    path = results / "cells" / "00" / "0004" / "record.json"
    path.write_bytes(content)
    (results / "cells" / "01" / "0101" / "record.json").unlink()
    for _ in range(2):                                                      # the second time with an index
        found, problems = Store(results).records()
        assert len(found) == 38
        assert len(problems) == 2
        assert str(path) in problems[0]
        assert "is corrupt" in problems[0]
        assert "is not there" in problems[1]


def test_what_is_made_of_records_has_an_index_of_its_own_by_version(results):
    made = []

    def small(one):
        made.append(one["id"])
        return {"key": one["key"], "id": one["id"], "size": (1, 2), "_env": one["env"]}

    first, _ = module.load_records(results, small, "1")
    assert len(made) == 40
    assert first[0] == {"key": "toy/speed/0000", "id": "0000", "size": (1, 2), "_env": ENV}
    assert module.load_records(results, small, "1") == (first, [])
    assert len(made) == 40
    put(results, "0000", status="died")
    module.load_records(results, small, "1")
    assert made[40:] == ["0000"]
    module.load_records(results, small, "2")                                # other code: everything is made again
    assert len(made) == 81
    assert Store(results).records()[0][0]["status"] == "died"
    assert {path.name for path in module.index_file(results).parent.iterdir()} == {
        module.index_file(results).name, module.index_file(results, "small").name}


def test_two_functions_do_not_take_each_others_dicts(results):
    def one(record):
        return {"key": record["key"], "id": record["id"], "by": "one"}

    def other(record):
        return {"key": record["key"], "id": record["id"], "by": "other"}

    for _ in range(2):                                                      # of one version, without and with their indexes
        for take in (one, other):
            assert {made["by"] for made in module.load_records(results, take, "1")[0]} == {take.__name__}


def test_equal_strings_become_one_object_and_nothing_else_changes():
    values = {"a": "".join(["x y", " z"]), "b": ["q"], "c": None, "d": 1.5, "e": "".join(["x", " y z"])}
    made = module.interned(values)
    assert made == values
    assert list(made) == list(values)
    assert made["a"] is made["e"]
    assert made["b"] is values["b"]


def test_rows_from_the_index_are_those_from_the_records(results):
    fresh, _ = rows.load_rows(results)
    assert module.index_file(results, "flatten").exists()
    assert rows.load_rows(results) == (fresh, [])
    assert [row["key"] for row in fresh] == [one["key"] for one in Store(results).records()[0]]


def test_a_newer_schema_is_refused_with_and_without_an_index(results):
    ids(results)
    put(results, "0000", schema=99)
    with pytest.raises(HibenchError, match="record of schema 99"):
        ids(results)


def test_equal_environments_are_one_object_and_different_ones_are_not(results):
    put(results, "0000", env={**ENV, "hardware": {"cpu": "y"}})              # the same digest, and yet another
    for _ in range(2):
        found = Store(results).records()[0]
        assert found[0]["env"]["hardware"] == {"cpu": "y"}
        assert found[1]["env"] is found[2]["env"]
        assert found[1]["env"] == ENV


def test_the_collector_is_left_as_it_was():
    assert gc.isenabled()
    with contextlib.suppress(KeyError), module.without_collector():
        assert not gc.isenabled()
        raise KeyError
    assert gc.isenabled()
    gc.disable()
    try:
        with module.without_collector():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_reading_records_freezes_nothing(results):
    gc.unfreeze()
    for _ in range(2):                                                      # without and with an index
        kept = Store(results).records()
        assert gc.isenabled()
        assert gc.get_freeze_count() == 0
    assert len(kept[0]) == 40


def test_what_was_made_without_the_collector_counts_as_old_and_is_collected_later():
    gc.unfreeze()
    gc.collect()
    with module.without_collector():
        knot = [[] for _ in range(1000)]
        knot.append(knot)
        assert any(one is knot for one in gc.get_objects(generation=0))
    assert any(one is knot for one in gc.get_objects(generation=2))
    watched = weakref.ref(Knot(knot))
    del knot
    gc.collect()
    assert watched() is None


def test_objects_that_somebody_froze_stay_frozen():
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    try:
        before = gc.get_freeze_count()
        with module.without_collector():
            made = [[] for _ in range(100)]
        assert gc.get_freeze_count() <= before                              # nothing of ours went there
        assert gc.get_freeze_count() > before - 100
        assert len(made) == 100
    finally:
        gc.unfreeze()


def test_no_records_is_an_empty_list(tmp_path):
    assert Store(tmp_path / "nowhere").records() == ([], [])
