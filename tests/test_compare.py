"""`hibench compare`: interleaving, stopping, failures and resume with a fake engine; sides; and processes that really sleep."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from pathlib import Path

import pytest

from hibench import cli, compare, revisions
from hibench.cells import Cell
from hibench.check import COMPARE_FILE, COMPARE_SCHEMA, check, read_compare
from hibench.engines import Exit, LocalEngine
from hibench.errors import NoBaseline, SpecError
from hibench.gate import PairRule
from hibench.judge import DEFAULTS
from hibench.limits import Limits, Rule
from hibench.prepare import Task, Verdict
from hibench.progress import Progress
from hibench.runner import Options, Run
from hibench.spec import Tolerance
from hibench.store import Store

SLEEPER = Path(__file__).parent / "sleeper.py"
ENV = {"hardware": {"cpu": "x", "gpus": []}, "software": {"torch": "1"}, "hardware_digest": "h", "software_digest": "s",
       "git": {"commit": "abc", "dirty": False}}


class Fake:
    """An engine whose workers are a function (side, key, replicate) -> seconds per image, or an exception."""

    def __init__(self, side, seconds, calls):
        self.side, self.seconds, self.calls = side, seconds, calls

    def run(self, job, log, *, timeout_s, gpu=None, tick=None):
        asked = json.loads(job.read_text())
        cell, p, out = Cell.from_json(asked["cell"]), asked["replicate"], Path(asked["out"])
        self.calls.append((p, cell.key, self.side))
        try:
            made = process(p, self.seconds(self.side, cell.key, p))
            said = {"status": "ok", "reason": None, "failure": None, "process": made}
        except MemoryError as error:
            failure = {"stage": "denoise", "type": "MemoryError", "message": str(error)}
            said = {"status": "oom", "reason": str(error), "failure": failure, "process": None}
        (out / f"speed-{p}.json").write_text(json.dumps(said))
        return Exit(0, False, 0.1)

    def kill_all(self):
        pass


def process(replicate, seconds):
    return {"replicate": replicate, "import_s": 0.1, "load_s": 0.1, "first_image_s": seconds, "latency_s": [seconds] * 3,
            "weights_bytes": 12, "peak_allocated_bytes": None, "idle_rss_bytes": 0, "peak_rss_bytes": 10**9, "flops": 7,
            "nfe": 4, "energy_j_per_image": None, "flags": []}


def task(method="m", height=8, verdict=None, adapter="x", **options):
    cell = Cell(method, adapter, "speed", height, height, options=options, settings={"processes": 2, "images": 3, "warmup": 1},
                device="cpu")
    return Task(cell, f"{abs(hash((method, height))):016x}"[:16], "a", "w", verdict)


def sides(tmp_path, tasks, engines):
    runs = {}
    for side in ("base", "head"):
        runs[side] = Run(list(tasks[side]), Store(tmp_path / side), ENV, Options(), Progress(0, silent=True), engines[side])
        runs[side].store.create()
    (tmp_path / COMPARE_FILE).write_text(json.dumps(
        {"schema": COMPARE_SCHEMA, "base": {"label": "b"}, "head": {"label": "h"}, "itself": False, "tolerance": []}))
    return runs


def run_fake(tmp_path, seconds, base=None, head=None, rule=None, calls=None):
    """Measure with fake engines; returns the calls (replicate, key, side), the lines that were said, and the code."""
    base = base or [task()]
    head = base if head is None else head
    calls, said = [] if calls is None else calls, []
    runs = sides(tmp_path, {"base": base, "head": head}, {side: Fake(side, seconds, calls) for side in ("base", "head")})
    code = compare.measure(runs, Limits(DEFAULTS), rule or PairRule(), said.append)
    return calls, said, code


def noisy(spread=0.002, slow=0.0, slow_key=None):
    def seconds(side, key, p):
        change = slow if side == "head" and slow_key in (None, key) else 0.0
        return 0.4 * (1 + change) * (1 + random.Random(f"{side} {key} {p}").gauss(0, spread))

    return seconds


# -- order and stopping ------------------------------------------------------------------------------------------------------


def test_base_and_head_run_back_to_back_and_take_turns(tmp_path):
    tasks = [task("a"), task("b"), task("c")]
    calls, _, code = run_fake(tmp_path, noisy(), tasks)
    assert code == 0
    both = [calls[i:i + 2] for i in range(0, len(calls), 2)]
    assert all(one[:2] == other[:2] and {one[2], other[2]} == {"base", "head"} for one, other in both)
    first = [one[2] for one, _ in both]
    assert {"base", "head"} == set(first[:2])                       # neither always comes first
    assert [p for p, _, _ in calls] == sorted(p for p, _, _ in calls)                  # replicates are spread over the night
    assert len({tuple(key for p, key, side in calls if p == replicate and side == "base") for replicate in range(3)}) > 1


def test_quiet_cells_stop_at_three_pairs_and_slow_ones_at_five(tmp_path):
    calls, said, _ = run_fake(tmp_path, noisy(slow=0.2, slow_key="b/speed/8x8"), [task("a"), task("b")])
    assert sorted((key[0], side, sum(1 for _, k, s in calls if (k, s) == (key, side)))
                  for key in ("a/speed/8x8", "b/speed/8x8") for side in ("base", "head")) == [
        ("a", "base", 3), ("a", "head", 3), ("b", "base", 5), ("b", "head", 5)]
    report, _ = check(tmp_path)
    assert [(row.key, row.metric) for row in report.of("regressed")] == [("b/speed/8x8", "latency")]
    assert any(line.startswith("done    b/speed/8x8   base 4") for line in said)


def test_a_noisy_cell_goes_on_to_the_cap_and_ends_unsure(tmp_path):
    calls, _, _ = run_fake(tmp_path, noisy(spread=0.1))
    assert len(calls) == 18
    assert check(tmp_path)[0].counts["unsure"] == 1
    again, _, _ = run_fake(tmp_path / "fewer", noisy(spread=0.1), rule=PairRule(cap=5))
    assert len(again) == 10


def test_a_method_that_starts_to_run_out_of_memory_is_a_regression(tmp_path):
    def seconds(side, key, p):
        if side == "head" and "32x32" in key:
            raise MemoryError("cannot hold the canvas")
        return noisy()(side, key, p)

    calls, said, code = run_fake(tmp_path, seconds, [task(height=h) for h in (8, 32, 64)])
    report, _ = check(tmp_path)
    assert code == 0
    assert [(row.key, row.metric, row.text) for row in report.of("regressed")] == [
        ("m/speed/32x32", "status", "ok → oom: out of memory in denoise: cannot hold the canvas"),
        ("m/speed/64x64", "status", "ok → oom: not run: m/speed/32x32 has already run out of memory")]
    assert sum(side == "base" and "64x64" in key for _, key, side in calls) == 3          # alone, it needs no decision
    assert any("oom" in line for line in said)


def test_cells_of_one_side_are_measured_alone(tmp_path):
    calls, _, _ = run_fake(tmp_path, noisy(), [task("a"), task("old")], [task("a"), task("new")])
    report, _ = check(tmp_path)
    assert [row.key for row in report.of("new")] == ["new/speed/8x8"]
    assert [row.key for row in report.of("lost")] == ["old/speed/8x8"]
    assert sum("old" in key for _, key, _ in calls) == 3


def test_nothing_measured_is_3(tmp_path):
    skip = [task(verdict=Verdict("skip", "no"))]
    _, said, code = run_fake(tmp_path, noisy(), skip)
    assert (code, said[-1]) == (3, "nothing was measured: no cell is ok on both sides")


def test_an_interrupted_comparison_goes_on(tmp_path):
    calls = []

    def seconds(side, key, p):
        if len(calls) == 4:
            raise KeyboardInterrupt
        return noisy()(side, key, p)

    with pytest.raises(KeyboardInterrupt):
        run_fake(tmp_path, seconds, calls=calls)
    before = set(calls[:-1])
    more, _, code = run_fake(tmp_path, noisy())
    assert code == 0
    assert len(before) == 3
    assert not before & set(more)
    assert len(more) == 3
    assert run_fake(tmp_path, noisy())[0] == []


# -- the sides ---------------------------------------------------------------------------------------------------------------


SPEC = "version: 1\nmethods: {toy: {adapter: toy}}\nsweeps: {s: {methods: [toy], measure: [speed, drift], resolution: [8]}}\n"


def test_a_side_plans_by_its_own_code(tmp_path):
    (tmp_path / "b.yaml").write_text(SPEC)
    planned = revisions.plan(revisions.here(), tmp_path / "b.yaml", tmp_path / "work", only=["speed"],
                             overrides=["timing.images=2"])
    assert [one.cell.key for one in planned.tasks] == ["toy/speed/8x8"]
    assert planned.tasks[0].cell.settings["images"] == 2
    with pytest.raises(SpecError, match=r"this code .*no such file"):
        revisions.plan(revisions.here(), tmp_path / "none.yaml", tmp_path / "work")


def test_a_comparison_of_the_code_with_itself_is_noted(tmp_path):
    planned, same = revisions.Planned([task()], ENV, {}), revisions.Revision("HEAD", "abc", False)
    rules = [Rule("m", "latency", Tolerance(0.08, True))]
    for head, cells, itself in ((same, planned, True), (revisions.Revision("other", "def", False), planned, False),
                                (revisions.Revision("changed", "abc", True), planned, False),
                                (same, revisions.Planned([task("other")], ENV, {}, rules), False)):
        compare._note(tmp_path, {"base": same, "head": head}, {"base": planned, "head": cells}, 9)
        noted = read_compare(tmp_path)
        assert noted["itself"] is itself
        assert noted["limits"] == cells.limits
    folder = revisions.Revision("a folder")
    compare._note(tmp_path, {"base": folder, "head": folder}, {"base": planned, "head": planned}, 9)
    assert read_compare(tmp_path)["itself"] is False


def test_sides_that_are_too_far_apart(tmp_path, monkeypatch):
    (tmp_path / "b.yaml").write_text(SPEC)
    old = tmp_path / "old" / "hibench"
    old.mkdir(parents=True)
    (old / "__init__.py").write_text("")
    with revisions.open_revision(str(old.parent), tmp_path / "w", print) as side, pytest.raises(NoBaseline, match="too old"):
        revisions.plan(side, tmp_path / "b.yaml", tmp_path / "w")
    said = {"protocol": 0, "env": ENV, "sweeps": {}, "tolerance": [], "tasks": []}
    monkeypatch.setattr(revisions, "_ask", lambda *_: said)
    with pytest.raises(NoBaseline, match="measures by protocol 0"):
        revisions.plan(revisions.here(), tmp_path / "b.yaml", tmp_path / "w")


def test_names_of_sides(tmp_path):
    with revisions.open_revision(sys.executable, tmp_path, print) as side:
        assert side.worker == (sys.executable, "-m", "hibench.worker")
    with pytest.raises(SpecError, match="is no git revision"), revisions.open_revision("no-such-branch", tmp_path / "w", print):
        pass


def test_a_worker_of_a_folder_uses_the_packages_in_it(tmp_path):
    package = tmp_path / "other" / "hibench"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "worker.py").write_text("def main():\n    print('the other')\n    return 5\n")
    with revisions.open_revision(str(tmp_path / "other"), tmp_path / "w", print) as side:
        command = [*side.worker, "job.json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=SLEEPER.parent.parent, check=False)
    assert (done.returncode, done.stdout) == (5, "the other\n")


@pytest.mark.parametrize(("arguments", "words"), [
    ([], "needs --base REVISION, or --base-spec FILE"), (["--base", "HEAD", "--pairs", "4"], "--pairs 4: at least 5"),
    (["--base", "no-such-thing"], "'no-such-thing' is no git revision of")])
def test_usage(tmp_path, capsys, arguments, words):
    (tmp_path / "b.yaml").write_text(SPEC)
    assert cli.main(["compare", str(tmp_path / "b.yaml"), "--out", str(tmp_path / "out"), *arguments]) == 2
    assert words in capsys.readouterr().err


# -- processes that really sleep -----------------------------------------------------------------------------------------------


def run_sleepers(tmp_path, base, head, rule=None):
    """Measure tasks in real processes of tests/sleeper.py; returns the report."""
    engines = {side: LocalEngine((sys.executable, str(SLEEPER))) for side in ("base", "head")}
    runs = sides(tmp_path, {"base": base, "head": head}, engines)
    compare.measure(runs, Limits(DEFAULTS), rule or PairRule(), lambda text: None)
    return check(tmp_path)[0]


def sleeper(method="m", cls="Sleeper", height=8, **options):
    return task(method, height, None, f"{SLEEPER}:{cls}", **options)


def test_real_processes_that_sleep_longer_are_found(tmp_path):
    base = [sleeper(height=h, seconds=0.03) for h in (8, 16)]
    head = [sleeper(height=8, seconds=0.03), sleeper(height=16, seconds=0.12)]
    report = run_sleepers(tmp_path, base, head)
    assert "m/speed/16x16" in {row.key for row in report.of("regressed") if row.metric == "latency"}
    assert "m/speed/8x8" not in {row.key for row in report.of("regressed")}


def test_geometric_mean_of_changes_is_what_is_told(tmp_path):
    seconds = {"base": [0.4, 0.4, 0.4], "head": [0.42, 0.40, 0.38]}
    run_fake(tmp_path, lambda side, key, p: seconds[side][p] if p < 3 else 0.4)
    row = next(row for row in check(tmp_path)[0].rows if row.metric == "latency")
    logs = [math.log(h / b) for b, h in zip(seconds["base"], seconds["head"])] + [0.0] * (row.pairs - 3)
    assert row.change == pytest.approx(math.expm1(sum(logs) / len(logs)))


def ended(name):
    """A night of the experiment that has ended already."""
    return [(name, "latency", "ok", 3, 0.0)], 0


def test_the_experiment_stops_in_time_and_goes_on_where_it_was(tmp_path):
    from gate_experiment import experiment, scenarios

    kept = tmp_path / "nights.jsonl"
    assert experiment(side_by_side=2, kept=kept, seconds=0, run=ended) == {}
    first = experiment(scale=0.01, side_by_side=2, kept=kept, run=ended)
    assert {name: one["nights"] for name, one in first.items()} == dict.fromkeys(scenarios(), 1)
    with kept.open("a") as file:
        file.write('{"scenario": "two_mo')               # interrupted while it wrote
    again = experiment(scale=0.01, side_by_side=2, kept=kept, run=None)      # nothing is left to run
    assert again == first
    whole = experiment(side_by_side=2, kept=kept, run=ended)
    assert {name: (one["nights"], one["nights_wanted"]) for name, one in whole.items()} == {
        name: (nights, nights) for name, (_, _, nights) in scenarios().items()}
    assert whole["identical"]["latency"] == {"ok": 10}
    assert experiment(side_by_side=2, kept=kept, run=None) == whole


@pytest.mark.slow
def test_the_experiment_on_real_processes():
    """A part of tests/gate_experiment.py; it needs a machine that does nothing else."""
    from gate_experiment import experiment

    found = experiment(scale=0.2)
    assert found["identical"]["latency"].get("regressed", 0) == 0
    slower = found["ten_percent_slower"]["latency"]
    assert slower.get("regressed", 0) >= 0.99 * sum(slower.values())
    assert found["one_of_20_slower"]["regressed"] == [["m7/speed/8x8 latency"]]
    assert found["two_modes"]["latency"].get("regressed", 0) == 0
    assert all("m3/speed/8x8 memory" in night for night in found["memory_2_percent_more"]["regressed"])
    assert found["runs_out_of_memory"]["regressed"] == [["m/speed/32x32 status", "m/speed/64x64 status"]]
