"""The benchmark file: YAML to a frozen Spec, or one SpecError that lists everything that is wrong with it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from hibench.errors import SpecError
from hibench.nodes import Document, suggest

__all__ = [
    "DEVICES", "DTYPES", "KINDS", "Check", "Method", "Quality", "Reference", "Spec", "Sweep", "Timing", "Tolerance",
    "load_spec", "valid_device",
]

KINDS = ("speed", "quality")
DTYPES = ("float32", "bfloat16", "float16")
DEVICES = ("auto", "cpu", "cuda")                              # and cuda:0, cuda:1, ...
TOLERANCES = ("latency", "throughput", "load", "vram", "memory", "energy", "flops", "nfe", "drift")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
MAX_PIXELS = 65536                                             # of one side
MAX_COUNT = 10_000_000
MAX_SEED = 2**48
T = TypeVar("T")


@dataclass(frozen=True)
class Method:
    """A method: an adapter, its weights and its options."""

    name: str
    adapter: str                                               # an entry-point name, or "/absolute/file.py:Class"
    weights: str = "reference"                                 # reference | random | absolute path | hub id
    options: dict[str, Any] = field(default_factory=dict)
    prompts: str | list[str] | None = None                     # an absolute path (one prompt per line), the prompts, or none
    dtype: str = "float32"
    device: str = "auto"                                       # auto | cpu | cuda | cuda:N
    timeout_s: float = 1800.0                                  # of one worker process; key `timeout`


@dataclass(frozen=True)
class Reference:
    """An image distribution that samples are compared with."""

    name: str
    kind: str                                                  # scenes | folder
    seed: int = 0                                              # scenes: which disjoint set of reference seeds
    path: str | None = None                                    # folder: absolute
    images: int | None = None                                  # how many of it; None: the whole folder, or as many as samples

    def definition(self) -> dict[str, Any]:
        """What a quality cell stores: name, kind and the keys of that kind."""
        keys = ("name", "kind", "seed" if self.kind == "scenes" else "path", "images")
        return {key: getattr(self, key) for key in keys if getattr(self, key) is not None}


@dataclass(frozen=True)
class Timing:
    """How speed is measured."""

    processes: int = 5                                         # replicates: fresh processes
    images: int = 10                                           # timed images per process
    warmup: int = 2                                            # images before them, not timed
    max_seconds: float | None = None                           # of timed images per process; None = no limit
    energy: bool = True                                        # read the energy counter where there is one


@dataclass(frozen=True)
class Quality:
    """How quality is measured."""

    images: int = 1000
    reference: str = "scenes"
    extractor: str = "scenes-clip"
    metrics: tuple[str, ...] = ("fid", "kid", "is", "precision", "recall", "clip-score")
    batch: int = 16                                            # images per generate_batch
    shard: int = 64                                            # images between two points of resume
    keep: int = 8                                              # samples stored as PNG
    first_seed: int = 0
    blocks: int = 3                                            # disjoint seed blocks behind every ±


@dataclass(frozen=True)
class Sweep:
    """A named block of cells: the product of its methods, kinds and axes."""

    name: str
    methods: tuple[str, ...]
    resolution: tuple[tuple[int, int], ...]                    # (height, width)
    measure: tuple[str, ...] = KINDS
    steps: tuple[int, ...] = ()                                # () = the method's own number
    sparsity: tuple[float, ...] = ()                           # () = 0: every coordinate is evaluated
    options: dict[str, list[Any]] = field(default_factory=dict)
    default: bool = True                                       # False: run only when named by --only
    timing: Timing = Timing()                                  # the spec's, with this sweep's changes
    quality: Quality = Quality()


@dataclass(frozen=True)
class Tolerance:
    """How far a number may move before it is a regression."""

    value: float                                               # 0.05 for "5%"
    relative: bool                                             # True: of the baseline's value


@dataclass(frozen=True)
class Check:
    """What counts as a regression."""

    tolerance: dict[str, Tolerance] = field(default_factory=dict)


@dataclass(frozen=True)
class Spec:
    """A valid benchmark file; every path in it is absolute."""

    path: Path
    methods: dict[str, Method]
    sweeps: dict[str, Sweep]
    references: dict[str, Reference] = field(default_factory=lambda: {"scenes": Reference("scenes", "scenes")})
    timing: Timing = Timing()
    quality: Quality = Quality()
    check: Check = Check()
    version: int = 1

    @property
    def digest(self) -> str:
        """SHA-256 of the content, whatever the order, comments and place of the file."""
        content = {key: value for key, value in asdict(self).items() if key != "path"}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def load_spec(path: str | Path, overrides: Iterable[str] = ()) -> Spec:
    """Read a benchmark file, put `overrides` ("timing.images=3") over it and check it; SpecError lists every problem."""
    doc = Document.read(Path(path))
    for assignment in overrides:
        doc.override(assignment)
    doc.finish()
    doc.expand_variables()
    spec = _Reader(doc, Path(path)).spec()
    doc.finish()
    return spec


def valid_device(name: str) -> bool:
    """Whether `name` is auto, cpu, cuda or cuda:N."""
    return name in DEVICES or re.fullmatch(r"cuda:\d{1,3}", name) is not None


class _Reader:
    """Nodes to dataclasses; what is wrong goes to the document and the reading goes on."""

    def __init__(self, doc: Document, path: Path) -> None:
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
        check = self.check(*top["check"]) if "check" in top else Check()
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

    def check(self, key: Node, node: Node) -> Check:
        from hibench.metrics.plan import FAMILIES

        entries = self.doc.mapping(node, "check", ("tolerance",))
        if "tolerance" not in entries:
            return Check()
        tolerances = self.doc.mapping(entries["tolerance"][1], "check.tolerance", (*TOLERANCES, *FAMILIES))
        read = {name: self._tolerance(value, f"check.tolerance.{name}") for name, (_, value) in tolerances.items()}
        return Check({name: value for name, value in read.items() if value is not None})

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
            "max_seconds": lambda n, p: doc.number(n, p, 0.1, 1e7),
            "reference": lambda n, p: doc.choice(n, p, self.references, "reference"),
            "extractor": self._extractor,
            "metrics": lambda n, p: tuple(doc.listing(n, p, self._metric)),
            "batch": lambda n, p: doc.integer(n, p, 1, 65536), "shard": count,
            "keep": lambda n, p: count(n, p, 0), "first_seed": lambda n, p: doc.integer(n, p, 0, MAX_SEED),
            "blocks": lambda n, p: doc.integer(n, p, 1, 1000),
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
