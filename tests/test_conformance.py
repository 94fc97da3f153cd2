"""The conformance suite finds every misbehaviour it is there for, and passes a good method."""

from __future__ import annotations

import json
import random
from pathlib import Path

import adapters
import numpy as np
import pytest
import torch

from hibench.conformance import check_adapter, run_conformance, run_golden
from hibench.errors import MissingWeights, UnknownMethod
from hibench.toy import Toy

HERE = Path(__file__).parent


def broken(factory, **arguments) -> dict[str, str]:
    return {finding.name: finding.text for finding in check_adapter(factory, **arguments) if finding.ok is False}


def test_a_good_method_has_nothing_broken():
    findings = check_adapter(Toy)
    assert [finding.name for finding in findings if finding.ok is not True] == ["no sparsity"]
    assert len(findings) == 18
    assert len({finding.name for finding in findings}) == 18
    assert broken(adapters.Small) == {}


@pytest.mark.parametrize(("name", "point", "words"), [
    ("ReturnsNaN", "image", "float32 with values that are not finite"),
    ("ReturnsFloat", "image", "float32, not uint8"),
    ("ReturnsNone", "plain call", "NoneType"),
    ("WrongShape", "image", "shape [3, 65, 64]"),
    ("SwapsSides", "oblong", "shape [3, 96, 64], and [3, 64, 96] was asked for"),
    ("SquareOnly", "oblong", "ValueError: only square images"),
    ("SquareOnly", "odd size", "ValueError: only square images"),
    ("IgnoresSteps", "steps", "2 steps were asked for, and the method did 3"),
    ("LiesAboutSteps", "steps", "3 calls in 2 steps, 3 calls in 4 steps"),
    ("SaysNothing", "steps", "the method reported none"),
    ("SaysNothing", "stages", "no stage was opened"),
    ("IgnoresSparsity", "sparsity", "sparsity 0.5 was asked for, and the method did 0"),
    ("UndeclaredSparsity", "no sparsity", "supports() accepts sparsity 0.5"),
    ("NeverEvaluates", "steps", "nfe=0"),
    ("UnknownStage", "stages", "unknown stage 'denoising'"),
    ("NestedStages", "stages", "inside stage"),
    ("OpenStage", "stages", "left stage 'decode' open"),
    ("ReadsGlobalRandom", "random state", "depends on the global random state"),
    ("MovesTorchRandom", "random state", "moved the random state of torch"),
    ("MovesNumpyRandom", "random state", "moved the random state of numpy"),
    ("MovesPythonRandom", "random state", "moved the random state of random"),
    ("BatchDependent", "batch", "image 1 of a batch of 8 differs from the same seed alone"),
    ("BatchDependent", "order", "the order of the seeds in a batch changes images"),
    ("Remembers", "repeatable", "two images of one seed differ"),
    ("IgnoresSeed", "seeds", "seeds 0 and 1 give the same image"),
    ("OneColour", "image", "the image has one value everywhere: 0"),
    ("SupportsAnything", "no steps", "supports() accepts steps=0"),
    ("SupportsWithBooleans", "open", "supports() returned True"),
    ("SupportsNothing", "image", "supports() refuses every square"),
    ("LoadsOnce", "reload", "TypeError"),
    ("NeedsSteps", "plain call", "TypeError"),
    ("FailsToClose", "close", "cannot close"),
    ("Raises", "image", "ValueError: the method is broken"),
    ("RaisesWhenLoading", "open", "state_dict has unexpected keys"),
])
def test_every_misbehaviour_is_found(name, point, words):
    found = broken(getattr(adapters, name))
    assert words in found.get(point, f"nothing wrong with '{point}' among {found}")


def test_changed_global_settings_are_found():
    try:
        assert "grad mode: True became False" in broken(adapters.TurnsGradientsOff)["side effects"]
    finally:
        torch.set_grad_enabled(True)


def test_a_kept_gradient_is_found():
    class KeepsGradient(Toy):
        def generate_batch(self, *args, **kwargs):
            return super().generate_batch(*args, **kwargs)

    class Wrapped(torch.Tensor):
        requires_grad = True
    original = KeepsGradient.generate
    KeepsGradient.generate = lambda self, *a, **k: original(self, *a, **k).as_subclass(Wrapped)
    assert "carries a gradient" in broken(KeepsGradient)["gradient"]


def test_the_suite_leaves_random_states_as_they_were():
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    expected = torch.rand(1).item(), np.random.rand(), random.random()
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    check_adapter(adapters.MovesTorchRandom)                       # moves them itself ...
    torch.manual_seed(5)
    check_adapter(Toy)
    assert (torch.rand(1).item(), np.random.rand(), random.random()) == expected


def test_missing_weights_are_not_a_broken_contract(tmp_path):
    with pytest.raises(MissingWeights):
        check_adapter(adapters.Misses)
    lines: list[str] = []
    assert run_conformance(f"{HERE / 'adapters.py'}:Misses", device="cpu", write=lines.append) == 3
    assert lines == ["missing  no weights; get them with: hibench train misses"]


def test_the_command_prints_one_line_per_point():
    lines: list[str] = []
    assert run_conformance("toy", device="cpu", write=lines.append) == 0
    assert len(lines) == 19
    assert lines[3].startswith("ok    repeatable")
    assert lines[-1] == "toy: 17 points hold, 0 broken, 1 not applicable"
    lines.clear()
    assert run_conformance(f"{HERE / 'adapters.py'}:IgnoresSeed", device="cpu", write=lines.append) == 1
    assert "FAIL  seeds           seeds 0 and 1 give the same image" in lines
    with pytest.raises(UnknownMethod, match="did you mean 'toy'"):
        run_conformance("toi", device="cpu", write=lines.append)


def test_json_holds_every_finding():
    written: list[str] = []
    assert run_conformance("toy", device="cpu", as_json=True, write=written.append) == 0
    (text,) = written
    report = json.loads(text)
    assert (report["method"], report["failed"], len(report["findings"])) == ("toy", 0, 18)
    assert report["findings"][0] == {"name": "supports", "ok": True, "text": "supports() takes 64x64 with 2 steps"}


def test_options_and_weights_reach_the_method():
    assert broken(Toy, options={"waves": 3}, weights="random") == {}
    assert "toy has no option 'wavs'" in broken(Toy, options={"wavs": 3})["open"]


def test_the_golden_check_is_found_here_too():
    assert callable(run_golden)


@pytest.mark.gpu
def test_the_toy_conforms_on_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    assert broken(Toy, device="cuda") == {}
