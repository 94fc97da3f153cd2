"""Metrics of sets of images: what there is, and the scoring of a quality cell from its shards of features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hibench.errors import HibenchError
from hibench.metrics.plan import FAMILIES, FAMILY, TRUNKS, parse
from hibench.metrics.shards import merge_shards

if TYPE_CHECKING:
    import torch

    from hibench.metrics.evaluate import FeatureSet

__all__ = ["FAMILIES", "describe", "merge_shards", "needs_prompts", "parse", "scale_arrays", "scale_factors", "score_cell"]


def needs_prompts(metrics: Sequence[str]) -> bool:
    """Whether any of the metrics compares images with prompts."""
    return any(parse(m).family.name in ("clip-score", "repetition") for m in metrics)


def scale_factors(metrics: Sequence[str]) -> tuple[int, ...]:
    """The factors k at which scale consistency is asked for."""
    from hibench.metrics.plan import SCALE

    requests = [parse(m) for m in metrics]
    return tuple(sorted({r.size or SCALE for r in requests if r.family.name == "scale-consistency"}))


def scale_arrays(
    factor: int, found: "Sequence[Mapping[str, torch.Tensor]]", inapplicable: str = "", failed: str = ""
) -> dict[str, Any]:
    """What a shard stores of `anyres.scale_consistency` at `factor`, one result per image; or why there are none."""
    import numpy as np

    names = ("psnr", "ssim", "mae")
    rows = np.array([[float(f[name]) if name in f else np.nan for name in names] for f in found], np.float32)
    return {
        f"scale{factor}": rows.reshape(-1, len(names)),
        f"scale{factor}:inapplicable": np.array(inapplicable),
        f"scale{factor}:failed": np.array(failed),
    }


def _captions(cell: Mapping[str, Any], seeds: Sequence[int], first_seed: int) -> list[str] | None:
    """The prompt of each sample: the cell's prompts, or what a method that has its own says they are (`captions(seeds)`).

    A method that takes text with some options only answers `captioned(options)`.
    """
    from hibench.job import prompts_for
    from hibench.registry import load_adapter

    known = prompts_for(cell.get("prompts"), seeds, first_seed)
    if known is not None or not cell.get("adapter"):
        return known
    adapter = load_adapter(str(cell["adapter"]))
    truth, captioned = (getattr(adapter, name, None) for name in ("captions", "captioned"))
    if truth is None or (captioned is not None and not captioned(dict(cell.get("options") or {}))):
        return None
    return list(truth(seeds))


def score_cell(
    shard_paths: Sequence[str | Path],
    settings: Mapping[str, Any],
    cell: Mapping[str, Any],
    cache: str | Path | None = None,
    captions: Sequence[str] | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """The record's `quality` object (without samples): n, first_seed, values, missing, inapplicable, bad.

    `settings`: the quality block, its reference resolved to a definition. `cell`: height, width and, for clip-score, prompts
    or adapter.
    `captions`: one prompt per sample (None = as the cell says; for a method without prompts clip-score is inapplicable).
    `device`: None = the cell's.
    """
    from hibench.features import fit_paths, open_extractors, reference_features
    from hibench.job import resolve_device
    from hibench.metrics.evaluate import FeatureSet, evaluate
    from hibench.metrics.spread import BLOCKS
    from hibench.references import open_reference

    resolution = (int(cell["height"]), int(cell["width"]))
    device = resolve_device(device or str(cell.get("device") or "cpu"))
    first_seed = int(settings.get("first_seed") or 0)
    requests = [parse(m, str(settings.get("extractor") or "scenes-clip")) for m in settings["metrics"]]
    samples = merge_shards(shard_paths)
    samples.resolution = resolution
    if needs_prompts(settings["metrics"]):
        samples.captions = captions if captions is not None else _captions(cell, samples.seeds, first_seed)
    extractors = open_extractors(settings, device, resolution)
    reference: FeatureSet | None = None
    problem = None
    if settings.get("reference"):
        try:
            source = open_reference(settings["reference"], resolution, samples.n)
            arrays = reference_features(source, extractors, resolution, cache, int(settings.get("batch") or 32), device)
            fits = fit_paths(source, extractors, resolution, cache)
            reference = FeatureSet(arrays, len(source), resolution, name=source.name, digest=source.digest, fits=fits)
            if needs_prompts(settings["metrics"]):
                reference.captions = source.captions(0, len(source))
        except HibenchError as error:
            problem = str(error)
    scores = evaluate(requests, samples, reference, extractors, int(settings.get("blocks") or BLOCKS))
    missing = {k: problem if problem and "needs a reference" in v else v for k, v in scores.missing.items()}
    return {
        "n": samples.n,
        "first_seed": first_seed,
        "values": scores.values,
        "missing": missing,
        "inapplicable": scores.inapplicable,
        "bad": samples.bad,
    }


def describe() -> list[dict[str, Any]]:
    """One row per metric family: name, about, extractor (None = the chosen one), available here, else why and the next
    command."""
    from hibench import features, weights

    known = {row["name"]: row for row in features.describe()}
    rows = []
    for family in FAMILY.values():
        row: dict[str, Any] = {
            "name": family.name,
            "about": family.about,
            "better": family.better,
            "unit": family.unit,
            "extractor": family.extractor,
            "available": True,
            "why": "",
            "next": "",
        }
        if family.extractor is not None and not known[family.extractor]["available"]:
            row |= {"available": False, "why": f"no weights for {family.extractor}", "next": known[family.extractor]["next"]}
        trunk = TRUNKS.get(family.name)
        if trunk and weights.find(trunk) is None:
            row |= {"available": False, "why": f"no weights for {trunk}", "next": f"hibench fetch {trunk}"}
        rows.append(row)
    return rows
