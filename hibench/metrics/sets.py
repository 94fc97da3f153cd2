"""What metrics are computed from, and what comes out: sets of features, results and scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["FeatureSet", "Result", "ScalePairs", "Scores"]


@dataclass
class ScalePairs:
    """Images at k·R against images at R of the same seeds: [n] each; or why there are none."""

    psnr: "NDArray[np.float32]"
    ssim: "NDArray[np.float32]"
    mae: "NDArray[np.float32]"
    inapplicable: str = ""  # the method does not make images of k·R
    failed: str = ""  # it should have, and did not


@dataclass
class FeatureSet:
    """Features of one set of images by "NAME/layer", row i for image i; and what is known of the images."""

    arrays: "dict[str, NDArray[np.float32]]"
    n: int
    resolution: tuple[int, int] | None = None
    captions: Sequence[str] | None = None
    no_captions: str = "the method takes no prompt"
    name: str = ""
    digest: str = ""
    seeds: Sequence[int] = ()
    bad: dict[str, int] = field(default_factory=lambda: {"nan": 0, "constant": 0})
    scales: dict[int, ScalePairs] = field(default_factory=dict)
    fits: Mapping[str, Path] = field(default_factory=dict)  # where Gaussians of the features are kept, by "NAME/layer"


@dataclass
class Result:
    """A metric's value, its ± (None = unknown, `pm_rule` says why) and what else belongs into the record."""

    value: float
    pm: float | None = None
    pm_rule: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class Scores:
    """Value objects by honest name, and why the rest is missing (a fault, or something to get) or inapplicable (neither)."""

    values: dict[str, dict[str, Any]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    inapplicable: dict[str, str] = field(default_factory=dict)
