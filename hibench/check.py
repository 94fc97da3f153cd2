"""`hibench check`: two results directories, a compare directory, or results against a committed baseline, to one verdict."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hibench.calibration import calibration
from hibench.errors import EXIT_OK, NoBaseline, SpecError, did_you_mean
from hibench.judge import DEFAULTS, INTERLEAVED, SESSIONS, STORED, check_sides
from hibench.limits import EVERYWHERE, Limits, Rule, from_json, of_check
from hibench.record_index import without_collector
from hibench.sides import Side, read_side, wanted
from hibench.spec import Tolerance
from hibench.verdicts import Report, write_outputs

__all__ = ["COMPARE_FILE", "COMPARE_SCHEMA", "check", "limits_of", "read_compare", "run_check"]

COMPARE_FILE = "compare.json"              # what `hibench compare` writes beside base/ and head/
COMPARE_SCHEMA = 2


@without_collector()
def run_check(first: Path, second: Path | None = None, *, baseline: Path | None = None, only: Sequence[str] = (),
              tolerance: Sequence[str] = (), strict: bool = False, as_json: bool = False, everything: bool = False,
              junit: Path | None = None, summary: Path | None = None, github: bool = False, history: Path | None = None,
              update_baseline: bool = False, reason: str = "") -> int:
    """Check, tell it in every way that was asked for, and return the exit code.

    0 ok · 1 something regressed · 3 something was lost, or nothing was measured · 4 unsure, under `strict`. With
    `update_baseline` the verdict is shown, the file `baseline` is written, and the code is 0.
    """
    if update_baseline:
        if baseline is None or second is not None:
            raise SpecError("--update-baseline needs one results directory and --baseline FILE")
        return _update(first, baseline, only, tolerance, reason)
    report, head = check(first, second, baseline=baseline, only=only, limits=limits_of(tolerance))
    if history is not None:
        from hibench.history import append

        append(history, head, report)
    print(write_outputs(report, junit_path=junit, summary_path=summary, github=github, as_json=as_json, everything=everything,
                        strict=strict))
    return report.exit_code(strict)


def check(first: Path, second: Path | None = None, *, baseline: Path | None = None, only: Sequence[str] = (),
          limits: Sequence[Rule] = ()) -> tuple[Report, Side]:
    """The report, and the head side that it is about.

    Two directories: base and head. One: a compare directory, or results that need a `baseline`; a compare directory with a
    `baseline` is checked both ways. `limits` go over those of the benchmark file. NoBaseline says what is missing.
    """
    said = read_compare(first if second is None else _parent(first, second))
    allowed = Limits(DEFAULTS, said["limits"] if said else (), _of_spec(first if second is None else second), limits)
    if second is not None or said is not None:
        base_dir, head_dir = (first, second) if second is not None else (first / "base", first / "head")
        labels = (said["base"], said["head"]) if said else (None, None)
        base, head = read_side(base_dir, only, labels[0]), read_side(head_dir, only, labels[1])
        report = check_sides(base, head, how=INTERLEAVED if said else SESSIONS, limits=allowed)
        if said and said["itself"]:
            report.notes += calibration(report, allowed)
        if said is None and any(record["kind"] == "speed" for record in head.records.values()):
            report.warnings.append("base and head were measured in two sessions, so only large changes of time can be judged; "
                                   "`hibench compare` measures them side by side")
        return (report if baseline is None else _merged(report, _against(head, baseline, only, allowed))), head
    if baseline is None:
        raise NoBaseline(f"{first}: nothing to compare with; give a second directory, --baseline FILE, or what "
                         "`hibench compare --out DIR` wrote")
    head = read_side(first, only)
    return _against(head, baseline, only, allowed), head


def read_compare(folder: Path | None) -> dict[str, Any] | None:
    """What `hibench compare` noted about a directory: base, head, whether both are the same code, limits; None = it is none of
    its directories."""
    if folder is None or not (folder / COMPARE_FILE).is_file():
        return None
    path = folder / COMPARE_FILE
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["schema"] != COMPARE_SCHEMA:
            raise NoBaseline(f"{path}: schema {data['schema']}, this hibench reads {COMPARE_SCHEMA}; compare again")
        return {"base": str(data["base"]["label"]), "head": str(data["head"]["label"]), "itself": data["itself"] is True,
                "limits": from_json(data["tolerance"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NoBaseline(f"{path}: cannot be read ({type(error).__name__}: {error}); compare again") from error


def limits_of(words: Sequence[str]) -> list[Rule]:
    """`latency=5%`, `drift=0.02`, `ldm:latency=8%` (in cells of a method, a kind or a glob); SpecError otherwise."""
    from hibench.metrics.plan import FAMILIES
    from hibench.spec_reader import TOLERANCES

    found = []
    for word in words:
        name, _, text = word.rpartition("=")
        where, _, name = name.rpartition(":")
        if name not in (*TOLERANCES, *FAMILIES):
            raise SpecError(f"--tolerance {word}: unknown number '{name}'{did_you_mean(name, (*TOLERANCES, *FAMILIES))}")
        try:
            value = float(text.strip().removesuffix("%")) / (100 if text.strip().endswith("%") else 1)
        except ValueError:
            value = -1.0
        if not 0 <= value < 1e12:
            raise SpecError(f"--tolerance {word}: write e.g. latency=5%, drift=0.02 or ldm:latency=8%")
        found.append(Rule(where or EVERYWHERE, name, Tolerance(value, text.strip().endswith("%"))))
    return found


def _parent(base: Path, head: Path) -> Path | None:
    """The compare directory, when the two are its base/ and head/."""
    same = base.resolve().parent == head.resolve().parent and (base.resolve().name, head.resolve().name) == ("base", "head")
    return base.resolve().parent if same else None


def _of_spec(results: Path) -> list[Rule]:
    """The limits of the benchmark file that the newest run used, if the file still says the same."""
    from hibench.spec import load_spec
    from hibench.store import Store

    manifest = Store(results).newest_manifest() or {}
    try:
        spec = load_spec(manifest["spec"])
    except (KeyError, SpecError):
        return []
    return of_check(spec.check)


def _against(head: Side, baseline: Path, only: Sequence[str], limits: Limits) -> Report:
    """Results against a baseline of the same device."""
    from hibench.baseline import read_baseline, same_device

    base, device = read_baseline(baseline, lambda key: wanted(key, only))
    measured = same_device(head)
    if measured != device:
        raise NoBaseline(f"{baseline} is of {device}, and {head.label} was measured on {measured}; choose the baseline of this "
                         "device, or write one by --update-baseline")
    return check_sides(base, head, how=STORED, limits=limits)


def _merged(side_by_side: Report, stored: Report) -> Report:
    """One report of both comparisons: what differs from the baseline is marked as such."""
    rows = [row._replace(metric=f"{row.metric} (baseline)") for row in stored.rows if row.gated]
    warnings = list(dict.fromkeys([*side_by_side.warnings, *stored.warnings]))
    return Report(f"{side_by_side.base}; {stored.base}", side_by_side.head, [*side_by_side.rows, *rows], warnings,
                  side_by_side.measured)


def _update(results: Path, baseline: Path, only: Sequence[str], tolerance: Sequence[str], reason: str) -> int:
    from hibench.baseline import write_baseline

    head = read_side(results, only)
    if baseline.is_file():
        try:
            allowed = Limits(DEFAULTS, _of_spec(results), limits_of(tolerance))
            print(write_outputs(_against(head, baseline, only, allowed), everything=True))
        except NoBaseline as error:
            print(f"the old baseline says nothing: {error}")
    print(write_baseline(baseline, head, reason))
    return EXIT_OK
