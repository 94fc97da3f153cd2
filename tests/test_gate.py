"""The gate's rules on simulated nights with fixed seeds, and its bands, exact values and corrections on small cases."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hibench import gate, simulate
from hibench.gate import PairRule, band, bound, holm, judge_pairs, judge_sessions, two_modes

RULE = PairRule()
QUIET, USUAL, NOISY, MODES = simulate.NOISES
PUBLISHED = Path(__file__).parent.parent / "reports" / "gate" / "operating-characteristic.json"


# -- proof: how often the rule errs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", simulate.NOISES, ids=lambda noise: noise.name)
def test_identical_code_is_called_regressed_in_at_most_one_percent(noise):
    assert simulate.rates(noise, 0.0, RULE)["regressed"] <= 0.01


@pytest.mark.parametrize("noise", [QUIET, USUAL, NOISY], ids=lambda noise: noise.name)
def test_ten_percent_is_found_in_99_percent(noise):
    found = simulate.rates(noise, 0.10, RULE)
    assert found["regressed"] >= 0.99
    assert found["ok"] <= 0.001
    assert found["pairs"] < 6                                   # and soon


def test_identical_code_on_a_usual_machine_is_ok_after_few_pairs():
    found = simulate.rates(USUAL, 0.0, RULE)
    assert found["ok"] >= 0.98
    assert found["pairs"] <= 5.5


def test_two_modes_end_unsure_and_never_in_a_false_alarm():
    found = simulate.rates(MODES, 0.0, RULE)
    assert found["unsure"] >= 0.7
    assert found["regressed"] <= 0.01
    assert simulate.rates(MODES, 0.10, RULE)["ok"] <= 0.02      # nor is a slow-down waved through
    assert simulate.rates(MODES, 0.20, RULE)["regressed"] >= 0.99


def test_a_slow_down_within_the_tolerance_is_no_regression():
    assert simulate.rates(USUAL, 0.02, RULE)["regressed"] <= 0.01


def test_speeding_up_is_ok():
    assert simulate.rates(USUAL, -0.10, RULE)["ok"] >= 0.99


def test_one_regression_among_20_cells_is_found_and_no_other():
    nights = [simulate.night(USUAL, [0.0] * 7 + [0.10] + [0.0] * 12, RULE, seed) for seed in range(150)]
    assert sum(night[7] == "regressed" for night in nights) >= 0.99 * len(nights)
    others = [verdict for night in nights for verdict in night[:7] + night[8:]]
    assert others.count("regressed") == 0


def test_a_night_of_20_identical_cells_raises_an_alarm_in_at_most_one_of_a_hundred():
    nights = [simulate.night(NOISY, [0.0] * 20, RULE, seed) for seed in range(200)]
    assert sum("regressed" in night for night in nights) <= 2


def test_stored_times_of_another_session_would_cry_wolf():
    """Why times are never gated against a stored baseline: the host drifts by more than the tolerance."""
    rng = np.random.default_rng(0)
    drift = rng.normal(0, simulate.DRIFT, 4000)
    assert (drift * math.sqrt(2) > math.log(1.05)).mean() > 0.25
    def alarm(host: float) -> bool:
        base, head = np.exp(rng.normal(0, 0.015, 5)), np.exp(host * math.sqrt(2) + rng.normal(0, 0.015, 5))
        return judge_sessions(list(base), list(head), RULE).verdict == "regressed"

    alarms = sum(alarm(host) for host in drift[:1000])
    assert alarms <= 0.03 * 1000                                # with the wide tolerance that check uses there


def test_the_published_characteristic_is_that_of_this_code():
    published = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    assert published["rule"] == simulate.asdict(RULE)
    for noise in published["noises"]:
        kind = simulate.Noise(noise["name"], noise["spread"], noise["modes"], noise["spikes"])
        for at in noise["rates"][3::6]:
            again = simulate.rates(kind, at["change"], RULE)
            assert again["regressed"] == pytest.approx(at["regressed"], abs=0.005)


def test_the_plot_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(simulate, "CHANGES", (0.0, 0.1))
    found = simulate.characteristic(trials=200)
    from hibench import draw

    paths = draw.save(simulate.draw_characteristic(found), tmp_path)
    assert [path.suffix for path in paths] == [".png", ".pdf"]
    assert all(path.stat().st_size > 5000 for path in paths)


# -- the paired rule -----------------------------------------------------------------------------------------------------------


def pairs_of(*changes: float) -> list[tuple[float, float]]:
    return [(2.0, 2.0 * (1 + change)) for change in changes]


def test_looks_are_3_5_7_9():
    assert RULE.looks == (3, 5, 7, 9)
    assert replace(RULE, first=4, cap=4).looks == (4,)


def test_ok_needs_three_pairs_and_regressed_five():
    assert judge_pairs(pairs_of(0.0, 0.001), RULE) is None
    assert judge_pairs(pairs_of(0.0, 0.001, -0.001), RULE).verdict == "ok"
    slow = (0.10, 0.101, 0.099, 0.1, 0.102)
    assert judge_pairs(pairs_of(*slow[:4]), RULE) is None
    found = judge_pairs(pairs_of(*slow), RULE)
    assert (found.verdict, found.pairs) == ("regressed", 5)
    assert found.low < 0.1004 == pytest.approx(found.change, abs=1e-3)
    assert found.p < 1e-6


def test_the_last_pairs_get_a_verdict():
    found = judge_pairs(pairs_of(0.10, 0.1, 0.1), RULE, last=True)
    assert found.verdict == "unsure"
    assert judge_pairs(pairs_of(0.1), RULE, last=True).text.startswith("1 pair of processes says nothing")
    assert judge_pairs([], RULE) is None


def test_at_the_cap_an_open_case_is_unsure_and_says_between_what():
    found = judge_pairs(pairs_of(0.12, -0.08, 0.09, -0.02, 0.1, -0.05, 0.07, 0.0, 0.03), RULE)
    assert found.verdict == "unsure"
    assert re.match(r"9 pairs leave it open between -\S+% and \+\S+%; measure on a quieter machine", found.text)


def test_two_modes_are_named():
    found = judge_pairs(pairs_of(0.12, 0.0, 0.121, 0.001, 0.119, 0.0, 0.12, 0.001, 0.12), RULE)
    assert found.verdict == "unsure"
    assert found.text.startswith("the 9 pairs fall into two groups 12% apart")


def test_one_interruption_is_no_mode():
    logs = np.log1p(np.array([[0.0, 0.001, 0.0, 0.15, 0.001], [0.0, 0.0, 0.15, 0.15, 0.001]]))
    assert two_modes(logs, 0.05).tolist() == [False, True]


def test_identical_times_are_ok():
    assert judge_pairs(pairs_of(0.0, 0.0, 0.0), RULE).verdict == "ok"
    assert judge_pairs(pairs_of(*[0.2] * 5), RULE).verdict == "regressed"


def test_an_improvement_is_ok_and_said():
    found = judge_pairs(pairs_of(-0.2, -0.21, -0.2), RULE)
    assert found.verdict == "ok"
    assert found.improved
    assert found.text == "20.3% better over 3 pairs"


# -- the other rules -----------------------------------------------------------------------------------------------------------


def test_sessions_decide_only_what_no_host_drift_explains():
    base = [1.0, 1.01, 0.99]
    assert judge_sessions(base, [1.0, 1.01, 1.0], RULE).verdict == "ok"
    assert judge_sessions(base, [1.12, 1.13, 1.11], RULE).verdict == "unsure"
    assert judge_sessions(base, [1.5, 1.51, 1.49], RULE).verdict == "regressed"
    assert judge_sessions(base, [1.5], RULE).text == "one process says nothing about the next; use hibench compare"
    assert judge_sessions([100.0] * 3, [103.0] * 3, replace(RULE, tolerance=0.01), drift=False).verdict == "regressed"


def test_holm_rejects_step_by_step():
    assert holm({"a": 0.0001, "b": 0.004, "c": 0.02, "d": 0.5}, 0.01) == {"a"}
    assert holm({"a": 0.0001, "b": 0.003, "c": 0.004, "d": 0.5}, 0.01) == {"a", "b", "c"}
    assert holm({"a": 0.02}, 0.01) == set()
    assert holm({}, 0.01) == set()


@pytest.mark.parametrize(("base", "head", "tolerance", "verdict"), [
    (100.0, 100.0, 0.01, "ok"), (100.0, 100.9, 0.01, "ok"), (100.0, 102.0, 0.01, "regressed"), (100.0, 50.0, 0.01, "ok"),
    (50.0, 50.0, 0.0, "ok"), (50.0, 51.0, 0.0, "regressed"), (50.0, 49.0, 0.0, "regressed"), (0.0, 5.0, 0.01, "regressed")])
def test_bound(base, head, tolerance, verdict):
    assert bound(base, head, tolerance).verdict == verdict


@pytest.mark.parametrize(("head", "noise", "better", "verdict"), [
    (31.0, (0.1, 0.1), "lower", "ok"), (30.2, (0.1, 0.1), "lower", "ok"), (33.0, (0.1, 0.1), "lower", "regressed"),
    (27.0, (0.1, 0.1), "lower", "regressed"), (33.0, (2.0, 2.0), "lower", "unsure"), (33.0, (None, None), "none", "regressed")])
def test_a_quality_band_has_two_sides(head, noise, better, verdict):
    found = band(30.5, head, 0.03, True, noise, better)
    assert found.verdict == verdict
    assert ("find out why" in found.text) == (head == 27.0)


def test_codes_have_names():
    assert gate.VERDICTS == ("ok", "regressed", "unsure")
