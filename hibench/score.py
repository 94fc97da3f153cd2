"""`hibench score`: two folders of images, or a folder and a built-in reference, to every metric in one pass."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hibench.errors import EXIT_FAILED, EXIT_OK, HibenchError, SpecError
from hibench.metrics.plan import Request, honest_name, parse

if TYPE_CHECKING:
    import torch

    from hibench.features import Extractors
    from hibench.metrics.evaluate import FeatureSet
    from hibench.references import Reference
    from hibench.references.folder import FolderReference

__all__ = ["DEFAULT_METRICS", "run_score", "score_folders"]

DEFAULT_METRICS = ("fid", "kid", "is", "precision", "recall")


def run_score(
    images: str | Path,
    reference: str | Path,
    *,
    metrics: Sequence[str] | str | None = None,
    extractor: str | None = None,
    weights: str | Path | None = None,
    crop: int | None = None,
    as_json: bool = False,
    device: str = "auto",
    prompts: str | Path | None = None,
    cache: str | Path | None = None,
    batch: int = 32,
    compiled: bool = False,
) -> int:
    """Score a folder and print a table, or one JSON object on stdout; 0, or 3 when a metric is missing (the reason goes to
    stderr).

    See `score_folders` for the arguments.
    """
    values, missing = score_folders(
        images,
        reference,
        metrics=metrics,
        extractor=extractor,
        weights=weights,
        crop=crop,
        device=device,
        prompts=prompts,
        cache=cache,
        batch=batch,
        compiled=compiled,
    )
    if as_json:
        print(json.dumps({"metrics": values}, allow_nan=False))
    else:
        for line in _table(values):
            print(line)
    for reason, names in _by_reason(missing).items():
        print(f"missing: {', '.join(names)}: {reason}", file=sys.stderr)
    return EXIT_FAILED if missing or not values else EXIT_OK


def score_folders(
    images: str | Path,
    reference: str | Path,
    *,
    metrics: Sequence[str] | str | None = None,
    extractor: str | None = None,
    weights: str | Path | None = None,
    crop: int | None = None,
    device: str = "auto",
    prompts: str | Path | None = None,
    cache: str | Path | None = None,
    batch: int = 32,
    compiled: bool = False,
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """({name: value object}, {metric: why it is missing}) of the images below `images` against a folder or `scenes`.

    `extractor`: None = scenes-clip, or inception-v3-compat when a weights file is given. `weights`: a file for that
    extractor, of any
    hash: the value's `name` then says so (`fd@inception-v3-compat-1a2b3c4d`), while its key is the name that was asked for.
    `crop`: the size in px of crop metrics that name none (pfid is added when no crop metric is asked for).
    `prompts`: a text file, one prompt per image in the order of their names, for clip-score. `cache`: None = HIBENCH_CACHE.
    `compiled`: see `hibench.features.get_extractor`.
    """
    from hibench.features import DEFAULT_EXTRACTOR, open_extractors
    from hibench.job import resolve_device
    from hibench.references.folder import FolderReference

    device = resolve_device(device)
    network = extractor or ("inception-v3-compat" if weights else DEFAULT_EXTRACTOR)
    requests = [parse(m, network) for m in _with_crop(metrics, crop)]
    samples = FolderReference(images)
    size = samples.size
    scenes = str(reference) == "scenes"
    target: Reference = _scenes(size, len(samples)) if scenes else FolderReference(reference)
    one_size = size if scenes or getattr(target, "size", None) == size else None
    pairs = [r for r in requests if r.family.source == "pairs"]
    sets = [r for r in requests if r.family.source != "pairs"]
    values, missing = _pairs(pairs, samples, target, weights, device) if pairs else ({}, {})
    if sets:
        settings = {"metrics": [r.text for r in sets], "extractor": network}
        opened = open_extractors(settings, device, one_size, weights=str(weights) if weights else None, compiled=compiled)
        more, lacking = _sets(sets, samples, target, opened, size, device, batch, cache, prompts, network if weights else None)
        values, missing = values | more, missing | lacking
    return values, missing


def _with_crop(metrics: Sequence[str] | str | None, crop: int | None) -> list[str]:
    """The metrics asked for; crop metrics without a size get `crop`."""
    from hibench.metrics.plan import FAMILY

    wanted = metrics.split(",") if isinstance(metrics, str) else list(metrics or DEFAULT_METRICS)
    wanted = [m.strip() for m in wanted if m.strip()]
    if crop is None:
        return wanted
    if crop < 1:
        raise SpecError(f"--crop {crop}: a crop has at least 1 px")
    crops = {name for name, family in FAMILY.items() if family.crop} | {"pfd", "anyres-pfd", "fd-crop"}
    if not any(m.split("@")[0] in crops for m in wanted):
        wanted.append("pfid")
    return [
        f"{m}@{crop}" if m.split("@")[0] in crops and not any(c[0].isdigit() for c in m.split("@")[1:] if c) else m
        for m in wanted
    ]


def _scenes(size: tuple[int, int] | None, count: int) -> "Reference":
    from hibench.references import ScenesReference

    if size is None:
        raise SpecError(
            "reference scenes: the images have several sizes, and scenes are rendered at theirs; score images of one size"
        )
    return ScenesReference(0, count, resolution=size)


def _sets(
    requests: list[Request],
    samples: "FolderReference",
    target: "Reference",
    opened: "Extractors",
    size: tuple[int, int] | None,
    device: str,
    batch: int,
    cache: str | Path | None,
    prompts: str | Path | None,
    vouched: str | None,
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Metrics of distributions: features of both sides, then every value."""
    from hibench.features import Collector, fit_paths, reference_features
    from hibench.metrics.evaluate import FeatureSet, evaluate

    found: FeatureSet
    if not len(opened):
        found, reference = FeatureSet({}, len(samples), size), FeatureSet({}, len(target))
    else:
        collector = Collector(opened, batch)
        for group in samples.images(batch=batch, device=device):
            collector.add(group)
        found = FeatureSet(collector.finish(), collector.n, size, bad={"nan": 0, "constant": collector.constant})
        rendered_at = size if str(target.name) == "scenes" else None
        arrays = reference_features(target, opened, rendered_at, cache, batch, device)
        fits = fit_paths(target, opened, rendered_at, cache)
        reference = FeatureSet(arrays, len(target), name=target.name, digest=target.digest, fits=fits,
                               captions=target.captions(0, len(target)) if prompts is not None else None)
    found.bad["nan"] = _not_finite(found)
    found.no_captions = "no prompts were given; give a file of prompts, one line per image"
    if prompts is not None:
        found.captions = _read_prompts(prompts)
    scores = evaluate(requests, found, reference, opened)
    values, missing = scores.values, scores.missing | scores.inapplicable  # who names metrics by hand hears of every one
    for entry in values.values():
        entry["bad"] = found.bad
    if vouched is None:
        return values, missing
    return {_asked(entry, requests, vouched, size): entry for entry in values.values()}, missing


def _asked(entry: dict[str, Any], requests: list[Request], vouched: str, size: tuple[int, int] | None) -> str:
    """The key under which a value of a weights file given by hand is printed: as if that file were the published one."""
    from hibench.weights import CATALOG

    class Published:
        weights_sha256 = (
            CATALOG["inception-v3-compat" if vouched == "inception-v3-clean" else vouched].sha256
            if vouched in (*CATALOG, "inception-v3-clean")
            else ""
        )

    for request in requests:
        if request.family.name == entry["family"] and entry["extractor"] == request.extractor == vouched:
            return honest_name(request, Published(), size)  # type: ignore[arg-type]
    return str(entry["name"])


def _not_finite(found: "FeatureSet") -> int:
    import numpy as np

    bad = np.zeros(found.n, bool)
    for values in found.arrays.values():
        bad |= ~np.isfinite(values.reshape(found.n, -1)).all(1)
    return int(bad.sum())


def _read_prompts(path: str | Path) -> list[str]:
    from hibench.job import read_prompts

    return read_prompts(str(path)) or []


def _pairs(
    requests: list[Request], samples: "FolderReference", target: "Reference", weights: str | Path | None, device: str
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Metrics of pairs of images with the same relative name."""
    from hibench.metrics.pair_scores import PairScore
    from hibench.references.folder import FolderReference

    if not isinstance(target, FolderReference):
        raise SpecError(f"{requests[0].text} compares pairs of images: give a folder with the same file names as --reference")
    couples = _couples(samples, target)
    scores: dict[str, PairScore] = {}
    missing: dict[str, str] = {}
    for request in requests:
        try:
            scores[request.text] = PairScore(request.family, device, str(weights) if weights else None, request.size)
        except HibenchError as error:
            missing[request.text] = str(error)
    if not scores:
        return {}, missing
    for a, b in _decoded(couples, device):
        for text in [t for t in scores if t not in missing]:
            try:
                scores[text].add(a, b)
            except HibenchError as error:
                missing[text] = str(error)
    values: dict[str, dict[str, Any]] = {}
    for text in [t for t in scores if t not in missing]:
        try:
            values[text] = scores[text].value(target.name, target.digest)
        except HibenchError as error:
            missing[text] = str(error)
    return values, missing


def _couples(samples: "FolderReference", target: "FolderReference") -> list[tuple[Path, Path]]:
    """Files of both folders by their relative name without ending; SpecError names the first without a partner."""
    by_name = {p.relative_to(target.root).with_suffix("").as_posix(): p for p in target.paths}
    mine = {p.relative_to(samples.root).with_suffix("").as_posix(): p for p in samples.paths}
    alone = sorted(mine.keys() ^ by_name.keys())
    if alone:
        side = samples.root if alone[0] in mine else target.root
        raise SpecError(
            f"pairs: {len(alone)} images have no partner of the same name, e.g. '{alone[0]}' in {side}; "
            "give folders with equal names"
        )
    return [(mine[name], by_name[name]) for name in sorted(mine)]


def _decoded(couples: list[tuple[Path, Path]], device: str) -> "Iterator[tuple[torch.Tensor, torch.Tensor]]":
    import torch

    from hibench.images import stream

    files = stream([path for couple in couples for path in couple])
    for first, second in zip(files, files):
        yield torch.from_numpy(first)[None].to(device), torch.from_numpy(second)[None].to(device)


def _by_reason(missing: dict[str, str]) -> dict[str, list[str]]:
    out: dict[str, list[str]] = {}
    for name, reason in missing.items():
        out.setdefault(reason, []).append(name)
    return out


def _table(values: dict[str, dict[str, Any]]) -> Iterator[str]:
    """One line per metric: name, value ± pm, unit, direction, counts, resize and weights."""
    arrows = {"lower": "lower is better", "higher": "higher is better", "none": ""}
    width = max((len(e["name"]) for e in values.values()), default=0)
    for entry in values.values():
        pm = "" if entry["pm"] is None else f" ± {entry['pm']:.3g}"
        n = f"n={entry['n']}" + (f"/{entry['n_reference']}" if entry["n_reference"] else "")
        notes = [
            n,
            arrows[entry["better"]],
            entry["resize"] or "",
            f"weights {entry['weights_sha256'][:8]}" if entry["weights_sha256"] else "",
        ]
        yield (
            f"{entry['name']:<{width}}  {entry['value']:.6g}{pm} {entry['unit']}".rstrip()
            + "  "
            + ", ".join(n for n in notes if n)
        )
    bad = next((e["bad"] for e in values.values() if any(e.get("bad", {}).values())), None)
    if bad:
        yield f"note: {bad['constant']} images of one colour, {bad['nan']} with features that are not finite; "
        yield "      all of them are counted in"
