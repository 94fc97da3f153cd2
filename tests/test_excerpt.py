"""The excerpt of a record: small, and a check says the same of it, whatever is missing in the record."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
import records

from hibench import excerpt as module
from hibench import record_index
from hibench.check import check
from hibench.excerpt import PER_PROCESS, excerpt
from hibench.sides import read_side


def test_a_speed_record_keeps_one_number_per_process():
    made = records.record("ldm", "speed", 64)
    speed, kept = made["speed"], excerpt(made)
    processes = speed["processes"]
    assert set(kept["speed"]["per_process"]) == set(PER_PROCESS)
    assert kept["speed"]["per_process"]["latency"] == [statistics.median(one["latency_s"]) for one in processes]
    assert kept["speed"]["per_process"]["memory"] == [one["peak_rss_bytes"] - one["idle_rss_bytes"] for one in processes]
    assert kept["speed"]["per_process"]["energy"] == []                     # null in every process
    assert kept["speed"]["latency_ci_s"] == speed["latency_ci_s"]
    assert kept["env"] is made["env"]
    assert len(json.dumps(kept)) < len(json.dumps(made)) / 2


@pytest.mark.parametrize("broken", [{"latency_s": []}, {"latency_s": None}, {"latency_s": ["x"]}, {}])
def test_a_number_that_one_process_does_not_know_is_known_of_none(broken):
    made = records.record("ldm", "speed", 64)
    process = made["speed"]["processes"][2]
    del process["latency_s"]
    process.update(broken)
    kept = excerpt(made)["speed"]["per_process"]
    assert kept["latency"] == []
    assert len(kept["load"]) == len(made["speed"]["processes"])


def test_a_quality_record_keeps_values_and_how_they_were_made():
    made = records.record("ldm", "quality", 64)
    values = made["quality"]["values"]
    name = next(iter(values))
    del values[name]["value"]                                               # what is not there is not made up
    kept = excerpt(made)["quality"]["values"]
    assert list(kept) == list(values)
    for metric, entry in kept.items():
        assert entry == {part: values[metric][part] for part in module.VALUE if part in values[metric]}
    assert "value" not in kept[name]
    assert "value" in kept[metric]


@pytest.mark.parametrize("status", ["skip", "oom", "error", "missing"])
def test_a_failed_record_keeps_why(status):
    made = records.record("ldm", "speed", 64, status=status)
    kept = excerpt(made)
    assert {name: kept[name] for name in ("status", "reason", "failure")} == {
        name: made[name] for name in ("status", "reason", "failure")}
    assert "speed" not in kept


def test_a_check_from_the_index_says_what_one_from_the_files_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HIBENCH_CACHE", str(tmp_path / "cache"))
    base = records.suite(tmp_path / "base", failures={"ldm/speed/64x64/steps=50": "oom"})
    head = records.suite(tmp_path / "head", failures={"ldm/quality/256x256/steps=50": "error"}, n=200)
    fresh, _ = check(base, head)
    assert not record_index.index_file(base, "excerpt").exists()            # so few are read file by file
    monkeypatch.setattr(record_index, "FEWEST", 0)
    assert check(base, head)[0] == fresh
    assert record_index.index_file(base, "excerpt").exists()
    monkeypatch.setattr(record_index, "_read_folder", lambda cells, chunk, take: [f"{id} is read again" for id in cells])
    assert check(base, head)[0] == fresh
    assert read_side(base).problems == []
    assert {"ok", "regressed", "unsure"} <= {row.verdict for row in fresh.rows}
