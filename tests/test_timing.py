"""Timing and the stage clock, on a fake clock and on the real one."""

from __future__ import annotations

import gc
import os
import random
import statistics
import subprocess
import sys
import time

import numpy as np
import pytest

from hibench.errors import ContractError
from hibench.fakes import FakeClock
from hibench.stages import HostEvent, ImageTrace, RecordingStage, check_effective
from hibench.timing import (
    Clock,
    bootstrap_ci,
    compile_counters,
    contended,
    host_bound,
    mad,
    measure,
    outliers,
    percentile,
    quiet_gc,
    summarise,
    waited_s,
    warmed_up,
)

STEP_S, ENCODE_S, DECODE_S = 0.01, 0.05, 0.2


def fake(clock: FakeClock, device_events: bool = True) -> Clock:
    return Clock(clock.perf_counter_ns, lambda: None, clock.event, device_events)


def image_maker(clock: FakeClock, steps: int = 5, extra=lambda seed: 0.0):
    """Generates `steps` steps of 10 ms between an encode of 50 ms and a decode of 200 ms."""
    def generate(seed, stage):
        with stage("encode"):
            clock.sleep(ENCODE_S)
        clock.sleep(0.003)
        with stage("denoise"):
            for _ in range(steps):
                clock.sleep(STEP_S)
                stage.step()
        with stage("decode"):
            clock.sleep(DECODE_S + extra(seed))
        stage.effective(steps=steps, nfe=steps)
        return seed
    return generate


def test_four_images_of_five_steps_give_twenty_steps_and_nothing_else_is_a_step():
    clock = FakeClock()
    result = measure(image_maker(clock), images=4, warmup=2, clock=fake(clock), steps=5)
    assert len(result.step_s) == 20
    assert result.step_s == pytest.approx([STEP_S] * 20)                    # step 0 too; no decode, no next encode
    assert result.stage_s["encode"] == pytest.approx([ENCODE_S] * 4)
    assert result.stage_s["denoise"] == pytest.approx([5 * STEP_S] * 4)
    assert result.stage_s["decode"] == pytest.approx([DECODE_S] * 4)
    assert result.latency_s == pytest.approx([0.303] * 4)


def test_four_images_of_five_steps_on_the_real_clock():
    def generate(seed, stage):
        with stage("denoise"):
            for _ in range(5):
                time.sleep(0.001)
                stage.step()
        with stage("decode"):
            time.sleep(0.02)
    result = measure(generate, images=4, warmup=1)
    assert len(result.step_s) == 20
    assert statistics.median(result.step_s) < 0.01 < 0.02 <= min(result.stage_s["decode"])
    assert all(latency >= 0.025 for latency in result.latency_s)
    assert result.gpu_s is None


def test_stages_that_alternate_are_added_up_and_gaps_are_nobody_s():
    clock = FakeClock()
    stage = RecordingStage(clock.event)
    for _ in range(3):                                                     # phases of a progressive method
        with stage("denoise"):
            for _ in range(2):
                clock.sleep(STEP_S)
                stage.step()
            clock.sleep(0.5)                                               # after the last step: denoise, but no step
        with stage("decode"):
            clock.sleep(DECODE_S)
    trace = stage.finish()
    assert trace.step_s == pytest.approx([STEP_S] * 6)
    assert trace.stage_s == pytest.approx({"denoise": 3 * (2 * STEP_S + 0.5), "decode": 3 * DECODE_S})


def test_each_image_has_lists_of_its_own():
    clock = FakeClock()
    traces = []
    for _ in range(3):
        stage = RecordingStage(clock.event)
        image_maker(clock)(0, stage)
        traces.append(stage.finish())
    assert [len(trace.step_s) for trace in traces] == [5, 5, 5]


def test_events_are_made_before_the_image_and_never_reused():
    clock = FakeClock()
    made = []

    def event():
        made.append(clock.event())
        return made[-1]
    stage = RecordingStage(event, steps=50)
    before = len(made)
    image_maker(clock, steps=50)(0, stage)
    assert before == len(made) == 58
    stage.finish()
    few = RecordingStage(event, steps=None)                                # an unknown number of steps still works
    image_maker(clock, steps=50)(0, few)
    assert len(few.finish().step_s) == 50


@pytest.mark.parametrize(("misuse", "words"), [
    (lambda s: s("denoising"), "unknown stage 'denoising'; known: encode, denoise, decode; did you mean 'denoise'?"),
    (lambda s: s.step(), "stage.step() outside every stage"),
    (lambda s: nest(s), "opened stage 'decode' inside stage 'denoise'"),
    (lambda s: step_in_decode(s), "stage.step() inside stage 'decode'"),
    (lambda s: (s("encode").__enter__(), s.finish()), "left stage 'encode' open"),
])
def test_misuse_of_stages_is_a_contract_error(misuse, words):
    with pytest.raises(ContractError) as caught:
        misuse(RecordingStage())
    assert words in str(caught.value)


def nest(stage):
    with stage("denoise"), stage("decode"):
        pass


def step_in_decode(stage):
    with stage("decode"):
        stage.step()


def test_the_stage_through_which_an_exception_left_is_known():
    stage = RecordingStage()
    with pytest.raises(ValueError, match="x"), stage("decode"):
        raise ValueError("x")
    assert stage.failed_in == "decode"
    assert stage.current is None


@pytest.mark.parametrize(("trace", "asked", "words"), [
    (ImageTrace(effective={"steps": 10}), {"steps": 50}, "50 steps were asked for, and the method did 10"),
    (ImageTrace(step_s=[0.1] * 10), {"steps": 50}, "50 steps were asked for, and the method did 10"),
    (ImageTrace(), {"steps": 50}, "50 steps were asked for, and the method reported none"),
    (ImageTrace(effective={"steps": 5, "nfe": 0}), {"steps": 5}, "nfe=0"),
    (ImageTrace(effective={"steps": 5, "sparsity": 0.0}), {"steps": 5, "sparsity": 0.75},
     "sparsity 0.75 was asked for, and the method did 0"),
    (ImageTrace(effective={"steps": 5, "sparsity": 0.5}), {"steps": 5}, "sparsity 0 was asked for, and the method did 0.5"),
    (ImageTrace(effective={"steps": 5}), {"steps": 5, "sparsity": 0.75},
     "sparsity 0.75 was asked for, and the method reported none"),
])
def test_what_was_not_done_as_asked_is_a_contract_error(trace, asked, words):
    axes = frozenset({"steps", "sparsity"})
    with pytest.raises(ContractError) as caught:
        check_effective(trace, **{"axes": axes, "steps": None, "sparsity": 0.0, "pixels": 4096, **asked})
    assert words in str(caught.value)


def test_what_was_done_as_asked_passes():
    def check(trace, axes=("steps", "sparsity"), steps=None, sparsity=0.0):
        check_effective(trace, axes=frozenset(axes), steps=steps, sparsity=sparsity, pixels=4096)
    check(ImageTrace(effective={"steps": 50, "nfe": 100, "sparsity": 0.0}), steps=50)
    check(ImageTrace(step_s=[0.1] * 50), steps=50)
    check(ImageTrace(step_s=[0.1] * 150, effective={"steps": 50}), steps=50)           # three phases
    check(ImageTrace(effective={"steps": 7}))                                          # not asked: its own number
    check(ImageTrace(effective={"steps": 5, "sparsity": 0.8750}), steps=5, sparsity=0.8755)    # whole pixels
    check(ImageTrace(), axes=("resolution",), steps=50)                                # no such axis: nothing to honour


def test_warm_up_ends_when_two_images_agree_or_five_were_extra():
    assert not warmed_up([], 0)
    assert warmed_up([3.0], 1)
    assert warmed_up([3.0], 0)
    assert not warmed_up([3.0], 2)
    assert not warmed_up([3.0, 1.0], 2)
    assert warmed_up([3.0, 1.0, 1.01], 2)
    assert not warmed_up([3.0, 1.0, 1.03], 2)
    assert warmed_up([7, 6, 5, 4, 3, 2, 1], 2)
    assert not warmed_up([7, 6, 5, 4, 3, 2], 2)


def test_the_cold_image_is_separate_and_warm_up_is_counted():
    clock = FakeClock()
    slow = {0: 3.0, 1: 1.0}
    result = measure(image_maker(clock, extra=lambda seed: slow.get(seed, 0.0)), images=3, warmup=2, clock=fake(clock))
    assert result.first_image_s == pytest.approx(3.303)
    assert result.warmup_s == pytest.approx([3.303, 1.303, 0.303, 0.303])
    assert result.warmup_images == 4
    assert result.latency_s == pytest.approx([0.303] * 3)


def test_max_seconds_bounds_the_timed_images_but_one_is_always_timed():
    clock = FakeClock()
    long = measure(image_maker(clock), images=100, warmup=1, max_seconds=1.0, clock=fake(clock))
    assert len(long.latency_s) == 4                                        # 0.303 s each: the fourth begins before 1 s
    one = measure(image_maker(clock), images=100, warmup=1, max_seconds=0.01, clock=fake(clock))
    assert len(one.latency_s) == 1
    drift = iter(range(1, 100))
    slower = image_maker(clock, extra=lambda seed: next(drift))
    bounded = measure(slower, images=1, warmup=2, max_seconds=2.0, clock=fake(clock))
    assert bounded.warmup_images == 2                                      # no extra warm-up beyond the limit


def test_the_device_is_synchronised_on_both_sides_and_only_there():
    clock = FakeClock()
    calls = []
    generate = image_maker(clock)

    def noted(seed, stage):
        calls.append("image")
        return generate(seed, stage)
    measure(noted, images=3, warmup=1, clock=Clock(clock.perf_counter_ns, lambda: calls.append("sync"), clock.event, True))
    assert calls == ["sync", "image", "sync"] * 4


def test_gpu_seconds_come_from_the_events_around_the_image():
    clock = FakeClock()

    def synchronise():
        clock.sleep(0.1)                                                   # the device works on after the host is done
    result = measure(lambda seed, stage: clock.sleep(0.3), images=2, warmup=1,
                     clock=Clock(clock.perf_counter_ns, synchronise, clock.event, True))
    assert result.latency_s == pytest.approx([0.4, 0.4])
    assert result.gpu_s == pytest.approx([0.3, 0.3])
    assert host_bound(result.latency_s, result.gpu_s)
    assert not host_bound([1.0], [0.95])
    assert not host_bound([1.0], None)


def test_every_image_is_checked_outside_the_timed_region():
    clock = FakeClock()
    seen = []

    def check(output, trace):
        clock.sleep(10)
        seen.append((output, trace.effective["nfe"]))
    result = measure(image_maker(clock), images=2, warmup=1, clock=fake(clock), check=check, first_seed=5)
    assert seen == [(5, 5), (6, 5), (7, 5)]
    assert max(result.latency_s) < 1


def test_garbage_collection_is_off_inside_and_restored_after_an_error():
    assert gc.isenabled()
    seen = []

    def look_and_fail():
        seen.append((gc.isenabled(), gc.get_freeze_count() > 0))
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), quiet_gc():
        look_and_fail()
    assert seen == [(False, True)]
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
    gc.disable()
    try:
        with quiet_gc():
            pass
        assert not gc.isenabled()                                          # it was off, it stays off
    finally:
        gc.enable()


def test_garbage_collection_is_off_in_the_timed_loop_only():
    states = []
    measure(lambda seed, stage: states.append(gc.isenabled()), images=2, warmup=1)
    assert states == [True, False, False]
    assert gc.isenabled()


def test_the_harness_costs_little_beside_a_bare_loop():
    def generate(seed, stage):
        with stage("denoise"):
            for _ in range(20):
                stage.step()
        time.sleep(0.02)
    result = measure(generate, images=10, warmup=1)
    assert statistics.median(result.latency_s) < 0.02 * 1.1


def test_percentiles_are_numpy_s():
    values = [random.Random(0).random() for _ in range(11)]
    for q in (0, 0.1, 0.5, 0.9, 1):
        assert percentile(values, q) == pytest.approx(np.quantile(values, q))


def test_the_summary_is_about_processes_not_images():
    processes = [{"latency_s": [1.0] * 10, "load_s": 1, "first_image_s": 5},
                 {"latency_s": [2.0] * 50, "load_s": 2, "first_image_s": 6},
                 {"latency_s": [1.1] * 10, "load_s": 9, "first_image_s": 7}]
    for p in processes:
        p.update(weights_bytes=100, peak_allocated_bytes=None, idle_rss_bytes=1000, peak_rss_bytes=1500)
    processes[2]["peak_rss_bytes"] = 1700
    processes[0].update(flops=10, nfe=50)
    summary = summarise(processes)
    assert summary["latency_p50_s"] == pytest.approx(1.1)                  # not 2.0, the median of all images
    assert summary["images"] == 70
    assert (summary["load_s"], summary["first_image_s"]) == (2, 6)
    assert (summary["peak_bytes"], summary["peak_source"]) == (700, "rss-over-idle")
    assert (summary["flops"], summary["nfe"], summary["weights_bytes"], summary["energy_j_per_image"]) == (10, 50, 100, None)
    low, high = summary["latency_ci_s"]
    assert low <= 1.1 <= high
    assert summary["outliers"] == 0                                        # processes differ, images within them do not
    gpu = summarise([{**processes[0], "peak_allocated_bytes": 5}, {**processes[1], "peak_allocated_bytes": 7}])
    assert (gpu["peak_bytes"], gpu["peak_source"]) == (7, "cuda-allocated")
    unknown = summarise([{"latency_s": [1.0], "load_s": 1, "first_image_s": 5}])
    assert unknown["peak_bytes"] is None
    assert unknown["peak_source"] is None
    assert unknown["latency_ci_s"] is None


def test_the_interval_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(60):                                                    # 3 % between processes, 0.3 % within
        data = [np.exp(generator.normal(0, 0.03) + generator.normal(0, 0.003, 10)) for _ in range(9)]
        low, high = bootstrap_ci(data, resamples=400)
        covered += low <= 1.0 <= high
    assert covered >= 52


def test_the_interval_knows_that_images_of_a_process_are_correlated():
    many_images = [[1.00] * 100, [1.05] * 100, [0.95] * 100]
    low, high = bootstrap_ci(many_images)
    assert high - low > 0.04
    assert bootstrap_ci(many_images) == bootstrap_ci(many_images)          # deterministic
    assert bootstrap_ci([[1.0, 1.1]]) is None


def test_outliers_are_counted_and_stay():
    quiet = [1.0 + 0.001 * (i % 7) for i in range(50)]
    assert outliers([quiet]) == 0
    assert outliers([[*quiet, 2.0, 0.1]]) == 2
    assert outliers([[1.0] * 50 + [2.0]]) == 1                             # most are equal: MAD is 0
    assert outliers([[1.0] * 5]) == 0
    assert mad([[1.0, 2.0, 3.0], [11.0, 12.0, 13.0]]) == pytest.approx(1.0)


def test_compile_counters_are_none_when_nothing_was_compiled(monkeypatch):
    import sys
    from types import SimpleNamespace

    monkeypatch.delitem(sys.modules, "torch._dynamo", raising=False)
    assert compile_counters() is None
    counters = {"stats": {"unique_graphs": 3}, "recompiles": {"a": 2, "b": 1}}
    monkeypatch.setitem(sys.modules, "torch._dynamo", SimpleNamespace(utils=SimpleNamespace(counters=counters)))
    assert compile_counters() == {"graphs": 3, "recompiles": 3}


def test_a_host_event_is_a_point_in_time():
    clock = FakeClock()
    a, b = HostEvent(clock.perf_counter_ns), HostEvent(clock.perf_counter_ns)
    a.record()
    clock.sleep(0.25)
    b.record()
    assert a.elapsed_time(b) == pytest.approx(250.0)


def test_the_fake_event_refuses_what_a_gpu_would_get_wrong():
    clock = FakeClock()
    event = clock.event()
    with pytest.raises(RuntimeError, match="before it was recorded"):
        event.elapsed_time(clock.event())
    event.record()
    with pytest.raises(RuntimeError, match="reused"):
        event.record()


@pytest.mark.gpu
def test_cuda_stages_and_steps_are_timed_by_events():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    x = torch.randn(2048, 2048, device="cuda")

    def generate(seed, stage):
        with stage("denoise"):
            for _ in range(5):
                for _ in range(10):
                    x @ x
                stage.step()
        with stage("decode"):
            for _ in range(100):
                x @ x
    result = measure(generate, device="cuda", images=4, warmup=2, steps=5)
    assert len(result.step_s) == 20
    assert sum(result.step_s) == pytest.approx(sum(result.stage_s["denoise"]), rel=0.2)
    assert statistics.median(result.stage_s["decode"]) > 5 * statistics.median(result.step_s)
    assert all(gpu <= wall for gpu, wall in zip(result.gpu_s, result.latency_s))


def test_waiting_for_a_core_is_read_from_the_scheduler(tmp_path):
    for name, text in (("1", "500 2000000000 3"), ("2", "700 500000000 1"), ("gone", "")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "schedstat").write_text(text)
    assert waited_s(tmp_path) == 2.5
    assert waited_s(tmp_path / "1") is None                                   # a kernel that does not tell
    assert waited_s(tmp_path / "nowhere") is None


@pytest.mark.parametrize(("latency", "waited", "disturbed"), [
    ([1.0, 1.0], 0.2, True), ([1.0, 1.0], 0.08, False), ([0.001], 0.04, False), ([1.0], None, False)])
def test_what_counts_as_contended(latency, waited, disturbed):
    assert contended(latency, waited) is disturbed


@pytest.mark.skipif(waited_s() is None or not hasattr(os, "sched_setaffinity"), reason="the kernel keeps no schedstat")
def test_a_process_that_takes_half_of_our_core_is_seen():
    def work(seed, stage):
        with stage("denoise"):
            end = time.thread_time() + 0.1
            while time.thread_time() < end:
                pass
            stage.step()

    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        other = subprocess.Popen([sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=subprocess.PIPE)
        try:
            other.stdout.readline()
            shared = measure(work, images=3, warmup=1)
        finally:
            other.kill()
            other.communicate()
    finally:
        os.sched_setaffinity(0, cores)
    assert contended(shared.latency_s, shared.cpu_wait_s)
