"""Worker processes: their ends are decoded, their groups are killed, and the parent sleeps meanwhile."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from hibench.engines import LocalEngine, gpu_of, kill_orphans, worker_identity
from hibench.fakes import FakeGpu, FakeNvml
from hibench.gpu import Gpu
from hibench.recording import failed, full_disk, last_line

SCRIPT = """
import json, os, signal, subprocess, sys, time
job = json.load(open(sys.argv[1]))
exec(job["code"])
"""


def run(tmp_path, code, *, timeout_s=20.0, grace_s=0.3, **options):
    job, log = tmp_path / "job-x.json", tmp_path / "log.txt"
    job.write_text(json.dumps({"code": code, "parent": worker_identity()}))
    return LocalEngine((sys.executable, "-c", SCRIPT), grace_s=grace_s).run(job, log, timeout_s=timeout_s, **options), log


def gone(pid: int, within_s: float = 3.0) -> bool:
    """Whether a process ends soon; a zombie is gone."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize(("mine", "expected"), [(None, "3"), ("7", "7")])
def test_workers_side_by_side_get_their_share_of_threads_unless_the_user_says_otherwise(tmp_path, monkeypatch, mine, expected):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if mine:
        monkeypatch.setenv("OMP_NUM_THREADS", mine)
    job, log = tmp_path / "job-x.json", tmp_path / "log.txt"
    job.write_text(json.dumps({"code": "print('threads', os.environ['OMP_NUM_THREADS'])", "parent": worker_identity()}))
    LocalEngine((sys.executable, "-c", SCRIPT), threads=3).run(job, log, timeout_s=20.0)
    assert f"threads {expected}" in log.read_text()


def test_output_goes_to_the_log_and_is_appended(tmp_path):
    end, log = run(tmp_path, "print('out'); print('err', file=sys.stderr)")
    assert (end.returncode, end.timed_out, end.trace) == (0, False, None)
    run(tmp_path, "print('second')")
    lines = log.read_text().splitlines()
    assert sorted(lines[1:3]) == ["err", "out"]
    assert [line[:4] for line in lines] == ["=== ", lines[1][:4], lines[2][:4], "=== ", "seco"]
    assert last_line(log) == "second"


@pytest.mark.parametrize(("code", "returncode", "words"), [
    ("os._exit(9)", 9, "the worker ended with exit code 9 before it gave a result"),
    ("os.kill(os.getpid(), signal.SIGKILL)", -9, "the worker was killed by SIGKILL (usually the host ran out of memory)"),
    ("os.kill(os.getpid(), signal.SIGSEGV)", -11, "the worker was killed by SIGSEGV"),
    ("print('half a line'); raise RuntimeError('no such model')", 1, "its last words: RuntimeError: no such model"),
])
def test_every_end_is_decoded(tmp_path, code, returncode, words):
    end, log = run(tmp_path, code)
    assert end.returncode == returncode
    verdict = failed(end, None, log, "scoring", 20.0)
    assert verdict.status == "died"
    assert words in verdict.reason
    assert "\n" not in verdict.reason
    assert verdict.failure["signal"] == (-returncode if returncode < 0 else None)


def test_a_time_out_kills_the_whole_group(tmp_path):
    """The worker ignores SIGTERM, and so does its child."""
    pids = tmp_path / "pids"
    code = (f"signal.signal(signal.SIGTERM, signal.SIG_IGN); child = subprocess.Popen(['sleep', '60']); "
            f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}'); time.sleep(60)")
    started = time.monotonic()
    end, log = run(tmp_path, code, timeout_s=1.0)
    assert end.timed_out
    assert end.returncode == -signal.SIGKILL
    assert time.monotonic() - started < 5
    assert all(gone(int(pid)) for pid in pids.read_text().split())
    verdict = failed(end, None, log, "replicate 1 of 5", 1.0)
    assert (verdict.status, verdict.reason) == (
        "timeout", "replicate 1 of 5 took longer than 1 s and was ended; raise the method's `timeout`")


def test_a_worker_may_clean_up_after_sigterm(tmp_path):
    code = "signal.signal(signal.SIGTERM, lambda *_: (print('cleaned'), sys.exit(0))); time.sleep(60)"
    end, log = run(tmp_path, code, timeout_s=1.0, grace_s=10.0)
    assert end.timed_out
    assert end.wall_s < 8
    assert last_line(log) == "cleaned"


def test_children_of_a_worker_that_ended_are_ended_too(tmp_path):
    pids = tmp_path / "pids"
    run(tmp_path, f"open({str(pids)!r}, 'w').write(str(subprocess.Popen(['sleep', '60']).pid))")
    assert gone(int(pids.read_text()))


def test_the_parent_sleeps_while_a_worker_runs(tmp_path):
    """≈ 0 % CPU: neither time nor wake-ups (polling 20 times a second would make more than 40 in 2 s)."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    end, _ = run(tmp_path, "time.sleep(2)")
    after = resource.getrusage(resource.RUSAGE_SELF)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert end.wall_s >= 2
    assert used / end.wall_s < 0.02
    assert after.ru_nvcsw - before.ru_nvcsw < 30


def test_ticks_come_once_a_second(tmp_path):
    ticks = []
    run(tmp_path, "time.sleep(2.2)", tick=lambda: ticks.append(time.monotonic()))
    assert 2 <= len(ticks) <= 4


def test_interrupting_kills_the_worker(tmp_path):
    pids = tmp_path / "pids"

    def interrupt():
        if pids.exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, f"open({str(pids)!r}, 'w').write(str(os.getpid())); time.sleep(60)", tick=interrupt)
    assert gone(int(pids.read_text()))


def test_kill_all_ends_workers_of_other_threads(tmp_path):
    job, log = tmp_path / "job-x.json", tmp_path / "log.txt"
    job.write_text(json.dumps({"code": "time.sleep(60)"}))
    engine = LocalEngine((sys.executable, "-c", SCRIPT), grace_s=0.2)
    ends = []
    thread = threading.Thread(target=lambda: ends.append(engine.run(job, log, timeout_s=None)))
    thread.start()
    while not engine._running:
        time.sleep(0.01)
    engine.kill_all()
    thread.join(10)
    assert ends[0].returncode < 0


def test_orphans_of_a_dead_run_are_ended_and_others_are_not(tmp_path):
    """A worker is an orphan when the run that its job names is gone."""
    work = tmp_path / "results" / "work"
    (work / "a").mkdir(parents=True)
    dead = {"pid": os.getpid(), "created": psutil.Process().create_time() - 1000}          # the pid was given to somebody else
    processes = []
    try:
        for name, parent in (("dead", dead), ("alive", worker_identity())):
            job = work / "a" / f"job-{name}.json"
            job.write_text(json.dumps({"parent": parent}))
            command = [sys.executable, "-c", "import time; time.sleep(60)", str(job)]
            processes.append(subprocess.Popen(command, start_new_session=True))
        time.sleep(0.2)
        assert kill_orphans(work) == [processes[0].pid]
        assert gone(processes[0].pid)
        assert processes[1].poll() is None
        assert kill_orphans(tmp_path / "elsewhere") == []
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_workers_die_with_the_run_that_started_them(tmp_path):
    pids = tmp_path / "pids"
    child = "from hibench.engines import die_with_parent; import os, time; die_with_parent(); " \
            f"open({str(pids)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    parent = subprocess.Popen([sys.executable, "-c", code, child])
    while not (pids.exists() and pids.read_text()):
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    assert gone(int(pids.read_text()))


def test_the_gpu_is_watched_meanwhile(tmp_path):
    nvml = FakeNvml(FakeGpu(reasons=0x40, processes={}))
    end, _ = run(tmp_path, "time.sleep(0.5)", gpu=Gpu(nvml, nvml.gpus[0]))
    assert [flag["name"] for flag in end.trace.flags()] == ["throttled"]
    assert end.trace.summary()["clock_mhz"]["median"] == 1500
    assert gpu_of("cpu") is None


def test_thread_settings_reach_the_worker_unchanged(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    _, log = run(tmp_path, "print(os.environ['OMP_NUM_THREADS'])")
    assert last_line(log) == "7"


def test_a_full_disk_in_the_worker_is_told_from_a_fault_of_the_method(tmp_path):
    end, log = run(tmp_path, "raise OSError(28, 'No space left on device')")
    assert "no space left on device" in str(full_disk(failed(end, None, log, "scoring", None), log))
    end, log = run(tmp_path, "raise OSError(2, 'No such file')")
    assert full_disk(failed(end, None, log, "scoring", None), log) is None


def test_the_worker_s_own_words_come_first(tmp_path):
    end, log = run(tmp_path, "sys.exit(1)")
    said = {"status": "oom", "reason": "asked for 20 GiB", "failure": {"stage": "decode", "requested_bytes": 20 << 30}}
    verdict = failed(end, said, log, "replicate 1 of 5", None)
    assert (verdict.status, verdict.reason) == ("oom", "out of memory in decode: asked for 20 GiB")
    assert verdict.failure["requested_bytes"] == 20 << 30
