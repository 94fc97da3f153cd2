"""Image neural field diffusion (INFD, Chen et al., CVPR 2024, arXiv 2406.07480)."""

from methods.infd.adapter import INFD

__all__ = ["INFD"]
