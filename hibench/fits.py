"""The largest measured resolution whose peak fits a device's memory, from the records of larger devices."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from hibench.lines import BASELINES, NOTHING, Row, number, resolution_text
from hibench.typeset import escape_markdown

__all__ = ["LIMITS_GIB", "Fit", "fits", "to_markdown"]

LIMITS_GIB = (8, 16, 24, 80)
CONTEXT_BYTES = 600 * 2**20                               # what a CUDA context and its libraries take beside torch's allocator


@dataclass(frozen=True)
class Fit:
    """One method at fixed steps, sparsity and options on one device; `largest` has one text per limit."""

    method: str
    settings: str
    hardware: str
    largest: tuple[str, ...]


def fits(rows: Iterable[Row], limits_gib: Sequence[float] = LIMITS_GIB) -> list[Fit]:
    """Per method and setting: `1024²` (the next size measured does not fit), `≥ 2048²` (nothing larger was measured),
    `< 256²` (not even the smallest), or a dash where the records do not tell.

    Counts what torch allocated at most, plus 600 MiB for the CUDA context, against the limit in GiB (2^30 bytes). A size that
    ran out of memory fits nowhere up to the device that it ran out on. Measurements on a CPU say nothing about devices."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        device = row["peak_source"] == "cuda-allocated" or (row["status"] == "oom" and _on_gpu(row))
        if row["kind"] == "speed" and device and row["adapter"] not in BASELINES:
            options = ", ".join(f"{name}={value}" for name, value in sorted(row["_options"].items()))
            groups.setdefault((row["method"], row["steps"], row["sparsity"] or 0.0, options, row["hardware"]), []).append(row)
    found = []
    for (method, steps, sparsity, options, hardware), mine in groups.items():
        mine.sort(key=lambda row: (row["height"] * row["width"], row["height"]))
        said = [f"{steps} steps"] if steps is not None else []
        said += [f"s = {sparsity:g}"] if sparsity else []
        largest = tuple(_largest(mine, gib * 2**30) for gib in limits_gib)
        found.append(Fit(method, ", ".join([*said, *([options] if options else [])]), hardware or NOTHING, largest))
    return found


def _on_gpu(row: Row) -> bool:
    return bool((row["_env"].get("hardware") or {}).get("gpus"))


def _largest(rows: list[Row], limit_bytes: float) -> str:
    """Of rows in the order of their pixels: the last one before the first that does not fit."""
    best: Row | None = None
    for row in rows:
        peak = number(row["peak_bytes"])
        if row["status"] != "oom" and (row["status"] != "ok" or peak is None):
            continue                                      # an error says nothing about memory
        if row["status"] == "oom" or peak is None or peak + CONTEXT_BYTES > limit_bytes:
            size = resolution_text(row["height"], row["width"])
            return f"< {size}" if best is None else resolution_text(best["height"], best["width"])
        best = row
    return NOTHING if best is None else f"≥ {resolution_text(best['height'], best['width'])}"


def to_markdown(found: Sequence[Fit], limits_gib: Sequence[float] = LIMITS_GIB) -> str:
    """The table as Markdown, with a sentence on how to read it."""
    head = ["Method", "Setting", "Measured on", *(f"{gib:g} GiB" for gib in limits_gib)]
    lines = [f"| {' | '.join(head)} |", f"|---|---|---|{'--:|' * len(limits_gib)}"]
    for fit in found:
        cells = [escape_markdown(text) for text in (fit.method, fit.settings or NOTHING, fit.hardware)]
        lines.append(f"| {' | '.join([*cells, *fit.largest])} |")
    note = "Peak of torch's allocator plus 600 MiB for the CUDA context; ≥: nothing larger was measured."
    return "\n".join([*lines, "", note, ""])
