"""The disjoint windows of an image as an extractor: a grid of squares from the top left corner."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["WindowExtractor", "windows"]


def windows(images: "torch.Tensor", size: int) -> "torch.Tensor":
    """[B, 3, H, W] → [B, (H // size) · (W // size), 3, size, size], row by row.

    What is left over at the right and below is not seen.
    """
    grid = images.unfold(2, size, size).unfold(3, size, size)  # [B, 3, rows, columns, size, size]
    return grid.permute(0, 2, 3, 1, 4, 5).flatten(1, 2)


class WindowExtractor:
    """Another extractor over every window: each output is [B, windows, D]."""

    def __init__(self, base: Any, size: int) -> None:
        self.base, self.size, self.name = base, size, f"{base.name}+grid{size}"
        self.weights_sha256, self.resize, self.roles = base.weights_sha256, base.resize, base.roles
        self.outputs: dict[str, int] = dict(base.outputs)

    def __call__(self, images: "torch.Tensor") -> "dict[str, torch.Tensor]":
        """uint8 [B, 3, H, W] → {output: float32 [B, windows, D]}."""
        import torch

        parts = windows(images, self.size)
        found = [self.base(chunk) for chunk in torch.split(parts.flatten(0, 1), 64)]
        return {k: torch.cat([f[k] for f in found]).view(*parts.shape[:2], -1) for k in found[0]}
