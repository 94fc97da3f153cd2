"""Patch-DM: denoising in patches with a collage of their features (Ding et al., ICLR 2024, arXiv 2308.01316)."""

from methods.patch_dm.adapter import PatchDM

__all__ = ["PatchDM"]
