"""Large reports: what is summed up is said, every record is in the CSV, and small sweeps keep their tables."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pandas as pd
import pytest
import records

from hibench import report, rows, summary, tidy

SIZES = (64, 96, 128)


def made_of(count: int) -> list[dict]:
    """Speed and quality records of two methods; the last speed record of each ran out of memory."""
    made = []
    for method in ("ldm", "infd"):
        for at in range(count):
            status = "oom" if at == count - 1 else "ok"
            made += [records.record(method, "speed", SIZES[at % 3], options={"at": at}, status=status),
                     records.record(method, "quality", SIZES[at % 3], options={"at": at})]
    return made


@pytest.fixture
def large(tmp_path, monkeypatch) -> Path:
    """A sweep of 24 cells and one of 4, and a limit below that."""
    monkeypatch.setattr(summary, "LARGE", 20)
    monkeypatch.setattr(summary, "MOST_ROWS", 10)
    made = made_of(6)
    records.write(tmp_path, made)
    keys = [one["key"] for one in made]
    records.manifest(tmp_path, {"big": keys, "small": keys[:4]}, made)
    return tmp_path


def test_a_large_report_sums_up_and_says_so(large, tmp_path):
    written = report.write_report(large, tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "**This report sums up.**" in text
    assert "1 of 2 sweeps have a line per method and kind" in text
    assert "hibench report DIR --full" in text
    assert "24 records: 22 ok, 2 oom" in text
    assert not [path for path in written if path.suffix in (".png", ".pdf")]
    assert "| infd | speed | 6 | 5 | 1 |" in text
    assert "| ldm | quality | 6 | 6 | 0 | — | — |" in text
    assert "| ldm | speed | oom | in denoise: CUDA out of memory" in text.partition("## Cells without a full result")[2]
    assert len(list(csv.reader(io.StringIO((tmp_path / "out" / "records.csv").read_text())))) == 25
    assert {path.name for path in (tmp_path / "out" / "tables").iterdir()} == {"big.md", "big.csv", "small.md", "small.csv",
                                                                              "small.tex"}


def test_the_small_sweeps_of_a_large_report_look_as_ever(large, tmp_path):
    report.write_report(large, tmp_path / "some", formats=["md"])
    report.write_report(large, tmp_path / "whole", formats=["md"], full=True)
    small = [(tmp_path / name / "tables" / "small.md").read_text() for name in ("some", "whole")]
    assert small[0] == small[1]
    whole = (tmp_path / "whole" / "report.md").read_text()
    assert "sums up" not in whole
    assert whole.count("cells/<first two") == 1
    assert all(one["id"] in whole for one in rows.load_rows(large)[0])


def test_numbers_of_a_summary_are_those_of_the_records(large):
    loaded, _ = rows.load_rows(large)
    made = summary.summarise("big", loaded)
    values = sorted(row["latency_p50_s"] for row in loaded if row["method"] == "ldm" and row["latency_p50_s"])
    line = next(line for line in made.lines if line[:2] == ("ldm", "speed"))
    shown = [float(part) for part in line[made.heading.index("Latency p50 (s)")].split(" – ")]
    assert shown == pytest.approx([values[0], values[len(values) // 2], values[-1]], rel=5e-3)
    assert sum(int(line[2]) for line in made.lines) == made.cells == 24


def test_a_report_of_few_cells_is_never_summed_up(tmp_path):
    records.write(tmp_path, made_of(2))
    report.write_report(tmp_path, tmp_path / "out", formats=["md"])
    assert "sums up" not in (tmp_path / "out" / "report.md").read_text()


def test_csv_is_what_pandas_writes(tmp_path):
    made = [records.record("ldm"), records.record("infd", "quality", options={"a": 1, "b": 'x,"y'}), records.record(
        "ldm", resolution=(64, 128), status="oom"), records.record("real", "quality", steps=None),
        records.record("patch-dm", hardware=records.GPU, sparsity=0.1, options={"a": 2, "c": 0.5, "d": True})]
    for some in (made, made[:1], made[1:3], made[3:]):
        flat = [rows.flatten(one) for one in some]
        assert tidy.csv_text(flat) == tidy.frame(flat).to_csv(index=False, lineterminator="\n")
    back = pd.read_csv(io.StringIO(tidy.csv_text([rows.flatten(one) for one in made])))
    assert back["peak_bytes"].dropna().gt(1e6).all()
    assert list(back["option.a"].dropna()) == [1, 2]
