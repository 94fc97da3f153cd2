"""The command line: verbs call their modules with what was given, errors are one line, exit codes are right."""

from __future__ import annotations

import importlib
import re
import resource
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import hibench
from hibench import cli, listing
from hibench.errors import CellTimeout, Unfit
from hibench.errors import SpecError as BadSpec

SMOKE = str(Path(__file__).parent / "data" / "smoke.yaml")
VERBS = ("run", "list", "show", "report", "check", "compare", "score", "test", "doctor", "fetch", "train",
         "merge")


@pytest.fixture
def run(capsys):
    """Run a command; gives (exit code, stdout, stderr)."""
    def command(*args: str) -> tuple[int, str, str]:
        code = cli.main(args)
        return code, *capsys.readouterr()

    return command


@pytest.fixture
def fake(monkeypatch):
    """Put a function of a module in place of the real one; gives the list of its calls."""
    def replace(module: str, function: str, result: object = 0) -> list[tuple[tuple[object, ...], dict[str, object]]]:
        calls: list[tuple[tuple[object, ...], dict[str, object]]] = []

        def called(*args: object, **kwargs: object) -> object:
            calls.append((args, kwargs))
            if isinstance(result, BaseException):
                raise result
            return result

        stand_in = ModuleType(module)
        setattr(stand_in, function, called)
        monkeypatch.setitem(sys.modules, module, stand_in)
        package, _, name = module.rpartition(".")
        monkeypatch.setattr(importlib.import_module(package), name, stand_in, raising=False)
        return calls

    return replace


# -- start-up and help -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("args", [["-m", "hibench.cli", "--help"], ["-m", "hibench.cli", "--version"], ["-c", "import hibench"],
                                  ["-m", "hibench.cli", "run", "--help"]], ids=" ".join)
def test_starts_in_a_second(args):
    """Processor time, for other work on the machine is not ours."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert subprocess.run([sys.executable, *args], capture_output=True, check=False).returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


def test_command_line_imports_no_torch():
    code = ("import sys; from hibench.cli import main; main(['--help']); main(['list', 'sweeps', sys.argv[1], '--help']); "
            "main(['run', 'nowhere.yaml']); sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'pandas')))")
    assert subprocess.run([sys.executable, "-c", code, SMOKE], capture_output=True, check=False).returncode == 0


def test_help_begins_with_commands_that_work(run):
    code, out, err = run("--help")
    assert (code, err) == (0, "")
    assert out.index("hibench run benchmarks.yaml") < out.index("Options")
    for line in re.findall(r"^ +(hibench .*?)(?:   .*)?$", out, re.M):
        verb = line.split()[1]
        assert verb in VERBS
        assert run(verb, "--help")[0] == 0
        assert all(flag in run(verb, "--help")[1] for flag in re.findall(r"--\w+", line))


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb_has_an_example(run, verb):
    code, out, _ = run(verb, "-h")
    assert code == 0
    assert f"hibench {verb}" in out.split("Options")[0].split("\n\n", 1)[1]


def test_version(run):
    assert run("--version") == (0, f"hibench {hibench.__version__}\n", "")


def test_module_and_console_script_are_the_same(tmp_path):
    script = Path(sys.executable).with_name("hibench")
    if not script.exists():
        pytest.skip("hibench is not installed as a console script beside this Python")
    done = subprocess.run([script, "run", "nowhere.yaml"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "hibench: nowhere.yaml: no such file\n")


@pytest.mark.parametrize("args", [["runn"], ["run", "--no-such-option"], ["show"], ["run", SMOKE, "--jobs", "0"],
                                  ["run", SMOKE, "--jobs", "x"], []], ids=" ".join)
def test_wrong_usage(run, args):
    code, out, err = run(*args)
    assert code == 2
    assert "Traceback" not in out + err
    assert out + err


# -- errors ----------------------------------------------------------------------------------------------------------


def test_errors_are_one_line(run, fake):
    fake("hibench.doctor", "run_doctor", Unfit("the machine is busy: 3 other processes use the GPU"))
    assert run("doctor") == (3, "", "hibench: the machine is busy: 3 other processes use the GPU\n")
    fake("hibench.doctor", "run_doctor", CellTimeout(""))
    assert run("doctor") == (3, "", "hibench: \n")
    fake("hibench.doctor", "run_doctor", BadSpec("x"))
    assert run("doctor")[0] == 2


def test_interruption(run, fake):
    fake("hibench.doctor", "run_doctor", KeyboardInterrupt())
    code, out, err = run("doctor")
    assert (code, out) == (130, "")
    assert err.startswith("hibench: interrupted")


def test_exit_code_of_a_function_is_the_exit_code(run, fake):
    for code in (0, 1, 3, 4):
        fake("hibench.doctor", "run_doctor", code)
        assert run("doctor", "--strict")[0] == code


def test_bad_file(run, tmp_path):
    (tmp_path / "b.yaml").write_text("version: 1\nmethods: {toy: {adaptr: toy}}\n"
                                     "sweeps: {one: {methods: [toy], resolution: [10:30]}}\n")
    code, out, err = run("run", str(tmp_path / "b.yaml"))
    assert (code, out) == (2, "")
    assert err.splitlines()[0] == f"{tmp_path}/b.yaml:2:17: methods.toy.adaptr: unknown key; did you mean 'adapter'?"
    assert err.splitlines()[-1] == f"hibench: 2 problems in {tmp_path}/b.yaml; nothing was run"


@pytest.mark.parametrize(("args", "said"), [
    (["run", SMOKE, "--shard", "3"], "--shard 3: give I/N with I from 1 to N, e.g. 1/4"),
    (["run", SMOKE, "--shard", "0/4"], "--shard 0/4: give I/N with I from 1 to N, e.g. 1/4"),
    (["run", SMOKE, "--shard", "5/4"], "--shard 5/4: give I/N with I from 1 to N, e.g. 1/4"),
    (["run", SMOKE, "--device", "gpu"], "--device: unknown 'gpu'; did you mean 'cpu'?"),
    (["run", SMOKE, "--progress", "pretty"], "--progress: unknown 'pretty'; known: auto, plain, none"),
    (["run", SMOKE, "--only", "smok"], "--only: no sweep, method or kind is named 'smok'; did you mean 'smoke'?"),
    (["list", "method"], "hibench list: unknown 'method'; did you mean 'methods'?"),
    (["show", "scenes", "--resolution", "0"], "--resolution 0: give a side or HEIGHTxWIDTH in pixels, e.g. 512 or 256x512"),
    (["show", "scenes", "--resolution", "64x"], "--resolution 64x: give a side or HEIGHTxWIDTH in pixels, e.g. 512 or 256x512"),
    (["show", "toy", "--sparsity", "1"], "--sparsity 1 is out of range: from 0 to 1 excluded"),
    (["show", "toy", "--option", "waves"], "--option waves: give NAME=VALUE"),
    (["show", "toy", "--option", "waves=on"],
     "--option waves: 'on', which YAML 1.1 reads as the boolean true; quote it if a text is meant"),
    (["report", "x", "--format", "tx"], "--format: unknown 'tx'; did you mean 'tex'?"),
    (["train", "tooy"], "no method 'tooy'; did you mean 'toy'?"),
    (["train", "toy"], "method 'toy' cannot be trained: its class has no class method 'train'"),
])
def test_bad_values(run, args, said):
    assert run(*args) == (2, "", f"hibench: {said}\n")


# -- verbs -----------------------------------------------------------------------------------------------------------


def test_run(run, fake, tmp_path):
    calls = fake("hibench.runner", "run_spec", 3)
    args = ["--only", "smoke,speed", "--only", "toy", "--set", "timing.images=7", "--dry-run", "--fail-fast", "--retry",
            "--shard", "2/3", "--jobs", "4", "--device", "cuda:1", "--progress", "plain", "--no-report"]
    assert run("run", SMOKE, "--out", str(tmp_path), *args)[0] == 3
    [((spec, plan), more)] = calls
    assert spec.timing.images == 7
    assert [cell.key for cell in plan] == ["toy/speed/32x32/steps=2"]
    assert more == {"out": tmp_path, "only": ["smoke", "speed", "toy"], "dry_run": True, "fail_fast": True, "retry": True,
                    "shard": (2, 3), "jobs": 4, "engine": None, "device": "cuda:1", "progress": "plain",
                    "report": False}


def test_run_without_options(run, fake, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("benchmarks.yaml").write_text(Path(SMOKE).read_text())
    calls = fake("hibench.runner", "run_spec")
    assert run("run") == (0, "", "")
    [((_, plan), more)] = calls
    assert [cell.key for cell in plan] == ["toy/speed/32x32/steps=2", "toy/quality/32x32/steps=2"]
    assert more == {"out": Path("results"), "only": [], "dry_run": False, "fail_fast": False, "retry": False,
                    "shard": None, "jobs": None, "engine": None, "device": None, "progress": "auto", "report": True}


def test_show(run, fake):
    calls = fake("hibench.show", "run_show")
    args = ["--resolution", "32x64", "--count", "3", "--seed", "5", "--steps", "2", "--sparsity", "0.5",
            "--option", "waves=4", "--option", "names=[a, b]", "--out", "g.png", "--device", "cpu"]
    assert run("show", "toy", *args)[0] == 0
    [(what, more)] = calls
    assert what == ("toy",)
    assert more == {"resolution": (32, 64), "count": 3, "seed": 5, "out": Path("g.png"), "steps": 2, "sparsity": 0.5,
                    "device": "cpu", "options": {"waves": 4, "names": ["a", "b"]}}


def test_score(run, fake):
    calls = fake("hibench.score", "run_score")
    args = ["--metrics", "fid,kid", "--metrics", "is", "--extractor", "vgg16", "--weights", "w.pt", "--crop", "8", "--json",
            "--device", "cpu", "--prompts", "p.txt", "--compile"]
    assert run("score", "a", "--reference", "b", *args)[0] == 0
    assert calls[0] == ((Path("a"), "b"), {"metrics": ["fid", "kid", "is"], "extractor": "vgg16", "weights": Path("w.pt"),
                                           "crop": 8, "as_json": True, "device": "cpu", "prompts": Path("p.txt"),
                                           "compiled": True})
    run("score", "a")
    assert calls[1] == ((Path("a"), "scenes"), {"metrics": None, "extractor": None, "weights": None, "crop": None,
                                                "as_json": False, "device": "auto", "prompts": None, "compiled": False})


def test_test(run, fake):
    calls = fake("hibench.conformance", "run_conformance", 1)
    assert run("test", "m.py:Mine", "--json", "--device", "cpu")[0] == 1
    assert calls == [(("m.py:Mine",), {"device": "cpu", "as_json": True})]
    calls = fake("hibench.golden", "run_golden")
    assert run("test", "ldm", "--golden", "cases")[0] == 0
    assert calls == [(("ldm", Path("cases")), {})]


def test_fetch(run, monkeypatch):
    from hibench import weights

    monkeypatch.setattr(weights, "fetch", lambda name: Path("/cache") / name)
    assert run("fetch", "vgg16", "alexnet") == (0, "vgg16: /cache/vgg16\nalexnet: /cache/alexnet\n", "")
    code, out, _ = run("fetch")
    assert code == 0
    assert re.search(r"^vgg16 +(yes|no: hibench fetch vgg16) ", out, re.M)


def test_train(run, fake, tmp_path, monkeypatch):
    calls = fake("hibench.scenes_clip.train", "train", {})
    assert run("train", "scenes-clip", "--steps", "5", "--stage", "x", "--no-resume", "--device", "cpu", "--out", "o")[0] == 0
    assert calls == [((Path("o"),), {"device": "cpu", "resume": False, "steps": 5, "stage": "x"})]
    file = tmp_path / "mine.py"
    file.write_text("from hibench.toy import Toy\nclass Mine(Toy):\n    @classmethod\n    def train(cls, out, **more):\n"
                    "        print(sorted(more.items()))\n")
    monkeypatch.chdir(tmp_path)
    code, out, _ = run("train", f"{file}:Mine", "--device", "cpu", "--out", "w")
    assert (code, out) == (0, f"[('device', 'cpu'), ('resume', True)]\n{file}:Mine: weights in w\n")


def test_report(run, fake, monkeypatch, tmp_path):
    from hibench import report

    monkeypatch.setattr(report, "records_csv", lambda results: f"key,method\n{results},x\n")
    assert run("report", "r", "--format", "csv") == (0, "key,method\nr,x\n", "")
    calls = []
    monkeypatch.setattr(report, "write_report", lambda *args, **more: calls.append((args, more)) or [args[1] / "report.md"])
    assert run("report", "r")[1] == "r/report: 1 files, begin with r/report/report.md\n"
    assert run("report", "r", "--out", "o", "--format", "csv,png", "--format", "md", "--full")[0] == 0
    assert calls == [((Path("r"), Path("r/report")), {"formats": list(report.FORMATS), "full": False}),
                     ((Path("r"), Path("o")), {"formats": ["csv", "png", "md"], "full": True})]


def test_report_without_records(run, tmp_path):
    code, out, err = run("report", str(tmp_path))
    assert (code, out) == (3, "")
    assert err.startswith("hibench: ")
    assert err.count("\n") == 1


# -- list ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", listing.WHAT)
def test_list_of_everything(run, what):
    code, out, err = run("list", what, SMOKE)
    assert (code, err) == (0, "")
    assert len(out.splitlines()) >= 2
    assert out.splitlines()[0].split()[0] + "S" in (what.upper(), "CELLS") or what == "published"


def test_list_methods_says_why_one_is_not_available(run, monkeypatch):
    import importlib.metadata

    from hibench import registry

    points = {name: importlib.metadata.EntryPoint(name, value, registry.GROUP)
              for name, value in (("toy", "hibench.toy:Toy"), ("gone", "hibench_test_gone:Mine"))}
    monkeypatch.setattr(registry, "_entry_points", lambda: points)
    _, out, _ = run("list")
    assert re.search(r"^toy +resolution, sparsity, steps +MIT +yes$", out, re.M)
    assert re.search(r"^gone +no: method 'gone' cannot be imported .*; install hibench_test_gone$", out, re.M)


def test_list_metrics_says_what_to_fetch(run, monkeypatch):
    from hibench import features

    rows = [{"name": name, "about": "", "available": False, "next": f"hibench fetch {name}"}
            for name in ("scenes-clip", "inception-v3-compat")]
    monkeypatch.setattr(features, "describe", lambda: rows)
    _, out, _ = run("list", "metrics")
    assert re.search(r"^fid +lower +no: hibench fetch scenes-clip +Fréchet", out, re.M)
    assert re.search(r"^sfid +lower +no: hibench fetch inception-v3-compat ", out, re.M)
    assert re.search(r"^psnr +higher +yes ", out, re.M)


def test_list_references(run, tmp_path):
    (tmp_path / "b.yaml").write_text(Path(SMOKE).read_text() + "references: {photos: {kind: folder, path: nowhere}}\n")
    _, out, _ = run("list", "references", str(tmp_path / "b.yaml"))
    assert re.search(r"^scenes +scenes +yes, 8 images +built in, seed 0$", out, re.M)
    assert re.search(rf"^photos +folder +no: .*{tmp_path}/nowhere", out, re.M)


def test_list_sweeps_and_cells(run, tmp_path):
    (tmp_path / "b.yaml").write_text("""\
version: 1
methods:
  toy: {adapter: toy}
  guess: {adapter: toy, weights: random}
  wrong: {adapter: toy, options: {wave: 1}}
sweeps:
  one: {methods: [toy], resolution: [32, [16, 32]], steps: [2], sparsity: [0, 0.5], measure: [speed]}
  two: {methods: [guess, wrong], resolution: [32, 20000], options: {waves: [2, 3]}, default: false}
""")
    file = str(tmp_path / "b.yaml")
    _, out, _ = run("list", "sweeps", file)
    assert re.search(r"^one +by default +4 +toy +resolution 32x32, 16x32; steps 2; sparsity 0, 0.5$", out, re.M)
    assert re.search(r"^two +--only two +16 +guess, wrong +resolution 32x32, 20000x20000; waves 2, 3$", out, re.M)
    _, out, _ = run("list", "cells", file)
    assert len(out.splitlines()) == 5
    assert re.search(r"^toy/speed/16x32/steps=2/sparsity=0.5 +one +will run$", out, re.M)
    _, out, _ = run("list", "cells", file, "--only", "two")
    assert re.search(r"^guess/speed/32x32/waves=2 +two +will run$", out, re.M)
    assert re.search(r"^guess/quality/32x32/waves=2 +two +skip: random weights have no quality$", out, re.M)
    assert re.search(r"^guess/speed/20000x20000/waves=3 +two +skip: toy draws 1 to 16384 pixels", out, re.M)
    assert re.search(r"^wrong/speed/32x32/waves=2 +two +fails: toy has no option 'wave'; did you mean 'waves'\?$", out, re.M)


def test_list_cells_opens_an_adapter_once_for_all_axes(run, tmp_path, monkeypatch):
    from hibench.toy import Toy

    opened, init = [], Toy.__init__
    monkeypatch.setattr(Toy, "__init__", lambda self, *args: (opened.append(args), init(self, *args))[1])
    closed = []
    monkeypatch.setattr(Toy, "close", lambda self: closed.append(self))
    (tmp_path / "b.yaml").write_text("""\
version: 1
methods: {a: {adapter: toy}, b: {adapter: toy, weights: random}}
sweeps: {one: {methods: [a, b], resolution: [32, 64, 20000], steps: [1, 2], options: {waves: [2, 3]}}}
""")
    _, out, _ = run("list", "cells", str(tmp_path / "b.yaml"))
    states = [line.split("  ")[-1].strip() for line in out.splitlines()[1:]]
    assert len(states) == 2 * 2 * 3 * 2 * 2
    assert sum(state.startswith("skip: toy draws") for state in states) == len(states) // 3
    assert sum(state == "skip: random weights have no quality" for state in states) == len(states) // 6
    assert len(opened) == len(closed) == 4                                  # a and b, with 2 and with 3 waves


def test_a_bug_in_one_method_does_not_hide_the_other_cells(run, tmp_path):
    (tmp_path / "mine.py").write_text("from hibench.toy import Toy\nclass Mine(Toy):\n"
                                      "    def supports(self, axes): return 1 / 0\n")
    (tmp_path / "b.yaml").write_text("version: 1\nmethods: {toy: {adapter: toy}, mine: {adapter: mine.py:Mine}}\n"
                                     "sweeps: {one: {methods: [mine, toy], resolution: [32]}}\n")
    _, out, _ = run("list", "cells", str(tmp_path / "b.yaml"))
    assert re.search(r"^mine/speed/32x32 +one +fails: ZeroDivisionError: division by zero$", out, re.M)
    assert re.search(r"^toy/speed/32x32 +one +will run$", out, re.M)


# -- a reader that leaves --------------------------------------------------------------------------------------------


def test_a_closed_pipe_is_no_traceback():
    code = "import sys; from hibench.cli import main; sys.exit(main(sys.argv[1:]))"
    for args in (["list", "metrics"], ["--help"]):
        with subprocess.Popen([sys.executable, "-c", code, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            process.stdout.close()
            err = process.stderr.read()
        assert err == b""
        assert process.returncode == 0 or args == ["--help"]


def test_a_closed_pipe_in_a_run_is_an_interruption():
    code = ("import sys, types; from hibench import cli\n"
            "fake = sys.modules['hibench.runner'] = types.ModuleType('hibench.runner')\n"
            "fake.run_spec = lambda *a, **k: [print('x' * 1000) for _ in range(1000)] and 0\n"
            "sys.exit(cli.main(['run', sys.argv[1]]))")
    with subprocess.Popen([sys.executable, "-c", code, SMOKE], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        err = process.stderr.read()
    assert (process.returncode, err) == (130, b"")


def test_exports_are_true():
    for module in (cli, listing):
        assert all(hasattr(module, name) for name in module.__all__)
