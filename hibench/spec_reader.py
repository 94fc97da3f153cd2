"""Nodes to a Spec: every block and key of the benchmark file, and what its values may be."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from hibench.errors import SpecError
from hibench.spec import (
    DEVICES,
    DTYPES,
    KINDS,
    Check,
    Method,
    Quality,
    Reference,
    Spec,
    Sweep,
    Timing,
    Tolerance,
    valid_device,
)
from hibench.values import Reader, suggest

__all__ = ["SpecReader"]

TOLERANCES = ("latency", "throughput", "load", "vram", "memory", "energy", "flops", "nfe", "drift")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
MAX_PIXELS = 65536                                             # of one side
MAX_COUNT = 10_000_000
MAX_SEED = 2**48
T = TypeVar("T")


class SpecReader:
    """Nodes to dataclasses; what is wrong goes to the document and the reading goes on."""

    def __init__(self, doc: Reader, path: Path) -> None:
        self.doc, self.path, self.folder = doc, path, path.resolve().parent
        self.references: tuple[str, ...] = ("scenes",)

    # -- the whole file ----------------------------------------------------------------------------------------------

    def spec(self) -> Spec:
        doc = self.doc
        root = doc.root
        if root is None or (isinstance(root, ScalarNode) and not root.value):
            raise doc.failed("the file is empty; a benchmark file has at least 'version', 'methods' and 'sweeps'")
        top = doc.mapping(root, "", ("version", "methods", "references", "timing", "quality", "sweeps", "check"))
        for key, example in (("version", "version: 1"), ("methods", "methods: {toy: {adapter: toy}}"),
                             ("sweeps", "sweeps: {first: {methods: [toy], resolution: [64]}}")):
            if isinstance(root, MappingNode) and not doc.has(root, key):
                doc.add_file(f"has no '{key}'; write e.g. {example}")
        if "version" in top and doc.integer(top["version"][1], "version", 1, 10**6) not in (1, None):
            doc.add(top["version"][1], "version", "this hibench reads version 1; update hibench or the file")
        methods = self._named(top, "methods", self.method)
        references = {"scenes": Reference("scenes", "scenes")} | self._named(top, "references", self.reference)
        if "references" in top:
            self.references = ("scenes", *self.doc.mapping(top["references"][1], "references"))
        timing = self._settings(top, "timing", Timing())
        quality = self._settings(top, "quality", Quality())
        names = tuple(self.doc.mapping(top["methods"][1], "methods")) if "methods" in top else ()
        sweeps = self._named(top, "sweeps", partial(self.sweep, known=names, timing=timing, quality=quality))
        check = self.check(top["check"][1], names) if "check" in top else Check()
        return Spec(self.path.resolve(), methods, sweeps, references, timing, quality, check)

    def _named(self, top: dict[str, Any], block: str, read: Callable[[str, Node, str], T | None]) -> dict[str, T]:
        """The entries of a block whose keys are names chosen by the user."""
        if block not in top:
            return {}
        key, node = top[block]
        if isinstance(node, ScalarNode) and not node.value:
            self.doc.add(key, block, f"is empty; give at least one {block.removesuffix('s')}")
            return {}
        entries = self.doc.mapping(node, block)
        if not entries and getattr(node, "value", None) == []:
            self.doc.add(node, block, f"is empty; give at least one {block.removesuffix('s')}")
        good: dict[str, T] = {}
        for name, (name_node, value) in entries.items():
            path = f"{block}.{name}"
            if not NAME.fullmatch(name):
                self.doc.add(name_node, path, f"'{name}' is not a good name; use letters, digits and . _ + -")
                continue
            result = read(name, value, path)
            if result is not None:
                good[name] = result
        return good

    # -- blocks --------------------------------------------------------------------------------------------------------

    def method(self, name: str, node: Node, path: str) -> Method | None:
        found = self._fields(node, path, {
            "adapter": self._adapter, "weights": self._weights, "options": self._options, "prompts": self._prompts,
            "dtype": lambda n, p: self.doc.choice(n, p, DTYPES, "dtype"), "device": self._device,
            "timeout": lambda n, p: self.doc.number(n, p, 0.1, 1e7),
        })
        if "adapter" not in found:
            if isinstance(node, MappingNode) and not self.doc.has(node, "adapter"):
                self.doc.add(node, path, f"has no adapter; write e.g. adapter: {name}")
            return None
        if "timeout" in found:
            found["timeout_s"] = found.pop("timeout")
        return Method(name, **found)

    def reference(self, name: str, node: Node, path: str) -> Reference | None:
        kinds: dict[str, dict[str, Callable[[Node, str], Any]]] = {
            "scenes": {"seed": lambda n, p: self.doc.integer(n, p, 0, 899), "images": self._count},
            "folder": {"path": self._path, "images": self._count},
        }
        entries = self.doc.mapping(node, path, ("kind", "path", "seed", "images"))
        if "kind" not in entries:
            if isinstance(node, MappingNode) and not self.doc.has(node, "kind"):
                self.doc.add(node, path, "has no kind; write kind: scenes or kind: folder")
            return None
        kind = self.doc.choice(entries["kind"][1], f"{path}.kind", tuple(kinds), "kind of reference")
        if kind is None:
            return None
        found: dict[str, Any] = {}
        for key, (key_node, value) in entries.items():
            if key in kinds[kind]:
                found[key] = kinds[kind][key](value, f"{path}.{key}")
            elif key != "kind":
                known = suggest(key, tuple(kinds[kind]))
                self.doc.add(key_node, f"{path}.{key}", f"a reference of kind {kind} has no such key{known}")
        if kind == "folder" and "path" not in found:
            self.doc.add(node, path, "a reference of kind folder needs a path")
        return Reference(name, kind, **{key: value for key, value in found.items() if value is not None})

    def sweep(self, name: str, node: Node, path: str, *, known: tuple[str, ...], timing: Timing, quality: Quality) -> Sweep:
        doc = self.doc
        found = self._fields(node, path, {
            "methods": lambda n, p: doc.listing(n, p, lambda i, q: doc.choice(i, q, known, "method")),
            "measure": lambda n, p: doc.listing(n, p, lambda i, q: doc.choice(i, q, KINDS, "kind of cell")),
            "resolution": lambda n, p: doc.listing(n, p, self._resolution),
            "steps": lambda n, p: doc.listing(n, p, lambda i, q: doc.integer(i, q, 1, 100_000)),
            "sparsity": lambda n, p: doc.listing(n, p, lambda i, q: doc.number(i, q, 0, 1, below=True)),
            "options": self._option_axes, "default": doc.boolean,
            "timing": lambda n, p: self._block(n, p, timing), "quality": lambda n, p: self._block(n, p, quality),
        })
        missing = [key for key in ("methods", "resolution") if isinstance(node, MappingNode) and not doc.has(node, key)]
        if missing:
            doc.add(node, path, f"has no {' and no '.join(missing)}" if node.value else "the sweep is empty")
        tuples = ("methods", "measure", "resolution", "steps", "sparsity")
        found = {key: tuple(value) if key in tuples else value for key, value in found.items()}
        return Sweep(**{"methods": (), "resolution": (), "timing": timing, "quality": quality, **found, "name": name})

    def check(self, node: Node, methods: tuple[str, ...]) -> Check:
        entries = self.doc.mapping(node, "check", ("tolerance", "cells"))
        cells = self.doc.mapping(entries["cells"][1], "check.cells") if "cells" in entries else {}
        for where, (key, _) in cells.items():
            if where not in (*methods, *KINDS) and not set(where) & set("*?[/"):
                known = suggest(where, (*methods, *KINDS))
                self.doc.add(key, f"check.cells.{where}", f"is no method, no kind of cell and no glob over keys{known}")
        return Check(self._tolerances(entries["tolerance"][1], "check.tolerance") if "tolerance" in entries else {},
                     {where: self._tolerances(value, f"check.cells.{where}") for where, (_, value) in cells.items()})

    def _tolerances(self, node: Node, path: str) -> dict[str, Tolerance]:
        from hibench.metrics.plan import FAMILIES

        return self._fields(node, path, dict.fromkeys((*TOLERANCES, *FAMILIES), self._tolerance))

    # -- settings of timing and quality ----------------------------------------------------------------------------------

    def _settings(self, top: dict[str, Any], block: str, base: T) -> T:
        return self._block(top[block][1], block, base) if block in top else base

    def _block(self, node: Node, path: str, base: T) -> T:
        """`base` (Timing or Quality) with the values of the mapping `node` put over it."""
        doc = self.doc
        count = self._count
        readers: dict[str, Callable[[Node, str], Any]] = {
            "processes": lambda n, p: doc.integer(n, p, 1, 1000), "images": count,
            "warmup": lambda n, p: count(n, p, 0), "energy": doc.boolean,
            "max_seconds": lambda n, p: doc.number(n, p, 0.1, 1e7), "interval": self._share,
            "max_processes": lambda n, p: doc.integer(n, p, 2, 1000), "vram_limit_bytes": self._bytes,
            "reference": lambda n, p: doc.choice(n, p, self.references, "reference"),
            "extractor": self._extractor,
            "metrics": lambda n, p: tuple(doc.listing(n, p, self._metric)),
            "batch": lambda n, p: doc.integer(n, p, 1, 65536), "shard": count,
            "keep": lambda n, p: count(n, p, 0), "first_seed": lambda n, p: doc.integer(n, p, 0, MAX_SEED),
            "blocks": lambda n, p: doc.integer(n, p, 1, 1000),
            "reconstruct": lambda n, p: doc.boolean(n, p) or None,         # false is what it is without
        }
        names = [f.name for f in fields(base)]  # type: ignore[arg-type]
        found = self._fields(node, path, {name: readers[name] for name in names})
        return type(base)(**{**{name: getattr(base, name) for name in names}, **found})

    def _fields(self, node: Node, path: str, readers: dict[str, Callable[[Node, str], Any]]) -> dict[str, Any]:
        """The good values of a mapping by key."""
        read = {key: readers[key](value, f"{path}.{key}") for key, (_, value) in self.doc.mapping(node, path, readers).items()}
        return {key: value for key, value in read.items() if value is not None}

    # -- values --------------------------------------------------------------------------------------------------------

    def _count(self, node: Node, path: str, low: int = 1) -> int | None:
        return self.doc.integer(node, path, low, MAX_COUNT)

    def _share(self, node: Node, path: str) -> float | None:
        """`2%` or `0.02` as 0.02."""
        found = self._tolerance(node, path)
        if found is not None and not 0 < found.value < 1:
            self.doc.add(node, path, "must lie between 0 and 1, e.g. 2%")
            return None
        return None if found is None else found.value

    def _bytes(self, node: Node, path: str) -> int | None:
        """`24 GiB`, `80 GB` or a plain number of bytes."""
        sized = isinstance(node, ScalarNode) and re.fullmatch(r"\s*(\d{1,6}(?:\.\d+)?)\s*([KMGT])(i?)B\s*", node.value)
        if sized:
            return int(float(sized[1]) * float(1024 if sized[3] else 1000) ** ("KMGT".index(sized[2]) + 1))
        return self.doc.integer(node, path, 1, 2**50)

    def _metric(self, node: Node, path: str) -> str | None:
        from hibench.metrics.plan import FAMILIES, parse

        value = self.doc.text(node, path)
        if value is None or ("@" not in value and value not in FAMILIES):
            return None if value is None else self.doc.choice(node, path, FAMILIES, "metric")
        try:
            parse(value)
        except SpecError as error:
            self.doc.add(node, path, str(error))
            return None
        return value

    def _extractor(self, node: Node, path: str) -> str | None:
        from hibench.features import EXTRACTORS

        value = self.doc.text(node, path)
        if value is None or ":" not in value:
            return None if value is None else self.doc.choice(node, path, tuple(EXTRACTORS), "extractor")
        return self._class_in_file(node, path, value, "an extractor's name")

    def _adapter(self, node: Node, path: str) -> str | None:
        from hibench.registry import method_names

        value = self.doc.text(node, path)
        if value is None:
            return None
        if ":" not in value and not value.endswith(".py"):
            return self.doc.choice(node, path, method_names(), "method")
        return self._class_in_file(node, path, value, "a method's name")

    def _class_in_file(self, node: Node, path: str, value: str, other: str) -> str | None:
        file, _, cls = value.rpartition(":")
        full = self._absolute(file)
        if not file.endswith(".py") or not cls.isidentifier():
            self.doc.add(node, path, f"'{value}' is neither {other} nor file.py:Class")
        elif not Path(full).is_file():
            self.doc.add(node, path, f"there is no file {full}")
        else:
            return f"{full}:{cls}"
        return None

    def _weights(self, node: Node, path: str) -> str | None:
        value = self.doc.text(node, path)
        if value is None or value in ("reference", "random"):
            return value
        local = value.startswith((".", "/", "~")) or Path(value).suffix in (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
        return self._absolute(value) if local or (self.folder / value).exists() else value

    def _prompts(self, node: Node, path: str) -> str | list[str] | None:
        return self.doc.listing(node, path, self.doc.text) if isinstance(node, SequenceNode) else self._file(node, path)

    def _options(self, node: Node, path: str) -> dict[str, Any]:
        return self.doc.plain(node, path) if self.doc.mapping(node, path) else {}

    def _option_axes(self, node: Node, path: str) -> dict[str, list[Any]]:
        axes: dict[str, list[Any]] = {}
        for name, (name_node, value) in self.doc.mapping(node, path).items():
            if not NAME.fullmatch(name):
                self.doc.add(name_node, f"{path}.{name}", f"'{name}' is not a good name; use letters, digits and . _ + -")
            axes[name] = [json.loads(text) for text in self.doc.listing(value, f"{path}.{name}", self._json)]
        return axes

    def _json(self, node: Node, path: str) -> str:
        return json.dumps(self.doc.plain(node, path), sort_keys=True)

    def _resolution(self, node: Node, path: str) -> tuple[int, int] | None:
        if not isinstance(node, SequenceNode):
            side = self.doc.integer(node, path, 1, MAX_PIXELS)
            return None if side is None else (side, side)
        if len(node.value) != 2:
            self.doc.add(node, path, f"must be one side or [height, width], not {len(node.value)} numbers")
            return None
        sides = [self.doc.integer(child, f"{path}[{i}]", 1, MAX_PIXELS) for i, child in enumerate(node.value)]
        return None if None in sides else (sides[0] or 0, sides[1] or 0)

    def _device(self, node: Node, path: str) -> str | None:
        value = self.doc.text(node, path)
        if value is None or valid_device(value):
            return value
        return self.doc.choice(node, path, DEVICES, "device")

    def _tolerance(self, node: Node, path: str) -> Tolerance | None:
        percent = isinstance(node, ScalarNode) and re.fullmatch(r"\s*(\d{1,6}(?:\.\d*)?)\s*%\s*", node.value)
        if percent:
            return Tolerance(float(percent[1]) / 100, relative=True)
        value = self.doc.number(node, path, 0, 1e12)
        return None if value is None else Tolerance(value, relative=False)

    def _path(self, node: Node, path: str) -> str | None:
        value = self.doc.text(node, path)
        return None if value is None else self._absolute(value)

    def _file(self, node: Node, path: str) -> str | None:
        value = self._path(node, path)
        if value is not None and not Path(value).is_file():
            self.doc.add(node, path, f"there is no file {value}")
            return None
        return value

    def _absolute(self, value: str) -> str:
        return str((self.folder / Path(value).expanduser()).resolve())
