"""From features to values: every requested metric with its ±, extractor, weights, resize rule and reference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hibench.errors import HibenchError, SpecError
from hibench.metrics.computing import COMPUTE, Job
from hibench.metrics.plan import SCALE, Inapplicable, Request, honest_name, requirements
from hibench.metrics.sets import FeatureSet, Result, ScalePairs, Scores
from hibench.metrics.spread import BLOCKS

if TYPE_CHECKING:
    from hibench.features import Extractors

__all__ = ["FeatureSet", "Result", "ScalePairs", "Scores", "evaluate"]


def evaluate(
    requests: Sequence[Request],
    samples: FeatureSet,
    reference: FeatureSet | None,
    extractors: "Extractors",
    blocks: int = BLOCKS,
) -> Scores:
    """Every request as a value object under its honest name, or under its own with the reason why there is none.

    A value object holds value, pm, pm_rule, n, n_reference, extractor, weights_sha256, resize, reference, reference_digest,
    better, unit,
    name, family and what belongs to the metric. Nothing is dropped: a metric that cannot be computed is missing with its
    reason.
    """
    scores = Scores()
    memo: dict[Any, Any] = {}
    for request in requests:
        try:
            name, entry = _one(request, samples, reference, extractors, blocks, memo)
        except Inapplicable as error:
            scores.inapplicable[request.text] = str(error)
        except HibenchError as error:
            scores.missing[request.text] = str(error)
        else:
            scores.values[name] = entry
    return scores


def _paired(request: Request, samples: FeatureSet, reference: FeatureSet | None, blocks: int) -> dict[str, Any]:
    """The value of a pair metric that was taken image by image when the images were made; MissingWeights where it was not."""
    from hibench.metrics.pair_scores import PairScore

    score, known = PairScore(request.family), samples.arrays.get(f"pairs/{request.family.name}")
    if known is None:
        raise SpecError(f"{request.text}: it was not taken when these images were made; run the cell again")
    score.values = known.astype(float).tolist()
    return score.value(reference.name if reference else "", reference.digest if reference else "", blocks)


def _one(
    request: Request,
    samples: FeatureSet,
    reference: FeatureSet | None,
    extractors: "Extractors",
    blocks: int,
    memo: dict[Any, Any],
) -> tuple[str, dict[str, Any]]:
    family = request.family
    if family.source == "pairs" and any(key.startswith("pairs/") for key in samples.arrays):
        return family.name, _paired(request, samples, reference, blocks)
    if family.name not in COMPUTE:
        raise Inapplicable(
            f"{family.name} compares pairs of images: use `hibench score IMAGES --reference IMAGES2 --metrics {family.name}`"
        )
    extractor = None
    for need in requirements(request):
        if need.key in extractors.inapplicable:
            raise Inapplicable(extractors.inapplicable[need.key])
        for key in (need.key, request.extractor):
            if key in extractors.missing and need.key not in extractors.opened:
                raise SpecError(extractors.missing[key])
        extractor = extractors.opened.get(need.key)
    result = COMPUTE[family.name](Job(request, samples, reference, extractor, blocks, memo))
    if not math.isfinite(result.value):
        raise SpecError(f"{family.name} is not a finite number ({result.value}); {samples.bad['nan']} samples held NaN")
    no_reference = family.name in ("is", "is-crop", "clip-score", "scale-consistency") or reference is None
    name = honest_name(request, extractor, samples.resolution)
    if family.name == "scale-consistency":
        name = f"{family.name}@{request.size or SCALE}"
    return name, {
        "value": result.value,
        "pm": result.pm,
        "pm_rule": result.pm_rule,
        "n": samples.n,
        "n_reference": None if no_reference or reference is None else reference.n,
        "extractor": request.extractor if family.source == "features" else None,
        "weights_sha256": getattr(extractor, "weights_sha256", "") or None,
        "resize": getattr(extractor, "resize", None),
        "reference": None if no_reference or reference is None else reference.name,
        "reference_digest": None if no_reference or reference is None else reference.digest,
        "better": family.better,
        "unit": family.unit,
        "name": name,
        "family": family.name,
        **result.extra,
    }
