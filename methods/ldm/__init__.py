"""Latent diffusion (LDM, Rombach et al., CVPR 2022, arXiv 2112.10752)."""

from methods.ldm.adapter import LDM
from methods.ldm.super_resolution import LDMSR

__all__ = ["LDM", "LDMSR"]
