"""`hibench check`: matching by key, every gated number, bad input, and every way in which the verdict is told."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import records
from PIL import Image

from hibench import cli, verdicts
from hibench.check import COMPARE_SCHEMA, check, limits_of, run_check
from hibench.errors import NoBaseline, SpecError, Unfit
from hibench.verdicts import Report, Row


def speed(method="ldm", resolution=64, factor=1.0, memory=1.0, seed=0, n=5, hardware=records.CPU, **changes):
    """A speed record whose processes are `factor` slower and hold `memory` times the bytes, with 0.5 % noise of its own."""
    made = records.record(method, "speed", resolution, hardware=hardware)
    made["device"] = "cuda" if hardware["gpus"] else "cpu"
    rng, part = random.Random(f"{method} {resolution} {seed}"), made["speed"]
    processes = []
    for process in (part["processes"] * 3)[:n]:
        process = copy.deepcopy(process)
        process["replicate"] = len(processes)
        process["latency_s"] = [x * factor * (1 + rng.gauss(0, 0.005)) for x in [part["latency_p50_s"]] * 5]
        process["peak_rss_bytes"] = process["idle_rss_bytes"] + round(300 * 2**20 * memory * (1 + rng.gauss(0, 0.0005)))
        processes.append(process)
    part.update(processes=processes, latency_p50_s=part["latency_p50_s"] * factor)
    part["peak_bytes"] = round(part["peak_bytes"] * memory)
    part.update({name: value for name, value in changes.items() if name in part})
    made.update({name: value for name, value in changes.items() if name in made and name not in part})
    return made


def quality(**values):
    made = records.record("ldm", "quality", 64)
    made["device"] = "cpu"
    for name, entry in made["quality"]["values"].items():
        entry.update(values.get(name.partition("@")[0].replace("-", "_"), {}))
    return made


def drift(root: Path, shift=0, seed=0, key_method="ldm"):
    """A drift record under `root` with 8 little images; `shift` is added to each pixel."""
    made = records.record(key_method, "quality", 16)
    made.update(kind="drift", key=f"{key_method}/drift/16x16/steps=50", device="cpu", quality=None)
    made["id"] = records.digest("drift", seed)
    folder = root / "cells" / made["id"][:2] / made["id"] / "samples"
    folder.mkdir(parents=True)
    for s in range(8):
        pixels = np.random.default_rng(s).integers(60, 180, (16, 16, 3))
        Image.fromarray((pixels + shift).astype(np.uint8)).save(folder / f"{s}.png")
    made["drift"] = {"samples": {str(s): f"samples/{s}.png" for s in range(8)}, "sha256": {}}
    return made


def compared(tmp_path: Path, base: list, head: list, itself: bool = False, tolerance=()) -> Path:
    """A compare directory of these records."""
    records.write(tmp_path / "base", base)
    records.write(tmp_path / "head", head)
    (tmp_path / "compare.json").write_text(json.dumps({
        "schema": COMPARE_SCHEMA, "base": {"label": "main"}, "head": {"label": "mine"}, "itself": itself,
        "tolerance": list(tolerance)}))
    return tmp_path


def verdict_of(report: Report, metric: str, key: str | None = None) -> str:
    found = [row for row in report.rows if row.metric == metric and row.gated and (key is None or row.key == key)]
    assert len(found) == 1, f"{len(found)} rows of {metric}"
    return found[0].verdict


# -- numbers ---------------------------------------------------------------------------------------------------------------


def test_the_same_results_are_ok(tmp_path):
    report, _ = check(compared(tmp_path, [speed(), quality()], [speed(seed=1), quality()]))
    assert {row.verdict for row in report.rows if row.gated} == {"ok"}
    assert (report.measured, report.exit_code(strict=True)) == (2, 0)
    assert verdicts.headline(report) == "OK: 2 cells compared, nothing has become worse"


@pytest.mark.parametrize(("change", "metric"), [
    ({"factor": 1.1}, "latency"), ({"memory": 1.02}, "memory"), ({"nfe": 49}, "nfe"), ({"flops": 1}, "flops"),
    ({"weights_bytes": 12_000_000}, "weights"), ({"status": "oom"}, "status")])
def test_one_worse_number_is_a_regression_and_no_other_is(tmp_path, change, metric):
    report, _ = check(compared(tmp_path, [speed()], [speed(seed=1, **change)]))
    assert [row.metric for row in report.of("regressed")] == [metric]
    assert report.exit_code() == 1
    assert verdicts.headline(report).startswith(f"REGRESSED: ldm/speed/64x64/steps=50 {metric} (")


def test_allocated_bytes_on_a_gpu_are_gated_at_one_percent(tmp_path):
    base, head = speed(hardware=records.GPU), speed(hardware=records.GPU, memory=1.02)
    report, _ = check(compared(tmp_path, [base], [head]))
    assert verdict_of(report, "vram") == "regressed"
    assert not [row for row in report.rows if row.metric == "memory"]


def test_one_slow_cell_among_20_is_found_by_key(tmp_path):
    sizes = [16 * i for i in range(1, 21)]
    head = [speed(resolution=r, seed=1, factor=1.1 if r == 160 else 1.0) for r in sizes]
    random.Random(0).shuffle(head)
    report, _ = check(compared(tmp_path, [speed(resolution=r) for r in sizes], head))
    assert [row.key for row in report.of("regressed")] == ["ldm/speed/160x160/steps=50"]
    assert report.counts["unsure"] == 0


def test_a_large_p_among_many_cells_is_unsure(tmp_path):
    """One cell at p = 0.001 would be a regression alone; among 16 numbers it may be chance (Holm)."""
    noisy = speed()
    for process, change in zip(noisy["speed"]["processes"], (0.06, 0.10, 0.12, 0.05, 0.09)):
        process["latency_s"] = [0.42 * (1 + change)] * 5
    flat = speed()
    for process in flat["speed"]["processes"]:
        process["latency_s"] = [0.42] * 5
    alone, _ = check(compared(tmp_path / "a", [flat], [noisy]))
    assert verdict_of(alone, "latency") == "regressed"
    others = [speed(resolution=8 * i) for i in range(1, 8)]
    many, _ = check(compared(tmp_path / "b", [flat, *others], [noisy, *others]))
    assert verdict_of(many, "latency", flat["key"]) == "unsure"


@pytest.mark.parametrize(("value", "pm", "verdict"), [(1.0, 0.1, "ok"), (1.02, 0.1, "ok"), (1.2, 1.0, "regressed"),
                                                       (0.8, 1.0, "regressed"), (1.05, 30.0, "unsure")])
def test_quality_is_judged_in_a_band_with_two_sides(tmp_path, value, pm, verdict):
    base = quality(fd={"pm": pm})
    was = base["quality"]["values"]["fd@scenes-clip"]["value"]
    report, _ = check(compared(tmp_path, [base], [quality(fd={"value": was * value, "pm": pm})]))
    assert verdict_of(report, "fd@scenes-clip") == verdict


def test_quality_of_other_images_or_weights_is_not_compared(tmp_path):
    report, _ = check(compared(tmp_path, [quality()], [quality(fd={"n": 64, "value": 9.0})]))
    row = next(row for row in report.rows if row.metric == "fd@scenes-clip")
    assert (row.verdict, row.text) == ("unsure", "not compared: n 128 → 64")


def test_a_tolerance_makes_another_number_gated(tmp_path):
    base, head = quality(), quality()
    head["quality"]["values"]["precision@scenes-clip"]["value"] *= 0.5
    folder = compared(tmp_path, [base], [head])
    assert not check(folder)[0].of("regressed")
    found = check(folder, limits=limits_of(["precision=10%"]))[0].of("regressed")
    assert [row.metric for row in found] == ["precision@scenes-clip"]


def test_the_last_rule_that_fits_a_cell_holds(tmp_path):
    slower = [speed(resolution=r, seed=1, factor=1.1) for r in (64, 128)]
    rules = [["*", "latency", 0.05, True], ["ldm/speed/64x64/*", "latency", 0.2, True]]
    folder = compared(tmp_path, [speed(resolution=r) for r in (64, 128)], slower, tolerance=rules)

    def slow(*words):
        return [row.key.split("/")[2] for row in check(folder, limits=limits_of(words))[0].of("regressed")]

    assert slow() == ["128x128"]
    assert slow("ldm:latency=20%") == []
    assert slow("speed:latency=20%", "latency=5%") == ["128x128", "64x64"]
    assert slow("ldm/speed/*x*/steps=50:latency=20%") == []
    assert slow("infd:latency=1%") == ["128x128"]


def test_the_code_against_itself_counts_false_alarms_and_tells_where_the_noise_is_large(tmp_path):
    quiet, loud = speed(seed=2), speed(resolution=128, seed=2)
    for process, factor in zip(loud["speed"]["processes"], (0.98, 1.05, 0.9, 1.06, 1.0)):
        process["latency_s"] = [x * factor for x in process["latency_s"]]
    folder = compared(tmp_path, [speed(), speed(resolution=128)], [quiet, loud], itself=True)
    alarms, noise = check(folder)[0].notes
    assert alarms == "both sides are the same code: 0 of 4 numbers judged over pairs of processes are false alarms"
    allowed = json.loads(noise[noise.index("check: {cells: ") + len("check: {cells: "):-1])
    assert noise.startswith("3 times their noise is more than the tolerance in 1 cell; in the benchmark file: check:")
    (word,) = allowed["ldm/speed/128x128/steps=50"].values()
    pairs = np.log([h["latency_s"][2] / b["latency_s"][2] for b, h in zip(speed(resolution=128)["speed"]["processes"],
                                                                           loud["speed"]["processes"])])
    assert int(word.removesuffix("%")) == pytest.approx(100 * 3 * pairs.std(ddof=1) / 5**0.5, rel=0.25)
    assert len(check(folder, limits=limits_of([f"ldm/speed/128x128/*:latency={word}"]))[0].notes) == 1
    slow = compared(tmp_path / "slow", [speed()], [speed(seed=1, factor=1.1)], itself=True)
    assert "1 of 2 numbers judged over pairs of processes is a false alarm" in check(slow)[0].notes[0]
    for told in (verdicts.table, verdicts.markdown, verdicts.to_json):
        assert "is a false alarm" in told(check(slow)[0])
    assert not check(compared(tmp_path / "other", [speed()], [speed(seed=1)]))[0].notes


# -- cells -----------------------------------------------------------------------------------------------------------------


def test_new_cells_are_shown_and_lost_ones_are_exit_3(tmp_path):
    report, _ = check(compared(tmp_path, [speed(), speed(resolution=128)], [speed(), speed(resolution=256)]))
    assert [row.key for row in report.of("new")] == ["ldm/speed/256x256/steps=50"]
    assert [row.key for row in report.of("lost")] == ["ldm/speed/128x128/steps=50"]
    assert report.exit_code() == 3


def test_a_regression_counts_more_than_a_lost_cell(tmp_path):
    report, _ = check(compared(tmp_path, [speed(), speed(resolution=128)], [speed(factor=1.2)]))
    assert report.exit_code() == 1


def test_missing_weights_are_lost_not_regressed(tmp_path):
    report, _ = check(compared(tmp_path, [speed(), quality()], [records.record(status="missing"), quality()]))
    assert [row.verdict for row in report.rows if row.metric == "status" and "speed" in row.key] == ["lost"]
    assert report.exit_code() == 3


def test_what_failed_before_may_fail_again_or_recover(tmp_path):
    oom = records.record(status="oom")
    report, _ = check(compared(tmp_path / "a", [oom, quality()], [oom, quality()]))
    assert report.exit_code(strict=True) == 0
    report, _ = check(compared(tmp_path / "b", [oom, quality()], [speed(), quality()]))
    assert next(row for row in report.rows if row.metric == "status" and row.improved).text == "oom → ok"


def test_nothing_measured_is_exit_3(tmp_path, capsys):
    oom = records.record(status="oom")
    assert run_check(compared(tmp_path, [oom], [oom])) == 3
    assert capsys.readouterr().out.splitlines()[-1] == "NOTHING MEASURED: no cell is ok on both sides"


def test_of_several_records_of_a_key_the_manifest_picks(tmp_path):
    old, new = speed(factor=3.0), speed()
    old["id"], old["started_at"] = records.digest("old"), "2026-12-01T00:00:00Z"
    folder = compared(tmp_path, [speed()], [old, new])
    assert verdict_of(check(folder)[0], "latency") == "regressed"                      # no manifest: the newest by time
    records.manifest(folder / "head", {"s": [new["key"]]}, [new])
    assert verdict_of(check(folder)[0], "latency") == "ok"


def test_only_narrows_by_method_kind_and_glob(tmp_path):
    folder = compared(tmp_path, [speed(), speed("infd"), quality()], [speed(factor=1.5), speed("infd"), quality()])
    assert check(folder, only=["infd"])[0].measured == 1
    assert check(folder, only=["quality"])[0].measured == 1
    assert check(folder, only=["*/64x64/*"])[0].measured == 3


# -- two sessions ------------------------------------------------------------------------------------------------------------


def test_two_sessions_are_judged_with_care(tmp_path):
    folder = compared(tmp_path, [speed()], [speed(factor=1.1)])
    (folder / "compare.json").unlink()
    report, _ = check(folder / "base", folder / "head")
    assert verdict_of(report, "latency") == "unsure"
    assert "hibench compare" in report.warnings[-1]
    assert (report.exit_code(), report.exit_code(strict=True)) == (0, 4)


def test_two_sessions_still_find_a_large_slow_down_unless_the_machine_was_disturbed(tmp_path):
    head = speed(factor=1.6)
    records.write(tmp_path / "a", [speed()])
    records.write(tmp_path / "b", [head])
    assert verdict_of(check(tmp_path / "a", tmp_path / "b")[0], "latency") == "regressed"
    records.write(tmp_path / "c", [{**head, "flags": [{"name": "throttled", "text": "hot"}]}])
    report, _ = check(tmp_path / "a", tmp_path / "c")
    assert verdict_of(report, "latency") == "unsure"


def test_times_of_other_hardware_are_not_compared_and_the_difference_is_named(tmp_path):
    head = speed(factor=2.0)
    head["env"]["hardware"] = {**records.CPU, "cores": 64}
    head["env"]["hardware_digest"] = "other"
    records.write(tmp_path / "a", [speed()])
    records.write(tmp_path / "b", [head])
    report, _ = check(tmp_path / "a", tmp_path / "b")
    assert verdict_of(report, "latency") == "unsure"
    assert verdict_of(report, "nfe") == "ok"
    assert report.warnings[0] == "not the same surroundings: cores 2 → 64"


def test_other_software_is_named(tmp_path):
    head = speed()
    head["env"]["software"], head["env"]["software_digest"] = {**head["env"]["software"], "torch": "2.10.0"}, "x"
    report, _ = check(compared(tmp_path, [speed()], [head]))
    assert report.warnings == ["not the same surroundings: torch 2.9.0 → 2.10.0"]


# -- baselines ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def results(tmp_path):
    root = tmp_path / "results"
    return records.write(root, [speed(), quality(), drift(root)])


@pytest.fixture
def baseline(results, tmp_path, capsys):
    path = tmp_path / "baselines" / "cpu.json"
    assert run_check(results, baseline=path, update_baseline=True, reason="the first one") == 0
    capsys.readouterr()
    return path


def test_a_baseline_is_written_and_agrees_with_what_it_was_written_from(results, baseline):
    data = json.loads(baseline.read_text(encoding="utf-8"))
    assert (data["schema"], data["device"], data["changes"][0]["reason"]) == (1, "cpu", "the first one")
    assert sorted(cell["kind"] for cell in data["cells"].values()) == ["drift", "quality", "speed"]
    assert len(list((baseline.parent / "golden").glob("*.png"))) == 8
    report, _ = check(results, baseline=baseline)
    assert (report.measured, report.exit_code(strict=True)) == (3, 0)


def test_times_are_shown_and_not_gated_against_a_baseline(tmp_path, baseline):
    root = tmp_path / "slow"
    records.write(root, [speed(factor=2.0), quality(), drift(root)])
    report, _ = check(root, baseline=baseline)
    row = next(row for row in report.rows if row.metric == "latency")
    assert (row.gated, round(row.change, 1)) == (False, 1.0)
    assert report.exit_code(strict=True) == 0


def test_what_is_deterministic_is_gated_against_a_baseline(tmp_path, baseline):
    root = tmp_path / "other"
    records.write(root, [speed(nfe=51), quality(), drift(root, shift=12)])
    report, _ = check(root, baseline=baseline)
    assert [(row.metric, row.verdict) for row in report.ordered()[:2]] == [("drift", "regressed"), ("nfe", "regressed")]
    assert report.of("regressed")[0].text.startswith("largest pixel 12/255, PSNR 26.5 dB")


def test_drift_within_rounding_is_ok(tmp_path, baseline):
    root = tmp_path / "other"
    records.write(root, [speed(), quality(), drift(root, shift=1)])
    report, _ = check(root, baseline=baseline)
    assert verdict_of(report, "drift") == "ok"


def test_an_update_needs_a_reason_and_clean_quiet_records(tmp_path, results):
    path = tmp_path / "b.json"
    with pytest.raises(SpecError, match="--reason"):
        run_check(results, baseline=path, update_baseline=True)
    for number, (change, words) in enumerate([
            ({"flags": [{"name": "throttled", "text": ""}]}, "throttled"), ({"status": "error", "reason": "boom"}, "repair it"),
            ({"env": {**speed()["env"], "git": {"commit": "abc", "dirty": True}}}, "uncommitted changes")]):
        root = records.write(tmp_path / str(number), [{**speed(), **change}])
        with pytest.raises(Unfit, match=words):
            run_check(root, baseline=path, update_baseline=True, reason="because")
    assert not path.exists()


def test_an_update_keeps_the_reasons_and_drops_unused_images(tmp_path, baseline, capsys):
    root = tmp_path / "next"
    records.write(root, [speed(), quality(), drift(root, shift=20)])
    assert run_check(root, baseline=baseline, update_baseline=True, reason="another sampler") == 0
    assert "largest pixel 20/255" in capsys.readouterr().out                # the verdict stands before the change
    data = json.loads(baseline.read_text(encoding="utf-8"))
    assert [change["reason"] for change in data["changes"]] == ["the first one", "another sampler"]
    assert len(list((baseline.parent / "golden").glob("*.png"))) == 8


# -- bad input: one clear line and the right exit code -----------------------------------------------------------------------


def told(capsys, *arguments: object) -> tuple[int, str]:
    """Exit code and the one line on stderr."""
    code = cli.main(["check", *map(str, arguments)])
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) <= 1, lines
    return code, lines[0] if lines else ""


def broken(baseline: Path, name: str, **changes: object) -> Path:
    data = {**json.loads(baseline.read_text(encoding="utf-8")), **changes}
    path = baseline.parent / f"{name}.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def test_bad_baselines(results, baseline, tmp_path, capsys):
    cells = json.loads(baseline.read_text(encoding="utf-8"))["cells"]
    nan = copy.deepcopy(cells)
    nan["ldm/speed/64x64/steps=50"]["speed"]["nfe"] = float("nan")
    (tmp_path / "cut.json").write_text(baseline.read_text(encoding="utf-8")[:200], encoding="utf-8")
    (tmp_path / "list.json").write_text("[1]", encoding="utf-8")
    for path, words in [
            (tmp_path / "none.json", "there is no such baseline; write one: hibench check DIR --baseline"),
            (tmp_path / "cut.json", "cannot be read ("), (tmp_path / "list.json", "is no baseline (it has no 'schema')"),
            (broken(baseline, "newer", schema=7), "baseline of schema 7, this hibench reads 1"),
            (broken(baseline, "nan", cells=nan), "cell ldm/speed/64x64/steps=50: speed.nfe is not a finite number"),
            (broken(baseline, "foreign", device="NVIDIA H200"), "is of NVIDIA H200, and "),
            (broken(baseline, "short", cells={"a/speed/1x1": {"kind": "speed"}}), "cell a/speed/1x1 has no kind or no status")]:
        code, line = told(capsys, results, "--baseline", path)
        assert code == 3
        assert words in line
    code, line = told(capsys, results)
    assert code == 3
    assert "nothing to compare with" in line


def test_golden_images_that_are_gone_or_damaged_are_lost(results, baseline):
    golden = sorted((baseline.parent / "golden").glob("*.png"))
    golden[0].write_bytes(b"x")
    row = next(row for row in check(results, baseline=baseline)[0].rows if row.metric == "drift")
    assert (row.verdict, "is damaged" in row.text) == ("lost", True)
    golden[0].unlink()
    row = next(row for row in check(results, baseline=baseline)[0].rows if row.metric == "drift")
    assert (row.verdict, "is not there" in row.text) == ("lost", True)


def test_records_that_cannot_be_read(tmp_path, capsys):
    empty = tmp_path / "empty"
    code, line = told(capsys, empty, empty)
    assert code == 3
    assert "there are no records" in line
    root = records.write(tmp_path / "a", [speed(), speed(resolution=128)])
    cut = sorted(root.glob("cells/*/*/record.json"))[0]
    records.write(tmp_path / "b", [speed(), speed(resolution=128)])
    cut.write_text(cut.read_text(encoding="utf-8")[:99], encoding="utf-8")
    report, _ = check(tmp_path / "b", root)
    assert "is corrupt" in report.warnings[0]
    assert report.counts["lost"] == 1
    assert report.exit_code() == 3


def test_records_of_another_schema(tmp_path, capsys):
    root = records.write(tmp_path / "a", [{**speed(), "schema": 9}])
    code, line = told(capsys, root, root)
    assert code == 3
    assert "record of schema 9" in line


def test_nan_in_a_record_is_lost(tmp_path):
    head = speed()
    head["speed"]["processes"][2]["latency_s"] = [float("nan")] * 5
    report, _ = check(compared(tmp_path, [speed()], [head]))
    row = next(row for row in report.rows if row.metric == "latency")
    assert (row.verdict, row.text.startswith("head has no finite latency")) == ("lost", True)
    assert report.exit_code() == 3


def test_a_compare_file_that_cannot_be_read(tmp_path):
    folder = compared(tmp_path, [speed()], [speed()])
    for text, words in (("{", "cannot be read"), ('{"schema": 1}', "schema 1, this hibench reads 2")):
        (folder / "compare.json").write_text(text)
        with pytest.raises(NoBaseline, match=words):
            check(folder)


@pytest.mark.parametrize("word", ["latency", "latency=fast", "latency=-1%", "latancy=5%", "latency=nan", "ldm:latancy=5%"])
def test_bad_tolerances(word):
    with pytest.raises(SpecError, match="--tolerance"):
        limits_of([word])


# -- how it is told ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def report():
    return Report("base | main", "head <b>", [
        Row("ldm/speed/64x64", "latency", "regressed", "10.3% slower over 5 pairs", 0.42, 0.4633, "s", 0.103, 0.09, 0.12, 5),
        Row("ldm/speed/96x96", "latency", "unsure", "too | noisy\n100%", 1.5, 1.6, "s", 0.07, -0.1, 0.2, 9),
        Row("ldm/speed/128x128", "status", "lost", "it was not measured", "ok", None),
        Row("new/speed/64x64", "status", "new", "it has no baseline", None, "ok"),
        Row("ldm/speed/64x64", "nfe", "ok", "the same", 50.0, 50.0),
        Row("ldm/speed/64x64", "load", "ok", "", 0.3, float("inf"), "s", gated=False)], ["a warning"], measured=2)


def test_table(report):
    text = verdicts.table(report)
    lines = text.splitlines()
    assert lines[0] == "base: base | main"
    assert lines[4].split() == ["verdict", "cell", "number", "base", "head", "change"]
    assert " ".join(lines[5].split()) == ("regressed ldm/speed/64x64 latency 420 ms 463.3 ms +10.3% [+9.0, +12.0] "
                                          "10.3% slower over 5 pairs")
    assert "nfe" not in text
    assert "nfe" in verdicts.table(report, everything=True)
    assert lines[-2] == "1 regressed, 1 lost, 1 unsure, 1 new, 1 ok"


def test_json(report):
    data = json.loads(verdicts.to_json(report))
    assert (data["exit_code"], data["counts"]["regressed"], data["measured"]) == (1, 1, 2)
    assert data["rows"][5]["head"] is None                      # infinity is no JSON


def test_junit(report):
    suite = ElementTree.fromstring(verdicts.junit(report))
    assert suite.attrib == {"name": "hibench", "tests": "5", "failures": "1", "errors": "1", "skipped": "2"}
    assert [case[0].tag for case in suite.findall("testcase") if len(case)] == ["failure", "error", "skipped", "skipped"]
    assert suite.find("testcase/failure").attrib["message"] == "regressed: 10.3% slower over 5 pairs"


def test_github_annotations(report):
    assert verdicts.github_lines(report).splitlines() == [
        "::warning title=hibench::a warning",
        "::error title=hibench regressed::ldm/speed/64x64 latency: 10.3%25 slower over 5 pairs",
        "::error title=hibench lost::ldm/speed/128x128 status: it was not measured",
        "::warning title=hibench unsure::ldm/speed/96x96 latency: too | noisy%0A100%25",
        "::notice title=hibench new::new/speed/64x64 status: it has no baseline"]


def test_markdown_cannot_be_broken_by_its_content(report):
    text = verdicts.markdown(report)
    assert text.startswith("## REGRESSED: ldm/speed/64x64 latency")
    assert "head: head &lt;b>" in text
    assert "too \\| noisy 100%" in text
    rows = [line for line in text.splitlines() if line.startswith("| ") and "---" not in line]
    assert {line.replace("\\|", "").count("|") for line in rows} == {8}
    slow = next(line for line in rows if "`ldm/speed/64x64` | latency" in line).split("|")
    assert all(" " not in cell.strip() for cell in slow[4:7])                 # a number is not broken before its unit
    assert slow[4].strip() == "420\N{NO-BREAK SPACE}ms"


def test_files_are_written_and_the_summary_is_appended(tmp_path, capsys):
    folder = compared(tmp_path / "c", [speed()], [speed(factor=1.2)])
    summary, history = tmp_path / "deep" / "summary.md", tmp_path / "history.jsonl"
    for _ in range(2):
        assert run_check(folder, junit=tmp_path / "j.xml", summary=summary, github=True, as_json=False, history=history) == 1
    assert summary.read_text(encoding="utf-8").count("## REGRESSED") == 2
    assert ElementTree.parse(tmp_path / "j.xml").getroot().attrib["failures"] == "1"
    out = capsys.readouterr().out
    assert "::error title=hibench regressed::" in out
    entries = [json.loads(line) for line in history.read_text(encoding="utf-8").splitlines()]
    assert [(one["key"], one["verdict"]) for one in entries] == [("ldm/speed/64x64/steps=50", "regressed")]


def test_the_verb_prints_json_alone(tmp_path, capsys):
    folder = compared(tmp_path, [speed()], [speed()])
    assert cli.main(["check", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["headline"].startswith("OK")


# -- the workflows -------------------------------------------------------------------------------------------------------------


def workflow(name: str) -> dict:
    import yaml

    return yaml.safe_load((Path(__file__).parent.parent / ".github" / "workflows" / name).read_text(encoding="utf-8"))


def commands(job: dict) -> str:
    return "\n".join(step.get("run", "") for step in job["steps"])


def test_the_workflows_name_sweeps_and_files_that_exist():
    from hibench.spec import load_spec

    root = Path(__file__).parent.parent
    suite = load_spec(root / "benchmarks.yaml")
    told = commands(workflow("nightly.yml")["jobs"]["bench"])
    for sweep in ("nightly", "weekly"):
        assert f"--only {sweep}" in told
        assert not suite.sweeps[sweep].default
    assert "drift" in suite.sweeps["nightly"].measure
    smoke = commands(workflow("ci.yml")["jobs"]["smoke"])
    assert "hibench run tests/data/ci.yaml" in smoke
    assert "--baseline reports/baselines/cpu.json" in smoke
    load_spec(root / "tests" / "data" / "ci.yaml")


def test_no_stranger_reaches_the_gpu_host_and_no_write_token_either():
    nightly = workflow("nightly.yml")
    assert set(nightly[True]) == {"schedule", "workflow_dispatch"}           # YAML 1.1 reads `on` as true
    assert nightly["permissions"] == {"contents": "read"}
    assert "permissions" not in nightly["jobs"]["bench"]
    assert "${{ inputs" not in commands(nightly["jobs"]["bench"])
    assert nightly["jobs"]["publish"]["runs-on"] == "ubuntu-latest"
