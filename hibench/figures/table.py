"""Tables of papers: LaTeX with booktabs, Markdown and CSV, with ±, direction, footnotes for what is missing, and a caption."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass

from hibench.figures.catalogue import Figure
from hibench.figures.pick import FIELDS, Value, both, common_protocol, metric_of, pick, protocol_of, title_of
from hibench.lines import BASELINES, NOTHING, Row, format_value, plain, resolution_text
from hibench.typeset import escape_latex, escape_markdown, fitted, stacked

__all__ = ["ARROWS", "Filled", "better_of", "caption", "fill", "to_csv", "to_latex", "to_markdown"]

ARROWS = {"lower": " ↓", "higher": " ↑", "none": ""}


@dataclass
class Filled:
    """A figure's table with its values; `notes` maps a reason to its letter, `best` holds (line, column)."""

    figure: Figure
    heads: list[tuple[str, str]]                          # title with arrow; unit, extractor or place below it
    values: list[list[Value]]
    notes: dict[str, str]
    best: set[tuple[int, int]]


def fill(figure: Figure, rows: list[Row]) -> Filled:
    """Look every cell up in the records."""
    heads: list[tuple[str, str]] = []
    columns: list[list[Value]] = []
    best: set[tuple[int, int]] = set()
    for at, column in enumerate(figure.columns):
        there = [row for row in rows if column.at.resolution in (None, (row["height"], row["width"]))]
        metric = column.metric if column.metric in FIELDS else metric_of(there, column.metric)
        places = [both(line.at, column.at) for line in figure.lines]
        protocol = common_protocol(rows, list(figure.lines), metric, places)
        values = [pick(rows, line, metric, place, protocol) for line, place in zip(figure.lines, places)]
        better = better_of(metric, [value.row for value in values if value.row])
        title, second = title_of(metric)
        where = resolution_text(*column.at.resolution) if column.at.resolution else ""
        where += f" {column.at.steps} steps" if column.at.steps else ""
        heads.append(((column.title or title) + ARROWS[better], " ".join(part for part in (second, where.strip()) if part)))
        columns.append(values)
        best |= {(number, at) for number in _best(values, metric, better)}
    notes: dict[str, str] = {}
    for line in zip(*columns):
        for value in line:
            if value.value is None:
                notes.setdefault(value.reason, chr(ord("a") + len(notes) % 26) * (1 + len(notes) // 26))
    return Filled(figure, heads, [list(line) for line in zip(*columns)], notes, best)


def better_of(metric: str, rows: list[Row]) -> str:
    """Which direction is better, "lower", "higher" or "none", as FIELDS or the first of the records with the metric says."""
    if metric in FIELDS:
        return FIELDS[metric][4]
    entries = [row["_metrics"][metric] for row in rows if metric in row["_metrics"]]
    return next((str(entry["better"]) for entry in entries if entry.get("better")), "none")


def _best(values: list[Value], metric: str, better: str) -> list[int]:
    """The competitor whose interval lies apart from all others on the better side, if all were measured alike."""
    own = [(at, one) for at, one in enumerate(values) if one.value is not None and (one.row or {})["adapter"] not in BASELINES]
    known = [(at, one) for at, one in own if one.pm is not None]
    if better == "none" or len(known) < 2 or len(known) < len(own):
        return []
    if len({protocol_of(one.row or {}, metric) for _, one in known}) > 1:
        return []
    sign = 1 if better == "lower" else -1
    ends = sorted((sign * (one.value or 0) + (one.pm or 0), sign * (one.value or 0) - (one.pm or 0), at) for at, one in known)
    return [ends[0][2]] if all(ends[0][0] < low for _, low, _ in ends[1:]) else []


def caption(figure: Figure, found: list[Row]) -> str:
    """What a figure is, and n, steps, extractor, reference and hardware of the records behind it."""
    quality = [row for row in found if row["kind"] == "quality"]
    speed = [row for row in found if row["kind"] == "speed"]
    says = [f"{figure.title} (laid out after {figure.after}).", figure.note]
    steps = sorted({row["steps"] for row in found if row["steps"] is not None})
    says += [f"Steps: {', '.join(map(str, steps))}."] if steps else []
    if quality:
        n = sorted({int(row["n"]) for row in quality if row["n"]})
        used = sorted({str(row["extractor"]) for row in quality if row["extractor"]})
        references = sorted({str(entry["reference"]) for row in quality for entry in row["_metrics"].values()
                             if entry.get("reference")})
        says.append(f"n = {', '.join(map(str, n)) or 'unknown'} images; extractor {', '.join(used) or 'none'}"
                    + (f"; reference {', '.join(references)}." if references else "."))
    if speed:
        says.append(f"Speed on {', '.join(sorted({str(row['hardware']) for row in speed}))}; ± is the wider side of the "
                    "interval over processes.")
    says += [] if found else ["No record answers any part of it yet."]
    return " ".join(part for part in says if part)


def rows_behind(filled: Filled) -> list[Row]:
    """The records whose numbers the table shows, each once."""
    return list({str(one.row["id"]): one.row for line in filled.values for one in line
                 if one.row is not None and one.value is not None}.values())


def _texts(filled: Filled) -> list[list[tuple[str, str, bool]]]:
    """(text, footnote, best) of every cell."""
    return [[(format_value(one.value, one.pm), "", (line, at) in filled.best) if one.value is not None
             else (NOTHING, filled.notes[one.reason], False) for at, one in enumerate(values)]
            for line, values in enumerate(filled.values)]


def to_latex(filled: Filled) -> str:
    """A floating table for one or two columns, by its width; needs booktabs and graphicx."""
    figure, wide = filled.figure, "*" if len(filled.heads) > 3 else ""
    heads = [""] + [stacked(title, second) for title, second in filled.heads]
    body = [rf"\begin{{tabular}}{{l{'r' * len(filled.heads)}}}", r"\toprule", " & ".join(heads) + r" \\", r"\midrule"]
    for line, cells in zip(figure.lines, _texts(filled)):
        said = [escape_latex(line.label)]
        for text, note, best in cells:
            shown = rf"\textbf{{{escape_latex(text)}}}" if best else escape_latex(text)
            said.append(shown + (rf"\textsuperscript{{{note}}}" if note else ""))
        body.append(" & ".join(said) + r" \\")
    out = ["% needs \\usepackage{booktabs,graphicx}", rf"\begin{{table{wide}}}",
           r"\centering\small\setlength{\belowcaptionskip}{4pt}",
           rf"\caption{{{escape_latex(caption(figure, rows_behind(filled)))}}}", rf"\label{{tab:{figure.name}}}",
           *fitted([*body, r"\bottomrule", r"\end{tabular}"])]
    if filled.notes:
        notes = [rf"\textsuperscript{{{letter}}}~{escape_latex(text)}" for text, letter in filled.notes.items()]
        out += [r"\par\smallskip\begin{minipage}{\linewidth}\footnotesize\raggedright", ";\n".join(notes), r"\end{minipage}"]
    return "\n".join([*out, rf"\end{{table{wide}}}"]) + "\n"


def to_markdown(filled: Filled) -> str:
    """The same as GitHub Markdown."""
    heads = ["", *(" ".join(part for part in head if part) for head in filled.heads)]
    out = [f"**{escape_markdown(filled.figure.name)}.** {escape_markdown(caption(filled.figure, rows_behind(filled)))}", "",
           "| " + " | ".join(map(escape_markdown, heads)) + " |", "|---|" + "---:|" * len(filled.heads)]
    for line, cells in zip(filled.figure.lines, _texts(filled)):
        said = [escape_markdown(line.label)]
        said += [(f"**{text}**" if best else text) + (f"<sup>{note}</sup>" if note else "") for text, note, best in cells]
        out.append("| " + " | ".join(said) + " |")
    out += ["", *(f"<sup>{letter}</sup> {escape_markdown(text)}  " for text, letter in filled.notes.items())]
    return "\n".join(out).rstrip() + "\n"


def to_csv(filled: Filled) -> str:
    """Line, column, value, half-width, reason where there is no value, and the record's id; one row per cell."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["line", "column", "value", "pm", "best", "reason", "id"])
    for at, (line, values) in enumerate(zip(filled.figure.lines, filled.values)):
        for number, ((title, second), one) in enumerate(zip(filled.heads, values)):
            writer.writerow([line.label, f"{title} {second}".strip(), plain(one.value), plain(one.pm),
                             int((at, number) in filled.best), one.reason, (one.row or {}).get("id")])
    return stream.getvalue()
