"""DemoFusion and MultiDiffusion behind the adapter contract, on the parts of any SDXL-like diffusers pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hibench.adapter import NULL_STAGE, Resolution, Stage, from_uint8, to_uint8
from hibench.errors import AdapterError, MissingWeights, SpecError
from methods.demofusion import options as own
from methods.demofusion.phases import Phase, phases
from methods.diffusers_pipeline.adapter import DiffusersPipeline
from methods.diffusers_pipeline.loading import load
from methods.diffusers_pipeline.options import LOADING

if TYPE_CHECKING:
    from torch import Tensor

    from methods.demofusion.sampling import Job, Stop

__all__ = ["DemoFusion", "MultiDiffusion"]

OnPhase = Callable[[int, "Tensor"], None]  # number of the phase, images uint8 [B, 3, h, w]


class DemoFusion(DiffusersPipeline):
    """Progressive upscaling with skip residual, dilated sampling and windows (Du et al., CVPR 2024, arXiv 2311.16973).

    weights: "reference" (a small SDXL-shaped base trained on scenes at 64 px) | a hub id that was fetched, for instance
    stabilityai/stable-diffusion-xl-base-1.0 | a folder that `save_pretrained` wrote | "random" (options: config). Prompts: the
    spec's; where it names none, the caption of the scene with the image's seed.
    """

    name: ClassVar[str] = "demofusion"
    own_options: ClassVar[dict[str, Any]] = own.OPTIONS
    hub_weights: ClassVar[tuple[str, ...]] = ("stabilityai/stable-diffusion-xl-base-1.0",)
    multi: ClassVar[bool] = False
    scheduler: Any = None

    def _check_options(self) -> None:
        own.check(self.options, self.name)

    def supports(self, axes: dict[str, Any]) -> str | None:
        """Any canvas whose sides the first stage divides, square or not; step counts of the noise schedule."""
        if axes.get("sparsity"):
            return f"{self.name} denoises every latent: it has no sparsity axis"
        try:
            found = self.geometry
        except MissingWeights:
            return None  # load() says so
        if found.native is None:
            return "the configuration of this pipeline does not state its native size (sample_size of a U-Net)"
        height, width, factor = axes["height"], axes["width"], found.factor
        if height % factor or width % factor or min(height, width) < factor:
            near = [max(factor, round(side / factor) * factor) for side in (height, width)]
            return f"{height}x{width} is not a multiple of {factor} px (its f); the nearest is {near[0]}x{near[1]}"
        return self._steps_problem(found, axes.get("steps"))

    def load(self) -> None:
        """Bring the pipeline to the device and make its scheduler; nothing is downloaded."""
        from methods.demofusion.scheduler import make_scheduler

        self.pipe = load(self.weights, self.device, self.dtype, {k: self.options[k] for k in LOADING if k != "scheduler"})
        for part in ("unet", "vae", "scheduler"):
            if getattr(self.pipe, part, None) is None:
                kind = type(self.pipe).__name__
                self.pipe = None
                raise AdapterError(f"{self.name}: a {kind} has no {part}; give a pipeline like Stable Diffusion XL")
        self.scheduler = make_scheduler(self.pipe.scheduler, own.scheduler_name(self.options))

    def phases(self, resolution: Resolution) -> list[Phase]:
        """The sizes that lead to a canvas."""
        found = self.geometry
        return phases(resolution, int(found.native or 0), found.factor, self.options["progressive"])

    def generate_batch(
        self,
        resolution: Resolution,
        seeds: Sequence[int],
        *,
        steps: int | None = None,
        sparsity: float = 0.0,
        prompts: Sequence[str] | None = None,
        stage: Stage = NULL_STAGE,
        on_phase: OnPhase | None = None,
    ) -> "Tensor":
        """Images uint8 [B, 3, H, W] on the device; image i depends on seeds[i] and prompts[i] alone.

        `on_phase` is given the images of every phase as soon as they are there, the last one included; without it earlier
        phases are never decoded.
        """
        picture = None if self.options["image"] is None else read_picture(self.options["image"], self.name)
        return self._make(resolution, seeds, picture, steps, sparsity, prompts, stage, on_phase)

    def refine(
        self,
        picture: "Tensor",
        resolution: Resolution,
        seeds: Sequence[int],
        *,
        steps: int | None = None,
        prompts: Sequence[str] | None = None,
        stage: Stage = NULL_STAGE,
        on_phase: OnPhase | None = None,
    ) -> "Tensor":
        """The image-to-image entry: as generate_batch, from a picture uint8 [3, h, w] in place of native samples.

        It is resized to the native size, filled up with black where its shape is another.
        """
        return self._make(resolution, seeds, picture, steps, 0.0, prompts, stage, on_phase)

    def _make(
        self,
        resolution: Resolution,
        seeds: Sequence[int],
        picture: "Tensor | None",
        steps: int | None,
        sparsity: float,
        prompts: Sequence[str] | None,
        stage: Stage,
        on_phase: OnPhase | None,
    ) -> "Tensor":
        import torch

        prompts = self._ready(resolution, seeds, steps, sparsity, prompts)
        with torch.inference_mode():
            with stage("encode"):
                job = self._job(seeds, prompts, steps or self.default_steps, stage)
                start = None if picture is None else self._encoded(picture, resolution, seeds)
            sizes = self.phases(resolution)
            stops = self._stops(job, sizes, start)
            for phase in sizes:
                with stage("denoise"):
                    stop = next(stops)
                if phase is sizes[-1] or on_phase is not None:
                    with stage("decode"):
                        images = self._decode(stop)
                    if on_phase is not None:
                        on_phase(phase.scale, images)
        stage.effective(steps=max(job.done.values()), nfe=job.network.evaluations // len(seeds), tiles=stop.windows)
        return images

    def _stops(self, job: Job, sizes: list[Phase], start: "Tensor | None") -> Iterator[Stop]:
        """The phases, done when they are asked for."""
        from methods.demofusion.sampling import demofusion

        return demofusion(job, sizes, start)

    def _job(self, seeds: Sequence[int], prompts: Sequence[str], steps: int, stage: Stage) -> Job:
        """Text, network, scheduler and draws of a batch."""
        from methods.demofusion.conditioning import Text
        from methods.demofusion.network import Network
        from methods.demofusion.sampling import Job, SeedDraws
        from methods.diffusers_pipeline.text import encode

        options, unet, found = self.options, self.pipe.unet, self.geometry
        told = encode(self.pipe, prompts, options["negative_prompt"])
        network = Network(
            unet,
            Text(told.prompt, told.pooled, told.negative, told.negative_pooled),
            options["guidance"],
            options["guidance_rescale"],
            options["max_windows"],
        )
        rules = own.rules(options, int(found.native or 0) // found.factor, found.factor, self.multi)
        draws = SeedDraws(seeds, self.device, options["compat"] == "official")
        return Job(
            network,
            self.scheduler,
            rules,
            draws,
            len(seeds),
            unet.config.in_channels,
            steps,
            self.device,
            options["eta"],
            stage=stage,
        )

    def _encoded(self, picture: "Tensor", resolution: Resolution, seeds: Sequence[int]) -> "Tensor":
        """Latents [B, C, h, w] of a picture at the size of the first phase, one sample of its posterior per seed."""
        from methods.demofusion.decode import encode
        from methods.demofusion.sampling import SeedDraws

        first = self.phases(resolution)[0]
        small = fitted(picture, (first.rows * self.geometry.factor, first.columns * self.geometry.factor)).to(self.device)
        return encode(self.pipe.vae, small.expand(len(seeds), -1, -1, -1), SeedDraws(seeds, self.device).posterior)

    def _decode(self, stop: Stop) -> "Tensor":
        """Images uint8 [B, 3, H, W] of the latents at the end of a phase: tiled beyond the native size, as released."""
        import torch

        from methods.demofusion.decode import decode_tiled, decoder, tile_rule, unscaled

        found, options, decode = self.geometry, self.options, decoder(self.pipe.vae)
        window, phase, images = int(found.native or 0) // found.factor, stop.phase, []
        for z in unscaled(stop.latents, self.pipe.vae.config).split(1):
            tiled = options["tiled_decode"] and max(phase.height, phase.width) > (found.native or 0)
            image = decode_tiled(decode, z, found.factor, tile_rule(window), options["max_tiles"]) if tiled else decode(z)
            images.append(to_uint8(image))
            if not bool(torch.isfinite(image).all()):
                raise AdapterError(
                    f"{self.name}: the decoder returned values that are not finite: it overflows in this dtype; "
                    "keep the VAE in float32 (options: vae) or use dtype: bfloat16"
                )
        return torch.cat(images)

    def close(self) -> None:
        """Free the pipeline."""
        self.pipe = self.scheduler = None

    @classmethod
    def train(cls, out: Path, **options: Any) -> dict[str, Any]:
        """Train the reference weights; see methods/demofusion/train.py."""
        from methods.demofusion.train import train

        return train(Path(out), **options)

    @classmethod
    def golden(cls, case: Path) -> Iterable[Any]:
        """Recompute every output of one case folder of golden tensors."""
        from methods.demofusion.golden import golden

        return golden(Path(case))


class MultiDiffusion(DemoFusion):
    """Windows over a canvas of noise, averaged in every step (Bar-Tal et al., ICML 2023, arXiv 2302.08113).

    The machinery of DemoFusion with one phase, and without skip residual, dilated path, shifts and (unless option crops asks
    for them) the places of the windows; weights as there.
    """

    name: ClassVar[str] = "multidiffusion"
    own_options: ClassVar[dict[str, Any]] = {k: v for k, v in own.OPTIONS.items() if k in own.MULTI}
    multi: ClassVar[bool] = True

    def _check_options(self) -> None:
        self.options = own.OPTIONS | self.options
        super()._check_options()

    def phases(self, resolution: Resolution) -> list[Phase]:
        """The canvas alone."""
        factor = self.geometry.factor
        return [Phase(1, *resolution, resolution[0] // factor, resolution[1] // factor)]

    def _stops(self, job: Job, sizes: list[Phase], start: "Tensor | None") -> Iterator[Stop]:
        from methods.demofusion.sampling import multidiffusion

        yield multidiffusion(job, sizes[0])

    def refine(self, *args: Any, **kwargs: Any) -> "Tensor":
        """MultiDiffusion starts from noise."""
        raise AdapterError("multidiffusion: it starts from noise and refines no picture; use demofusion")


def read_picture(path: str, name: str) -> "Tensor":
    """A picture file as uint8 [3, h, w]; SpecError when it cannot be read."""
    import numpy as np
    import torch
    from PIL import Image

    try:
        with Image.open(Path(path).expanduser()) as file:
            return torch.from_numpy(np.array(file.convert("RGB"))).permute(2, 0, 1)
    except OSError as error:
        raise SpecError(
            f"{name}: option image: {path} cannot be read as a picture ({type(error).__name__}); check the path"
        ) from error


def fitted(picture: "Tensor", size: tuple[int, int]) -> "Tensor":
    """A picture uint8 [3, h, w] as float32 [1, 3, H, W] in [-1, 1]: resized as a whole, with black around it."""
    import torch
    import torch.nn.functional as F

    height, width = picture.shape[-2:]
    scale = min(size[0] / height, size[1] / width)
    inner = tuple(max(1, min(round(side * scale), limit)) for side, limit in zip((height, width), size))
    small = F.interpolate(from_uint8(picture[None]), size=inner, mode="bicubic", antialias=True).clamp(-1, 1)
    top, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    canvas = torch.full((1, 3, *size), -1.0)
    canvas[:, :, top : top + inner[0], left : left + inner[1]] = small
    return canvas
