"""Means of pair metrics over a stream of image pairs, with their ±."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from hibench.errors import SpecError
from hibench.metrics import pairs
from hibench.metrics.anyres import scale_consistency
from hibench.stats import block_pm, block_rule, blocks_of

if TYPE_CHECKING:
    import torch

    from hibench.metrics.plan import Family

__all__ = ["PairScore"]


class PairScore:
    """Collects one pair metric image by image; `value` is the mean over images."""

    def __init__(
        self, family: "Family", device: str = "cpu", weights: str | None = None, factor: int | None = None
    ) -> None:
        self.family, self.network, self.sha, self.values, self.factor = family, None, "", list[float](), factor
        if family.name in ("lpips", "psim"):
            self.network, self.sha = pairs.lpips_network("alex" if family.name == "lpips" else "vgg", weights, device)

    def add(self, a: "torch.Tensor", b: "torch.Tensor") -> None:
        """uint8 [B, 3, H, W] pairs; for scale-consistency the first is the larger image."""
        name = self.family.name
        if name == "psnr":
            result = pairs.psnr(a, b)
        elif name == "ssim":
            result = pairs.ssim(a, b)
        elif name == "scale-consistency":
            result = scale_consistency(a, b)["psnr"]
            if self.factor and a.shape[-1] != self.factor * b.shape[-1]:
                raise SpecError(
                    f"{name}@{self.factor}: {a.shape[-1]} px is not {self.factor} times {b.shape[-1]} px; write '{name}'"
                )
        else:
            result = pairs.lpips_distance(a, b, self.network)
        self.values += result.double().cpu().tolist()

    def value(self, reference: str, digest: str, blocks: int = 4) -> dict[str, Any]:
        """The value object of a record; SpecError when equal images make a PSNR infinite."""
        n = len(self.values)
        mean = sum(self.values) / n
        if not math.isfinite(mean):
            equal = sum(math.isinf(v) for v in self.values)
            raise SpecError(f"{self.family.name}: {equal} of {n} pairs are equal to the last bit, so the mean is infinite")
        parts = min(blocks, n // 2)
        means = [sum(self.values[i] for i in b) / len(b) for b in blocks_of(n, parts)] if parts > 1 else []
        return {
            "value": mean,
            "pm": block_pm(means),
            "n": n,
            "n_reference": n,
            "pm_rule": block_rule(parts, "pairs") if means else "too few pairs for two disjoint blocks",
            "extractor": {"lpips": "lpips-alex", "psim": "lpips-vgg"}.get(self.family.name),
            "weights_sha256": self.sha or None,
            "resize": "box" if self.family.name == "scale-consistency" else "none",
            "reference": reference,
            "reference_digest": digest,
            "better": self.family.better,
            "unit": self.family.unit,
            "name": self.family.name,
            "family": self.family.name,
        }
