"""What a metric's name asks for: its grammar, the extractors it needs, and the honest name that its record carries."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hibench.errors import SpecError, did_you_mean
from hibench.weights import is_published

if TYPE_CHECKING:
    from hibench.extractors.pixels import Seams
    from hibench.features import Extractor

__all__ = ["FAMILIES", "FAMILY", "TRUNKS", "Family", "Inapplicable", "Need", "Request", "honest_name", "parse", "requirements"]

COMPAT, CLEAN = "inception-v3-compat", "inception-v3-clean"
SCALE = 4  # scale-consistency without a factor: the image at 4R against the image at R


class Inapplicable(SpecError):
    """The metric says nothing about these images (no prompts, no patch borders, ...): no fault, and nothing to get or mend."""


@dataclass(frozen=True)
class Family:
    """One kind of metric. `extractor`: fixed by its definition, or None = the chosen one; `role`: the layer it reads."""

    name: str
    about: str
    better: str = "lower"  # lower | higher | none
    role: str = "features"
    extractor: str | None = None
    other_name: str = ""  # what it is called with another network: fid → fd
    unit: str = ""
    crop: tuple[int, str] | None = None  # crops per image and scale law
    source: str = "features"  # features | pixels | pairs


_ALL = (
    Family("fid", "Fréchet distance of features (1706.08500)", other_name="fd"),
    Family("kid", "kernel distance, polynomial degree 3, subsets of 1000 as torch-fidelity (1801.01401)", other_name="kd"),
    Family("is", "inception score, 10 splits (1606.03498)", "higher", "logits"),
    Family("precision", "improved precision, k = 3 (1904.06991)", "higher"),
    Family("recall", "improved recall, k = 3 (1904.06991)", "higher"),
    Family("density", "density, k = 5 (2002.09797)", "higher"),
    Family("coverage", "coverage, k = 5 (2002.09797)", "higher"),
    Family("mind", "Monge inception distance: sliced W2 of features, 1000 directions (2605.06797)"),
    Family("fid-inf", "Fréchet distance extrapolated to infinitely many samples (1911.07023)", other_name="fd-inf"),
    Family(
        "sfid", "Fréchet distance of Mixed_6d.branch1x1, 7 channels, 17x17 (2103.03841, ADM)", role="spatial", extractor=COMPAT
    ),
    Family("clean-fid", "fid with clean-fid's antialiased resize (2104.11222)", extractor=CLEAN),
    Family("clean-kid", "kid with clean-fid's antialiased resize", extractor=CLEAN),
    Family(
        "fid-clip",
        "Fréchet distance of CLIP ViT-B/32 features, clean-fid preprocessing (2203.06026)",
        extractor="clip-vit-b-32",
    ),
    Family("fd-dinov2", "Fréchet distance of DINOv2 ViT-L/14 features (2306.04675)", extractor="dinov2-vit-l-14"),
    Family("cmmd", "CLIP maximum mean discrepancy, σ = 10, ×1000 (2401.09603)", extractor="clip-vit-l-14-336"),
    Family(
        "clip-score",
        "100 · max(cosine(image, prompt), 0), mean over images (2104.08718 with scale 100, no prefix)",
        "higher",
        "text",
    ),
    Family(
        "repetition",
        "share of disjoint P x P windows in which scenes-clip sees the prompt's object; compare with true images",
        role="logits",
        extractor="scenes-clip",
    ),
    Family("pfid", "patch-FID: one random P x P crop per image (INFD)", other_name="pfd", crop=(1, "native")),
    Family(
        "anyres-pfid",
        "patch-FID, crops at a uniform scale (AnyRes-GAN 2204.07156)",
        other_name="anyres-pfd",
        crop=(1, "uniform"),
    ),
    Family("fid-crop", "Fréchet distance of 10 crops per image (DemoFusion line)", other_name="fd-crop", crop=(10, "native")),
    Family("is-crop", "inception score of 10 crops per image (DemoFusion line)", "higher", "logits", crop=(10, "native")),
    Family("swd", "sliced Wasserstein distance on a Laplacian pyramid, mean over levels, ×1000 (1710.10196)", source="pixels"),
    Family("spectrum", "distance of radially averaged log power spectra", unit="dB", source="pixels"),
    Family("seam", "gradient across patch borders of period P over gradient elsewhere; 1 = no seam", "none", source="pixels"),
    Family(
        "scale-consistency",
        "PSNR of the image at k·R (4·R if not said), box-downsampled, against the image at R, same seed",
        "higher",
        unit="dB",
        source="pairs",
    ),
    Family("psnr", "peak signal-to-noise ratio, mean over images, uint8 RGB", "higher", unit="dB", source="pairs"),
    Family("ssim", "structural similarity, 11 x 11 Gaussian window, mean over RGB (Wang 2004)", "higher", source="pairs"),
    Family("lpips", "LPIPS v0.1, AlexNet (1801.03924)", source="pairs"),
    Family("psim", "LPIPS v0.1, VGG16: the PSIM of LDM's autoencoder table", source="pairs"),
)
FAMILY = {f.name: f for f in _ALL}
FAMILIES = tuple(FAMILY)
TRUNKS = {"lpips": "alexnet", "psim": "vgg16"}  # metrics of pairs and the published network below them
_ALIASES = {f.other_name: f.name for f in _ALL if f.other_name}
_NEEDS_SIZE = ("seam", "repetition")
_TAKES_SIZE = (*_NEEDS_SIZE, "scale-consistency")


@dataclass(frozen=True)
class Request:
    """A parsed metric: its family, extractor, and the pixel sizes in its name."""

    text: str
    family: Family
    extractor: str
    size: int | None = None  # crop or window size or period of patch borders in px; of scale-consistency the factor
    full: int | None = None  # pfid@P/R: the R that was asked for
    seed: int = 0


def parse(text: str, extractor: str = "scenes-clip") -> Request:
    """`fid`, `fd@NAME`, `pfid@P`, `pfid@P/R`, `pfd@NAME@P/R`, `seam@P`, `scale-consistency@K`, ...; else SpecError with
    a suggestion.

    `extractor`: the one that families without a fixed one use.
    """
    head, *rest = str(text).strip().split("@")
    name = _ALIASES.get(head, head)
    if name not in FAMILY:
        raise SpecError(f"unknown metric '{text}'{did_you_mean(head, [*FAMILIES, *_ALIASES])}; known: {', '.join(FAMILIES)}")
    family = FAMILY[name]
    size = full = None
    chosen: str | None = None
    for part in rest:
        match = re.fullmatch(r"(\d+)(?:/(\d+))?", part)
        if match:
            if not (family.crop or name in _TAKES_SIZE):
                raise SpecError(f"metric '{text}': {name} takes no size; write '{name}' or '{name}@EXTRACTOR'")
            size, full = int(match[1]), int(match[2]) if match[2] else None
            if name == "scale-consistency" and (size < 2 or full is not None):
                raise SpecError(f"metric '{text}': the factor is a whole number from 2 on, e.g. {name}@{SCALE}")
        else:
            chosen = part
    if chosen is not None:
        _check_extractor(text, family, chosen)
    if (size is not None and size < 1) or (full is not None and size is not None and full < size):
        raise SpecError(
            f"metric '{text}': the size must be at least 1 px and not larger than the image; write e.g. {name}@32/128"
        )
    if name in _NEEDS_SIZE and size is None:
        what = "period of the patch borders" if name == "seam" else "size at which the network was trained"
        raise SpecError(f"metric '{text}': say the {what} in px, e.g. {name}@{32 if name == 'seam' else 64}")
    return Request(str(text), family, family.extractor or chosen or extractor, size, full)


def _check_extractor(text: str, family: Family, chosen: str) -> None:
    from hibench.features import EXTRACTORS

    if family.source != "features" or family.extractor not in (None, chosen):
        fixed = family.extractor or "no network"
        raise SpecError(f"metric '{text}': {family.name} is defined with {fixed}; write '{family.name}'")
    if ":" not in chosen and chosen not in EXTRACTORS:
        raise SpecError(
            f"metric '{text}': no extractor named '{chosen}'{did_you_mean(chosen, EXTRACTORS)}; known: {', '.join(EXTRACTORS)}"
        )


@dataclass(frozen=True)
class Need:
    """An extractor (perhaps over crops) that a request reads; `key` names it in the opened set."""

    key: str
    build: "Callable[[Callable[[str], Extractor | None], tuple[int, int] | None], Extractor | None]"
    role: str | None = None  # None = every layer

    def layers(self, extractor: "Extractor") -> list[str]:
        """The extractor's layers that the metric reads."""
        role = "features" if self.role == "text" else self.role
        return list(extractor.outputs) if role is None else [extractor.roles[role]] if role in extractor.roles else []


def crop_plan(request: Request) -> Any:
    """The CropPlan of a crop request; SpecError when no size was given."""
    from hibench.extractors.crops import CropPlan

    assert request.family.crop is not None
    if request.size is None:
        raise SpecError(f"metric '{request.text}': say the crop size in px, e.g. {request.family.name}@32 (or --crop 32)")
    return CropPlan(request.size, request.family.crop[0], request.family.crop[1], request.seed)


def requirements(request: Request) -> list[Need]:
    """The extractors whose features the request reads."""
    from hibench.extractors.pixels import Seams, Spectrum, SwdPatches

    family = request.family
    if family.source == "pairs":
        return []
    if family.name == "spectrum":
        return [Need("spectrum", lambda network, resolution: Spectrum(_known(resolution, "spectrum")))]
    if family.name == "swd":
        return [Need("swd", lambda network, resolution: SwdPatches(_known(resolution, "swd")))]
    if family.name == "seam":
        period = request.size or 0
        return [Need(f"seam{period}", lambda network, resolution: _with_borders(Seams(period), resolution))]
    if family.name == "repetition":
        return [_over_windows(request)]
    if family.crop is None:
        return [Need(request.extractor, lambda network, resolution: network(request.extractor), family.role)]
    plan = crop_plan(request)

    def over_crops(network: "Callable[[str], Extractor | None]", resolution: tuple[int, int] | None) -> "Extractor | None":
        from hibench.extractors.crops import CropExtractor

        if request.full is not None and resolution is not None and min(resolution) != request.full:
            raise Inapplicable(
                f"{request.text}: the images are {resolution[1]}x{resolution[0]} px, "
                f"not {request.full} px; write {family.name}@{plan.size}"
            )
        if resolution is not None and min(resolution) < plan.size:
            raise Inapplicable(
                f"{request.text}: a {plan.size} px crop does not fit {resolution[1]}x{resolution[0]} px images; "
                "use a smaller crop"
            )
        base = network(request.extractor)
        return None if base is None else CropExtractor(base, plan)

    return [Need(f"{request.extractor}+crop{plan.size}-{plan.label}", over_crops, family.role)]


def _over_windows(request: Request) -> Need:
    """The extractor over the disjoint windows of an image that has several."""
    size = request.size or 0

    def build(network: "Callable[[str], Extractor | None]", resolution: tuple[int, int] | None) -> "Extractor | None":
        from hibench.extractors.windows import WindowExtractor

        height, width = _known(resolution, request.text)
        if (height // size) * (width // size) < 2:
            raise Inapplicable(f"{request.text}: {width}x{height} px images have no two windows of {size} px")
        base = network(request.extractor)
        return None if base is None else WindowExtractor(base, size)

    return Need(f"{request.extractor}+grid{size}", build, request.family.role)


def _with_borders(seams: "Seams", resolution: tuple[int, int] | None) -> "Extractor":
    if resolution is not None and min(resolution) <= seams.period:
        raise Inapplicable(
            f"seam@{seams.period}: {resolution[1]}x{resolution[0]} px images have no border at a period of {seams.period} px"
        )
    return seams


def _known(resolution: tuple[int, int] | None, name: str) -> tuple[int, int]:
    if resolution is None:
        raise SpecError(f"{name}: the images must have one size: compare images of equal size")
    return resolution


def honest_name(request: Request, extractor: "Extractor | None", resolution: tuple[int, int] | None) -> str:
    """The name a record carries (DESIGN §7): `fid` alone is torch-fidelity's network with its published weights and resize.

    Another network: `fd@NAME`; the same network with other weights: `fd@inception-v3-compat-1a2b3c4d` (start of their SHA-256);
    crop metrics carry crop size, image size, count, scale law and seed: `pfid@256/1024-x1-native-s0`.
    """
    family = request.family
    if family.source in ("pairs", "pixels"):
        return f"{family.name}@{request.size}" if request.size else family.name
    base = getattr(extractor, "base", extractor)
    sha = getattr(base, "weights_sha256", "")
    weights_name = COMPAT if request.extractor == CLEAN else request.extractor
    published = is_published(weights_name, sha)
    network = (
        request.extractor if published or weights_name not in _cataloged() or not sha else f"{request.extractor}-{sha[:8]}"
    )
    fixed = family.extractor or COMPAT
    if published and request.extractor == fixed and family.name != "clip-score":
        stem = family.name
    elif published and request.extractor == CLEAN and family.name in ("fid", "kid"):
        stem = f"clean-{family.name}"
    else:
        stem = f"{family.other_name or family.name}@{network}"
    if family.crop is None:
        return f"{stem}@{request.size}" if request.size else stem
    plan = crop_plan(request)
    whole = (
        "mixed"
        if resolution is None
        else str(resolution[0])
        if resolution[0] == resolution[1]
        else f"{resolution[0]}x{resolution[1]}"
    )
    return f"{stem}@{plan.size}/{whole}-{plan.label}"


def _cataloged() -> Any:
    from hibench.weights import CATALOG

    return CATALOG
