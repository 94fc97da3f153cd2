"""The benchmark file: what a good one becomes, and the exact text of every error."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hibench import nodes, spec, spec_reader, values
from hibench.errors import EXIT_USAGE, SpecError
from hibench.spec import Quality, Reference, Timing, Tolerance, load_spec, valid_device

DATA = Path(__file__).parent / "data"
BAD = sorted((DATA / "bad").glob("*.yaml"))
GOOD = """\
version: 1
methods: {toy: {adapter: toy}}
timing: {images: 3}
sweeps: {one: {methods: [toy], resolution: [64]}}
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write b.yaml into an empty current directory."""
    monkeypatch.chdir(tmp_path)

    def write(text: str | bytes) -> Path:
        Path("b.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return Path("b.yaml")

    return write


def error_of(*args: object) -> str:
    with pytest.raises(SpecError) as caught:
        load_spec(*args)
    assert caught.value.exit_code == EXIT_USAGE
    return str(caught.value)


# -- good files ------------------------------------------------------------------------------------------------------


def test_every_key_is_read(monkeypatch):
    monkeypatch.setenv("PHOTOS", "/photos")
    read = load_spec(DATA / "full.yaml")
    first, second = read.methods["first"], read.methods["second-1.0"]
    assert first.weights == str(DATA.resolve() / "weights" / "first.safetensors")
    assert first.options == {"waves": 3, "nested": {"list": [1, 2.5, True, None, "yes"]}}
    assert first.prompts == ["a red circle", "a blue square"]
    assert (first.dtype, first.device, first.timeout_s) == ("bfloat16", "cuda:1", 90.5)
    assert (second.weights, second.prompts) == ("owner/name", str(DATA.resolve() / "prompts.txt"))
    assert read.references["scenes"] == Reference("scenes", "scenes", seed=3)
    assert read.references["photos"].definition() == {"name": "photos", "kind": "folder", "path": "/photos/ffhq", "images": 100}
    assert read.timing == Timing(2, 4, 0, 10.0, False)
    assert read.quality == Quality(1000, "photos", "inception-v3-compat", ("fid", "pfid@32/128"), 4, 10, 0, 7, 2)
    one, two = read.sweeps["one"], read.sweeps["two"]
    assert (one.methods, one.measure, one.resolution) == (("first", "second-1.0"), ("quality",), ((64, 64), (64, 128)))
    assert (one.steps, one.sparsity, one.default) == ((10, 20), (0.0, 0.5), True)
    assert (one.timing, one.quality) == (read.timing, read.quality)
    assert two.options == {"waves": [3, 5], "nested": [{"list": []}]}
    assert two.timing == Timing(2, 9, 0, 10.0, False)
    assert (two.quality.metrics, two.quality.reference, two.quality.images) == (("kid",), "scenes", 1000)
    assert not two.default
    assert read.check.tolerance == {"latency": Tolerance(0.05, True), "vram": Tolerance(0.005, True),
                                    "drift": Tolerance(0.02, False), "fid": Tolerance(0.03, True)}
    assert read.check.cells == {"first": {"latency": Tolerance(0.08, True)},
                                "*/quality/64x*": {"fid": Tolerance(0.04, True), "kid": Tolerance(0.5, False)}}


def test_scenes_is_there_without_being_named(write):
    assert load_spec(write(GOOD)).references == {"scenes": Reference("scenes", "scenes")}


def test_the_file_may_be_anywhere_and_paths_are_relative_to_it(write, tmp_path, monkeypatch):
    path = write(GOOD.replace("adapter: toy", "adapter: mine.py:Mine, weights: ./w.pt, prompts: p.txt"))
    Path("mine.py").write_text("")
    Path("p.txt").write_text("a cat\n")
    monkeypatch.chdir("/")
    toy = load_spec(tmp_path / path).methods["toy"]
    assert (toy.adapter, toy.weights, toy.prompts) == (f"{tmp_path}/mine.py:Mine", f"{tmp_path}/w.pt", f"{tmp_path}/p.txt")


def test_variables_expand_and_an_unquoted_one_may_be_a_number(write, monkeypatch):
    monkeypatch.setenv("HIBENCH_N", "7")
    monkeypatch.setenv("HIBENCH_HUB", "owner/name")
    text = GOOD.replace("adapter: toy", 'adapter: toy, weights: "${HIBENCH_HUB}-x"')
    read = load_spec(write(text.replace("{images: 3}", "\n  images: ${HIBENCH_N}")))
    assert read.methods["toy"].weights == "owner/name-x"
    assert read.timing.images == 7


def test_digest_is_of_the_content(write):
    first = load_spec(write(GOOD)).digest
    assert load_spec(write("# a comment\n" + GOOD.replace("{images: 3}", "\n  images:   3"))).digest == first
    assert load_spec(write(GOOD.replace("images: 3", "images: 4"))).digest != first


def test_byte_order_mark_and_windows_lines(write):
    assert load_spec(write("\ufeff" + GOOD.replace("\n", "\r\n"))).timing.images == 3
    assert error_of(write(GOOD.replace("\n", "\r\n") + "zzz: 1\r\n")).splitlines()[:3] == [
        "b.yaml:5:1: zzz: unknown key (known: version, methods, references, timing, quality, sweeps, check)",
        "    zzz: 1",
        "    ^"]


def test_the_suite_of_this_repository_is_valid():
    read = load_spec(DATA.parent.parent / "benchmarks.yaml")
    assert {"resolution", "steps"} <= {name for name, sweep in read.sweeps.items() if sweep.default}
    assert all(1000 % steps == 0 for sweep in read.sweeps.values() for steps in sweep.steps)
    assert load_spec(DATA / "smoke.yaml").sweeps["smoke"].resolution == ((32, 32),)


@pytest.mark.parametrize(("name", "good"), [("auto", True), ("cpu", True), ("cuda", True), ("cuda:3", True), ("cuda:", False),
                                            ("gpu", False), ("cuda:x", False), ("", False)])
def test_devices(name, good):
    assert valid_device(name) is good


# -- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_text_of_errors(path, monkeypatch):
    """Each file of data/bad gives exactly the text beside it."""
    monkeypatch.chdir(path.parent)
    for name in [name for name in os.environ if name.startswith("HIBENCH_")]:
        monkeypatch.delenv(name)
    said = error_of(Path(path.name)).replace(str(path.parent.resolve()), "{folder}")
    assert said + "\n" == path.with_suffix(".txt").read_text(encoding="utf-8")


def test_the_cases_are_all_there():
    assert len(BAD) >= 25
    assert {path.stem for path in BAD} == {path.stem for path in BAD[0].parent.glob("*.txt")}


def test_missing_file(write):
    write(GOOD)
    assert error_of("c.yaml") == "c.yaml: no such file; did you mean 'b.yaml'?"
    assert error_of("benchmarks-of-mine.yml") == "benchmarks-of-mine.yml: no such file; there is b.yaml"
    assert error_of("nowhere/c.yaml") == "nowhere/c.yaml: no such file"
    assert error_of("b.yaml/c.yaml") == "b.yaml/c.yaml: cannot be read: Not a directory"
    assert error_of("b\0.yaml").endswith("cannot be read: embedded null byte")


def test_directory(write):
    write(GOOD)
    Path("suite").mkdir()
    assert error_of("suite") == "suite: is a directory; name the benchmark file, e.g. suite/benchmarks.yaml"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_unreadable_file(write):
    write(GOOD).chmod(0)
    assert error_of("b.yaml") == "b.yaml: cannot be read: Permission denied"


def test_not_utf8(write):
    assert error_of(write(b"version: 1\n# caf\xe9\nmethods: {}\n")) == (
        "b.yaml:2:6: byte 0xe9 is not UTF-8; save the file as UTF-8\n    # caf\ufffd\n         ^\n"
        "1 problem in b.yaml; nothing was run")
    assert "b.yaml:1:1: byte 0xff is not UTF-8" in error_of(write("version: 1".encode("utf-16")))
    assert "byte 0x80 is not UTF-8" in error_of(write(bytes(range(128, 256)) * 100))


def test_ten_megabytes(write):
    said = "b.yaml: is larger than 256 kB, which no benchmark file is; is it the right file?"
    assert error_of(write(b"a: 1\n" * 2_000_000)) == said
    assert error_of(write(bytes(10_000_000))) == said


def test_nesting_as_deep_as_the_file_allows(write):
    said = "b.yaml: nested too deeply for a benchmark file\n1 problem in b.yaml; nothing was run"
    assert error_of(write("[" * 100_000)) == said


def test_many_problems_are_counted(write):
    lines = error_of(write(GOOD + "".join(f"x{i}: 1\n" for i in range(200)))).splitlines()
    assert lines[-2:] == ["... and 160 more", "200 problems in b.yaml; nothing was run"]
    assert len(lines) == 3 * 40 + 2


def test_a_long_line_is_cut_around_the_caret(write):
    text = GOOD.replace("images: 3", "images: 3," + " " * 500 + "zzz: 1" + " " * 500)
    _, source, caret, _ = error_of(write(text)).splitlines()
    assert len(source) <= 124
    assert source[caret.index("^"):].startswith("zzz: 1")


def test_extractor_in_a_metric(write):
    said = error_of(write(GOOD + "quality: {metrics: [fid@scenes-clop]}\n"))
    assert said.startswith("b.yaml:5:21: quality.metrics[0]: metric 'fid@scenes-clop': no extractor named 'scenes-clop'; "
                           "did you mean 'scenes-clip'?")


PIECES = ["{", "}", "[", "]", ":", ": ", "\n", "\n  ", "\t", "- ", "? ", "&a ", "*a", "!!int ", "!x ", "|", ">", "'", '"', "%",
          "#", "<<: ", "~", "yes", "1:30", "0x1", ".inf", "1e999", "2024-01-01", "\u2028", "\x00", "é", "${X", "${}", "@", "`",
          "---\n", "=", "0" * 5000]


@settings(max_examples=120, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_is_in_the_file_it_is_a_spec_or_a_spec_error(write, data):
    """Pieces of YAML put into a good file at random: never another exception, and always a position."""
    piece = st.sampled_from(PIECES)
    pieces = data.draw(st.lists(st.tuples(st.integers(0, len(GOOD)), piece | st.text(max_size=4)), min_size=1, max_size=5))
    text = GOOD
    for at, new in pieces:
        text = text[:at] + new + text[at:]
    said = None
    try:
        load_spec(write(text.encode("utf-8", "surrogatepass")))
    except SpecError as error:
        said = str(error)
    assert said is None or (said.startswith("b.yaml:") and said.endswith("in b.yaml; nothing was run"))


# -- overrides -------------------------------------------------------------------------------------------------------


def test_overrides(write):
    path = write(GOOD)
    assert load_spec(path, ["timing.images=9"]).timing.images == 9
    assert load_spec(path, ["timing.images=9", "timing.images=10"]).timing.images == 10
    assert load_spec(path, ["quality.metrics=[kid, is]"]).quality.metrics == ("kid", "is")
    assert load_spec(path, ["methods.toy.options.a.b=x y"]).methods["toy"].options == {"a": {"b": "x y"}}
    assert load_spec(path, ["sweeps.two={methods: [toy], resolution: [8]}"]).sweeps["two"].resolution == ((8, 8),)
    assert load_spec(path, ["methods.toy.weights=a=b"]).methods["toy"].weights == "a=b"


def test_an_override_reaches_a_name_with_dots(write):
    path = write(GOOD.replace("toy: {adapter: toy}", "toy-1.0: {adapter: toy}").replace("[toy]", "[toy-1.0]"))
    assert load_spec(path, ["methods.toy-1.0.weights=random"]).methods["toy-1.0"].weights == "random"


def test_an_override_changes_one_user_of_an_alias_only(write):
    text = GOOD.replace("{toy: {adapter: toy}}", "{toy: &t {adapter: toy}, other: *t}")
    methods = load_spec(write(text), ["methods.toy.weights=random"]).methods
    assert (methods["toy"].weights, methods["other"].weights) == ("random", "reference")


def test_an_override_is_expanded(write, monkeypatch):
    monkeypatch.setenv("HIBENCH_N", "12")
    assert load_spec(write(GOOD), ["timing.images=${HIBENCH_N}"]).timing.images == 12


@pytest.mark.parametrize(("assignment", "said", "column"), [
    ("timing.imags=3", "timing.imags: unknown key; did you mean 'images'?", 0),
    ("timing.images=many", "timing.images: must be an integer, not the text 'many'", 14),
    ("timing.images=", "timing.images: must be an integer, not nothing", 14),
    ("timing.images=1: 2: 3", "not valid YAML: mapping values are not allowed here", 18),
    ("timing.images=[1", "not valid YAML: expected ',' or ']', but got '<stream end>'", 16),
    ("timing.images", "'timing.images' is not of the form path=value, e.g. timing.images=3", 0),
    ("timing..images=3", "'timing..images=3' is not of the form path=value, e.g. timing.images=3", 0),
    ("sweeps.one.methods.0=toy", "sweeps.one.methods.0: leads through a list; set that as a whole", 0),
])
def test_text_of_errors_of_overrides(write, assignment, said, column):
    lines = [f"--set: {said}", f"    {assignment}", "    " + " " * column + "^", "1 problem in b.yaml; nothing was run"]
    assert error_of(write(GOOD), [assignment]).splitlines() == lines


def test_problems_of_file_and_overrides_come_together(write):
    said = error_of(write(GOOD + "zzz: 1\n"), ["timing.images=0", "quality.keep=-1"])
    assert [line.split(":")[0] for line in said.splitlines() if line[0] not in " 3"] == ["b.yaml", "--set", "--set"]
    assert said.endswith("3 problems in b.yaml; nothing was run")


# -- command-line values ---------------------------------------------------------------------------------------------


def test_parse_value():
    assert values.parse_value("[1, a, 2.5]", "--option x") == [1, "a", 2.5]
    with pytest.raises(SpecError, match=r"^--option x: 'yes', which YAML 1.1 reads as the boolean true; quote it"):
        values.parse_value("yes", "--option x")


def test_exports_are_true():
    for module in (nodes, spec, spec_reader, values):
        assert all(hasattr(module, name) for name in module.__all__)


def test_reading_a_spec_does_not_import_torch():
    code = "import sys; from hibench.spec import load_spec; load_spec(sys.argv[1]); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, str(DATA / "smoke.yaml")], check=False).returncode == 0
