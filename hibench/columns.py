"""The columns of a table: which ones its records fill, their titles, units and directions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hibench.lines import Line, Row, number

__all__ = ["ORDER", "Column", "attached", "columns_of", "metric_names", "metric_title", "unit_of"]

TITLES = {"fid": "FID", "kid": "KID", "fd": "FD", "kd": "KD", "is": "IS", "precision": "Precision", "recall": "Recall",
          "clip-score": "CLIP score", "cmmd": "CMMD", "density": "Density", "coverage": "Coverage", "mind": "MIND",
          "sfid": "sFID", "fid-inf": "FID∞", "fd-inf": "FD∞", "clean-fid": "Clean-FID", "clean-kid": "Clean-KID",
          "fid-clip": "CLIP-FID",
          "fd-dinov2": "FD-DINOv2", "pfid": "Patch-FID", "pfd": "Patch-FD", "anyres-pfid": "Any-res. patch-FID",
          "anyres-pfd": "Any-res. patch-FD", "fid-crop": "Crop FID", "fd-crop": "Crop FD", "is-crop": "Crop IS", "swd": "SWD",
          "spectrum": "Spectrum", "seam": "Seam", "scale-consistency": "Scale consistency", "repetition": "Repetition",
          "psnr": "PSNR", "ssim": "SSIM", "lpips": "LPIPS", "psim": "PSIM"}
ORDER = ("fid", "fd", "kid", "kd", "is", "precision", "recall", "clip-score")
SPEED = (                                                 # field, title, quantity, better, also in the LaTeX table
    ("latency_p50_s", "Latency p50", "s", "lower", True), ("latency_p90_s", "Latency p90", "s", "lower", False),
    ("first_image_s", "First image", "s", "lower", False), ("peak_bytes", "Peak memory", "bytes", "lower", True),
    ("weights_bytes", "Weights", "bytes", "lower", False), ("nfe", "NFE", "", "none", False),
    ("coordinates", "Coordinates", "coordinates", "none", False), ("flops", "FLOPs", "FLOP", "none", False),
    ("energy_j_per_image", "Energy", "J", "lower", False),
)
RATIOS = {"latency_p50_s": ("speedup", "Speed-up"), "peak_bytes": ("memory_saved", "Memory saved")}   # to s = 0


@dataclass(frozen=True)
class Column:
    """A measured column: `field` names it in a row, values are shown multiplied by `scale` in `unit`."""

    field: str
    title: str
    unit: str
    better: str                                           # "lower" | "higher" | "none"
    scale: float
    kind: str                                             # "speed" | "quality"
    core: bool                                            # also in the LaTeX table
    qualifier: str = ""                                   # the extractor, where there is one
    ratio_of: str = ""                                    # the field whose value at s = 0 is divided by the line's


def metric_title(name: str) -> tuple[str, str]:
    """Title and extractor of a metric: `fd@scenes-clip` gives ("FD", "scenes-clip"), `fid` gives ("FID", "")."""
    family, _, extractor = name.partition("@")
    return TITLES.get(family, family), extractor


def metric_names(rows: Iterable[Row]) -> list[str]:
    """Every metric that a row has a value for, or says is missing; the well-known ones first."""
    rows = list(rows)
    names = {name for row in rows for name in row["_metrics"]}
    names |= {attached(name, names) for row in rows for name in row["_missing"]}
    rank = {family: position for position, family in enumerate(ORDER)}
    return sorted(names, key=lambda name: (name.partition("@")[2], rank.get(name.partition("@")[0], len(rank)), name))


def attached(name: str, names: Iterable[str]) -> str:
    """The honest name that a missing family name stands for, when exactly one metric is of that family."""
    family, _, extractor = name.partition("@")
    families = {family, {"fid": "fd", "kid": "kd"}.get(family, family)}
    same = [other for other in names if other.partition("@")[0] in families and extractor in ("", other.partition("@")[2])]
    return name if name in names or len(same) != 1 else same[0]


def columns_of(lines: list[Line], metrics: list[str]) -> list[Column]:
    """What the speed rows know, with ratios to s = 0 where lines differ in sparsity; then a column per metric in `metrics`."""
    columns = []
    sparse = len({line.sparsity for line in lines if not line.role}) > 1
    for name, title, quantity, better, core in SPEED:
        values = [number((line.speed or {}).get(name)) for line in lines]
        known = sorted(value for value in values if value is not None)
        failed = name == "latency_p50_s" and any(line.speed for line in lines)
        if known or failed:
            scale, unit = unit_of(quantity, known)
            columns.append(Column(name, title, unit, better, scale, "speed", core))
        if known and sparse and name in RATIOS:
            columns.append(Column(*RATIOS[name], "×", "higher", 1.0, "speed", True, ratio_of=name))
    for name in metrics:
        title, extractor = metric_title(name)
        entries = [line.quality["_metrics"][name] for line in lines if line.quality and name in line.quality["_metrics"]]
        sizes = [abs(value) for value in (number(entry.get("value")) for entry in entries) if value is not None]
        scale = 1e3 if sizes and max(sizes) < 0.1 else 1.0
        unit = next((str(entry["unit"]) for entry in entries if entry.get("unit")), "")
        better = next((str(entry["better"]) for entry in entries if entry.get("better")), "none")
        unit = f"×10³ {unit}".strip() if scale != 1 else unit
        columns.append(Column(name, title, unit, better, scale, "quality", True, extractor))
    if not metrics and any(line.quality for line in lines):
        columns.append(Column("quality", "Quality", "", "none", 1.0, "quality", True))
    return columns


def unit_of(quantity: str, known: list[float]) -> tuple[float, str]:
    """Scale and unit that fit the median of the values: ms or s, MiB or GiB, MFLOP to TFLOP, k or M coordinates."""
    middle = known[len(known) // 2] if known else 0.0
    if quantity == "s":
        return (1e3, "ms") if 0 < middle < 0.1 else (1.0, "s")
    if quantity == "bytes":
        return (2.0**-20, "MiB") if middle < 2**29 else (2.0**-30, "GiB")
    if quantity == "FLOP":
        return next(((scale, unit) for most, scale, unit in ((1e9, 1e-6, "MFLOP"), (1e12, 1e-9, "GFLOP")) if middle < most),
                    (1e-12, "TFLOP"))
    if quantity == "coordinates":
        return (1.0, "") if middle < 1e4 else (1e-3, "k") if middle < 1e6 else (1e-6, "M")
    return 1.0, quantity
