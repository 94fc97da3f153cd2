"""`hibench merge`: the finished cells of several results directories in one, verified before anything is written."""

from __future__ import annotations

import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hibench.errors import EXIT_OK, HibenchError, SpecError
from hibench.recording import is_good
from hibench.store import Store, clean_errors, read_json

__all__ = ["Conflict", "Plan", "plan_merge", "run_merge"]

TIMES = ("started_at", "wall_s", "env", "hibench", "flags")  # a quality cell measured twice may differ in these
SHOWN = 3  # problems that a message names


class Conflict(HibenchError):
    """Two directories hold different results of one cell, or one of them is damaged; nothing was written."""


@dataclass
class Plan:
    """What a merge would do."""

    copies: dict[str, Path] = field(default_factory=dict)  # id -> the folder of the cell to copy
    records: dict[str, dict[str, Any]] = field(default_factory=dict)  # id -> the record that stays or comes
    same: int = 0  # cells that were there already, or twice
    problems: list[str] = field(default_factory=list)  # one sentence each; none may be left over
    unfinished: list[str] = field(default_factory=list)  # one sentence per source with staged cells


def run_merge(sources: Sequence[Path], out: Path) -> int:
    """Copy the finished cells and manifests of `sources` into `out` (made if need be); returns the exit code.

    Safe to interrupt and to repeat: every cell appears by one rename. Raises Conflict before anything is written.
    """
    target = Store(out)
    stores = _stores(sources, target)
    target.create()
    with target.lock():
        target.recover()
        plan = plan_merge(stores, target)
        if plan.problems:
            more = f"; and {len(plan.problems) - SHOWN} more" if len(plan.problems) > SHOWN else ""
            raise Conflict(
                f"nothing was merged: {'; '.join(plan.problems[:SHOWN])}{more}; "
                "remove the results that are wrong, and merge again"
            )
        for id, folder in plan.copies.items():
            _copy(folder, id, plan.records[id], target)
        manifests = sum(_copy_manifests(store, target) for store in stores)
    for line in plan.unfinished:
        print(line)
    print(
        f"{target.root}: {len(plan.records)} cells; {len(plan.copies)} copied, {plan.same} were there already or came twice, "
        f"{manifests} manifests copied"
    )
    return EXIT_OK


def _stores(sources: Sequence[Path], target: Store) -> list[Store]:
    """The sources, each once; SpecError for what is no results directory."""
    stores = {Store(source).root.resolve(): Store(source) for source in sources}
    stores.pop(target.root.resolve(), None)
    wrong = [str(store.root) for store in stores.values() if not store.cells.is_dir()]
    if wrong:
        raise SpecError(f"not a results directory: {', '.join(wrong)}; give what `hibench run --out` wrote")
    if not stores:
        raise SpecError("nothing to merge: give at least one results directory beside --out")
    return list(stores.values())


def plan_merge(sources: Sequence[Store], target: Store) -> Plan:
    """Compare all records and verify the files of those that would be copied; writes nothing."""
    plan = Plan()
    owner: dict[str, Store] = {}
    for store in (target, *sources):
        found, problems = store.records()
        plan.problems += problems
        for record in found:
            _weigh(plan, owner, store, record)
        staged = sum(1 for folder in store.work.iterdir() if folder.is_dir()) if store.work.is_dir() else 0
        if staged and store is not target:
            plan.unfinished.append(
                f"{store.root}: {staged} cells are unfinished and stay there; run it to its end, merge again"
            )
    for id, store in owner.items():
        if store is not target:
            plan.copies[id] = store.cell(id)
            plan.problems += _damages(store.cell(id), plan.records[id])
    return plan


def _weigh(plan: Plan, owner: dict[str, Store], store: Store, record: dict[str, Any]) -> None:
    """Keep the better of two records of one cell; two good ones have to agree."""
    id = record["id"]
    held = plan.records.get(id)
    if held is None or (is_good(record) and not is_good(held)):
        plan.records[id], owner[id] = record, store
        return
    if is_good(held) and is_good(record) and _numbers(held) != _numbers(record):
        plan.problems.append(f"{record['key']} has two different results, in {owner[id].cell(id)} and {store.cell(id)}")
    plan.same += 1


def _numbers(record: dict[str, Any]) -> Any:
    """What has to agree: everything for a speed cell, whose numbers are never twice the same; else all but the times."""
    return record if record["kind"] == "speed" else {name: value for name, value in record.items() if name not in TIMES}


def _damages(cell: Path, record: dict[str, Any]) -> Iterator[str]:
    """Files that the record names and that are not there, or are not what it says; features that cannot be read."""
    from hibench.weights import sha256_of

    drift = record.get("drift") or {}
    named = [*((record.get("quality") or {}).get("samples") or ()), *(drift.get("samples") or {}).values()]
    gone = [name for name in named if not (cell / name).is_file()]
    if gone:
        yield f"{cell}: {gone[0]} is not there" + (f", nor {len(gone) - 1} others" if len(gone) > 1 else "")
        return
    for seed, digest in (drift.get("sha256") or {}).items():
        if sha256_of(cell / drift["samples"][seed]) != digest:
            yield f"{cell / drift['samples'][seed]}: is damaged (its SHA-256 is not that of the record)"
    for shard in sorted(cell.glob("shard-*.npz")):
        try:
            with zipfile.ZipFile(shard) as archive:
                damaged = archive.testzip()  # reads everything and compares checksums (CRC-32)
        except (OSError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            yield f"{shard}: cannot be read ({' '.join(str(error).split())})"
        else:
            if damaged is not None:
                yield f"{shard}: is damaged (the checksum of {damaged} is wrong)"


def _copy(folder: Path, id: str, record: dict[str, Any], target: Store) -> None:
    """One cell, by way of staging, so that it is there whole or not at all."""
    staging = target.work / id
    with clean_errors(f"copy {folder} to {target.root}"):
        shutil.rmtree(staging, ignore_errors=True)
        shutil.copytree(folder, staging, ignore=shutil.ignore_patterns("record.json", ".*.tmp"))
    target.publish(id, record)


def _copy_manifests(source: Store, target: Store) -> int:
    """Manifests under their own names; one that another run wrote in the same microsecond gets a suffix."""
    copied = 0
    for path in sorted(source.runs.glob("*.json")):
        copy, number = target.runs / path.name, 1
        while copy.exists() and read_json(copy) != read_json(path):
            number += 1
            copy = target.runs / f"{path.stem}-{number}.json"
        if not copy.exists():
            with clean_errors(f"copy {path} to {target.root}"):
                aside = copy.with_name(f".{copy.name}.tmp")
                shutil.copyfile(path, aside)
                os.replace(aside, copy)
            copied += 1
    return copied
