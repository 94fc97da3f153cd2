"""From records to tables, plots and an index page; reads only the results directory and never imports torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hibench import fits, tables, typeset
from hibench.columns import metric_names
from hibench.errors import SpecError, did_you_mean
from hibench.lines import NOTHING, Row, number, resolution_text, settings_text
from hibench.published import CAVEAT, published_of, published_rows
from hibench.rows import load_rows, sweep_rows
from hibench.typeset import escape_markdown

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FORMATS", "load_table", "records_csv", "write_report"]

FORMATS = ("md", "csv", "tex", "png", "pdf")
FIRST = ("key", "method", "kind", "status", "height", "width", "steps", "sparsity", "latency_p50_s", "latency_p90_s",
         "latency_lo_s", "latency_hi_s", "peak_bytes", "peak_source", "weights_bytes", "first_image_s", "load_s", "flops",
         "nfe", "coordinates", "energy_j_per_image", "n", "reason", "flags", "id", "parameters")
COUNTS = ("height", "width", "steps", "peak_bytes", "weights_bytes", "flops", "nfe", "coordinates", "n", "parameters", "images",
          "processes")


def load_table(results: Path) -> "pd.DataFrame":
    """One row per record: key, method, axes, numbers in base units, a column per metric and `<metric>_pm`.

    `coordinates` is there when some record reports it."""
    return _frame(load_rows(results)[0])


def _frame(rows: list[Row]) -> "pd.DataFrame":
    import pandas as pd

    metrics = metric_names(row for row in rows if row["kind"] != "speed")
    options = sorted({name for row in rows for name in row["_options"]})
    flat = []
    for row in rows:
        one = {name: value for name, value in row.items() if not name.startswith("_")}
        one |= {f"option.{name}": row["_options"].get(name) for name in options}
        for name in metrics:
            entry = row["_metrics"].get(name) or {}
            one |= {name: number(entry.get("value")), f"{name}_pm": number(entry.get("pm"))}
        flat.append(one)
    named = [f"option.{name}" for name in options], [part for name in metrics for part in (name, f"{name}_pm")]
    first = [name for name in FIRST if name != "coordinates" or any(row["coordinates"] is not None for row in rows)]
    rest = [name for name in flat[0] if name not in FIRST and name not in (*named[0], *named[1])]
    frame: pd.DataFrame = pd.DataFrame(flat, columns=[*first, *named[0], *named[1], *rest])
    for name in [str(column) for column in frame.columns]:
        if name in named[1] or name.endswith(("_s", "_j_per_image")) or name in COUNTS:
            frame[name] = frame[name].astype("float64")
        if name in COUNTS and bool((frame[name].dropna() % 1 == 0).all()):
            frame[name] = frame[name].astype("Int64")
    return frame


def records_csv(results: Path) -> str:
    """The tidy table of all records as CSV; empty fields where a number is unknown."""
    return str(load_table(results).to_csv(index=False, lineterminator="\n"))


def write_report(results: Path, out: Path, *, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Write records.csv, tables/, plots/ and report.md under `out`; returns the paths written, in order.

    The same records give the same bytes. Raises HibenchError without records, SpecError for an unknown format."""
    for name in formats:
        if name not in FORMATS:
            raise SpecError(f"unknown report format '{name}'{did_you_mean(name, FORMATS)}; known: {', '.join(FORMATS)}")
    results, out = Path(results), Path(out)
    rows, problems = load_rows(results)
    written: list[Path] = []
    if "csv" in formats:
        written.append(_put(out / "records.csv", str(_frame(rows).to_csv(index=False, lineterminator="\n"))))
    sweeps = sweep_rows(results, rows)
    made = {name: tables.build(name, mine) for name, mine in sweeps.items()}
    writers = {"md": typeset.to_markdown, "csv": typeset.to_csv, "tex": typeset.to_latex}
    for name, table in made.items():
        written += [_put(out / "tables" / f"{name}.{kind}", write(table)) for kind, write in writers.items() if kind in formats]
    pictures = [kind for kind in ("png", "pdf") if kind in formats]
    drawn: dict[str, list[tuple[str, list[Path]]]] = {name: [] for name in sweeps}
    if pictures:
        from hibench.plots import write_plots

        for name, caption, paths in write_plots(sweeps, results, out / "plots", pictures):
            drawn[name].append((caption, paths))
            written += paths
    if "md" in formats:
        written.append(_put(out / "report.md", _index(rows, problems, made, drawn, out)))
    return written


def _put(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")
    return path


def _index(rows: list[Row], problems: list[str], made: dict[str, tables.Table],
           drawn: dict[str, list[tuple[str, list[Path]]]], out: Path) -> str:
    """report.md: summary, a section per sweep with table, plots and provenance, failures, environment."""
    counts = {status: sum(row["status"] == status for row in rows) for status in sorted({row["status"] for row in rows})}
    text = ["# Benchmark report", "",
            f"{len(rows)} records: " + ", ".join(f"{count} {status}" for status, count in counts.items())
            + ". Every number below comes from one record; its id stands under *Provenance*, and record `ID` lies in "
            "`cells/<first two letters of ID>/ID/record.json` of the results directory.", ""]
    for name, table in made.items():
        text += [f"## {escape_markdown(name)}", "", typeset.to_markdown(table)]
        for caption, paths in drawn[name]:
            files = [path.relative_to(out).as_posix() for path in paths]
            shown = next((file for file in files if file.endswith(".png")), None)
            links = ", ".join(f"[{file.rsplit('.', 1)[1].upper()}]({file})" for file in files)
            image = [f"![{escape_markdown(caption.split('. ')[0])}]({shown})", ""] if shown else []
            text += [*image, f"{escape_markdown(caption)} ({links})", ""]
        text += _provenance(table)
    if fitting := fits.fits(rows):
        text += ["## Largest resolution that fits", "", fits.to_markdown(fitting)]
    failed = [row for row in rows if row["status"] != "ok" or row["_missing"]]
    if failed:
        text += ["## Cells without a full result", "", "| Cell | Status | Reason | Record |", "|---|---|---|---|"]
        for row in failed:
            missing = "; ".join(f"{name}: {reason}" for name, reason in row["_missing"].items())
            why = escape_markdown(row["reason"] or missing)
            text.append(f"| {escape_markdown(row['key'])} | {row['status']} | {why} | `{row['id']}` |")
        text.append("")
    text += _published(rows)
    if problems:
        text += ["## Records that cannot be read", "", *(f"- {escape_markdown(problem)}" for problem in problems), ""]
    return "\n".join([*text, *_environment(rows)]).rstrip() + "\n"


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
    seen: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        place = tuple(str(row[name]) for name in ("hardware", "hardware_digest", "software_digest", "commit", "dirty"))
        seen.setdefault(place, []).append(row)
    text = ["## Environment", ""]
    for (hardware, _, _, commit, dirty), mine in sorted(seen.items(), key=lambda item: item[0]):
        env = mine[0]["_env"]
        state = " with uncommitted changes" if dirty == "True" else ""
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
