"""Cells: what a spec asks for, one by one, with a readable key (for comparison) and an id of the content (for resume)."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from hibench.errors import HibenchError, SpecError, did_you_mean
from hibench.spec import KINDS, Method, Quality, Spec, Sweep, Timing

__all__ = ["PROTOCOL", "Cell", "Plan", "adapter_axes", "cell_id", "expand"]

DRIFT_IMAGES = 8        # fixed seeds whose images are compared with golden ones
PROTOCOL = 1            # of measuring; raised when the same cell would give another number because hibench changed
LABELS = {              # settings that change no number of a cell: they are neither in its id nor in its key
    "speed": frozenset[str](),
    "quality": frozenset({"batch", "shard", "keep"}),
    "drift": frozenset(),
}


@dataclass(frozen=True)
class Cell:
    """One method × axes × kind."""

    method: str                                                # its name in the spec
    adapter: str                                               # an entry-point name, or "/absolute/file.py:Class"
    kind: str                                                  # speed | quality | drift
    height: int
    width: int
    weights: str = "reference"
    options: dict[str, Any] = field(default_factory=dict)      # the method's, with the sweep's over them
    steps: int | None = None                                   # None = the method's own number, or it has no steps
    sparsity: float = 0.0
    prompts: str | list[str] | None = None
    option_axes: dict[str, Any] = field(default_factory=dict)  # swept options that differ from the method's own; in the key
    settings: dict[str, Any] = field(default_factory=dict)     # the timing block, or the quality block with its reference
    setting_axes: dict[str, Any] = field(default_factory=dict) # settings that differ from the spec's own block; in the key
    timeout_s: float = 1800.0
    device: str = "auto"
    dtype: str = "float32"

    @property
    def key(self) -> str:
        """Readable and unique within a spec: `ldm/quality/128x128/steps=50/sparsity=0.75/collage=pixel`."""
        parts = [self.method, self.kind, f"{self.height}x{self.width}"]
        parts += [f"steps={self.steps}"] * (self.steps is not None)
        parts += [f"sparsity={self.sparsity:g}"] * (self.sparsity != 0)
        parts += [f"{name}={_short(value)}" for name, value in sorted(self.option_axes.items())]
        parts += [f"{name}={_short(value)}" for name, value in sorted(self.setting_axes.items())]
        return "/".join(parts)

    @property
    def axes(self) -> dict[str, Any]:
        """What `Adapter.supports` is asked: height, width, steps (int or None), sparsity."""
        return {"height": self.height, "width": self.width, "steps": self.steps, "sparsity": self.sparsity}

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Cell:
        """The inverse of `to_json`; keys that a cell does not have are an error."""
        unknown = set(data) - {f.name for f in fields(cls)}
        if unknown:
            raise SpecError(f"not a cell: unknown keys {', '.join(sorted(unknown))}")
        return cls(**data)


@dataclass(frozen=True)
class Plan:
    """The cells to run, each once, and which sweeps asked for them."""

    cells: tuple[Cell, ...]
    sweeps: dict[str, list[str]]                               # sweep -> keys, in the order of the sweep

    def __len__(self) -> int:
        return len(self.cells)

    def __iter__(self) -> Iterator[Cell]:
        return iter(self.cells)


def cell_id(cell: Cell, *, adapter_digest: str, weights_digest: str | None, env_digest: str | None = None,
            protocol: int = PROTOCOL) -> str:
    """16 hex digits of what decides the numbers of a cell; `env_digest` (hardware and software) does not count for
    quality.

    Not in it: sweeps, the adapter's place on disk, timeouts, settings that are off (None) or change no number (`LABELS`).
    """
    settings = {name: value for name, value in cell.settings.items()
                if value is not None and name not in LABELS.get(cell.kind, ())}
    if "interval" not in settings:
        settings.pop("max_processes", None)                    # it bounds what `interval` adds, and nothing else
    if isinstance(settings.get("reference"), dict):
        settings["reference"] = {name: value for name, value in settings["reference"].items() if name != "name"}
    content = {
        "protocol": protocol, "method": cell.method, "class": cell.adapter.rpartition(":")[2], "adapter": adapter_digest,
        "weights": [cell.weights if cell.weights in ("reference", "random") else "given", weights_digest or cell.weights],
        "options": cell.options, "kind": cell.kind, "axes": cell.axes, "prompts": _prompts(cell.prompts),
        "settings": settings, "device": cell.device, "dtype": cell.dtype,
        "env": None if cell.kind == "quality" else env_digest,
    }
    return hashlib.sha256(canonical(content).encode()).hexdigest()[:16]


def expand(spec: Spec, only: Iterable[str] | None = None,
           axes_of: Callable[[str], frozenset[str] | None] | None = None) -> Plan:
    """The cells of a spec, each once, in the order of the file.

    `only` narrows: names of sweeps (None among them: the default sweeps), of methods and of kinds, and globs over keys,
    e.g. ["paper", "ldm", "*/256x256/*"]; several of one sort are alternatives, different sorts must all hold.
    `axes_of(adapter)` gives the axes that an adapter honours (None: unknown); one without "steps" gets one cell instead of
    one per number of steps. Default: `adapter_axes`. Raises SpecError for a word in `only` that names nothing.
    """
    axes_of = axes_of or adapter_axes
    only = [] if only is None else list(only)
    sweeps, keep = _selection(spec, only)
    cells: dict[str, Cell] = {}
    members: dict[str, list[str]] = {}
    known: dict[str, frozenset[str] | None] = {}
    for sweep in sweeps:
        keys: dict[str, None] = {}
        for name in sweep.methods:
            method = spec.methods[name]
            if method.adapter not in known:
                known[method.adapter] = axes_of(method.adapter)
            for cell in _cells(spec, sweep, method, known[method.adapter]):
                if keep(cell):
                    _same_content(cells.setdefault(cell.key, cell), cell, sweep)
                    keys[cell.key] = None
        members[sweep.name] = list(keys)
    if not cells:
        raise SpecError(f"--only {' '.join(only)}: names no cell; `hibench list cells` shows them" if only else
                        f"{spec.path}: every sweep has `default: false`; name one, e.g. --only {next(iter(spec.sweeps))}")
    return Plan(tuple(cells.values()), members)


def adapter_axes(adapter: str) -> frozenset[str] | None:
    """The axes that an adapter honours; None when it cannot be imported (its cells then say why)."""
    from hibench.registry import load_adapter

    try:
        return frozenset(load_adapter(adapter).axes)
    except HibenchError:
        return None


def canonical(value: Any) -> str:
    """JSON in which equal numbers and reordered mappings look the same (1.0 is 1)."""
    return json.dumps(_same_numbers(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def _same_numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _same_numbers(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_same_numbers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _cells(spec: Spec, sweep: Sweep, method: Method, axes: frozenset[str] | None) -> Iterator[Cell]:
    """The product of one sweep's axes for one method."""
    steps = sweep.steps if axes is None or "steps" in axes else ()
    options = [dict(zip(sweep.options, values)) for values in itertools.product(*sweep.options.values())]
    for kind in sweep.measure:
        settings, setting_axes = _settings(spec, sweep, kind)
        for (height, width), count, sparsity, chosen in itertools.product(
                sweep.resolution, steps or (None,), sweep.sparsity or (0.0,), options):
            yield Cell(
                method.name, method.adapter, kind, height, width, method.weights, {**method.options, **chosen}, count,
                float(sparsity), method.prompts,
                {k: v for k, v in chosen.items() if k not in method.options or canonical(method.options[k]) != canonical(v)},
                settings, setting_axes, method.timeout_s, method.device, method.dtype)


def _settings(spec: Spec, sweep: Sweep, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of a kind of cell, and those among them that the sweep changed and that change a number."""
    if kind == "drift":
        return {"images": DRIFT_IMAGES, "first_seed": 0}, {}
    block: Timing | Quality = sweep.timing if kind == "speed" else sweep.quality
    base: Timing | Quality = spec.timing if kind == "speed" else spec.quality
    settings, own = json.loads(json.dumps(asdict(block))), asdict(base)
    changed = {name: value for name, value in asdict(block).items() if value != own[name] and name not in LABELS[kind]}
    if isinstance(block, Quality):
        settings["reference"] = spec.references[block.reference].definition()
    return settings, json.loads(json.dumps(changed))


def _same_content(first: Cell, cell: Cell, sweep: Sweep) -> None:
    """SpecError when one key would stand for two contents (an option named like a setting, say)."""
    if first is cell:
        return
    if cell_id(first, adapter_digest="", weights_digest=None) != cell_id(cell, adapter_digest="", weights_digest=None):
        raise SpecError(f"sweeps.{sweep.name}: two different cells have the key {cell.key}; rename an option")


def _selection(spec: Spec, only: list[str]) -> tuple[list[Sweep], Callable[[Cell], bool]]:
    """The sweeps that `only` picks, and a test for their cells."""
    sweeps = [name for name in only if name in spec.sweeps]
    methods = [name for name in only if name in spec.methods and name not in spec.sweeps]
    kinds = [name for name in only if name in KINDS and name not in (*spec.sweeps, *spec.methods)]
    globs = [word for word in only if word not in (*sweeps, *methods, *kinds)]
    for word in globs:
        if not any(character in word for character in "/*?["):
            near = did_you_mean(word, (*spec.sweeps, *spec.methods, *KINDS)) or f" (sweeps: {', '.join(spec.sweeps)})"
            raise SpecError(f"--only: no sweep, method or kind is named '{word}'{near}")

    def keep(cell: Cell) -> bool:
        return ((not methods or cell.method in methods) and (not kinds or cell.kind in kinds)
                and (not globs or any(cell.key == glob or fnmatchcase(cell.key, glob) for glob in globs)))

    return [sweep for name, sweep in spec.sweeps.items() if (name in sweeps if sweeps else sweep.default)], keep


def _short(value: Any) -> str:
    """A value as it stands in a key: no slash, no blank."""
    text = "+".join(map(str, value)) if isinstance(value, list) else f"{value:g}" if isinstance(value, float) else str(value)
    text = {"True": "true", "False": "false", "None": "null"}.get(text, text)
    text = "".join("_" if character in "/ \t\n" else character for character in text)
    return text if len(text) <= 48 else text[:36] + "~" + hashlib.sha256(canonical(value).encode()).hexdigest()[:8]


def _prompts(prompts: str | list[str] | None) -> Any:
    """What prompts say, wherever their file is."""
    if isinstance(prompts, str) and Path(prompts).is_file():
        return hashlib.sha256(Path(prompts).read_bytes()).hexdigest()
    return prompts
