"""hibench: benchmarking and evaluation of high-resolution and any-resolution image generation."""

__version__ = "0.1.0"
__all__ = ["__version__"]
