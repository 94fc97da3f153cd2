"""Two results directories side by side: every number of the cells that both have, and whether their intervals overlap."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from hibench.lines import NOTHING, Row, format_value, interval
from hibench.rows import load_rows
from hibench.typeset import escape_markdown

__all__ = ["COMPARE_FORMATS", "Compared", "compare_runs", "to_csv", "to_json", "to_markdown"]

SPEED = {"latency_p50_s": "lower", "peak_bytes": "lower", "flops": "none", "nfe": "none"}
VERDICTS = {"same": "the intervals overlap", "better": "B is better, the intervals do not overlap",
            "worse": "B is worse, the intervals do not overlap", "differs": "the values differ, neither is better by itself",
            "unknown": "without an interval nothing can be said", "not comparable": "measured in another way; see the reason",
            "only A": "B has no such result", "only B": "A has no such result"}


@dataclass(frozen=True)
class Compared:
    """One number of one cell in both runs, in base units."""

    key: str
    name: str
    a: float | None
    a_pm: float | None
    b: float | None
    b_pm: float | None
    ratio: float | None                                   # b / a
    verdict: str                                          # a key of VERDICTS
    reason: str = ""


def compare_runs(a: Path, b: Path) -> list[Compared]:
    """Every number that either run has, by key of the cell. Raises HibenchError where a run has no records.

    This is a reading aid: `hibench check A B` gives the verdict that a CI may act on."""
    sides = [_by_key(load_rows(path)[0]) for path in (a, b)]
    found = []
    for key in sorted(set(sides[0]) | set(sides[1])):
        first, second = (side.get(key) for side in sides)
        names = dict.fromkeys([*_names(first), *_names(second)])
        found += [_one(key, name, first, second) for name in names]
        if not names:
            found.append(Compared(key, "status", None, None, None, None, None, _lacking(first, second, False, False),
                                  f"A: {_status(first)}; B: {_status(second)}"))
    return found


def _by_key(rows: list[Row]) -> dict[str, Row]:
    """The newest record of every key, one with a result before one without."""
    ranked = sorted(rows, key=lambda row: (row["status"] == "ok", str(row["started_at"]), row["id"]))
    return {row["key"]: row for row in ranked}


def _names(row: Row | None) -> list[str]:
    if row is None or row["status"] != "ok":
        return []
    return [name for name in SPEED if row.get(name) is not None] if row["kind"] == "speed" else sorted(row["_metrics"])


def _status(row: Row | None) -> str:
    return "no record" if row is None else str(row["status"]) + (f" ({row['reason']})" if row["reason"] else "")


def _lacking(first: Row | None, second: Row | None, in_a: bool, in_b: bool) -> str:
    return "only A" if in_a else "only B" if in_b else "only A" if second is None else "only B" if first is None else "same"


def _one(key: str, name: str, first: Row | None, second: Row | None) -> Compared:
    a, b = (interval(row, name) if name in _names(row) else None for row in (first, second))
    values = [None if one is None else one[0] for one in (a, b)]
    halves = [None if one is None or math.isnan(one[1]) else max(one[2] - one[0], one[0] - one[1]) for one in (a, b)]
    if a is None or b is None or first is None or second is None:
        lacks = _lacking(first, second, a is not None, b is not None)
        return Compared(key, name, values[0], halves[0], values[1], halves[1], None, lacks,
                        f"A: {_status(first)}; B: {_status(second)}")
    ratio = b[0] / a[0] if a[0] else None
    other = _protocol(first, second, name)
    verdict = "not comparable" if other else _verdict(a, b, _better(first, name))
    return Compared(key, name, values[0], halves[0], values[1], halves[1], ratio, verdict, other)


def _better(row: Row, name: str) -> str:
    return SPEED[name] if name in SPEED else str(row["_metrics"][name].get("better", "none"))


def _verdict(a: tuple[float, float, float], b: tuple[float, float, float], better: str) -> str:
    if better == "none":
        return "same" if a[0] == b[0] else "differs"
    if any(math.isnan(end) for end in (*a, *b)):
        return "same" if a[0] == b[0] else "unknown"
    if a[1] <= b[2] and b[1] <= a[2]:
        return "same"
    return "better" if (b[0] < a[0]) == (better == "lower") else "worse"


def _protocol(first: Row, second: Row, name: str) -> str:
    """Why two numbers must not be compared; "" where they may."""
    if name in ("latency_p50_s", "peak_bytes"):
        told = {"hardware": [row["hardware_digest"] for row in (first, second)],
                "source of the peak": [row["peak_source"] for row in (first, second)]}
    elif name in SPEED:
        return ""
    else:
        parts = ("n", "n_reference", "weights_sha256", "resize", "reference_digest")
        told = {part: [row["_metrics"][name].get(part) for row in (first, second)] for part in parts}
    differs = [part for part, (one, two) in told.items() if one != two]
    return f"differs in {', '.join(differs)}" if differs else ""


def to_markdown(found: list[Compared], a: str, b: str) -> str:
    """A table of what differs and a count of what does not, then what the words mean."""
    counts = {verdict: sum(one.verdict == verdict for one in found) for verdict in VERDICTS}
    out = ["# Two runs side by side", "", f"A: {escape_markdown(a)}. B: {escape_markdown(b)}. "
           + ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count) + ".", "",
           "| Cell | Number | A | B | B / A | |", "|---|---|---:|---:|---:|---|"]
    for one in found:
        said = [NOTHING if value is None else format_value(value, pm) for value, pm in ((one.a, one.a_pm), (one.b, one.b_pm))]
        ratio = NOTHING if one.ratio is None else f"{one.ratio:.3f}"
        why = one.verdict + (f": {one.reason}" if one.reason else "")
        out.append("| " + " | ".join(escape_markdown(text) for text in (one.key, one.name, *said, ratio, why)) + " |")
    used = [f"- {verdict}: {VERDICTS[verdict]}." for verdict, count in counts.items() if count]
    last = "Numbers are in seconds and bytes. `hibench check A B` judges them against tolerances."
    return "\n".join([*out, "", *used, "", last]) + "\n"


def to_csv(found: list[Compared], a: str, b: str) -> str:
    """One row per number."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(asdict(found[0])) if found else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(one) for one in found)
    return stream.getvalue()


def to_json(found: list[Compared], a: str, b: str) -> str:
    """The runs and one object per number."""
    return json.dumps({"a": a, "b": b, "numbers": [asdict(one) for one in found]}, indent=1, ensure_ascii=False) + "\n"


COMPARE_FORMATS: dict[str, Callable[[list[Compared], str, str], str]] = {"md": to_markdown, "csv": to_csv, "json": to_json}
