"""YAML as a graph of nodes that know where they stand, `path=value` overrides, and a collector of problems."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from hibench.errors import SpecError, did_you_mean

__all__ = ["LIMIT_BYTES", "SET", "TAG", "Document", "join"]

LIMIT_BYTES = 256 * 1024          # a spec is written by people; the default one has 4 kB
MAX_SHOWN = 40                    # problems printed; the rest is counted
SET = "--set"                     # where the problems of command-line overrides are said to be
LINE_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")
VARIABLE = re.compile(r"\$\{([^}]*)\}")
TAG = "tag:yaml.org,2002:"
D = TypeVar("D", bound="Document")


@dataclass(frozen=True, order=True)
class Problem:
    """One thing that is wrong: in which source, where (from 0; -1: the source as a whole), and what."""

    source: int
    line: int
    column: int
    text: str


class Document:
    """A YAML file plus `path=value` overrides, as nodes, and everything that is wrong with them.

    >>> doc = Document.read(Path("benchmarks.yaml"))
    >>> doc.override("timing.images=3")
    >>> doc.finish()                      # raises SpecError with every problem, if there is one
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.root: Node | None = None
        self.problems: dict[Problem, None] = {}          # a set in order: an alias is read as often as it is used
        self.sources: dict[str, tuple[int, str, list[str]]] = {}      # mark name -> order, shown name, lines

    # -- reading ---------------------------------------------------------------------------------------------------

    @classmethod
    def read(cls: type[D], path: Path) -> D:
        """Read a file of at most `LIMIT_BYTES` bytes of UTF-8; raises SpecError when no nodes can be made of it."""
        doc = cls(str(path))
        doc.root = doc.compose(doc.name, doc.name, doc._decode(_read_bytes(path)))
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

    def compose(self, mark: str, shown: str, text: str, lines: str | None = None) -> Node | None:
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
        node = self.compose(mark, SET, " " * (len(path) + 1) + value, assignment)
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
            found = f"'{at.value}'" if isinstance(at, ScalarNode) else "a list"
            self._note(mark, 0, 0, f"{path}: leads through {found}; set that as a whole")
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
                stack += [(value, join(path, str(key.value))) for key, value in node.value]
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


def join(path: str, name: str) -> str:
    """The path of an entry."""
    return f"{path}.{name}" if path else name


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
