"""`hibench list`: what there is, and why something is not available here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hibench.adapter import Adapter
from hibench.cells import Cell, Plan, canonical, expand
from hibench.errors import HibenchError
from hibench.job import one_line
from hibench.reconstruct import no_first_stage
from hibench.spec import Spec

__all__ = ["NEEDS_SPEC", "WHAT", "json_text", "rows_of", "table"]

WHAT = ("methods", "metrics", "extractors", "weights", "references", "sweeps", "cells", "published")
NEEDS_SPEC = ("references", "sweeps", "cells")
Rows = list[tuple[str, ...]]


def rows_of(what: str, spec: Spec | None = None, only: Sequence[str] = ()) -> Rows:
    """The table of one of `WHAT`, its first row being the heading; `spec` is needed for `NEEDS_SPEC`."""
    if what == "methods":
        return _methods() + ([] if spec is None else _weights_of(spec))
    if what == "metrics":
        return _metrics()
    if what in ("extractors", "weights"):
        return _described(what)
    if what == "published":
        from hibench.published import load_published, published_rows

        return published_rows(load_published())
    assert spec is not None
    if what == "references":
        return _references(spec)
    return _sweeps(spec) if what == "sweeps" else _cells(spec, expand(spec, only))


def table(rows: Iterable[tuple[str, ...]]) -> str:
    """Rows as aligned columns; the last column is not padded."""
    rows = list(rows)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def json_text(what: str, rows: Rows) -> str:
    """The same as JSON: one object per row with the headings as keys; published numbers as numbers, with all their fields."""
    if what == "published":
        from hibench.published import as_json, load_published

        return json.dumps(as_json(load_published()), indent=1, ensure_ascii=False)
    heading, *rest = rows
    return json.dumps([dict(zip((name.lower() for name in heading), row)) for row in rest], indent=1, ensure_ascii=False)


def _methods() -> Rows:
    """Every installed method with the licence of its reference weights; each is imported to see whether it can be."""
    from hibench.hub import UNKNOWN_LICENCE
    from hibench.registry import load_adapter, method_names

    rows: Rows = [("METHOD", "AXES", "LICENCE", "AVAILABLE")]
    for name in method_names():
        try:
            cls = load_adapter(name)
            rows.append((name, ", ".join(sorted(cls.axes)), str(getattr(cls, "licence", UNKNOWN_LICENCE)), "yes"))
        except HibenchError as error:
            rows.append((name, "", "", f"no: {error}"))
    return rows


def _weights_of(spec: Spec) -> Rows:
    """The methods of a spec that run weights of others, with the licence of those."""
    from hibench import hub
    from hibench.registry import load_adapter

    rows: Rows = []
    for name, method in spec.methods.items():
        if method.weights in ("reference", "random"):
            continue
        try:
            axes, state = ", ".join(sorted(load_adapter(method.adapter).axes)), "yes"
            if hub.is_hub_id(method.weights):
                hub.find(method.weights, method.options.get("variant"))
            elif not Path(method.weights).expanduser().exists():
                state = f"no: there is no {method.weights}"
        except HibenchError as error:
            axes, state = "", f"no: {error}"
        rows.append((name, axes, hub.licence(method.weights), state))
    return rows


def _metrics() -> Rows:
    from hibench.features import DEFAULT_EXTRACTOR, describe
    from hibench.metrics.plan import FAMILY

    missing = {row["name"]: row["next"] for row in describe() if not row["available"]}
    rows: Rows = [("METRIC", "BETTER", "AVAILABLE", "ABOUT")]
    for name, family in FAMILY.items():
        network = family.extractor or (DEFAULT_EXTRACTOR if family.source == "features" else "")
        step = missing.get(network)
        rows.append((name, family.better, "yes" if step is None else f"no: {step}", family.about))
    return rows


def _described(what: str) -> Rows:
    from hibench import features, weights

    found: list[dict[str, Any]] = features.describe() if what == "extractors" else weights.describe()
    rows: Rows = [(what.removesuffix("s").upper(), "AVAILABLE", "ABOUT")]
    return rows + [(row["name"], "yes" if row["available"] else f"no: {row['next']}", row["about"]) for row in found]


def _references(spec: Spec) -> Rows:
    from hibench.references import open_reference

    rows: Rows = [("REFERENCE", "KIND", "AVAILABLE", "WHERE")]
    for name, reference in spec.references.items():
        try:
            count = len(open_reference(reference.definition(), n=spec.quality.images))
            state = f"yes, {count} images"
        except HibenchError as error:
            state = f"no: {error}"
        rows.append((name, reference.kind, state, reference.path or f"built in, seed {reference.seed}"))
    return rows


def _sweeps(spec: Spec) -> Rows:
    rows: Rows = [("SWEEP", "RUNS", "CELLS", "METHODS", "AXES")]
    for name, sweep in spec.sweeps.items():
        axes = [f"resolution {', '.join(f'{h}x{w}' for h, w in sweep.resolution)}"]
        axes += [f"{axis} {', '.join(f'{value:g}' for value in values)}"
                 for axis, values in (("steps", sweep.steps), ("sparsity", sweep.sparsity)) if values]
        axes += [f"{option} {', '.join(map(str, values))}" for option, values in sweep.options.items()]
        runs, cells = "by default" if sweep.default else f"--only {name}", len(expand(spec, [name]))
        rows.append((name, runs, str(cells), ", ".join(sweep.methods), "; ".join(axes)))
    return rows


def _cells(spec: Spec, plan: Plan) -> Rows:
    """Every cell and whether its method takes it on."""
    found: dict[str, list[str]] = {}
    for sweep, keys in plan.sweeps.items():
        for key in keys:
            found.setdefault(key, []).append(sweep)
    alike: dict[str, list[Cell]] = {}                # what one adapter answers for
    for cell in plan:
        alike.setdefault(canonical([cell.adapter, cell.weights, cell.options, cell.dtype]), []).append(cell)
    states = {id(cell): state for cells in alike.values() for cell, state in zip(cells, _states(cells))}
    rows: Rows = [("CELL", "SWEEPS", "STATE")]
    return rows + [(key, ", ".join(found[key]), states[id(cell)]) for cell in plan for key in (cell.key,)]


def _states(cells: Sequence[Cell]) -> list[str]:
    """The state of each of some cells of one adapter, which is opened once; a method's own bug hides no other cell."""
    from hibench.registry import load_adapter

    first = cells[0]
    try:
        made = load_adapter(first.adapter)(first.weights, dict(first.options), "cpu", first.dtype)
        states = [_state(made, cell) for cell in cells]
        made.close()
    except Exception as error:
        return [f"fails: {one_line(error)}"] * len(cells)
    return states


def _state(made: Adapter, cell: Cell) -> str:
    try:
        reason = no_first_stage(made) if cell.settings.get("reconstruct") else made.supports(cell.axes)
    except Exception as error:
        return f"fails: {one_line(error)}"
    if reason is None and cell.weights == "random" and cell.kind == "quality":
        reason = "random weights have no quality"
    return "will run" if reason is None else f"skip: {reason}"
