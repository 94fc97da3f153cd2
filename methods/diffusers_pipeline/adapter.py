"""Any text-to-image pipeline of the diffusers library behind the adapter contract."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from hibench.adapter import NULL_STAGE, Batched, Resolution, Stage, from_uint8, to_uint8
from hibench.errors import AdapterError, MissingWeights, SpecError
from methods.diffusers_pipeline.geometry import Geometry, geometry, read_configs
from methods.diffusers_pipeline.loading import find, load, parameters, weights_digest
from methods.diffusers_pipeline.options import LOADING, check_keys, complete
from methods.diffusers_pipeline.text import default_prompts

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CALLING", "DiffusersPipeline"]

CALLING: dict[str, Any] = {                         # option: default
    "guidance": None,                               # classifier-free guidance scale; None = the pipeline's own
    "negative_prompt": None,                        # one text for all images; None = none
    "arguments": {},                                # any further keyword arguments of the pipeline's call
}


class DiffusersPipeline(Batched):
    """Stable Diffusion, SDXL, PixArt, Sana, FLUX, ...: whatever `DiffusionPipeline.from_pretrained` loads and takes a prompt.

    weights: "reference" (a small SDXL-shaped pipeline trained on scenes at 64 px) | a hub id that was fetched | a folder that
    `save_pretrained` wrote | "random" (options: config). Prompts: the spec's; where it names none, the caption of the scene
    with the image's seed.
    """

    name: ClassVar[str] = "diffusers"
    axes: ClassVar[frozenset[str]] = frozenset({"resolution", "steps"})
    default_steps: ClassVar[int] = 50
    licence: ClassVar[str] = "MIT"                  # of the reference weights
    hub_weights: ClassVar[tuple[str, ...]] = ()     # what `hibench fetch METHOD` gets
    own_options: ClassVar[dict[str, Any]] = CALLING

    def __init__(self, weights: str = "reference", options: dict[str, Any] | None = None, device: str = "cpu",
                 dtype: str = "float32") -> None:
        given = options or {}
        check_keys(self.name, given, {**LOADING, **self.own_options})
        self.options: dict[str, Any] = {**complete(given, weights, self.name), **self.own_options,
                                        **{key: value for key, value in given.items() if key in self.own_options}}
        self._check_options()
        self.weights, self.device, self.dtype = weights, device, dtype
        self.pipe: Any = None

    def _check_options(self) -> None:
        guidance, negative = self.options["guidance"], self.options["negative_prompt"]
        if guidance is not None and (isinstance(guidance, bool) or not isinstance(guidance, (int, float)) or guidance < 0):
            raise SpecError(f"{self.name}: option guidance: {guidance!r} is not a number >= 0")
        if negative is not None and not isinstance(negative, str):
            raise SpecError(f"{self.name}: option negative_prompt: {negative!r} is not a text")
        if not isinstance(self.options["arguments"], dict):
            raise SpecError(f"{self.name}: option arguments: {self.options['arguments']!r} is not a table of names and values")

    @cached_property
    def geometry(self) -> Geometry:
        """Sizes out of the configuration files; MissingWeights when they are not there."""
        if self.weights == "random":
            from methods.diffusers_pipeline.configs import CONFIGS

            return geometry(CONFIGS[self.options["config"] or "tiny-sdxl"])
        return geometry(read_configs(find(self.weights, self.options["variant"])))

    def supports(self, axes: dict[str, Any]) -> str | None:
        """Any canvas whose sides are multiples of what the networks need; 1 to as many steps as the noise schedule has."""
        if axes.get("sparsity"):
            return "a diffusers pipeline evaluates every coordinate: it has no sparsity axis"
        try:
            found = self.geometry
        except MissingWeights:
            return None                             # load() says so
        return self._size_problem(found, axes["height"], axes["width"]) or self._steps_problem(found, axes.get("steps"))

    def _size_problem(self, found: Geometry, height: int, width: int) -> str | None:
        multiple = found.multiple
        if height % multiple == 0 and width % multiple == 0 and min(height, width) >= multiple:
            return None
        near = [max(multiple, round(side / multiple) * multiple) for side in (height, width)]
        return f"{height}x{width} is not a multiple of {multiple} px; the nearest is {near[0]}x{near[1]}"

    def _steps_problem(self, found: Geometry, steps: int | None) -> str | None:
        if steps is None or 1 <= steps <= found.train_steps:
            return None
        return f"{steps} steps: from 1 to {found.train_steps} there are"

    def load(self) -> None:
        """Bring the pipeline to the device; nothing is downloaded."""
        from methods.diffusers_pipeline.calling import check_arguments

        self.pipe = load(self.weights, self.device, self.dtype, {key: self.options[key] for key in LOADING})
        check_arguments(self.pipe, self.options, self.name)

    def generate_batch(self, resolution: Resolution, seeds: Sequence[int], *, steps: int | None = None, sparsity: float = 0.0,
                       prompts: Sequence[str] | None = None, stage: Stage = NULL_STAGE) -> Tensor:
        """Images uint8 [B, 3, H, W] on the device; image i depends on seeds[i] and prompts[i] alone."""
        from methods.diffusers_pipeline.calling import arguments, run

        prompts = self._ready(resolution, seeds, steps, sparsity, prompts)
        call = arguments(self.pipe, self.options, prompts, resolution, seeds, steps or self.default_steps)
        return run(self.pipe, call, stage).to(self.device)

    def _ready(self, resolution: Resolution, seeds: Sequence[int], steps: int | None, sparsity: float,
               prompts: Sequence[str] | None) -> Sequence[str]:
        """Load what is not loaded, refuse what is not supported (AdapterError), and give the prompts: one per seed."""
        if self.pipe is None:
            self.load()
        reason = self.supports({"height": resolution[0], "width": resolution[1], "steps": steps, "sparsity": sparsity})
        if reason:
            raise AdapterError(f"{self.name}: {reason}")
        prompts = default_prompts(seeds) if prompts is None else prompts
        if len(prompts) != len(seeds):
            raise AdapterError(f"{self.name}: {len(seeds)} seeds but {len(prompts)} prompts; give one prompt per seed")
        return prompts

    @staticmethod
    def captions(seeds: Sequence[int]) -> list[str]:
        """The prompts where a spec names none, for the CLIP score."""
        return default_prompts(seeds)

    def reconstruct(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] through the pipeline's VAE (the mean of its posterior) and back; AdapterError without one."""
        import torch

        if self.pipe is None:
            self.load()
        vae = getattr(self.pipe, "vae", None)
        if vae is None:
            raise AdapterError(f"{self.name}: a {type(self.pipe).__name__} has no VAE that could reconstruct images")
        factor = self.geometry.factor
        if images.shape[-2] % factor or images.shape[-1] % factor:
            raise AdapterError(f"{self.name}: {images.shape[-1]}x{images.shape[-2]} px images are no multiple of {factor} px")
        with torch.inference_mode():
            encoded = vae.encode(from_uint8(images, self.device).to(vae.dtype))
            z = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else next(iter(encoded.values()))
            return to_uint8(vae.decode(z, return_dict=False)[0])

    def close(self) -> None:
        """Free the pipeline."""
        self.pipe = None

    def weights_digest(self) -> str:
        """SHA-256 of the files of the pipeline (and of another VAE); needs no load()."""
        return weights_digest(self.weights, {key: self.options[key] for key in LOADING})

    def parameters(self) -> int | None:
        """Parameters of all networks; None before load()."""
        return None if self.pipe is None else parameters(self.pipe)
