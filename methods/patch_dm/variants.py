"""The rows of the paper's ablation: what the reference networks are trained to know, and for how long."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

__all__ = ["REFERENCE", "VARIANTS", "Variant", "folder_of"]

REFERENCE = Path(__file__).parent / "reference"


class Variant(NamedTuple):
    """One network."""

    collage: bool = True                            # the shifted term; without it patches lie anywhere, at real positions
    code: bool = True
    position: bool = True
    table: bool = False                             # codes from a table that starts as CLIP features, not from an encoder
    window: int = 5                                 # patches a side of a training window: 5 cover a padded image
    steps: int = 600                                # of the U-Net with its encoder; those shipped began as main
    prior_steps: int = 1500


VARIANTS = {
    "main": Variant(steps=9000, prior_steps=3000),
    "feature": Variant(),                           # as main, at the budget of the others
    "none": Variant(collage=False, window=4),       # serves the collage of pixels, too
    "no-position": Variant(position=False),
    "no-code": Variant(code=False),
    "table": Variant(table=True),                   # not shipped: it holds a code for every training image
}


def folder_of(base: Path, variant: str) -> Path:
    """Where a variant's files lie beside those of `main`."""
    return base if variant == "main" else base / variant
