"""Which figures there are: the `figures.yaml` beside every method, checked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hibench.errors import SpecError, did_you_mean
from hibench.published import published_files

__all__ = ["FILE", "KINDS", "Cell", "Figure", "Line", "figure_files", "load_figures", "read_figures"]

FILE = "figures.yaml"
KINDS = {"table": ("lines", "columns"), "plot": ("lines", "x", "y"), "strip": ("lines", "resolutions"),
         "zoom": ("lines", "resolution")}
COMMON = ("title", "after", "kind", "note", "x_title")
PLACE = ("resolution", "steps", "sparsity", "options")
AXES = ("resolution", "steps", "sparsity", "latency", "given")   # or options.NAME; given: every line says its own x


@dataclass(frozen=True)
class Cell:
    """A place of the axes: None = any; `options` maps an option to the values it may have (None = not given)."""

    resolution: tuple[int, int] | None = None
    steps: int | None = None
    sparsity: float | None = None
    options: tuple[tuple[str, tuple[Any, ...]], ...] = ()


@dataclass(frozen=True)
class Line:
    """A line of a table, a curve of a plot or a row of pictures: a method at a place, under a label."""

    label: str
    method: str
    at: Cell
    x: float | None = None                                # its place on an axis that is given


@dataclass(frozen=True)
class Column:
    """A column of a table: a metric by family, or a field of a speed record, at a place."""

    title: str
    metric: str
    at: Cell


@dataclass(frozen=True)
class Figure:
    """One figure; what it needs besides lines depends on its kind."""

    name: str
    kind: str                                             # a key of KINDS
    title: str
    after: str                                            # what in which paper it is laid out after
    note: str
    lines: tuple[Line, ...]
    columns: tuple[Column, ...] = ()
    x: str = ""                                           # plot: a name of AXES, or options.NAME
    x_title: str = ""                                     # plot: what stands at the axis; "" = its name
    y: str = ""                                           # plot: a metric or field
    resolutions: tuple[tuple[int, int], ...] = ()         # strip: its columns; zoom: the one that is shown


def figure_files() -> list[Path]:
    """The `figures.yaml` of every installed method."""
    return [path for folder in published_files() if (path := folder.parent / FILE).is_file()]


def load_figures(files: Iterable[Path] | None = None) -> dict[str, Figure]:
    """All figures by name (None: of all installed methods). Raises SpecError."""
    found: dict[str, Figure] = {}
    for path in figure_files() if files is None else files:
        for name, figure in read_figures(path).items():
            if name in found:
                raise SpecError(f"{path}: figure '{name}' is already in another file")
            found[name] = figure
    return found


def read_figures(path: Path) -> dict[str, Figure]:
    """Read one file: a mapping from name to figure. Raises SpecError with every problem, each with its figure."""
    import yaml

    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise SpecError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
    if not isinstance(tree, dict):
        raise SpecError(f"{path}: is no mapping from a name to a figure")
    problems: list[str] = []
    made = {}
    for name, entry in tree.items():
        wrong = _problems(entry)
        problems += [f"figure '{name}': {one}" for one in wrong]
        if not wrong:
            try:
                made[str(name)] = _figure(str(name), entry)
            except (KeyError, TypeError, ValueError) as error:
                problems.append(f"figure '{name}': {type(error).__name__}: {error}")
    if problems:
        raise SpecError("\n".join(f"{path}: {problem}" for problem in problems))
    return made


def _problems(entry: Any) -> list[str]:
    if not isinstance(entry, dict):
        return ["is no mapping"]
    if entry.get("kind") not in KINDS:
        return [f"'kind' must be one of {', '.join(KINDS)}, not {entry.get('kind')!r}"]
    needs = KINDS[entry["kind"]]
    known = (*COMMON, *needs)
    found = [f"unknown key '{key}'{did_you_mean(str(key), known)}" for key in entry if key not in known]
    found += [f"'{key}' is missing" for key in (*COMMON[:2], *needs) if key not in entry]
    if entry.get("x", "steps") not in AXES and not str(entry["x"]).startswith("options."):
        found.append(f"'x' must be one of {', '.join(AXES)} or options.NAME, not {entry['x']!r}")
    for part, wanted in (("lines", ("label", "method")), ("columns", ("metric",))):
        for at, one in enumerate(entry.get(part) or [], 1):
            known = (*wanted, *PLACE, "title" if part == "columns" else "x")
            needed = (*wanted, "x") if part == "lines" and entry.get("x") == "given" else wanted
            found += [f"{part} {at}: '{key}' is missing" for key in needed if key not in one]
            found += [f"{part} {at}: unknown key '{key}'{did_you_mean(str(key), known)}" for key in one if key not in known]
    return found


def _figure(name: str, entry: dict[str, Any]) -> Figure:
    sizes = [entry["resolution"]] if "resolution" in entry else entry.get("resolutions", ())
    return Figure(
        name=name, kind=entry["kind"], title=str(entry["title"]), after=str(entry["after"]), note=str(entry.get("note", "")),
        lines=tuple(Line(str(one["label"]), str(one["method"]), _cell(one), None if one.get("x") is None else float(one["x"]))
                    for one in entry["lines"]),
        columns=tuple(Column(str(one.get("title", "")), str(one["metric"]), _cell(one)) for one in entry.get("columns", ())),
        x=str(entry.get("x", "")), x_title=str(entry.get("x_title", "")),
        y=str(entry.get("y", "")), resolutions=tuple(_size(size) for size in sizes))


def _cell(one: dict[str, Any]) -> Cell:
    size, steps, sparsity = one.get("resolution"), one.get("steps"), one.get("sparsity")
    asked = (one.get("options") or {}).items()
    options = {name: tuple(value) if isinstance(value, list) else (value,) for name, value in asked}
    return Cell(None if size is None else _size(size), None if steps is None else int(steps),
                None if sparsity is None else float(sparsity), tuple(sorted(options.items())))


def _size(value: Any) -> tuple[int, int]:
    sides = value if isinstance(value, list) else [value]
    return int(sides[0]), int(sides[-1])
