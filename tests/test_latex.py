"""latex: every table and caption is one balanced float with equal rows and nothing unescaped, and compiles where TeX is."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import records

from hibench import rows
from hibench.figures import load_figures, table, write_figures
from hibench.tables import build
from hibench.typeset import escape_latex, to_latex

NASTY = r"50 % & _more_ #1 $x {y} ~a^b \z <c> |d| «e» 中 ∞-Diff → 2²"
PREAMBLE = r"""\documentclass[twocolumn]{article}
\usepackage[utf8]{inputenc}\usepackage[T1]{fontenc}\usepackage{booktabs,graphicx}
\begin{document}
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records with failures whose messages are full of commands, at two resolutions, with sparsity."""
    methods = ("ldm", "infd", "infty-diff", "real")
    return records.suite(tmp_path_factory.mktemp("results"), methods=methods, resolutions=(64, 128),
                         failures={"ldm/speed/128x128/steps=50": "error", "infd/quality/128x128/steps=50": "oom"}, samples=1)


@pytest.fixture(scope="module")
def texts(results: Path) -> dict[str, str]:
    """The LaTeX of every sweep and of every table of the catalogue."""
    found, _ = rows.load_rows(results)
    made = {f"sweep {name}": to_latex(build(name, mine)) for name, mine in rows.sweep_rows(results, found).items()}
    tables = {name: figure for name, figure in load_figures().items() if figure.kind == "table"}
    made |= {name: table.to_latex(table.fill(figure, found)) for name, figure in tables.items()}
    assert len(made) > 12
    return made


def problems(text: str) -> list[str]:
    """What would keep a float from compiling or make its rows uneven."""
    found: list[str] = []
    environments: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{([a-z*]+)\}", text):
        if kind == "begin":
            environments.append(name)
        elif not environments or environments.pop() != name:
            found.append(f"\\end{{{name}}} closes nothing")
    found += [f"\\begin{{{name}}} is not closed" for name in environments]
    bare = re.sub(r"\\.", "", text)                       # without escaped characters and first letters of commands
    if bare.count("{") != bare.count("}"):
        found.append("braces are not balanced")
    if bare.count("$") % 2:
        found.append("an odd number of $")
    body = "\n".join(line for line in text.splitlines() if not re.match(r"%|\\ifdim|\\sbox0\{%", line))
    body = re.sub(r"\\.|\}%|\{%", "", body)
    found += [f"a bare {sign}" for sign in "#%~|<>" if sign in body.replace("}~", "}")]
    found += ["a letter that no Latin font has"] if any(ord(letter) >= 0x180 for letter in text) else []
    columns = len(re.search(r"\\begin\{tabular\}\{([lr]+)\}", text).group(1))  # type: ignore[union-attr]
    lines = [line for line in text.splitlines() if line.endswith(r" \\")]
    found += [f"{line!r} has not {columns} columns" for line in lines if len(re.split(r"(?<!\\)&", line)) != columns]
    return found


def test_every_table_is_balanced_escaped_and_even(texts: dict[str, str]) -> None:
    assert {name: said for name, text in texts.items() if (said := problems(text))} == {}


@pytest.mark.parametrize(("spoil", "said"), [
    ((r"\end{tabular}", ""), "closes nothing"), ((r" \\", r" & 1 \\"), "has not"), ((r"\%", "%"), "a bare %"),
    ((r"\centering", r"\centering{"), "braces"), (("$", ""), "odd"), ((r"\caption{", r"\caption{中"), "Latin")])
def test_the_check_sees_what_is_wrong(texts: dict[str, str], spoil: tuple[str, str], said: str) -> None:
    text = texts["infty-diff-sparsity"].replace(r"\caption{", r"\caption{5 \% $\pm$ ", 1)
    assert problems(text) == []
    found = problems(text.replace(*spoil, 1))
    assert any(said in one for one in found), found


def test_characters_become_what_latex_prints() -> None:
    text = escape_latex(NASTY)
    assert r"50 \% \& \_more\_ \#1 \$x \{y\} \textasciitilde{}a\textasciicircum{}b \textbackslash{}z" in text
    assert r"U+4E2D $\infty$-Diff $\to$ 2$^2$" in text
    assert all(ord(letter) < 0x180 for letter in text)


def test_it_compiles_and_nothing_is_wider_than_its_column(results: Path, texts: dict[str, str], tmp_path: Path) -> None:
    program = shutil.which("pdflatex")
    if program is None:
        pytest.skip("needs pdflatex with booktabs; next: apt-get install texlive-latex-recommended")
    written = write_figures(results, tmp_path, ["infty-diff-steps", "infd-scale-consistency"])
    drawn = [path.read_text(encoding="utf-8") for path in written if path.suffix == ".tex"]
    floats = "\\clearpage\n".join([*texts.values(), *drawn, escape_latex(NASTY) + "\n"])
    (tmp_path / "all.tex").write_text(PREAMBLE + floats + "\\end{document}\n", encoding="utf-8")
    ran = subprocess.run([program, "-interaction=nonstopmode", "-halt-on-error", "all.tex"], cwd=tmp_path, capture_output=True,
                         text=True, errors="replace")
    assert ran.returncode == 0, ran.stdout[-2000:]
    assert re.findall(r"Overfull \\hbox \((\d+)\.", ran.stdout) == []
    assert (tmp_path / "all.pdf").stat().st_size > 10_000
