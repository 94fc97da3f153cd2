"""Values out of nodes: readers that return None for what is wrong and note it, and YAML's traps in words."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from hibench.errors import SpecError, did_you_mean
from hibench.nodes import TAG, Document, join

__all__ = ["Reader", "describe", "parse_value", "suggest"]

MAX_PLAIN_NODES = 10_000          # nodes below one `options`, aliases counted each time they are used
MAX_DEPTH = 20
DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9_]*)")
T = TypeVar("T")
Entry = tuple[ScalarNode, Node]   # a key and its value


class Reader(Document):
    """A document with readers for its nodes: each returns None and notes a problem when the node is not what is wanted.

    >>> images = reader.integer(node, "timing.images", 1, 1000)
    """

    def mapping(self, node: Node, path: str, known: Iterable[str] | None = None) -> dict[str, Entry]:
        """The entries of a mapping by key, without unknown (`known`: None = any name is good), duplicate and odd keys."""
        if not isinstance(node, MappingNode) or node.tag != TAG + "map":
            self.add(node, path or "the file", f"must be a mapping of keys to values, not {describe(node)}")
            return {}
        allowed = None if known is None else tuple(known)
        entries: dict[str, Entry] = {}
        for key, value in node.value:
            name = self._key(key, path)
            if name is None:
                continue
            if name in entries:
                first = entries[name][0].start_mark
                self.add(key, join(path, name), f"is there twice, first in line {first.line + 1}; remove one")
            elif allowed is not None and name not in allowed:
                self.add(key, join(path, name), f"unknown key{suggest(name, allowed)}")
            else:
                entries[name] = (key, value)
        return entries

    def _key(self, key: Node, path: str) -> str | None:
        if isinstance(key, ScalarNode) and key.tag == TAG + "str":
            return str(key.value)
        if isinstance(key, ScalarNode) and key.tag == TAG + "merge":
            self.add(key, path, "merge keys ('<<') are not used here; write the keys out")
        else:
            fix = f'; quote it: "{key.value}"' if isinstance(key, ScalarNode) else ""
            self.add(key, path, f"a key must be a text, not {describe(key)}{fix}")
        return None

    def listing(self, node: Node, path: str, item: Callable[[Node, str], T | None], *, empty: str = "") -> list[T]:
        """The items of a list that are good; an empty list is a problem (`empty`: what to say then), so are repetitions."""
        if not isinstance(node, SequenceNode) or node.tag != TAG + "seq":
            fix = f"; write [{node.value}]" if isinstance(node, ScalarNode) and node.value else ""
            self.add(node, path, f"must be a list, not {describe(node)}{fix}")
            return []
        if not node.value:
            self.add(node, path, empty or "is empty; remove it or give a value")
        good: list[T] = []
        for index, child in enumerate(node.value):
            value = item(child, f"{path}[{index}]")
            if value is not None and value in good:
                shown = child.value if isinstance(child, ScalarNode) else list(value) if isinstance(value, tuple) else value
                self.add(child, f"{path}[{index}]", f"{shown} is in the list already")
            elif value is not None:
                good.append(value)
        return good

    def text(self, node: Node, path: str) -> str | None:
        """A text that is not empty."""
        if isinstance(node, ScalarNode) and node.tag == TAG + "str":
            if node.value.strip():
                return str(node.value)
            self.add(node, path, "must not be empty")
            return None
        fix = f'; quote it: "{node.value}"' if isinstance(node, ScalarNode) and node.tag != TAG + "null" else ""
        self.add(node, path, f"must be a text, not {describe(node)}{fix}")
        return None

    def choice(self, node: Node, path: str, known: Sequence[str], what: str) -> str | None:
        """One of `known`; `what` names the kind of thing, e.g. "metric"."""
        value = self.text(node, path)
        if value is None or value in known:
            return value
        self.add(node, path, f"unknown {what} '{value}'{suggest(value, known)}")
        return None

    def integer(self, node: Node, path: str, low: int, high: int) -> int | None:
        """A decimal integer from `low` to `high`."""
        if not (isinstance(node, ScalarNode) and node.tag == TAG + "int" and DECIMAL.fullmatch(node.value)):
            self.add(node, path, f"must be an integer, not {describe(node)}{_unquote(node)}")
            return None
        digits = node.value.replace("_", "")
        if len(digits) > 20 or not low <= int(digits) <= high:
            self.add(node, path, f"{_short(node.value)} is out of range: from {low} to {high}")
            return None
        return int(digits)

    def number(self, node: Node, path: str, low: float, high: float, *, below: bool = False) -> float | None:
        """A finite number from `low` to `high` (`below`: high itself is too much)."""
        value = _float(node)
        if value is None:
            self.add(node, path, f"must be a number, not {describe(node)}{_unquote(node)}")
        elif not (low <= value < high if below else low <= value <= high):
            bound = f"{high:g} excluded" if below else f"{high:g}"
            self.add(node, path, f"{_short(node.value)} is out of range: from {low:g} to {bound}")
        else:
            return value
        return None

    def has(self, node: Node, key: str) -> bool:
        """Whether `node` is a mapping with this key, or with one that is reported as a misspelling of it."""
        names = [str(name.value) for name, _ in node.value] if isinstance(node, MappingNode) else []
        return any(name == key or did_you_mean(name, [key]) for name in names)

    def boolean(self, node: Node, path: str) -> bool | None:
        """true or false; YAML's yes, no, on and off mean the same here."""
        if isinstance(node, ScalarNode) and node.tag == TAG + "bool":
            return node.value.lower() in ("yes", "true", "on")
        self.add(node, path, f"must be true or false, not {describe(node)}")
        return None

    def plain(self, node: Node, path: str) -> Any:
        """Any YAML as Python values (str, int, float, bool, None, list, dict), for what only a method understands."""
        budget = [MAX_PLAIN_NODES]

        def convert(node: Node, path: str, depth: int) -> Any:
            budget[0] -= 1
            if budget[0] < 0 or depth > MAX_DEPTH:
                return None
            if isinstance(node, SequenceNode) and node.tag == TAG + "seq":
                return [convert(child, f"{path}[{i}]", depth + 1) for i, child in enumerate(node.value) if budget[0] > 0]
            if isinstance(node, MappingNode) and node.tag == TAG + "map":
                return {name: convert(value, join(path, name), depth + 1)
                        for name, (_, value) in self.mapping(node, path).items() if budget[0] > 0}
            return self._plain_scalar(node, path)

        value = convert(node, path, 0)
        if budget[0] <= 0 or _depth(value) > MAX_DEPTH:
            self.add(node, path, f"is too large: more than {MAX_PLAIN_NODES} values or {MAX_DEPTH} levels (aliases count too)")
        return value

    def _plain_scalar(self, node: Node, path: str) -> Any:
        kind = node.tag.removeprefix(TAG) if isinstance(node, ScalarNode) else ""
        if kind == "null":
            return None
        if kind == "bool" and node.value.lower() in ("true", "false"):
            return node.value.lower() == "true"
        if kind == "int" and DECIMAL.fullmatch(node.value):
            return self.integer(node, path, -(2**63), 2**63 - 1)
        value = _float(node)
        if value is not None:
            return value
        if kind == "str":
            return str(node.value)
        self.add(node, path, describe(node) + "; quote it if a text is meant" * isinstance(node, ScalarNode))
        return None


def parse_value(text: str, name: str) -> Any:
    """One YAML value given on the command line as Python values; SpecError says what is wrong with it under `name`."""
    doc = Reader(name)
    node = doc.compose(name, name, text)
    value = None if node is None else doc.plain(node, "")
    if doc.problems:
        raise SpecError(f"{name}: {min(doc.problems).text}")
    return value


def describe(node: Node) -> str:
    """What YAML makes of a node, in words, with its traps explained: `the boolean 'yes'`, `10:30, which YAML reads …`."""
    if not isinstance(node, ScalarNode):
        words, tag = ("a mapping", "map") if isinstance(node, MappingNode) else ("a list", "seq")
        return words if node.tag == TAG + tag else f"{words} with the tag {_short(node.tag)}"
    kind, value = node.tag.removeprefix(TAG), _short(node.value)
    if kind == "null":
        return "nothing"
    if kind == "bool":
        same = "true" if node.value.lower() in ("yes", "true", "on") else "false"
        return f"the boolean {value}" if value.lower() == same else f"'{value}', which YAML 1.1 reads as the boolean {same}"
    if kind in ("int", "float"):
        return _describe_number(node, kind, value)
    if kind == "timestamp":
        return f"{value}, which YAML reads as a date"
    return f"the text '{value}'" if kind == "str" else f"a value with the tag {_short(node.tag)}"


def _describe_number(node: ScalarNode, kind: str, value: str) -> str:
    digits = node.value.replace("_", "").lstrip("+-")
    if ":" in digits:
        total = 0.0
        for part in digits.split(":"):
            total = total * 60 + float(part)
        return f"{value}, which YAML 1.1 reads as the base-60 number {total:g}; write {total:g}"
    if kind == "int" and re.fullmatch(r"0[0-7]+", digits):
        return f"{value}, which YAML 1.1 reads as the octal number {int(digits, 8)}; write {digits.lstrip('0') or 0}"
    if re.fullmatch(r"0[xb][0-9a-fA-F]{1,16}", digits):
        return f"{value}, which YAML 1.1 reads as {int(digits, 0)}; write {int(digits, 0)}"
    return f"{value}, which is not finite" if digits.lower() in (".inf", ".nan") else f"the number {value}"


def suggest(word: str, known: Sequence[str]) -> str:
    """`; did you mean 'x'?`, or the known words when none is close and they are few."""
    return did_you_mean(word, known) or (f" (known: {', '.join(known)})" if 0 < len(known) <= 12 else "")


def _float(node: Node) -> float | None:
    """The finite decimal number that a node holds, also in the forms that YAML 1.1 takes for a text (1e-3)."""
    if not isinstance(node, ScalarNode) or (node.style is not None and node.tag == TAG + "str"):
        return None
    if not re.fullmatch(r"[-+]?(0|[1-9][0-9_]*|(?=\.[0-9]))(\.[0-9_]*)?([eE][-+]?[0-9]{1,3})?", node.value):
        return None
    value = float(node.value.replace("_", ""))
    return value if abs(value) != float("inf") else None


def _unquote(node: Node) -> str:
    numeric = isinstance(node, ScalarNode) and node.style in ("'", '"') and re.fullmatch(r"[-+]?[0-9.]+", node.value)
    return "; remove the quotes" if numeric else ""


def _short(value: str) -> str:
    value = " ".join(value.split())
    return value if len(value) <= 40 else value[:37] + "..."


def _depth(value: Any) -> int:
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max((_depth(child) for child in value), default=0) if isinstance(value, list) else 0
