"""Verbs that show: `list` what there is, `show` images, `report` tables and plots of records."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from hibench.errors import EXIT_OK, SpecError
from hibench.verbs.arguments import (
    Device,
    Json,
    Only,
    Set,
    SpecFile,
    check_choice,
    check_device,
    load,
    options_of,
    resolution_of,
    words,
)

__all__ = ["list_", "report", "show"]


def list_(
    what: Annotated[str, Argument(metavar="WHAT", help=(
        "methods, metrics, extractors, weights, references, sweeps, cells or published."))] = "methods",
    spec: SpecFile = Path("benchmarks.yaml"),
    only: Only = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Say what there is, and why something is not available.

    \b
      hibench list methods
      hibench list cells benchmarks.yaml --only steps
      hibench list published --json
    """
    from hibench import listing

    check_choice("hibench list", what, listing.WHAT)
    loaded = load(spec, set_) if what in listing.NEEDS_SPEC else None
    if what == "methods" and spec.is_file():
        with suppress(SpecError):                             # a spec that is being written does not hide the methods
            loaded = load(spec, set_)
    rows = listing.rows_of(what, loaded, words(only))
    print(listing.json_text(what, rows) if as_json else listing.table(rows))


def show(
    what: Annotated[str, Argument(metavar="scenes|METHOD", help="The built-in scenes, or a method's images.")],
    resolution: Annotated[str, Option("--resolution", metavar="SIDE|HxW")] = "256",
    count: Annotated[int, Option("--count", min=1)] = 16,
    seed: Annotated[int, Option("--seed", min=0, help="Of the first image; the next has the next seed.")] = 0,
    out: Annotated[Path, Option("--out", help="The picture to write.")] = Path("grid.png"),
    steps: Annotated[int | None, Option("--steps", min=1, help="Sampler steps; not given: the method's own.")] = None,
    sparsity: Annotated[float, Option("--sparsity", help="Fraction of coordinates not evaluated, in [0, 1).")] = 0.0,
    option: Annotated[list[str] | None, Option("--option", metavar="NAME=VALUE", help="An option of the method.")] = None,
    task: Annotated[str | None, Option("--task", metavar="NAME", help="Draw an application of the method instead.")] = None,
    device: Device = "auto",
) -> int:
    """Draw a grid of images, or what a method can do besides generating.

    \b
      hibench show scenes --resolution 512 --count 16 --out grid.png
      hibench show ldm --steps 50 --resolution 128 --out ldm.png
      hibench show infty-diff --task super-resolution --resolution 256 --count 4 --out larger.png
    """
    check_device(device)
    if not 0 <= sparsity < 1:
        raise SpecError(f"--sparsity {sparsity:g} is out of range: from 0 to 1 excluded")
    size, options = resolution_of(resolution), options_of(option)
    if task is not None:
        if sparsity:
            raise SpecError("--sparsity does not go together with --task")
        from hibench.show import run_show_task

        return run_show_task(what, task, resolution=size, count=count, seed=seed, out=out, steps=steps, device=device,
                             options=options)
    from hibench.show import run_show

    return run_show(what, resolution=size, count=count, seed=seed, out=out, steps=steps, sparsity=sparsity, device=device,
                    options=options)


def report(
    results: Annotated[Path, Argument(metavar="DIR", help="What `hibench run --out` wrote.")] = Path("results"),
    out: Annotated[Path | None, Option("--out", help="Where to write; DIR/report if not given.")] = None,
    format_: Annotated[list[str] | None, Option("--format", metavar="md|csv|tex|png|pdf|json|parquet|html", help=(
        "Only these; repeat for more. `--format csv` or `json` without --out prints one row per record."))] = None,
    history: Annotated[Path | None, Option("--history", metavar="FILE", help=(
        "Plot what `hibench check --history FILE` has collected, instead of DIR."))] = None,
    html: Annotated[bool, Option("--html", help="Write one self-contained page instead, report.html.")] = False,
    embed: Annotated[bool, Option("--embed", help="With --html: the images inside it, not beside it.")] = False,
    figures: Annotated[bool, Option("--figures", help="Write the figures that papers show instead (PDF, PNG, LaTeX).")] = False,
    figure: Annotated[list[str] | None, Option("--figure", metavar="NAME", help="Only this one; repeat for more.")] = None,
    compare_: Annotated[tuple[Path, Path] | None, Option("--compare", metavar="RUN_A RUN_B", help=(
        "Two results directories side by side, as md, csv or json; not DIR."))] = None,
    full: Annotated[bool, Option("--full", help="Tables and plots of every cell, also of more than 2000 (minutes).")] = False,
) -> int:
    """Write tables (Markdown, CSV, LaTeX) and plots (PNG, PDF) from records.

    \b
      hibench report results --out tables
      hibench report results --html
      hibench report results --figures --out figures
      hibench report --compare before after
      hibench report results --format csv > records.csv
      hibench report --history history.jsonl --out plots
    """
    if history is not None:
        from hibench.history import write_history

        paths = write_history(history, history.parent / "history" if out is None else out)
        print("\n".join(map(str, paths)))
        return EXIT_OK
    formats = words(format_)
    from hibench import export
    from hibench import report as module

    for name in formats:
        check_choice("--format", name, (*module.FORMATS, *export.EXPORTS, "html"))
    if compare_ is not None:
        return _side_by_side(*compare_, formats or ["md"], out)
    html = html or "html" in formats
    if embed and not html:
        raise SpecError("--embed goes together with --html")
    if out is None and formats in (["csv"], ["json"]) and not (html or figures or figure):
        sys.stdout.write(module.records_csv(results) if formats == ["csv"] else export.records_json(results))
        return EXIT_OK
    target = results / "report" if out is None else out
    if html:
        from hibench.page import write_page

        page, *beside = write_page(results, target, embed=embed)
        print(f"{page}: {page.stat().st_size / 2**20:.1f} MiB" + (f", {len(beside)} images beside it" if beside else ""))
    if figures or figure:
        from hibench.figures import write_figures

        drawn = write_figures(results, target / "figures" if out is None else out, words(figure))
        print(f"{drawn[0].parent}: {len(drawn)} files")
    for name in export.EXPORTS:
        if name in formats:
            print(export.write_export(results, target / f"records.{name}", name))
    chosen = [name for name in formats if name in module.FORMATS]
    if not chosen and (formats or html or figures or figure):
        return EXIT_OK
    paths = module.write_report(results, target, formats=chosen or list(module.FORMATS), full=full)
    print(f"{target}: {len(paths)} files" + (f", begin with {target / 'report.md'}" if target / "report.md" in paths else ""))
    return EXIT_OK


def _side_by_side(first: Path, second: Path, formats: list[str], out: Path | None) -> int:
    """Print the comparison of two results directories, or write it into `out`."""
    from hibench.side_by_side import COMPARE_FORMATS, compare_runs

    for name in formats:
        check_choice("--format with --compare", name, tuple(COMPARE_FORMATS))
    found = compare_runs(first, second)
    for name in formats:
        text = COMPARE_FORMATS[name](found, str(first), str(second))
        if out is None:
            sys.stdout.write(text)
        else:
            out.mkdir(parents=True, exist_ok=True)
            (out / f"compare.{name}").write_text(text, encoding="utf-8")
            print(out / f"compare.{name}")
    return EXIT_OK
