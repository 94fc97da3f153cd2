"""report, tables, typeset: what a reader sees comes from the records, completely, comparably and safely escaped."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import records
from hypothesis import given
from hypothesis import strategies as st

from hibench import cli, report, rows, tables, typeset
from hibench.columns import unit_of
from hibench.errors import HibenchError, SpecError
from hibench.lines import format_value

TEXT = ("md", "csv", "tex")


def table_of(made: list[dict[str, Any]], name: str = "resolution") -> tables.Table:
    return tables.build(name, [rows.flatten(one) for one in made])


def marked(table: tables.Table, column: str) -> set[str]:
    return {line.method for line in table.lines if line.entries[column].best}


def set_metric(made: dict[str, Any], value: Any, pm: Any, name: str = "fd@scenes-clip") -> dict[str, Any]:
    made["quality"]["values"][name] |= {"value": value, "pm": pm}
    return made


def markdown_rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[part.strip() for part in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


# -- the tidy table --------------------------------------------------------------------------------------------------------


def test_table_has_one_row_per_record_with_numbers_in_base_units(tmp_path: Path) -> None:
    records.write(tmp_path, [records.record("ldm"), records.record("ldm", "quality", options={"collage": "pixel"})])
    frame = report.load_table(tmp_path).set_index("kind")
    assert list(frame.columns)[:4] == ["key", "method", "status", "height"]
    assert frame.loc["speed", "latency_p50_s"] == pytest.approx(0.42)
    assert frame.loc["speed", "latency_lo_s"] < 0.42 < frame.loc["speed", "latency_hi_s"]
    assert frame.loc["speed", "peak_source"] == "rss-over-idle"
    assert frame.loc["speed", "n"] == 50
    assert frame.loc["quality", "n"] == 128
    assert frame.loc["quality", "option.collage"] == "pixel"
    assert frame.loc["quality", "fd@scenes-clip"] > 20 > frame.loc["quality", "fd@scenes-clip_pm"]
    assert frame["fd@scenes-clip"].isna().to_list() == [key == "speed" for key in frame.index]


def test_csv_holds_the_same_and_leaves_the_unknown_empty(tmp_path: Path) -> None:
    failed = records.record("ldm", resolution=256, status="oom")
    records.write(tmp_path, [records.record("ldm"), failed, records.record("real", "quality", steps=None)])
    found = {row["key"]: row for row in csv.DictReader(io.StringIO(report.records_csv(tmp_path)))}
    assert len(found) == 3
    assert found["ldm/speed/64x64/steps=50"]["peak_bytes"].isdigit()
    assert found["real/quality/64x64"]["steps"] == ""
    oom = found[failed["key"]]
    assert (oom["status"], oom["latency_p50_s"]) == ("oom", "")
    assert oom["reason"] == "in denoise: CUDA out of memory: tried to allocate 96.0 GiB"


def test_a_metric_that_is_not_finite_is_missing_with_its_reason(tmp_path: Path) -> None:
    made = set_metric(records.record("ldm", "quality"), float("nan"), 1.0)
    records.write(tmp_path, [made])
    assert report.load_table(tmp_path)["fd@scenes-clip"].isna().all()
    entry = table_of([made]).lines[0].entries["fd@scenes-clip"]
    assert (entry.value, entry.text) == (None, "missing")
    assert "FD: not a finite number (nan)" in table_of([made]).notes


def test_no_records_is_one_clear_error(tmp_path: Path) -> None:
    for verb in (report.load_table, report.records_csv, lambda path: report.write_report(path, tmp_path / "out")):
        with pytest.raises(HibenchError, match=r"no records in .*; next: hibench run"):
            verb(tmp_path / "nothing")
    assert not (tmp_path / "out").exists()


def test_an_unreadable_record_is_named_and_hides_no_other(tmp_path: Path) -> None:
    records.write(tmp_path, [records.record("ldm"), records.record("infd")])
    broken = records.record("infd")["id"]
    (tmp_path / "cells" / broken[:2] / broken / "record.json").write_text("{")
    report.write_report(tmp_path, tmp_path / "out", formats=["md"])
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "1 records: 1 ok" in text
    assert broken in text.partition("## Records that cannot be read")[2]


def test_unknown_format_names_the_known_ones(tmp_path: Path) -> None:
    records.write(tmp_path, [records.record()])
    with pytest.raises(SpecError, match=r"unknown report format 'pfd'; did you mean 'pdf'\?; known: md, csv"):
        report.write_report(tmp_path, tmp_path / "out", formats=["pfd"])


# -- which records a table shows -------------------------------------------------------------------------------------------


def test_sweeps_come_from_the_newest_manifest_that_names_them(tmp_path: Path) -> None:
    first, second = records.record("ldm", "quality"), records.record("ldm", "quality", resolution=128)
    records.write(tmp_path, [first, second])
    records.manifest(tmp_path, {"a": [first["key"]], "b": [first["key"]]}, [first], at="20261101T000000Z")
    records.manifest(tmp_path, {"b": [second["key"]]}, [second], at="20261102T000000Z")
    sweeps = rows.sweep_rows(tmp_path, rows.load_rows(tmp_path)[0])
    found = {name: [row["id"] for row in mine] for name, mine in sweeps.items()}
    assert found == {"b": [second["id"]], "a": [first["id"]]}


def test_two_manifests_of_one_second_are_read_in_order(tmp_path: Path) -> None:
    made = [records.record("ldm", "quality", seed=seed) for seed in (0, 1)]
    records.write(tmp_path, made)
    for one, at in zip(made, ("20261101T000000Z", "20261101T000000Z-2")):
        records.manifest(tmp_path, {"a": [one["key"]]}, [one], at=at)
    assert [row["id"] for row in rows.sweep_rows(tmp_path, rows.load_rows(tmp_path)[0])["a"]] == [made[1]["id"]]


def test_a_newer_record_of_other_code_replaces_the_old_one_everywhere(tmp_path: Path) -> None:
    old, new = records.record(hardware=records.GPU), records.record(hardware=records.CPU)
    new["method"]["adapter_digest"] = "changed"
    records.write(tmp_path, [old, new])
    for one, at in ((old, "20261101T000000Z"), (new, "20261102T000000Z")):
        records.manifest(tmp_path, {"a": [one["key"]]}, [one], at=at)
    assert [row["id"] for row in rows.sweep_rows(tmp_path, rows.load_rows(tmp_path)[0])["a"]] == [new["id"]]


def test_a_key_without_a_record_is_shown_as_not_run(tmp_path: Path) -> None:
    made = records.record("ldm")
    records.write(tmp_path, [made])
    records.manifest(tmp_path, {"a": [made["key"], "infd/speed/64x128/steps=50/sparsity=0.75/collage=pixel"]}, [made])
    found = rows.sweep_rows(tmp_path, rows.load_rows(tmp_path)[0])["a"]
    table = tables.build("a", found)
    line = next(line for line in table.lines if line.method == "infd")
    assert (line.height, line.width, line.steps, line.sparsity, line.options) == (64, 128, 50, 0.75, (("collage", "pixel"),))
    assert line.entries["latency_p50_s"].text == "not run"
    assert any("run again to resume" in note for note in table.notes)


def test_without_a_manifest_everything_is_one_table(tmp_path: Path) -> None:
    records.write(tmp_path, [records.record("ldm"), records.record("ldm", "quality"), records.record("infd")])
    report.write_report(tmp_path, tmp_path / "out", formats=["csv"])
    found = list(csv.DictReader(io.StringIO((tmp_path / "out" / "tables" / "all.csv").read_text(encoding="utf-8"))))
    assert [(row["method"], bool(row["speed_id"]), bool(row["quality_id"])) for row in found] == [
        ("infd", True, False), ("ldm", True, True)]


# -- machines --------------------------------------------------------------------------------------------------------------


def test_machines_are_never_mixed_in_one_line() -> None:
    made = [records.record(method, kind, hardware=machine) for method in ("ldm", "infd") for kind in ("speed", "quality")
            for machine in (records.CPU, records.GPU)]
    table = table_of(made)
    assert sorted((line.method, str(line.hardware)) for line in table.lines) == [
        (method, machine) for method in ("infd", "ldm") for machine in ("Example CPU @ 2.50GHz (2 cores)", "NVIDIA H200")]
    assert len({line.quality["id"] for line in table.lines if line.quality}) == 2
    best = {(line.method, line.hardware) for line in table.lines if line.entries["latency_p50_s"].best}
    assert best == {("ldm", "Example CPU @ 2.50GHz (2 cores)"), ("ldm", "NVIDIA H200")}
    assert "| Hardware |" in typeset.to_markdown(table)
    assert "Hardware" not in typeset.to_markdown(table_of(made[:1]))


def test_a_cpu_run_on_a_gpu_machine_is_called_by_its_cpu(tmp_path: Path) -> None:
    done, failed = records.record("ldm", hardware=records.GPU), records.record("infd", hardware=records.GPU, status="timeout")
    for process in done["speed"]["processes"]:
        process |= {"device": "cpu", "device_name": None}
    records.write(tmp_path, [done, failed])
    assert {row["hardware"] for row in rows.load_rows(tmp_path)[0]} == {"Example EPYC (16 cores)"}
    assert rows.hardware_name(records.GPU, {"device": "cuda:0", "device_name": "NVIDIA L4"}) == "NVIDIA L4"
    assert rows.hardware_name({"gpus": [{"name": "A"}, {"name": "A"}]}) == "2 × A"


def test_machines_of_one_name_are_told_apart_by_their_digest(tmp_path: Path) -> None:
    bigger = {**records.CPU, "memory_bytes": 2**40}
    records.write(tmp_path, [records.record(hardware=records.CPU), records.record(hardware=bigger)])
    names = {row["hardware"] for row in rows.load_rows(tmp_path)[0]}
    assert names == {f"Example CPU @ 2.50GHz (2 cores) [{records.digest(one)[:6]}]" for one in (records.CPU, bigger)}


# -- what is best ----------------------------------------------------------------------------------------------------------


def quality(method: str, value: float, pm: float | None, **more: Any) -> dict[str, Any]:
    return set_metric(records.record(method, "quality", **more), value, pm)


@pytest.mark.parametrize(("ldm", "infd", "best"), [
    ((10.0, 1.0), (13.0, 1.5), {"ldm"}),                     # [9, 11] and [11.5, 14.5]
    ((10.0, 1.0), (12.0, 1.5), set()),                       # they overlap
    ((10.0, None), (99.0, 1.0), set()),                      # no interval, no mark
    ((10.0, 1.0), (99.0, None), set()),
])
def test_best_needs_intervals_that_do_not_overlap(ldm: Any, infd: Any, best: set[str]) -> None:
    table = table_of([quality("ldm", *ldm), quality("infd", *infd), quality("real", 1.0, 0.1, steps=None)])
    assert marked(table, "fd@scenes-clip") == best


def test_higher_is_better_turns_the_comparison() -> None:
    made = [set_metric(records.record(method, "quality"), value, 0.1, "is@scenes-clip")
            for method, value in (("ldm", 3.0), ("infd", 4.0))]
    assert marked(table_of(made), "is@scenes-clip") == {"infd"}


def test_numbers_of_another_protocol_or_setting_are_not_compared() -> None:
    assert marked(table_of([quality("ldm", 10, 1), quality("infd", 30, 1)]), "fd@scenes-clip") == {"ldm"}
    assert marked(table_of([quality("ldm", 10, 1, n=64), quality("infd", 30, 1)]), "fd@scenes-clip") == set()
    assert marked(table_of([quality("ldm", 10, 1, steps=10), quality("infd", 30, 1)]), "fd@scenes-clip") == set()
    assert marked(table_of([quality("ldm", 10, 1, resolution=128), quality("infd", 30, 1)]), "fd@scenes-clip") == set()


def test_settings_of_a_single_method_compete_with_each_other() -> None:
    made = [quality("ldm", 30, 1, steps=5), quality("ldm", 10, 1, steps=50)]
    table = table_of(made)
    assert [line.steps for line in table.lines if line.entries["fd@scenes-clip"].best] == [50]
    assert "best setting at equal resolution" in table.caption


def test_memory_is_best_only_beyond_its_range_over_processes() -> None:
    small, large = records.record("infd", resolution=256), records.record("ldm", resolution=256)
    assert marked(table_of([small, large]), "peak_bytes") == {"infd"}
    small["speed"]["processes"] = small["speed"]["processes"][:1]
    assert marked(table_of([small, large]), "peak_bytes") == set()


# -- failures, notes, captions ---------------------------------------------------------------------------------------------


def test_failures_stay_in_the_table_with_their_reason() -> None:
    made = [records.record("ldm", status="oom"), records.record("ldm", "quality"), records.record("infd", status="skip"),
            records.record("infd", "quality", status="missing"), records.record("patch-dm", status="oom")]
    made[1]["quality"]["missing"] = {"fid": "no Inception weights; run: hibench fetch inception"}
    text = typeset.to_markdown(table_of(made))
    found = {row[1]: row for row in markdown_rows(text)[2:]}
    assert "oom<sup>a</sup>" in found["ldm"]
    assert "oom<sup>a</sup>" in found["patch-dm"]                  # the same reason is said once
    assert any(field.startswith("skip<sup>") for field in found["infd"])
    assert any(field.startswith("missing<sup>") for field in found["infd"])
    for reason in ("tried to allocate 96.0 GiB", "infd does not support sparsity", "hibench fetch infd"):
        assert len(re.findall(rf"<sup>\w</sup> .*{reason}", text)) == 1


def test_a_missing_metric_is_a_column_with_its_reason_and_joins_its_honest_name() -> None:
    whole, part = records.record("ldm", "quality"), records.record("infd", "quality")
    del part["quality"]["values"]["fd@scenes-clip"]
    part["quality"]["missing"] = {"fid": "too few images", "cmmd": "no weights"}
    table = table_of([whole, part])
    fields = {column.field for column in table.columns}
    assert "fid" not in fields
    entries = next(line for line in table.lines if line.method == "infd").entries
    assert entries["fd@scenes-clip"].text == entries["cmmd"].text == "missing"
    assert {"FD: too few images", "CMMD: no weights"} <= set(table.notes)


@pytest.mark.parametrize(("name", "extractor", "wanted"), [
    ("fid", "scenes-clip", "fd@scenes-clip"), ("precision", "dinov2", "precision@dinov2"),
    ("fid", "inception-v3-compat", "fid"),
    ("kd@dinov2", "scenes-clip", "kd@dinov2"), ("seam", "scenes-clip", "seam"), ("fid", "", "fid"),
])
def test_a_missing_metric_gets_no_name_that_it_may_not_carry(name: str, extractor: str, wanted: str) -> None:
    made = records.record("ldm", "quality")
    made["settings"] = {"extractor": extractor}
    made["quality"] |= {"values": {}, "missing": {name: "no weights"}}
    assert [column.field for column in table_of([made]).columns] == [wanted]


def without_prompts(made: dict[str, Any], seam: str = "seam@32: 64x64 px images have no border") -> dict[str, Any]:
    made["settings"] = {"extractor": "scenes-clip"}
    del made["quality"]["values"]["clip-score@scenes-clip"]
    made["quality"]["inapplicable"] = {"clip-score": "clip-score: the method takes no prompt", "seam@32": seam}
    return made


def test_an_inapplicable_metric_is_a_dash_with_its_reason_and_no_fault(tmp_path: Path) -> None:
    made = [records.record("ldm", "quality"), without_prompts(records.record("infd", "quality"))]
    table = table_of(made)
    entry = next(line for line in table.lines if line.method == "infd").entries["clip-score@scenes-clip"]
    assert (entry.value, entry.text, entry.notes) == (None, "—", ["a"])
    assert table.notes == {"CLIP score: the method takes no prompt": "a"}
    found = {row[1]: row for row in markdown_rows(typeset.to_markdown(table))[2:]}
    assert found["infd"][-1] == "—<sup>a</sup>"
    assert r"---\textsuperscript{a}" in typeset.to_latex(table)
    records.write(tmp_path, made)
    report.write_report(tmp_path, tmp_path / "out", formats=["md"])
    assert "Cells without a full result" not in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


def test_a_metric_that_is_inapplicable_throughout_is_said_in_the_caption_and_fills_no_column() -> None:
    made = [without_prompts(records.record("ldm", "quality")),
            without_prompts(records.record("ldm", "quality", 128), "seam@32: other")]
    table = table_of(made)
    assert "CLIP score@scenes-clip is inapplicable throughout: the method takes no prompt." in table.caption
    assert "Seam@32 is inapplicable throughout: 64x64 px images have no border; other." in table.caption
    assert not {"clip-score@scenes-clip", "seam@32"} & {column.field for column in table.columns}
    assert table.notes == {}


def test_flags_are_footnotes_of_the_number_they_concern() -> None:
    made = records.record("ldm")
    made["flags"] = [{"name": "contended", "text": "another process used 80 % of the processor"}]
    table = table_of([made])
    assert table.lines[0].entries["latency_p50_s"].notes == ["a"]
    assert table.notes == {"another process used 80 % of the processor": "a"}


def test_caption_says_n_extractor_reference_machine_and_units() -> None:
    made = [records.record(method, kind, (64, 128)) for method in ("ldm", "real") for kind in ("speed", "quality")]
    caption = table_of(made).caption
    for part in ("n = 128 images per quality cell", "sd over 3 seed blocks", "Extractor scenes-clip (weights ",
                 "resize area-64", "reference scenes (digest ", "median over 50 images in 5 processes on Example CPU",
                 "MiB = 2^20 bytes", "height × width", "reference points and do not compete"):
        assert caption.count(part) == 1, part
    assert "GiB" not in caption


def test_n_becomes_a_column_when_it_differs() -> None:
    text = typeset.to_markdown(table_of([records.record("ldm", "quality"), records.record("infd", "quality", n=64)]))
    head, _, *found = markdown_rows(text)
    assert {row[1]: row[head.index("n")] for row in found} == {"ldm": "128", "infd": "64"}


def test_footnote_letters_go_on_after_z() -> None:
    made = [records.record("ldm", steps=steps, status="error") for steps in range(1, 31)]
    for one in made:
        one["failure"]["message"] = f"reason {one['axes']['steps']}"
    assert list(table_of(made).notes.values())[24:29] == ["y", "z", "aa", "ab", "ac"]


# -- numbers and escapes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "pm", "scale", "text"), [
    (12.345, 0.42, 1.0, "12.3 ± 0.4"), (12.345, 0.142, 1.0, "12.35 ± 0.14"), (1234.4, 120.0, 1.0, "1234 ± 120"),
    (0.01234, 0.00021, 1e3, "12.34 ± 0.21"), (-0.0213, 0.0044, 1.0, "−0.021 ± 0.004"), (0.4567, None, 1.0, "0.457"),
    (1234.5, None, 1.0, "1234"), (50.0, None, 1.0, "50"), (2.0, 0.0, 1.0, "2 ± 0"), (0.0, None, 1.0, "0"),
])
def test_values_carry_as_many_digits_as_their_interval(value: float, pm: float | None, scale: float, text: str) -> None:
    assert format_value(value, pm, scale) == text


@given(st.text())
def test_any_text_is_one_safe_markdown_cell(text: str) -> None:
    safe = typeset.escape_markdown(text)
    assert "\n" not in safe
    assert "<" not in safe
    assert not re.search(r"(?<!\\)(\\\\)*[|*_`]", safe)


@given(st.text(alphabet="ab \\{}$&#%_^~<>|\"²×±"))
def test_any_text_is_safe_latex(text: str) -> None:
    safe = typeset.escape_latex(text)
    for command in (r"\textbackslash{}", r"\textasciitilde{}", r"\textasciicircum{}", r"\textless{}", r"\textgreater{}",
                    r"\textbar{}", "$^2$", r"$\times$", r"$\pm$", r"\&", r"\%", r"\$", r"\#", r"\_", r"\{", r"\}"):
        safe = safe.replace(command, "")
    assert not set(safe) & set("\\{}$&#%_^~<>|\"²×±")


def test_tables_have_as_many_fields_in_every_row() -> None:
    made = [records.record(method, kind, status=status) for method, status in
            (("ldm", "ok"), ("a|b_c&d", "ok"), ("patch-dm", "error")) for kind in ("speed", "quality")]
    table = table_of(made, "res_50%")
    found = markdown_rows(typeset.to_markdown(table))
    assert len({len(row) for row in found}) == 1
    latex = typeset.to_latex(table)
    body = [line for line in latex.splitlines() if line.endswith(r" \\")]
    columns = re.search(r"\\begin\{tabular\}\{(l+r+)\}", latex)
    assert columns
    assert {len(re.split(r"(?<!\\)&", line)) for line in body} == {len(columns.group(1))}
    assert r"a\textbar{}b\_c\&d" in latex
    assert latex.count(r"\toprule") == latex.count(r"\bottomrule") == 1
    assert r"\label{tab:res-50-}" in latex
    assert latex.count("{") == latex.count("}")


def test_csv_table_is_in_base_units_and_names_the_records() -> None:
    made = [records.record(method, kind) for method in ("ldm", "infty-diff") for kind in ("speed", "quality")]
    found = {row["method"]: row for row in csv.DictReader(io.StringIO(typeset.to_csv(table_of(made))))}
    assert float(found["ldm"]["latency_p50_s"]) == pytest.approx(0.42)
    assert float(found["ldm"]["peak_bytes"]) > 2**20
    assert "latency_p50_s" in found["ldm"]["best"].split()
    assert found["infty-diff"]["speed_id"] == made[2]["id"]


# -- sparsity --------------------------------------------------------------------------------------------------------------


def sparse(sparsity: float, resolution: int = 64, *, latency: float = 1.0, peak: int = 2**27, **more: Any) -> dict[str, Any]:
    """A speed record with the interval ±10 %, the peak the same in all processes, and what every process said it did."""
    made = records.record("infty-diff", "speed", resolution, 50, sparsity, **more)
    if made["speed"]:
        made["speed"] |= {"latency_p50_s": latency, "latency_ci_s": [0.9 * latency, 1.1 * latency], "peak_bytes": peak}
        for process in made["speed"]["processes"]:
            process["peak_rss_bytes"] = process["idle_rss_bytes"] + peak
            process["effective"] = {"steps": 50, "coordinates": int((1 - sparsity) * resolution**2) * 50}
    return made


def test_coordinates_stand_beside_nfe_where_some_record_reports_them(tmp_path: Path) -> None:
    made = [sparse(0.0), sparse(0.75), records.record("ldm")]
    head, _, *found = markdown_rows(typeset.to_markdown(table_of(made)))
    at = head.index("Coordinates (k)")
    assert head[at - 1] == "NFE"
    assert [row[at] for row in found] == ["205", "51.2", "—"]      # 64² · 50 and a quarter of it
    assert "evaluated by the sparse level for one image" in table_of(made).caption
    records.write(tmp_path / "some", made)
    rows_in_csv = {row["key"]: row for row in csv.DictReader(io.StringIO(report.records_csv(tmp_path / "some")))}
    assert [rows_in_csv[one["key"]]["coordinates"] for one in made] == ["204800", "51200", ""]
    assert "coordinates" in typeset.to_csv(table_of(made)).partition("\n")[0].split(",")
    records.write(tmp_path / "none", made[2:])
    assert "coordinates" not in report.records_csv(tmp_path / "none")
    assert "Coordinates" not in typeset.to_markdown(table_of(made[2:]))


@pytest.mark.parametrize(("known", "unit"), [([4096.0], (1.0, "")), ([204800.0], (1e-3, "k")), ([3276800.0], (1e-6, "M"))])
def test_coordinates_are_counted_in_thousands_or_millions(known: list[float], unit: tuple[float, str]) -> None:
    assert unit_of("coordinates", known) == unit


def test_a_sparsity_table_gives_speed_and_memory_relative_to_s_0() -> None:
    made = [sparse(0.875, latency=0.5, peak=2**26), sparse(0.0, latency=0.8), sparse(0.0, 128, latency=4.0), sparse(0.5, 128)]
    table = table_of([*made, records.record("ldm")])
    assert [(line.height, line.method, line.sparsity) for line in table.lines] == [
        (64, "infty-diff", 0.0), (64, "infty-diff", 0.875), (64, "ldm", 0.0),
        (128, "infty-diff", 0.0), (128, "infty-diff", 0.5)]
    fields = [column.field for column in table.columns]
    assert fields[fields.index("latency_p50_s") + 1] == "speedup"
    assert fields[fields.index("peak_bytes") + 1] == "memory_saved"
    dense, thin, _, _, half = (line.entries for line in table.lines)
    assert (dense["speedup"].value, dense["speedup"].pm) == (1.0, None)
    assert (thin["speedup"].value, thin["memory_saved"].value, half["speedup"].value) == pytest.approx((1.6, 2.0, 4.0))
    assert thin["speedup"].pm == pytest.approx(0.88 / 0.45 - 1.6)
    assert thin["memory_saved"].pm == 0.0
    assert "Speed-up (×) ↑" in typeset.to_markdown(table)
    assert r"Speed-up $\uparrow$" in typeset.to_latex(table)
    assert not any(entry.best for entry in (thin["speedup"], thin["memory_saved"]))


def test_without_a_result_at_s_0_the_ratios_are_dashes() -> None:
    made = [sparse(0.0, status="oom"), sparse(0.5), sparse(0.75, status="oom"), sparse(0.75, hardware=records.GPU)]
    made += [sparse(0.0, 128)]
    for line in table_of(made).lines:
        if line.height == 64:
            assert (line.entries["speedup"].text, line.entries["speedup"].value) == ("—", None)
            assert (line.entries["memory_saved"].text, line.entries["memory_saved"].value) == ("—", None)


def test_one_sparsity_has_no_ratios() -> None:
    for made in ([sparse(0.0), sparse(0.0, 128)], [sparse(0.75), sparse(0.75, 128)]):
        assert not {"speedup", "memory_saved"} & {column.field for column in table_of(made).columns}


# -- the whole report ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods at two resolutions, one cell out of memory, samples beside the quality records."""
    return records.suite(tmp_path_factory.mktemp("results"), methods=("ldm", "infd"), resolutions=(64, 128), steps=(),
                         sparsity=(), failures={"ldm/speed/128x128/steps=50": "oom"}, samples=1)


def test_report_shows_tables_plots_provenance_failures_and_environment(results: Path, tmp_path: Path) -> None:
    written = report.write_report(results, tmp_path)
    assert {path.suffix for path in written} == {".md", ".csv", ".tex", ".png", ".pdf"}
    assert all(path.stat().st_size > 100 for path in written)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    for made in rows.load_records(results)[0]:
        assert made["id"] in text
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert (tmp_path / link).is_file(), link
    for part in ("# Benchmark report", "## resolution", "## Cells without a full result", "## Environment", "0123456789abcdef",
                 "## Published numbers", "| LDM-4 | fid ↓ | 5.11 | CelebA-HQ |"):
        assert part in text
    assert "8 records: 7 ok, 1 oom" in text

    # another process, another hash seed, the clock moved on: the same bytes, and torch is never imported
    code = ("import sys; from pathlib import Path; from hibench.report import write_report;"
            "write_report(Path(sys.argv[1]), Path(sys.argv[2])); print('torch' in sys.modules)")
    ran = subprocess.run([sys.executable, "-W", "error", "-c", code, str(results), str(tmp_path / "again")], text=True,
                         capture_output=True, check=True, env={**os.environ, "PYTHONHASHSEED": "7"})
    assert ran.stdout == "False\n"
    for path in written:
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(tmp_path)).read_bytes(), path.name
    for path in written:
        if path.suffix == ".pdf":
            assert not re.search(rb"/CreationDate|/Producer|/Type3", path.read_bytes()), path.name


def test_hundreds_of_cells_are_reported_quickly_and_completely(tmp_path: Path) -> None:
    made = [records.record(f"m{number}", kind, steps=steps) for number in range(20) for kind in ("speed", "quality")
            for steps in range(1, 11)]
    records.write(tmp_path, made)
    report.write_report(tmp_path, tmp_path / "out", formats=TEXT)
    assert len(markdown_rows((tmp_path / "out" / "tables" / "all.md").read_text(encoding="utf-8"))) == 2 + 200


def test_fake_records_are_json_as_the_store_reads_them(tmp_path: Path) -> None:
    from hibench.store import Store

    made = records.record("ldm", "quality")
    records.write(tmp_path, [made])
    assert Store(tmp_path).records() == ([json.loads(json.dumps(made))], [])


@pytest.mark.parametrize("name", ["standing", "ldm"])
def test_the_published_tables_can_be_made_again_from_the_published_records(tmp_path: Path, name: str) -> None:
    published = Path(__file__).parents[1] / "reports" / name
    assert cli.main(["report", str(published), "--format", "csv", "--out", str(tmp_path)]) == 0
    swept = (published / "runs").is_dir()                               # otherwise nothing says which sweep a record is of
    for table in ["records.csv", *(f"tables/{path.name}" for path in (published / "tables").glob("*.csv") if swept)]:
        assert (tmp_path / table).read_text() == (published / table).read_text(), table
