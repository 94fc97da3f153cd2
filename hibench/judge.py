"""Base against head, cell by cell and number by number, matched by key and never by position: rows with verdicts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hibench import gate
from hibench.drift import compare as compare_images
from hibench.errors import HibenchError
from hibench.excerpt import DISTURBED, PER_PROCESS, VALUE, excerpt
from hibench.gate import OK, REGRESSED, UNSURE, Decision, PairRule
from hibench.limits import Limits, everywhere
from hibench.lines import number
from hibench.record_index import without_collector
from hibench.sides import Side, differences
from hibench.spec import Tolerance
from hibench.verdicts import LOST, NEW, Report, Row

__all__ = ["DEFAULTS", "INTERLEAVED", "SESSIONS", "STORED", "check_sides", "family_of", "open_numbers", "scaled"]

INTERLEAVED, SESSIONS, STORED = "interleaved", "sessions", "stored"     # how base and head were measured
DEFAULTS = everywhere({
    "latency": Tolerance(0.05, True), "vram": Tolerance(0.01, True), "memory": Tolerance(0.01, True),
    "nfe": Tolerance(0.0, True), "flops": Tolerance(0.0, True), "drift": Tolerance(0.02, False),
    "fid": Tolerance(0.03, True), "kid": Tolerance(0.03, True), "clip-score": Tolerance(0.03, True)})
RESIDENT_BYTES = 2 * 2**20                # a resident set moves by this much for no reason
ROUNDING = 2 / 255                        # the largest pixel that an adapter may move by batching (DESIGN 3)
ALIAS = {"fd": "fid", "kd": "kid"}
PROTOCOL = tuple(name for name in VALUE if name not in ("value", "pm", "better"))   # alike in values that can be compared
SUMMARY = {"latency": "latency_p50_s", "first_image": "first_image_s", "load": "load_s", "memory": "peak_bytes"}


@dataclass(frozen=True)
class _Pairing:
    """What the rows of a comparison depend on beside the two records."""

    how: str
    limits: Limits
    rule: PairRule
    networks: bool


@without_collector()
def check_sides(base: Side, head: Side, *, how: str = SESSIONS, limits: Limits | None = None,
                rule: PairRule | None = None, networks: bool = True) -> Report:
    """Every number of every cell of both sides, whose records are excerpts (`hibench.excerpt`) or baseline cells.

    `how`: INTERLEAVED (replicate i of base was measured next to replicate i of head), SESSIONS (at another time), or STORED
    (base is a baseline file: times are shown only). `limits`: None = `DEFAULTS`; a number without one is shown only.
    """
    pairing = _Pairing(how, limits or Limits(DEFAULTS), rule or PairRule(), networks)
    report = Report(base.label, head.label, warnings=[*base.problems, *head.problems])
    _warn_about_machines(report, base, head)
    for key in sorted({*base.records, *head.records}):
        old, new = base.records.get(key), head.records.get(key)
        if old is None:
            report.rows.append(Row(key, "status", NEW, "it has no baseline", head=str(new["status"]) if new else None))
        elif new is None:
            if old["status"] not in ("skip", "missing"):
                report.rows.append(Row(key, "status", LOST, "it was not measured", base=str(old["status"])))
        else:
            report.rows += _status_rows(key, old, new)
            if old["status"] == new["status"] == "ok":
                report.measured += 1
                report.rows += _cell_rows(key, old, new, base, head, pairing)
    report.rows = _holm(report.rows, pairing.rule.alpha)
    return report


def _warn_about_machines(report: Report, base: Side, head: Side) -> None:
    """One line per way in which the machines or the software of the two sides differ."""
    told = {differences(old, head.records[key]): None for key, old in base.records.items() if key in head.records}
    for text in told:
        if text:
            report.warnings.append(f"not the same surroundings: {text}")


def _status_rows(key: str, base: dict[str, Any], head: dict[str, Any]) -> Iterator[Row]:
    """A cell that was ok and is not any more is a regression; one whose weights are not there was not measured."""
    old, new = str(base["status"]), str(head["status"])
    reason = str(head.get("reason") or (head.get("failure") or {}).get("message") or "")
    if new == "missing" and old != "missing":
        yield Row(key, "status", LOST, f"it could not be measured: {reason}", old, new)
    elif old == "ok" and new != "ok":
        yield Row(key, "status", REGRESSED, f"{old} → {new}: {reason}", old, new)
    elif old != "ok" and new == "ok":
        yield Row(key, "status", OK, f"{old} → ok", old, new, improved=True)
    else:
        yield Row(key, "status", OK, "" if new == "ok" else reason, old, new, gated=new in ("ok", old) and new != "skip")


def _cell_rows(key: str, base: dict[str, Any], head: dict[str, Any], old: Side, new: Side, pairing: _Pairing) -> Iterator[Row]:
    if head["kind"] == "speed":
        yield from _process_rows(key, base, head, pairing)
        yield from _exact_rows(key, base, head, pairing)
    elif head["kind"] == "quality":
        yield from _quality_rows(key, base, head, pairing)
    else:
        yield _drift_row(key, base, head, old, new, pairing)


def _process_rows(key: str, base: dict[str, Any], head: dict[str, Any], pairing: _Pairing) -> Iterator[Row]:
    """Numbers that every process has: judged over pairs of processes, or over two sessions, or shown only."""
    same_machine = (base.get("env") or {}).get("hardware_digest") == (head.get("env") or {}).get("hardware_digest")
    was, now = base.get("speed") or {}, head.get("speed") or {}
    for name, (unit, _) in PER_PROCESS.items():
        if name == "memory" and (was.get("peak_source") != "rss-over-idle" or now.get("peak_source") != "rss-over-idle"):
            continue
        old, new = _processes(was, name), _processes(now, name)
        a = statistics.median(old) if old else number(was.get(SUMMARY.get(name)))
        b = statistics.median(new) if new else None
        if a is None and b is None:
            continue
        limit = pairing.limits.of(key, name)
        gated = limit is not None and pairing.how != STORED
        row = Row(key, name, OK, base=a, head=b, unit=unit, change=_relative(a, b), gated=gated)
        if not gated or limit is None:
            yield row
        elif not _usable(old) or not _usable(new):
            side, values = ("base", old) if not _usable(old) else ("head", new)
            told = f"{values[:3]}" if values else "not measured"
            yield row._replace(verdict=LOST, text=f"{side} has no finite {name} ({told})")
        elif not same_machine:
            yield row._replace(verdict=UNSURE, text="not compared: the hardware differs")
        else:
            yield _judged(row, base, head, old, new, scaled(limit, statistics.median(old), name), pairing)


def open_numbers(base: dict[str, Any], head: dict[str, Any], limits: Limits, rule: PairRule) -> list[str]:
    """The gated per-process numbers of two interleaved speed records that need more pairs."""
    found = []
    was, now = excerpt(base).get("speed") or {}, excerpt(head).get("speed") or {}
    for name in PER_PROCESS:
        old, new, limit = _processes(was, name), _processes(now, name), limits.of(base["key"], name)
        if limit is None or not _usable(old) or not _usable(new):
            continue
        if name == "memory" and was.get("peak_source") != "rss-over-idle":
            continue
        here = replace(rule, tolerance=scaled(limit, statistics.median(old), name))
        if gate.judge_pairs(list(zip(old, new)), here) is None:
            found.append(name)
    return found


def scaled(limit: Tolerance, base: float, name: str) -> float:
    """The relative tolerance of a per-process number."""
    relative = limit.value if limit.relative else limit.value / base
    return max(relative, RESIDENT_BYTES / base) if name == "memory" else relative


def _judged(row: Row, base: dict[str, Any], head: dict[str, Any], old: list[float], new: list[float], tolerance: float,
            pairing: _Pairing) -> Row:
    rule = replace(pairing.rule, tolerance=tolerance)
    if pairing.how == INTERLEAVED:
        decision = gate.judge_pairs(list(zip(old, new)), rule, last=True, what=_word(row.metric))
        assert decision is not None
    else:
        decision = gate.judge_sessions(old, new, rule, drift=row.unit == "s", what=_word(row.metric))
    disturbed = sorted({flag["name"] for record in (base, head) for flag in record.get("flags") or ()} & DISTURBED)
    judged = _with(row, decision)
    if disturbed and judged.verdict == REGRESSED:
        told = f"{judged.text}; the machine was {' and '.join(disturbed)}"
        return judged._replace(text=told, verdict=REGRESSED if pairing.how == INTERLEAVED else UNSURE)
    return judged


def _word(metric: str) -> str:
    return {"memory": "more memory", "energy": "more energy"}.get(metric, "slower")


def _exact_rows(key: str, base: dict[str, Any], head: dict[str, Any], pairing: _Pairing) -> Iterator[Row]:
    """Numbers without noise: allocated bytes, weights, network evaluations, FLOPs."""
    names = [("weights", "weights_bytes", "bytes", "vram"), ("nfe", "nfe", "", "nfe"), ("flops", "flops", "", "flops")]
    was, now = base.get("speed") or {}, head.get("speed") or {}
    if was.get("peak_source") == now.get("peak_source") == "cuda-allocated":
        names.insert(0, ("vram", "peak_bytes", "bytes", "vram"))
    for metric, field_name, unit, limit_name in names:
        a, b = number(was.get(field_name)), number(now.get(field_name))
        limit = pairing.limits.of(key, limit_name)
        if a is None and b is None:
            continue
        row = Row(key, metric, OK, base=a, head=b, unit=unit, change=_relative(a, b), gated=limit is not None)
        if limit is None:
            yield row
        elif b is None:
            yield row._replace(verdict=LOST, text=f"head has no finite {metric}")
        elif a is None:
            yield row._replace(verdict=NEW, text="base does not know it")
        else:
            allowed = limit.value if limit.relative or not a else limit.value / a
            yield _with(row, gate.bound(a, b, allowed))


def _quality_rows(key: str, base: dict[str, Any], head: dict[str, Any], pairing: _Pairing) -> Iterator[Row]:
    """Two-sided bands; a value of another extractor, reference or number of images is not compared."""
    old, new = ((record.get("quality") or {}).get("values") or {} for record in (base, head))
    for name in sorted({*old, *new}):
        limit = pairing.limits.of(key, family_of(name))
        was, now = old.get(name) or {}, new.get(name) or {}
        a, b = number(was.get("value")), number(now.get("value"))
        row = Row(key, name, OK, base=a, head=b, change=_relative(a, b), gated=limit is not None)
        if limit is None:
            yield row
        elif name not in old:
            yield row._replace(verdict=NEW, text="base does not have it")
        elif b is None:
            told = now.get("value", "not computed")
            yield row._replace(verdict=LOST, text=f"head has no finite value ({told})")
        elif a is None:
            yield row._replace(verdict=LOST, text=f"base has no finite value ({was.get('value')})")
        else:
            other = [f"{part} {was.get(part)} → {now.get(part)}" for part in PROTOCOL if was.get(part) != now.get(part)]
            if other:
                yield row._replace(verdict=UNSURE, text=f"not compared: {', '.join(other)}")
            else:
                noise = (number(was.get("pm")), number(now.get("pm")))
                yield _with(row, gate.band(a, b, limit.value, limit.relative, noise, str(now.get("better"))))


def family_of(metric: str) -> str:
    """The name of a metric in `check.tolerance`: `fd@scenes-clip` is judged as fid, `kd@…` as kid."""
    family = metric.partition("@")[0]
    return ALIAS.get(family, family)


def _drift_row(key: str, base: dict[str, Any], head: dict[str, Any], old: Side, new: Side, pairing: _Pairing) -> Row:
    """Images of fixed seeds: beyond the tolerance they are another picture, or (on another machine) perhaps only noise."""
    limit = room.value if (room := pairing.limits.of(key, "drift")) else 0.0
    row = Row(key, "drift", OK, head=None)
    try:
        found = compare_images(old.images(key, base), new.images(key, head), pairing.networks)
    except HibenchError as error:
        return row._replace(verdict=LOST, text=str(error))
    row = row._replace(head=found.max_pixel, text=found.text())
    seen = found.perceptual
    if found.max_pixel <= max(limit, ROUNDING):
        return row
    if seen is not None and seen <= limit and differences(base, head):
        return row._replace(verdict=UNSURE, text=f"{row.text}; it may be the other machine or software")
    return row._replace(verdict=REGRESSED, text=f"{row.text}: not the images of the baseline")


# -- small things ----------------------------------------------------------------------------------------------------------


def _with(row: Row, decision: Decision) -> Row:
    verdict, text, change, low, high, p, pairs, improved = decision
    return Row(row.key, row.metric, verdict, text, row.base, row.head, row.unit, row.change if change is None else change,
               low, high, pairs, row.gated, improved, p)


def _holm(rows: list[Row], alpha: float) -> list[Row]:
    """Regressions of noisy numbers that could be chance among so many cells become unsure."""
    tests = {f"{row.key} {row.metric}": row.p for row in rows if row.gated and row.p is not None}
    chance = set(tests) - gate.holm(tests, alpha)
    told = f"; among {len(tests)} numbers this may be chance: measure more pairs"
    return [row._replace(verdict=UNSURE, text=row.text + told)
            if row.verdict == REGRESSED and f"{row.key} {row.metric}" in chance else row for row in rows]


def _processes(speed: dict[str, Any], name: str) -> list[float]:
    """A number of every process, in the order of the replicates; [] when some process does not know it, or in a baseline."""
    found: list[float] = speed["per_process"][name] if "per_process" in speed else []
    return found


def _usable(values: Sequence[float]) -> bool:
    return bool(values) and all(0 < value < math.inf for value in values)


def _relative(base: float | None, head: float | None) -> float | None:
    return head / base - 1 if base and head is not None and math.isfinite(base) and math.isfinite(head) else None
