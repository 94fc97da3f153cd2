"""The benchmark file: YAML to a frozen Spec, or one SpecError that lists everything that is wrong with it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = [
    "DEVICES", "DTYPES", "KINDS", "Check", "Method", "Quality", "Reference", "Spec", "Sweep", "Timing", "Tolerance",
    "load_spec", "valid_device",
]

KINDS = ("speed", "quality", "drift")
DTYPES = ("float32", "bfloat16", "float16")
DEVICES = ("auto", "cpu", "cuda")                              # and cuda:0, cuda:1, ...


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
    interval: float | None = None                              # add processes until p50 is known to ± this share (None: do not)
    max_processes: int = 15                                    # and no more than so many
    vram_limit_bytes: int | None = None                        # pretend that the GPU has no more (torch's allocator only)


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
    blocks: int = 8                                            # disjoint seed blocks behind every ±
    reconstruct: bool | None = None                            # True: the reference through the method's first stage, in pairs


@dataclass(frozen=True)
class Sweep:
    """A named block of cells: the product of its methods, kinds and axes."""

    name: str
    methods: tuple[str, ...]
    resolution: tuple[tuple[int, int], ...]                    # (height, width)
    measure: tuple[str, ...] = ("speed", "quality")
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
    cells: dict[str, dict[str, Tolerance]] = field(default_factory=dict)       # by method, kind or glob; the last holds


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
    from hibench.spec_reader import SpecReader
    from hibench.values import Reader

    doc = Reader.read(Path(path))
    for assignment in overrides:
        doc.override(assignment)
    doc.finish()
    doc.expand_variables()
    spec = SpecReader(doc, Path(path)).spec()
    doc.finish()
    return spec


def valid_device(name: str) -> bool:
    """Whether `name` is auto, cpu, cuda or cuda:N."""
    return name in DEVICES or re.fullmatch(r"cuda:\d{1,3}", name) is not None
