"""Figures and tables laid out as papers show them, filled from records alone; what has no record is drawn as missing."""

from __future__ import annotations

from hibench.figures.catalogue import Figure, figure_files, load_figures
from hibench.figures.write import write_figures

__all__ = ["Figure", "figure_files", "load_figures", "write_figures"]
