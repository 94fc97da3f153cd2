"""INFD behind the adapter contract: one latent per seed, rendered at any resolution."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hibench.adapter import NULL_STAGE, Batched, Resolution, Stage, from_uint8
from hibench.errors import AdapterError, MissingWeights, SpecError, did_you_mean
from hibench.weights import digest_of
from methods.diffusion.schedules import check_steps, respaced_timesteps
from methods.infd.configs import config_args, with_renderer
from methods.infd.options import complete_options

if TYPE_CHECKING:
    from torch import Tensor

    from methods.infd.model import INFDModel
    from methods.infd.render import Tiles, View
    from methods.infd.sampling import Plan
    from methods.ldm import LDM

__all__ = ["INFD", "REFERENCE"]

REFERENCE = Path(__file__).parent / "reference"
ASPECT = 16                                         # the longest canvas, as of scenes
LARGEST = 1 << 16                                   # pixels of a side: beyond it float32 coordinates are too coarse


class INFD(Batched):
    """Image neural field diffusion: a latent is sampled once, decoded to a feature map, and rendered at the size asked for.

    weights: "reference" (trained on scenes, 64 px, ground truth up to 256 px) | "random" (options: config, renderer) | a path:
    an official checkpoint (`.pth`), or a folder with config.json, autoencoder.safetensors and unet.safetensors.

    The shorter side of a canvas spans the latent that the model was trained on; a longer one gets more latents.
    """

    name: ClassVar[str] = "infd"
    axes: ClassVar[frozenset[str]] = frozenset({"resolution", "steps"})
    default_steps: ClassVar[int] = 50
    licence: ClassVar[str] = "MIT"
    tasks: ClassVar[tuple[str, ...]] = ("layout", "scales")

    def __init__(self, weights: str = "reference", options: dict[str, Any] | None = None, device: str = "cpu",
                 dtype: str = "float32") -> None:
        self.options = complete_options(options or {}, weights)
        self.weights, self.device, self.dtype = weights, device, dtype
        self.model: INFDModel | None = None
        self.ldm: LDM | None = None                 # whose latents are rendered, where they are not INFD's own
        self.loaded = ""                            # a sentence on what was loaded
        self._plans: dict[int, Plan] = {}

    @property
    def path(self) -> Path:
        """Where the weights are (meaningless for random ones)."""
        return REFERENCE if self.weights == "reference" else Path(self.weights).expanduser()

    @property
    def variant(self) -> str:
        """Which decoder and renderer of a folder are used."""
        return self.options["renderer"] or "main"

    @cached_property
    def args(self) -> dict[str, Any]:
        """The arguments of the official class; MissingWeights when the weights are not there."""
        if self.weights == "random":
            args = config_args(self.options["config"] or "ffhq")
            return with_renderer(args, self.options["renderer"] or "clif")
        if not self.path.exists():
            if self.weights == "reference":
                raise MissingWeights(f"infd: no weights at {self.path}; get them with: hibench train infd --out {REFERENCE}")
            raise MissingWeights(f"infd: no weights at {self.path}; give the path of a checkpoint, or use weights: random")
        from methods.infd.checkpoint import read_config, read_official

        if not self.path.is_dir():
            if self.options["renderer"] is not None:
                raise SpecError("infd: option renderer: a checkpoint holds its own renderer; drop the option")
            return read_official(self.path, "meta").args
        config = read_config(self.path)
        if self.variant == "main":
            return config["args"]
        variants = config.get("variants", {})
        if self.variant not in variants:
            known = ("main", *variants)
            raise SpecError(f"infd: option renderer: '{self.variant}' is not known{did_you_mean(self.variant, known)}; "
                            f"there are: {', '.join(known)}")
        return {**config["args"], "renderer": variants[self.variant]}

    @cached_property
    def side(self) -> int:
        """Pixels of the shorter side of the feature map: the resolution that the encoder sees."""
        coder = self.args["encoder"]["args"]
        factor = 2 ** (len(coder.get("ch_mult", [1, 2, 4])) - 1)
        return int(self.args["z_shape"][1]) * factor if "z_shape" in self.args else int(coder.get("resolution", 256))

    def supports(self, axes: dict[str, Any]) -> str | None:
        """Any canvas up to 16:1; step counts of the official spacing (an integer stride through the 1000 training steps)."""
        try:
            side = self.side
        except MissingWeights:
            side = 0                                # load() says so
        height, width, steps = axes["height"], axes["width"], axes.get("steps")
        if min(height, width) < 1 or max(height, width) > ASPECT * min(height, width):
            return f"{height}x{width}: sides must be at least 1 px and their ratio at most {ASPECT}"
        if max(height, width) > LARGEST:
            return f"{height}x{width}: float32 coordinates serve sides up to {LARGEST} px"
        if axes.get("sparsity"):
            return "INFD evaluates every coordinate: it has no sparsity axis"
        if self.options["tiles"] == "official" and 0 < side <= self.options["padding"]:
            return f"option padding: {self.options['padding']} px do not fit tiles of {side} px"
        return None if steps is None else self._refuses(steps)

    def _refuses(self, steps: int) -> str | None:
        """What is wrong with a step count."""
        if self.options["latents"] != "own":
            return check_steps(steps)
        try:
            respaced_timesteps(f"ddim{steps}")
        except SpecError as error:
            return str(error).removeprefix("steps: ")
        return None

    def load(self) -> None:
        """Build the network on the device and fill it, strictly."""
        import torch

        from methods.infd import checkpoint
        from methods.infd.model import empty_model, random_model

        dtype, args = getattr(torch, self.dtype), self.args
        own = self.options["latents"] == "own"
        if self.weights == "random":
            model = random_model(args, self.device, dtype)
            self.loaded = f"random weights of {self.options['config'] or 'ffhq'}"
        else:
            for file in self._files():
                if not file.exists():
                    raise MissingWeights(f"infd: {file} is missing; get it with: {self._command(file)}")
            model = empty_model(args, self.device, dtype, diffusion=own)
            if self.path.is_dir():
                self.loaded = str(checkpoint.load_folder(model, self.path, self.variant))
            else:
                found = checkpoint.read_official(self.path)
                self.loaded = str(checkpoint.load_official(model, found, ema=self.options["ema"], what=str(self.path)))
        self.model = model.requires_grad_(False).to(memory_format=torch.channels_last)
        self._plans = {}
        if not own:
            self._load_ldm()

    def _load_ldm(self) -> None:
        """The LDM whose latents are rendered; AdapterError unless it has the same codebook."""
        import torch

        from methods.ldm import LDM

        assert self.model is not None
        name = self.options["latents"]
        self.ldm = LDM("reference" if name == "ldm" else name, {}, self.device, self.dtype)
        self.ldm.load()
        assert self.ldm.model is not None
        theirs, ours = getattr(self.ldm.model.first_stage_model, "quantize", None), self.model.quantizer
        if theirs is None or ours is None or not torch.equal(theirs.embedding.weight, ours.embedding.weight):
            raise AdapterError(f"infd: the LDM '{name}' has another codebook: its latents mean something else to this decoder; "
                               "train a decoder for it with: hibench train infd --init ldm")
        if self.ldm.model.cond_stage_model is not None:
            raise AdapterError(f"infd: the LDM '{name}' is class-conditional, which option latents does not serve")
        self.loaded += f"; latents of the LDM {self.ldm.path}"

    def _files(self) -> list[Path]:
        """The weight files that load() reads."""
        if not self.path.is_dir() and self.weights != "reference":
            return [self.path]
        names = ["autoencoder"] + ["unet"] * (self.options["latents"] == "own")
        names += [f"variant-{self.variant}"] * (self.variant != "main")
        return [self.path / f"{name}.safetensors" for name in names]

    def _command(self, file: Path) -> str:
        """How to make a missing file."""
        stage = {"autoencoder": " --stage autoencoder", "unet": " --stage unet"}.get(file.stem)
        return f"hibench train infd{stage or f' --variant {self.variant}'} --out {self.path}"

    def generate_batch(self, resolution: Resolution, seeds: Sequence[int], *, steps: int | None = None, sparsity: float = 0.0,
                       prompts: Sequence[str] | None = None, stage: Stage = NULL_STAGE) -> "Tensor":
        """Images uint8 [B, 3, H, W] on the device; image i depends on seeds[i] alone. Prompts are not used.

        The images are written tile by tile: beyond them, memory does not grow with the resolution (but see option tiles).
        """
        import torch

        from methods.infd.render import render_uint8, tiles_of

        steps = self.default_steps if steps is None else steps
        reason = self.supports({"height": resolution[0], "width": resolution[1], "steps": steps, "sparsity": sparsity})
        if reason:
            raise AdapterError(f"infd: {reason}")
        model = self.ready()                        # outside: tasks take gradients through its parameters
        with torch.inference_mode():
            shape, view = self.canvas(*resolution)
            with stage("denoise"):
                z = self.sample(shape, seeds, steps, stage)
            with stage("decode"):
                phi = model.features(z)
                images = render_uint8(model, phi, *resolution, self.tiles, view)
        stage.effective(steps=steps, nfe=steps, tiles=tiles_of(*resolution, self.tiles))
        return images

    def reconstruct(self, images: "Tensor") -> "Tensor":
        """uint8 [B, 3, H, W] through encoder, codebook, decoder and renderer at their own size."""
        import torch

        from methods.infd.render import render_uint8

        model, (height, width) = self.ready(), images.shape[-2:]
        if height % model.factor or width % model.factor:
            raise AdapterError(f"infd: {width}x{height} px images are no multiple of the encoder's factor {model.factor}")
        with torch.inference_mode():
            x = from_uint8(images, self.device).to(next(model.parameters()).dtype)
            return render_uint8(model, model.features(model.encode(x)), height, width, self.tiles)

    def ready(self) -> "INFDModel":
        """The network, loaded if it is not."""
        if self.model is None:
            self.load()
        assert self.model is not None
        return self.model

    @property
    def tiles(self) -> "Tiles":
        """How images are cut."""
        from methods.infd.render import Tiles

        size = {"official": self.side, "whole": None}.get(self.options["tiles"], self.options["tiles"])
        return Tiles(size, self.options["padding"])

    def canvas(self, height: int, width: int) -> tuple[tuple[int, int, int], "View"]:
        """The latents [C, h, w] of a canvas, and which part of their feature map is rendered.

        The shorter side has the latents of training; the longer as many as keep pixels square, rounded up to what the U-Net
        can take, of which the middle is rendered.
        """
        from methods.infd.render import View

        model = self.ready()
        base, multiple = model.latent_side, self._multiple()
        sides, parts = [], []
        for length in (height, width):
            exact = base * length / min(height, width)
            sides.append(math.ceil(round(exact / multiple, 6)) * multiple)
            parts.append((-exact / sides[-1], exact / sides[-1]))
        return (model.latent_channels, sides[0], sides[1]), View(*parts)

    def _multiple(self) -> int:
        """Latent sides are multiples of this."""
        assert self.model is not None
        return self.model.unet.multiple if self.ldm is None else self.ldm.model.unet.multiple  # type: ignore[union-attr]

    def sample(self, shape: tuple[int, int, int], seeds: Sequence[int], steps: int, stage: Stage = NULL_STAGE) -> "Tensor":
        """Un-quantised latents float32 [B, *shape], one noise per seed."""
        from methods.infd.sampling import sample_latents

        if self.ldm is None:
            return sample_latents(self.ready(), self.plan(steps), shape, seeds, self.device, stage=stage)
        assert self.ldm.model is not None
        z = sample_latents(self.ldm.model, self.plan(steps), shape, seeds, self.device, stage=stage)
        return z / self.ldm.model.scale_factor

    def plan(self, steps: int) -> "Plan":
        """Coefficients and embeddings for a step count, made once."""
        if steps not in self._plans:
            from methods.infd.sampling import make_plan
            from methods.ldm.sampling import make_plan as make_ldm_plan

            eta = self.options["eta"]
            if self.ldm is None:
                self._plans[steps] = make_plan(self.ready(), f"ddim{steps}", 1.0 if eta is None else eta, self.device)
            else:
                assert self.ldm.model is not None
                self._plans[steps] = make_ldm_plan(self.ldm.model, steps, eta=eta or 0.0, device=self.device)
        return self._plans[steps]

    def run_task(self, task: str, resolution: Resolution, seeds: Sequence[int], *,
                 steps: int | None = None) -> "list[tuple[str, Tensor]]":
        """Rows (label, uint8 [B, 3, h, w]) of one of `tasks`; SpecError for another name."""
        from methods.infd.tasks import TASKS

        if task not in self.tasks:
            raise SpecError(f"infd: no task '{task}'{did_you_mean(task, self.tasks)}; there are: {', '.join(self.tasks)}")
        return TASKS[task](self, resolution, seeds, self.default_steps if steps is None else steps)

    def close(self) -> None:
        """Free the network."""
        self.model = self.ldm = None
        self._plans = {}

    def weights_digest(self) -> str:
        """SHA-256 of the weight files that are used and of the configuration; needs no load()."""
        if self.weights == "random":
            return digest_of(["random", self.args])
        latents = None
        if self.options["latents"] != "own":
            from methods.ldm import LDM

            name = self.options["latents"]
            latents = LDM("reference" if name == "ldm" else name, {}).weights_digest()
        return digest_of([self.args, latents], self._files())

    def parameters(self) -> int:
        """Parameters of everything that is used (autoencoder, renderer, diffusion model)."""
        import torch

        from methods.infd.model import INFDModel
        with torch.device("meta"):
            count = sum(p.numel() for p in INFDModel(self.args, self.options["latents"] == "own").parameters())
        if self.options["latents"] == "own":
            return count
        from methods.ldm import LDM

        ldm = self.ldm or LDM("reference" if self.options["latents"] == "ldm" else self.options["latents"], {})
        unet = ldm.params["unet_config"]["params"]
        from methods.nn.unet import UNet
        with torch.device("meta"):
            return count + sum(p.numel() for p in UNet.from_config(unet).parameters())

    @classmethod
    def train(cls, out: Path, **options: Any) -> dict[str, Any]:
        """Train the reference weights; see methods/infd/train.py."""
        from methods.infd.train import train

        return train(Path(out), **options)

    @classmethod
    def golden(cls, case: Path) -> Iterable[Any]:
        """Recompute every output of one case folder of golden tensors."""
        from methods.infd.golden import golden

        return golden(Path(case))
