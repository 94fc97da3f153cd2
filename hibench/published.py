"""Numbers that papers publish about a method, from the `published.yaml` beside it: checked, listed, never mixed with ours."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from hibench.errors import SpecError, did_you_mean

__all__ = ["CAVEAT", "FILE", "KINDS", "Published", "as_json", "load_published", "published_files", "published_of",
           "published_rows", "read_published"]

FILE = "published.yaml"
KINDS = {"code": "the official repository", "paper": "the paper", "authors": "the authors outside the paper",
         "secondary": "quoted by others"}
CAVEAT = ("Numbers that others published, each with its protocol and source. Data, extractor, sample count and hardware differ "
          "from those of our records and from one another, so they are not compared with them.")
FIELDS = ("table", "model", "metric", "value", "pm", "better", "dataset", "resolution", "steps", "sparsity", "protocol",
          "source", "note")
REQUIRED = ("metric", "value", "dataset", "protocol", "source")
BETTER = ("lower", "higher", "none")


@dataclass(frozen=True)
class Published:
    """One published number. `resolution` is (height, width) in pixels; None = not said, or no such axis."""

    method: str                                           # the method of ours beside whose folder it stands
    model: str                                            # what the source calls it; may be another method of its table
    metric: str
    value: float
    pm: float | None
    better: str                                           # "lower" | "higher" | "none"
    dataset: str
    resolution: tuple[int, int] | None
    steps: int | None
    sparsity: float | None
    protocol: str                                         # how it was measured, in a sentence
    source: str                                           # where it stands
    source_kind: str                                      # a key of KINDS
    table: str = ""                                       # the table of the paper, where it is one
    note: str = ""


def published_files() -> list[Path]:
    """The `published.yaml` of every installed method, by path; no method is imported."""
    found = set()
    for point in entry_points(group="hibench.methods"):
        try:
            spec = importlib.util.find_spec(point.module)
        except (ImportError, ValueError):
            continue
        if spec is not None and spec.origin:
            found.add(Path(spec.origin).resolve().parent / FILE)
    return sorted(path for path in found if path.is_file())


def load_published(files: Iterable[Path] | None = None) -> list[Published]:
    """Every published number of the given files (None: of all installed methods). Raises SpecError."""
    return [one for path in (published_files() if files is None else files) for one in read_published(path)]


def published_of(methods: Iterable[str]) -> list[Published]:
    """The published numbers beside the adapters that records name."""
    wanted = set(methods)
    return [one for one in load_published() if one.method in wanted]


def read_published(path: Path) -> list[Published]:
    """Read one file; raises SpecError that lists every problem of it with the number's position."""
    import yaml

    try:
        tree = yaml.load(Path(path).read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, yaml.YAMLError) as error:
        raise SpecError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
    problems = _problems_of_file(tree)
    if problems:
        raise SpecError("\n".join(f"{path}: {problem}" for problem in problems))
    made: list[Published] = []
    seen: dict[tuple[Any, ...], int] = {}
    for at, entry in enumerate(tree["numbers"], 1):
        wrong = _problems(entry, tree)
        if wrong:
            problems += [f"number {at}: {one}" for one in wrong]
            continue
        one = _number(entry, tree)
        place = (one.table, one.model, one.metric, one.dataset, one.resolution, one.steps, one.sparsity, one.source, one.note)
        if place in seen:
            problems.append(f"number {at}: says the same thing as number {seen[place]} ({one.model}, {one.metric})")
        seen[place] = at
        made.append(one)
    if problems:
        raise SpecError("\n".join(f"{path}: {problem}" for problem in problems))
    return made


def _problems_of_file(tree: Any) -> list[str]:
    parts = {"method": str, "protocols": dict, "sources": dict, "numbers": list}
    if not isinstance(tree, dict):
        return [f"is no mapping with {', '.join(parts)}"]
    found = [f"unknown key '{key}'{did_you_mean(str(key), parts)}" for key in tree if key not in parts]
    found += [f"'{name}' must be a {kind.__name__}" for name, kind in parts.items() if not isinstance(tree.get(name), kind)]
    for name, source in (tree.get("sources") or {}).items() if not found else ():
        if not isinstance(source, dict) or set(source) != {"kind", "cite"} or source["kind"] not in KINDS:
            found.append(f"source '{name}' must have cite and kind, one of {', '.join(KINDS)}")
    return found


def _problems(entry: Any, tree: dict[str, Any]) -> list[str]:
    """What is wrong with one number, a sentence each."""
    if not isinstance(entry, dict):
        return ["is no mapping"]
    found = [f"unknown key '{key}'{did_you_mean(str(key), FIELDS)}" for key in entry if key not in FIELDS]
    found += [f"'{name}' is missing" for name in REQUIRED if name not in entry]
    for name in ("protocol", "source"):
        if name in entry and entry[name] not in tree[f"{name}s"]:
            found.append(f"there is no {name} '{entry[name]}'{did_you_mean(str(entry[name]), tree[f'{name}s'])}")
    for name in ("value", "pm", "sparsity"):
        value = entry.get(name)
        if name in entry and (isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value)):
            found.append(f"'{name}' must be a finite number, not {value!r}")
    if not _size_ok(entry.get("resolution")):
        found.append(f"'resolution' must be a side or [height, width] in pixels, not {entry['resolution']!r}")
    if "steps" in entry and (type(entry["steps"]) is not int or entry["steps"] < 1):
        found.append(f"'steps' must be a whole number from 1, not {entry['steps']!r}")
    if entry.get("better", "none") not in BETTER:
        found.append(f"'better' must be one of {', '.join(BETTER)}, not {entry['better']!r}")
    return found


def _size_ok(value: Any) -> bool:
    sides = value if isinstance(value, list) else [] if value is None else [value]
    return len(sides) in (0, 1, 2) and all(type(side) is int and side > 0 for side in sides) and value != []


def _number(entry: dict[str, Any], tree: dict[str, Any]) -> Published:
    size, source = entry.get("resolution"), tree["sources"][entry["source"]]
    sides: list[Any] = size if isinstance(size, list) else [size]
    return Published(
        method=tree["method"], model=str(entry.get("model", tree["method"])), metric=str(entry["metric"]),
        value=float(entry["value"]), pm=None if "pm" not in entry else float(entry["pm"]),
        better=str(entry.get("better", "lower")), dataset=str(entry["dataset"]),
        resolution=None if size is None else (sides[0], sides[-1]), steps=entry.get("steps"), sparsity=entry.get("sparsity"),
        protocol=str(tree["protocols"][entry["protocol"]]), source=str(source["cite"]), source_kind=str(source["kind"]),
        table=str(entry.get("table", "")), note=str(entry.get("note", "")))


def published_rows(numbers: Iterable[Published]) -> list[tuple[str, ...]]:
    """Heading and one row of text per number, for `hibench list published` and reports."""
    rows: list[tuple[str, ...]] = [("METHOD", "MODEL", "METRIC", "VALUE", "DATASET", "RESOLUTION", "STEPS", "PROTOCOL",
                                    "SOURCE")]
    arrow = {"lower": " ↓", "higher": " ↑", "none": ""}
    for one in numbers:
        size = "—" if one.resolution is None else "x".join(map(str, one.resolution))
        value = f"{one.value:g}" + (f" ± {one.pm:g}" if one.pm is not None else "")
        model = one.model + (f", s = {one.sparsity:g}" if one.sparsity is not None else "")
        where = one.source + (f", {one.table}" if one.table else "")
        where += (" (secondary)" if one.source_kind == "secondary" else "") + (f"; {one.note}" if one.note else "")
        rows.append((one.method, model, one.metric + arrow[one.better], value, one.dataset, size,
                     "—" if one.steps is None else str(one.steps), one.protocol, where))
    return rows


def as_json(numbers: Iterable[Published]) -> list[dict[str, Any]]:
    """The numbers as plain JSON objects."""
    return [asdict(one) for one in numbers]
