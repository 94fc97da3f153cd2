"""LDM behind the adapter contract."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hibench.adapter import NULL_STAGE, Resolution, Stage
from hibench.errors import AdapterError, MissingWeights
from hibench.weights import digest_of
from methods.diffusion.schedules import check_steps
from methods.ldm.coding import Coding
from methods.ldm.configs import FIRST_STAGES, MODELS, TEXT_MODELS, model_params
from methods.ldm.diffusers_format import is_pipeline, load_pipeline, pipeline_params
from methods.ldm.first_stages import first_stage_folder
from methods.ldm.options import complete_options
from methods.ldm.variants import folder_of

if TYPE_CHECKING:
    from torch import Tensor

    from methods.ldm.model import Coder, LatentDiffusion
    from methods.ldm.sampling import Patches, Plan
    from methods.ldm.words import Tokenizer

__all__ = ["LDM", "REFERENCE"]

REFERENCE = Path(__file__).parent / "reference"


class LDM(Coding):
    """Latent diffusion: DDIM in the latent space of an autoencoder, directly at the size of the canvas.

    weights: "reference" (trained on scenes at 64 px) | "random" (with options: config) | a path: a CompVis `model.ckpt` or a
    zip of one, with its config.yaml beside it or options: config; a diffusers pipeline folder; or a folder with
    first_stage.safetensors, unet.safetensors and config.json, or that folder's conditional one of options: variant. A first
    stage alone reconstructs images: its published file or zip, or by name a small one that was trained on scenes (kl-f4, ...).
    """

    name: ClassVar[str] = "ldm"
    axes: ClassVar[frozenset[str]] = frozenset({"resolution", "steps"})
    default_steps: ClassVar[int] = 50
    licence: ClassVar[str] = "MIT"
    tasks: ClassVar[tuple[str, ...]] = ("super-resolution", "inpainting")

    def __init__(self, weights: str = "reference", options: dict[str, Any] | None = None, device: str = "cpu",
                 dtype: str = "float32") -> None:
        self.options = complete_options(options or {}, weights)
        self.weights, self.device, self.dtype = weights, device, dtype
        self.model: LatentDiffusion | None = None
        self.coder: Coder | None = None             # the model, or a first stage alone
        self.loaded = ""                            # a sentence on what was loaded
        self._plans: dict[int, Plan] = {}
        self.tokenizer: Tokenizer | None = None     # of a text encoder, once it was needed

    @property
    def path(self) -> Path:
        """Where the weights are (meaningless for random ones)."""
        if self.weights in FIRST_STAGES:
            return first_stage_folder(REFERENCE, self.weights)
        base = REFERENCE if self.weights == "reference" else Path(self.weights).expanduser()
        return folder_of(base, self.options["variant"])

    @property
    def recipe(self) -> str:
        """The command that trains these reference weights."""
        variant = self.options["variant"]
        if self.weights in FIRST_STAGES:
            return f"hibench train ldm --stage first-stage --variant {self.weights} --out {self.path}"
        return f"hibench train ldm {'' if variant is None else f'--variant {variant} '}--out {self.path}"

    @cached_property
    def params(self) -> dict[str, Any]:
        """`model.params` of the configuration; MissingWeights when the weights are not there."""
        if self.options["config"] is not None:
            return model_params(self.options["config"])
        if self.weights == "random":
            return model_params("ffhq256")
        if not self.path.exists():
            if self.weights == "reference" or self.weights in FIRST_STAGES:
                raise MissingWeights(f"ldm: no weights at {self.path}; get them with: {self.recipe}")
            raise MissingWeights(f"ldm: no weights at {self.path}; give the path of a model.ckpt, or use weights: random")
        if is_pipeline(self.path):
            return pipeline_params(self.path)
        from methods.ldm.checkpoint import find_config

        if self.alone is not None:
            return self.alone
        params = find_config(self.path)
        if params is None:
            raise MissingWeights(f"ldm: no configuration beside {self.path}; put its config.yaml there, or name a published "
                                 f"one with options: config ({', '.join(MODELS)})")
        return params

    @property
    def multiple(self) -> int:
        """Heights and widths are multiples of this: f of the first stage x 2^(U-Net levels - 1)."""
        first = self.params["first_stage_config"]["params"]["ddconfig"]["ch_mult"]
        unet = self.params["unet_config"]["params"]["channel_mult"]
        return 2 ** (len(first) + len(unet) - 2)

    def supports(self, axes: dict[str, Any]) -> str | None:
        """Any canvas whose sides are multiples of f * 2^(levels-1); step counts that divide the training steps."""
        try:
            if "unet_config" not in self.params:
                return f"{self.weights} is a first stage alone: it reconstructs images and generates none"
            multiple, total, unet = self.multiple, int(self.params.get("timesteps", 1000)), self.params["unet_config"]["params"]
        except MissingWeights:
            return None                             # load() says so
        if self.weights != "random" and unet["in_channels"] != unet["out_channels"]:
            return "this network needs an image to start from (super-resolution, inpainting or a label map)"
        height, width, steps = axes["height"], axes["width"], axes.get("steps")
        if height % multiple or width % multiple or min(height, width) < 1:
            near = [max(multiple, round(side / multiple) * multiple) for side in (height, width)]
            return f"{height}x{width} is not a multiple of {multiple} px (f x U-Net); the nearest is {near[0]}x{near[1]}"
        if self.options["patch"] is not None and self.options["patch"] % 2 ** (len(unet["channel_mult"]) - 1):
            return f"option patch: {self.options['patch']} latents do not fit a U-Net of {len(unet['channel_mult'])} levels"
        if axes.get("sparsity"):
            return "LDM evaluates every coordinate: it has no sparsity axis"
        sampler = self.options["sampler"]
        if steps is None or (sampler == "ddpm" and steps == total) or (sampler == "dpm++2m" and 1 <= steps < total):
            return None
        return check_steps(steps, total)

    def load(self) -> None:
        """Build the network on the device and fill it, strictly."""
        import torch

        from methods.ldm import checkpoint
        from methods.ldm.model import empty_model, random_model

        dtype = getattr(torch, self.dtype)
        if "unet_config" not in self.params:
            self._load_first_stage(dtype)
            return
        if self.weights == "random":
            model = random_model(self.params, self.device, dtype)
            self.loaded = f"random weights of {self.options['config'] or 'ffhq256'}"
        else:
            folder = self.path.is_dir() and not (self.path / "model.ckpt").exists() and not is_pipeline(self.path)
            if self.weights == "reference" or folder:
                self._need()
            model = empty_model(self.params, self.device, dtype)
            if is_pipeline(self.path):
                self.loaded = load_pipeline(model, self.path)
            elif (self.path / "unet.safetensors").exists():
                self.loaded = str(checkpoint.load_folder(model, self.path))
            else:
                file = self.path / "model.ckpt" if self.path.is_dir() else self.path
                state = checkpoint.read_state_dict(file)
                self.loaded = str(checkpoint.load_checkpoint(model, state, ema=self.options["ema"], what=str(file)))
        self.model = self.coder = model.requires_grad_(False).to(memory_format=torch.channels_last)
        self._plans = {}

    def _need(self) -> None:
        from methods.ldm.checkpoint import folder_file

        for name in ("unet", "first_stage"):
            file = folder_file(self.path, name)
            if not file.exists():
                raise MissingWeights(f"ldm: {file} is missing; get it with: {self.recipe}")

    def generate_batch(self, resolution: Resolution, seeds: Sequence[int], *, steps: int | None = None, sparsity: float = 0.0,
                       prompts: Sequence[str] | None = None, stage: Stage = NULL_STAGE) -> "Tensor":
        """Images uint8 [B, 3, H, W] on the device; image i depends on seeds[i] alone, of a text-conditional network on
        prompts[i], too (None: the caption of the scene of its seed)."""
        import torch

        if self.model is None:
            self.load()
        steps = self.default_steps if steps is None else steps
        reason = self.supports({"height": resolution[0], "width": resolution[1], "steps": None, "sparsity": sparsity})
        if reason:
            raise AdapterError(f"ldm: {reason}")
        assert self.model is not None
        with torch.inference_mode():
            plan = self._plan(steps)
            context = null = None
            if self.params["unet_config"]["params"].get("context_dim") is not None:
                with stage("encode"):
                    from methods.ldm.contexts import contexts

                    context, null = contexts(self, seeds, prompts)
            with stage("denoise"):
                z = self._denoise(resolution, seeds, plan, context, null, stage)
            with stage("decode"):
                images = self._decode(z, resolution)
        windows = self._windows(resolution)
        stage.effective(steps=len(plan), nfe=len(plan) * windows * (1 if null is None else 2), tiles=windows)
        return images

    @staticmethod
    def captions(seeds: Sequence[int]) -> list[str]:
        """The prompts of a text-conditional network where none are given: what the scenes of these seeds show."""
        from hibench.references.scenes import captions

        return captions(seeds)

    @staticmethod
    def captioned(options: dict[str, Any]) -> bool:
        """Whether a network with these options is conditioned on text, so that `captions` tell what its images show."""
        return options.get("variant") == "text" or options.get("config") in TEXT_MODELS

    def _plan(self, steps: int) -> Plan:
        """Coefficients and embeddings for a step count, made once."""
        if steps not in self._plans:
            from methods.ldm.sampling import make_plan

            assert self.model is not None
            self._plans[steps] = make_plan(self.model, steps, self.options["sampler"], self.options["eta"],
                                           self.options["compat"] == "official", self.device)
        return self._plans[steps]

    def _denoise(self, resolution: Resolution, seeds: Sequence[int], plan: Plan, context: Tensor | None, null: Tensor | None,
                 stage: Stage) -> Tensor:
        """Latents float32 [B, C, H/f, W/f]."""
        import torch

        from methods.ldm import sampling

        assert self.model is not None
        factor = self.model.first_stage_model.factor
        shape = (self.model.latent_channels, resolution[0] // factor, resolution[1] // factor)
        extra = self.model.unet.in_channels - self.model.latent_channels
        concat = torch.zeros(len(seeds), extra, *shape[1:], device=self.device) if extra else None

        return sampling.sample_latents(self.model, plan, shape, seeds, self.device, context=context, null=null, concat=concat,
                                       guidance=self.options["guidance"], patches=self._patches(), stage=stage)

    def _patches(self) -> Patches | None:
        from methods.ldm.sampling import Patches

        size = self.options["patch"]
        return None if size is None else Patches(size, self.options["patch_stride"] or max(1, size // 2))

    def _windows(self, resolution: Resolution) -> int:
        """Network evaluations per step: 1, or the number of windows of patch-wise denoising."""
        from methods.ldm.sampling import patch_origins

        assert self.model is not None
        patches, factor = self._patches(), self.model.first_stage_model.factor
        if patches is None:
            return 1
        return len(patch_origins(resolution[0] // factor, patches)) * len(patch_origins(resolution[1] // factor, patches))

    def run_task(self, task: str, resolution: Resolution, seeds: Sequence[int], *,
                 steps: int | None = None) -> "list[tuple[str, Tensor]]":
        """Rows (label, uint8 [B, 3, h, w]) of one of `tasks`, by the variant of that name, with its PSNR, SSIM and distance."""
        from methods.ldm.tasks import run_task

        return run_task(self, task, resolution, seeds, self.default_steps if steps is None else steps)

    def close(self) -> None:
        """Free the network."""
        self.model = self.coder = None
        self._plans = {}

    def weights_digest(self) -> str:
        """SHA-256 of the weight files, or of the configuration's name and content for random weights; needs no load()."""
        if self.weights == "random":
            return digest_of(["random", self.params])
        from methods.ldm.checkpoint import weight_files
        from methods.ldm.first_stages import file_alone

        files = weight_files(self.path) if self.alone is None else [file_alone(self.path)]
        used = (".safetensors", ".ckpt", ".zip", ".pt", ".bin")
        return digest_of(self.params, [file for file in files if file.suffix in used or file.name == "vocab.txt"])

    def parameters(self) -> int:
        """Parameters of everything that was loaded (first stage, U-Net, class embedding)."""
        if self.coder is not None:
            return sum(p.numel() for p in self.coder.parameters())
        import torch

        from methods.ldm.model import FirstStageAlone, LatentDiffusion

        with torch.device("meta"):
            kind = LatentDiffusion if "unet_config" in self.params else FirstStageAlone
            return sum(p.numel() for p in kind(self.params).parameters())

    @classmethod
    def train(cls, out: Path, **options: Any) -> dict[str, Any]:
        """Train the reference weights; see methods/ldm/train.py."""
        from methods.ldm.train import train

        return train(Path(out), **options)

    @classmethod
    def golden(cls, case: Path) -> Iterable[Any]:
        """Recompute every output of one case folder of golden tensors."""
        from methods.ldm.golden import golden

        return golden(Path(case))
