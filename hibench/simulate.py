"""How often the gate errs: simulated nights over the rules of `hibench.gate`, and the operating characteristic as a plot.

`python -m hibench.simulate reports/gate` writes the figures (fixed seeds, under a minute).
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hibench.gate import VERDICTS, PairRule, decide_pairs, holm, judge_pairs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hibench.draw import Drawn

__all__ = ["NOISES", "Noise", "characteristic", "draw_characteristic", "main", "night", "pair_logs", "rates", "replay"]

WITHIN = 0.003                         # spread of images inside a process
IMAGES = 10                            # images per process
SPIKES = 0.02                          # share of processes that one long interruption slows down by up to 10 %
DRIFT = 0.08                           # spread of the host between moments; shared by the two of a pair
CHANGES = (-0.1, -0.05, -0.02, 0.0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.09, 0.1, 0.12, 0.15, 0.2)


@dataclass(frozen=True)
class Noise:
    """What makes two processes of the same code differ; relative standard deviations."""

    name: str
    spread: float                          # between processes
    modes: float = 0.0                     # a process is either this much faster or this much slower (0: one mode)
    spikes: float = SPIKES


NOISES = (Noise("processes ± 0.5 %", 0.005), Noise("processes ± 1.5 %", 0.015), Noise("processes ± 3 %", 0.03),
          Noise("two modes, ± 6 %", 0.002, modes=0.06))


def pair_logs(rng: "np.random.Generator", noise: Noise, trials: int, pairs: int, change: float = 0.0) -> "NDArray[np.float64]":
    """log(head / base) of process medians, float64 [trials, pairs], when head is truly `change` slower."""

    drift = rng.normal(0, DRIFT, (trials, pairs))
    base, head = (drift + _process(rng, noise, (trials, pairs)) for _ in range(2))
    found: NDArray[np.float64] = head - base + math.log1p(change)
    return found


def _process(rng: "np.random.Generator", noise: Noise, shape: tuple[int, int]) -> "NDArray[np.float64]":
    """Log of the median latency of processes, around 0."""
    import numpy as np

    effect = rng.normal(0, noise.spread, shape) + noise.modes * rng.choice((-1.0, 1.0), shape)
    median = rng.normal(0, WITHIN * math.sqrt(math.pi / 2 / IMAGES), shape)
    spike = np.where(rng.random(shape) < noise.spikes, rng.uniform(0, 0.1, shape), 0)
    found: NDArray[np.float64] = effect + median + spike
    return found


def replay(logs: "NDArray[np.float64]", rule: PairRule) -> "tuple[NDArray[np.int8], NDArray[np.int64]]":
    """The sequential rule on rows of logs [T, cap]: code per row (0 ok, 1 regressed, 2 unsure), and the pairs it measured."""
    import numpy as np

    code = np.full(len(logs), 2, dtype=np.int8)
    used = np.full(len(logs), rule.cap)
    still = np.ones(len(logs), dtype=bool)
    for look in rule.looks:
        now = np.where(still, decide_pairs(logs[:, :look], rule), 2)
        decided = now < 2
        code[decided], used[decided] = now[decided], look
        still &= ~decided
    return code, used


def rates(noise: Noise, change: float, rule: PairRule, trials: int = 20_000, seed: int = 0) -> dict[str, float]:
    """Share of each verdict, and the mean number of pairs, for one cell whose latency truly changed by `change`."""
    import numpy as np

    code, used = replay(pair_logs(np.random.default_rng(seed), noise, trials, rule.cap, change), rule)
    return {**{name: float((code == i).mean()) for i, name in enumerate(VERDICTS)}, "pairs": float(used.mean())}


def night(noise: Noise, changes: Sequence[float], rule: PairRule, seed: int = 0) -> list[str]:
    """The verdicts of one night with a cell per entry of `changes`, with Holm's correction over them, as `check` gives them."""
    from dataclasses import replace

    import numpy as np

    rng = np.random.default_rng(seed)
    rule = replace(rule, tests=len(changes))
    logs = np.concatenate([pair_logs(rng, noise, 1, rule.cap, change) for change in changes])
    _, used = replay(logs, rule)
    decisions = [judge_pairs([(1.0, math.exp(x)) for x in row[:n]], rule, last=True) for row, n in zip(logs, used)]
    kept = holm({str(i): d.p for i, d in enumerate(decisions) if d is not None and d.p is not None}, rule.alpha)
    return ["unsure" if d is None or (d.verdict == "regressed" and str(i) not in kept) else d.verdict
            for i, d in enumerate(decisions)]


def characteristic(rule: PairRule | None = None, trials: int = 20_000) -> dict[str, Any]:
    """The rates of every noise of `NOISES` at every change of `CHANGES`, with what they were made by."""
    rule = rule or PairRule()
    return {"rule": asdict(rule), "trials": trials, "seed": 0, "within": WITHIN, "images": IMAGES, "drift": DRIFT,
            "noises": [{**asdict(noise), "rates": [{"change": change, **rates(noise, change, rule, trials)}
                                                   for change in CHANGES]} for noise in NOISES]}


def draw_characteristic(found: dict[str, Any]) -> "Drawn":
    """Share of each verdict against the true change, one panel per noise."""
    import matplotlib

    from hibench import draw

    with matplotlib.rc_context(draw.RC):
        figure, axes, _ = draw.panels(len(found["noises"]), 2)
        handles: dict[str, Any] = {}
        for panel, noise in zip(axes, found["noises"]):
            for name, colour, marker in (("ok", "#009E73", "o"), ("unsure", "#E69F00", "^"), ("regressed", "#D55E00", "s")):
                points = [(100 * at["change"], 100 * at[name]) for at in noise["rates"]]
                handles[name], = panel.plot(*zip(*points), color=colour, marker=marker, markersize=3, label=name)
            panel.axvline(0, color="0.6", linewidth=0.8, linestyle=":")
            panel.axvline(100 * found["rule"]["tolerance"], color="0.6", linewidth=0.8, linestyle="--")
            alarm, hit = (next(at["regressed"] for at in noise["rates"] if at["change"] == change) for change in (0.0, 0.1))
            panel.set_title(f"{noise['name']}: false alarms {100 * alarm:.2f} %, +10 % found {100 * hit:.1f} %", fontsize=6.5)
            panel.set(xlabel="True change of latency (%)", ylabel="Share of verdicts (%)", ylim=(-3, 103))
        rule = found["rule"]
        says = (f"Verdict of the paired sequential rule ({rule['first']} to {rule['cap']} pairs of processes, alpha "
                f"{rule['alpha']:g}; dashed: the tolerance, {100 * rule['tolerance']:g} %). "
                f"{found['trials']} simulated cells per point, hosts drift by {100 * found['drift']:g} %.")
        draw.finish(figure, says, handles, 1.9, math.ceil(len(axes) / 2))
    return draw.Drawn("operating-characteristic", says, figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Write operating-characteristic.{json,png,pdf} into a folder."""
    from hibench import draw

    out = Path((list(sys.argv[1:] if argv is None else argv) or ["reports/gate"])[0])
    found = characteristic()
    out.mkdir(parents=True, exist_ok=True)
    (out / "operating-characteristic.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for path in draw.save(draw_characteristic(found), out):
        print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
