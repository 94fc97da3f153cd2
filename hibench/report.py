"""From records to tables, plots and an index page; reads only the results directory and never imports torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from hibench import fits, summary, tables, typeset
from hibench.errors import SpecError, did_you_mean
from hibench.lines import NOTHING, Row, number, resolution_text, settings_text
from hibench.published import CAVEAT, published_of, published_rows
from hibench.record_index import without_collector
from hibench.rows import load_rows, sweep_rows
from hibench.store import clean_errors
from hibench.tidy import csv_text, frame, write_csv
from hibench.typeset import escape_markdown

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FORMATS", "load_table", "records_csv", "write_report"]

FORMATS = ("md", "csv", "tex", "png", "pdf")
SUMMED_UP = ("**This report sums up.** A table with every cell and plots of so many would take minutes: {count} of {all} "
             "sweeps have a line per method and kind instead, and no plots are drawn. No record is left out: records.csv "
             "(`--format csv`) has a line for each, and `hibench report DIR --full` writes every table and plot.")


def load_table(results: Path) -> "pd.DataFrame":
    """One row per record: key, method, axes, numbers in base units, a column per metric and `<metric>_pm`.

    `coordinates` is there when some record reports it."""
    return frame(load_rows(results)[0])


@without_collector()
def records_csv(results: Path) -> str:
    """The tidy table of all records as CSV; empty fields where a number is unknown."""
    return csv_text(load_rows(results)[0])


@without_collector()
def write_report(results: Path, out: Path, *, formats: Sequence[str] = FORMATS, full: bool = False) -> list[Path]:
    """Write records.csv, tables/, plots/ and report.md under `out`; returns the paths written, in order.

    Of more than `hibench.summary.LARGE` cells the large sweeps are summed up, which report.md says, and nothing is drawn,
    unless the report is to be `full`. records.csv always has every record. The same records give the same bytes.
    Raises HibenchError without records, SpecError for an unknown format."""
    for name in formats:
        if name not in FORMATS:
            raise SpecError(f"unknown report format '{name}'{did_you_mean(name, FORMATS)}; known: {', '.join(FORMATS)}")
    results, out = Path(results), Path(out)
    rows, problems = load_rows(results)
    written: list[Path] = []
    if "csv" in formats:
        with _open(out / "records.csv") as file:
            write_csv(rows, file)
        written.append(out / "records.csv")
    sweeps = sweep_rows(results, rows)
    large = summary.is_large(sweeps) and not full
    shown, rest = summary.split(sweeps) if large else (sweeps, {})
    made: dict[str, tables.Table | summary.Summary] = {name: tables.build(name, shown[name]) if name in shown else
                                                       summary.summarise(name, rest[name]) for name in sweeps}
    for name, table in made.items():
        for kind in ("md", "csv", "tex"):
            text = _typeset(table, kind) if kind in formats else None
            written += [] if text is None else [_put(out / "tables" / f"{name}.{kind}", text)]
    pictures = [kind for kind in ("png", "pdf") if kind in formats and not large]
    drawn: dict[str, list[tuple[str, list[Path]]]] = {name: [] for name in sweeps}
    if pictures:
        from hibench.plots import write_plots

        with clean_errors(f"write {out / 'plots'}"):
            for name, caption, paths in write_plots(sweeps, results, out / "plots", pictures):
                drawn[name].append((caption, paths))
                written += paths
    if "md" in formats:
        written.append(_put(out / "report.md", _index(rows, problems, made, drawn, out)))
    return written


def _typeset(table: tables.Table | summary.Summary, kind: str) -> str | None:
    """A table as md, csv or tex; None where there is none of that kind."""
    if isinstance(table, summary.Summary):
        return {"md": table.markdown, "csv": table.csv}[kind]() if kind in ("md", "csv") else None
    return {"md": typeset.to_markdown, "csv": typeset.to_csv, "tex": typeset.to_latex}[kind](table)


@contextmanager
def _open(path: Path) -> Iterator[TextIO]:
    with clean_errors(f"write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8", newline="\n") as file:
            yield file


def _put(path: Path, text: str) -> Path:
    with _open(path) as file:
        file.write(text)
    return path


def _index(rows: list[Row], problems: list[str], made: dict[str, tables.Table | summary.Summary],
           drawn: dict[str, list[tuple[str, list[Path]]]], out: Path) -> str:
    """report.md: summary, a section per sweep with table, plots and provenance, failures, environment."""
    counts = dict(sorted(Counter(row["status"] for row in rows).items()))
    text = ["# Benchmark report", "",
            f"{len(rows)} records: " + ", ".join(f"{count} {status}" for status, count in counts.items())
            + ". Every number below comes from one record; its id stands under *Provenance*, and record `ID` lies in "
            "`cells/<first two letters of ID>/ID/record.json` of the results directory.", ""]
    summed_up = any(isinstance(table, summary.Summary) for table in made.values())
    if summed_up:
        count = sum(isinstance(table, summary.Summary) for table in made.values())
        text += [SUMMED_UP.format(count=count, all=len(made)), ""]
    for name, table in made.items():
        text += [f"## {escape_markdown(name)}", "", str(_typeset(table, "md"))]
        for caption, paths in drawn[name]:
            files = [path.relative_to(out).as_posix() for path in paths]
            shown = next((file for file in files if file.endswith(".png")), None)
            links = ", ".join(f"[{file.rsplit('.', 1)[1].upper()}]({file})" for file in files)
            image = [f"![{escape_markdown(caption.split('. ')[0])}]({shown})", ""] if shown else []
            text += [*image, f"{escape_markdown(caption)} ({links})", ""]
        text += _provenance(table) if isinstance(table, tables.Table) else []
    if fitting := fits.fits(rows):
        text += ["## Largest resolution that fits", "", fits.to_markdown(fitting)]
    failed = [row for row in rows if row["status"] != "ok" or row["_missing"]]
    if failed:
        text += ["## Cells without a full result", "", *(summary.failures(failed) if summed_up else _failures(failed)), ""]
    text += _published(rows)
    if problems:
        text += ["## Records that cannot be read", "", *(f"- {escape_markdown(problem)}" for problem in problems), ""]
    return "\n".join([*text, *_environment(rows)]).rstrip() + "\n"


def _failures(rows: list[Row]) -> list[str]:
    """The table of cells without a full result."""
    text = ["| Cell | Status | Reason | Record |", "|---|---|---|---|"]
    for row in rows:
        missing = "; ".join(f"{name}: {reason}" for name, reason in row["_missing"].items())
        why = escape_markdown(row["reason"] or missing)
        text.append(f"| {escape_markdown(row['key'])} | {row['status']} | {why} | `{row['id']}` |")
    return text


def _published(rows: list[Row]) -> list[str]:
    """What papers publish about the methods of these records, folded away in a table of its own."""
    numbers = published_of({str(row["adapter"]) for row in rows})
    if not numbers:
        return []
    heading, *lines = published_rows(numbers)
    text = ["## Published numbers", "", CAVEAT, "", f"<details><summary>{len(lines)} numbers</summary>", "",
            "| " + " | ".join(name.capitalize() for name in heading) + " |", "|" + "---|" * len(heading)]
    text += ["| " + " | ".join(map(escape_markdown, line)) + " |" for line in lines]
    return [*text, "", "</details>", ""]


def _provenance(table: tables.Table) -> list[str]:
    """The record ids of every line, folded away."""
    text = ["<details><summary>Provenance: the record of each number</summary>", "",
            "| Method | Axes | Hardware | Speed record | Quality record |", "|---|---|---|---|---|"]
    for line in table.lines:
        axes = f"{resolution_text(line.height, line.width)}, {settings_text(line)}"
        ids = [f"`{row['id']}`" if row and row["id"] else NOTHING for row in (line.speed, line.quality)]
        said = [escape_markdown(one) for one in (line.name, axes, line.hardware or NOTHING)]
        text.append("| " + " | ".join(said + ids) + " |")
    return [*text, "", "</details>", ""]


def _environment(rows: list[Row]) -> list[str]:
    """One table per environment: machine, versions, commit, and how many records came from it."""
    seen: dict[tuple[Any, ...], list[Row]] = {}
    place_of = itemgetter("hardware", "hardware_digest", "software_digest", "commit", "dirty")
    for row in rows:
        seen.setdefault(place_of(row), []).append(row)
    text = ["## Environment", ""]
    for (hardware, _, _, commit, dirty), mine in sorted(seen.items(), key=lambda item: tuple(map(str, item[0]))):
        env = mine[0]["_env"]
        state = " with uncommitted changes" if dirty else ""
        text += [f"### {escape_markdown(hardware)}", "", f"{len(mine)} records, commit `{commit}`{state}.", "", "| | |"]
        leaves = [leaf for part in ("hardware", "software") for leaf in _leaves(env.get(part) or {}, "")]
        text += ["|---|---|", *(f"| {escape_markdown(name)} | {escape_markdown(value)} |" for name, value in leaves)]
        text.append("")
    return text


def _leaves(tree: Any, path: str) -> Iterable[tuple[str, str]]:
    """Every scalar of nested JSON with its path; byte counts also in GiB (2^30 bytes)."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield from _leaves(value, f"{path}.{name}" if path else str(name))
    elif isinstance(tree, list):
        for position, value in enumerate(tree):
            yield from _leaves(value, f"{path}[{position}]")
    elif tree is not None:
        size = number(tree) if path.endswith("_bytes") else None
        yield path, f"{tree} ({size / 2**30:.1f} GiB)" if size else str(tree)
