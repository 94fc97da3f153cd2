"""∞-Diff: diffusion in function space on sparse coordinates (Bond-Taylor & Willcocks, ICLR 2024, arXiv 2303.18242)."""

from methods.infty_diff.adapter import InftyDiff

__all__ = ["InftyDiff"]
