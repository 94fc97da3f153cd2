"""Tables from records: pair speed with quality, mark the best where the intervals allow it, write Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "BASELINES", "Column", "Entry", "Line", "Row", "Table", "build", "escape_latex", "escape_markdown", "format_value", "interval",
    "metric_names", "metric_title", "number", "pair", "resolution_text", "settings_text", "to_csv", "to_latex", "to_markdown",
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
    families = {name, {"fid": "fd", "kid": "kd"}.get(name, name)}
    same = [other for other in names if other.partition("@")[0] in families]
    return name if "@" in name or name in names or len(same) != 1 else same[0]


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
        place = (row["method"], BASELINES.get(row["adapter"]), row["height"], row["width"], row["steps"], row["sparsity"] or 0.0,
                 tuple(sorted((name, str(value)) for name, value in row["_options"].items())))
        if row["kind"] == "speed":
            lines[(*place, row["hardware"])] = Line(*place, hardware=row["hardware"], speed=row)
        elif row["kind"] == "quality":
            quality[place] = row
    for place, row in quality.items():
        mine = [line for key, line in lines.items() if key[:-1] == place]
        if not mine:
            mine = [lines.setdefault((*place, None), Line(*place))]
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
    return Table(name, _caption(name, lines, columns), columns, lines, notes)


def _columns(lines: list[Line], metrics: list[str]) -> list[Column]:
    columns = []
    for name, title, quantity, better, core in SPEED:
        values = [number((line.speed or {}).get(name)) for line in lines]
        known = sorted(value for value in values if value is not None)
        failed = name == "latency_p50_s" and any(line.speed for line in lines)
        if known or failed:
            scale, unit = _unit(quantity, known)
            columns.append(Column(name, title, unit, better, scale, "speed", core))
    for name in metrics:
        title, extractor = metric_title(name)
        entries = [line.quality["_metrics"][name] for line in lines if line.quality and name in line.quality["_metrics"]]
        sizes = [abs(value) for value in (number(entry.get("value")) for entry in entries) if value is not None]
        scale = 1e3 if sizes and max(sizes) < 0.1 else 1.0
        unit = next((str(entry["unit"]) for entry in entries if entry.get("unit")), "")
        better = next((str(entry["better"]) for entry in entries if entry.get("better")), "none")
        columns.append(Column(name, title, f"×10³ {unit}".strip() if scale != 1 else unit, better, scale, "quality", True, extractor))
    if not metrics and any(line.quality for line in lines):
        columns.append(Column("quality", "Quality", "", "none", 1.0, "quality", True))
    return columns


def _unit(quantity: str, known: list[float]) -> tuple[float, str]:
    """Scale and unit that fit the median of the values: ms or s, MiB or GiB, GFLOP or TFLOP."""
    middle = known[len(known) // 2] if known else 0.0
    if quantity == "s":
        return (1e3, "ms") if 0 < middle < 0.1 else (1.0, "s")
    if quantity == "bytes":
        return (2.0**-20, "MiB") if middle < 2**29 else (2.0**-30, "GiB")
    if quantity == "FLOP":
        return (1e-9, "GFLOP") if middle < 1e12 else (1e-12, "TFLOP")
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
                entry.text, entry.notes = row["status"], [_note(notes, f"{row['status']}: {row['reason'] or 'no reason was recorded'}")]
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


def _caption(name: str, lines: list[Line], columns: list[Column]) -> str:
    """Everything a reader needs in order not to misread the table: n, extractor, reference, machine, units, marks."""
    speed = [line.speed for line in lines if line.speed and line.speed["status"] == "ok"]
    entries = [entry for line in lines if line.quality for entry in line.quality["_metrics"].values()]
    says = [f"Sweep {name}."]
    if entries:
        says.append(f"{_span('n', entries)} images per quality cell; ± of quality: {_values(entries, 'pm_rule') or 'not recorded'}.")
        for extractor in sorted({str(entry.get("extractor")) for entry in entries}):
            mine = [entry for entry in entries if str(entry.get("extractor")) == extractor]
            weights = ", ".join(sorted({str(entry["weights_sha256"])[:8] for entry in mine if entry.get("weights_sha256")}))
            digests = ", ".join(sorted({str(entry["reference_digest"])[:8] for entry in mine if entry.get("reference_digest")}))
            says.append(f"Extractor {extractor}" + (f" (weights {weights}, resize {_values(mine, 'resize')})" if weights else "")
                        + f" against reference {_values(mine, 'reference')}"
                        + (f" (digest {digests}, {_span('n_reference', mine).replace('n_reference', 'n')} images)." if digests else "."))
    if speed:
        counts = _values(speed, "images"), _values(speed, "processes")
        says.append(f"Latency per image: median over {counts[0]} images in {counts[1]} processes on {_values(speed, 'hardware')}; "
                    "± is the wider side of its confidence interval.")
        peaks = sorted({PEAK_SOURCES.get(str(row["peak_source"]), str(row["peak_source"])) for row in speed if row["peak_source"]})
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


def _values(rows: list[Row], name: str) -> str:
    said = {row[name] for row in rows if row.get(name) is not None}
    return ", ".join(sorted(str(_plain(value) if isinstance(value, float) else value) for value in said))


def _span(name: str, rows: list[Row]) -> str:
    counts = sorted({int(row[name]) for row in rows if number(row.get(name)) is not None})
    return f"{name} = {counts[0]}" if len(counts) == 1 else f"{name} = {counts[0]}–{counts[-1]}" if counts else f"{name} unknown"


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


def _label_columns(table: Table) -> list[tuple[str, Callable[[Line], str]]]:
    """The columns on the left: only axes that the sweep varies, and the machine when there are several."""
    lines = table.lines
    labels: list[tuple[str, Callable[[Line], str]]] = [
        ("Resolution", lambda line: resolution_text(line.height, line.width)), ("Method", lambda line: line.name)]
    if any(line.steps is not None for line in lines):
        labels.append(("Steps", lambda line: NOTHING if line.steps is None else str(line.steps)))
    if any(line.sparsity for line in lines):
        labels.append(("Sparsity", lambda line: NOTHING if line.role else f"{line.sparsity:g}"))
    for option in sorted({name for line in lines for name, _ in line.options}):
        labels.append((option, lambda line, option=option: dict(line.options).get(option, NOTHING)))  # type: ignore[misc]
    if len({line.hardware for line in lines if line.hardware}) > 1:
        labels.append(("Hardware", lambda line: line.hardware or NOTHING))
    counts = {line.quality["n"] for line in lines if line.quality and line.quality["n"]}
    if len(counts) > 1:
        labels.append(("n", lambda line: str(int(line.quality["n"])) if line.quality and line.quality["n"] else NOTHING))
    return labels


def _arrow(column: Column) -> str:
    return {"lower": " ↓", "higher": " ↑"}.get(column.better, "")


def _entry_text(column: Column, entry: Entry) -> str:
    return entry.text if entry.value is None else format_value(entry.value, entry.pm, column.scale)


def escape_markdown(text: str) -> str:
    """Make any text safe inside a Markdown table: one line, no pipes, tags or emphasis."""
    text = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", text)


def to_markdown(table: Table, *, title: bool = True) -> str:
    """The table as GitHub Markdown: caption, rows, footnotes."""
    labels = _label_columns(table)
    head = [escape_markdown(name) for name, _ in labels]
    for column in table.columns:
        named = escape_markdown(column.title + (f"@{column.qualifier}" if column.qualifier else ""))
        head.append(named + (f" ({column.unit})" if column.unit else "") + _arrow(column))
    out = [f"**Table: {escape_markdown(table.name)}.** {escape_markdown(table.caption)}", ""] if title else []
    out += ["| " + " | ".join(head) + " |", "|" + "---|" * len(labels) + "---:|" * len(table.columns)]
    for line in table.lines:
        fields = [escape_markdown(text(line)) for _, text in labels]
        if line.role:
            fields = [f"*{text}*" for text in fields]
        for column in table.columns:
            entry = line.entries[column.field]
            text = escape_markdown(_entry_text(column, entry))
            fields.append((f"**{text}**" if entry.best else text) + (f"<sup>{','.join(entry.notes)}</sup>" if entry.notes else ""))
        out.append("| " + " | ".join(fields) + " |")
    out += [""] + [f"<sup>{letter}</sup> {escape_markdown(text)}  " for text, letter in table.notes.items()]
    return "\n".join(out).rstrip() + "\n"


def escape_latex(text: str) -> str:
    """Escape every character that LaTeX reads as a command, and write the symbols of our tables as math."""
    special = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
               "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
               '"': r"\textquotedbl{}", "²": "$^2$", "³": "$^3$", "×": r"$\times$", "±": r"$\pm$", "↓": r"$\downarrow$",
               "↑": r"$\uparrow$", "∞": r"$\infty$", MINUS: "$-$", NOTHING: "---", "–": "--", "…": r"\ldots{}"}
    return "".join(special.get(letter, letter) for letter in " ".join(str(text).split()))


def to_latex(table: Table) -> str:
    """The table's core columns as a LaTeX `table*` (packages booktabs and, for the encoding, T1 fonts)."""
    labels, columns = _label_columns(table), [column for column in table.columns if column.core]
    head = [escape_latex(name) for name, _ in labels]
    for column in columns:
        second = column.unit + (f" @{column.qualifier}" if column.qualifier else "")
        title = escape_latex(column.title + _arrow(column))
        head.append(rf"\shortstack{{{title}\\{{\scriptsize {escape_latex(second.strip())}}}}}" if second else title)
    caption = re.sub(r"2\\textasciicircum\{\}(\d+)", r"$2^{\1}$", escape_latex(table.caption))
    label = re.sub(r"[^A-Za-z0-9]+", "-", table.name)
    out = ["% needs \\usepackage{booktabs}; the CSV beside this file has every column and the id of every record",
           r"\begin{table*}", r"\centering\small\setlength{\tabcolsep}{4pt}", rf"\caption{{{caption}}}", rf"\label{{tab:{label}}}",
           rf"\begin{{tabular}}{{{'l' * len(labels)}{'r' * len(columns)}}}", r"\toprule", " & ".join(head) + r" \\"]
    block: tuple[int, int] | None = None
    for line in table.lines:
        if (line.height, line.width) != block:
            block = (line.height, line.width)
            out.append(r"\midrule")
        fields = [escape_latex(text(line)) for _, text in labels]
        if line.role:
            fields = [rf"\textit{{{text}}}" for text in fields]
        for column in columns:
            entry = line.entries[column.field]
            text = escape_latex(_entry_text(column, entry))
            raised = rf"\textsuperscript{{{','.join(entry.notes)}}}" if entry.notes else ""
            fields.append((rf"\textbf{{{text}}}" if entry.best else text) + raised)
        out.append(" & ".join(fields) + r" \\")
    out += [r"\bottomrule", r"\end{tabular}"]
    if table.notes:
        out.append("\\par\\smallskip\\begin{minipage}{\\linewidth}\\footnotesize\\raggedright")
        out += [rf"\textsuperscript{{{letter}}}~{escape_latex(text)}\par" for text, letter in table.notes.items()]
        out.append(r"\end{minipage}")
    return "\n".join([*out, r"\end{table*}"]) + "\n"


def to_csv(table: Table) -> str:
    """The table in base units (seconds, bytes, joules) with half-widths, marks, statuses, reasons and record ids."""
    options = sorted({name for line in table.lines for name, _ in line.options})
    head = ["method", "role", "height", "width", "steps", "sparsity", *(f"option.{name}" for name in options), "hardware", "n"]
    for column in table.columns:
        head += [column.field, f"{column.field}_pm"]
    head += ["best", *(f"{kind}_{part}" for kind in ("speed", "quality") for part in ("status", "reason", "id"))]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(head)
    for line in table.lines:
        row: list[Any] = [line.method, line.role, line.height, line.width, line.steps, line.sparsity]
        row += [dict(line.options).get(name) for name in options] + [line.hardware, _plain((line.quality or {}).get("n"))]
        for column in table.columns:
            row += [_plain(line.entries[column.field].value), _plain(line.entries[column.field].pm)]
        row.append(" ".join(column.field for column in table.columns if line.entries[column.field].best))
        for mine in (line.speed, line.quality):
            row += [(mine or {}).get(part) for part in ("status", "reason", "id")]
        writer.writerow(row)
    return stream.getvalue()


def _plain(value: float | None) -> float | int | None:
    """Whole numbers without a decimal point."""
    return int(value) if value is not None and value == int(value) else value
