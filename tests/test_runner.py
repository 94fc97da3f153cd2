"""Running a plan: whatever happens to a cell is a record, and a resumed run ends with the results of an undisturbed one."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from runner_tools import HERE, STUB, ForkEngine, bench, folder_of, records

from hibench.attempt import shards_of
from hibench.board import needs_as_much
from hibench.cells import Cell, expand
from hibench.engines import Exit, LocalEngine
from hibench.errors import HibenchError, SpecError, Unfit, UnknownMethod
from hibench.fakes import FakeGpu, FakeNvml
from hibench.gpu import Gpu, GpuTrace
from hibench.prepare import Task, prepare, shard_of
from hibench.progress import Estimate, Progress, cell_text, duration, outcome_text
from hibench.recording import is_good
from hibench.runner import run_spec
from hibench.spec import load_spec
from hibench.store import Store

PLAIN = f"{HERE / 'runner_tools.py'}:Plain"
ENV = {"hardware_digest": "h", "software_digest": "s", "hardware": {}, "software": {}, "git": {}}
FAULTS = ("Raises", "RaisesWhenLoading", "Misses", "ReturnsNaN", "ReturnsFloat", "WrongShape", "Dies", "ExitsPolitely",
          "KilledBySignal", "OutOfMemory", "IgnoresSteps", "Hangs", "SupportsNothing")
SETTINGS = """
timing: {processes: 1, images: 2, warmup: 1}
quality: {images: 10, batch: 2, shard: 4, keep: 2, metrics: [fid]}
"""


# -- misbehaving methods ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    """One run of every kind of failure beside good cells, and a second one that finds everything there."""
    folder = tmp_path_factory.mktemp("faults")
    adapters = HERE / "adapters.py"
    methods = "".join(f"  {name}: {{adapter: '{adapters}:{name}', timeout: {1.5 if name == 'Hangs' else 60}}}\n"
                      for name in FAULTS)
    text = (f"methods:\n  toy: {{adapter: toy}}\n{methods}{SETTINGS}sweeps:\n"
            f"  bad: {{methods: [{', '.join(FAULTS)}], measure: [speed], resolution: [16], steps: [4]}}\n"
            "  good: {methods: [toy, OutOfMemory, Misses], resolution: [16, 24, [16, 32]], steps: [4]}\n")
    engine = ForkEngine()
    first = bench(folder, text, engine=engine)
    found, times = records(folder), stamps(folder)
    second = bench(folder, text, engine=engine)
    return folder, found, first, second, times, text


def stamps(folder: Path, out="results") -> dict[str, int]:
    """When each record was written."""
    return {path.parent.name: path.stat().st_mtime_ns for path in (folder / out).glob("cells/*/*/record.json")}


@pytest.mark.parametrize(("method", "status", "words"), [
    ("Raises", "error", "ValueError: the method is broken"),
    ("RaisesWhenLoading", "error", "RuntimeError: state_dict has unexpected keys"),
    ("Misses", "missing", "get them with: hibench train misses"),
    ("ReturnsNaN", "error", "values that are not finite, not uint8"),
    ("ReturnsFloat", "error", "the method returned float32, not uint8"),
    ("WrongShape", "error", "the method returned shape [3, 17, 16], and [3, 16, 16] was asked for"),
    ("Dies", "died", "replicate 1 of 1: the worker ended with exit code 9 before it gave a result"),
    ("ExitsPolitely", "error", "SystemExit"),
    ("KilledBySignal", "died", "killed by SIGKILL (usually the host ran out of memory)"),
    ("OutOfMemory", "oom", "out of memory in decode"),
    ("IgnoresSteps", "error", "3"),
    ("Hangs", "timeout", "took longer than 1.5 s and was ended; raise the method's `timeout`"),
    ("SupportsNothing", "skip", "this method is out of order"),
])
def test_every_failure_is_a_record_with_its_reason(faults, method, status, words):
    folder, found, (_, printed), *_ = faults
    record = found[f"{method}/speed/16x16/steps=4"]
    assert record["status"] == status
    assert words in record["reason"]
    assert (record["speed"], record["quality"]) == (None, None)
    line = next(line for line in printed.splitlines() if line.startswith(status) and f" {method} " in line)
    assert record["reason"] in line
    if status not in ("skip",):
        assert record["failure"]["type"]
        log = folder_of(folder, record) / "log.txt"
        if log.exists():                                       # inferred ones have none
            assert f"log: {log}" in printed


def test_a_failed_cell_does_not_touch_the_others(faults):
    _, found, (code, printed), *_ = faults
    assert code == 3
    good = [record for record in found.values() if record["method"]["name"] == "toy"]
    assert len(good) == 6
    assert all(record["status"] == "ok" for record in good)
    assert "  toy                6 ok" in printed


def test_a_speed_record_holds_its_processes_and_their_summary(faults):
    folder, found, *_ = faults
    record = found["toy/speed/16x16/steps=4"]
    assert len(record["speed"]["processes"]) == 1
    assert len(record["speed"]["processes"][0]["latency_s"]) == record["speed"]["images"] == 2
    assert record["speed"]["latency_p50_s"] > 0
    assert record["method"]["parameters"] == 72
    assert record["method"]["weights_digest"]
    assert record["env"]["hardware_digest"]
    assert record["wall_s"] > 0
    assert sorted(os.listdir(folder_of(folder, record))) == ["log.txt", "record.json"]


def test_a_quality_record_holds_values_and_samples(faults):
    folder, found, *_ = faults
    record = found["toy/quality/16x32/steps=4"]
    assert record["quality"]["n"] == 10
    assert record["quality"]["values"]["fd@stub"]["pm"] == 0.1
    assert record["quality"]["samples"] == ["samples/0.png", "samples/1.png"]
    there = sorted(os.listdir(folder_of(folder, record)))
    assert there == ["log.txt", "record.json", "samples", "shard-0-4.npz", "shard-4-4.npz", "shard-8-2.npz"]


def test_out_of_memory_spares_larger_resolutions_and_quality(faults):
    _, found, *_ = faults
    reasons = {key: record.get("inferred_from") for key, record in found.items() if key.startswith("OutOfMemory/")}
    measured = [key for key, source in reasons.items() if source is None]
    assert len(reasons) == 6
    assert all(key.startswith("OutOfMemory/speed/") for key in measured)       # 16x16 always; others if they came before it
    assert "OutOfMemory/speed/16x16/steps=4" in measured
    assert all(found[key]["status"] == "oom" for key in reasons)
    assert {reasons[f"OutOfMemory/quality/{size}/steps=4"] for size in ("16x16", "24x24", "16x32")} <= set(measured)


def test_missing_weights_are_found_once_per_method(faults):
    folder, found, *_ = faults
    missing = [record for key, record in found.items() if key.startswith("Misses/")]
    assert len(missing) == 6
    assert {record["status"] for record in missing} == {"missing"}
    logs = [folder_of(folder, record) / "log.txt" for record in missing]
    started = [log.read_text().count("MissingWeights: ") for log in logs if log.exists()]
    assert sum(started) == 2                                   # one process in each of the two runs


def test_a_hangup_is_ignored_where_it_was_ignored_before(tmp_path):
    """`nohup hibench run ...` goes on when the terminal is closed."""
    def hang_up(cell):
        os.kill(os.getpid(), signal.SIGHUP)

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        text = fake_text("a: {}", "measure: [speed], resolution: [8]")
        assert bench(tmp_path, text, engine=Fake(fail=hang_up))[0] == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        assert bench(tmp_path, text, engine=Fake(fail=hang_up), out="other")[0] == 130
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_run_repeats_nothing_but_what_may_have_changed(faults):
    folder, found, _, (code, printed), before, *_ = faults
    assert code == 3
    after = stamps(folder)
    again = {found_key for found_key, record in found.items() if after[record["id"]] != before[record["id"]]}
    assert again == {key for key in found if key.startswith(("Misses/", "KilledBySignal/"))}
    assert "timeout Hangs/speed/16x16/steps=4: replicate 1" in printed          # kept failures are told each time
    assert "`--retry`" in printed


def test_retry_runs_failed_cells_again_and_no_others(faults):
    folder, found, _, _, _, text = faults
    before = stamps(folder)
    code, _ = bench(folder, text, engine=ForkEngine(), only=["Raises", "toy", "speed"], retry=True)
    after = stamps(folder)
    again = {key for key, record in found.items() if after[record["id"]] != before[record["id"]]}
    assert (code, again) == (3, {"Raises/speed/16x16/steps=4"})


def test_the_manifest_names_whole_sweeps_and_the_ids(faults):
    folder, found, *_ = faults
    manifests = [json.loads(path.read_text()) for path in sorted((folder / "results" / "runs").glob("*.json"))]
    assert manifests[0]["cells"] == {key: record["id"] for key, record in found.items()}
    assert len(manifests[0]["sweeps"]["bad"]) == len(FAULTS)
    assert len(manifests[0]["sweeps"]["good"]) == 18
    assert manifests[0]["exit_code"] == 3
    assert manifests[-1]["only"] in ([], ["Raises", "toy", "speed"])
    assert manifests[-1]["sweeps"]["bad"] == manifests[0]["sweeps"]["bad"]      # also when only a part was run


# -- killed in the middle --------------------------------------------------------------------------------------------------


def stub_text(folder: Path, *, stop: str = "kill", marker: str = "marker", more: str = "", method: str = "plain") -> str:
    """One method on the stub worker whose quality cell stops at seed 8, once."""
    options = f"{{calls: '{folder / 'calls'}', marker: '{folder / marker}', stop: {stop}, stop_at: 8}}"
    return (f"methods:\n  {method}: {{adapter: '{PLAIN}', options: {options}}}\n"
            "timing: {processes: 3}\nquality: {images: 20, batch: 2, shard: 4, metrics: [fid]}\n"
            f"sweeps:\n  one: {{methods: [{method}], resolution: [8{more}], steps: [4]}}\n")


def values(record: dict) -> dict:
    """A record without what tells the time, and without the state of this checkout."""
    env = {name: value for name, value in record["env"].items() if name != "git"}
    return {**record, "env": env, "started_at": None, "wall_s": None}


def features_of(folder: Path, record: dict, out="results") -> dict[str, np.ndarray]:
    return {path.name: np.load(path)["stub/embed"] for path in sorted(folder_of(folder, record, out).glob("shard-*.npz"))}


def same_results(folder: Path, one: str, other: str) -> None:
    """Two results directories hold the same records and the same features."""
    left, right = records(folder, one), records(folder, other)
    assert {key: values(record) for key, record in left.items()} == {key: values(record) for key, record in right.items()}
    for key, record in left.items():
        mine, theirs = features_of(folder, record, one), features_of(folder, right[key], other)
        assert mine.keys() == theirs.keys()
        assert all(np.array_equal(mine[name], theirs[name]) for name in mine)


def calls(folder: Path) -> list[int]:
    made = [int(line) for line in (folder / "calls").read_text().split()]
    (folder / "calls").unlink()
    return made


def test_a_worker_killed_in_a_quality_cell_is_resumed_to_the_same_results(tmp_path):
    text = stub_text(tmp_path)
    code, printed = bench(tmp_path, text)
    killed = records(tmp_path)["plain/quality/8x8/steps=4"]
    assert (code, killed["status"], killed["failure"]["signal"]) == (3, "died", 9)
    assert "10 samples" not in killed["reason"]
    assert "died    plain 8² ×4" in printed
    assert calls(tmp_path) == [0, 4, 8]
    code, printed = bench(tmp_path, text)                      # the marker is there: it is not killed again
    assert code == 0
    assert "1 cells to run, 1 are measured already" in printed
    assert calls(tmp_path) == [8, 12, 16]                      # nothing finished is made again
    assert bench(tmp_path, text, out="undisturbed")[0] == 0
    assert calls(tmp_path) == [0, 4, 8, 12, 16]
    same_results(tmp_path, "results", "undisturbed")
    code, printed = bench(tmp_path, text)
    assert (code, printed.strip()) == (0, f"nothing to do: 2 cells already measured in {tmp_path / 'results'}")


def test_a_method_killed_while_it_generates_ends_with_the_same_images(tmp_path):
    """The same with the real worker: features and samples are those of a run that nobody has disturbed."""
    options = f"{{marker: '{tmp_path / 'marker'}', seeds: '{tmp_path / 'seeds'}'}}"
    text = (f"methods: {{k: {{adapter: '{HERE / 'runner_adapters.py'}:KilledOnce', options: {options}}}}}\n{SETTINGS}"
            "sweeps: {s: {methods: [k], measure: [quality], resolution: [[16, 24]], steps: [3]}}\n")
    engine, key = ForkEngine(), "k/quality/16x24/steps=3"

    def made() -> list[int]:
        seeds = [int(seed) for seed in (tmp_path / "seeds").read_text().split()]
        (tmp_path / "seeds").unlink()
        return seeds

    assert bench(tmp_path, text, engine=engine)[0] == 3
    assert (records(tmp_path)[key]["status"], made()) == ("died", [0, 1, 2, 3, 4, 5])
    assert bench(tmp_path, text, engine=engine)[0] == 0
    assert made() == [4, 5, 6, 7, 8, 9]                        # the shard that was whole is not made again
    assert bench(tmp_path, text, engine=engine, out="undisturbed")[0] == 0
    assert made() == list(range(10))
    same_results(tmp_path, "results", "undisturbed")
    folders = [folder_of(tmp_path, records(tmp_path, out)[key], out) for out in ("results", "undisturbed")]
    for name in ("0.png", "1.png"):
        assert (folders[0] / "samples" / name).read_bytes() == (folders[1] / "samples" / name).read_bytes()


def test_a_cell_that_is_killed_again_and_again_waits_for_retry(tmp_path):
    text = stub_text(tmp_path)
    for attempt in (1, 2, 3):
        (tmp_path / "marker").unlink(missing_ok=True)
        bench(tmp_path, text, only=["quality"])
        assert records(tmp_path)["plain/quality/8x8/steps=4"]["failure"]["attempts"] == attempt
    before = stamps(tmp_path)
    assert bench(tmp_path, text, only=["quality"])[0] == 3
    assert stamps(tmp_path) == before
    assert bench(tmp_path, text, only=["quality"], retry=True)[0] == 0
    assert calls(tmp_path) == [0, 4, 8, 8, 8, 8, 12, 16]


RUN = """
import signal
import sys
signal.signal(signal.SIGINT, signal.default_int_handler)        # a background shell leaves it ignored
from pathlib import Path
from hibench.cells import expand
from hibench.engines import LocalEngine
from hibench.runner import run_spec
from hibench.spec import load_spec
spec = load_spec(sys.argv[1])
sys.exit(run_spec(spec, expand(spec), out=sys.argv[2], report=False, engine=LocalEngine(sys.argv[3:])))
"""


def started(folder: Path, text: str) -> tuple[subprocess.Popen, psutil.Process]:
    """A run in its own process, in the middle of its quality cell, and its worker."""
    (folder / "b.yaml").write_text("version: 1\n" + text)
    run = subprocess.Popen([sys.executable, "-c", RUN, str(folder / "b.yaml"), str(folder / "results"), *STUB],
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    until = time.monotonic() + 30
    while not (folder / "marker").exists():
        assert time.monotonic() < until, "the run did not get as far as its quality cell"
        assert run.poll() is None, run.stdout.read()
        time.sleep(0.02)
    return run, psutil.Process(run.pid).children()[0]


def dead(process: psutil.Process) -> bool:
    until = time.monotonic() + 5
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def test_a_run_killed_with_its_worker_working_is_resumed_to_the_same_results(tmp_path):
    text = stub_text(tmp_path, stop="sleep")
    run, worker = started(tmp_path, text)
    run.kill()                                                 # kill -9: nothing can be tidied up
    run.communicate()
    assert dead(worker)
    assert list(records(tmp_path)) == ["plain/speed/8x8/steps=4"]
    assert calls(tmp_path) == [0, 4, 8]
    code, printed = bench(tmp_path, text)
    assert (code, calls(tmp_path)) == (0, [8, 12, 16])
    assert "1 cells to run, 1 are measured already" in printed
    assert bench(tmp_path, text, out="undisturbed")[0] == 0
    same_results(tmp_path, "results", "undisturbed")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_ends_its_worker_and_keeps_what_is_there(tmp_path, number):
    run, worker = started(tmp_path, stub_text(tmp_path, stop="sleep"))
    run.send_signal(number)
    printed, _ = run.communicate(timeout=20)
    assert run.returncode == 130
    assert "interrupted: 1 of 2 cells are measured; run the same command again to go on from here" in printed
    assert "Traceback" not in printed
    assert dead(worker)
    staged = next((tmp_path / "results" / "work").iterdir())
    assert {"shard-0-4.npz", "shard-4-4.npz"} <= set(os.listdir(staged))


def test_speed_replicates_that_are_there_are_not_measured_again(tmp_path):
    class Stops(LocalEngine):
        jobs: list

        def run(self, job, log, **options):
            self.jobs.append(job.name)
            if len(self.jobs) == 4:
                raise KeyboardInterrupt
            return LocalEngine.run(self, job, log, **options)

    text = stub_text(tmp_path, more=", 16")
    engine = Stops(STUB)
    engine.jobs = []
    assert bench(tmp_path, text, only=["speed"], engine=engine)[0] == 130
    engine = Stops(STUB)
    engine.jobs = [None] * 10
    assert bench(tmp_path, text, only=["speed"], engine=engine)[0] == 0
    assert len(engine.jobs) - 10 == 2 * 3 - 3
    assert [len(record["speed"]["processes"]) for record in records(tmp_path).values()] == [3, 3]


def test_a_corrupt_record_is_named_and_measured_again(tmp_path):
    text = stub_text(tmp_path).replace("stop_at: 8", "stop_at: 99")
    assert bench(tmp_path, text)[0] == 0
    record = records(tmp_path)["plain/quality/8x8/steps=4"]
    path = folder_of(tmp_path, record) / "record.json"
    path.write_text(path.read_text()[:100])
    calls(tmp_path)
    code, printed = bench(tmp_path, text)
    assert code == 0
    assert f"{path}: is corrupt" in printed
    assert not (tmp_path / "calls").exists()                   # its features were whole
    assert values(records(tmp_path)["plain/quality/8x8/steps=4"]) == values(record)


# -- order, contamination, shards, jobs --------------------------------------------------------------------------------------


class Fake:
    """An engine that runs nothing: it writes good results, and remembers what it was asked for."""

    def __init__(self, traces=(), fail=lambda cell: None):
        self.jobs, self.traces, self.fail = [], list(traces), fail

    def run(self, job, log, *, timeout_s, gpu=None, tick=None):
        asked = json.loads(job.read_text())
        cell, out = Cell.from_json(asked["cell"]), Path(asked["out"])
        self.jobs.append((asked["task"], cell.key, asked["replicate"]))
        log.touch()
        verdict = self.fail(cell)
        if verdict is not None:
            (out / "status.json").write_text(json.dumps(verdict))
        elif asked["task"] == "speed":
            process = {"latency_s": [0.5, 0.5], "load_s": 1.0, "first_image_s": 1.0}
            (out / f"speed-{asked['replicate']}.json").write_text(json.dumps({"status": "ok", "process": process}))
        elif asked["task"] == "quality":
            for first, count in asked["shards"]:
                np.savez(out / f"shard-{first}-{count}.npz", seeds=np.arange(first, first + count),
                         missing=np.array(list(cell.options.get("missing", {})), dtype=str))
        else:
            scored = {"values": {"fd@x": {"value": 1.0, "pm": None}}, "missing": cell.options.get("missing", {}),
                      "inapplicable": cell.options.get("inapplicable", {})}
            (out / "quality.json").write_text(json.dumps(scored))
        return Exit(0, False, 0.25, self.traces.pop(0) if self.traces else None)

    def kill_all(self): ...


def fake_text(methods="a: {}, b: {}", sweep="resolution: [8, 16, 32]", settings="timing: {processes: 3}") -> str:
    """A benchmark of methods, each given as `name: {what it has beside its adapter}`."""
    names = [name for name in ("a", "b") if f"{name}: {{" in methods]
    for name in sorted(names, key=methods.index):
        methods = methods.replace(f"{name}: {{", f"{name}: {{adapter: '{PLAIN}', ", 1).replace(", }", "}", 1)
    order = ", ".join(sorted(names, key=lambda name: methods.index(f"{name}: {{")))
    return f"methods: {{{methods}}}\n{settings}\nsweeps:\n  s: {{methods: [{order}], {sweep}}}\n"


def test_replicates_are_interleaved_and_shuffled_each_time_anew(tmp_path):
    engine = Fake()
    assert bench(tmp_path, fake_text(), engine=engine)[0] == 0
    speed = [job for job in engine.jobs if job[0] == "speed"]
    assert [replicate for _, _, replicate in speed] == [0] * 6 + [1] * 6 + [2] * 6
    rounds = [[key for _, key, _ in speed[start:start + 6]] for start in (0, 6, 12)]
    assert len({tuple(sorted(keys)) for keys in rounds}) == 1
    assert len({tuple(keys) for keys in rounds}) == 3
    again = Fake()
    bench(tmp_path, fake_text(), engine=again, out="again")
    assert again.jobs == engine.jobs                           # and the same each run
    quality = [key for task, key, _ in engine.jobs if task == "score"]
    assert quality == [f"{m}/quality/{r}x{r}" for m in "ab" for r in (8, 16, 32)]


def throttled() -> GpuTrace:
    nvml = FakeNvml(FakeGpu(reasons=0x40))
    return GpuTrace([Gpu(nvml, nvml.gpus[0]).sample()])


@pytest.mark.parametrize(("disturbed", "processes", "flags"), [(1, 4, []), (2, 4, ["throttled"])])
def test_a_disturbed_replicate_is_repeated_once(tmp_path, disturbed, processes, flags):
    engine = Fake(traces=[throttled()] * disturbed)
    _, printed = bench(tmp_path, fake_text("a: {}", "measure: [speed], resolution: [8]"), engine=engine, cool_down_s=0.01)
    record = records(tmp_path)["a/speed/8x8"]
    assert len(engine.jobs) == processes
    assert [flag["name"] for flag in record["flags"]] == flags
    assert "throttled; replicate 1 of 3 is measured once more" in printed


OOM = {"status": "oom", "reason": "no memory", "failure": {"stage": "decode", "type": "OutOfMemoryError", "message": ""}}


def test_inference_can_be_turned_off(tmp_path):
    engine = Fake(fail=lambda cell: OOM if cell.height >= 16 else None)
    text = fake_text("a: {}", "resolution: [8, 16, 32]", "timing: {processes: 1}")
    bench(tmp_path, text, engine=engine, infer_oom=False)
    assert {record.get("inferred_from") for record in records(tmp_path).values()} == {None}
    assert [record["status"] for record in records(tmp_path).values()].count("oom") == 4


def test_earlier_out_of_memory_spares_new_larger_cells(tmp_path):
    engine = Fake(fail=lambda cell: OOM if cell.height >= 16 else None)
    bench(tmp_path, fake_text("a: {}", "measure: [speed], resolution: [16]"), engine=engine)
    assert len(engine.jobs) == 1
    bench(tmp_path, fake_text("a: {}", "measure: [speed], resolution: [8, 16, 128]"), engine=engine)
    assert {key for _, key, _ in engine.jobs[1:]} == {"a/speed/8x8"}
    assert records(tmp_path)["a/speed/128x128"]["inferred_from"] == "a/speed/16x16"


@pytest.mark.parametrize(("change", "needed"), [
    ({"height": 32}, True), ({"height": 32, "width": 8}, False), ({}, False), ({"kind": "quality"}, True),
    ({"height": 32, "steps": 9}, False), ({"height": 32, "sparsity": 0.5}, False), ({"height": 32, "options": {"x": 1}}, False),
    ({"height": 32, "method": "other"}, False), ({"height": 32, "dtype": "float16"}, False),
])
def test_what_needs_as_much_memory(change, needed):
    cell = Cell("m", "toy", "speed", 16, 16)
    first, second = (Task(one, "", "", None) for one in (cell, replace(cell, **change)))
    assert needs_as_much(second, first) is needed


def test_fail_fast_stops_at_the_first_failure(tmp_path):
    broken = {"status": "error", "reason": "broken", "failure": None}
    engine = Fake(fail=lambda cell: broken if cell.method == "b" else None)
    text = fake_text("b: {}, a: {}", "measure: [quality], resolution: [8]")
    code, printed = bench(tmp_path, text, engine=engine, fail_fast=True)
    assert (code, list(records(tmp_path))) == (3, ["b/quality/8x8"])
    assert "--fail-fast" in printed


def test_jobs_run_quality_cells_side_by_side_with_the_same_results(tmp_path):
    text = fake_text("a: {}, b: {}", "resolution: [8, 16]", "timing: {processes: 1}")
    assert bench(tmp_path, text, engine=Fake(), jobs=3)[0] == 0
    assert bench(tmp_path, text, engine=Fake(), out="one")[0] == 0
    same = [{key: values(record) for key, record in records(tmp_path, out).items()} for out in ("results", "one")]
    assert same[0] == same[1]


def test_shards_share_the_cells(tmp_path):
    engines = [Fake(), Fake(), Fake()]
    for part, engine in enumerate(engines, 1):
        bench(tmp_path, fake_text(), engine=engine, shard=(part, 3))
    keys = [{key for _, key, _ in engine.jobs} for engine in engines]
    assert sum(map(len, keys)) == len(set.union(*keys)) == len(records(tmp_path)) == 12
    _, printed = bench(tmp_path, fake_text(), engine=Fake())
    assert "nothing to do: 12 cells already measured" in printed
    with pytest.raises(SpecError, match="between 1 and 3"):
        shard_of([], (4, 3))


def test_a_missing_metric_is_an_incomplete_cell(tmp_path):
    text = fake_text("a: {options: {missing: {fid: 'no weights; next: hibench fetch fid'}}}",
                     "measure: [quality], resolution: [8]")
    code, printed = bench(tmp_path, text, engine=Fake())
    record = records(tmp_path)["a/quality/8x8"]
    assert (code, record["status"], is_good(record)) == (3, "ok", False)
    assert "without fid: no weights; next: hibench fetch fid" in printed
    engine = Fake()
    bench(tmp_path, text, engine=engine)
    assert engine.jobs == []
    bench(tmp_path, text, engine=engine, retry=True)
    assert [task for task, _, _ in engine.jobs] == ["quality", "score"]        # its features lacked an extractor


def test_a_metric_that_does_not_apply_is_not_missing(tmp_path):
    text = fake_text("a: {options: {inapplicable: {clip-score@x: takes no prompt}}}",
                     "measure: [quality], resolution: [8]")
    code, _ = bench(tmp_path, text, engine=Fake())
    quality = records(tmp_path)["a/quality/8x8"]["quality"]
    assert (code, quality["missing"], quality["inapplicable"]) == (0, {}, {"clip-score@x": "takes no prompt"})


def test_shards_lie_on_whole_batches():
    cell = Cell("m", "toy", "quality", 8, 8, settings={"images": 50, "batch": 8, "shard": 20, "first_seed": 100})
    assert shards_of(Task(cell, "", "", None)) == [[100, 16], [116, 16], [132, 16], [148, 2]]


# -- before the first cell -----------------------------------------------------------------------------------------------------


def test_unknown_methods_are_named_before_anything_is_written(tmp_path):
    with pytest.raises(UnknownMethod, match=r"no method 'tyo'; did you mean 'toy'.*no class 'Plane'; did you mean 'Plain'"):
        prepare([Cell("m", adapter, "speed", 16, 16) for adapter in ("tyo", f"{PLAIN[:-5]}Plane")], ENV)
    with pytest.raises(SpecError, match="'tyo'; did you mean 'toy'"):
        bench(tmp_path, "methods: {t: {adapter: tyo}}\nsweeps: {s: {methods: [t], resolution: [8]}}\n")
    assert not (tmp_path / "results").exists()


def test_options_that_a_method_does_not_have_are_named_before_anything_is_written(tmp_path):
    with pytest.raises(SpecError, match=r"methods.t: toy has no option 'wave'; did you mean 'waves'"):
        bench(tmp_path, "methods: {t: {adapter: toy, options: {wave: 3}}}\nsweeps: {s: {methods: [t], resolution: [8]}}\n")
    assert not (tmp_path / "results").exists()


def test_what_is_known_without_running_starts_no_process(tmp_path):
    text = (f"methods:\n  plain: {{adapter: '{PLAIN}'}}\n  gone: {{adapter: '{PLAIN}', weights: {tmp_path}/no.safetensors}}\n"
            f"  random: {{adapter: '{PLAIN}', weights: random}}\n"
            f"references: {{photos: {{kind: folder, path: {tmp_path}/photos}}}}\nquality: {{reference: photos}}\n"
            "sweeps: {s: {methods: [plain, gone, random], resolution: [13, 8], sparsity: [0, 0.5], measure: [quality]}}\n")
    engine = Fake()
    code, printed = bench(tmp_path, text, engine=engine)
    assert (code, engine.jobs) == (3, [])
    reasons = {key: (record["status"], record["reason"]) for key, record in records(tmp_path).items()}
    assert reasons["plain/quality/13x13"] == ("skip", "plain draws no 13 px")
    assert reasons["plain/quality/8x8/sparsity=0.5"] == ("skip", "plain cannot skip coordinates: it has no axis 'sparsity'")
    assert reasons["random/quality/8x8"][0] == "skip"
    assert reasons["gone/quality/8x8"] == (
        "missing", f"gone: weights {tmp_path}/no.safetensors: no such file; put it there, or correct the path")
    assert "photos: no such file" in reasons["plain/quality/8x8"][1]
    assert "nothing was measured" in printed
    (tmp_path / "photos").mkdir()                              # and now it is there
    bench(tmp_path, text, engine=engine)
    assert {key for _, key, _ in engine.jobs} == {"plain/quality/8x8"}


def test_a_gpu_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr("hibench.prepare.cuda_devices", lambda: 0)
    cells = [replace(Cell("m", "toy", "speed", 16, 16), device=device) for device in ("cuda", "auto")]
    first, second = prepare(cells, ENV)
    assert first.verdict.status == "skip"
    assert "torch sees no CUDA device" in first.verdict.reason
    assert (second.cell.device, second.verdict) == ("cpu", None)
    assert first.id != second.id
    with pytest.raises(Unfit, match="--device cuda: torch sees no CUDA device"):
        prepare(cells, ENV, "cuda")
    monkeypatch.setattr("hibench.prepare.cuda_devices", lambda: 1)
    assert [task.cell.device for task in prepare(cells, ENV)] == ["cuda", "cuda"]


def test_speed_is_not_measured_beside_a_distributed_job(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(Unfit, match="WORLD_SIZE=4"):
        bench(tmp_path, fake_text(), engine=Fake())


def test_a_dry_run_writes_nothing_and_says_everything(tmp_path):
    text = fake_text("a: {}", "resolution: [8, 13]")
    engine = Fake()
    code, printed = bench(tmp_path, text, engine=engine, dry_run=True)
    assert (code, engine.jobs, (tmp_path / "results").exists()) == (0, [], False)
    assert "run     a/speed/8x8      time unknown" in printed
    assert "skip    a/quality/13x13  plain draws no 13 px" in printed
    bench(tmp_path, text, engine=engine, only=["speed"])
    code, printed = bench(tmp_path, text, dry_run=True)
    assert "keep    a/speed/8x8      ok" in printed
    assert "4 cells: 1 to run, 2 to keep, 1 decided without running; nothing was run (--dry-run)" in printed


def test_a_full_disk_stops_cleanly_and_loses_nothing(tmp_path):
    full = {"status": "error", "reason": "OSError: [Errno 28] No space left on device", "failure": {"type": "OSError"}}
    engine = Fake(fail=lambda cell: full if cell.method == "b" else None)
    text = fake_text(sweep="measure: [quality], resolution: [8]")
    with pytest.raises(HibenchError, match=r"no space left on device.*what was measured so far is kept") as caught:
        bench(tmp_path, text, engine=engine)
    assert caught.value.exit_code == 3
    assert list(records(tmp_path)) == ["a/quality/8x8"]
    engine = Fake()
    assert bench(tmp_path, text, engine=engine)[0] == 0
    assert {key for _, key, _ in engine.jobs} == {"b/quality/8x8"}


def test_a_report_that_fails_costs_no_record(tmp_path, monkeypatch, capsys):
    def broken(*args, **kwargs):
        raise ValueError("no fonts")

    monkeypatch.setattr("hibench.report.write_report", broken)
    (tmp_path / "b.yaml").write_text("version: 1\n" + fake_text("a: {}", "measure: [speed], resolution: [8]"))
    spec = load_spec(tmp_path / "b.yaml")
    assert run_spec(spec, expand(spec), out=tmp_path / "results", engine=Fake()) == 0
    assert "the report could not be written (ValueError: no fonts); the records are safe" in capsys.readouterr().out
    assert len(Store(tmp_path / "results").records()[0]) == 1


# -- what is shown -------------------------------------------------------------------------------------------------------------


def shown(**changes) -> dict:
    return {"key": "ldm/speed/128x128", "kind": "speed", "status": "ok", "method": {"name": "ldm"}, "wall_s": 10.0,
            "axes": {"height": 128, "width": 128, "steps": 50, "sparsity": 0.75, "options": {"collage": "pixel"}},
            "settings": {}, "speed": {"latency_p50_s": 3.41, "latency_ci_s": [3.4, 3.43]}, **changes}


def test_lines_say_what_matters():
    quality = {"n": 128, "values": {"fd@scenes-clip": {"value": 41.234, "pm": 0.6}}, "missing": {}}
    assert cell_text(shown()) == "ldm 128² ×50 s=.75 collage=pixel"
    assert outcome_text(shown()) == "3.41 s ±.44%"
    assert outcome_text(shown(kind="quality", quality=quality)) == "fd@scenes-clip 41.23 ±.6"
    assert outcome_text(shown(status="oom", reason="no memory")) == "speed: no memory"
    assert outcome_text(shown(flags=[{"name": "throttled", "text": ""}])).endswith("! throttled")
    assert [duration(s) for s in (40, 240, 9000)] == ["40 s", "4 min", "2.5 h"]


def test_a_terminal_has_a_live_line_and_a_file_has_none():
    for live in (False, True):
        stream = io.StringIO()
        progress = Progress(2, stream=stream, live=live)
        progress.doing("working")
        progress.finished(shown(), 240.0)
        progress.finished(shown(status="died", reason="killed"), None, Path("/log.txt"))
        progress.close()
        text = stream.getvalue()
        assert "ok      ldm 128² ×50 s=.75 collage=pixel   3.41 s ±.44%   [1/2, ~4 min left]\n" in text
        assert "speed: killed   [2/2]\n        log: /log.txt\n" in text
        assert ("\x1b[2K" in text) is live
        assert ("working" in text) is live


def test_estimates_come_from_the_same_key_or_are_scaled():
    def cell(side):
        return Cell("ldm", "ldm", "speed", side, side, steps=50)

    estimate = Estimate([shown(axes={"height": 64, "width": 64, "steps": 50}, key=cell(64).key, wall_s=13.0)])
    assert estimate.cell(cell(64)) == 13.0
    assert estimate.cell(cell(128)) == pytest.approx(3 + 10 * 4)
    assert estimate.total([(cell(64), 1.0), (cell(128), 0.5)]) == pytest.approx(13 + 43 / 2)
    assert Estimate().total([(cell(64), 1.0)]) is None
    assert Estimate().total([]) == 0.0
