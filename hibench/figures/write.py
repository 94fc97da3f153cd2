"""Write figures from records: PDF, PNG and LaTeX for what is drawn; LaTeX, Markdown and CSV for tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hibench import draw
from hibench.errors import SpecError, did_you_mean
from hibench.figures import pictures, table
from hibench.figures.catalogue import Figure, load_figures
from hibench.lines import Row
from hibench.rows import load_rows
from hibench.typeset import escape_latex

__all__ = ["write_figures"]


def write_figures(results: Path, out: Path, names: Sequence[str] = (), figures: dict[str, Figure] | None = None) -> list[Path]:
    """Write the named figures (none: all) into `out`; returns the paths, in order. What has no record is drawn as missing.

    `figures`: instead of those of the installed methods. Raises HibenchError without records, SpecError for an unknown name."""
    known = load_figures() if figures is None else figures
    for name in names:
        if name not in known:
            raise SpecError(f"no figure '{name}'{did_you_mean(name, known)}; there are: {', '.join(known) or 'none'}")
    rows, _ = load_rows(Path(results))
    written: list[Path] = []
    for name in names or known:
        written += _write(known[name], rows, Path(results), Path(out))
    return written


def _write(figure: Figure, rows: list[Row], results: Path, out: Path) -> list[Path]:
    if figure.kind == "table":
        filled = table.fill(figure, rows)
        made = {"tex": table.to_latex(filled), "md": table.to_markdown(filled), "csv": table.to_csv(filled)}
        return [_put(out / f"{figure.name}.{kind}", text) for kind, text in made.items()]
    if figure.kind == "plot":
        drawn, _ = pictures.plot(figure, rows)
    else:
        drawn, _ = (pictures.strip if figure.kind == "strip" else pictures.zoom)(figure, rows, results)
    wide = "*" if float(drawn.figure.get_size_inches()[0]) > draw.COLUMN_IN + 0.2 else ""
    tex = "\n".join([rf"\begin{{figure{wide}}}", r"\centering", rf"\includegraphics[width=\linewidth]{{{figure.name}.pdf}}",
                     rf"\caption{{{escape_latex(drawn.caption)}}}", rf"\label{{fig:{figure.name}}}", rf"\end{{figure{wide}}}"])
    return [*draw.save(drawn, out, ("pdf", "png")), _put(out / f"{figure.name}.tex", tex + "\n")]


def _put(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")
    return path
