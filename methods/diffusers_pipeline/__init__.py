"""Any text-to-image pipeline of the diffusers library as a method, and an SDXL-like one as the baseline of DemoFusion."""

from methods.diffusers_pipeline.adapter import DiffusersPipeline
from methods.diffusers_pipeline.direct import Direct, DirectUpsample

__all__ = ["DiffusersPipeline", "Direct", "DirectUpsample"]
