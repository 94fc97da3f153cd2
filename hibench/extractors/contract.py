"""What an extractor is, and the set of them that metrics need."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

__all__ = ["Extractor", "Extractors"]


class Extractor(Protocol):
    """Images to features. Optional: `prepare` and `network`, whose composition it is, so that images of many sizes share a
    batch;
    `encode_text(prompts)` for clip-score; `needs_ids = True` when the call takes the images' ids as well."""

    name: str
    weights_sha256: str  # "" for a descriptor without weights
    resize: str  # the resize rule, as it stands in the record
    outputs: dict[str, int]  # layer → number of features
    roles: dict[str, str]  # what metrics ask for (features, logits, spatial, text) → layer

    def __call__(self, images: "torch.Tensor") -> "dict[str, torch.Tensor]":
        """uint8 [B, 3, H, W], any device → {layer: float32 [B, D]}."""
        ...


class Extractors:
    """The extractors that a set of metrics needs, opened once; what could not be opened stands in `missing` with its reason,
    and in `inapplicable` what has no meaning at this resolution."""

    def __init__(
        self,
        opened: dict[str, Extractor],
        missing: dict[str, str],
        wanted: Collection[str] | None = None,
        inapplicable: dict[str, str] | None = None,
    ) -> None:
        self.opened, self.missing, self.wanted = opened, missing, wanted
        self.inapplicable = inapplicable or {}

    def __iter__(self) -> Iterator[Extractor]:
        return iter(self.opened.values())

    def __len__(self) -> int:
        return len(self.opened)

    def keeps(self, key: str) -> bool:
        """Whether any metric reads the array "NAME/layer"."""
        return self.wanted is None or key in self.wanted

    def __getitem__(self, key: str) -> Extractor:
        return self.opened[key]
