"""The plots of every sweep as SVG inside the page: text stays text, ids are unique, no dates or versions."""

from __future__ import annotations

import io
import re
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from hibench.lines import Row

if TYPE_CHECKING:
    from hibench.draw import Drawn

__all__ = ["sweep_figures", "to_svg"]


def sweep_figures(sweeps: dict[str, list[Row]], results: Path) -> dict[str, list[tuple[str, str]]]:
    """For every sweep the (caption, SVG) of its plots; the sample grid is left to the browser of samples."""
    from hibench.plots import draw_sweep, looks_of_sweeps

    looks, found = looks_of_sweeps(sweeps), {}
    for at, (name, rows) in enumerate(sweeps.items()):
        drawn = draw_sweep(name, rows, results, looks, samples=False)
        found[name] = [(one.caption, to_svg(one, f"s{at}p{number}-")) for number, one in enumerate(drawn)]
    return found


def to_svg(drawn: "Drawn", prefix: str) -> str:
    """A figure as an `svg` element of role img; every id begins with `prefix`, which has to be unique in the page."""
    import matplotlib

    from hibench.draw import RC

    stream = io.StringIO()
    with matplotlib.rc_context({**RC, "svg.fonttype": "none", "svg.hashsalt": prefix}):
        drawn.figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = stream.getvalue()
    text = text[text.index("<svg"):]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{prefix}', text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}", text)
    label = escape(drawn.caption, quote=True)
    return re.sub(r"<svg ", f'<svg role="img" aria-label="{label}" ', text, count=1)
