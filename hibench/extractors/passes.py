"""One pass of every extractor over images: of one batch, or of a stream of images of any sizes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hibench.extractors.contract import Extractor, Extractors

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

__all__ = ["Collector", "count_bad", "run"]


def run(
    extractors: Iterable[Extractor], images: "torch.Tensor", ids: Sequence[int] | None = None
) -> "dict[str, NDArray[np.float32]]":
    """One pass of every extractor over uint8 [B, 3, H, W]: {"NAME/layer": float32 [B, ...]} on the host.

    `ids`: one per image (its seed), needed by crop metrics and swd. No PNG, no copy to the host before the network.
    """
    import torch

    out: dict[str, NDArray[np.float32]] = {}
    with torch.inference_mode():
        for extractor in extractors:
            for layer, values in _call(extractor, images, ids).items():
                if _kept(extractors, f"{extractor.name}/{layer}"):
                    out[f"{extractor.name}/{layer}"] = values.float().cpu().numpy()
    return out


def _kept(extractors: Iterable[Extractor], key: str) -> bool:
    return not isinstance(extractors, Extractors) or extractors.keeps(key)


def _call(extractor: Extractor, images: "torch.Tensor", ids: Sequence[int] | None) -> "dict[str, torch.Tensor]":
    if getattr(extractor, "needs_ids", False):
        return extractor(images, ids)  # type: ignore[call-arg]
    return extractor(images)


class Collector:
    """Streams batches of any sizes through the extractors: images are resized as they come and share batches afterwards."""

    def __init__(self, extractors: Iterable[Extractor], batch: int = 32) -> None:
        self.extractors, self.batch, self.source = list(extractors), batch, extractors
        self.parts: dict[str, list[NDArray[np.float32]]] = {}
        self.waiting: dict[str, list[torch.Tensor]] = {}
        self.n = self.constant = 0

    def add(self, images: "torch.Tensor", ids: Sequence[int] | None = None) -> None:
        """uint8 [B, 3, H, W]; `ids` default to the running number."""
        import torch

        ids = range(self.n, self.n + len(images)) if ids is None else ids
        self.n += len(images)
        self.constant += count_bad(images)[1]
        with torch.inference_mode():
            for extractor in self.extractors:
                if hasattr(extractor, "prepare"):
                    waiting = self.waiting.setdefault(extractor.name, [])
                    waiting.append(extractor.prepare(images))
                    while sum(map(len, waiting)) >= self.batch:
                        joined = torch.cat(waiting) if len(waiting) > 1 else waiting[0]
                        self._network(extractor, joined[: self.batch])
                        waiting[:] = [joined[self.batch :]] if len(joined) > self.batch else []
                else:
                    self._keep(extractor, _call(extractor, images, ids))

    def _network(self, extractor: Any, prepared: "torch.Tensor") -> None:
        self._keep(extractor, extractor.network(prepared))

    def _keep(self, extractor: Extractor, outputs: "Mapping[str, torch.Tensor]") -> None:
        for layer, values in outputs.items():
            if _kept(self.source, f"{extractor.name}/{layer}"):
                self.parts.setdefault(f"{extractor.name}/{layer}", []).append(values.float().cpu().numpy())

    def finish(self) -> "dict[str, NDArray[np.float32]]":
        """{"NAME/layer": float32 [N, ...]} in the order of the images."""
        import numpy as np
        import torch

        with torch.inference_mode():
            for extractor in self.extractors:
                waiting = self.waiting.pop(extractor.name, [])
                if waiting:
                    self._network(extractor, torch.cat(waiting))
        return {key: np.concatenate(parts) for key, parts in self.parts.items()}


def count_bad(images: "torch.Tensor") -> tuple[int, int]:
    """(images that hold NaN or infinity, images of one colour), of [B, 3, H, W] uint8 or float."""
    flat = images.flatten(2)
    nan = 0 if not images.is_floating_point() else int((~flat.isfinite()).any(2).any(1).sum())
    constant = int(((flat.amax(2) == flat.amin(2)).all(1)).sum())
    return nan, constant
