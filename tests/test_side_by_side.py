"""side_by_side and export: two runs compared as far as they may be, and the table of records for other programs."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import records

from hibench import cli, export, report
from hibench.errors import HibenchError
from hibench.side_by_side import COMPARE_FORMATS, compare_runs

FD = "fd@scenes-clip"


def runs(tmp_path: Path, change: Any) -> tuple[Path, Path]:
    """Two runs of the same cells; `change` edits the records of the second."""
    for side in ("a", "b"):
        made = [records.record("ldm", kind, 64) for kind in ("speed", "quality")]
        records.write(tmp_path / side, made if side == "a" else change(made))
    return tmp_path / "a", tmp_path / "b"


def verdicts(found: list[Any]) -> dict[tuple[str, str], str]:
    return {(one.key.split("/")[1], one.name): one.verdict for one in found}


def test_the_same_run_is_the_same(tmp_path: Path) -> None:
    found = compare_runs(*runs(tmp_path, lambda made: made))
    assert {one.verdict for one in found} == {"same"}
    assert {one.ratio for one in found if one.a} == {1.0}


def test_slower_and_better_are_told_by_intervals(tmp_path: Path) -> None:
    def change(made: list[dict[str, Any]]) -> list[dict[str, Any]]:
        speed, quality = made[0]["speed"], made[1]["quality"]["values"]
        speed["latency_p50_s"] *= 2
        speed["latency_ci_s"] = [2 * end for end in speed["latency_ci_s"]]
        quality[FD]["value"] /= 3
        quality["recall@scenes-clip"]["value"] += quality["recall@scenes-clip"]["pm"] / 2
        quality["is@scenes-clip"] |= {"value": 1.0, "pm": None}
        return made

    found = compare_runs(*runs(tmp_path, change))
    said = verdicts(found)
    assert said["speed", "latency_p50_s"] == "worse"
    assert said["quality", FD] == "better"
    assert said["quality", "recall@scenes-clip"] == "same"
    assert said["quality", "is@scenes-clip"] == "unknown"
    assert next(one.ratio for one in found if one.name == "latency_p50_s") == pytest.approx(2)


def test_what_was_measured_in_another_way_is_not_compared(tmp_path: Path) -> None:
    def change(made: list[dict[str, Any]]) -> list[dict[str, Any]]:
        made[0]["env"]["hardware_digest"] = "another"
        made[1]["quality"]["values"][FD]["n"] = 64
        return made

    found = compare_runs(*runs(tmp_path, change))
    said = {one.name: (one.verdict, one.reason) for one in found}
    assert said["latency_p50_s"] == ("not comparable", "differs in hardware")
    assert said[FD] == ("not comparable", "differs in n")
    assert said["flops"][0] == "same"


def test_cells_and_numbers_of_one_run_only(tmp_path: Path) -> None:
    def change(made: list[dict[str, Any]]) -> list[dict[str, Any]]:
        del made[1]["quality"]["values"][FD]
        return [records.record("ldm", "speed", 64, status="oom"), made[1], records.record("infd", "quality", 64)]

    found = compare_runs(*runs(tmp_path, change))
    said = {(one.key, one.name): one for one in found}
    assert said["ldm/speed/64x64/steps=50", "latency_p50_s"].verdict == "only A"
    assert "B: oom (in denoise: CUDA out of memory" in said["ldm/speed/64x64/steps=50", "latency_p50_s"].reason
    assert said["ldm/quality/64x64/steps=50", FD].verdict == "only A"
    assert said["infd/quality/64x64/steps=50", FD].verdict == "only B"
    assert said["infd/quality/64x64/steps=50", FD].a is None


def test_every_format_holds_every_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = runs(tmp_path, lambda made: made[:1])
    found = compare_runs(a, b)
    assert cli.main(["report", "--compare", str(a), str(b)]) == 0
    text = capsys.readouterr().out
    assert sum(line.startswith("| ldm/") for line in text.splitlines()) == len(found)
    assert "only A: B has no such result." in text
    assert cli.main(["report", "--compare", str(a), str(b), "--format", "json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["numbers"]) == len(found)
    assert cli.main(["report", "--compare", str(a), str(b), "--format", "csv", "--out", str(tmp_path / "out")]) == 0
    with (tmp_path / "out" / "compare.csv").open() as file:
        assert [row["name"] for row in csv.DictReader(file)] == [one.name for one in found]
    assert cli.main(["report", "--compare", str(a), str(b), "--format", "pdf"]) == 2
    assert set(COMPARE_FORMATS) == {"md", "csv", "json"}


# -- export ----------------------------------------------------------------------------------------------------------------


def test_json_has_what_csv_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records.write(tmp_path, [records.record("ldm"), records.record("ldm", "quality"), records.record("infd", status="oom")])
    assert cli.main(["report", str(tmp_path), "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    table = list(csv.DictReader(io.StringIO(report.records_csv(tmp_path))))
    assert len(found) == len(table) == 3
    for one, row in zip(found, table):
        assert {name for name, text in row.items() if text != ""} == set(one)
        assert {str(one[name]) for name in ("key", "status", "height")} == {row[name] for name in ("key", "status", "height")}
    assert isinstance(next(one for one in found if "peak_bytes" in one)["peak_bytes"], int)


def test_parquet_or_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records.write(tmp_path, [records.record("ldm"), records.record("ldm", "quality")])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(HibenchError, match="Parquet needs pyarrow, which is not installed; next: pip install pyarrow"):
        export.write_export(tmp_path, tmp_path / "out" / "records.parquet", "parquet")
    monkeypatch.undo()
    pytest.importorskip("pyarrow", reason="pyarrow is not installed, so no Parquet is written")
    import pandas as pd

    back = pd.read_parquet(export.write_export(tmp_path, tmp_path / "records.parquet", "parquet"))
    assert list(back["key"]) == list(report.load_table(tmp_path)["key"])
