"""The Ray engine on a real cluster of this machine: same records as without it, whoever is killed meanwhile."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from runner_tools import HERE, STUB, bench, folder_of, records

from hibench import cluster as cluster_module
from hibench.engines import LocalEngine
from hibench.errors import Unfit
from hibench.ray_engine import RayEngine

ray = pytest.importorskip("ray", reason="Ray is not installed; pip install 'hibench[ray]'")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::ResourceWarning",
                                        "ignore::pytest.PytestUnraisableExceptionWarning")
RUN = """
import sys
from hibench.cells import expand
from hibench.ray_engine import RayEngine
from hibench.runner import run_spec
from hibench.spec import load_spec
spec = load_spec(sys.argv[1])
with RayEngine(sys.argv[3], command=sys.argv[4:]) as engine:
    sys.exit(run_spec(spec, expand(spec), out=sys.argv[2], report=False, engine=engine))
"""


@pytest.fixture(scope="module")
def cluster():
    """One machine with two CPUs; more may join."""
    from ray.cluster_utils import Cluster

    for attempt in range(3):
        try:
            made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
            break
        except Exception as error:                             # Ray raises just that when a process is slow to start
            if "timed out during startup" not in str(error):
                raise
            if attempt == 2:
                pytest.skip(f"Ray did not start here in three tries of 30 s: {error}")
    yield made
    if ray.is_initialized():
        ray.shutdown()
    made.shutdown()


def text(folder: Path, *, images: int = 24, stop: str | None = None, stop_at: int = 8, sweep: str = "resolution: [8]",
         processes: int = 2) -> str:
    """A benchmark of the stub worker: shards of 4 images, and one that stops once at a shard."""
    stopping = f", stop: {stop}, stop_at: {stop_at}" if stop else ""
    return (f"methods:\n  plain: {{adapter: '{HERE / 'runner_tools.py'}:Plain', timeout: 60, "
            f"options: {{calls: {folder / 'calls'}, marker: {folder / 'marker'}{stopping}}}}}\n"
            f"timing: {{processes: {processes}, images: 3}}\n"
            f"quality: {{images: {images}, batch: 4, shard: 4, metrics: [fid]}}\n"
            f"sweeps:\n  s: {{methods: [plain], {sweep}, steps: [4]}}\n")


def engine(cluster) -> RayEngine:
    return RayEngine(cluster.address, command=STUB)


def same_results(folder: Path, out: str, undisturbed: str) -> None:
    """Records (but for times and machines), features and samples agree, byte for byte."""
    left, right = records(folder, out), records(folder, undisturbed)
    assert list(left) == list(right)
    for key in left:
        for name in ("id", "status", "quality", "axes", "settings", "method"):
            assert left[key][name] == right[key][name], (key, name)
        if left[key]["kind"] == "speed":
            assert ([p["latency_s"] for p in left[key]["speed"]["processes"]]
                    == [p["latency_s"] for p in right[key]["speed"]["processes"]])
        files = [{path.name: path.read_bytes() for path in folder_of(folder, found[key], where).rglob("*.npz")}
                 for found, where in ((left, out), (right, undisturbed))]
        assert files[0].keys() == files[1].keys()
    assert not list((folder / out / "work").iterdir())


def calls(folder: Path) -> list[int]:
    return sorted(map(int, (folder / "calls").read_text().split()))


def local(folder: Path, spec: str) -> None:
    """The same benchmark without Ray and undisturbed (the marker is there, so that nothing stops)."""
    (folder / "marker").touch()
    assert bench(folder, spec, out="undisturbed", engine=LocalEngine(STUB))[0] == 0
    (folder / "calls").unlink()
    (folder / "marker").unlink()


WAIT_S = 150.0                                                 # on a loaded machine torch alone takes half a minute to import


def wait_for(what, within_s: float = WAIT_S):
    until = time.monotonic() + within_s
    while not (found := what()):
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.05)
    return found


def sleeper(folder: Path) -> psutil.Process:
    """The worker that has stopped in the middle of its samples, when it has got there."""
    marker = folder / "marker"
    return psutil.Process(int(wait_for(lambda: marker.exists() and marker.read_text())))


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def stub_processes() -> list[psutil.Process]:
    """Workers of hibench that run under Ray now."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if line[-2:-1] == [STUB[1]] and "hibench-job-" in line[-1]:
            found.append(process)
    return found


def test_records_are_those_of_a_single_machine(cluster, tmp_path):
    spec = text(tmp_path, sweep="resolution: [8, 16]")
    local(tmp_path, spec)
    with engine(cluster) as where:
        code, printed = bench(tmp_path, spec, engine=where)
        assert (where.slots, where.hosts) == (2, 1)
    assert code == 0, printed
    assert calls(tmp_path) == sorted([0, 4, 8, 12, 16, 20] * 2)
    same_results(tmp_path, "results", "undisturbed")
    quality = records(tmp_path)["plain/quality/8x8/steps=4"]
    log = (folder_of(tmp_path, quality) / "log.txt").read_text()
    assert log.count("=== ") == 3                              # two workers made samples, a third one scored them
    with engine(cluster) as where:
        assert "nothing to do" in bench(tmp_path, spec, engine=where)[1]


def test_a_killed_ray_worker_costs_a_try_and_nothing_else(cluster, tmp_path):
    spec = text(tmp_path, stop="sleep", processes=1)
    local(tmp_path, spec)

    sleeping = []

    def kill_once() -> None:
        sleeping.append(sleeper(tmp_path))
        sleeping[0].parent().kill()

    killer = threading.Thread(target=kill_once)
    killer.start()
    with engine(cluster) as where:
        code, printed = bench(tmp_path, spec, engine=where)
    killer.join()
    assert code == 0, printed
    wait_for(lambda: gone(sleeping[0]))                                        # hibench's worker dies with Ray's
    same_results(tmp_path, "results", "undisturbed")
    log = (folder_of(tmp_path, records(tmp_path)["plain/quality/8x8/steps=4"]) / "log.txt").read_text()
    assert "the machine was lost (try 1 of 3)" in log


def test_a_killed_driver_leaves_a_directory_that_another_number_of_workers_finishes(cluster, tmp_path):
    spec = text(tmp_path, images=48, stop="sleep", stop_at=20, processes=1)
    local(tmp_path, spec)
    run = start(cluster, tmp_path, spec)
    sleeping = sleeper(tmp_path)
    run.kill()
    run.communicate()
    wait_for(lambda: gone(sleeping))
    assert "plain/quality/8x8/steps=4" not in records(tmp_path)
    cluster.add_node(num_cpus=2)
    with engine(cluster) as where:
        code, printed = bench(tmp_path, spec, engine=where)
        assert (where.slots, where.hosts) == (4, 2)
    assert code == 0, printed
    same_results(tmp_path, "results", "undisturbed")


def start(cluster, folder: Path, spec: str) -> subprocess.Popen:
    (folder / "b.yaml").write_text("version: 1\n" + spec)
    return subprocess.Popen([sys.executable, "-c", RUN, str(folder / "b.yaml"), str(folder / "results"), cluster.address,
                             *STUB], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_an_interrupted_run_ends_its_workers_and_keeps_what_is_there(cluster, tmp_path):
    spec = text(tmp_path, images=48, stop="sleep", stop_at=8, processes=1)
    run = start(cluster, tmp_path, spec)
    sleeping = sleeper(tmp_path)
    run.send_signal(signal.SIGINT)
    printed, _ = run.communicate(timeout=WAIT_S)
    assert run.returncode == 130, printed
    assert "interrupted: 1 of 2 cells are measured; run the same command again to go on from here" in printed
    assert "Traceback" not in printed
    wait_for(lambda: gone(sleeping))


def test_another_version_on_a_machine_is_one_clear_line_before_anything_runs(cluster, tmp_path, monkeypatch):
    real = cluster_module.versions
    monkeypatch.setattr(cluster_module, "versions", lambda software=None: {**real(software), "torch": "9.9"})
    with engine(cluster) as where, pytest.raises(Unfit, match=r"machine .* differs: torch .* and 9\.9 here; nothing was run"):
        bench(tmp_path, text(tmp_path), engine=where)
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("error", [Exception("The current node timed out during startup.\nThis"), RuntimeError("no"),
                                   ConnectionError("no")])
def test_a_ray_that_does_not_start_is_one_line(monkeypatch, error):
    def broken(**asked):
        raise error

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", broken)
    with pytest.raises(Unfit, match=r"^no Ray cluster answers at this machine \([^\n]*\); look at `ray status`$"):
        RayEngine().connect()


def test_a_fault_of_ours_is_not_taken_for_rays(monkeypatch):
    def broken(**asked):
        raise TypeError("an argument that Ray does not know")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", broken)
    with pytest.raises(TypeError):
        RayEngine().connect()


def test_a_cluster_that_is_not_there_is_one_line():
    with pytest.raises(Unfit, match=r"no Ray cluster answers at 127\.0\.0\.1:1 \(Connection refused\); look at"):
        RayEngine("127.0.0.1:1").prepare([])


@pytest.mark.slow
def test_a_lost_machine_costs_a_try_and_nothing_else(cluster, tmp_path):
    """A machine goes away with the job that it runs."""
    spec = text(tmp_path, stop="sleep", processes=1)
    local(tmp_path, spec)

    def lose() -> None:
        above = {process.pid for process in sleeper(tmp_path).parents()}
        node = next((node for node in cluster.worker_nodes if above & _pids(node)), None)
        if node is None:                                       # the head has it, which must stay
            sleeper(tmp_path).parent().kill()
            return
        cluster.remove_node(node, allow_graceful=False)

    for _ in range(2):
        cluster.add_node(num_cpus=2)
    loser = threading.Thread(target=lose)
    loser.start()
    with engine(cluster) as where:
        code, printed = bench(tmp_path, spec, engine=where)
    loser.join()
    assert code == 0, printed
    same_results(tmp_path, "results", "undisturbed")


def _pids(node) -> set[int]:
    return {info.process.pid for infos in node.all_processes.values() for info in infos}


@pytest.mark.slow
def test_chaos(cluster, tmp_path):
    """For a minute, something dies at random every few seconds: hibench's workers, Ray's workers, the driver."""
    spec = text(tmp_path, images=240, sweep="resolution: [8, 16, 32]")
    local(tmp_path, spec)
    generator, until, code, kills = random.Random(0), time.monotonic() + 60, None, 0
    while code != 0:
        run = start(cluster, tmp_path, spec)
        while run.poll() is None and time.monotonic() < until:
            time.sleep(generator.uniform(0.2, 3.0))
            victims = stub_processes()
            choice = generator.choice(["driver", "worker", "ray", "ray"])
            if choice == "driver":
                run.kill()
            elif victims:
                victim = generator.choice(victims)
                try:
                    (victim if choice == "worker" else victim.parent()).kill()
                except psutil.Error:
                    continue
            kills += 1
        printed, _ = run.communicate(timeout=240)
        code = run.returncode
        assert time.monotonic() < until + 240, printed
    assert kills > 5
    same_results(tmp_path, "results", "undisturbed")
