"""The ceiling: a Gaussian fitted to scenes by principal components, which knows means and covariances and no shapes."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from hibench.adapter import NULL_STAGE, Batched, Resolution, Stage, from_uint8, seeded_noise, to_uint8
from hibench.errors import MissingWeights, SpecError
from hibench.references import scenes
from hibench.references.scene_cache import TRAINING_SEED, rendered
from hibench.weights import sha256_of

__all__ = ["Gaussian"]

WEIGHTS = Path(__file__).parent / "gaussian.safetensors"
SIDE, COMPONENTS = 64, 256


class Gaussian(Batched):
    """x = mean + Σ σ_k z_k v_k over 256 principal components of 64-px scenes; other sizes by antialiased bicubic."""

    name: ClassVar[str] = "gaussian"
    axes: ClassVar[frozenset[str]] = frozenset({"resolution"})
    licence: ClassVar[str] = "MIT"

    def __init__(
        self, weights: str = "reference", options: dict[str, Any] | None = None, device: str = "cpu", dtype: str = "float32"
    ) -> None:
        if options:
            raise SpecError(f"gaussian: no option '{next(iter(options))}'; it has none")
        self.path = WEIGHTS if weights == "reference" else Path(weights)
        self.device = device
        self.tensors: dict[str, Tensor] = {}

    def supports(self, axes: dict[str, Any]) -> str | None:
        """Square images; no steps, no sparsity."""
        if axes.get("steps") is not None or axes.get("sparsity"):
            return "a Gaussian is drawn at once: there are no steps and no sparsity"
        return None if axes["height"] == axes["width"] else "the Gaussian was fitted to square images"

    def load(self) -> None:
        """Read the fitted mean, scales and components."""
        if not self.path.is_file():
            raise MissingWeights(f"gaussian: no weights at {self.path}; make them with: hibench train gaussian")
        self.tensors = {k: v.to(self.device).float() for k, v in load_file(self.path).items()}

    def generate_batch(
        self,
        resolution: Resolution,
        seeds: Sequence[int],
        *,
        steps: int | None = None,
        sparsity: float = 0.0,
        prompts: Sequence[str] | None = None,
        stage: Stage = NULL_STAGE,
    ) -> Tensor:
        """Images uint8 [B, 3, H, W]."""
        if not self.tensors:
            self.load()
        with torch.inference_mode(), stage("decode"):
            z = seeded_noise((COMPONENTS,), seeds, self.device) * self.tensors["scale"]
            x = (self.tensors["mean"] + z @ self.tensors["components"]).view(-1, 3, SIDE, SIDE)
            if tuple(resolution) != (SIDE, SIDE):
                x = F.interpolate(x, size=tuple(resolution), mode="bicubic", antialias=True)
            return to_uint8(x)

    def close(self) -> None:
        """Free the components."""
        self.tensors = {}

    def weights_digest(self) -> str:
        """SHA-256 of the weights file."""
        return sha256_of(self.path) if self.path.is_file() else "missing"

    def parameters(self) -> int:
        """Numbers in the fit."""
        return 3 * SIDE * SIDE * (COMPONENTS + 1) + COMPONENTS

    @classmethod
    def train(cls, out: Path, *, images: int = 10_000, device: str = "cpu", **_: Any) -> dict[str, Any]:
        """Fit by a randomised singular value decomposition (Halko et al. 2011); writes out/gaussian.safetensors."""
        begin = time.monotonic()
        out = Path(out)
        out.mkdir(parents=True, exist_ok=True)
        data = from_uint8(rendered(50_000, SIDE)[:images], device).flatten(1)
        mean = data.mean(0)
        data -= mean
        torch.manual_seed(0)
        s, v = torch.svd_lowrank(data, q=COMPONENTS + 32, niter=3)[1:]
        scale = s[:COMPONENTS] / (images - 1) ** 0.5
        save_file(
            {
                "mean": mean.half().cpu(),
                "scale": scale.cpu().contiguous(),
                "components": v[:, :COMPONENTS].T.half().cpu().contiguous(),
            },
            out / "gaussian.safetensors",
        )
        explained = (scale.square().sum() / data.var(0).sum()).item()
        result = {
            "data": f"scenes v{scenes.VERSION}, seeds {TRAINING_SEED}+{images}, {SIDE} px",
            "components": COMPONENTS,
            "variance_explained": round(explained, 4),
            "seconds": round(time.monotonic() - begin, 1),
            "device": device,
        }
        (out / "training-gaussian.json").write_text(json.dumps(result, indent=1) + "\n")
        return result
