"""YAML as a graph of nodes that know where they stand, and a collector of everything that is wrong with them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from hibench.errors import SpecError, did_you_mean

__all__ = ["LIMIT_BYTES", "SET", "Document", "describe", "parse_value", "suggest"]

LIMIT_BYTES = 256 * 1024          # a spec is written by people; the default one has 4 kB
MAX_SHOWN = 40                    # problems printed; the rest is counted
MAX_PLAIN_NODES = 10_000          # nodes below one `options`, aliases counted each time they are used
MAX_DEPTH = 20
SET = "--set"                     # where the problems of command-line overrides are said to be
LINE_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")
VARIABLE = re.compile(r"\$\{([^}]*)\}")
DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9_]*)")
TAG = "tag:yaml.org,2002:"
T = TypeVar("T")
Entry = tuple[ScalarNode, Node]   # a key and its value


@dataclass(frozen=True, order=True)
class Problem:
    """One thing that is wrong: in which source, where (from 0; -1: the source as a whole), and what."""

    source: int
    line: int
    column: int
    text: str


class Document:
    """A YAML file plus `path=value` overrides, as nodes; readers return None for what is wrong and note the problem.

    >>> doc = Document.read(Path("benchmarks.yaml"))
    >>> images = doc.integer(node, "timing.images", 1, 1000)
    >>> doc.finish()                      # raises SpecError with every problem, if there is one
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.root: Node | None = None
        self.problems: dict[Problem, None] = {}          # a set in order: an alias is read as often as it is used
        self.sources: dict[str, tuple[int, str, list[str]]] = {}      # mark name -> order, shown name, lines

    # -- reading ---------------------------------------------------------------------------------------------------

    @classmethod
    def read(cls, path: Path) -> Document:
        """Read a file of at most `LIMIT_BYTES` bytes of UTF-8; raises SpecError when no nodes can be made of it."""
        doc = cls(str(path))
        doc.root = doc._compose(doc.name, doc.name, doc._decode(_read_bytes(path)))
        doc.finish()
        return doc

    def _decode(self, data: bytes) -> str:
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            before = data[:error.start].decode("utf-8", "replace")
            shown = data.decode("utf-8", "replace")
            self.sources[self.name] = (0, self.name, LINE_BREAK.split(shown))
            line, column = _position(before, len(before))
            self._note(self.name, line, column, f"byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8")
            raise self._error() from None

    def _compose(self, mark: str, shown: str, text: str, lines: str | None = None) -> Node | None:
        """The root node of `text`; syntax errors become problems."""
        self.sources[mark] = (len(self.sources), shown, LINE_BREAK.split(text if lines is None else lines))
        try:
            loader = yaml.SafeLoader(text)
            loader.name = mark
            node: Node | None = loader.get_single_node()
            return node
        except yaml.reader.ReaderError as error:
            line, column = _position(text, error.position)
            self._note(mark, line, column, f"the character U+{ord(text[error.position]):04X} is not allowed in YAML; remove it")
        except yaml.MarkedYAMLError as error:
            at = error.problem_mark or error.context_mark
            line, column = (at.line, at.column) if at else (-1, 0)
            self._note(mark, line, column, self._explain_syntax(mark, line, error))
        except RecursionError:
            self._note(mark, -1, 0, "nested too deeply for a benchmark file")
        except ValueError as error:                 # PyYAML on e.g. a %YAML directive it cannot read
            self._note(mark, -1, 0, f"not valid YAML: {error}")
        return None

    def _explain_syntax(self, mark: str, line: int, error: yaml.MarkedYAMLError) -> str:
        lines = self.sources[mark][2]
        source = lines[line] if 0 <= line < len(lines) else ""
        problem = " ".join(str(error.problem or error.context).split())
        start = error.context_mark
        if problem.startswith("but "):
            problem = f"{error.context}, {problem}"
        elif error.context and start and start.line != line:
            problem += f" ({error.context} that begins in line {start.line + 1})"
        if "\t" in source[: len(source) - len(source.lstrip())] or "'\\t'" in problem:
            return "a tab cannot indent YAML; use spaces"
        hint = '; put "${…}" in quotes inside { } and [ ]' if "${" in source else ""
        return f"not valid YAML: {problem}{hint}"

    # -- problems --------------------------------------------------------------------------------------------------

    def _note(self, mark: str, line: int, column: int, text: str) -> None:
        self.problems[Problem(self.sources[mark][0], line, column, text)] = None

    def add(self, node: Node, path: str, text: str) -> None:
        """Note that `text` is wrong with `path`, at the position of `node`."""
        mark = node.start_mark
        self._note(mark.name, mark.line, mark.column, f"{path}: {text}" if path else text)

    def add_file(self, text: str) -> None:
        """Note that `text` is wrong with the file as a whole."""
        self._note(self.name, -1, 0, text)

    def failed(self, text: str) -> SpecError:
        """The error to raise when reading cannot go on because of what is wrong with the file as a whole."""
        self.add_file(text)
        return self._error()

    def finish(self) -> None:
        """Raise SpecError with every problem so far, in the order of the file; do nothing when there is none."""
        if self.problems:
            raise self._error()

    def _error(self) -> SpecError:
        count = len(self.problems)
        blocks = [self._render(problem) for problem in sorted(self.problems)[:MAX_SHOWN]]
        if count > MAX_SHOWN:
            blocks.append(f"... and {count - MAX_SHOWN} more")
        blocks.append(f"{count} problem{'s' * (count > 1)} in {self.name}; nothing was run")
        return SpecError("\n".join(blocks))

    def _render(self, problem: Problem) -> str:
        shown, lines = next((shown, lines) for order, shown, lines in self.sources.values() if order == problem.source)
        if problem.line < 0:
            return f"{shown}: {problem.text}"
        where = shown if shown == SET else f"{shown}:{problem.line + 1}:{problem.column + 1}"
        source = lines[problem.line] if problem.line < len(lines) else ""
        start = max(0, problem.column - 60) if len(source) > 120 else 0      # a window of very long lines
        excerpt = re.sub(r"[^\x20-\U0010ffff]|\x7f", " ", source[start:start + 120]).rstrip()
        return f"{where}: {problem.text}\n    {excerpt}\n    {' ' * (problem.column - start)}^"

    # -- overrides and variables -----------------------------------------------------------------------------------

    def override(self, assignment: str) -> None:
        """Replace one value by `path=value`, e.g. `timing.images=3`; mappings on the way are made where missing."""
        mark = f"{SET} {len(self.sources)}"
        path, equals, value = assignment.partition("=")
        if not equals or not all(path.strip().split(".")):
            self.sources[mark] = (len(self.sources), SET, [assignment])
            self._note(mark, 0, 0, f"'{assignment}' is not of the form path=value, e.g. timing.images=3")
            return
        before = len(self.problems)
        node = self._compose(mark, SET, " " * (len(path) + 1) + value, assignment)
        if node is None and len(self.problems) > before:
            return
        if node is None:
            node = _scalar(mark, len(path) + 1, "", TAG + "null")
        self.root = self._graft(self.root, path.strip().split("."), node, mark, path.strip())

    def _graft(self, at: Node | None, parts: list[str], value: Node, mark: str, path: str) -> Node:
        """A copy of `at` in which the entry named by `parts` is `value`; other users of an alias keep the old one."""
        if not parts:
            return value
        if at is not None and not isinstance(at, MappingNode) and not (isinstance(at, ScalarNode) and at.tag == TAG + "null"):
            self._note(mark, 0, 0, f"{path}: leads through {describe(at)}; set that as a whole")
            return at
        entries = list(at.value) if isinstance(at, MappingNode) else []
        keys = [key.value for key, _ in entries]
        for length in range(len(parts), 0, -1):      # a name may hold dots: the longest that is there wins
            if ".".join(parts[:length]) in keys:
                index = keys.index(".".join(parts[:length]))
                below = self._graft(entries[index][1], parts[length:], value, mark, path)
                entries[index] = (_scalar(mark, 0, keys[index]), below)
                break
        else:
            entries.append((_scalar(mark, 0, parts[0]), self._graft(None, parts[1:], value, mark, path)))
        old = at if at is not None else value
        return MappingNode(TAG + "map", entries, old.start_mark, old.end_mark)

    def expand_variables(self, environment: dict[str, str] | None = None) -> None:
        """Put the environment's values for `${NAME}` into every text; an unset variable is a problem."""
        values = dict(os.environ) if environment is None else environment
        seen: set[int] = set()
        stack: list[tuple[Node, str]] = [(self.root, "")] if self.root is not None else []
        while stack:
            node, path = stack.pop()
            if id(node) in seen:
                continue
            seen.add(id(node))
            if isinstance(node, MappingNode):
                stack += [(value, _join(path, str(key.value))) for key, value in node.value]
            elif isinstance(node, SequenceNode):
                stack += [(value, f"{path}[{index}]") for index, value in enumerate(node.value)]
            elif isinstance(node, ScalarNode) and "${" in node.value:
                self._expand(node, path, values)

    def _expand(self, node: ScalarNode, path: str, values: dict[str, str]) -> None:
        for name in VARIABLE.findall(node.value):
            if name not in values:
                known = did_you_mean(name, values) or f"; export {name}=…" if re.fullmatch(r"[A-Za-z_]\w*", name) else ""
                self.add(node, path, f"the environment variable {name or '(no name)'} is not set{known}")
        node.value = VARIABLE.sub(lambda match: values.get(match[1], match[0]), node.value)
        if node.style is None:                       # unquoted: ${N} may be a number
            node.tag = yaml.resolver.Resolver().resolve(ScalarNode, node.value, (True, False))  # type: ignore[no-untyped-call]

    # -- readers: each returns None and notes a problem when the node is not what is wanted --------------------------

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
                self.add(key, _join(path, name), f"is there twice, first in line {first.line + 1}; remove one")
            elif allowed is not None and name not in allowed:
                self.add(key, _join(path, name), f"unknown key{suggest(name, allowed)}")
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
                return {name: convert(value, _join(path, name), depth + 1)
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
    doc = Document(name)
    node = doc._compose(name, name, text)
    value = None if node is None else doc.plain(node, "")
    if doc.problems:
        raise SpecError(f"{name}: {min(doc.problems).text}")
    return value


# -- helpers -------------------------------------------------------------------------------------------------------


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


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _depth(value: Any) -> int:
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max((_depth(child) for child in value), default=0) if isinstance(value, list) else 0


def _scalar(mark: str, column: int, value: str, tag: str = TAG + "str") -> ScalarNode:
    at = yaml.Mark(mark, 0, 0, column, None, 0)
    return ScalarNode(tag, value, at, at)


def _position(text: str, index: int) -> tuple[int, int]:
    """Line and column, both from 0, of the character at `index`."""
    lines = LINE_BREAK.split(text[:index])
    return len(lines) - 1, len(lines[-1])


def _read_bytes(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(LIMIT_BYTES + 1)
    except FileNotFoundError:
        near = sorted(str(p) for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        other = did_you_mean(str(path), near) or (f"; there is {', '.join(near[:5])}" if near else "")
        raise SpecError(f"{path}: no such file{other}") from None
    except IsADirectoryError:
        raise SpecError(f"{path}: is a directory; name the benchmark file, e.g. {path / 'benchmarks.yaml'}") from None
    except (OSError, ValueError) as error:
        raise SpecError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > LIMIT_BYTES:
        raise SpecError(f"{path}: is larger than {LIMIT_BYTES // 1024} kB, which no benchmark file is; is it the right file?")
    return data
