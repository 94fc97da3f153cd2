"""`hibench test METHOD`: does an adapter keep the contract? One finding per point; also importable by a third party's tests."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from hibench.contract import NotApplicable, Suite
from hibench.errors import EXIT_FAILED, EXIT_OK, EXIT_REGRESSION, HibenchError, MissingWeights
from hibench.golden import run_golden
from hibench.job import one_line, resolve_device

__all__ = ["Finding", "check_adapter", "run_conformance", "run_golden"]


@dataclass(frozen=True)
class Finding:
    """One point of the contract: kept (True), broken (False), or not applicable (None), with a sentence."""

    name: str
    ok: bool | None
    text: str

    def __str__(self) -> str:
        word = {True: "ok  ", False: "FAIL", None: "--  "}[self.ok]
        return f"{word}  {self.name:<14}  {self.text}"


def run_conformance(method: str, *, device: str = "auto", as_json: bool = False, weights: str = "reference",
                    options: dict[str, Any] | None = None, write: Callable[[str], None] = print) -> int:
    """Check one method, write one line per point, and return 0, 1 (a point is broken) or 3 (it could not be checked).

    Raises UnknownMethod, and AdapterError when its module cannot be imported."""
    from hibench.registry import load_adapter

    adapter = load_adapter(method)
    try:
        findings = check_adapter(adapter, device=device, weights=weights, options=options)
    except MissingWeights as error:
        write(json.dumps({"method": method, "missing": str(error)}) if as_json else f"missing  {error}")
        return EXIT_FAILED
    failed = sum(finding.ok is False for finding in findings)
    if as_json:
        write(json.dumps({"method": method, "failed": failed, "findings": [asdict(finding) for finding in findings]}, indent=1))
    else:
        for finding in findings:
            write(str(finding))
        held = sum(finding.ok is True for finding in findings)
        write(f"{method}: {held} points hold, {failed} broken, {len(findings) - held - failed} not applicable")
    return EXIT_REGRESSION if failed else EXIT_OK


def check_adapter(factory: Callable[..., Any], *, device: str = "cpu", weights: str = "reference",
                  options: dict[str, Any] | None = None, dtype: str = "float32") -> list[Finding]:
    """All findings about the adapter that `factory(weights=, options=, device=, dtype=)` makes.

    Raises MissingWeights when there are none to check it with; whatever else goes wrong is a finding."""
    device = resolve_device(device)
    findings: list[Finding] = []
    try:
        adapter = factory(weights=weights, options=dict(options or {}), device=device, dtype=dtype)
        suite = Suite(adapter, device)
        adapter.load()
    except MissingWeights:
        raise
    except Exception as error:
        return [_broken("open", error)]
    for name, check in suite.checks():
        try:
            findings.append(Finding(name, True, check()))
        except NotApplicable as reason:
            findings.append(Finding(name, None, str(reason)))
        except Exception as error:
            findings.append(_broken(name, error))
    try:
        adapter.close()
    except Exception as error:
        findings.append(_broken("close", error))
    return findings


def _broken(name: str, error: Exception) -> Finding:
    if not isinstance(error, HibenchError):
        traceback.print_exc()
    return Finding(name, False, one_line(error))
