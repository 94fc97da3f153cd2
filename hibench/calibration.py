"""What a comparison of the code with itself tells: how often the gate would have cried wolf, and where the noise is large."""

from __future__ import annotations

import json
import math

from hibench.gate import PairRule
from hibench.judge import scaled
from hibench.limits import Limits
from hibench.stats import t_quantile
from hibench.verdicts import Report, Row

__all__ = ["NOISES", "calibration", "noise"]

NOISES = 3                                 # standard errors of a change that a tolerance should leave room for


def noise(row: Row) -> float | None:
    """Standard error of a change by pairs (of its logarithm); None for a row that was not judged over pairs."""
    if row.low is None or row.high is None or row.pairs < 2 or not math.isfinite(row.high):
        return None
    return (math.log1p(row.high) - math.log1p(row.low)) / 2 / t_quantile(1 - PairRule.alpha, row.pairs - 1)


def calibration(report: Report, limits: Limits) -> list[str]:
    """Sentences about a report whose two sides are the same code: false alarms, and the tolerances that the noise asks for."""
    judged = [(row, found) for row in report.rows if row.gated and (found := noise(row)) is not None]
    if not judged:
        return []
    alarms = sum(row.verdict == "regressed" for row, _ in judged)
    told = [f"both sides are the same code: {alarms} of {len(judged)} numbers judged over pairs of processes "
            f"{'is a false alarm' if alarms == 1 else 'are false alarms'}"]
    wider: dict[str, dict[str, str]] = {}
    for row, error in judged:
        limit, room = limits.of(row.key, row.metric), math.expm1(NOISES * error)
        if limit is not None and isinstance(row.base, float) and room > scaled(limit, row.base, row.metric):
            wider.setdefault(row.key, {})[row.metric] = f"{math.ceil(100 * room)}%"
    if wider:
        told.append(f"{NOISES} times their noise is more than the tolerance in {len(wider)} cell{'s' * (len(wider) > 1)}; "
                    f"in the benchmark file: check: {{cells: {json.dumps(wider)}}}")
    return told
