"""The sections of the page as HTML that reads well without its script: headings, tables with scopes, figures, details."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from hibench.columns import Column
from hibench.lines import NOTHING, Line, Row, resolution_text, settings_text
from hibench.page.provenance import last_lines
from hibench.published import CAVEAT, published_of, published_rows
from hibench.tables import Table
from hibench.typeset import arrow, entry_text, label_columns

__all__ = ["browser", "environment", "failures", "published", "summary", "sweep"]


def _section(name: str, title: str, *parts: str) -> str:
    inside = "\n".join(part for part in parts if part)
    head = f'<h2 id="{name}-title">{escape(title)}</h2>'
    return f'<section id="{name}" aria-labelledby="{name}-title">\n{head}\n{inside}\n</section>'


def summary(rows: list[Row], sweeps: dict[str, list[Row]], problems: Sequence[str]) -> str:
    """How many records there are, of what, from when and where."""
    states = Counter(str(row["status"]) for row in rows)
    dates = sorted(str(row["started_at"])[:10] for row in rows if row["started_at"])
    facts = [("Records", f"{len(rows)}: " + ", ".join(f"{count} {status}" for status, count in sorted(states.items()))),
             ("Methods", ", ".join(dict.fromkeys(sorted(row["method"] for row in rows)))),
             ("Sweeps", ", ".join(f"{name} ({len(mine)} cells)" for name, mine in sweeps.items())),
             ("Machines", ", ".join(sorted({str(row["hardware"]) for row in rows}))),
             ("Extractors", ", ".join(sorted({str(row["extractor"]) for row in rows if row["extractor"]})) or NOTHING),
             ("Measured", NOTHING if not dates else dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"),
             ("Commits", ", ".join(sorted({str(row["commit"])[:12] + (" with uncommitted changes" if row["dirty"] else "")
                                           for row in rows if row["commit"]})) or NOTHING)]
    listed = "".join(f"<dt>{name}</dt><dd>{escape(said)}</dd>" for name, said in facts)
    wrong = "".join(f"<li>{escape(problem)}</li>" for problem in problems)
    return _section("summary", "Summary", f"<dl>{listed}</dl>",
                    "<p>Every number comes from one record: click it, or press the button at the end of its line.</p>",
                    f"<h3>Records that cannot be read</h3><ul>{wrong}</ul>" if wrong else "")


def sweep(name: str, table: Table, figures: Sequence[tuple[str, str]]) -> str:
    """A sweep: its table with controls, its footnotes, its plots."""
    labels = label_columns(table)
    heads = [_head(escape(title), "") for title, _ in labels]
    heads += [_head(_title(column), " class=n") for column in table.columns]
    body = "\n".join(_line(line, [text(line) for _, text in labels], table.columns) for line in table.lines)
    choices = "".join(_choice(name, at, title, [text(line) for line in table.lines]) for at, (title, text) in enumerate(labels))
    shown = (f'<div class="controls" data-for="{name}-table" hidden><label>Filter <input type="search" '
             f'placeholder="e.g. ldm 64²"></label>{choices}<output role="status"></output></div>\n'
             f'<div class="scroll" tabindex="0" role="region" aria-label="Table of sweep {escape(table.name, quote=True)}">'
             f'<table id="{name}-table" class="sortable"><caption>{_powers(table.caption)}</caption>'
             f'<thead><tr>{"".join(heads)}<th scope="col">Record</th></tr></thead>\n<tbody>\n{body}\n</tbody></table></div>')
    notes = "".join(f"<li><sup>{letter}</sup> {escape(text)}</li>" for text, letter in table.notes.items())
    drawn = "\n".join(_plot(text, svg) for text, svg in figures)
    drawn = f'<div class="plots">{drawn}</div>' if drawn else ""
    return _section(name, f"Sweep {table.name}", shown, f'<ul class="notes">{notes}</ul>' if notes else "", drawn)


def _powers(text: str) -> str:
    """Escaped text in which 2^20 has its exponent raised."""
    return re.sub(r"\b2\^(\d+)", r"2<sup>\1</sup>", escape(text))


def _plot(text: str, svg: str) -> str:
    """A plot as wide as it is drawn, so that several stand side by side and its caption below it."""
    found = re.search(r'<svg [^>]*?\bwidth="([\d.]+)pt"', svg)
    width = f' style="width:calc(var(--plot)*{found.group(1)}pt)"' if found else ""
    return f'<figure class="plot"{width}>{svg}<figcaption>{escape(text)}</figcaption></figure>'


def _head(title: str, attributes: str) -> str:
    return f'<th scope="col"{attributes}><span>{title}</span></th>'


def _title(column: Column) -> str:
    """Title with direction, then extractor and unit below it."""
    second = " ".join(part for part in (f"@{column.qualifier}" if column.qualifier else "", column.unit) if part)
    return escape(column.title + arrow(column)) + (f" <small>{escape(second)}</small>" if second else "")


def _choice(name: str, at: int, title: str, values: list[str]) -> str:
    """A menu for a label column that has a few different values."""
    different = list(dict.fromkeys(values))
    if not 2 <= len(different) <= 40:
        return ""
    options = "".join(f"<option>{escape(value)}</option>" for value in different)
    return f'<label>{escape(title)} <select data-column="{at}"><option value="">all</option>{options}</select></label>'


def _line(line: Line, labels: list[str], columns: Iterable[Column]) -> str:
    own = {"speed": line.speed or {}, "quality": line.quality or {}}
    fields = [f'<th scope="row">{escape(text)}</th>' if at == 1 else f"<td>{escape(text)}</td>"
              for at, text in enumerate(labels)]
    for column in columns:
        entry = line.entries[column.field]
        text = escape(entry_text(column, entry))
        raised = f"<sup>{','.join(entry.notes)}</sup>" if entry.notes else ""
        value = "" if entry.value is None else f' data-v="{entry.value!r}"'
        found = own[column.kind].get("id")
        source = ""
        if found and (value or entry.text != NOTHING):
            source = f' data-r="{found}" data-m="{escape(column.ratio_of or column.field, quote=True)}"'
        mark = f'<strong title="best">{text}</strong>' if entry.best else text
        fields.append(f'<td class="n"{value}{source}>{mark}{raised}</td>')
    ids = " ".join(str(row["id"]) for row in own.values() if row.get("id"))
    said = escape(f"Records of {line.name}, {resolution_text(line.height, line.width)}, {settings_text(line)}", quote=True)
    button = f'<button type="button" class="records" data-ids="{ids}" aria-label="{said}">…</button>' if ids else ""
    role = ' class="baseline"' if line.role else ""
    return f"<tr{role}>{''.join(fields)}<td>{button}</td></tr>"


def browser() -> str:
    """The frame of the sample browser; its script fills it."""
    return _section("samples", "Samples", """<p>Drag or use the arrow keys to move in all pictures at once, + and − to zoom,
<kbd>0</kbd> to fit, <kbd>1</kbd> for native pixels. Pictures are the lossless files of the results directory.</p>
<div id="browser" hidden>
<div class="controls" id="browser-controls"></div>
<div class="scroll" id="browser-grid" role="region" aria-label="Pictures" tabindex="0"></div>
</div>
<noscript><p>The browser of samples needs JavaScript; the pictures lie in samples/ beside this page.</p></noscript>""")


def _shelf(what: str, whose: str, text: str) -> str:
    """Text that scrolls in its own frame, which the keyboard reaches and a screen reader names."""
    return f'<pre tabindex="0" role="group" aria-label="{escape(f"{what} of {whose}", quote=True)}">{escape(text)}</pre>'


def failures(rows: list[Row], results: Path) -> str:
    """Every cell without a full result, why, the last line it said, and the end of its log."""
    body = []
    for row in rows:
        if row["status"] == "ok" and not row["_missing"]:
            continue
        why = row["reason"] or "; ".join(f"{name}: {reason}" for name, reason in row["_missing"].items())
        why = why or "no reason was recorded"
        log = last_lines(results, row)
        last = next((line for line in reversed(log.splitlines()) if line.strip()), "")
        told = (f"<p><code>{escape(last)}</code></p><details><summary>End of the log</summary>{_shelf('Log', row['key'], log)}"
                "</details>") if log else "no log"
        button = (f'<button type="button" class="records" data-ids="{row["id"]}" '
                  f'aria-label="Record of {escape(row["key"], quote=True)}">…</button>')
        body.append(f'<tr><th scope="row">{escape(row["key"])}</th><td>{escape(str(row["status"]))}</td><td>{escape(why)}</td>'
                    f"<td>{told}</td><td>{button}</td></tr>")
    if not body:
        return _section("failures", "Failures", "<p>Every cell has a full result.</p>")
    head = "".join(_head(name, "") for name in ("Cell", "Status", "Reason", "Last line")) + '<th scope="col">Record</th>'
    return _section("failures", "Failures", '<div class="scroll" tabindex="0" role="region" aria-label="Table of failures">'
                    '<table class="sortable" id="failures-table"><caption>Cells without a full result</caption>'
                    f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>")


def published(rows: list[Row]) -> str:
    """What papers publish about the methods of these records, in a table of its own; "" where nothing is."""
    numbers = published_of({str(row["adapter"]) for row in rows})
    if not numbers:
        return ""
    heading, *lines = published_rows(numbers)
    head = "".join(_head(name.capitalize(), ' class="n"' if name == "VALUE" else "") for name in heading)
    body = "".join("<tr>" + "".join(
        f'<td class="n" data-v="{one.value!r}">{escape(text)}</td>' if at == 3 else f"<td>{escape(text)}</td>"
        for at, text in enumerate(line)) + "</tr>" for line, one in zip(lines, numbers))
    choices = "".join(_choice("published", at, heading[at].capitalize(), [line[at] for line in lines]) for at in (0, 2, 4))
    return _section("published", "Published numbers", f"<p>{escape(CAVEAT)}</p>",
                    '<div class="controls" data-for="published-table" hidden><label>Filter <input type="search"></label>'
                    f'{choices}<output role="status"></output></div>'
                    '<div class="scroll tall" tabindex="0" role="region" aria-label="Table of published numbers">'
                    '<table class="sortable" id="published-table"><caption>Not ours, and under other protocols</caption>'
                    f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>")


def environment(rows: list[Row]) -> str:
    """Every machine and software that records name."""
    seen: dict[str, list[Row]] = {}
    for row in rows:
        place = (row["hardware"], row["hardware_digest"], row["software_digest"], row["commit"], row["dirty"])
        seen.setdefault(json.dumps(place), []).append(row)
    parts = []
    for mine in (seen[place] for place in sorted(seen)):
        row, env = mine[0], mine[0]["_env"]
        kept = {name: env.get(name) for name in ("hardware", "software", "git") if env.get(name)}
        said = json.dumps(kept, indent=1, ensure_ascii=False, sort_keys=True)
        parts.append(f"<details><summary>{escape(str(row['hardware']))}: {len(mine)} records, commit "
                     f"<code>{escape(str(row['commit'])[:12])}</code></summary>"
                     f"{_shelf('Environment', str(row['hardware']), said)}</details>")
    return _section("environment", "Environment", *parts)
