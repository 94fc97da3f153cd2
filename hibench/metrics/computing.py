"""How each family of metrics is computed from two sets of features: its value and its ±."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hibench.errors import SpecError
from hibench.metrics.plan import SCALE, Inapplicable, Request
from hibench.metrics.sets import FeatureSet, Result
from hibench.metrics.spread import (
    BOTH,
    RECOMPUTED,
    by_blocks,
    by_jackknife,
    left_out,
    of_mean,
    rows_of_crops,
    too_few,
)
from hibench.stats import block_pm, block_rule, blocks_of, jackknife_pm, jackknife_rule

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hibench.features import Extractor
    from hibench.metrics.frechet import Gaussian

__all__ = ["COMPUTE", "Job"]


class Job:
    """One request over two feature sets; results that several metrics share are computed once (`memo`)."""

    def __init__(
        self,
        request: Request,
        samples: FeatureSet,
        reference: FeatureSet | None,
        extractor: "Extractor | None",
        blocks: int,
        memo: dict[Any, Any],
    ) -> None:
        self.request, self.samples, self.blocks, self.memo = request, samples, blocks, memo
        self.extractor, self._reference = extractor, reference

    def layer(self, name: str | None = None) -> str:
        assert self.extractor is not None
        role = self.request.family.role
        layer = name or self.extractor.roles.get("features" if role == "text" else role)
        if layer is None:
            raise SpecError(f"{self.extractor.name} has no {role}; choose another extractor for {self.request.family.name}")
        return f"{self.extractor.name}/{layer}"

    def x(self, layer: str | None = None) -> "NDArray[np.float32]":
        key = self.layer(layer)
        if key not in self.samples.arrays:
            raise SpecError(f"the samples have no features {key}; measure them again")
        return self.samples.arrays[key]

    def y(self, layer: str | None = None) -> "NDArray[np.float32]":
        if self._reference is None:
            raise SpecError(f"{self.request.family.name} needs a reference; give one, e.g. reference: scenes")
        return self._reference.arrays[self.layer(layer)]

    def flat(self, values: "NDArray[np.float32]") -> "NDArray[np.float32]":
        """Crops of all images as rows: [N, count, D] → [N · count, D] (blocks are cut before, so by image)."""
        out: NDArray[np.float32] = values.reshape(-1, values.shape[-1])
        return out

    def gaussian(self) -> "Gaussian":
        """The Gaussian fitted to the reference, from its cache where it has one."""
        from hibench.metrics.frechet import cached_fit

        y, key = self.flat(self.y()), ("gaussian", self.layer())
        if key not in self.memo:
            assert self._reference is not None
            self.memo[key] = cached_fit(y, self._reference.fits.get(self.layer()))
        fitted: Gaussian = self.memo[key]
        return fitted

    def frechet(self) -> Result:
        from hibench.metrics.frechet import distance, fit, fits_without_blocks

        x, y = self.x(), self.y()
        value = distance(fit(self.flat(x)), self.gaussian())
        cut = left_out(len(x), len(y), self.blocks)
        if cut is None:
            return Result(value, None, too_few(2))
        left = [fits_without_blocks(self.flat(z), rows_of_crops(z, b)) for z, b in zip((x, y), cut)]
        values = [distance(a, b) for a, b in zip(*left)]
        return Result(value, jackknife_pm(values), jackknife_rule(len(values), BOTH))

    def frechet_infinity(self) -> Result:
        from hibench.metrics.frechet import fit, frechet_infinity

        x, y = self.x(), self.y()
        value, curve = frechet_infinity(x, self.gaussian())
        pm = by_blocks(lambda a, b: frechet_infinity(a, fit(b))[0], x, y, self.blocks, least=20)
        return Result(value, *pm, extra={"curve": curve})

    def kernel(self) -> Result:
        from hibench.metrics.kernel import kernel_distance, kernel_distance_exact

        x, y = self.x(), self.y()
        value, deviation, size = kernel_distance(x, y)
        extra: dict[str, Any] = {"subsets": 100, "subset_size": size}
        if size < min(len(x), len(y)):
            return Result(value, deviation, f"sd over 100 subsets of {size}", extra)
        return Result(value, *by_jackknife(kernel_distance_exact, x, y, self.blocks), extra=extra)

    def inception_score(self) -> Result:
        from hibench.metrics.scores import inception_score

        value, deviation = inception_score(self.flat(self.x()))
        return Result(value, deviation, "sd over 10 splits", {"splits": 10})

    def neighbours(self) -> Result:
        from hibench.metrics.neighbours import Neighbours, neighbours

        x, y = self.x(), self.y()
        name = self.request.family.name
        key = ("neighbours", self.layer())
        if key not in self.memo:
            parts: list[Neighbours] = []

            def collect(a: "NDArray[np.float32]", b: "NDArray[np.float32]") -> float:
                parts.append(neighbours(a, b))
                return 0.0

            whole = neighbours(x, y)
            _, rule = by_jackknife(collect, x, y, self.blocks, least=8)
            self.memo[key] = whole, parts, rule
        whole, parts, rule = self.memo[key]
        value = getattr(whole, name)
        if math.isnan(value):
            raise SpecError(f"{name} with k = 5 needs more than 5 reference images; give more")
        spread = block_pm if max(len(x), len(y)) > RECOMPUTED else jackknife_pm
        pm = spread([getattr(p, name) for p in parts])
        return Result(value, pm, rule, {"k": 3 if name in ("precision", "recall") else 5})

    def mind(self) -> Result:
        from hibench.metrics.sliced import mind

        x, y = self.x(), self.y()
        return Result(mind(x, y), *by_jackknife(mind, x, y, self.blocks), extra={"directions": 1000})

    def cmmd(self) -> Result:
        from hibench.metrics.kernel import cmmd

        return Result(cmmd(self.x(), self.y()), *by_jackknife(cmmd, self.x(), self.y(), self.blocks))

    def clip_score(self) -> Result:
        import numpy as np

        from hibench.metrics.scores import clip_scores

        prompts = self.samples.captions
        if prompts is None:
            raise Inapplicable(f"clip-score: {self.samples.no_captions}")
        if not hasattr(self.extractor, "encode_text"):
            raise SpecError(
                f"clip-score: {self.request.extractor} has no text encoder; "
                "choose a CLIP extractor, e.g. clip-score@clip-vit-b-32"
            )
        if len(prompts) != self.samples.n:
            raise SpecError(f"clip-score: {self.samples.n} images but {len(prompts)} prompts; give one prompt per image")
        unique = list(dict.fromkeys(prompts))
        assert self.extractor is not None
        rows = [self.extractor.encode_text(unique[i : i + 64]).float().cpu().numpy() for i in range(0, len(unique), 64)]
        place = {p: i for i, p in enumerate(unique)}
        scores = clip_scores(self.x(), np.concatenate(rows)[[place[p] for p in prompts]])
        return Result(
            float(scores.mean()),
            *of_mean(scores.tolist(), self.blocks),
            extra={"prompts_digest": _digest(prompts), "scale": 100, "prefix": ""},
        )

    def repetition(self) -> Result:
        from hibench.metrics.repetition import classes_of_prompts, shown

        if self.samples.captions is None:
            raise Inapplicable(f"{self.request.text}: {self.samples.no_captions}")
        if len(self.samples.captions) != self.samples.n:
            raise SpecError(f"{self.request.text}: {self.samples.n} images but {len(self.samples.captions)} prompts; "
                            "give one prompt per image")
        classes = classes_of_prompts(self.samples.captions)
        if classes is None:
            raise Inapplicable(f"{self.request.text}: a prompt names no object of scenes, e.g. 'a red star'")
        windows = shown(self.x(), classes)
        shares = windows.mean(1).tolist()
        more = {"prompts_digest": _digest(self.samples.captions), "windows": windows.shape[1],
                "images_with_several": float((windows.sum(1) > 1).mean())}
        true = classes_of_prompts(self._reference.captions or [""]) if self._reference is not None else None
        if true is not None and self._reference is not None:
            real = shown(self.y(), true)
            more |= {"reference_value": float(real.mean()), "reference_with_several": float((real.sum(1) > 1).mean())}
        return Result(sum(shares) / len(shares), *of_mean(shares, self.blocks), extra=more)

    def spectrum(self) -> Result:
        from hibench.metrics.anyres import spectrum_distance

        x, y = self.x(), self.y()
        return Result(spectrum_distance(x, y), *by_jackknife(spectrum_distance, x, y, self.blocks))

    def seam(self) -> Result:
        from hibench.metrics.anyres import seam_ratio

        x = self.x()
        real = seam_ratio(self.y()) if self._reference is not None else None
        blocks = min(self.blocks, len(x) // 2)
        parts = [seam_ratio(x[b]) for b in blocks_of(len(x), blocks)] if blocks >= 2 else []
        rule = block_rule(blocks, "samples") if parts else "too few images for two disjoint blocks"
        return Result(seam_ratio(x), block_pm(parts), rule, {"reference_value": real, "period": self.request.size})

    def swd(self) -> Result:
        from hibench.metrics.sliced import swd_level

        assert self.extractor is not None
        levels = {layer: (self.x(layer), self.y(layer)) for layer in self.extractor.outputs}
        values = {layer: swd_level(x, y) for layer, (x, y) in levels.items()}
        x, y = next(iter(levels.values()))
        blocks = min(self.blocks, len(x) // 2, len(y) // 2)  # disjoint: sorting all patches again for each block costs most
        parts = (
            [
                sum(swd_level(x[a], y[b]) for x, y in levels.values()) / len(levels)
                for a, b in zip(blocks_of(len(x), blocks), blocks_of(len(y), blocks))
            ]
            if blocks >= 2
            else []
        )
        rule = block_rule(blocks, "samples and reference") if parts else "too few images for two disjoint blocks"
        return Result(sum(values.values()) / len(values), block_pm(parts), rule, {"levels": values})

    def scale_consistency(self) -> Result:
        factor = self.request.size or SCALE
        found = self.samples.scales.get(factor)
        if found is None:
            raise SpecError(f"{self.request.text}: no images at {factor}·R were made; measure the samples again")
        if found.inapplicable:
            raise Inapplicable(f"{self.request.text}: {found.inapplicable}")
        if found.failed:
            raise SpecError(f"{self.request.text}: {found.failed}")
        values = found.psnr.astype(float).tolist()
        extra = {"n": len(values), "n_reference": len(values), "factor": factor, "resize": "box"}
        more = {"ssim": _mean(found.ssim), "mae": _mean(found.mae)}
        return Result(sum(values) / len(values), *of_mean(values, self.blocks), extra={**extra, **more})


def _digest(prompts: Sequence[str]) -> str:
    """SHA-256 of the prompts, one per line."""
    return hashlib.sha256("\n".join(prompts).encode()).hexdigest()


def _mean(values: "NDArray[np.float32]") -> float | None:
    """None where a value is not defined (SSIM below its window)."""
    mean = float(values.mean(dtype=float))
    return mean if math.isfinite(mean) else None


COMPUTE: Mapping[str, Callable[[Job], Result]] = {
    **dict.fromkeys(("fid", "sfid", "clean-fid", "fid-clip", "fd-dinov2", "pfid", "anyres-pfid", "fid-crop"), Job.frechet),
    **dict.fromkeys(("kid", "clean-kid"), Job.kernel),
    **dict.fromkeys(("is", "is-crop"), Job.inception_score),
    **dict.fromkeys(("precision", "recall", "density", "coverage"), Job.neighbours),
    "mind": Job.mind,
    "fid-inf": Job.frechet_infinity,
    "cmmd": Job.cmmd,
    "clip-score": Job.clip_score,
    "repetition": Job.repetition,
    "spectrum": Job.spectrum,
    "seam": Job.seam,
    "swd": Job.swd,
    "scale-consistency": Job.scale_consistency,
}
