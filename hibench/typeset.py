"""Write a table as GitHub Markdown, as LaTeX (booktabs) or as CSV, with everything escaped."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from typing import Any

from hibench.columns import Column
from hibench.lines import MINUS, NOTHING, Entry, Line, format_value, plain, resolution_text
from hibench.tables import Table

__all__ = ["arrow", "entry_text", "escape_latex", "escape_markdown", "fitted", "label_columns", "stacked", "to_csv", "to_latex",
           "to_markdown"]


LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    '"': "''", "²": "$^2$", "³": "$^3$", "×": r"$\times$", "±": r"$\pm$", "↓": r"$\downarrow$", "↑": r"$\uparrow$",
    "∞": r"$\infty$", "→": r"$\to$", "≤": r"$\le$", "≥": r"$\ge$", "≈": r"$\approx$", "σ": r"$\sigma$", "µ": r"$\mu$",
    "·": r"$\cdot$", "°": r"$^\circ$", MINUS: "$-$", NOTHING: "---", "–": "--", "…": r"\ldots{}",
}


def label_columns(table: Table) -> list[tuple[str, Callable[[Line], str]]]:
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


def arrow(column: Column) -> str:
    """The direction in which a column is better, as a suffix of its title."""
    return {"lower": " ↓", "higher": " ↑"}.get(column.better, "")


def entry_text(column: Column, entry: Entry) -> str:
    """A value in the column's unit with its half-width, or the word that stands in its place."""
    return entry.text if entry.value is None else format_value(entry.value, entry.pm, column.scale)


def escape_markdown(text: str) -> str:
    """Make any text safe inside a Markdown table: one line, no pipes, tags or emphasis."""
    text = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", text)


def to_markdown(table: Table, *, title: bool = True) -> str:
    """The table as GitHub Markdown: caption, rows, footnotes."""
    labels = label_columns(table)
    head = [escape_markdown(name) for name, _ in labels]
    for column in table.columns:
        named = escape_markdown(column.title + (f"@{column.qualifier}" if column.qualifier else ""))
        head.append(named + (f" ({column.unit})" if column.unit else "") + arrow(column))
    out = [f"**Table: sweep {escape_markdown(table.name)}.** {escape_markdown(table.caption)}", ""] if title else []
    out += ["| " + " | ".join(head) + " |", "|" + "---|" * len(labels) + "---:|" * len(table.columns)]
    for line in table.lines:
        fields = [escape_markdown(text(line)) for _, text in labels]
        if line.role:
            fields = [f"*{text}*" for text in fields]
        for column in table.columns:
            entry = line.entries[column.field]
            text = escape_markdown(entry_text(column, entry))
            raised = f"<sup>{','.join(entry.notes)}</sup>" if entry.notes else ""
            fields.append((f"**{text}**" if entry.best else text) + raised)
        out.append("| " + " | ".join(fields) + " |")
    out += [""] + [f"<sup>{letter}</sup> {escape_markdown(text)}  " for text, letter in table.notes.items()]
    return "\n".join(out).rstrip() + "\n"


def escape_latex(text: str) -> str:
    """Escape every character that LaTeX reads as a command, and write the symbols of our tables as math.

    What no Latin font has is named by its code point: a table that says U+4E2D is better than one that does not compile."""
    text = " ".join(str(text).split())
    return "".join(LATEX.get(letter, letter if ord(letter) < 0x180 else f"U+{ord(letter):04X}") for letter in text)


def stacked(title: str, second: str) -> str:
    """A heading of a number column: the title and, smaller below it, its unit, extractor or place; both are escaped here."""
    title, second = escape_latex(title), escape_latex(second)
    return rf"\shortstack[r]{{{title}\\{{\scriptsize {second}}}}}" if second else title


def fitted(tabular: list[str]) -> list[str]:
    """A tabular that is scaled down to the width of its column where it is wider, and left alone where it is not."""
    return [r"\sbox0{%", *tabular[:-1], tabular[-1] + "}%",
            r"\ifdim\wd0>\linewidth \resizebox{\linewidth}{!}{\usebox0}\else\usebox0\fi"]


def to_latex(table: Table) -> str:
    """The table's core columns as a LaTeX `table*` (packages booktabs, graphicx and, for the encoding, T1 fonts)."""
    labels, columns = label_columns(table), [column for column in table.columns if column.core]
    head = [escape_latex(name) for name, _ in labels]
    for column in columns:
        second = column.unit + (f" @{column.qualifier}" if column.qualifier else "")
        head.append(stacked(column.title + arrow(column), second.strip()))
    caption = re.sub(r"2\\textasciicircum\{\}(\d+)", r"$2^{\1}$", escape_latex(f"Sweep {table.name}. {table.caption}"))
    label = re.sub(r"[^A-Za-z0-9]+", "-", table.name)
    out = ["% needs \\usepackage{booktabs,graphicx}; the CSV beside this file has every column and the id of every record",
           r"\begin{table*}", r"\centering\small\setlength{\tabcolsep}{4pt}\setlength{\belowcaptionskip}{4pt}",
           rf"\caption{{{caption}}}", rf"\label{{tab:{label}}}"]
    body = [rf"\begin{{tabular}}{{{'l' * len(labels)}{'r' * len(columns)}}}", r"\toprule", " & ".join(head) + r" \\"]
    block: tuple[int, int] | None = None
    for line in table.lines:
        if (line.height, line.width) != block:
            block = (line.height, line.width)
            body.append(r"\midrule")
        fields = [escape_latex(text(line)) for _, text in labels]
        if line.role:
            fields = [rf"\textit{{{text}}}" for text in fields]
        for column in columns:
            entry = line.entries[column.field]
            text = escape_latex(entry_text(column, entry))
            raised = rf"\textsuperscript{{{','.join(entry.notes)}}}" if entry.notes else ""
            fields.append((rf"\textbf{{{text}}}" if entry.best else text) + raised)
        body.append(" & ".join(fields) + r" \\")
    out += fitted([*body, r"\bottomrule", r"\end{tabular}"])
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
        row += [dict(line.options).get(name) for name in options] + [line.hardware, plain((line.quality or {}).get("n"))]
        for column in table.columns:
            row += [plain(line.entries[column.field].value), plain(line.entries[column.field].pm)]
        row.append(" ".join(column.field for column in table.columns if line.entries[column.field].best))
        for mine in (line.speed, line.quality):
            row += [(mine or {}).get(part) for part in ("status", "reason", "id")]
        writer.writerow(row)
    return stream.getvalue()
