"""Put the page together: style and script inlined, images beside it or embedded, nothing from a network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from hibench import tables
from hibench.lines import Row
from hibench.page import provenance, samples, sections
from hibench.page.figures import sweep_figures
from hibench.rows import load_rows, sweep_rows

__all__ = ["PAGE", "write_page"]

PAGE = "report.html"
POLICY = "default-src 'none'; img-src 'self' data: file:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
SKELETON = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>
{style}
</style>
</head>
<body>
<a class="skip" href="#main">Skip to the content</a>
<header>
<h1>{title}</h1>
<nav aria-label="Sections">{links}</nav>
<button type="button" id="theme">Light or dark</button>
</header>
<main id="main">
{body}
</main>
<dialog id="provenance" aria-labelledby="provenance-title">
<h2 id="provenance-title">Provenance</h2>
<div id="provenance-body"></div>
<form method="dialog"><button>Close</button></form>
</dialog>
<script type="application/json" id="records">{records}</script>
<script type="application/json" id="samples-data">{pictures}</script>
<script>
{script}
</script>
</body>
</html>
"""


def write_page(results: Path, out: Path, *, embed: bool = False, seeds: int = 8, plots: bool = True,
               title: str = "Benchmark report") -> list[Path]:
    """Write `out`/report.html, and `out`/samples/ID/SEED.png unless `embed`; returns the paths written, the page first.

    `embed`: the images become part of the page. `seeds`: at most so many pictures per cell. The images are the bytes of the
    results directory. `plots`: draw them, too, which takes the most time. Needs no torch. Raises HibenchError without records.
    """
    results, out = Path(results), Path(out)
    rows, problems = load_rows(results)
    sweeps = sweep_rows(results, rows)
    every = [row for mine in sweeps.values() for row in mine]
    pictures, written = samples.collect(every, results, out, embed=embed, most=seeds)
    drawn = sweep_figures(sweeps, results) if plots else {}
    parts = _parts(rows, problems, sweeps, results, drawn, bool(pictures["items"]))
    links = " ".join(f'<a href="#{name}">{escape(said)}</a>' for name, said, _ in parts)
    shelf = files("hibench.page")
    text = SKELETON.format(
        policy=escape(POLICY), title=escape(title), links=links, body="\n".join(html for _, _, html in parts),
        records=script_json(provenance.of_rows(rows, results, out)), pictures=script_json(pictures),
        style=shelf.joinpath("style.css").read_text(encoding="utf-8"),
        script="\n".join(shelf.joinpath(name).read_text(encoding="utf-8") for name in ("tables.js", "browser.js")))
    out.mkdir(parents=True, exist_ok=True)
    page = out / PAGE
    page.write_text(text, encoding="utf-8", newline="\n")
    return [page, *written]


def _parts(rows: list[Row], problems: Sequence[str], sweeps: dict[str, list[Row]], results: Path,
           drawn: dict[str, list[tuple[str, str]]], pictures: bool) -> list[tuple[str, str, str]]:
    """(anchor, name in the navigation, HTML) of every section."""
    parts = [("summary", "Summary", sections.summary(rows, sweeps, problems))]
    for at, (name, mine) in enumerate(sweeps.items()):
        parts.append((f"sweep-{at}", name, sections.sweep(f"sweep-{at}", tables.build(name, mine), drawn.get(name, []))))
    if pictures:
        parts.append(("samples", "Samples", sections.browser()))
    parts.append(("failures", "Failures", sections.failures(rows, results)))
    published = sections.published(rows)
    parts += [("published", "Published numbers", published)] if published else []
    parts.append(("environment", "Environment", sections.environment(rows)))
    return parts


def script_json(value: Any) -> str:
    """JSON that no text in it can break out of a script element with."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
