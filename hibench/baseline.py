"""Committed baselines: one small JSON per device with the numbers that are gated, and golden images named by their content."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hibench.drift import Golden
from hibench.errors import NoBaseline, SpecError, Unfit
from hibench.excerpt import DISTURBED, SPEED, VALUE
from hibench.sides import Side
from hibench.store import clean_errors, utc_now, write_json

__all__ = ["SCHEMA", "device_of", "read_baseline", "same_device", "write_baseline"]

SCHEMA = 1
ENV = ("hardware", "software", "hardware_digest", "software_digest")


def device_of(record: dict[str, Any]) -> str:
    """`cpu`, or the name of the GPU that a record was measured on."""
    gpus = ((record.get("env") or {}).get("hardware") or {}).get("gpus") or []
    if not str(record.get("device", "")).startswith("cuda"):
        return "cpu"
    number = int(str(record["device"]).partition(":")[2] or 0)
    return str(gpus[number]["name"]) if number < len(gpus) else "an unknown GPU"


def same_device(side: Side) -> str:
    """The one device of all records; NoBaseline when there are several."""
    devices = sorted({device_of(record) for record in side.records.values()})
    if len(devices) > 1:
        raise NoBaseline(f"{side.label}: records of several devices ({', '.join(devices)}); choose one by --only or --device")
    return devices[0]


# -- reading -----------------------------------------------------------------------------------------------------------------


def read_baseline(path: Path, wanted: Callable[[str], bool] = lambda key: True) -> tuple[Side, str]:
    """A baseline file as one side of a check, and its device; NoBaseline says in one line what is wrong with the file.

    `wanted(key)` narrows the cells.
    """
    data = _load(path)
    env = {name: data["env"][name] for name in ENV}
    records = {key: {**cell, "key": key, "env": env} for key, cell in data["cells"].items() if wanted(key)}
    golden = Golden(path.parent / "golden")

    def images(key: str, record: dict[str, Any]) -> dict[int, Path]:
        return {int(seed): golden.path(digest) for seed, digest in record["drift"]["sha256"].items()}

    told = f"{path} ({len(records)} cells, {data['device']}, {str(data.get('commit'))[:10]}, {str(data.get('date'))[:10]})"
    return Side(told, records, images), str(data["device"])


def _load(path: Path) -> dict[str, Any]:
    next_step = f"write one: hibench check DIR --baseline {path} --update-baseline --reason '...'"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NoBaseline(f"{path}: there is no such baseline; {next_step}") from None
    except (OSError, ValueError) as error:
        why = " ".join(str(error).split())
        raise NoBaseline(f"{path}: cannot be read ({why}); restore it from git, or {next_step}") from error
    if not isinstance(data, dict) or "schema" not in data:
        raise NoBaseline(f"{path}: is no baseline (it has no 'schema'); {next_step}")
    if data["schema"] != SCHEMA:
        raise NoBaseline(f"{path}: baseline of schema {data['schema']}, this hibench reads {SCHEMA}; {next_step}")
    for problem in _problems(data):
        raise NoBaseline(f"{path}: {problem}; restore it from git, or {next_step}")
    return data


def _problems(data: dict[str, Any]) -> Iterator[str]:
    """What is missing or not a number, one sentence each."""
    for name in ("device", "env", "cells"):
        if name not in data:
            yield f"has no '{name}'"
            return
    if not isinstance(data["cells"], dict) or not isinstance(data["env"], dict):
        yield "'cells' and 'env' have to be objects"
        return
    yield from (f"env has no '{name}'" for name in ENV if name not in data["env"])
    for key, cell in data["cells"].items():
        if not isinstance(cell, dict) or not {"kind", "status"} <= set(cell):
            yield f"cell {key} has no kind or no status"
        elif cell["status"] == "ok" and not isinstance(cell.get(cell["kind"]), dict):
            yield f"cell {key} is ok and has no '{cell['kind']}'"
        else:
            yield from (f"cell {key}: {place} is not a finite number" for place in _not_finite(cell))


def _not_finite(value: Any, place: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _not_finite(item, f"{place}.{name}" if place else name)
    elif isinstance(value, float) and not math.isfinite(value):
        yield place


# -- writing -----------------------------------------------------------------------------------------------------------------


def write_baseline(path: Path, side: Side, reason: str) -> str:
    """Make the records of `side` the baseline, with the reason; returns what was done, in a sentence.

    Raises Unfit for records of uncommitted code, or that the machine disturbed, and SpecError without a reason.
    """
    if not reason.strip():
        raise SpecError("--update-baseline needs --reason 'why the numbers may change'")
    _refuse(side)
    device = same_device(side)
    known = next(iter(side.records.values()))
    before = _before(path)
    golden = Golden(path.parent / "golden")
    with clean_errors(f"write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        cells = {key: _cell(key, record, side, golden) for key, record in sorted(side.records.items())}
        change = {"date": utc_now(), "commit": known["env"]["git"].get("commit"), "reason": " ".join(reason.split())}
        write_json(path, {
            "schema": SCHEMA, "device": device, "date": change["date"], "commit": change["commit"],
            "hibench": known.get("hibench"), "env": {name: known["env"][name] for name in ENV},
            "changes": [*before.get("changes", []), change], "cells": cells})
        golden.prune(_used(path.parent))
    old = before.get("cells", {})
    added, gone = len(set(cells) - set(old)), len(set(old) - set(cells))
    return f"{path}: {len(cells)} cells ({added} new, {gone} removed); commit it together with {golden.folder}"


def _refuse(side: Side) -> None:
    for key, record in side.records.items():
        if ((record.get("env") or {}).get("git") or {}).get("dirty"):
            raise Unfit(f"{key} was measured with uncommitted changes; commit them, run again, and then update the baseline")
        disturbed = sorted({flag["name"] for flag in record.get("flags") or ()} & DISTURBED)
        if disturbed:
            raise Unfit(f"{key} was measured on a machine that was {' and '.join(disturbed)}; run it again on a quiet one")
        if record["status"] in ("missing", "error", "died", "timeout"):
            raise Unfit(f"{key} is {record['status']}: {record.get('reason')}; repair it first: a baseline holds what works")


def _before(path: Path) -> dict[str, Any]:
    """The baseline that is replaced; {} when there is none, or it cannot be read."""
    try:
        return _load(path)
    except NoBaseline:
        return {}


def _cell(key: str, record: dict[str, Any], side: Side, golden: Golden) -> dict[str, Any]:
    """What is kept of a record."""
    kind = record["kind"]
    cell: dict[str, Any] = {"kind": kind, "status": record["status"]}
    if record["status"] != "ok":
        return {**cell, "reason": record.get("reason")}
    if kind == "speed":
        return {**cell, "speed": {name: record["speed"].get(name) for name in SPEED}}
    if kind == "drift":
        return {**cell, "drift": {"sha256": {str(seed): golden.add(path) for seed, path in side.images(key, record).items()}}}
    values = {name: {part: entry.get(part) for part in VALUE} for name, entry in record["quality"]["values"].items()}
    return {**cell, "quality": {"values": values}}


def _used(folder: Path) -> set[str]:
    """Digests of all golden images that the baselines in a folder name."""
    used: set[str] = set()
    for path in folder.glob("*.json"):
        for cell in _before(path).get("cells", {}).values():
            used |= set((cell.get("drift") or {}).get("sha256", {}).values())
    return used
