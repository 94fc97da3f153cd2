"""The history of a series: one JSON line per cell and night, only ever appended, and the plot that `report --history` draws."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hibench.errors import HibenchError
from hibench.sides import Side
from hibench.store import clean_errors
from hibench.verdicts import Report

if TYPE_CHECKING:
    from hibench.draw import Drawn

__all__ = ["append", "draw_history", "read_history", "to_csv", "write_history"]

FIELDS = ("at", "commit", "key", "status", "verdict", "latency_p50_s", "latency_lo_s", "latency_hi_s", "peak_bytes", "nfe",
          "flops", "hardware_digest", "software_digest", "metric", "value")
PER_FIGURE = 12                            # panels
WORST = ("regressed", "lost", "unsure", "new", "ok")


def append(path: Path, side: Side, report: Report | None = None) -> int:
    """Append one line per cell of `side`, with its worst verdict, unless the file has this measurement already."""
    known = {(one["id"], one["at"]) for one in read_history(path)} if path.exists() else set()
    verdicts: dict[str, set[str]] = {}
    for row in report.rows if report else ():
        if row.gated:
            verdicts.setdefault(row.key, set()).add(row.verdict)
    new = [record for record in side.records.values() if (record["id"], record.get("started_at")) not in known]
    with clean_errors(f"write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(entry(record, verdicts.get(record["key"], ())), allow_nan=False, sort_keys=True)
                            + "\n" for record in new)
    return len(new)


def entry(record: dict[str, Any], verdicts: Collection[str] = ()) -> dict[str, Any]:
    """What the history keeps of a record, with the worst of its verdicts; null where unknown."""
    env, speed = record.get("env") or {}, record.get("speed") or {}
    span = speed.get("latency_ci_s") or (None, None)
    values = (record.get("quality") or {}).get("values") or {}
    return {"id": record["id"], "at": record.get("started_at"), "commit": (env.get("git") or {}).get("commit"),
            "key": record["key"], "status": record["status"], "verdict": min(verdicts, key=WORST.index) if verdicts else None,
            "latency_lo_s": _number(span[0]), "latency_hi_s": _number(span[1]),
            **{name: _number(speed.get(name)) for name in ("latency_p50_s", "peak_bytes", "nfe", "flops")},
            "quality": {name: _number(value.get("value")) for name, value in sorted(values.items())},
            "hardware_digest": env.get("hardware_digest"), "software_digest": env.get("software_digest")}


def read_history(path: Path) -> list[dict[str, Any]]:
    """All lines in order; HibenchError names the line that cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise HibenchError(f"{path}: there is no such history; write one: hibench check DIR ... --history {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise HibenchError(f"{path}: cannot be read ({error})") from error
    found = []
    for number, line in enumerate(lines, 1):
        try:
            one = json.loads(line)
            if not {"id", "at", "key", "status"} <= set(one):
                raise ValueError("it lacks id, at, key or status")
        except (ValueError, TypeError) as error:
            raise HibenchError(f"{path}:{number}: is no line of a history ({error}); remove the line") from error
        found.append(one)
    return found


def to_csv(entries: list[dict[str, Any]]) -> str:
    """Long form for change-point tools: one row per cell and night, quality values as rows of their own."""
    import csv
    import io

    out = io.StringIO()
    writer = csv.DictWriter(out, FIELDS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for one in entries:
        writer.writerow(one)
        for name, value in (one.get("quality") or {}).items():
            writer.writerow({**{field: one.get(field) for field in FIELDS[:5]}, "metric": name, "value": value})
    return out.getvalue()


def write_history(path: Path, out: Path) -> list[Path]:
    """history.csv and the figures (PNG and PDF) of a history under `out`; returns the paths."""
    from hibench import draw

    entries = read_history(path)
    with clean_errors(f"write {out}"):
        out.mkdir(parents=True, exist_ok=True)
        table = out / "history.csv"
        table.write_text(to_csv(entries), encoding="utf-8")
        return [table, *(made for drawn in draw_history(entries) for made in draw.save(drawn, out))]


def draw_history(entries: list[dict[str, Any]]) -> "list[Drawn]":
    """Latency of every speed cell over time with its interval; a dashed line where hardware or software changed."""
    series: dict[str, list[dict[str, Any]]] = {}
    for one in entries:
        if one.get("latency_p50_s") is not None:
            series.setdefault(one["key"], []).append(one)
    keys = sorted(series)
    chunks = [keys[at:at + PER_FIGURE] for at in range(0, len(keys), PER_FIGURE)]
    return [_figure(f"history{f'-{number}' * (len(chunks) > 1)}", {key: series[key] for key in chunk})
            for number, chunk in enumerate(chunks, 1)]


def _figure(stem: str, series: dict[str, list[dict[str, Any]]]) -> "Drawn":
    import matplotlib

    from hibench import draw

    with matplotlib.rc_context(draw.RC):
        columns = 1 if len(series) == 1 else 2
        figure, axes, _ = draw.panels(len(series), columns)
        handles: dict[str, Any] = {}
        for panel, (key, points) in zip(axes, series.items()):
            points = sorted(points, key=lambda one: str(one["at"]))
            handles |= _panel(panel, points)
            panel.set_title(key, fontsize=6)
            panel.set(xlabel="Measurement", ylabel="Latency p50 (s)")
        says = "Median latency of every measurement in order, with its 95 % interval; dashed: hardware or software changed."
        draw.finish(figure, says, handles, 1.5, math.ceil(len(series) / columns))
    return draw.Drawn(stem, says, figure)


def _panel(panel: Any, points: list[dict[str, Any]]) -> dict[str, Any]:
    """One series; returns what the legend shows."""
    from matplotlib.ticker import MaxNLocator

    x, y = list(range(1, len(points) + 1)), [one["latency_p50_s"] for one in points]
    ends = [[value - (one.get(f"latency_{side}_s") or value) for one, value in zip(points, y)] for side in ("lo", "hi")]
    errors = [[max(0.0, value) for value in ends[0]], [max(0.0, -value) for value in ends[1]]]
    look = {"color": "#0072B2", "marker": "o", "markersize": 3, "capsize": 1.5, "linewidth": 0.9}
    found = {"latency": panel.errorbar(x, y, yerr=errors, **look)}
    bad = [(at, value) for at, value, one in zip(x, y, points) if one.get("verdict") == "regressed"]
    if bad:
        found["regressed"], = panel.plot(*zip(*bad), color="#D55E00", marker="s", markersize=5, linestyle="none")
    for at, (before, after) in enumerate(itertools.pairwise(points), 1):
        if any(before.get(name) != after.get(name) for name in ("hardware_digest", "software_digest")):
            panel.axvline(at + 0.5, color="0.5", linestyle="--", linewidth=0.8)
    panel.set_ylim(0, 1.15 * max(value + error for value, error in zip(y, errors[1])))
    panel.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    return found


def _number(value: Any) -> float | int | None:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return value if good else None
