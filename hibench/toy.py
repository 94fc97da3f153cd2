"""`toy`: a cheap deterministic method for tests and docs that honours every axis: seeded waves, refined step by step."""

from __future__ import annotations

import hashlib
import time
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from hibench.adapter import NULL_STAGE, Resolution, Stage, seeded_noise, to_uint8
from hibench.errors import MissingWeights, SpecError, did_you_mean

if TYPE_CHECKING:
    import torch

__all__ = ["Toy"]

WAVES = 24                             # waves per image


class Toy:
    """A continuous image f_seed: [0,1]² → RGB, a sum of seeded waves, that noise approaches by half in every step.

    Options: `waves` (cost and detail), `sleep_s` (extra seconds per image), `memory_bytes` (held during denoise).
    """

    name: ClassVar[str] = "toy"
    axes: ClassVar[frozenset[str]] = frozenset({"resolution", "steps", "sparsity"})
    default_steps: ClassVar[int] = 4
    licence: ClassVar[str] = "MIT"
    OPTIONS: ClassVar[dict[str, Any]] = {"waves": WAVES, "sleep_s": 0.0, "memory_bytes": 0}

    def __init__(self, weights: str = "reference", options: dict[str, Any] | None = None, device: str = "cpu",
                 dtype: str = "float32") -> None:
        for key in options or {}:
            if key not in self.OPTIONS:
                raise SpecError(f"toy has no option '{key}'{did_you_mean(key, self.OPTIONS)}")
        self.weights, self.device, self.dtype = weights, device, dtype
        self.options = {**self.OPTIONS, **(options or {})}
        self.palette: torch.Tensor | None = None                 # float32 [waves, 3]

    def supports(self, axes: dict[str, Any]) -> str | None:
        if not 1 <= min(axes["height"], axes["width"]) <= max(axes["height"], axes["width"]) <= 16384:
            return f"toy draws 1 to 16384 pixels a side, not {axes['height']}x{axes['width']}"
        if axes.get("steps") is not None and axes["steps"] < 1:
            return f"toy needs at least 1 step, not {axes['steps']}"
        if not 0 <= axes.get("sparsity", 0.0) < 1:
            return f"sparsity lies in [0, 1), not at {axes['sparsity']:g}"
        return None

    def load(self) -> None:
        if self.weights not in ("reference", "random"):
            raise MissingWeights(f"toy has no weights '{self.weights}'; write weights: reference")
        self.palette = seeded_noise((int(self.options["waves"]), 3), [0], self.device)[0]

    def generate(self, resolution: Resolution, seed: int, *, steps: int | None = None, sparsity: float = 0.0,
                 prompt: str | None = None, stage: Stage = NULL_STAGE) -> torch.Tensor:
        """uint8 [3, H, W]; `prompt` chooses the colours."""
        prompts = None if prompt is None else [prompt]
        return self.generate_batch(resolution, [seed], steps=steps, sparsity=sparsity, prompts=prompts, stage=stage)[0]

    def generate_batch(self, resolution: Resolution, seeds: Sequence[int], *, steps: int | None = None, sparsity: float = 0.0,
                       prompts: Sequence[str] | None = None, stage: Stage = NULL_STAGE) -> torch.Tensor:
        """uint8 [B, 3, H, W]; image i depends on seeds[i] (and prompts[i]) alone."""
        import torch

        if self.palette is None:
            raise RuntimeError("call load() before generate()")
        reason = self.supports({"height": resolution[0], "width": resolution[1], "steps": steps, "sparsity": sparsity})
        if reason:
            raise SpecError(reason)
        steps = self.default_steps if steps is None else steps
        height, width = resolution
        with torch.no_grad():
            with stage("encode"):
                frequency, phase, colour = self._waves(seeds, prompts)
                points, fill = self._points(height, width, sparsity)
            with stage("denoise"):
                ballast = torch.ones(int(self.options["memory_bytes"]), dtype=torch.uint8, device=self.device)
                state = self._smooth_noise(seeds, height, width)[:, :, (points[1] * height).long(), (points[0] * width).long()]
                for _ in range(steps):
                    target = colour @ torch.sin(frequency @ points + phase)      # the network: [B, 3, N]
                    state = target + 0.5 * (state - target)
                    stage.step()
                del ballast
                if self.options["sleep_s"]:
                    time.sleep(float(self.options["sleep_s"]))
            with stage("decode"):
                images = to_uint8(state[:, :, fill].reshape(len(seeds), 3, height, width))
        stage.effective(steps=steps, nfe=steps, sparsity=1 - points.shape[1] / (height * width))
        return images

    def _waves(self, seeds: Sequence[int], prompts: Sequence[str] | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Frequencies [B, K, 2], phases [B, K, 1] and colours [B, 3, K] of each image."""
        assert self.palette is not None
        count = len(self.palette)
        draws = seeded_noise((count, 5), seeds, self.device, stream=1)
        colour = draws[:, :, 2:5] + self.palette
        if prompts is not None:
            colour = colour + seeded_noise((count, 3), [zlib.crc32(p.encode()) for p in prompts], self.device)
        return draws[:, :, :2] * 12, draws[:, :, :1] * 3, colour.transpose(1, 2) / count**0.5 / 2

    def _points(self, height: int, width: int, sparsity: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Evaluated pixel centres, (x, y) in [0, 1], [2, N], and for every pixel the evaluated point that fills it, [H·W]."""
        import torch

        pixels = height * width
        count = max(1, round((1 - sparsity) * pixels))
        kept = torch.arange(count, device=self.device) * pixels // count
        every = torch.arange(pixels, device=self.device)
        points = torch.stack([(kept % width + 0.5) / width, (kept // width + 0.5) / height])
        return points, (torch.searchsorted(kept, every, right=True) - 1)

    def _smooth_noise(self, seeds: Sequence[int], height: int, width: int) -> torch.Tensor:
        """Noise [B, 3, H, W] drawn on an 8 × 8 grid, so that it is the same picture at every resolution."""
        import torch

        coarse = seeded_noise((3, 8, 8), seeds, self.device)
        return torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)

    def weights_digest(self) -> str:
        """SHA-256 that names the weights: toy has none but its palette."""
        return hashlib.sha256(f"toy palette {self.options['waves']}".encode()).hexdigest()

    def parameters(self) -> int:
        """Number of parameters."""
        return int(self.options["waves"]) * 3

    def close(self) -> None:
        self.palette = None
