"""The golden check: tolerances, coverage, errors, and where cases are found."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hibench import registry
from hibench.errors import AdapterError, SpecError
from hibench.golden import TOLERANCES, GoldenOutput, check_case, compare, find_cases, run_golden


def make_case(folder: Path, **outputs) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"kind": "x"}))
    np.savez(folder / "outputs.npz", **outputs)
    return folder


def verdict(got, want, kind="forward"):
    return compare("case", GoldenOutput("y", got, kind), np.asarray(want))


@pytest.mark.parametrize(("error", "kind", "ok"), [
    (1e-5, "forward", True), (3e-5, "forward", False), (1e-4, "sampling", True), (3e-4, "sampling", False),
    (1e-4, "gradient", True), (1e-4, "forward", False),
])
def test_errors_count_relative_to_the_largest_expected_value(error, kind, ok):
    want = np.array([10.0, 0.0, -1000.0], dtype=np.float32)
    got = want + np.array([0.0, 1000.0 * error, 0.0], dtype=np.float32)
    line = verdict(got, want, kind)
    assert line.ok is ok
    assert f"abs {1000 * error:.1e}  rel {error:.1e}  tolerance {TOLERANCES[kind]:.0e}" in str(line)


def test_zeros_scalars_and_empty_arrays():
    assert verdict(np.zeros(3), np.zeros(3)).ok
    assert not verdict(np.full(3, 1e-3), np.zeros(3)).ok
    assert verdict(np.float64(2.0), np.float64(2.0)).ok
    assert verdict(np.zeros((0, 3)), np.zeros((0, 3))).ok
    assert verdict(torch.tensor([1.0, 2.0], requires_grad=True), [1.0, 2.0]).ok
    assert verdict(torch.tensor([1.0, 2.0], dtype=torch.bfloat16), [1.0, 2.0]).ok


def test_integers_and_texts_have_to_be_equal():
    assert verdict(np.array([1, 2], np.int64), np.array([1, 2], np.int32)).ok
    wrong = verdict(np.array([1, 5]), np.array([1, 2]))
    assert not wrong.ok
    assert wrong.text == "abs 3  1 of 2 differ, must be equal"
    assert verdict(np.array(["a", "bb"]), np.array(["a", "bb"])).ok
    assert not verdict(np.array(["a", "b"]), np.array(["a", "c"])).ok
    assert not verdict(np.array([1.0, 2.0]), np.array([1, 2])).ok            # a float is not an integer
    assert not verdict(np.array([1, 2]), np.array(["1", "2"])).ok
    assert not verdict(np.array(["1"]), np.array([1.0])).ok


def test_what_is_not_a_number_fails_unless_it_is_expected():
    want = np.array([1.0, 2.0])
    assert not verdict(np.array([1.0, np.nan]), want).ok
    assert not verdict(np.array([1.0, np.inf]), want).ok
    assert verdict(np.array([1.0, np.inf]), np.array([1.0, np.inf])).ok
    assert verdict(np.array([1.0, np.nan]), np.array([1.0, np.nan])).ok
    assert not verdict(np.array([1.0, 2.0]), np.array([1.0, np.nan])).ok
    assert not verdict(np.array([1.0, -np.inf]), np.array([1.0, np.inf])).ok


def test_shapes_are_not_broadcast():
    line = verdict(np.ones((1, 3)), np.ones(3))
    assert not line.ok
    assert line.text == "shape [1, 3], expected [3]"


def test_an_unknown_kind_is_told():
    assert "unknown kind 'exact'; known: forward, sampling, gradient" in verdict(np.ones(1), np.ones(1), "exact").text


def test_coverage_of_a_case(tmp_path):
    case = make_case(tmp_path / "a", x=np.ones(2), y=np.ones(2), z=np.ones(2))

    def golden(folder):
        assert folder == case
        yield GoldenOutput("x", np.ones(2))
        yield GoldenOutput("x", np.ones(2))
        yield SimpleNamespace(name="w", got=np.ones(2), kind="forward")
    lines = [(line.output, line.ok, line.text) for line in check_case(golden, case)]
    assert lines[0][:2] == ("x", True)
    assert lines[1:] == [("x", False, "was given twice"), ("w", False, "is not in outputs.npz"),
                         ("y", False, "not covered"), ("z", False, "not covered")]


def test_a_case_that_raises_is_one_clear_line_and_the_rest_is_not_covered(tmp_path, capsys):
    case = make_case(tmp_path / "a", x=np.ones(2), y=np.ones(2))

    def golden(folder):
        yield GoldenOutput("x", np.ones(2))
        raise KeyError("encoder.conv_in.weight")
    lines = list(check_case(golden, case))
    assert [line.ok for line in lines] == [True, False, False]
    assert lines[1].text == "KeyError: 'encoder.conv_in.weight'"
    assert lines[2].text == "not covered (the case stopped before)"
    assert "Traceback" in capsys.readouterr().err

    def told(folder):
        raise AdapterError("config.json: no unet_config")
    first = next(iter(check_case(told, case)))
    assert str(first) == "FAIL  a  -  config.json: no unet_config"
    (case / "outputs.npz").write_bytes(b"nonsense")
    (only,) = check_case(told, case)
    assert "outputs.npz cannot be read" in only.text


def test_where_cases_are(tmp_path):
    a, b = make_case(tmp_path / "infty_diff" / "a", x=np.ones(1)), make_case(tmp_path / "infty_diff" / "b", x=np.ones(1))
    other = make_case(tmp_path / "ldm" / "c", x=np.ones(1))
    (tmp_path / "infty_diff" / "weights").mkdir()
    (tmp_path / "infty_diff" / "README.md").write_text("")
    assert find_cases(a) == [a]
    assert find_cases(tmp_path / "infty_diff") == [a, b]
    assert find_cases(tmp_path, ["infty-diff"]) == [a, b]
    assert find_cases(tmp_path, ["x", "ldm"]) == [other]
    with pytest.raises(SpecError, match="give one of them: infty_diff, ldm"):
        find_cases(tmp_path, ["x"])
    with pytest.raises(SpecError, match="no such folder"):
        find_cases(tmp_path / "absent")
    with pytest.raises(SpecError, match="no folder in it is a case"):
        find_cases(tmp_path / "infty_diff" / "weights")
    (a / "outputs.npz").unlink()
    assert find_cases(tmp_path / "infty_diff") == [a, b]                    # it will fail, not vanish


class WithGolden:
    name = "x"

    @classmethod
    def golden(cls, case):
        shift = json.loads((case / "config.json").read_text()).get("shift", 0.0)
        yield GoldenOutput("y", np.ones(4, np.float32) + shift, "sampling")
        yield GoldenOutput("i", np.arange(3))


def test_the_whole_check(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "load_adapter", lambda name: WithGolden)
    make_case(tmp_path / "good", y=np.ones(4, np.float32), i=np.arange(3, dtype=np.int32))
    lines: list[str] = []
    assert run_golden("x", tmp_path, lines.append) == 0
    assert lines == ["ok    good  y  abs 0.0e+00  rel 0.0e+00  tolerance 2e-04",
                     "ok    good  i  abs 0  0 of 3 differ, must be equal",
                     "2 of 2 outputs of 1 cases agree"]
    bad = make_case(tmp_path / "bad", y=np.ones(4, np.float32), i=np.arange(3))
    (bad / "config.json").write_text('{"shift": 0.01}')
    lines.clear()
    assert run_golden("x", tmp_path, lines.append) == 1
    assert lines[0].startswith("FAIL  bad  y  abs 1.0e-02  rel 1.0e-02")
    assert lines[-1] == "3 of 4 outputs of 2 cases agree, 1 do not"
    assert run_golden("x", tmp_path / "good", lines.append) == 0


def test_a_method_without_a_golden_check_is_told(tmp_path):
    with pytest.raises(SpecError, match="'toy' cannot check golden tensors"):
        run_golden("toy", tmp_path)
