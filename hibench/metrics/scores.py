"""Scores that need no distances between sets: inception score and CLIP score."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hibench.errors import SpecError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["clip_scores", "inception_score"]


def inception_score(logits: "NDArray[np.float32]", splits: int = 10, seed: int | None = 2020) -> tuple[float, float]:
    """exp E KL(p(y|x) ‖ p(y)) (1606.03498): mean and standard deviation (ddof 0) over splits, in float64.

    Shuffled by RandomState(2020).permutation as torch-fidelity (`seed=None`: not shuffled, as StyleGAN3). Raises SpecError for
    fewer images than splits.
    """
    import numpy as np
    import torch

    n = len(logits)
    if n < splits:
        raise SpecError(f"inception score in {splits} splits needs at least {splits} images, got {n}; give more")
    if not np.isfinite(logits).all():
        raise SpecError("logits hold NaN or infinity; see the count of bad images")
    order = np.arange(n) if seed is None else np.random.RandomState(seed).permutation(n)
    log_p = torch.as_tensor(logits[order]).double().log_softmax(1)
    p = log_p.exp()
    scores = []
    for i in range(splits):
        part = slice(i * n // splits, (i + 1) * n // splits)
        marginal = p[part].mean(0, keepdim=True)
        scores.append(float((p[part] * (log_p[part] - marginal.log())).nan_to_num_(0.0).sum(1).mean().exp()))
    return float(np.mean(scores)), float(np.std(scores))


def clip_scores(images: "NDArray[np.float32]", prompts: "NDArray[np.float32]") -> "NDArray[np.float64]":
    """100 · max(cos, 0) of each image [N, d] with its prompt [N, d] (2104.08718; scale 100, clamped per image, no prefix)."""
    import numpy as np

    if images.shape != prompts.shape:
        raise SpecError(f"clip-score: {len(images)} images but {len(prompts)} prompts; give one prompt per image")
    x, t = images.astype(np.float64), prompts.astype(np.float64)
    norm = np.linalg.norm(x, axis=1) * np.linalg.norm(t, axis=1)
    cosine = (x * t).sum(1) / np.where(norm > 0, norm, 1)
    out: NDArray[np.float64] = 100 * np.clip(cosine, 0, None)
    return out
