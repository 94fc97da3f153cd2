"""The results directory: nothing half-written counts, nothing finished is lost, two runs do not collide."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys

import pytest

from hibench import store as store_module
from hibench.errors import HibenchError
from hibench.store import Corrupt, Store, finite, write_json


def record(id: str, **changes) -> dict:
    return {"schema": 1, "id": id, "key": f"toy/speed/{id}", "kind": "speed", "status": "ok", "method": {"name": "toy"},
            "axes": {"height": 1, "width": 1}, **changes}


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("HIBENCH_CACHE", str(tmp_path / "cache"))
    made = Store(tmp_path / "results")
    made.create()
    return made


def test_a_record_is_published_with_its_folder_and_read_back(store):
    (store.staging("ab12") / "log.txt").write_text("hello")
    folder = store.publish("ab12", record("ab12", wall_s=float("nan")))
    assert folder == store.root / "cells" / "ab" / "ab12"
    assert sorted(os.listdir(folder)) == ["log.txt", "record.json"]
    assert store.record("ab12") == record("ab12", wall_s=None)
    assert os.listdir(store.work) == []
    assert store.record("ab13") is None


def test_publishing_again_replaces_the_earlier_cell(store):
    (store.staging("ab12") / "old.txt").write_text("")
    store.publish("ab12", record("ab12", status="error"))
    (store.staging("ab12") / "new.txt").write_text("")
    folder = store.publish("ab12", record("ab12"))
    assert sorted(os.listdir(folder)) == ["new.txt", "record.json"]
    assert store.record("ab12")["status"] == "ok"
    assert os.listdir(store.work) == []


def test_reopening_keeps_what_was_made_and_no_record(store):
    (store.staging("ab12") / "shard-0-8.npz").write_text("features")
    store.publish("ab12", record("ab12", status="died"))
    folder = store.reopen("ab12")
    assert sorted(os.listdir(folder)) == ["previous.json", "shard-0-8.npz"]
    assert store.record("ab12") is None
    assert store.recover() == []


def fails_at(at, error):
    """Wraps functions, which count together: their n-th call raises `error(*args)`, every other is the real one."""
    calls = 0

    def instead(real):
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == at:
                raise error(*args)
            return real(*args, **kwargs)
        return call

    return instead


@pytest.mark.parametrize("stop_at", range(1, 6))
@pytest.mark.parametrize("again", [False, True])
def test_a_kill_at_any_point_of_publishing_loses_nothing(store, monkeypatch, stop_at, again):
    """The n-th call that changes the disk is the last one that the process makes."""
    if again:
        store.publish("ab12", record("ab12", status="error"))
    (store.staging("ab12") / "shard-0-8.npz").write_text("features")

    class Killed(BaseException):
        pass

    counted = fails_at(stop_at, lambda *_: Killed())
    with monkeypatch.context() as patch:
        for module, name in ((os, "replace"), (os, "rename"), (os, "fsync"), (store_module.shutil, "rmtree")):
            patch.setattr(module, name, counted(getattr(module, name)))
        with contextlib.suppress(Killed):
            store.publish("ab12", record("ab12"))
    fresh = Store(store.root)
    fresh.recover()
    there = fresh.record("ab12")
    staged = (fresh.work / "ab12" / "shard-0-8.npz").exists()
    assert there == record("ab12") or (staged and there == (record("ab12", status="error") if again else None))
    if there == record("ab12"):
        assert (fresh.cell("ab12") / "shard-0-8.npz").read_text() == "features"
    assert [name for name in os.listdir(fresh.work) if name.endswith(".old")] == []


def test_recovery_publishes_what_a_killed_run_had_finished(store):
    write_json(store.staging("ab12") / "record.json", record("ab12"))
    (store.staging("cd34") / "record.json").write_text('{"schema": 1, "id": "cd')
    said = store.recover()
    assert store.record("ab12") == record("ab12")
    assert any("toy/speed/ab12" in line for line in said)
    assert any("cd34/record.json: is corrupt" in line for line in said)
    assert store.record("cd34") is None
    assert (store.work / "cd34").is_dir()


@pytest.mark.parametrize(("content", "problem"), [
    (b"", "is corrupt"), (b'{"schema": 1, "id": "ab', "is corrupt"), (b"[]", "no JSON object"),
    (b'{"schema": 1}', "without id, key"), (json.dumps(record("ffff")).encode(), "says id ffff"),
    (b"\xff\xfe\x00", "is corrupt"), (None, "is not there"),
])
def test_a_corrupt_record_is_named(store, content, problem):
    store.publish("ab12", record("ab12"))
    path = store.cell("ab12") / "record.json"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(Corrupt, match=problem) as caught:
        store.record("ab12")
    assert str(path) in str(caught.value)
    store.publish("cd34", record("cd34"))
    found, problems = store.records()
    assert [one["id"] for one in found] == ["cd34"]
    assert len(problems) == 1
    assert str(path) in problems[0]


def test_a_newer_schema_is_refused(store):
    store.publish("ab12", record("ab12", schema=2))
    with pytest.raises(HibenchError, match="schema 2, and this hibench reads 1; update hibench") as caught:
        store.records()
    assert not isinstance(caught.value, Corrupt)


def test_thousands_of_records_are_all_there_in_order(store):
    for number in range(2000):
        id = f"{number:016x}"[::-1]
        folder = store.cell(id)
        folder.mkdir(parents=True)
        (folder / "record.json").write_text(json.dumps(record(id, samples=[0.125] * 100)))
    found, problems = store.records()
    assert (len(found), problems) == (2000, [])
    assert [one["key"] for one in found] == sorted(one["key"] for one in found)


def test_a_full_disk_is_a_clean_stop(store, monkeypatch):
    (store.staging("ab12") / "shard-0-8.npz").write_text("features")
    os.symlink("/dev/full", store.work / "ab12" / ".record.json.tmp")          # the real error of a full disk
    with pytest.raises(HibenchError, match=r"cannot write .*no space left on the device.*is kept") as caught:
        store.publish("ab12", record("ab12"))
    assert caught.value.exit_code == 3
    assert os.listdir(store.work / "ab12") == ["shard-0-8.npz"]
    store.publish("ab12", record("ab12"))
    assert (store.cell("ab12") / "shard-0-8.npz").exists()


@pytest.mark.parametrize(("number", "text"), [(errno.EROFS, "read-only"), (errno.EDQUOT, "quota"),
                                              (errno.EACCES, "permission")])
def test_a_place_that_cannot_be_written_is_a_clean_stop(tmp_path, monkeypatch, number, text):
    def refuse(*args, **kwargs):
        raise OSError(number, os.strerror(number), str(tmp_path))

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    with pytest.raises(HibenchError, match=f"cannot write results to .*{text}.*choose another --out"):
        Store(tmp_path / "results").create()


def test_a_file_in_place_of_the_directory_is_a_clean_stop(tmp_path):
    (tmp_path / "results").write_text("")
    with pytest.raises(HibenchError, match="cannot write results to"):
        Store(tmp_path / "results").create()


HOLD = """
import sys, time
from hibench.store import Store
with Store(sys.argv[1]).lock(eval(sys.argv[2])):
    print("locked", flush=True)
    time.sleep(60)
"""


def holder(store, shard=None):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(store.root), repr(shard)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    return process


def release(process):
    process.kill()
    process.wait()
    process.stdout.close()


def test_two_runs_do_not_collide_and_a_dead_one_holds_nothing(store):
    process = holder(store)
    try:
        said = rf"is in use by another run \(pid {process.pid} on .*choose another directory"
        with pytest.raises(HibenchError, match=said), store.lock():
            pass
    finally:
        release(process)                                       # kill -9
    with store.lock(), pytest.raises(HibenchError, match="in use"), store.lock():
        pass
    with store.lock():
        pass


def test_shards_of_one_run_work_side_by_side(store):
    process = holder(store, (1, 2))
    try:
        with store.lock((2, 2)):
            pass
        with pytest.raises(HibenchError, match="in use"), store.lock((1, 2)):
            pass
        with pytest.raises(HibenchError, match="in use"), store.lock():
            pass
    finally:
        release(process)


def test_manifests_have_their_own_names_and_the_newest_is_found(store):
    first = store.write_manifest({"sweeps": {"a": []}})
    second = store.write_manifest({"sweeps": {"b": []}})
    assert first != second
    assert store.newest_manifest() == {"sweeps": {"b": []}}
    (store.runs / "99991231T000000Z.json").write_text('{"half')
    assert store.newest_manifest() == {"sweeps": {"b": []}}


def test_json_has_no_nan():
    assert finite({"a": [float("inf"), 1.5], 2: (float("nan"),)}) == {"a": [None, 1.5], "2": [None]}


# -- file systems that refuse --------------------------------------------------------------------------------------------------

REFUSED = {errno.ENOSPC: "no space left", errno.EDQUOT: "quota is used up", errno.EROFS: "is read-only",
           errno.EACCES: "permission denied", errno.EIO: "input/output error", errno.ESTALE: "lost track of the file",
           errno.ENOTEMPTY: "a folder is in the way", errno.EXDEV: "on another file system", errno.EBUSY: "in use"}


def refuse(code: int, at: int = 1):
    """A function in the place of one of os that fails at its n-th call, as a file system does, and works else."""
    return fails_at(at, lambda path, *_: OSError(code, os.strerror(code), str(path)))


@pytest.mark.parametrize(("name", "at", "again"), [("replace", 1, False), ("fsync", 1, False), ("rename", 1, False),
                                                   ("rename", 1, True), ("rename", 2, True)])
@pytest.mark.parametrize("code", REFUSED)
def test_a_file_system_that_refuses_is_a_clean_stop_and_nothing_is_lost(store, monkeypatch, code, name, at, again):
    if again:
        store.publish("ab12", record("ab12", status="error"))
    (store.staging("ab12") / "shard-0-8.npz").write_text("features")
    with monkeypatch.context() as patch:
        patch.setattr(os, name, refuse(code, at)(getattr(os, name)))
        with pytest.raises(HibenchError, match=f"{REFUSED[code]}.*what was measured so far is kept"):
            store.publish("ab12", record("ab12"))
    fresh = Store(store.root)
    fresh.recover()
    if fresh.record("ab12") != record("ab12"):
        assert (fresh.work / "ab12" / "shard-0-8.npz").read_text() == "features"
        fresh.publish("ab12", record("ab12"))
    assert fresh.record("ab12") == record("ab12")
    assert (fresh.cell("ab12") / "shard-0-8.npz").read_text() == "features"
    assert os.listdir(fresh.work) == []


def test_a_full_disk_leaves_the_earlier_file_and_no_half(tmp_path, monkeypatch):
    write_json(tmp_path / "a.json", {"a": 1})

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(json, "dump", full)
    with pytest.raises(HibenchError, match=r"cannot write .*a\.json: no space left on the device"):
        write_json(tmp_path / "a.json", {"a": 2})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_rename_whose_answer_was_lost_counts_as_done(store, monkeypatch):
    """NFS repeats a rename whose answer got lost, and is told that there is no source: it has moved already."""
    store.publish("ab12", record("ab12", status="error"))
    store.staging("ab12")
    real = os.rename

    def lost(source, target):
        real(source, target)
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(source))

    monkeypatch.setattr(os, "rename", lost)
    store.publish("ab12", record("ab12"))
    assert store.record("ab12") == record("ab12")
    assert os.listdir(store.work) == []
    store.reopen("ab12")
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError):
        store_module._move(store.root / "nothing", store.root / "nowhere")


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO])
def test_a_file_system_without_locks_is_one_line(store, monkeypatch, code):
    import fcntl

    def no_locks(*args):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(HibenchError, match=r"cannot lock .*: (the file system|input/output)"), store.lock():
        pass


def test_recovery_on_a_disk_that_became_read_only_is_one_line(store, monkeypatch):
    write_json(store.staging("ab12") / "record.json", record("ab12"))
    monkeypatch.setattr(os, "rename", refuse(errno.EROFS)(os.rename))
    with pytest.raises(HibenchError, match="is read-only"):
        store.recover()
    monkeypatch.undo()
    store.recover()
    assert store.record("ab12") == record("ab12")
