"""DemoFusion (Du et al., CVPR 2024, arXiv 2311.16973) and MultiDiffusion on any SDXL-like diffusers pipeline."""

from methods.demofusion.adapter import DemoFusion, MultiDiffusion

__all__ = ["DemoFusion", "MultiDiffusion"]
