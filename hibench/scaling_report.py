"""`python -m hibench.scaling_report RECORDS.csv`: table and plot of the speed-up that measured cell times promise."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hibench.errors import HibenchError
from hibench.scaling import Costs, Sweep, costs_of, expected_s, limit, simulated_s

if TYPE_CHECKING:
    from hibench.draw import Drawn

__all__ = ["WORKERS", "draw_scaling", "main", "rows_of"]

WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SWEEPS = {
    "1 cell of 1000 images": Sweep(1, 1000),
    "1 cell of 50 000 images": Sweep(1, 50_000),
    "12 cells of 1000 images": Sweep(12, 1000),
    "12 cells of 50 000 images": Sweep(12, 50_000),
}
JITTER = 0.05  # spread of the logarithm of a job's time in the simulation
SEEDS = range(5)
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")


def rows_of(costs: Costs, sweep: Sweep, workers: Sequence[int] = WORKERS) -> list[dict[str, Any]]:
    """Per number of workers: seconds and speed-up by the formula, speed-ups of simulated sweeps, and what limits it."""
    alone = expected_s(costs, sweep, 1)
    rows = []
    for count in workers:
        seconds = expected_s(costs, sweep, count)
        played = sorted(alone / simulated_s(costs, sweep, count, jitter=JITTER, seed=seed) for seed in SEEDS)
        name, shares = limit(costs, sweep, count)
        rows.append(
            {
                "workers": count,
                "seconds": seconds,
                "speed_up": alone / seconds,
                "simulated": played[len(played) // 2],
                "efficiency": alone / seconds / count,
                "limit": name,
                "shares": shares,
            }
        )
    return rows


def draw_scaling(found: dict[str, list[dict[str, Any]]], title: str) -> "Drawn":
    """Speed-up against workers, a line per sweep: the formula as a line, the simulation as circles."""
    import matplotlib

    from hibench import draw

    with matplotlib.rc_context(draw.RC):
        figure, axes, _ = draw.panels(1, 1)
        (panel,) = axes
        counts = [row["workers"] for row in next(iter(found.values()))]
        panel.plot(counts, counts, color="0.6", linewidth=0.8, linestyle=":")
        handles: dict[str, Any] = {}
        for (name, rows), colour in zip(found.items(), COLOURS):
            (handles[name],) = panel.plot(counts, [row["speed_up"] for row in rows], color=colour, label=name)
            panel.plot(counts, [row["simulated"] for row in rows], "o", color=colour, markersize=3, fillstyle="none")
        panel.set_xscale("log", base=2)
        panel.set_yscale("log", base=2)
        panel.set_xticks(counts, [str(count) for count in counts])
        panel.set_yticks(counts, [str(count) for count in counts])
        panel.set(xlabel="Workers", ylabel="Speed-up", ylim=(0.9, 1.1 * max(counts)))
        says = (
            f"Expected speed-up of quality cells from measured cell times ({title}). Lines: formula; circles: median of "
            f"{len(SEEDS)} simulated sweeps, job times spread by {100 * JITTER:g} %; dotted: as many times as fast."
        )
        draw.finish(figure, says, handles, 2.8, 1)
    return draw.Drawn("speed-up", says, figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Write speed-up.{json,md,png,pdf} into a folder."""
    from hibench import draw

    parser = argparse.ArgumentParser(prog="python -m hibench.scaling_report", description=__doc__)
    parser.add_argument("records", type=Path, help="records.csv of a report")
    parser.add_argument("--method", default="ldm")
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--out", type=Path, default=Path("reports/scale"))
    asked = parser.parse_args(argv)
    try:
        costs = costs_of(asked.records, asked.method, asked.resolution, asked.steps)
    except HibenchError as error:
        parser.error(str(error))
    found = {name: rows_of(costs, sweep) for name, sweep in SWEEPS.items()}
    asked.out.mkdir(parents=True, exist_ok=True)
    values = {"costs": asdict(costs), "jitter": JITTER, "sweeps": found}
    _put(asked.out / "speed-up.json", json.dumps(values, indent=1) + "\n")
    _put(asked.out / "speed-up.md", _table(found))
    title = f"{asked.method}, {asked.resolution} px, {asked.steps} steps"
    for path in draw.save(draw_scaling(found, title), asked.out):
        print(path)
    return 0


def _table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: a row per number of workers, the speed-up of every sweep with the simulated one behind it."""
    lines = [f"| workers | {' | '.join(found)} |", f"|--:|{'--:|' * len(found)}"]
    for rows in zip(*found.values()):
        cells = [f"{row['speed_up']:.1f} ({row['simulated']:.1f})" for row in rows]
        lines.append(f"| {rows[0]['workers']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _put(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.tmp")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


if __name__ == "__main__":
    raise SystemExit(main())
