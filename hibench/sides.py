"""One side of a comparison: the records of a results directory by key, and how its surroundings differ from the other's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from hibench import excerpt
from hibench.errors import NoBaseline
from hibench.record_index import load_records
from hibench.weights import digest_of

__all__ = ["Side", "differences", "pick_records", "read_side", "wanted"]


@dataclass(frozen=True)
class Side:
    """Records of one side by key: what a check reads of them (`hibench.excerpt`)."""

    label: str
    records: dict[str, dict[str, Any]]
    images: Callable[[str, dict[str, Any]], dict[int, Path]]            # (key, record) -> golden or new images by seed
    problems: list[str] = field(default_factory=list)                   # records that cannot be read, one sentence each


def read_side(root: Path, only: Sequence[str] = (), label: str | None = None) -> Side:
    """The newest record of every key in a results directory; NoBaseline when there is none to be read."""
    from hibench.store import Store

    store = Store(root)
    records, problems = load_records(store.root, excerpt.excerpt, digest_of("excerpt", [Path(excerpt.__file__)]))
    found = pick_records(records, store.runs, only)
    if not found:
        why = f": {problems[0]}" if problems else " that match --only" if only and records else ""
        raise NoBaseline(f"{root}: there are no records{why}; next: hibench run benchmarks.yaml --out {root}")

    def images(key: str, record: dict[str, Any]) -> dict[int, Path]:
        folder = store.cell(record["id"])
        return {int(seed): folder / name for seed, name in (record.get("drift") or {}).get("samples", {}).items()}

    return Side(label or _label(root, found), found, images, problems)


def pick_records(records: Sequence[dict[str, Any]], runs: Path, only: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """One record per key: the one that the newest manifest in the folder `runs` names, else the one that was begun last."""
    by_id = {record["id"]: record for record in records}
    found: dict[str, dict[str, Any]] = {}
    for manifest in _manifests(runs):
        for key, id in (manifest.get("cells") or {}).items():
            if id in by_id:
                found.setdefault(key, by_id[id])
    unnamed = (record for record in records if record["key"] not in found)
    for record in sorted(unnamed, key=lambda record: str(record.get("started_at")), reverse=True):
        found.setdefault(record["key"], record)
    return {key: found[key] for key in sorted(found) if wanted(key, only)}


def wanted(key: str, only: Sequence[str]) -> bool:
    """Whether a key is meant by one of the words: a method, a kind, or a glob over keys; no words = every key."""
    if not only:
        return True
    method, kind, *_ = (*key.split("/"), "", "")
    return any(word in (method, kind) or fnmatchcase(key, word) for word in only)


def _manifests(runs: Path) -> Iterator[dict[str, Any]]:
    """What runs were asked for, the newest first; one that cannot be read says nothing."""
    for path in sorted(runs.glob("*.json"), reverse=True):
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(manifest, dict):
            yield manifest


def _label(root: Path, records: Mapping[str, dict[str, Any]]) -> str:
    gits = [(record.get("env") or {}).get("git") or {} for record in records.values()]
    told = ", ".join(sorted({str(git["commit"])[:10] + "-dirty" * bool(git.get("dirty")) for git in gits if git.get("commit")}))
    return f"{root} ({len(records)} cells{f', commit {told}' if told else ''})"


def differences(base: dict[str, Any], head: dict[str, Any]) -> str:
    """What differs in hardware and software of two records, e.g. `torch 2.10 → 2.11`; "" when the digests agree."""
    old, new = base.get("env") or {}, head.get("env") or {}
    if all(old.get(f"{part}_digest") == new.get(f"{part}_digest") for part in ("hardware", "software")):
        return ""
    found = []
    for part in ("hardware", "software"):
        a, b = _flat(old.get(part) or {}), _flat(new.get(part) or {})
        found += [f"{name} {a.get(name)} → {b.get(name)}" for name in sorted({*a, *b}) if a.get(name) != b.get(name)]
    return ", ".join(found[:6]) + (f" and {len(found) - 6} more" if len(found) > 6 else "") or "unknown hardware or software"


def _flat(value: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, item in value.items():
        flat |= {f"{inner}": deep for inner, deep in item.items()} if isinstance(item, dict) else {name: item}
    return flat
