"""How much faster quality cells get on more workers: a formula from measured cell times, and the simulation that checks it."""

from __future__ import annotations

import csv
import heapq
import math
import random
import statistics
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hibench.attempt import split
from hibench.errors import NoBaseline

__all__ = ["Costs", "Sweep", "costs_of", "expected_s", "limit", "part_lengths", "simulated_s"]


@dataclass(frozen=True)
class Costs:
    """Seconds that one worker spends, as measured on one machine."""

    start_s: float  # a process with its imports, whatever it does then
    load_s: float  # the method's weights
    first_s: float  # what the first image takes beyond a later one
    image_s: float  # one image with its features
    score_s: float  # the process that merges the shards and computes the metrics

    @property
    def part_s(self) -> float:
        """What every part costs before its second image."""
        return self.start_s + self.load_s + self.first_s


@dataclass(frozen=True)
class Sweep:
    """Equal quality cells, each of `images` images in shards of `shard`."""

    cells: int
    images: int
    shard: int = 64

    @property
    def shards(self) -> int:
        """Of one cell."""
        return -(-self.images // self.shard)


def part_lengths(sweep: Sweep, workers: int) -> list[int]:
    """Images of every part of one cell, as `hibench run --engine ray` divides it among this many workers."""
    if workers == 1:
        return [sweep.images]
    at_once = min(sweep.cells, workers)
    sizes = [[first, min(sweep.shard, sweep.images - first)] for first in range(0, sweep.images, sweep.shard)]
    return [sum(count for _, count in group) for group in split(sizes, math.ceil(2 * workers / at_once))]


def expected_s(costs: Costs, sweep: Sweep, workers: int) -> float:
    """Seconds until the last record is there: whole rounds of parts, or the work itself, and the last cell's scoring.

    With J = cells · parts of t seconds each on K workers: T = max(⌈J/K⌉ · t, (J · t + (cells − 1) · score) / K) + score.
    """
    lengths = part_lengths(sweep, workers)
    work = sum(costs.part_s + count * costs.image_s for count in lengths) * sweep.cells
    longest = costs.part_s + max(lengths) * costs.image_s
    rounds = math.ceil(sweep.cells * len(lengths) / workers) * longest
    return max(min(rounds, work / workers + longest), (work + (sweep.cells - 1) * costs.score_s) / workers) + costs.score_s


def simulated_s(costs: Costs, sweep: Sweep, workers: int, *, jitter: float = 0.0, seed: int = 0) -> float:
    """The same by playing it through: parts in the order of the cells, a score when the last part of its cell is done.

    `jitter`: the standard deviation of the logarithm of every job's time.
    """
    generator = random.Random(seed)
    lengths, to_admit = part_lengths(sweep, workers), sweep.cells
    waiting: deque[tuple[int, float]] = deque()  # (cell, seconds); a score has the cell's complement
    left: dict[int, int] = {}
    running: list[tuple[float, int]] = []  # (end, cell)
    now, at_once = 0.0, 0
    while True:
        while to_admit and at_once < workers:
            cell = sweep.cells - to_admit
            to_admit, at_once, left[cell] = to_admit - 1, at_once + 1, len(lengths)
            waiting.extend((cell, costs.part_s + count * costs.image_s) for count in lengths)
        while waiting and len(running) < workers:
            cell, seconds = waiting.popleft()
            heapq.heappush(running, (now + seconds * math.exp(generator.gauss(0.0, jitter) if jitter else 0.0), cell))
        if not running:
            return now
        now, cell = heapq.heappop(running)
        if cell < 0:  # a score
            at_once -= 1
            continue
        left[cell] -= 1
        if left[cell] == 0:
            waiting.append((~cell, costs.score_s))


def limit(costs: Costs, sweep: Sweep, workers: int) -> tuple[str, dict[str, float]]:
    """What keeps this many workers from being that many times as fast: the largest share of their time, and all shares."""
    lengths = part_lengths(sweep, workers)
    total = workers * expected_s(costs, sweep, workers)
    images = sweep.cells * sweep.images * costs.image_s
    starts = sweep.cells * len(lengths) * costs.part_s
    scores = sweep.cells * costs.score_s
    shares = {"images": images / total, "starting and loading": starts / total, "scoring": scores / total}
    shares["waiting for the last parts and for scores"] = max(0.0, 1 - sum(shares.values()))
    return max((name for name in shares if name != "images"), key=lambda name: shares[name]), shares


def costs_of(table: Path, method: str, height: int, steps: int | None, floor: str = "real") -> Costs:
    """Costs from a report's records.csv: the method's speed and quality cells, and those of a method that costs nothing.

    The process's start is `floor`'s speed cell per process, scoring is its quality cell beyond that, and an image with its
    features is what the method's quality cell takes longer. Raises NoBaseline where a cell is not in the table.
    """
    with table.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["status"] == "ok" and row["height"] == row["width"] == str(height)]

    def found(name: str, kind: str) -> list[dict[str, Any]]:
        wanted = "" if steps is None or name == floor else str(steps)
        cells = [row for row in rows if (row["method"], row["kind"], row["steps"]) == (name, kind, wanted)]
        cells = [row for row in cells if float(row["sparsity"] or 0) == 0]
        if not cells:
            raise NoBaseline(
                f"{table}: no {kind} cell of {name} at {height}x{height}" + (f" with {wanted} steps" if wanted else "")
            )
        return cells

    speed = found(method, "speed")
    start_s = _median(float(row["wall_s"]) / float(row["processes"]) for row in found(floor, "speed"))
    load_s = _median(float(row["load_s"]) for row in speed)
    first_s = _median(max(0.0, float(row["first_image_s"]) - float(row["latency_p50_s"])) for row in speed)
    fixed_s = _median(float(row["wall_s"]) for row in found(floor, "quality"))
    quality = found(method, "quality")
    image_s = _median((float(row["wall_s"]) - fixed_s - load_s - first_s) / float(row["n"]) for row in quality)
    return Costs(start_s, load_s, first_s, max(image_s, 0.0), max(fixed_s - start_s, 0.0))


def _median(values: Iterable[float] | Sequence[float]) -> float:
    return statistics.median(values)
