"""Plots from records: quality, latency and memory against the axes, the Pareto front, the sample grid."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from hibench import draw
from hibench.columns import metric_names
from hibench.curves import AXES, against
from hibench.draw import Drawn
from hibench.lines import Line, Row, pair
from hibench.marks import Looks
from hibench.measures import metric_of, once, quantity_of, x_of
from hibench.pareto import pareto
from hibench.steps_plot import quality_by_steps

__all__ = ["draw_sweep", "looks_of_sweeps", "write_plots"]


def write_plots(sweeps: dict[str, list[Row]], results: Path, out: Path,
                formats: Sequence[str] = ("png", "pdf")) -> Iterator[tuple[str, str, list[Path]]]:
    """Draw and save every plot that has data; yields (sweep, caption, paths)."""
    looks = looks_of_sweeps(sweeps)
    for name, rows in sweeps.items():
        for drawn in draw_sweep(name, rows, results, looks):
            yield name, drawn.caption, draw.save(drawn, out, formats)


def looks_of_sweeps(sweeps: dict[str, list[Row]]) -> Looks:
    """The look of every method, the same in the figures of all sweeps."""
    return _looks(line for rows in sweeps.values() for line in pair(rows))


def _looks(lines: Iterable[Line]) -> Looks:
    return draw.looks_of(line.method for line in lines if not line.role)


def draw_sweep(name: str, rows: list[Row], results: Path, looks: Looks | None = None, *,
               samples: bool = True) -> Iterator[Drawn]:
    """All figures of one sweep, as far as it has the data for them; speed figures are drawn per machine."""
    import matplotlib

    from hibench.show import sample_grid

    lines = pair(rows)
    looks = looks or _looks(lines)
    metrics = [metric_of(metric, lines) for metric in metric_names(row for row in rows if row["kind"] == "quality")]
    timed = [line for line in lines if line.speed and line.speed["status"] == "ok"]
    machines = sorted({line.hardware for line in timed if line.hardware})
    latency = quantity_of("latency_p50_s", "Latency per image", "s", timed)
    memory = quantity_of("peak_bytes", "Peak memory", "bytes", timed)
    quality, stem = once(lines), re.sub(r"[^A-Za-z0-9_.-]+", "-", name)
    per_machine = [(machine, f"-{chr(ord('a') + at)}" if len(machines) > 1 else "", [x for x in lines if x.hardware == machine])
                   for at, machine in enumerate(machines)]
    with matplotlib.rc_context(draw.RC):
        for axis in AXES:
            if len({x_of(line, axis) for line in lines if not line.role} - {None}) < 2:
                continue
            yield from against(name, f"{stem}-quality-{axis}", quality, axis, metrics, looks, None)
            for machine, suffix, mine in per_machine:
                at = latency._replace(log_above=10.0) if axis == "sparsity" else latency
                yield from against(name, f"{stem}-latency-{axis}{suffix}", mine, axis, [at], looks, machine)
                if axis == "resolution":
                    yield from against(name, f"{stem}-memory-{axis}{suffix}", mine, axis, [memory], looks, machine)
        yield from quality_by_steps(name, stem, quality, metrics)
        metric = next((one for one in metrics if one.better in ("lower", "higher")), None)
        for machine, suffix, mine in per_machine if metric else ():
            yield from pareto(name, f"{stem}-pareto{suffix}", mine, metric, latency, looks, machine, quality)  # type: ignore[arg-type]
    if samples:
        yield from sample_grid(name, f"{stem}-samples", quality, results)
