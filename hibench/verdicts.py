"""Verdicts of a check and how they are told: table, JSON, JUnit, GitHub annotations, Markdown summary, exit code."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from hibench.errors import EXIT_FAILED, EXIT_OK, EXIT_REGRESSION, EXIT_UNSURE

__all__ = ["LOST", "NEW", "Report", "Row", "github_lines", "headline", "junit", "markdown", "shown", "table", "to_json",
           "write_outputs"]

NEW, LOST = "new", "lost"
RANK = {"regressed": 0, LOST: 1, "unsure": 2, NEW: 3, "ok": 4}
BYTES = ("B", "KiB", "MiB", "GiB", "TiB")


class Row(NamedTuple):
    """One number of one cell, base against head; both in the unit of `unit` ("s", "bytes", "J", or "")."""

    key: str
    metric: str                            # latency | vram | memory | weights | nfe | flops | status | drift | a quality metric
    verdict: str                           # ok | regressed | unsure | new | lost
    text: str = ""
    base: float | str | None = None
    head: float | str | None = None
    unit: str = ""
    change: float | None = None            # relative
    low: float | None = None               # ends of its interval
    high: float | None = None
    pairs: int = 0
    gated: bool = True                     # False: only shown
    improved: bool = False
    p: float | None = None


@dataclass
class Report:
    """Everything that a check found."""

    base: str                              # what the two sides are, in words
    head: str
    rows: list[Row] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    measured: int = 0                      # cells that are ok on both sides
    notes: list[str] = field(default_factory=list)               # what the comparison tells beside its rows

    def of(self, verdict: str) -> list[Row]:
        """The gated rows with this verdict, in order."""
        return [row for row in self.rows if row.gated and row.verdict == verdict]

    @property
    def counts(self) -> dict[str, int]:
        """How many gated rows there are of each verdict."""
        found = Counter(row.verdict for row in self.rows if row.gated)
        return {verdict: found[verdict] for verdict in RANK}

    def exit_code(self, strict: bool = False) -> int:
        """1: a regression. 3: something was lost, or nothing was measured. 4: only unsure, under `strict`. Else 0."""
        if self.of("regressed"):
            return EXIT_REGRESSION
        if self.of(LOST) or self.measured == 0:
            return EXIT_FAILED
        return EXIT_UNSURE if strict and self.of("unsure") else EXIT_OK

    def ordered(self, wanted: Callable[[Row], bool] = lambda row: True) -> list[Row]:
        """Gated rows that are `wanted`, the worst verdict first, then by key."""
        return sorted((row for row in self.rows if row.gated and wanted(row)),
                      key=lambda row: (RANK[row.verdict], row.key, row.metric))


def headline(report: Report) -> str:
    """The verdict in one sentence."""
    counts = report.counts
    if counts["regressed"]:
        first = report.of("regressed")[0]
        more = f" and {counts['regressed'] - 1} more" if counts["regressed"] > 1 else ""
        return f"REGRESSED: {first.key} {first.metric} ({first.text}){more}"
    if report.measured == 0:
        return "NOTHING MEASURED: no cell is ok on both sides"
    if counts[LOST]:
        return f"LOST: {counts[LOST]} of the baseline's cells were not measured, the first is {report.of(LOST)[0].key}"
    told = f"{report.measured} cell{'s' * (report.measured != 1)} compared, nothing has become worse"
    return f"OK: {told}" + (f"; {counts['unsure']} unsure" if counts["unsure"] else "")


def shown(value: float | str | None, unit: str = "") -> str:
    """A number for people: `1.234 s`, `3.2 GiB`, `—` where there is none."""
    if value is None:
        return "—"
    if isinstance(value, str):
        return value
    if not math.isfinite(value):
        return str(value)
    if unit == "bytes":
        power = min(int(math.log2(value)) // 10, len(BYTES) - 1) if value >= 1 else 0
        return f"{value / 1024**power:.4g} {BYTES[power]}"
    if unit == "s":
        return f"{1e3 * value:.4g} ms" if value < 1 else f"{value:.4g} s"
    text = f"{value:.0f}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:.4g}"
    return f"{text} {unit}".rstrip()


def _change(row: Row) -> str:
    if row.change is None or not math.isfinite(row.change):
        return ""
    half = f" [{100 * row.low:+.1f}, {100 * row.high:+.1f}]" if row.low is not None and row.high is not None else ""
    return f"{100 * row.change:+.1f}%{half}"


def table(report: Report, everything: bool = False) -> str:
    """Plain text: the sides, one line per gated row that is not ok (and the latencies), or of every row, then the headline."""
    if everything:
        picked = report.ordered() + [row for row in report.rows if not row.gated]
    else:
        picked = report.ordered(lambda row: row.verdict != "ok" or row.metric == "latency" or row.improved)
    lines = [f"base: {report.base}", f"head: {report.head}"] + [f"warning: {text}" for text in report.warnings]
    cells = [(row.verdict if row.gated else "(info)", row.key, row.metric, shown(row.base, row.unit), shown(row.head, row.unit),
              _change(row), row.text) for row in picked]
    if cells:
        head = ("verdict", "cell", "number", "base", "head", "change", "")
        widths = [max(len(line[i]) for line in (head, *cells)) for i in range(len(head) - 1)]
        lines += ["", *("  ".join([*(text.ljust(w) for text, w in zip(line, widths)), line[-1]]).rstrip()
                        for line in (head, *cells)), ""]
    counts = report.counts
    lines += [f"note: {text}" for text in report.notes]
    lines.append(", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count) or "no number was compared")
    return "\n".join([*lines, headline(report)])


def to_json(report: Report, strict: bool = False) -> str:
    """Everything as JSON; numbers that are not finite become null."""
    def plain(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    rows = [{name: plain(value) for name, value in row._asdict().items()} for row in report.rows]
    return json.dumps({"schema": 1, "base": report.base, "head": report.head, "exit_code": report.exit_code(strict),
                       "headline": headline(report), "measured": report.measured, "counts": report.counts,
                       "warnings": report.warnings, "notes": report.notes, "rows": rows}, indent=1, allow_nan=False)


def junit(report: Report) -> str:
    """JUnit XML with a test case per gated row: regressed = failure, lost = error, unsure and new = skipped with the reason."""
    counts = report.counts
    suite = ElementTree.Element("testsuite", name="hibench", tests=str(sum(counts.values())), failures=str(counts["regressed"]),
                                errors=str(counts[LOST] + (report.measured == 0)), skipped=str(counts["unsure"] + counts[NEW]))
    kinds = {"regressed": "failure", LOST: "error", "unsure": "skipped", NEW: "skipped"}
    for row in report.ordered():
        case = ElementTree.SubElement(suite, "testcase", classname=_xml(row.key), name=row.metric)
        if row.verdict in kinds:
            ElementTree.SubElement(case, kinds[row.verdict], message=_xml(f"{row.verdict}: {row.text}"))
    if report.measured == 0:
        case = ElementTree.SubElement(suite, "testcase", classname="hibench", name="measured")
        ElementTree.SubElement(case, "error", message=headline(report))
    if report.warnings:
        ElementTree.SubElement(suite, "system-out").text = _xml("\n".join(report.warnings))
    ElementTree.indent(suite)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(suite, encoding="unicode") + "\n"


def _xml(text: str) -> str:
    """Without the control characters that XML 1.0 cannot hold."""
    return "".join(c for c in text if c in "\t\n" or ord(c) >= 32)


def github_lines(report: Report) -> str:
    """GitHub workflow commands: an error per regression and lost cell, a warning per unsure row, a notice per new cell."""
    level = {"regressed": "error", LOST: "error", "unsure": "warning", NEW: "notice"}
    lines = [f"::warning title=hibench::{_escape(text)}" for text in report.warnings]
    lines += [f"::{level[row.verdict]} title={_escape(f'hibench {row.verdict}', True)}::"
              + _escape(f"{row.key} {row.metric}: {row.text}") for row in report.ordered() if row.verdict in level]
    if report.measured == 0:
        lines.append(f"::error title=hibench::{_escape(headline(report))}")
    return "\n".join(lines)


def _escape(text: str, in_property: bool = False) -> str:
    """As GitHub's toolkit escapes data and properties of workflow commands."""
    for raw, coded in (("%", "%25"), ("\r", "%0D"), ("\n", "%0A"), *(((":", "%3A"), (",", "%2C")) if in_property else ())):
        text = text.replace(raw, coded)
    return text


def markdown(report: Report) -> str:
    """The step summary: headline, sides, what is not ok, and everything else folded away."""
    bad = [row for row in report.ordered() if row.verdict != "ok"]
    good = [row for row in report.ordered() if row.verdict == "ok"]
    info = [row for row in report.rows if not row.gated]
    lines = [f"## {_cell(headline(report))}", "", f"base: {_cell(report.base)}  ", f"head: {_cell(report.head)}", ""]
    lines += [f"> **Warning** {_cell(text)}" + "\n" for text in report.warnings]
    lines += [f"> **Note** {_cell(text)}" + "\n" for text in report.notes]
    if bad:
        lines += [*_rows(bad), ""]
    for words, rows in (("ok", good), ("shown only, not judged", info)):
        if rows:
            title = f"{len(rows)} number{' is' if len(rows) == 1 else 's are'} {words}"
            lines += [f"<details><summary>{title}</summary>", "", *_rows(rows), "", "</details>", ""]
    return "\n".join(lines)


def _rows(rows: list[Row]) -> list[str]:
    lines = ["| verdict | cell | number | base | head | change | why |", "|---|---|---|--:|--:|--:|---|"]
    for row in rows:
        verdict = {"regressed": "**regressed**", LOST: "**lost**"}.get(row.verdict, row.verdict) if row.gated else ""
        numbers = (_whole(text) for text in (shown(row.base, row.unit), shown(row.head, row.unit), _change(row)))
        cells = (verdict, f"`{_cell(row.key)}`", _cell(row.metric), *numbers, _cell(row.text))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _whole(text: str) -> str:
    """A cell that is not broken between a number and its unit."""
    return _cell(text).replace(" ", "\N{NO-BREAK SPACE}")


def _cell(text: str) -> str:
    """Text that cannot break out of a Markdown table or become HTML."""
    return " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")


def write_outputs(report: Report, *, junit_path: Path | None = None, summary_path: Path | None = None,
                  github: bool = False, as_json: bool = False, everything: bool = False, strict: bool = False) -> str:
    """Write the files that were asked for (the summary is appended, as GitHub expects); returns what belongs on stdout."""
    from hibench.store import clean_errors

    if junit_path is not None:
        with clean_errors(f"write {junit_path}"):
            junit_path.parent.mkdir(parents=True, exist_ok=True)
            junit_path.write_text(junit(report), encoding="utf-8")
    if summary_path is not None:
        with clean_errors(f"write {summary_path}"):
            summary_path.parent.mkdir(parents=True, exist_ok=True)
            with summary_path.open("a", encoding="utf-8") as file:
                file.write(markdown(report) + "\n")
    if as_json:
        return to_json(report, strict)
    told = table(report, everything)
    notes = github_lines(report) if github else ""
    return f"{told}\n{notes}" if notes else told
