"""history: measurements over time from the append-only file, as a table and as figures."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from hibench import history
from hibench.cli import main
from hibench.errors import HibenchError


def entry(at: str, latency: float | None, key: str = "ldm/speed/64x64", **more: Any) -> dict[str, Any]:
    span = {"latency_lo_s": latency and latency * 0.98, "latency_hi_s": latency and latency * 1.03}
    return {"id": f"{key}{at}", "at": at, "key": key, "status": "ok", "verdict": "ok", "latency_p50_s": latency, **span,
            "hardware_digest": "h", "software_digest": "s", **more}


def write(path: Path, entries: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in entries))
    return path


def axes_of(entries: list[dict[str, Any]]) -> Any:
    (drawn,) = history.draw_history(entries)
    return [panel for panel in drawn.figure.axes if panel.get_title()]


def test_a_series_is_drawn_in_the_order_of_time_with_its_intervals() -> None:
    (panel,) = axes_of([entry("2026-11-03", 0.5), entry("2026-11-01", 0.4), entry("2026-11-02", 0.45)])
    line = panel.lines[0]
    assert line.get_ydata().tolist() == [0.4, 0.45, 0.5]
    (bars,) = [c for c in panel.collections if hasattr(c, "get_segments")]
    low, high = bars.get_segments()[2][:, 1]
    assert (low, high) == (pytest.approx(0.49), pytest.approx(0.515))


def test_regressions_are_marked_and_other_machines_are_parted() -> None:
    (panel,) = axes_of([entry("1", 0.4), entry("2", 0.6, verdict="regressed"), entry("3", 0.4, hardware_digest="other")])
    marked = [line for line in panel.lines if line.get_marker() == "s"]
    assert [line.get_ydata().tolist() for line in marked] == [[0.6]]
    parted = [line.get_xdata()[0] for line in panel.lines if line.get_linestyle() == "--"]
    assert parted == [2.5]


def test_cells_without_a_latency_are_not_drawn_and_many_get_several_figures() -> None:
    assert history.draw_history([entry("1", None)]) == []
    many = [entry("1", 0.4, key=f"m{i:02d}/speed/64x64") for i in range(history.PER_FIGURE + 1)]
    assert [drawn.stem for drawn in history.draw_history(many)] == ["history-1", "history-2"]


def test_report_history_writes_table_and_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entries = [entry("1", 0.4), entry("2", 0.5),
               {"id": "q", "at": "2", "key": "ldm/quality/64x64", "status": "ok", "quality": {"fd@scenes-clip": 31.5}}]
    file, out = write(tmp_path / "history.jsonl", entries), tmp_path / "out"
    assert main(["report", str(tmp_path), "--history", str(file), "--out", str(out)]) == 0
    rows = list(csv.DictReader(io.StringIO((out / "history.csv").read_text())))
    assert [row["latency_p50_s"] for row in rows if row["key"] == "ldm/speed/64x64"] == ["0.4", "0.5"]
    assert [(row["metric"], row["value"]) for row in rows if row["metric"]] == [("fd@scenes-clip", "31.5")]
    assert (out / "history.png").stat().st_size > 5000
    assert (out / "history.pdf").read_bytes()[:4] == b"%PDF"


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    file.write_text(json.dumps(entry("1", 0.4)) + "\n{\"at\":\n")
    with pytest.raises(HibenchError, match="2"):
        history.read_history(file)
