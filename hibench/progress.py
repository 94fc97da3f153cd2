"""What a run shows: one line per finished cell, a live line on a terminal, and an estimate of the time that is left."""

from __future__ import annotations

import shutil
import statistics
import sys
import threading
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

from hibench.cells import Cell

__all__ = ["Estimate", "Progress", "cell_text", "duration", "outcome_text", "status_table"]

REMEMBERED = 32                                                # cells per method and kind that an estimate looks at
FIRST_S = 3.0                                                  # what a cell costs however small it is: process, imports, load


class Estimate:
    """Seconds that cells will take, from records of earlier ones: the same key, else scaled by pixels × steps."""

    def __init__(self, records: Iterable[dict[str, Any]] = ()) -> None:
        self.known: dict[str, float] = {}
        self.rows: dict[tuple[str, str], deque[tuple[float, float]]] = {}      # (method, kind) -> the last (work, seconds)
        for record in records:
            self.add(record)

    def add(self, record: dict[str, Any]) -> None:
        """Learn from a record; only those that ran to a good end tell anything."""
        wall_s, axes = record.get("wall_s"), record["axes"]
        if record["status"] == "ok" and wall_s:
            self.known[record["key"]] = wall_s
            work = _work(axes["height"], axes["width"], axes.get("steps"), record["kind"], record.get("settings") or {})
            self._note(record["method"]["name"], record["kind"], work, wall_s)

    def learn(self, cell: Cell, seconds: float) -> None:
        """Note what a cell will take in all, told by a part of it."""
        self._note(cell.method, cell.kind, _work(cell.height, cell.width, cell.steps, cell.kind, cell.settings), seconds)
        self.known.setdefault(cell.key, seconds)

    def _note(self, method: str, kind: str, work: float, seconds: float) -> None:
        for name in (method, ""):                              # "": any method
            self.rows.setdefault((name, kind), deque(maxlen=REMEMBERED)).append((work, seconds))

    def cell(self, cell: Cell) -> float | None:
        """Seconds for one cell, None = nothing comparable was ever measured."""
        if cell.key in self.known:
            return self.known[cell.key]
        work = _work(cell.height, cell.width, cell.steps, cell.kind, cell.settings)
        rows = self.rows.get((cell.method, cell.kind)) or self.rows.get(("", cell.kind)) or ()
        return statistics.median(FIRST_S + max(0.0, wall - FIRST_S) * work / other for other, wall in rows) if rows else None

    def total(self, parts: Sequence[tuple[Cell, float]]) -> float | None:
        """Seconds for shares (0 to 1) of cells; unknown cells count like the mean of the others; None = nothing is known."""
        known = [(seconds, share) for cell, share in parts if (seconds := self.cell(cell)) is not None]
        if not known:
            return None if parts else 0.0
        mean = statistics.fmean(seconds for seconds, _ in known)
        unknown = sum(share for _, share in parts) - sum(share for _, share in known)
        return sum(seconds * share for seconds, share in known) + mean * unknown


def _work(height: int, width: int, steps: int | None, kind: str, settings: dict[str, Any]) -> float:
    images = settings.get("images", 1) * (settings.get("processes", 1) if kind == "speed" else 1)
    return float(height * width * (steps or 1) * images)


class Progress:
    """Prints to a stream; on a terminal the last line shows what is going on and is rewritten."""

    def __init__(self, total: int, *, stream: TextIO | None = None, live: bool | None = None, silent: bool = False) -> None:
        self.total, self.done, self.silent = total, 0, silent
        self.stream = sys.stdout if stream is None else stream
        self.live = not silent and (self.stream.isatty() if live is None else live)
        self._shown = ""
        self._lock = threading.Lock()                          # workers of quality cells may run side by side

    def say(self, text: str) -> None:
        """A plain line."""
        if self.silent:
            return
        with self._lock:
            self._clear()
            print(text, file=self.stream, flush=True)
            self._draw()

    def doing(self, text: str) -> None:
        """What is going on; seen on a terminal only."""
        if self.live:
            with self._lock:
                self._clear()
                self._shown = text
                self._draw()

    def finished(self, record: dict[str, Any], left_s: float | None, log: Path | None = None) -> None:
        """The line of one finished cell; a failure also names its log."""
        self.close()                                           # what was going on is over
        self.done += 1
        left = "" if left_s is None or self.done >= self.total else f", ~{duration(left_s)} left"
        line = f"{record['status']:<8}{cell_text(record)}   {outcome_text(record)}   [{self.done}/{self.total}{left}]"
        self.say(line + (f"\n        log: {self.path(log)}" if log else ""))

    def failure(self, record: dict[str, Any], log: Path | None = None) -> None:
        """The line of a cell that has failed before, or lacks a metric."""
        missing = (record.get("quality") or {}).get("missing") or {}
        reason = record.get("reason") or "; ".join(f"without {name}: {why}" for name, why in missing.items())
        self.say(f"{record['status']:<8}{record['key']}: {reason}" + (f"\n        log: {self.path(log)}" if log else ""))

    @staticmethod
    def path(path: Path) -> str:
        """A path as a person in this folder would write it."""
        try:
            return str(path.relative_to(Path.cwd()))
        except ValueError:
            return str(path)

    def close(self) -> None:
        """Remove the live line."""
        with self._lock:
            self._clear()
            self._shown = ""

    def _clear(self) -> None:
        if self._shown:
            self.stream.write("\r\x1b[2K")

    def _draw(self) -> None:
        if self._shown:
            self.stream.write(self._shown[: shutil.get_terminal_size().columns - 1])
            self.stream.flush()


def cell_text(record: dict[str, Any]) -> str:
    """`ldm 128² ×50 s=.75 collage=pixel`."""
    axes = record["axes"]
    height, width = axes["height"], axes["width"]
    parts = [record["method"]["name"], f"{height}²" if height == width else f"{height}×{width}"]
    parts += [f"×{axes['steps']}"] if axes.get("steps") is not None else []
    parts += [f"s={axes['sparsity']:g}".replace("=0.", "=.")] if axes.get("sparsity") else []
    parts += [f"{name}={value}" for name, value in sorted((axes.get("options") or {}).items())]
    return " ".join(parts)


def outcome_text(record: dict[str, Any]) -> str:
    """The numbers that matter of a good record, the reason of any other."""
    if record["status"] != "ok":
        return f"{record['kind']}: {record.get('reason') or 'no reason was given'}"
    flags = ",".join(sorted({flag["name"] for flag in record.get("flags") or ()}))
    tail = f"   ! {flags}" if flags else ""
    if record["kind"] == "speed":
        speed = record["speed"]
        interval = speed.get("latency_ci_s")
        spread = f" ±{_short(50 * (interval[1] - interval[0]) / speed['latency_p50_s'])}%" if interval else ""
        return f"{seconds(speed['latency_p50_s'])}{spread}{tail}"
    if record["kind"] == "drift":
        return f"{len(record['drift']['samples'])} images of fixed seeds{tail}"
    quality = record["quality"]
    values, missing = quality.get("values") or {}, quality.get("missing") or {}
    text = f"{quality.get('n', 0)} images"
    for name, entry in values.items():
        if entry.get("value") is not None:
            text = f"{name} {entry['value']:.4g}" + (f" ±{_short(entry['pm'])}" if entry.get("pm") is not None else "")
            break
    if missing:
        text += f"   without {', '.join(missing)}: {next(iter(missing.values()))}"
    return text + tail


def seconds(value: float) -> str:
    """`3.41 s` or `41.2 ms`."""
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def _short(value: float) -> str:
    text = f"{value:.2g}" if value < 10 else f"{value:.0f}"
    return text.removeprefix("0") if text.startswith("0.") else text


def duration(value: float) -> str:
    """`40 s`, `4 min`, `2.5 h`."""
    return f"{value:.0f} s" if value < 90 else f"{value / 60:.0f} min" if value < 5400 else f"{value / 3600:.1f} h"


def status_table(records: Iterable[dict[str, Any]]) -> str:
    """How many cells ended how, one line per method: `ldm   12 ok  1 oom`."""
    counts: dict[str, Counter[str]] = {}
    for record in records:
        counts.setdefault(record["method"]["name"], Counter())[record["status"]] += 1
    width = max(map(len, counts), default=0)
    return "\n".join(f"  {name:<{width}}  " + "  ".join(f"{number} {status}" for status, number in sorted(
        counter.items(), key=lambda item: (item[0] != "ok", item[0]))) for name, counter in counts.items())
