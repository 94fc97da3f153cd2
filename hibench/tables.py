"""Tables from records: pair speed with quality, mark the best where the intervals allow it, note every failure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "BASELINES", "ORDER", "Column", "Entry", "Line", "Row", "Table", "build", "format_value", "interval", "metric_names",
    "metric_title", "number", "pair", "plain", "resolution_text", "settings_text", "unit_of",
]

Row = dict[str, Any]                                      # one record, flattened by hibench.report
BASELINES = {"real": "floor", "gaussian": "ceiling"}      # reference points by adapter name; they compete for nothing
MINUS = "−"
NOTHING = "—"
TITLES = {"fid": "FID", "kid": "KID", "fd": "FD", "kd": "KD", "is": "IS", "precision": "Precision", "recall": "Recall",
          "clip-score": "CLIP score", "cmmd": "CMMD"}
ORDER = ("fid", "fd", "kid", "kd", "is", "precision", "recall", "clip-score")
SPEED = (                                                 # field, title, quantity, better, also in the LaTeX table
    ("latency_p50_s", "Latency p50", "s", "lower", True), ("latency_p90_s", "Latency p90", "s", "lower", False),
    ("first_image_s", "First image", "s", "lower", False), ("peak_bytes", "Peak memory", "bytes", "lower", True),
    ("weights_bytes", "Weights", "bytes", "lower", False), ("nfe", "NFE", "", "none", False),
    ("flops", "FLOPs", "FLOP", "none", False), ("energy_j_per_image", "Energy", "J", "lower", False),
)
PEAK_SOURCES = {"cuda-allocated": "allocated by torch on the device",
                "rss-over-idle": "resident set of the process above its idle size"}


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


@dataclass
class Entry:
    """One field of a table; `value` and `pm` are in the base unit, `text` replaces them where there is no number."""

    value: float | None = None
    pm: float | None = None
    text: str = NOTHING
    notes: list[str] = field(default_factory=list)
    best: bool = False


@dataclass
class Line:
    """What one method did at one point of the axes: its speed row and its quality row, whichever exist."""

    method: str
    role: str | None                                      # "floor" | "ceiling" of a baseline, None for a competitor
    height: int
    width: int
    steps: int | None
    sparsity: float
    options: tuple[tuple[str, str], ...]
    hardware: str | None = None
    speed: Row | None = None
    quality: Row | None = None
    entries: dict[str, Entry] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The method, with its role when it is a baseline."""
        return f"{self.method} ({self.role})" if self.role else self.method


@dataclass
class Table:
    """A sweep as a table: `lines` in blocks of one resolution, `notes` from footnote text to its letter."""

    name: str
    caption: str
    columns: list[Column]
    lines: list[Line]
    notes: dict[str, str]


def number(value: Any) -> float | None:
    """A finite float, or None for null, NaN, infinity and anything that is not a number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def resolution_text(height: int, width: int) -> str:
    """`64²` for a square, `64×128` (height × width) otherwise."""
    return f"{height}²" if height == width else f"{height}×{width}"


def settings_text(line: Line, names: Iterable[str] = ("steps", "sparsity", "options")) -> str:
    """The axes of a line besides method and resolution, as `50 steps, s = 0.75, collage=pixel`."""
    parts = []
    if "steps" in names and line.steps is not None:
        parts.append(f"{line.steps} step" + "s" * (line.steps != 1))
    if "sparsity" in names:
        parts.append(f"s = {line.sparsity:g}")
    if "options" in names:
        parts += [f"{name}={value}" for name, value in line.options]
    return ", ".join(parts)


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


def interval(row: Row | None, name: str) -> tuple[float, float, float] | None:
    """Value, lower and upper end of a measured field; None without a value, NaN ends without an interval."""
    if row is None:
        return None
    if name in row["_metrics"]:
        value, pm = number(row["_metrics"][name].get("value")), number(row["_metrics"][name].get("pm"))
        low, high = (None, None) if value is None or pm is None else (value - pm, value + pm)
    else:
        value, (low, high) = number(row.get(name)), row["_intervals"].get(name, (None, None))
    if value is None:
        return None
    return value, math.nan if low is None else low, math.nan if high is None else high


def pair(rows: Iterable[Row]) -> list[Line]:
    """Join the speed and the quality row of the same method, axes and options; several machines give several lines."""
    lines: dict[tuple[Any, ...], Line] = {}
    quality: dict[tuple[Any, ...], Row] = {}
    order: dict[str, int] = {}
    for row in rows:
        order.setdefault(row["method"], len(order))
        options = tuple(sorted((name, str(value)) for name, value in row["_options"].items()))
        place = (row["method"], BASELINES.get(row["adapter"]), row["height"], row["width"], row["steps"],
                 row["sparsity"] or 0.0, options)
        if row["kind"] == "speed":
            on = (*place, row["hardware"])
            lines[on] = Line(*place, hardware=row["hardware"], speed=row)
        elif row["kind"] == "quality":
            quality[place] = row
    for place, row in quality.items():
        mine = [line for key, line in lines.items() if key[:-1] == place]
        if not mine:
            nowhere = (*place, None)
            mine = [lines.setdefault(nowhere, Line(*place))]
        for line in mine:
            line.quality = row
    return sorted(lines.values(), key=lambda line: (
        line.height * line.width, line.height, line.role is not None, line.steps or 0, line.sparsity, line.options,
        order[line.method], line.hardware or ""))


def build(name: str, rows: list[Row]) -> Table:
    """The table of one sweep; `rows` are flattened records, in the order in which the methods are to appear."""
    lines = pair(rows)
    columns = _columns(lines, metric_names(row for row in rows if row["kind"] == "quality"))
    notes: dict[str, str] = {}
    for line in lines:
        for kind in ("speed", "quality"):
            _fill(line, [column for column in columns if column.kind == kind], kind, notes)
    group = _groups(lines)
    for column in columns:
        _mark_best(lines, column, group)
    return Table(name, _caption(lines, columns), columns, lines, notes)


def _columns(lines: list[Line], metrics: list[str]) -> list[Column]:
    columns = []
    for name, title, quantity, better, core in SPEED:
        values = [number((line.speed or {}).get(name)) for line in lines]
        known = sorted(value for value in values if value is not None)
        failed = name == "latency_p50_s" and any(line.speed for line in lines)
        if known or failed:
            scale, unit = unit_of(quantity, known)
            columns.append(Column(name, title, unit, better, scale, "speed", core))
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
    """Scale and unit that fit the median of the values: ms or s, MiB or GiB, MFLOP to TFLOP."""
    middle = known[len(known) // 2] if known else 0.0
    if quantity == "s":
        return (1e3, "ms") if 0 < middle < 0.1 else (1.0, "s")
    if quantity == "bytes":
        return (2.0**-20, "MiB") if middle < 2**29 else (2.0**-30, "GiB")
    if quantity == "FLOP":
        return next(((scale, unit) for most, scale, unit in ((1e9, 1e-6, "MFLOP"), (1e12, 1e-9, "GFLOP")) if middle < most),
                    (1e-12, "TFLOP"))
    return 1.0, quantity


def _fill(line: Line, columns: list[Column], kind: str, notes: dict[str, str]) -> None:
    """Put numbers, or the status with its reason as a footnote, into the fields of one kind."""
    row = line.speed if kind == "speed" else line.quality
    for position, column in enumerate(columns):
        entry = line.entries[column.field] = Entry()
        if row is None:
            continue
        if row["status"] != "ok":
            if position == 0:
                entry.text = row["status"]
                entry.notes = [_note(notes, f"{row['status']}: {row['reason'] or 'no reason was recorded'}")]
            continue
        measured = interval(row, column.field)
        missing = {attached(name, [column.field]): reason for name, reason in row["_missing"].items()}
        if measured is not None:
            entry.value, low, high = measured
            said = (row["_metrics"].get(column.field) or {}).get("pm")
            spread = max(high - entry.value, entry.value - low)
            entry.pm = number(said) if said is not None else None if math.isnan(low) or math.isnan(high) else spread
        elif column.field in missing:
            entry.text, entry.notes = "missing", [_note(notes, f"{column.title}: {missing[column.field]}")]
        if position == 0:
            entry.notes += [_note(notes, text) for text in row["_flags"]]


def _note(notes: dict[str, str], text: str) -> str:
    """The letter of a footnote, a new one (a, b, … z, aa, ab, …) for a text that is not there yet."""
    if text not in notes:
        rest, letters = len(notes), ""
        while rest >= 0:
            letters, rest = chr(ord("a") + rest % 26) + letters, rest // 26 - 1
        notes[text] = letters
    return notes[text]


def _groups(lines: list[Line]) -> Callable[[Line], tuple[Any, ...]]:
    """What competes: methods at the same axes, or, in a sweep of one method, its settings at the same resolution."""
    if len({line.method for line in lines if not line.role}) > 1:
        return lambda line: (line.height, line.width, line.steps, line.sparsity, line.options)
    return lambda line: (line.height, line.width)


def _mark_best(lines: list[Line], column: Column, group: Callable[[Line], tuple[Any, ...]]) -> None:
    """Mark a value as best only where its interval overlaps with no competitor's, and all were measured alike."""
    if column.better not in ("lower", "higher"):
        return
    groups: dict[tuple[Any, ...], dict[str, list[Line]]] = {}
    for line in lines:
        row = line.speed if column.kind == "speed" else line.quality
        if row is not None and line.role is None and line.entries[column.field].value is not None:
            place = (*group(line), *((line.hardware,) if column.kind == "speed" else ()))
            groups.setdefault(place, {}).setdefault(row["id"], []).append(line)
    sign = 1.0 if column.better == "lower" else -1.0
    for members in groups.values():
        found = [(_ends(same[0], column, sign), same) for same in members.values()]
        alike = len({_protocol(same[0], column) for same in members.values()}) == 1
        if len(found) < 2 or not alike or any(math.isnan(low) or math.isnan(high) for (_, low, high), _ in found):
            continue
        found.sort(key=lambda item: item[0])
        if found[0][0][2] < min(low for (_, low, _), _ in found[1:]):
            for line in found[0][1]:
                line.entries[column.field].best = True


def _ends(line: Line, column: Column, sign: float) -> tuple[float, float, float]:
    """Value and interval turned so that lower is better."""
    value, low, high = interval(line.speed if column.kind == "speed" else line.quality, column.field) or (math.nan,) * 3
    return (value, low, high) if sign > 0 else (-value, -high, -low)


def _protocol(line: Line, column: Column) -> tuple[Any, ...]:
    """What has to agree before two numbers may be compared."""
    if column.kind == "speed":
        return ((line.speed or {}).get("peak_source"),) if column.field == "peak_bytes" else ()
    entry = (line.quality or {})["_metrics"][column.field]
    return tuple(entry.get(name) for name in ("n", "n_reference", "weights_sha256", "resize", "reference_digest"))


def _caption(lines: list[Line], columns: list[Column]) -> str:
    """Everything a reader needs in order not to misread the table: n, extractor, reference, machine, units, marks."""
    speed = [line.speed for line in lines if line.speed and line.speed["status"] == "ok"]
    entries = [entry for line in lines if line.quality for entry in line.quality["_metrics"].values()]
    says = []
    if entries:
        rule = _values(entries, "pm_rule") or "not recorded"
        says.append(f"n = {_span(entries, 'n')} images per quality cell; ± of quality: {rule}.")
        for extractor in sorted({str(entry["extractor"]) for entry in entries if entry.get("extractor")}):
            mine = [entry for entry in entries if entry.get("extractor") == extractor]
            said = f"Extractor {extractor} (weights {_values(mine, 'weights_sha256', 8) or 'not recorded'}"
            said += f", resize {_values(mine, 'resize')})" if _values(mine, "resize") else ")"
            if _values(mine, "reference"):
                said += f" against reference {_values(mine, 'reference')} (digest {_values(mine, 'reference_digest', 8)}, "
                said += f"n = {_span(mine, 'n_reference')} images)"
            says.append(f"{said}.")
    if speed:
        says.append(f"Latency per image: median over {_span(speed, 'images')} images in {_span(speed, 'processes')} processes "
                    f"on {_values(speed, 'hardware')}; ± is the wider side of its 95 % confidence interval over processes.")
        sources = {str(row["peak_source"]) for row in speed if row["peak_source"]}
        peaks = sorted(PEAK_SOURCES.get(source, source) for source in sources)
        if peaks:
            says.append(f"Peak memory: {' or '.join(peaks)}; ± is its range over processes.")
        if len({row["software_digest"] for row in speed}) > 1:
            says.append("Latencies come from different software versions.")
    units = {column.unit for column in columns}
    says += [f"{unit} = {size} bytes." for unit, size in (("MiB", "2^20"), ("GiB", "2^30")) if unit in units]
    if any(line.height != line.width for line in lines):
        says.append("Resolution is height × width.")
    several = len({line.method for line in lines if not line.role}) > 1
    says.append(f"Bold: the best {'method at equal axes' if several else 'setting at equal resolution'}, marked only where its "
                "interval overlaps no other's.")
    if any(line.role for line in lines):
        says.append("Baselines marked floor and ceiling are reference points and do not compete.")
    return " ".join(says)


def _values(rows: list[Row], name: str, letters: int | None = None) -> str:
    said = {row[name] for row in rows if row.get(name) is not None}
    texts = sorted({str(plain(value) if isinstance(value, float) else value)[:letters] for value in said})
    return ", ".join(texts) if len(texts) <= 4 or letters is None else f"{len(texts)} different"


def _span(rows: list[Row], name: str) -> str:
    counts = sorted({int(row[name]) for row in rows if number(row.get(name)) is not None})
    return f"{counts[0]}" if len(counts) == 1 else f"{counts[0]}–{counts[-1]}" if counts else "unknown"


def format_value(value: float, pm: float | None, scale: float = 1.0) -> str:
    """`12.3 ± 0.4`: the interval gets one digit (two below 3.55), the value as many; three digits without an interval.

    >>> format_value(0.01234, 0.00021, 1e3), format_value(1234.4, None)
    ('12.34 ± 0.21', '1234')
    """
    value, pm = value * scale, None if pm is None else pm * scale
    if pm:
        exponent = math.floor(math.log10(pm))
        places = max(0, -exponent + (1 if pm / 10.0**exponent < 3.55 else 0))
    else:
        places = 0 if value == round(value) else max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{places}f}".replace("-", MINUS)
    return text if pm is None else f"{text} ± {pm:.{places}f}"


def plain(value: float | None) -> float | int | None:
    """Whole numbers without a decimal point."""
    return int(value) if value is not None and value == int(value) else value
