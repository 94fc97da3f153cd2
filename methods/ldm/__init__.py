"""Latent diffusion (LDM, Rombach et al., CVPR 2022, arXiv 2112.10752)."""

from methods.ldm.adapter import LDM

__all__ = ["LDM"]
