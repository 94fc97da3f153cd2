"""Extractors: the registry, one pass of every extractor over the images, and the cache of reference features."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from hibench.errors import HibenchError, MissingWeights, SpecError, did_you_mean
from hibench.weights import cache_directory

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from hibench.references import Reference

__all__ = [
    "DEFAULT_EXTRACTOR",
    "EXTRACTORS",
    "Collector",
    "Entry",
    "Extractor",
    "Extractors",
    "count_bad",
    "describe",
    "fit_paths",
    "get_extractor",
    "open_extractors",
    "reference_features",
    "run",
]

CACHE_VERSION = 1  # raise whenever an extractor computes something else
DEFAULT_EXTRACTOR = "scenes-clip"


class Extractor(Protocol):
    """Images to features. Optional: `prepare` and `network`, whose composition it is, so that images of many sizes share a
    batch;
    `encode_text(prompts)` for clip-score; `needs_ids = True` when the call takes the images' ids as well."""

    name: str
    weights_sha256: str  # "" for a descriptor without weights
    resize: str  # the resize rule, as it stands in the record
    outputs: dict[str, int]  # layer → number of features
    roles: dict[str, str]  # what metrics ask for (features, logits, spatial, text) → layer

    def __call__(self, images: "torch.Tensor") -> "dict[str, torch.Tensor]":
        """uint8 [B, 3, H, W], any device → {layer: float32 [B, D]}."""
        ...


@dataclass(frozen=True)
class Entry:
    """A known extractor: `module:function` that opens it, the weights it needs (None = shipped) and what it is."""

    opener: str
    weights: str | None
    about: str
    takes_name: bool = False


_E = "hibench.extractors"
EXTRACTORS: Mapping[str, Entry] = {
    "scenes-clip": Entry(f"{_E}.embedding:open_scenes_clip", None, "hibench's own small CLIP, trained on scenes (default)"),
    "inception-v3-compat": Entry(
        f"{_E}.inception:open_compat", "inception-v3-compat", "TF-ported Inception, TF1 resize (torch-fidelity, ADM): `fid`"
    ),
    "inception-v3-clean": Entry(
        f"{_E}.inception:open_clean", "inception-v3-compat", "the same network, antialiased resize (clean-fid): `clean-fid`"
    ),
    "vgg16": Entry(f"{_E}.embedding:open_vgg16", "vgg16", "VGG16 fc2 (improved precision and recall)"),
    **{
        n: Entry(f"{_E}.embedding:open_clip_model", n, "OpenAI CLIP through open_clip", True)
        for n in ("clip-vit-b-32", "clip-vit-b-16", "clip-vit-l-14", "clip-vit-l-14-336")
    },
    "dinov2-vit-l-14": Entry(f"{_E}.embedding:open_dinov2", "dinov2-vit-l-14", "DINOv2 ViT-L/14 class token (FD-DINOv2)", True),
}


def get_extractor(name: str, device: str = "cpu", weights: str | None = None, compiled: bool = False) -> Extractor:
    """Open an extractor by its name, or a user's own by `file.py:Class` (called with device and weights).

    `compiled`: run Inception through torch.compile (20 to 40 s once per process, values within rounding); others ignore it.

    Raises MissingWeights, or SpecError with a suggestion for an unknown name.
    """
    if ":" in name:
        return _own_extractor(name, device, weights)
    if name not in EXTRACTORS:
        raise SpecError(
            f"no extractor named '{name}'{did_you_mean(name, EXTRACTORS)}; known: {', '.join(EXTRACTORS)}, or file.py:Class"
        )
    entry = EXTRACTORS[name]
    module, function = entry.opener.split(":")
    opener: Callable[..., Extractor] = getattr(importlib.import_module(module), function)
    if entry.takes_name:
        return opener(name, device, weights)
    return opener(device, weights, True) if compiled and entry.weights == "inception-v3-compat" else opener(device, weights)


def _own_extractor(name: str, device: str, weights: str | None) -> Extractor:
    """A class from a user's file as an extractor."""
    file, _, attribute = name.rpartition(":")
    path = Path(file).expanduser()
    if not path.is_file():
        raise SpecError(f"extractor '{name}': no file {path}; give file.py:Class, or one of {', '.join(EXTRACTORS)}")
    spec = importlib.util.spec_from_file_location(f"hibench_extractor_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, attribute):
        raise SpecError(f"extractor '{name}': {path} has no class {attribute}")
    made: Extractor = getattr(module, attribute)(device, weights)
    lacking = [a for a in ("name", "weights_sha256", "resize", "outputs", "roles") if not hasattr(made, a)]
    if lacking:
        raise SpecError(f"extractor '{name}': has no attribute {', '.join(lacking)} (see hibench.features.Extractor)")
    return made


class Extractors:
    """The extractors that a set of metrics needs, opened once; what could not be opened stands in `missing` with its reason,
    and in `inapplicable` what has no meaning at this resolution."""

    def __init__(
        self,
        opened: dict[str, Extractor],
        missing: dict[str, str],
        wanted: Collection[str] | None = None,
        inapplicable: dict[str, str] | None = None,
    ) -> None:
        self.opened, self.missing, self.wanted = opened, missing, wanted
        self.inapplicable = inapplicable or {}

    def __iter__(self) -> Iterator[Extractor]:
        return iter(self.opened.values())

    def __len__(self) -> int:
        return len(self.opened)

    def keeps(self, key: str) -> bool:
        """Whether any metric reads the array "NAME/layer"."""
        return self.wanted is None or key in self.wanted

    def __getitem__(self, key: str) -> Extractor:
        return self.opened[key]


def open_extractors(
    settings: Mapping[str, Any],
    device: str = "cpu",
    resolution: tuple[int, int] | None = None,
    weights: str | None = None,
    compiled: bool = False,
) -> Extractors:
    """Open every extractor that `settings["metrics"]` need (`settings["extractor"]` is the default one), each once.

    Missing weights are noted in `.missing`, not raised: the other metrics go on (`.inapplicable`: crops larger than the image,
    and the like). `resolution` (height, width) is needed by the
    weight-free descriptors alone; `weights` replaces the file of the default extractor. Raises SpecError for a wrong name.
    """
    from hibench.metrics.plan import Inapplicable, parse, requirements

    base: dict[str, Extractor] = {}
    opened: dict[str, Extractor] = {}
    missing: dict[str, str] = {}
    inapplicable: dict[str, str] = {}
    wanted: set[str] = set()
    default = str(settings.get("extractor") or DEFAULT_EXTRACTOR)

    def network(name: str) -> Extractor | None:
        if name not in base and name not in missing:
            file = weights if name == default else None
            try:
                base[name] = get_extractor(name, device, file, compiled)
            except MissingWeights as error:
                missing[name] = str(error)
        return base.get(name)

    for text in settings["metrics"]:
        for need in requirements(parse(text, default)):
            if need.key not in opened and need.key not in missing:
                try:
                    made = need.build(network, resolution)
                except Inapplicable as error:
                    inapplicable[need.key] = str(error)
                    continue
                except HibenchError as error:
                    missing[need.key] = str(error)
                    continue
                if made is not None:
                    opened[need.key] = made
            if need.key in opened:
                wanted |= {f"{opened[need.key].name}/{layer}" for layer in need.layers(opened[need.key])}
    return Extractors(opened, missing, wanted, inapplicable)


def run(
    extractors: Iterable[Extractor], images: "torch.Tensor", ids: Sequence[int] | None = None
) -> "dict[str, NDArray[np.float32]]":
    """One pass of every extractor over uint8 [B, 3, H, W]: {"NAME/layer": float32 [B, ...]} on the host.

    `ids`: one per image (its seed), needed by crop metrics and swd. No PNG, no copy to the host before the network.
    """
    import torch

    out: dict[str, NDArray[np.float32]] = {}
    with torch.inference_mode():
        for extractor in extractors:
            for layer, values in _call(extractor, images, ids).items():
                if _kept(extractors, f"{extractor.name}/{layer}"):
                    out[f"{extractor.name}/{layer}"] = values.float().cpu().numpy()
    return out


def _kept(extractors: Iterable[Extractor], key: str) -> bool:
    return not isinstance(extractors, Extractors) or extractors.keeps(key)


def _call(extractor: Extractor, images: "torch.Tensor", ids: Sequence[int] | None) -> "dict[str, torch.Tensor]":
    if getattr(extractor, "needs_ids", False):
        return extractor(images, ids)  # type: ignore[call-arg]
    return extractor(images)


class Collector:
    """Streams batches of any sizes through the extractors: images are resized as they come and share batches afterwards."""

    def __init__(self, extractors: Iterable[Extractor], batch: int = 32) -> None:
        self.extractors, self.batch, self.source = list(extractors), batch, extractors
        self.parts: dict[str, list[NDArray[np.float32]]] = {}
        self.waiting: dict[str, list[torch.Tensor]] = {}
        self.n = self.constant = 0

    def add(self, images: "torch.Tensor", ids: Sequence[int] | None = None) -> None:
        """uint8 [B, 3, H, W]; `ids` default to the running number."""
        import torch

        ids = range(self.n, self.n + len(images)) if ids is None else ids
        self.n += len(images)
        self.constant += count_bad(images)[1]
        with torch.inference_mode():
            for extractor in self.extractors:
                if hasattr(extractor, "prepare"):
                    waiting = self.waiting.setdefault(extractor.name, [])
                    waiting.append(extractor.prepare(images))
                    while sum(map(len, waiting)) >= self.batch:
                        joined = torch.cat(waiting) if len(waiting) > 1 else waiting[0]
                        self._network(extractor, joined[: self.batch])
                        waiting[:] = [joined[self.batch :]] if len(joined) > self.batch else []
                else:
                    self._keep(extractor, _call(extractor, images, ids))

    def _network(self, extractor: Any, prepared: "torch.Tensor") -> None:
        self._keep(extractor, extractor.network(prepared))

    def _keep(self, extractor: Extractor, outputs: "Mapping[str, torch.Tensor]") -> None:
        for layer, values in outputs.items():
            if _kept(self.source, f"{extractor.name}/{layer}"):
                self.parts.setdefault(f"{extractor.name}/{layer}", []).append(values.float().cpu().numpy())

    def finish(self) -> "dict[str, NDArray[np.float32]]":
        """{"NAME/layer": float32 [N, ...]} in the order of the images."""
        import numpy as np
        import torch

        with torch.inference_mode():
            for extractor in self.extractors:
                waiting = self.waiting.pop(extractor.name, [])
                if waiting:
                    self._network(extractor, torch.cat(waiting))
        return {key: np.concatenate(parts) for key, parts in self.parts.items()}


def count_bad(images: "torch.Tensor") -> tuple[int, int]:
    """(images that hold NaN or infinity, images of one colour), of [B, 3, H, W] uint8 or float."""
    flat = images.flatten(2)
    nan = 0 if not images.is_floating_point() else int((~flat.isfinite()).any(2).any(1).sum())
    constant = int(((flat.amax(2) == flat.amin(2)).all(1)).sum())
    return nan, constant


def cache_key(reference: "Reference", extractor: Extractor, resolution: tuple[int, int] | None) -> str:
    """What reference features depend on: content, resolution, network, weights, resize or crop rule (part of the name),
    version."""
    parts = [
        CACHE_VERSION,
        reference.digest,
        len(reference),
        list(resolution) if resolution else None,
        extractor.name,
        extractor.weights_sha256,
        extractor.resize,
        sorted(extractor.outputs.items()),
        "float32",
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def fit_paths(
    reference: "Reference",
    extractors: Iterable[Extractor],
    resolution: tuple[int, int] | None = None,
    cache: str | Path | None = None,
) -> dict[str, Path]:
    """Where the Gaussians fitted to a reference's features are kept, beside the features: {"NAME/layer": file}."""
    folder = Path(cache or cache_directory()) / "features"
    return {
        f"{extractor.name}/{layer}": folder / f"{cache_key(reference, extractor, resolution)}.{layer}.fit.npz"
        for extractor in extractors
        for layer in extractor.outputs
    }


def reference_features(
    reference: "Reference",
    extractors: Iterable[Extractor],
    resolution: tuple[int, int] | None = None,
    cache: str | Path | None = None,
    batch: int = 32,
    device: str = "cpu",
) -> "dict[str, NDArray[np.float32]]":
    """Features of a whole reference, one pass for all extractors that are not cached; {"NAME/layer": float32 [N, ...]}.

    `cache`: a directory (None = HIBENCH_CACHE). Entries are keyed by content and never go stale; a damaged one is made again.
    """
    import numpy as np

    folder = Path(cache or cache_directory()) / "features"
    out: dict[str, NDArray[np.float32]] = {}
    todo: list[tuple[Extractor, Path]] = []
    for extractor in extractors:
        path = folder / f"{cache_key(reference, extractor, resolution)}.npz"
        held = _read(path)
        if held is None:
            todo.append((extractor, path))
        else:
            out.update({f"{extractor.name}/{layer}": values for layer, values in held.items()})
    if todo:
        collector = Collector([e for e, _ in todo], batch)
        for images in reference.images(resolution, batch=batch, device=device):
            collector.add(images)
        fresh = collector.finish()
        folder.mkdir(parents=True, exist_ok=True)
        for extractor, path in todo:
            mine = {k.rpartition("/")[2]: v for k, v in fresh.items() if k.rpartition("/")[0] == extractor.name}
            part = path.with_name(f"{path.stem}.{os.getpid()}.part.npz")
            np.savez(part, **mine)  # type: ignore[arg-type]
            os.replace(part, path)
        out.update(fresh)
    return out


def _read(path: Path) -> "dict[str, NDArray[np.float32]] | None":
    import zipfile

    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as file:
            return {k: file[k] for k in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None


def describe() -> list[dict[str, Any]]:
    """One row per extractor: name, about, whether it can be opened here, else why and what to do."""
    from hibench import weights

    rows = []
    for name, entry in EXTRACTORS.items():
        if entry.weights is None:
            here = (Path(__file__).parent / "scenes_clip" / "weights.safetensors").is_file()
            step = "" if here else "hibench train scenes-clip"
        else:
            here = weights.find(entry.weights) is not None
            step = "" if here else f"hibench fetch {entry.weights}"
        rows.append({"name": name, "about": entry.about, "available": here, "next": step})
    return rows
