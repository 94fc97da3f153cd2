"""Records: what a worker left behind, whatever happened to it, as one JSON value."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import hibench
from hibench.cells import Cell
from hibench.engines import Exit
from hibench.errors import HibenchError, signal_text
from hibench.job import prompts_digest
from hibench.prepare import Task, Verdict
from hibench.store import SCHEMA, finite, read_json, utc_now

__all__ = ["GOOD", "failed", "full_disk", "is_good", "make_record", "quality_part", "read_verdict", "speed_part"]

GOOD = ("ok", "skip")                                         # statuses that are no failure
FULL_DISK = re.compile(r"No space left on device|Disk quota exceeded|Read-only file system")
TAIL_BYTES = 4096


def make_record(task: Task, env: dict[str, Any], *, verdict: Verdict | None = None, speed: dict[str, Any] | None = None,
                quality: dict[str, Any] | None = None, drift: dict[str, Any] | None = None,
                flags: list[dict[str, str]] | None = None, parameters: int | None = None, weights_digest: str | None = None,
                started_at: str | None = None, wall_s: float | None = None) -> dict[str, Any]:
    """The record of a cell: status `ok`, or that of the verdict."""
    cell = task.cell
    record = {
        "schema": SCHEMA, "id": task.id, "key": cell.key, "kind": cell.kind,
        "status": verdict.status if verdict else "ok", "reason": verdict.reason if verdict else None,
        "method": {"name": cell.method, "adapter": cell.adapter, "adapter_digest": task.adapter_digest, "weights": cell.weights,
                   "weights_digest": task.weights_digest or weights_digest, "options": cell.options, "parameters": parameters},
        "axes": {**cell.axes, "options": cell.option_axes, "settings": cell.setting_axes},
        "settings": cell.settings, "device": cell.device, "dtype": cell.dtype, "prompts": cell.prompts,
        "prompts_digest": prompts_digest(cell.prompts), "env": env,
        "started_at": started_at or utc_now(), "wall_s": wall_s, "hibench": hibench.__version__,
        "flags": flags or [], "failure": verdict.failure if verdict else None, "speed": speed, "quality": quality,
    }
    if cell.kind == "drift":
        record["drift"] = drift
    if verdict and verdict.inferred_from:
        record["inferred_from"] = verdict.inferred_from
    return record


def read_verdict(path: Path) -> dict[str, Any] | None:
    """A verdict that a worker wrote, None = there is none that can be read."""
    verdict = read_json(path)
    return verdict if "status" in verdict else None


def is_good(record: dict[str, Any]) -> bool:
    """Whether a cell is as it should be: measured (with all its metrics) or skipped."""
    return record["status"] in GOOD and not (record.get("quality") or {}).get("missing")


def failed(end: Exit, said: dict[str, Any] | None, log: Path, doing: str, timeout_s: float | None) -> Verdict:
    """The verdict on a process that did not do its work: its own words, else what its end tells."""
    if said is not None and said["status"] != "ok":
        failure = said.get("failure")
        reason = str(said.get("reason") or (failure or {}).get("message") or said["status"])
        if failure and failure.get("stage") and said["status"] == "oom":
            reason = f"out of memory in {failure['stage']}: {reason}"
        return Verdict(said["status"], reason, failure)
    if end.timed_out:
        text = f"{doing} took longer than {timeout_s:g} s and was ended; raise the method's `timeout`"
        return Verdict("timeout", text, _failure("CellTimeout", text, timeout_s=timeout_s))
    code = end.returncode
    ended = "could not be killed" if code is None else signal_text(code) if code < 0 else f"ended with {signal_text(code)}"
    last = last_line(log)
    text = f"{doing}: the worker {'was ' if code is not None and code < 0 else ''}{ended} before it gave a result"
    return Verdict("died", text + (f"; its last words: {last}" if last else ""), _failure(
        "WorkerDied", text, returncode=code, signal=-code if code is not None and code < 0 else None))


def _failure(kind: str, message: str, **more: Any) -> dict[str, Any]:
    return {"stage": None, "type": kind, "message": message, "requested_bytes": None, "allocated_bytes": None,
            "reserved_bytes": None, "free_bytes": None, **more}


def last_line(log: Path) -> str:
    """The last line of a process in its log, shortened."""
    lines = [line.strip() for line in tail(log).splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""


def tail(log: Path) -> str:
    """What the last process wrote at the end of a log."""
    try:
        with log.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    _, header, after = f"\n{text}".rpartition("\n=== ")
    return after.partition("\n")[2] if header else text


def full_disk(verdict: Verdict, log: Path) -> HibenchError | None:
    """The error that stops the run when a worker failed because the disk is full; nothing measured is lost by it."""
    text = f"{verdict.reason}\n{tail(log) if verdict.status == 'died' else ''}"
    found = FULL_DISK.search(text) if verdict.status in ("error", "died") else None
    return HibenchError(f"{log.parent}: {found[0].lower()}; what was measured so far is kept: make room or choose "
                        "another --out, and run again") if found else None


def speed_part(processes: list[dict[str, Any]]) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """The `speed` part of a record from its processes, and the flags of all of them, each once."""
    from hibench.timing import summarise

    flags: dict[str, dict[str, str]] = {}
    for process in processes:
        for flag in process.get("flags") or ():
            flags.setdefault(flag["name"], flag)
    return {"processes": processes, **summarise(processes)}, list(flags.values())


def quality_part(folder: Path, cell: Cell) -> dict[str, Any]:
    """The `quality` part of a record from quality.json and the stored samples."""
    scored = read_json(folder / "quality.json")
    samples = sorted((folder / "samples").glob("*.png"), key=lambda path: (len(path.stem), path.stem))
    part = {"n": cell.settings.get("images"), "first_seed": cell.settings.get("first_seed", 0), "values": {}, "missing": {},
            "inapplicable": {}, "bad": {"nan": None, "constant": None}, **scored,
            "samples": [f"samples/{path.name}" for path in samples]}
    for name in [name for name, entry in part["values"].items() if entry.get("value") != finite(entry.get("value"))]:
        part["missing"][name] = f"the value is not finite ({part['values'].pop(name)['value']})"
    return part
