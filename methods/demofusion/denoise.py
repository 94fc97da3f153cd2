"""The phases of DemoFusion (Du et al., CVPR 2024, arXiv 2311.16973) on latents: the native one and the refinements."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from methods.demofusion import windows
from methods.demofusion.conditioning import window_ids
from methods.demofusion.filters import blur, gaussian, match, moments
from methods.demofusion.network import Network
from methods.demofusion.schedule import StepWeights, step_weights
from methods.demofusion.scheduler import Stepper

__all__ = ["Refinement", "Rules", "denoise_whole", "upsampled"]

OnStep = Callable[[int, Tensor], None]  # index of the evaluation, latents after it


@dataclass(frozen=True)
class Rules:
    """How phases are refined; the defaults are those of `compat: paper`."""

    window: int  # native side of the U-Net, in latents
    factor: int  # pixels per latent
    stride: int  # of the windows, in latents
    reach: int  # largest shift of a window, in latents
    alpha: tuple[float, float, float] = (3.0, 1.0, 1.0)
    sigma: float = 1.0
    skip: bool = True
    dilated: bool = True
    kernel: str = "4s-3"  # width of the blur at dilation s, or "2s-1"
    crops: bool = True  # windows are told where they are
    padded_frame: bool = False  # ... in the frame with padding, as released
    cover: bool = True  # a last window at the border where the stride does not end there
    official_index: int | None = None  # windows per batch of the released code, whose scaling is then followed

    def blur_size(self, s: int) -> int:
        """Width of the Gaussian at dilation s."""
        return 4 * s - 3 if self.kernel == "4s-3" else 2 * s - 1


def denoise_whole(z: Tensor, stepper: Stepper, network: Network, ids: np.ndarray, on_step: OnStep | None = None) -> Tensor:
    """Ordinary sampling of latents z [B, C, h, w], noise at the first level; `ids` float32 [6] for all images."""
    images = torch.arange(len(z), device=z.device)
    rows = torch.from_numpy(ids).to(z.device).expand(len(z), 6)
    for i, t in enumerate(stepper.timesteps):
        z = stepper.step(network(stepper.scale(z, i), images, rows, t), i, z)
        if on_step is not None:
            on_step(i, z)
    return z


def upsampled(z: Tensor, size: tuple[int, int]) -> Tensor:
    """Latents [B, C, h, w] at another size, bicubic without smoothing, as the released code has it."""
    return F.interpolate(z, size=size, mode="bicubic", align_corners=False)


class Refinement:
    """Denoises canvases [B, C, H, W] in windows and with dilation, guided by an upsampled image in `run`.

    `shifts` int64 [steps, B, V, 2] moves the windows of every evaluation and image (None: they stand still); `s` is the
    dilation of the global path, and `later` says that another phase came before.
    """

    def __init__(
        self,
        rules: Rules,
        network: Network,
        stepper: Stepper,
        size: tuple[int, int],
        batch: int,
        ids: np.ndarray,
        device: Any,
        *,
        s: int = 1,
        shifts: np.ndarray | None = None,
        later: bool = False,
        order: np.ndarray | None = None,
    ) -> None:
        self.rules, self.network, self.stepper, self.size, self.s, self.later = rules, network, stepper, size, s, later
        self.device, self.batch, self.ids = device, batch, ids
        self.span = windows.window_size(size, rules.window)
        corners = windows.origins(size, rules.window, rules.stride, rules.cover)
        self.pad = rules.reach if shifts is not None else 0
        moves = np.zeros((1, batch, *corners.shape), dtype=np.int64) if shifts is None else shifts
        self.corners = corners + self.pad + moves  # in the frame with padding: [steps or 1, B, V, 2]
        if order is not None:
            self.corners = self.corners[:, :, order]
        self.weights = step_weights(
            stepper.timesteps.tolist(), stepper.total, rules.alpha, rules.sigma, rules.skip, rules.dilated
        )
        self.edge = (-size[0] % s, -size[1] % s)  # rows and columns of zeros above and left of the dilated path's canvas
        self.small = ((size[0] + self.edge[0]) // s, (size[1] + self.edge[1]) // s)
        views = corners.shape[0]
        self.local_images = torch.arange(batch, device=device).repeat_interleave(views)
        self.dilated_images = torch.arange(batch, device=device).repeat_interleave(s * s)
        self.base_ids = torch.from_numpy(ids).to(device)
        self._still = self._coverage(0) if shifts is None else None

    @property
    def views(self) -> int:
        """Local windows per image and step."""
        return int(self.corners.shape[2])

    def windows_at(self, i: int) -> np.ndarray:
        """Corners of the windows of evaluation i in the frame with padding: int64 [B, V, 2]."""
        corners: np.ndarray = self.corners[min(i, len(self.corners) - 1)]
        return corners

    def run(self, z0: Tensor, noise: Tensor, on_step: OnStep | None = None) -> Tensor:
        """Upsample, diffuse, denoise: latents after all steps, from those of the phase before at this size, and one noise."""
        return self.denoise(self.stepper.noised(z0, noise, 0), lambda i: self.stepper.noised(z0, noise, i), on_step)

    def denoise(self, z: Tensor, guide: "Callable[[int], Tensor] | None" = None, on_step: OnStep | None = None) -> Tensor:
        """Latents after all steps from z at the first noise level; guide(i) is what the skip residual mixes in at step i."""
        stepper = self.stepper
        for i, weights in enumerate(self.weights):
            if guide is not None and weights.skip > 0 and stepper.begins():
                z = z * (1.0 - weights.skip) + guide(i) * weights.skip
                stepper.moved()
            z = stepper.step(self.predict(z, i, weights), i, z)
            if not self.rules.cover:
                z = z * (self._still > 0 if self._still is not None else self._coverage(i) > 0)
            if on_step is not None:
                on_step(i, z)
        return z

    def predict(self, z: Tensor, i: int, weights: StepWeights) -> Tensor:
        """The prediction for canvases z [B, C, H, W] at step i: both paths, mixed by c2."""
        t = self.stepper.timesteps[i]
        local, dilated = weights.dilated < 1, weights.dilated > 0
        parts = [self._local_inputs(z, i)] if local else []
        parts += [self._dilated_inputs(z, weights)] if dilated else []
        scaled = self._scaled([part[0] for part in parts], i, local)
        if len(parts) == 2 and scaled[0].shape[1:] == scaled[1].shape[1:]:
            out = self.network(
                torch.cat(scaled), torch.cat([part[1] for part in parts]), torch.cat([part[2] for part in parts]), t
            )
            outs = list(out.split([len(x) for x in scaled]))
        else:
            outs = [self.network(x, images, ids, t) for x, (_, images, ids) in zip(scaled, parts)]
        if not dilated:
            return self._lay_local(outs[0], i)
        far = self._lay_dilated(outs[-1])
        return self._lay_local(outs[0], i) * (1.0 - weights.dilated) + far * weights.dilated if local else far

    def _scaled(self, inputs: list[Tensor], i: int, local: bool) -> list[Tensor]:
        """What the network is given for these windows of the local path, if `local`, and of the dilated one."""
        batch = self.rules.official_index
        if batch is None:
            return [self.stepper.scale(x, i) for x in inputs]
        factors = self.stepper.official_factors(i, self.views, self.s**2, batch, self.later)
        paths = [factors[: self.views], factors[self.views :]][0 if local else 1 :]
        spread = [torch.from_numpy(np.tile(path, self.batch)).float()[:, None, None, None] for path in paths]
        return [x * factor.to(x.device) for x, factor in zip(inputs, spread)]

    # -- the local path ----------------------------------------------------------------------------------------------------

    def _local_inputs(self, z: Tensor, i: int) -> tuple[Tensor, Tensor, Tensor]:
        """Windows of the padded canvases, the image of each, and its time ids."""
        corners = self.windows_at(i)
        x = windows.cut(F.pad(z, (self.pad,) * 4), corners, self.span)
        if not self.rules.crops:
            return x, self.local_images, self.base_ids.expand(len(x), 6)
        ids = window_ids(self.ids, corners.reshape(-1, 2), self.rules.factor, 0 if self.rules.padded_frame else self.pad)
        return x, self.local_images, torch.from_numpy(ids).to(z.device)

    def _lay_local(self, out: Tensor, i: int) -> Tensor:
        """Mean of the windows' predictions on each latent of the canvases."""
        size = (self.size[0] + 2 * self.pad, self.size[1] + 2 * self.pad)
        total = self._inner(windows.lay(out, self.windows_at(i), size))
        count = self._coverage(i) if self._still is None else self._still
        return total / count.clamp(min=1)

    def _coverage(self, i: int) -> Tensor:
        """How many windows of evaluation i lie on each latent of the canvases: float32 [B, 1, H, W]."""
        size = (self.size[0] + 2 * self.pad, self.size[1] + 2 * self.pad)
        return self._inner(windows.coverage(self.windows_at(i), self.span, size)).to(self.device)

    def _inner(self, x: Tensor) -> Tensor:
        """Without the padding."""
        return x[:, :, self.pad : self.pad + self.size[0], self.pad : self.pad + self.size[1]]

    # -- the dilated path --------------------------------------------------------------------------------------------------

    def _dilated_inputs(self, z: Tensor, weights: StepWeights) -> tuple[Tensor, Tensor, Tensor]:
        """Every s-th latent in both directions, s^2 such pictures per image, of canvases that are blurred and then matched."""
        padded = F.pad(z, (self.edge[1], 0, self.edge[0], 0))
        kernel = gaussian(self.rules.blur_size(self.s), weights.sigma).to(z.device)
        x = match(blur(padded, kernel), *moments(padded))
        x = F.pixel_unshuffle(x, self.s)  # [B, C s^2, h, w], offsets row by row within a channel
        x = x.unflatten(1, (-1, self.s**2)).transpose(1, 2).flatten(0, 1)
        return x, self.dilated_images, self.base_ids.expand(len(x), 6)

    def _lay_dilated(self, out: Tensor) -> Tensor:
        """The predictions of the s^2 pictures in their places on the canvases."""
        x = out.unflatten(0, (self.batch, self.s**2)).transpose(1, 2).flatten(1, 2)
        return F.pixel_shuffle(x, self.s)[:, :, self.edge[0] :, self.edge[1] :]
