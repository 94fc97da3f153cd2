"""One cell in one process: verdicts, shards, prompts, failures."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import adapters
import numpy as np
import pytest
import torch
from PIL import Image

from hibench.errors import ContractError, SpecError
from hibench.fakes import FakeClock, FakeGpu, FakeNvml
from hibench.gpu import open_gpu
from hibench.job import CellJob, check_images, one_line, prompts_for, resolve_device
from hibench.metrics import score_cell
from hibench.stages import HostEvent
from hibench.timing import Clock
from hibench.toy import Toy
from hibench.worker import energy, flags, main, run_job, shard_lacks

HERE = Path(__file__).parent
PROCESS_FIELDS = {                       # of a speed record
    "replicate", "import_s", "load_s", "first_image_s", "warmup_images", "latency_s", "gpu_s", "stage_s", "step_s", "steps",
    "nfe", "weights_bytes", "peak_allocated_bytes", "peak_reserved_bytes", "peak_device_bytes", "peak_device_source",
    "idle_rss_bytes", "peak_rss_bytes", "stage_peak_bytes", "flops", "flops_source", "energy_j_per_image", "energy_window_s",
    "idle_w", "clock_mhz", "cpu_user_s", "cpu_wait_s",
}


def make_job(out: Path, task: str = "speed", **changes) -> dict:
    settings = {"images": 2, "warmup": 1} if task == "speed" else {"batch": 4, "keep": 3, "metrics": []}
    cell = {"method": "toy", "adapter": "toy", "weights": "reference", "options": {}, "height": 16, "width": 24, "steps": 3,
            "kind": "speed" if task == "speed" else "quality", "sparsity": 0.0, "prompts": None, "settings": settings,
            "device": "cpu", "dtype": "float32"}
    top = {key: changes.pop(key) for key in ("shards", "replicate", "cache") if key in changes}
    cell["settings"].update(changes.pop("settings", {}))
    cell.update(changes)
    return {"task": task, "cell": cell, "out": str(out), **top}


def extract(images, seeds):
    """Stands in for feature networks: two small arrays per image."""
    flat = images.float().flatten(1)
    return {"mean/embed": flat[:, :4].numpy(), "mean/logits": flat.mean(1, keepdim=True).numpy()}


def speed(tmp_path, adapter, **changes):
    return run_job(make_job(tmp_path, **changes), adapter=adapter)


def quality(tmp_path, adapter=Toy, shards=((0, 6), (6, 4)), **changes):
    return run_job(make_job(tmp_path, "quality", shards=[list(shard) for shard in shards], **changes), adapter=adapter,
                   extract=extract)


# -- speed -----------------------------------------------------------------------------------------------------------------


def test_a_speed_job_writes_every_field_of_the_record(tmp_path):
    verdict = speed(tmp_path, Toy, replicate=0, settings={"images": 4})
    assert json.loads((tmp_path / "speed-0.json").read_text()) == verdict
    process = verdict["process"]
    assert verdict["status"] == "ok"
    assert set(process) >= PROCESS_FIELDS
    assert len(process["latency_s"]) == 4
    assert len(process["step_s"]) == 12
    assert set(process["stage_s"]) == {"encode", "denoise", "decode"}
    assert (process["steps"], process["nfe"]) == (3, 3)
    assert process["gpu_s"] is None
    assert process["energy_j_per_image"] is None
    assert process["flops"] == 3 * (2 * 24 * 2 * 384 + 2 * 3 * 24 * 384)      # per step: frequency @ points, colour @ waves
    assert process["peak_rss_bytes"] > 0
    assert not (tmp_path / "status.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["speed-0.json"]      # nothing left aside


def test_only_replicate_0_spends_images_on_stage_memory_and_flops(tmp_path):
    process = speed(tmp_path, Toy, replicate=3)["process"]
    assert json.loads((tmp_path / "speed-3.json").read_text())["process"]["replicate"] == 3
    assert process["flops"] is None
    assert process["flops_source"] is None
    assert process["stage_peak_bytes"] == {}


def test_memory_that_a_method_holds_is_seen(tmp_path):
    process = speed(tmp_path, Toy, options={"memory_bytes": 100 << 20})["process"]
    assert process["peak_rss_bytes"] - process["idle_rss_bytes"] > 90 << 20
    if process["peak_rss_source"] == "VmHWM-reset":
        assert process["stage_peak_bytes"]["denoise"] > 90 << 20


@pytest.mark.parametrize(("name", "status", "stage", "words"), [
    ("Raises", "error", None, "ValueError: the method is broken"),
    ("RaisesWhenLoading", "error", "load", "RuntimeError: state_dict has unexpected keys"),
    ("Misses", "missing", "load", "no weights; get them with: hibench train misses"),
    ("ReturnsNaN", "error", None, "the method returned float32 with values that are not finite, not uint8"),
    ("ReturnsFloat", "error", None, "the method returned float32, not uint8"),
    ("ReturnsNone", "error", None, "the method returned NoneType, not a tensor uint8 [3, 16, 24]"),
    ("WrongShape", "error", None, "the method returned shape [3, 17, 24], and [3, 16, 24] was asked for"),
    ("SwapsSides", "error", None, "shape [3, 24, 16]"),
    ("OutOfMemory", "oom", "decode", "CUDA out of memory"),
    ("HostOutOfMemory", "oom", "denoise", "you tried to allocate"),
    ("ExitsPolitely", "error", None, "SystemExit: 0"),
    ("SaysNothing", "error", None, "3 steps were asked for, and the method reported none"),
    ("NeverEvaluates", "error", None, "nfe=0"),
    ("UnknownStage", "error", None, "unknown stage 'denoising'"),
    ("NestedStages", "error", "decode", "opened stage 'encode' inside stage 'decode'"),
    ("SupportsNothing", "skip", None, "this method is out of order"),
])
def test_a_failing_method_gives_a_verdict(tmp_path, capsys, name, status, stage, words):
    verdict = speed(tmp_path, getattr(adapters, name), options={})
    assert verdict["status"] == status
    assert words in verdict["reason"]
    assert "\n" not in verdict["reason"]
    assert json.loads((tmp_path / "status.json").read_text()) == verdict
    assert json.loads((tmp_path / "speed-0.json").read_text()) == verdict
    assert "Traceback" in capsys.readouterr().err
    if status == "skip":
        assert verdict["failure"] is None
    else:
        assert verdict["failure"]["stage"] == stage
        assert words in verdict["failure"]["message"]


def test_ignored_steps_name_both_numbers(tmp_path):
    verdict = speed(tmp_path, adapters.IgnoresSteps, steps=50)
    assert verdict["failure"]["type"] == "ContractError"
    assert verdict["reason"] == "50 steps were asked for, and the method did 3"


def test_ignored_sparsity_is_an_error_and_an_axis_that_is_not_there_a_skip(tmp_path):
    ignored = speed(tmp_path, adapters.IgnoresSparsity, sparsity=0.5)
    assert "sparsity 0.5 was asked for, and the method did 0" in ignored["reason"]
    verdict = speed(tmp_path, adapters.UndeclaredSparsity, sparsity=0.5)
    assert (verdict["status"], verdict["failure"]) == ("skip", None)
    assert verdict["reason"] == "toy cannot skip coordinates: it has no axis 'sparsity'"
    assert speed(tmp_path, Toy, sparsity=0.5)["process"]["effective"]["sparsity"] == 0.5


def test_an_oom_failure_tells_sizes(tmp_path):
    failure = speed(tmp_path, adapters.OutOfMemory)["failure"]
    assert failure["requested_bytes"] == 20 * 2**30
    assert failure["free_bytes"] > 0
    assert failure["type"] == "OutOfMemoryError"


def test_a_method_that_cannot_be_closed_changes_no_verdict(tmp_path, capsys):
    assert speed(tmp_path, adapters.FailsToClose)["status"] == "ok"
    assert "cannot close" in capsys.readouterr().err


def test_an_earlier_failure_is_forgotten_when_the_cell_succeeds(tmp_path):
    speed(tmp_path, adapters.Raises)
    assert (tmp_path / "status.json").exists()
    speed(tmp_path, Toy)
    assert not (tmp_path / "status.json").exists()


def test_a_wrong_option_or_device_is_told(tmp_path):
    assert speed(tmp_path, Toy, options={"wave": 3})["reason"] == "toy has no option 'wave'; did you mean 'waves'?"
    if not torch.cuda.is_available():
        assert "torch sees no CUDA device" in speed(tmp_path, Toy, device="cuda")["reason"]
        assert resolve_device("auto") == "cpu"


def test_energy_is_measured_over_five_seconds_of_images(tmp_path):
    clock, fake = FakeClock(), FakeGpu(energy_mj=0)

    def pass_time(seconds, watts):
        clock.sleep(seconds)
        fake.energy_mj += round(seconds * watts * 1000)
    cell = CellJob(make_job(tmp_path), {"clock": Clock(clock.perf_counter_ns, lambda: None, HostEvent),
                                        "sleep": lambda seconds: pass_time(seconds, 60)})
    made = []
    cell.generate = lambda seed, stage: (made.append(seed), pass_time(0.7, 400))
    gpu = open_gpu("0", FakeNvml(fake))
    found = energy(cell, gpu)
    assert found == {"energy_j_per_image": pytest.approx(280.0), "energy_window_s": pytest.approx(5.6),
                     "idle_w": pytest.approx(60.0)}
    assert made == list(range(8))
    fake.energy_mj = None
    assert energy(cell, gpu) == energy(cell, None) == {"energy_j_per_image": None, "energy_window_s": None, "idle_w": None}


def test_flags_are_sentences():
    names = {flag["name"]: flag["text"] for flag in flags({"alloc_retries": 2, "compile": {"recompiles": 1}}, True)}
    assert set(names) == {"host_bound", "alloc_retries", "recompiled"}
    assert all(len(text.split()) > 6 for text in names.values())
    assert flags({"alloc_retries": 0, "compile": None}, False) == []
    waited = {"device": "cpu", "latency_s": [1.0, 1.0], "cpu_wait_s": 0.5}
    (flag,) = flags(waited, False)
    assert (flag["name"], flag["text"].split(":")[0]) == (
        "contended", "threads waited for a core, together during 25% of the time")
    assert flags({**waited, "device": "cuda"}, False) == []


# -- quality ---------------------------------------------------------------------------------------------------------------


def test_a_quality_job_writes_shards_of_features_and_the_first_samples(tmp_path):
    assert quality(tmp_path)["status"] == "ok"
    with np.load(tmp_path / "shard-0-6.npz") as first, np.load(tmp_path / "shard-6-4.npz") as second:
        assert first["seeds"].tolist() == list(range(6))
        assert second["seeds"].tolist() == [6, 7, 8, 9]
        assert first["mean/embed"].shape == (6, 4)
        assert (first["bad_nan"], first["bad_constant"]) == (0, 0)
        toy = Toy()
        toy.load()
        image = toy.generate((16, 24), 7, steps=3)
        assert second["mean/logits"][1] == pytest.approx(image.float().mean().item(), abs=0.1)
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["0.png", "1.png", "2.png"]
    stored = np.asarray(Image.open(tmp_path / "samples" / "1.png"))
    assert np.array_equal(stored.transpose(2, 0, 1), toy.generate((16, 24), 1, steps=3).numpy())
    assert {path.name for path in tmp_path.iterdir()} == {"samples", "shard-0-6.npz", "shard-6-4.npz"}


def test_scale_consistency_makes_some_seeds_at_a_multiple_of_the_resolution(tmp_path):
    class Small(Toy):
        def supports(self, axes):
            return "no more than 50 px" if axes["width"] > 50 else None

        def generate_batch(self, resolution, seeds, **how):
            if resolution == (48, 48):
                raise RuntimeError("odd")
            return super().generate_batch(resolution, seeds, **how)

    wanted = {"metrics": ["scale-consistency@2", "scale-consistency@3", "scale-consistency"]}
    assert quality(tmp_path, Small, height=16, width=16, settings=wanted)["status"] == "ok"
    cell = {"height": 16, "width": 16, "device": "cpu"}
    scores = score_cell(sorted(tmp_path.glob("*.npz")), wanted, cell, tmp_path)
    (name, entry), = scores["values"].items()
    toy = Toy()
    toy.load()
    psnr = []
    for seed in range(8):
        high, low = (toy.generate((side, side), seed, steps=3).float() for side in (32, 16))
        error = (high.view(3, 16, 2, 16, 2).mean((2, 4)) - low).square().mean()
        psnr.append(float(10 * torch.log10(255**2 / error)))
    assert (name, entry["n"], entry["factor"], entry["resize"]) == ("scale-consistency@2", 8, 2, "box")
    assert entry["value"] == pytest.approx(sum(psnr) / 8, rel=1e-5)
    assert entry["pm"] > 0
    assert scores["inapplicable"] == {"scale-consistency": "scale-consistency: no more than 50 px"}
    assert scores["missing"] == {"scale-consistency@3": "scale-consistency@3: at 48x48: RuntimeError: odd"}


def test_shards_that_are_there_are_not_made_again(tmp_path):
    quality(tmp_path, shards=((0, 6),))
    before = (tmp_path / "shard-0-6.npz").stat().st_mtime_ns
    calls = []

    class Counts(Toy):
        def generate_batch(self, resolution, seeds, **kwargs):
            calls.extend(seeds)
            return super().generate_batch(resolution, seeds, **kwargs)
    quality(tmp_path, Counts)
    assert calls == [6, 7, 8, 9]
    assert (tmp_path / "shard-0-6.npz").stat().st_mtime_ns == before
    calls.clear()
    assert quality(tmp_path, adapters.Raises)["status"] == "ok"              # nothing to do: the method is not even opened


def test_a_damaged_shard_is_made_again(tmp_path, capsys):
    quality(tmp_path)
    good = (tmp_path / "shard-0-6.npz").read_bytes()
    for damaged in (b"", good[:200], good[:-30], b"PK" + os.urandom(100)):
        (tmp_path / "shard-0-6.npz").write_bytes(damaged)
        assert shard_lacks(tmp_path / "shard-0-6.npz", 0, 6) is None
        quality(tmp_path)
        assert shard_lacks(tmp_path / "shard-0-6.npz", 0, 6) == set()
    assert shard_lacks(tmp_path / "shard-0-6.npz", 0, 5) is None


def test_a_shard_is_made_again_when_an_extractor_that_it_lacked_is_there(tmp_path):
    def run(missing):
        job = make_job(tmp_path, "quality", shards=[[0, 2], [2, 2]])
        made = []

        def noted(images, seeds):
            made.extend(seeds)
            return extract(images, seeds)
        assert run_job(job, adapter=Toy, extract=noted, missing=missing)["status"] == "ok"
        return made
    assert run(["clip", "inception"]) == [0, 1, 2, 3]
    assert run(["clip", "inception"]) == []
    assert run(["clip"]) == [0, 1, 2, 3]
    (tmp_path / "shard-0-2.npz").unlink()
    assert run(["clip"]) == [0, 1]
    assert run([]) == [0, 1, 2, 3]
    assert run([]) == []


def test_a_method_without_batches_gives_the_same_features(tmp_path):
    quality(tmp_path / "batches")
    quality(tmp_path / "one", adapters.Small)
    with np.load(tmp_path / "batches" / "shard-6-4.npz") as a, np.load(tmp_path / "one" / "shard-6-4.npz") as b:
        assert set(a) == set(b)
        assert np.abs(a["mean/embed"] - b["mean/embed"]).max() <= 2


def test_bad_images_are_counted_and_stay(tmp_path):
    def extract_nan(images, seeds):
        values = np.zeros((len(seeds), 2), dtype=np.float32)
        values[0] = np.nan
        return {"x/embed": values}
    run_job(make_job(tmp_path, "quality", shards=[[0, 6]]), adapter=adapters.OneColour, extract=extract_nan)
    with np.load(tmp_path / "shard-0-6.npz") as shard:
        assert (shard["bad_nan"], shard["bad_constant"]) == (2, 6)            # batches of 4 and 2
        assert len(shard["x/embed"]) == 6


def test_random_weights_have_no_quality(tmp_path):
    verdict = quality(tmp_path, weights="random")
    assert verdict["status"] == "skip"
    assert "random weights" in verdict["reason"]
    assert speed(tmp_path, Toy, weights="random")["status"] == "ok"


@pytest.mark.parametrize(("name", "status"), [("Raises", "error"), ("Misses", "missing"), ("OutOfMemory", "oom"),
                                              ("ReturnsNaN", "error"), ("WrongShape", "error"), ("IgnoresSteps", "error")])
def test_failures_of_quality_jobs(tmp_path, name, status):
    verdict = quality(tmp_path, getattr(adapters, name), steps=5)
    assert verdict["status"] == status
    assert json.loads((tmp_path / "status.json").read_text()) == verdict
    assert not list(tmp_path.glob("shard-*"))


def test_a_failing_extractor_is_not_blamed_on_the_method(tmp_path):
    def broken(images, seeds):
        raise ValueError("bad network")
    verdict = run_job(make_job(tmp_path, "quality", shards=[[0, 2]]), adapter=Toy, extract=broken)
    assert verdict["failure"]["stage"] == "features"
    short = run_job(make_job(tmp_path, "quality", shards=[[0, 2]]), adapter=Toy, extract=lambda i, s: {"a": np.zeros((1, 2))})
    assert "output 'a' has 1 rows for 2 images" in short["reason"]


def test_results_after_kill_9_and_resume_equal_those_of_an_undisturbed_run(tmp_path):
    shards = [[first, 4] for first in range(0, 20, 4)]
    job = tmp_path / "job.json"
    job.write_text(json.dumps(make_job(tmp_path / "killed", "quality", shards=shards, settings={"batch": 2})))
    code = ("import json, sys; sys.path.insert(0, sys.argv[1]); "
            "import adapters, test_worker; from hibench.worker import run_job; "
            "run_job(json.load(open(sys.argv[2])), adapter=adapters.SlowToy, extract=test_worker.extract)")
    process = subprocess.Popen([sys.executable, "-c", code, str(HERE), str(job)])
    deadline = time.monotonic() + 60
    while not list((tmp_path / "killed").glob("shard-4-*")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    made = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("shard-*")}
    assert 2 <= len(made) < 5
    quality(tmp_path / "killed", shards=shards, settings={"batch": 2})
    quality(tmp_path / "whole", shards=shards, settings={"batch": 2})
    for first, count in shards:
        name = f"shard-{first}-{count}.npz"
        with np.load(tmp_path / "killed" / name) as a, np.load(tmp_path / "whole" / name) as b:
            assert set(a) == set(b)
            assert all(np.array_equal(a[key], b[key]) for key in a)
        if name in made:
            assert (tmp_path / "killed" / name).stat().st_mtime_ns == made[name]


def test_scoring_merges_the_shards(tmp_path):
    quality(tmp_path)
    seen = {}

    def score(paths, settings, cell, cache):
        seen.update(names=[path.name for path in paths], cell=cell["method"], cache=cache)
        return {"values": {}, "n": 10}
    job = make_job(tmp_path, "score", shards=[[0, 6], [6, 4]], cache=str(tmp_path / "cache"))
    assert run_job(job, score=score)["status"] == "ok"
    assert seen == {"names": ["shard-0-6.npz", "shard-6-4.npz"], "cell": "toy", "cache": tmp_path / "cache"}
    assert json.loads((tmp_path / "quality.json").read_text()) == {"values": {}, "n": 10}
    (tmp_path / "shard-0-6.npz").unlink()
    verdict = run_job(job, score=score)
    assert verdict["status"] == "error"
    assert "1 of 2 shards are missing (shard-0-6.npz)" in verdict["reason"]


def test_a_score_that_is_not_a_number_is_not_written(tmp_path):
    quality(tmp_path, shards=((0, 4),))
    job = make_job(tmp_path, "score", shards=[[0, 4]])
    assert run_job(job, score=lambda *_: {"values": {"fid": float("nan")}})["status"] == "error"
    assert not (tmp_path / "quality.json").exists()


# -- prompts and checks ----------------------------------------------------------------------------------------------------


def test_prompts_are_mapped_to_seeds(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\n\n  a dog \n", encoding="utf-8")
    assert prompts_for(str(file), [0, 1, 2]) == ["a cat", "a dog", "a cat"]
    assert prompts_for(["x", "y"], [101, 100, 103], first_seed=100) == ["y", "x", "y"]
    assert prompts_for(None, [1]) is None
    for bad, words in ((str(tmp_path / "absent"), "cannot be read"), ([], "holds no prompt"), ([" "], "holds no prompt")):
        with pytest.raises(SpecError, match=words):
            prompts_for(bad, [0])
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    with pytest.raises(SpecError, match="UTF-8"):
        prompts_for(str(tmp_path / "latin"), [0])


def test_the_method_gets_the_prompt_of_each_seed(tmp_path):
    seen = []

    class Listens(Toy):
        def generate_batch(self, resolution, seeds, *, prompts=None, **kwargs):
            seen.append((list(seeds), prompts))
            return super().generate_batch(resolution, seeds, prompts=prompts, **kwargs)
    quality(tmp_path, Listens, shards=((100, 3),), prompts=["a", "b"], settings={"first_seed": 100})
    assert seen == [([100, 101, 102], ["a", "b", "a"])]
    seen.clear()
    speed(tmp_path, Listens, prompts=["a", "b"])
    assert [prompts for _, prompts in seen[:3]] == [["a"], ["b"], ["a"]]


def test_images_on_another_device_break_the_contract():
    with pytest.raises(ContractError, match="on cpu, and it has to be on cuda:0"):
        check_images(torch.zeros(3, 2, 2, dtype=torch.uint8), (3, 2, 2), "cuda:0")
    check_images(torch.zeros(3, 2, 2, dtype=torch.uint8), (3, 2, 2), "cpu")


def test_errors_become_one_line():
    assert one_line(ValueError("a\n  b")) == "ValueError: a b"
    assert one_line(ValueError()) == "ValueError"
    assert one_line(SpecError("what, where")) == "what, where"
    assert len(one_line(ValueError("x" * 10_000))) < 600


# -- the process -----------------------------------------------------------------------------------------------------------


def test_an_unusable_job_file_is_a_usage_error(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    job = tmp_path / "job.json"
    for text in ("", "{}", "[1]", '{"task": "dance", "cell": {"kind": "speed"}}'):
        job.write_text(text)
        assert main([str(job)]) == 2
        assert str(job) in capsys.readouterr().err
    assert main([]) == 2
    assert main([str(tmp_path / "absent")]) == 2


def run_worker(tmp_path: Path, name: str) -> subprocess.CompletedProcess:
    job = tmp_path / f"{name}.json"
    job.write_text(json.dumps(make_job(tmp_path / name, adapter=f"{HERE / 'adapters.py'}:{name}", replicate=1)))
    return subprocess.run([sys.executable, "-m", "hibench.worker", str(job)], capture_output=True, text=True, timeout=120)


def test_the_module_runs_a_method_from_a_file(tmp_path):
    done = run_worker(tmp_path, "Small")
    assert (done.returncode, done.stderr) == (0, "")
    process = json.loads((tmp_path / "Small" / "speed-1.json").read_text())["process"]
    assert process["allocator"] == "expandable_segments:True"
    assert process["import_s"] > 0.1


def test_a_method_that_ends_its_process_leaves_its_exit_code_to_the_parent(tmp_path):
    assert run_worker(tmp_path, "Dies").returncode == 9
    assert not list((tmp_path / "Dies").iterdir())


@pytest.mark.gpu
def test_a_speed_job_on_a_gpu(tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    process = speed(tmp_path, Toy, device="auto", height=256, width=256, settings={"energy": False})["process"]
    assert process["device"] == "cuda"
    assert len(process["gpu_s"]) == len(process["latency_s"]) == 2
    assert process["peak_allocated_bytes"] > 0
    assert process["stage_peak_bytes"]["denoise"] > 0
