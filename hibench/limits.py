"""How far the numbers of a cell may move: rules in order, of which the last that fits holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any, NamedTuple

from hibench.sides import wanted
from hibench.spec import Check, Tolerance

__all__ = ["EVERYWHERE", "Limits", "Rule", "everywhere", "from_json", "of_check", "to_json"]

EVERYWHERE = "*"


class Rule(NamedTuple):
    """The tolerance of a number in the cells that `where` means: a method, a kind, or a glob over keys."""

    where: str
    name: str
    tolerance: Tolerance


class Limits:
    """Rules by the name of their number; a number without a rule is shown only."""

    def __init__(self, *layers: Iterable[Rule]) -> None:
        """`layers`: each goes over those before it."""
        self._by_name: dict[str, list[Rule]] = {}
        for rule in chain(*layers):
            self._by_name.setdefault(rule.name, []).append(rule)

    def of(self, key: str, name: str) -> Tolerance | None:
        """The tolerance of a number of the cell `key`; None = there is none."""
        for where, _, tolerance in reversed(self._by_name.get(name, ())):
            if where == EVERYWHERE or wanted(key, (where,)):
                return tolerance
        return None


def to_json(rules: Iterable[Rule]) -> list[list[Any]]:
    """[where, name, value, relative] of every rule, in order."""
    return [[where, name, tolerance.value, tolerance.relative] for where, name, tolerance in rules]


def from_json(data: Any) -> list[Rule]:
    """What `to_json` made; ValueError, TypeError or KeyError for anything else."""
    return [Rule(str(where), str(name), Tolerance(float(value), bool(relative))) for where, name, value, relative in data]


def everywhere(tolerances: Mapping[str, Tolerance]) -> list[Rule]:
    """Tolerances that hold in every cell, as rules."""
    return [Rule(EVERYWHERE, name, tolerance) for name, tolerance in tolerances.items()]


def of_check(check: Check) -> list[Rule]:
    """The rules of a benchmark file: `check.tolerance`, and `check.cells` over it."""
    return [*everywhere(check.tolerance), *(Rule(where, name, tolerance) for where, named in check.cells.items()
                                            for name, tolerance in named.items())]
