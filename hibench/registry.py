"""Finding methods: the entry-point group `hibench.methods`, or a class in a file; imported only when asked for."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from hibench.adapter import Adapter
from hibench.errors import AdapterError, ContractError, HibenchError, UnknownMethod, did_you_mean

__all__ = ["GROUP", "adapter_digest", "contract_problems", "load_adapter", "method_names", "why_unavailable"]

GROUP = "hibench.methods"
MEMBERS = ("supports", "load", "generate", "close")
GENERATE = ("resolution", "seed", "steps", "sparsity", "prompt", "stage")


def method_names() -> tuple[str, ...]:
    """The names of all installed methods, sorted; nothing of them is imported."""
    return tuple(sorted(_entry_points()))


def load_adapter(adapter: str) -> type[Adapter]:
    """The class behind an entry-point name or `file.py:Class`.

    Raises UnknownMethod (no such name, file or class), AdapterError (its import fails) or ContractError (not an adapter).
    """
    module, name = _import(adapter)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            classes = [key for key, value in vars(module).items() if inspect.isclass(value)]
            raise UnknownMethod(f"method '{adapter}': {_where(module)} has no class '{name}'{did_you_mean(name, classes)}")
        found = getattr(found, part)
    problems = contract_problems(found)
    if problems:
        raise ContractError(f"method '{adapter}': {_where(module)}:{name} is not an adapter: {'; '.join(problems)}")
    cls: type[Adapter] = found
    return cls


def contract_problems(cls: Any) -> list[str]:
    """What a class lacks to be an adapter, one sentence each; empty = it has every member."""
    if not inspect.isclass(cls):
        return [f"it is of type {type(cls).__name__}, not a class"]
    problems = []
    if not isinstance(getattr(cls, "name", None), str):
        problems.append("it lacks the class attribute 'name', a text")
    axes = getattr(cls, "axes", None)
    if not isinstance(axes, (frozenset, set)) or not all(isinstance(axis, str) for axis in axes):
        problems.append("it lacks the class attribute 'axes', e.g. frozenset({'resolution', 'steps'})")
    problems += [f"it lacks the method '{member}'" for member in MEMBERS if not callable(getattr(cls, member, None))]
    problems += _signature_problems(cls, "__init__", ("weights", "options", "device", "dtype"))
    if callable(getattr(cls, "generate", None)):
        problems += _signature_problems(cls, "generate", GENERATE)
    return problems


def why_unavailable(adapter: str) -> str | None:
    """None = the adapter can be imported and is one; else the reason in one sentence."""
    try:
        load_adapter(adapter)
    except HibenchError as error:
        return str(error)
    return None


def adapter_digest(adapter: str) -> str:
    """SHA-256 of the adapter's source: its package folder (or its one file) and what that imports of its distribution.

    So a change of a shared network of `methods` changes the digest of those methods only that import it. Nothing is
    imported; what belongs to hibench itself is covered by the protocol number instead. Raises UnknownMethod.
    """
    file, _, _ = _split_file(adapter)
    if file is not None:
        return _digest([(file.name, file)])
    module = _entry_point(adapter).module
    origin = _module_file(module)
    if origin is None:
        raise UnknownMethod(f"method '{adapter}': there is no module {module}; is its package installed?")
    top = module.partition(".")[0]
    root = origin.parents[module.count(".") + (origin.name == "__init__.py")]      # the folder that holds the top package
    start = sorted(origin.parent.rglob("*.py")) if origin.name == "__init__.py" and module != "hibench" else [origin]
    files = set(start) if top == "hibench" else _closure(start, root, top)
    return _digest([(path.relative_to(root).as_posix(), path) for path in files])


# -- entry points and files ------------------------------------------------------------------------------------------


def _entry_points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def _entry_point(name: str) -> EntryPoint:
    points = _entry_points()
    if name not in points:
        near = did_you_mean(name, points) or "; `hibench list methods` shows them"
        raise UnknownMethod(f"no method '{name}'{near}")
    return points[name]


def _split_file(adapter: str) -> tuple[Path | None, str, str]:
    """(file, text before the colon, class) of `file.py:Class`; file is None for an entry-point name."""
    before, colon, cls = adapter.rpartition(":")
    if not colon and not adapter.endswith(".py"):
        return None, "", ""
    if not before.endswith(".py") or not cls:
        raise UnknownMethod(f"'{adapter}' is neither a method's name nor file.py:Class")
    file = Path(before).expanduser()
    if not file.is_file():
        raise UnknownMethod(f"method '{adapter}': there is no file {file}")
    return file.resolve(), before, cls


def _import(adapter: str) -> tuple[ModuleType, str]:
    """The module of an adapter and the name of the class in it."""
    file, _, cls = _split_file(adapter)
    point = None if file else _entry_point(adapter)
    try:
        if point is not None:
            return importlib.import_module(point.module), point.attr
        assert file is not None
        return _import_file(file), cls
    except (Exception, SystemExit) as error:
        hint = f"; install {error.name}" if isinstance(error, ModuleNotFoundError) and error.name else ""
        text = " ".join(str(error).split())
        source = file or (point.value if point else adapter)
        raise AdapterError(f"method '{adapter}' cannot be imported ({source}): {type(error).__name__}: {text}{hint}") from error


def _import_file(file: Path) -> ModuleType:
    name = f"hibench_file_{hashlib.sha256(str(file).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    previous = sys.modules.get(name)
    sys.modules[name] = module                       # dataclasses and pickle look a class's module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        if previous is None:
            del sys.modules[name]
        else:
            sys.modules[name] = previous
        raise
    return module


def _where(module: ModuleType) -> str:
    return str(module.__file__) if module.__name__.startswith("hibench_file_") else module.__name__


def _signature_problems(cls: Any, member: str, wanted: tuple[str, ...]) -> list[str]:
    if getattr(cls, member) is object.__init__:
        return [f"it lacks '__init__({', '.join(wanted)})'"]
    try:
        parameters = inspect.signature(getattr(cls, member)).parameters
    except (TypeError, ValueError):
        return []
    kinds = {parameter.kind for parameter in parameters.values()}
    if inspect.Parameter.VAR_KEYWORD in kinds:
        return []
    missing = [name for name in wanted if name not in parameters]
    if member == "__init__" and inspect.Parameter.VAR_POSITIONAL in kinds:
        return []
    return [f"its '{member}' does not take {', '.join(repr(name) for name in missing)}"] if missing else []


# -- digests -----------------------------------------------------------------------------------------------------------


def _digest(files: list[tuple[str, Path]]) -> str:
    total = hashlib.sha256()
    for name, path in sorted(files):
        total.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def _module_file(module: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin).resolve() if spec is not None and spec.origin else None


def _closure(start: list[Path], root: Path, top: str) -> set[Path]:
    """`start` and every file of the package `top` that they import, directly or not, found by reading the source."""
    seen: set[Path] = set()
    todo = list(start)
    while todo:
        path = todo.pop()
        if path in seen or not path.is_file():
            continue
        seen.add(path)
        for module in _imports(path, root):
            if module.partition(".")[0] == top:
                base = root.joinpath(*module.split("."))
                todo += [base.with_name(base.name + ".py"), base / "__init__.py"]
    return seen


def _imports(path: Path, root: Path) -> set[str]:
    """Every name in a file that may be a module: `from a import b` gives a and a.b."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return set()
    package = path.relative_to(root).parent.parts
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found
