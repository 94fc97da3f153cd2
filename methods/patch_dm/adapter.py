"""Patch-DM behind the adapter contract."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hibench.adapter import NULL_STAGE, Batched, Resolution, Stage, seeded_noise
from hibench.errors import AdapterError, MissingWeights, SpecError
from hibench.weights import digest_of
from methods.diffusion.schedules import respaced_timesteps
from methods.patch_dm.configs import CONFIGS, config_of
from methods.patch_dm.options import complete_options
from methods.patch_dm.variants import REFERENCE, folder_of

if TYPE_CHECKING:
    from torch import Tensor

    from methods.patch_dm.denoise import Denoiser
    from methods.patch_dm.fast import FastUNet
    from methods.patch_dm.model import PatchDM as Model

__all__ = ["PatchDM"]


class PatchDM(Batched):
    """Denoising in patches whose features are collaged: any canvas that is a whole number of patches, square or not.

    weights: "reference" (trained on scenes at 64 px, 16-px patches; options: variant) | "random" (options: config) | a path: an
    official Lightning checkpoint with config.json beside it or options: config, or a folder as `hibench train` writes it.
    """

    name: ClassVar[str] = "patch-dm"
    axes: ClassVar[frozenset[str]] = frozenset({"resolution", "steps"})
    default_steps: ClassVar[int] = 50
    licence: ClassVar[str] = "MIT"
    tasks: ClassVar[tuple[str, ...]] = ("outpainting", "inpainting")

    def __init__(self, weights: str = "reference", options: dict[str, Any] | None = None, device: str = "cpu",
                 dtype: str = "float32") -> None:
        self.options = complete_options(options or {}, weights)
        self.weights, self.device, self.dtype = weights, device, dtype
        self.model: Model | None = None
        self.loaded = ""                            # a sentence on what was loaded
        self._network: FastUNet | None = None

    @property
    def path(self) -> Path:
        """Where the weights are (meaningless for random ones)."""
        if self.weights == "reference":
            return folder_of(REFERENCE, str(self.options["variant"]))
        return Path(self.weights).expanduser()

    @property
    def remedy(self) -> str:
        """The command that makes the weights."""
        variant = self.options["variant"] if self.weights == "reference" else None
        return f"hibench train patch-dm{f' --variant {variant}' if variant else ''} --out {self.path}"

    @cached_property
    def config(self) -> dict[str, Any]:
        """The configuration; MissingWeights when the weights are not there."""
        if self.options["config"] is not None:
            return config_of(self.options["config"])
        if self.weights == "random":
            return config_of("ffhq256")
        if not self.path.exists():
            if self.weights == "reference":
                raise MissingWeights(f"patch-dm: no weights at {self.path}; get them with: {self.remedy}")
            raise MissingWeights(f"patch-dm: no weights at {self.path}; give the path of a checkpoint, or use weights: random")
        from methods.patch_dm.checkpoint import find_config
        config = find_config(self.path)
        if config is None:
            raise MissingWeights(f"patch-dm: no configuration beside {self.path}; put its config.json there, or name a "
                                 f"published one with options: config ({', '.join(CONFIGS)})")
        return config

    @property
    def patch(self) -> int:
        """Pixels of a patch's side: heights and widths are multiples of it."""
        return int(self.config["patch_size"])

    def supports(self, axes: dict[str, Any]) -> str | None:
        """Any canvas of whole patches; step counts that an integer stride through the training steps gives."""
        try:
            patch = self.patch
        except MissingWeights:
            return None                             # load() says so
        height, width, steps = axes["height"], axes["width"], axes.get("steps")
        if height % patch or width % patch or min(height, width) < 1:
            near = [max(patch, round(side / patch) * patch) for side in (height, width)]
            return f"{height}x{width} is not a whole number of patches of {patch} px; the nearest is {near[0]}x{near[1]}"
        if axes.get("sparsity"):
            return "Patch-DM evaluates every patch: it has no sparsity axis"
        try:
            if steps is not None:
                respaced_timesteps(f"ddim{steps}")
        except SpecError as error:
            return str(error)
        return None

    def load(self) -> None:
        """Build the network on the device and fill it, strictly."""
        import torch

        from methods.ldm.checkpoint import read_state_dict
        from methods.ldm.model import randomise
        from methods.patch_dm import checkpoint
        from methods.patch_dm.fast import FastUNet
        from methods.patch_dm.model import empty

        folder = self.path.is_dir()
        if self.weights == "reference" or folder:
            prior = ("prior.safetensors",) if self.config["BeatGANsAutoencConfig"].get("latent_net_conf") else ()
            checkpoint.need(self.path, ("unet.safetensors", *prior), self.remedy)
        model = empty(self.config, self.device, getattr(torch, self.dtype))
        if self.weights == "random":
            randomise(model.unet)
            self.loaded = f"random weights of {self.options['config'] or 'ffhq256'}"
        elif self.weights == "reference" or folder:
            self.loaded = str(checkpoint.load_folder(model, self.path))
        else:
            state = read_state_dict(self.path)
            self.loaded = str(checkpoint.load_checkpoint(model, state, ema=self.options["ema"], what=str(self.path)))
        model.unet.requires_grad_(False)
        self.model, self._network = model, FastUNet(model.unet)

    def generate_batch(self, resolution: Resolution, seeds: Sequence[int], *, steps: int | None = None, sparsity: float = 0.0,
                       prompts: Sequence[str] | None = None, stage: Stage = NULL_STAGE) -> "Tensor":
        """Images uint8 [B, 3, H, W] on the device; image i depends on seeds[i] alone. Prompts are not used."""
        import torch

        from methods.patch_dm.sampling import ddim_run, image_table, sample_codes

        model, steps = self.ready(), self.default_steps if steps is None else steps
        reason = self.supports({"height": resolution[0], "width": resolution[1], "steps": steps, "sparsity": sparsity})
        if reason:
            raise AdapterError(f"patch-dm: {reason}")
        with torch.inference_mode():
            with stage("encode"):
                codes = sample_codes(model, seeds, self.options["latent_steps"], self.device)
            with stage("denoise"):
                table = image_table(steps, model.target, model.schedule)
                denoiser = self.denoiser(codes, resolution, table.timesteps)
                x = ddim_run(denoiser.predict, seeded_noise((3, *resolution), seeds, self.device), table, stage)
            with stage("decode"):
                images = x.clamp_(-1, 1).mul_(127.5).add_(127.5).round_().to(torch.uint8)
        evaluations = sum(denoiser.evaluations(i) for i in range(steps))
        stage.effective(steps=steps, nfe=evaluations, tiles=denoiser.grid[0] * denoiser.grid[1])
        return images

    def ready(self) -> Model:
        """The model, loaded."""
        if self.model is None:
            self.load()
        assert self.model is not None
        return self.model

    @property
    def guidance(self) -> float:
        """Scale of classifier-free guidance."""
        chosen = self.options["guidance"]
        return float(self.config.get("guidance", 1.5 if self.config.get("cfg") else 1.0) if chosen is None else chosen)

    def denoiser(self, codes: "Tensor", resolution: Resolution, timesteps: Any,
                 relocate: "Callable[[Tensor], Tensor] | None" = None) -> Denoiser:
        """The network at these timesteps (an int64 array) for codes [B, D] on a canvas, as the options want it."""
        import torch

        from methods.patch_dm.denoise import Denoiser

        grid = resolution[0] // self.patch, resolution[1] // self.patch
        self.ready()
        assert self._network is not None
        return Denoiser(self._network, self.patch, codes, grid, torch.from_numpy(timesteps).to(self.device),
                        guidance=self.guidance, max_tiles=self.options["max_tiles"], mode=self.options["collage"],
                        shift=self.options["shift"], position=bool(self.config.get("position", True)),
                        relocate=relocate or self._stretch(grid))

    def _stretch(self, grid: tuple[int, int]) -> "Callable[[Tensor], Tensor] | None":
        """Positions of a larger grid on the range that training has seen, with option positions: stretch."""
        if self.options["positions"] != "stretch":
            return None
        import torch

        trained = self.config["img_size"] // self.patch
        factors = torch.tensor([min(1.0, trained / side) for side in grid], device=self.device)
        return lambda where: where * factors

    def run_task(self, task: str, resolution: Resolution, seeds: Sequence[int], *,
                 steps: int | None = None) -> "list[tuple[str, Tensor]]":
        """Rows (label, uint8 [B, 3, H, W]) of an application on scenes; see methods/patch_dm/tasks.py."""
        from methods.patch_dm.tasks import run_task

        return run_task(self, task, resolution, seeds, self.default_steps if steps is None else steps)

    def close(self) -> None:
        """Free the network."""
        self.model = self._network = None

    def weights_digest(self) -> str:
        """SHA-256 of the weight files, or of the configuration's name and content for random weights; needs no load()."""
        if self.weights == "random":
            return digest_of(["random", self.config])
        files = sorted(self.path.iterdir()) if self.path.is_dir() else [self.path]
        return digest_of(self.config, [file for file in files if file.suffix in (".safetensors", ".ckpt", ".zip", ".pt")])

    def parameters(self) -> int:
        """Parameters of U-Net, semantic encoder (or table) and prior."""
        import torch

        from methods.patch_dm.checkpoint import parameters
        from methods.patch_dm.model import build

        if self.model is not None:
            return parameters(self.model.unet)
        with torch.device("meta"):
            return parameters(build(self.config).unet)

    @classmethod
    def train(cls, out: Path, *, stage: str | None = None, variant: str = "main", steps: int | None = None,
              init: str | None = None, device: str = "cpu", resume: bool = True,
              max_seconds: float | None = None) -> dict[str, Any]:
        """Train the reference weights, or a row of the ablation; see methods/patch_dm/train.py."""
        from methods.patch_dm.train import train

        return train(Path(out), stage=stage, variant=variant, steps=steps, init=init, device=device, resume=resume,
                     max_seconds=max_seconds)

    @classmethod
    def golden(cls, case: Path) -> Iterable[Any]:
        """Recompute every output of one case folder of golden tensors."""
        from methods.patch_dm.golden import golden

        return golden(Path(case))
