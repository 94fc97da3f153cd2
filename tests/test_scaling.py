"""The scaling model: on one worker it is the work itself, and a simulation of the engine's schedule agrees with it."""

from __future__ import annotations

import json

import pytest

from hibench import scaling_report
from hibench.errors import NoBaseline
from hibench.scaling import Costs, Sweep, costs_of, expected_s, limit, part_lengths, simulated_s

COSTS = Costs(start_s=3.0, load_s=1.0, first_s=0.0, image_s=0.25, score_s=8.0)
SWEEPS = [Sweep(1, 1000), Sweep(1, 50_000), Sweep(3, 200), Sweep(12, 1000), Sweep(12, 50_000), Sweep(40, 640)]
HEAD = "method,kind,status,height,width,steps,sparsity,wall_s,processes,load_s,first_image_s,latency_p50_s,n\n"
TABLE = (
    HEAD
    + """real,speed,ok,64,64,,0.0,6.0,2,0.0,0.01,0.01,
real,quality,ok,64,64,,0.0,10.0,,,,,100
ldm,speed,ok,64,64,25,0.0,20.0,2,1.5,0.75,0.25,
ldm,quality,ok,64,64,25,0.0,62.0,,,,,100
ldm,quality,ok,64,64,25,0.75,99.0,,,,,100
ldm,quality,oom,64,64,25,0.0,1.0,,,,,100
"""
)


@pytest.mark.parametrize("sweep", SWEEPS)
def test_one_worker_takes_the_sum(sweep):
    by_hand = sweep.cells * (4.0 + 0.25 * sweep.images + 8.0)
    assert expected_s(COSTS, sweep, 1) == pytest.approx(by_hand)
    assert simulated_s(COSTS, sweep, 1) == pytest.approx(by_hand)


def test_two_workers_by_hand():
    """128 images in two shards: two parts of 4 + 16 s side by side, then the score."""
    assert part_lengths(Sweep(1, 128), 2) == [64, 64]
    assert expected_s(COSTS, Sweep(1, 128), 2) == simulated_s(COSTS, Sweep(1, 128), 2) == 4 + 16 + 8


@pytest.mark.parametrize("workers", [2, 3, 4, 7, 8, 16, 32, 64, 100, 128, 256])
@pytest.mark.parametrize("sweep", SWEEPS)
def test_formula_and_simulation_agree_within_a_quarter(sweep, workers):
    played = simulated_s(COSTS, sweep, workers)
    assert expected_s(COSTS, sweep, workers) == pytest.approx(played, rel=0.25)
    alone = expected_s(COSTS, sweep, 1)
    overhead = sum(4.0 for _ in part_lengths(sweep, workers)) * sweep.cells
    assert played >= (alone - 4.0 * sweep.cells + overhead) / workers - 1e-6  # nobody works faster than he can
    assert sum(part_lengths(sweep, workers)) == sweep.images


def test_more_workers_than_shards_do_not_help_and_it_says_why():
    sweep = Sweep(1, 640)
    assert expected_s(COSTS, sweep, 10) == expected_s(COSTS, sweep, 256)
    name, shares = limit(COSTS, sweep, 256)
    assert name == "waiting for the last parts and for scores"
    assert sum(shares.values()) == pytest.approx(1.0)
    assert limit(Costs(30.0, 30.0, 0.0, 0.01, 0.0), Sweep(1, 1280), 2)[0] == "starting and loading"


def test_spread_of_times_is_seeded_and_costs_something():
    sweep = Sweep(1, 6400)
    first = simulated_s(COSTS, sweep, 16, jitter=0.2, seed=1)
    assert first == simulated_s(COSTS, sweep, 16, jitter=0.2, seed=1)
    assert first > simulated_s(COSTS, sweep, 16)


def test_costs_come_from_measured_cells(tmp_path):
    table = tmp_path / "records.csv"
    table.write_text(TABLE)
    assert costs_of(table, "ldm", 64, 25) == Costs(3.0, 1.5, 0.5, 0.5, 7.0)
    with pytest.raises(NoBaseline, match="no speed cell of ldm at 64x64 with 50 steps"):
        costs_of(table, "ldm", 64, 50)


def test_the_report_holds_table_plot_and_numbers(tmp_path, capsys):
    (tmp_path / "records.csv").write_text(TABLE)
    out = tmp_path / "scale"
    asked = ["--method", "ldm", "--resolution", "64", "--steps", "25", "--out", str(out)]
    assert scaling_report.main([str(tmp_path / "records.csv"), *asked]) == 0
    assert {path.name for path in out.iterdir()} == {"speed-up.json", "speed-up.md", "speed-up.png", "speed-up.pdf"}
    values = json.loads((out / "speed-up.json").read_text())
    assert values["costs"]["score_s"] == 7.0
    for rows in values["sweeps"].values():
        assert rows[0]["speed_up"] == 1.0
        assert all(row["speed_up"] <= row["workers"] * 1.0001 for row in rows)
    assert (out / "speed-up.md").read_text().count("\n") == len(scaling_report.WORKERS) + 2


def test_a_report_without_the_cells_is_refused_in_one_line(tmp_path, capsys):
    (tmp_path / "records.csv").write_text("key,method,kind,status\n")
    with pytest.raises(SystemExit) as stopped:
        scaling_report.main([str(tmp_path / "records.csv")])
    assert stopped.value.code == 2
    assert "no speed cell of ldm at 128x128 with 25 steps" in capsys.readouterr().err
