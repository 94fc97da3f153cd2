"""The registry of extractors: by name, opened once for what metrics need; passes and the cache of features are at hand here."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hibench.errors import HibenchError, MissingWeights, SpecError, did_you_mean
from hibench.extractors.cache import fit_paths, reference_features
from hibench.extractors.contract import Extractor, Extractors
from hibench.extractors.passes import Collector, count_bad, run

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

DEFAULT_EXTRACTOR = "scenes-clip"


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
    **{
        f"dinov2-vit-{n.lower()}-14": Entry(
            f"{_E}.embedding:open_dinov2", f"dinov2-vit-{n.lower()}-14", f"DINOv2 ViT-{n}/14 class token{more}", True
        )
        for n, more in (("S", ""), ("B", ""), ("L", " (FD-DINOv2)"), ("g", ""))
    },
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
