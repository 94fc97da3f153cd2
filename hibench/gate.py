"""When a number has become worse: the sequential paired rule, Holm's correction, bands and exact values; pure functions.

The rule and its figures: reports/gate/. Time is judged over pairs of processes (base and head back to back), because whole
processes differ by more than the images inside them, and hosts differ from hour to hour by more than processes do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from hibench.stats import t_cdf, t_quantile

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "OK", "REGRESSED", "SESSION_TOLERANCE", "UNSURE", "VERDICTS", "Decision", "PairRule", "band", "bound", "decide_pairs",
    "holm", "judge_pairs", "judge_sessions", "two_modes",
]

OK, REGRESSED, UNSURE = "ok", "regressed", "unsure"
VERDICTS = (OK, REGRESSED, UNSURE)
SESSION_TOLERANCE = 0.25               # hosts differ by 8 % (sd) between sessions: below this, two sessions decide nothing
MODE_GAP = 8.0                         # widest gap between pairs over the spread on its two sides that means two modes


@dataclass(frozen=True)
class PairRule:
    """How many pairs are measured, and what they have to show."""

    tolerance: float = 0.05                # relative: head may be this much slower
    alpha: float = 0.01                    # one-sided, for either verdict
    first: int = 3                         # pairs before the first look; `ok` can be said from here on
    confirm: int = 5                       # pairs before `regressed` can be said: three may agree by chance
    more: int = 2                          # pairs between two looks
    cap: int = 9                           # pairs after which the verdict is `unsure`
    tests: int = 1                         # cells that are judged this way in the same run (Holm's first step)

    @property
    def looks(self) -> tuple[int, ...]:
        """Numbers of pairs at which the rule is asked."""
        return (*range(self.first, self.cap, self.more), self.cap)


class Decision(NamedTuple):
    """What one number of one cell says; changes are relative (0.1 = head is 10 % more than base)."""

    verdict: str                           # ok | regressed | unsure
    text: str                              # the reason, for people
    change: float | None = None
    low: float | None = None               # ends of the interval of the change, 98 % two-sided for pairs
    high: float | None = None
    p: float | None = None                 # one-sided, of "no slower"; None where nothing is random
    pairs: int = 0
    improved: bool = False


def decide_pairs(logs: "NDArray[np.float64]", rule: PairRule) -> "NDArray[np.int8]":
    """Code per row of log(head / base) [T, n] after n pairs: 0 ok, 1 regressed, 2 not decided.

    ok: the upper end of the interval of the mean lies below log(1 + tolerance). regressed: the lower end (at alpha / tests)
    lies above 0 and the mean above log(1 + tolerance). Pairs in two modes make the mean meaningless: then nothing is ok, and
    regressed asks that every pair lies above the tolerance (from 7 pairs on: all but one).
    """
    import numpy as np

    n = logs.shape[1]
    code = np.full(len(logs), 2, dtype=np.int8)
    if n < rule.first:
        return code
    limit = math.log1p(rule.tolerance)
    mean = logs.mean(axis=1)
    error = logs.std(axis=1, ddof=1) / math.sqrt(n)
    low = mean - t_quantile(1 - rule.alpha / rule.tests, n - 1) * error
    high = mean + t_quantile(1 - rule.alpha, n - 1) * error
    code[(high < limit) & ~two_modes(logs, limit)] = 0
    if n >= rule.confirm:
        agree = (logs <= limit).sum(axis=1) <= (n >= 7)
        code[(low > 0) & (mean > limit) & (agree | ~two_modes(logs, limit, fewest=1))] = 1
    return code


def two_modes(logs: "NDArray[np.float64]", limit: float, fewest: int = 2) -> "NDArray[np.bool_]":
    """Per row of [T, n]: whether the values fall into two groups further apart than `limit` and than their spread explains.

    A group has at least `fewest` values: one alone may be an interruption.
    """
    import numpy as np

    count, n = logs.shape
    if n < max(3, 2 * fewest):
        return np.zeros(count, dtype=np.bool_)
    ordered = np.sort(logs, axis=1)
    gaps = np.diff(ordered, axis=1)[:, fewest - 1:n - fewest]
    cut = gaps.argmax(axis=1) + fewest - 1                       # the last value of the lower group
    row = np.arange(count)
    total, squares = np.cumsum(ordered, axis=1), np.cumsum(ordered**2, axis=1)
    below, above = cut + 1, n - cut - 1
    left = squares[row, cut] - total[row, cut] ** 2 / below
    right = squares[:, -1] - squares[row, cut] - (total[:, -1] - total[row, cut]) ** 2 / above
    spread = np.sqrt(np.maximum(left + right, 0) / (n - 2))
    found: NDArray[np.bool_] = (gaps.max(axis=1) > limit) & (gaps.max(axis=1) > MODE_GAP * spread)
    return found


def judge_pairs(pairs: Sequence[tuple[float, float]], rule: PairRule, *, last: bool = False,
                what: str = "slower") -> Decision | None:
    """The verdict on (base, head) pairs of positive numbers, in the order in which they were measured; None = measure more.

    At the cap, or when these are the `last` pairs that there will be, an open case is `unsure`. `what` is the word for more.
    """
    import numpy as np

    n = len(pairs)
    last = last or n >= rule.cap
    if n < 2:
        return Decision(UNSURE, f"{n} pair of processes says nothing; measure at least {rule.first}", pairs=n) if last else None
    logs = np.log([head / base for base, head in pairs])
    code = int(decide_pairs(logs[None], rule)[0])
    mean, p = float(logs.mean()), _p_slower(logs)
    half = t_quantile(1 - rule.alpha, n - 1) * float(logs.std(ddof=1)) / math.sqrt(n)
    found: dict[str, Any] = {"change": math.expm1(mean), "low": math.expm1(mean - half), "high": _expm1(mean + half), "p": p,
                             "pairs": n}
    if code == 1:
        return Decision(REGRESSED, f"{math.expm1(mean):.1%} {what} over {n} pairs", **found)
    if code == 0:
        faster = mean + half < 0 and mean < -math.log1p(rule.tolerance)
        text = f"{-math.expm1(mean):.1%} better" if faster else "within the tolerance"
        return Decision(OK, f"{text} over {n} pairs", **found, improved=faster)
    if not last:
        return None
    if two_modes(logs[None], math.log1p(rule.tolerance))[0]:
        return Decision(UNSURE, f"the {n} pairs fall into two groups {_gap(logs):.0%} apart: some processes run in another "
                        "mode than others; look for what differs between them", **found)
    return Decision(UNSURE, f"{n} pairs leave it open between {found['low']:+.1%} and {found['high']:+.1%}; "
                    "measure on a quieter machine, or allow more pairs", **found)


def judge_sessions(base: Sequence[float], head: Sequence[float], rule: PairRule, *, drift: bool = True,
                   what: str = "slower") -> Decision:
    """The verdict on processes that were not paired: only a change beyond `SESSION_TOLERANCE` can be a regression.

    Welch's interval of the difference of mean logarithms, `rule.alpha` one-sided. `drift` False: the number does not depend on
    the mood of the host (bytes), so the rule's own tolerance holds.
    """
    x, y = [math.log(v) for v in base], [math.log(v) for v in head]
    change = sum(y) / len(y) - sum(x) / len(x)
    if min(len(x), len(y)) < 2:
        return Decision(UNSURE, "one process says nothing about the next; use hibench compare", change=math.expm1(change))
    vx, vy = _variance(x) / len(x), _variance(y) / len(y)
    dof = 1 if vx + vy == 0 else max(1, int((vx + vy) ** 2 / (vx**2 / (len(x) - 1) + vy**2 / (len(y) - 1))))
    half = t_quantile(1 - rule.alpha, dof) * math.sqrt(vx + vy)
    low, high = math.expm1(change - half), _expm1(change + half)
    limit = max(rule.tolerance, SESSION_TOLERANCE) if drift else rule.tolerance
    p = 1 - t_cdf(change / math.sqrt(vx + vy), dof) if vx + vy > 0 else float(change <= 0)
    found: dict[str, Any] = {"change": math.expm1(change), "low": low, "high": high, "p": p, "pairs": 0}
    if low > 0 and math.expm1(change) > limit:
        return Decision(REGRESSED, f"{math.expm1(change):.1%} {what}, in another session", **found)
    if high < rule.tolerance:
        return Decision(OK, "within the tolerance, in another session", **found, improved=math.expm1(change) < -limit)
    why = "two sessions of one machine differ by about 8 %" if drift else "the processes differ too much"
    return Decision(UNSURE, f"{why}, so this says too little; use hibench compare", **found)


def holm(p_values: Mapping[str, float], alpha: float = 0.01) -> set[str]:
    """The keys whose hypothesis is rejected while the chance of any false rejection stays below alpha (Holm, 1979)."""
    rejected: set[str] = set()
    smallest = sorted((p, key) for key, p in p_values.items() if p <= alpha)
    for left, (p, key) in zip(range(len(p_values), 0, -1), smallest):
        if p > alpha / left:
            break
        rejected.add(key)
    return rejected


def bound(base: float, head: float, tolerance: float, unit: str = "") -> Decision:
    """A number without noise (bytes, FLOPs, evaluations): more than `tolerance` above base is a regression; 0 = exact.

    With tolerance 0 any difference is one, also downwards: less work than before is another method.
    """
    change = head / base - 1 if base else (0.0 if head == base else math.inf)
    text = f"{base:g}{unit} → {head:g}{unit}"
    if head == base:
        return Decision(OK, "the same", change=0.0)
    if tolerance == 0:
        return Decision(REGRESSED, f"{text}; it has to be the same", change=change)
    if change > tolerance:
        return Decision(REGRESSED, f"{text}, {change:+.1%}", change=change)
    return Decision(OK, f"{text}, within the tolerance", change=change, improved=change < -tolerance)


def band(base: float, head: float, tolerance: float, relative: bool, noise: tuple[float | None, float | None] = (None, None),
         better: str = "none") -> Decision:
    """A quality number: two-sided, because a number that is too good is a bug as well.

    Outside base ± tolerance it is `regressed`, unless the ± of both (95 %, over seed blocks; None = unknown) could explain it:
    then `unsure`.
    """
    room = tolerance * abs(base) if relative else tolerance
    moved = head - base
    change = moved / abs(base) if base else (0.0 if moved == 0 else math.copysign(math.inf, moved))
    spread = math.hypot(*(value or 0.0 for value in noise))
    text = f"{base:.4g} → {head:.4g} (band ± {room:.2g})"
    good = (moved < 0) == (better == "lower") and better != "none"
    if abs(moved) <= room:
        return Decision(OK, text, change=change)
    if abs(moved) <= spread:
        return Decision(UNSURE, f"{text}; the samples' own ± is {spread:.2g}: more images would tell", change=change)
    return Decision(REGRESSED, text + ("; better than it should be: find out why" if good else ""), change=change,
                    improved=good)


def _p_slower(logs: "NDArray[np.float64]") -> float:
    """One-sided p of "head is no slower" by the paired t test."""
    n = len(logs)
    error = float(logs.std(ddof=1)) / math.sqrt(n)
    mean = float(logs.mean())
    return 1 - t_cdf(mean / error, n - 1) if error > 0 else float(mean <= 0)


def _gap(logs: Any) -> float:
    import numpy as np

    return math.expm1(float(np.diff(np.sort(logs)).max()))


def _variance(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return sum([(v - mean) ** 2 for v in values]) / (len(values) - 1)


def _expm1(value: float) -> float:
    return math.expm1(min(value, 700.0))
