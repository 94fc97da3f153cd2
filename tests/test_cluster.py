"""Machines of a cluster are compared before anything runs; jobs travel by value and come back whole; parts join to a cell."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hibench import cluster, parcel
from hibench.attempt import MOST, gather, split
from hibench.cells import Cell
from hibench.cluster import Host, Survey, choose, look, mismatch, source_digest, usable
from hibench.engines import Exit
from hibench.errors import HibenchError, Unfit
from hibench.parcel import Parcel, do_job, inputs_of, unpack
from hibench.store import read_json, write_json

HERE = Survey({"hibench": "0.1 (ab)", "torch": "2.10", "python": "3.11", "numpy": "2.1"}, {"ldm": ("c0de", "feed")})


@pytest.mark.parametrize(
    ("there", "told"),
    [
        (HERE, None),
        (Survey({**HERE.versions, "torch": "2.9"}, HERE.methods), "torch 2.9 and 2.10 here"),
        (Survey({**HERE.versions, "hibench": "0.1 (cd)"}, HERE.methods), r"hibench 0.1 (cd) and 0.1 (ab) here"),
        (Survey({n: v for n, v in HERE.versions.items() if n != "numpy"}, HERE.methods), "numpy missing and 2.1 here"),
        (Survey({**HERE.versions, "xformers": "1"}, HERE.methods), "xformers 1 and none here"),
        (Survey(HERE.versions, {"ldm": ("c0de", "beef")}), "other weights of method ldm"),
        (Survey(HERE.versions, {"ldm": ("c0de", "")}), "no weights of method ldm"),
        (Survey(HERE.versions, {"ldm": ("bad", "feed")}), "another source of method ldm"),
        (Survey(HERE.versions, {}, error="no method is named 'ldm'"), "no method is named 'ldm'"),
    ],
)
def test_what_differs_is_named(there, told):
    assert mismatch(HERE, there) == told


def test_many_differences_are_shortened_and_the_important_ones_come_first():
    told = mismatch(HERE, Survey({"torch": "9", "a": "1", "b": "1", "c": "1"}, HERE.methods))
    assert told.startswith("hibench missing and 0.1 (ab) here, torch 9 and 2.10 here")
    assert told.endswith("and 3 more")
    assert "\n" not in told


def node(name: str, alive: bool = True, **resources) -> dict:
    return {"NodeID": f"id-{name}", "NodeName": name, "Alive": alive, "Resources": resources}


def test_machines_that_can_run_something():
    nodes = [
        node("b", CPU=4.0, GPU=2.0, hibench_host=1.0),
        node("head", CPU=0.0),
        node("a", CPU=2.0),
        node("d", alive=False, CPU=9.0),
    ]
    a, b = usable(nodes)
    assert (a.name, b.name) == ("a", "b")
    assert a.everything() == {"num_cpus": 2.0, "num_gpus": 0.0}
    assert b.everything() == {"num_cpus": 4.0, "num_gpus": 2.0, "resources": {"hibench_host": 1.0}}
    with pytest.raises(Unfit, match="no machine with a CPU or a GPU"):
        usable([node("head", CPU=0.0)])


def test_speed_is_measured_on_the_largest_group_of_equal_machines():
    def survey(hardware: str) -> Survey:
        return Survey({}, {}, {"hardware_digest": hardware, "software_digest": "s"})

    hosts = [
        Host(name, name, 8, gpus) for name, gpus in (("cpu1", 0), ("cpu2", 0), ("cpu3", 0), ("a1", 1), ("h1", 1), ("h2", 1))
    ]
    chosen = choose({host: survey(host.name[:-1]) for host in hosts})
    assert [host.name for host in chosen] == ["h1", "h2"]


def test_a_look_at_this_machine_gives_ids_and_takes_over_the_driver_s_threads(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("MKL_NUM_THREADS", "7")
    cell = Cell("t", "toy", "speed", 8, 8, device="cpu")
    found = look([cell], None, {"OMP_NUM_THREADS": "3"})
    assert found.env["software"]["threads"]["OMP_NUM_THREADS"] == "3"
    assert "MKL_NUM_THREADS" not in os.environ
    assert [task.cell.key for task in found.tasks] == [cell.key]
    assert set(found.methods) == {"t"}
    assert all(found.methods["t"])
    assert mismatch(found, look([cell], None, {"OMP_NUM_THREADS": "3"})) is None
    wrong = cluster.answer([replace(cell, adapter="no-such-method")], None, {})
    assert "no-such-method" in mismatch(found, wrong)


def test_the_source_digest_sees_every_file(tmp_path):
    (tmp_path / "a.py").write_text("1")
    before = source_digest(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.py").write_text("2")
    assert source_digest(tmp_path) != before
    (tmp_path / "sub" / "b.py").unlink()
    assert source_digest(tmp_path) == before


# -- parcels ---------------------------------------------------------------------------------------------------------------

CODE = """
import json, pathlib, sys
job = json.load(open(sys.argv[1])); out = pathlib.Path(job["out"])
print("working in", out)
exec(job["code"])
"""


def job(tmp_path: Path, code: str, inputs=(), **more) -> Parcel:
    return do_job(
        {"task": "quality", "cell": {"device": "cpu"}, "code": code, **more}, inputs, 20.0, (sys.executable, "-c", CODE)
    )


def test_new_and_changed_files_come_back_and_given_ones_do_not(tmp_path):
    code = (
        "(out / 'samples').mkdir(); (out / 'samples/0.png').write_bytes(b'png'); (out / 'b').write_text('B'); "
        "(out / '.half.tmp').write_text(''); assert (out / 'a').read_text() == 'a'"
    )
    made = job(tmp_path, code, [("a", lambda: b"a"), ("b", lambda: b"b")])
    assert made.end.returncode == 0
    assert made.files == {"b": b"B", "samples/0.png": b"png"}
    assert b"working in" in made.log
    left = made.log.decode().split("working in ")[1].split()[0]
    assert not Path(left).parent.exists()
    out, log = tmp_path / "here", tmp_path / "here" / "log.txt"
    out.mkdir()
    log.write_text("before\n")
    unpack(made, out, log)
    assert (out / "samples" / "0.png").read_bytes() == b"png"
    assert log.read_text().startswith("before\n===")


def test_a_worker_that_dies_sends_what_it_had_made(tmp_path):
    made = job(tmp_path, "(out / 'shard-0-4.npz').write_bytes(b'x'); import os; os.kill(os.getpid(), 9)")
    assert made.end.returncode == -9
    assert set(made.files) == {"shard-0-4.npz"}


def test_damage_on_the_way_and_full_disks_are_clean_stops(tmp_path, monkeypatch):
    sums = {"a": hashlib.sha256(b"a").hexdigest()}
    with pytest.raises(HibenchError, match="a was damaged on its way from far"):
        unpack(Parcel(Exit(0, False, 0.0), b"", {"a": b"b"}, sums, "far"), tmp_path, tmp_path / "log.txt")
    assert list(tmp_path.iterdir()) == []

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(HibenchError, match=r"no space left on the device.*what was measured so far is kept"):
        unpack(Parcel(Exit(0, False, 0.0), b"", {"a": b"a"}, sums, "far"), tmp_path, tmp_path / "log.txt")


def test_only_the_shards_of_a_job_travel(tmp_path):
    for name in ("shard-0-4.npz", "shard-4-4.npz", "shard-8-4.npz", "log.txt"):
        (tmp_path / name).touch()
    assert inputs_of({"shards": [[0, 4], [8, 4], [12, 4]]}, tmp_path) == ["shard-0-4.npz", "shard-8-4.npz"]
    assert inputs_of({"task": "speed"}, tmp_path) == []


def test_folders_of_killed_jobs_are_swept(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    dead, mine = tmp_path / f"{parcel.PREFIX}4194999-x", tmp_path / f"{parcel.PREFIX}{os.getpid()}-x"
    dead.mkdir()
    mine.mkdir()
    parcel._sweep()
    assert (dead.exists(), mine.exists()) == (False, True)


# -- parts -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shards", "parts"), [(1, 1), (1, 9), (7, 3), (8, 8), (782, 4), (64, 5), (3, 100)])
def test_parts_hold_every_shard_once_and_are_of_nearly_equal_size(shards, parts):
    every = [[64 * index, 64] for index in range(shards)]
    groups = split(every, parts)
    assert [shard for group in groups for shard in group] == every
    sizes = {len(group) for group in groups}
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= MOST
    assert min(parts, shards) <= len(groups) <= parts * -(-shards // (MOST * parts))
    assert len(groups) % parts == 0 or len(groups) == shards   # whole rounds of parts


def test_what_parts_have_made_joins_the_cell(tmp_path):
    for first, seconds in ((0, 1.5), (8, 2.0)):
        own = tmp_path / "parts" / str(first)
        (own / "samples").mkdir(parents=True)
        (own / f"shard-{first}-8.npz").write_text("features")
        (own / "samples" / f"{first}.png").write_text("png")
        (own / "log.txt").write_text(f"log {first}\n")
        write_json(own / "session.json", {"started_at": "t", "wall_s": seconds})
        (own / ".shard-16-8.npz.tmp").write_text("half")
    gather(tmp_path)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()) == [
        "log.txt",
        "samples/0.png",
        "samples/8.png",
        "session.json",
        "shard-0-8.npz",
        "shard-8-8.npz",
    ]
    assert read_json(tmp_path / "session.json")["wall_s"] == 3.5
    assert (tmp_path / "log.txt").read_text() == "log 0\nlog 8\n"
    assert not (tmp_path / "parts").exists()
    gather(tmp_path)
    assert json.loads((tmp_path / "session.json").read_text())["wall_s"] == 3.5
