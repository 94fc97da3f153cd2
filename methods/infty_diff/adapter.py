"""∞-Diff behind the adapter contract."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hibench.adapter import NULL_STAGE, Resolution, Stage, to_uint8
from hibench.errors import AdapterError, MissingWeights
from hibench.weights import digest_of
from methods.infty_diff.configs import MODELS, model_config
from methods.infty_diff.options import complete_options

if TYPE_CHECKING:
    from torch import Tensor

    from methods.infty_diff.checkpoint import Networks
    from methods.infty_diff.process import Process
    from methods.infty_diff.sampling import Plan

__all__ = ["REFERENCE", "InftyDiff"]

REFERENCE = Path(__file__).parent / "reference"
FILES = ("decoder.safetensors", "encoder.safetensors", "prior.safetensors")
PLANS = 4                                           # plans kept: a change of size or steps makes a new one


class InftyDiff:
    """∞-Diff: diffusion of functions, evaluated at the coordinates of any image; unconditional through its latent prior.

    The prior samples a code, the decoder turns mollified noise into T x0 under that code, the Wiener inverse undoes T.
    `sparsity` leaves coordinates out: see `methods.infty_diff.sampling.reverse`.

    weights: "reference" (trained on scenes at 64 px; options: variant) | "random" (with options: config) | a path: a folder
    with the official checkpoint.pkl, latent_checkpoint.pkl and latents.pkl (options: config names the published configuration
    unless a config.json lies there), or a folder with decoder, encoder and prior as safetensors and config.json.
    """

    name: ClassVar[str] = "infty-diff"
    axes: ClassVar[frozenset[str]] = frozenset({"resolution", "steps", "sparsity"})
    default_steps: ClassVar[int] = 50
    licence: ClassVar[str] = "MIT"
    tasks: ClassVar[tuple[str, ...]] = ("super-resolution", "inpainting")

    def __init__(self, weights: str = "reference", options: dict[str, Any] | None = None, device: str = "cpu",
                 dtype: str = "float32") -> None:
        self.options = complete_options(options or {}, weights)
        self.weights, self.device, self.dtype = weights, device, dtype
        self.networks: Networks | None = None
        self.loaded = ""                            # a sentence on what was loaded
        self._plans: dict[tuple[Any, ...], Plan] = {}

    @property
    def path(self) -> Path:
        """Where the weights are (meaningless for random ones)."""
        if self.weights == "reference":
            variant = self.options["variant"]
            return REFERENCE if variant == "main" else REFERENCE / variant
        path = Path(self.weights).expanduser()
        return path.parent if path.is_file() else path

    @cached_property
    def config(self) -> dict[str, Any]:
        """The configuration; MissingWeights when the weights are not there."""
        if self.options["config"] is not None:
            return model_config(self.options["config"])
        if self.weights == "random":
            return model_config("ffhq_256")
        if not self.path.exists():
            raise MissingWeights(f"infty-diff: no weights at {self.path}; {self._get()}")
        from methods.infty_diff.checkpoint import read_config

        config = read_config(self.path)
        if config is None:
            raise MissingWeights(f"infty-diff: no config.json at {self.path}; put one there, or name a published configuration "
                                 f"with options: config ({', '.join(MODELS)})")
        return config

    def _get(self) -> str:
        """How to get the weights."""
        if self.weights != "reference":
            return "give the path of a folder with checkpoint.pkl or with safetensors, or use weights: random"
        return f"get them with: hibench train infty-diff --variant {self.options['variant']} --out {self.path}"

    @property
    def compat(self) -> str:
        """"official" or "fixed" network."""
        return str(self.options["compat"] or self.config.get("compat", "official"))

    @property
    def read_back(self) -> str:
        """"official" or "fixed" read-back."""
        return str(self.options["read_back"] or self.compat)

    @property
    def process(self) -> "Process":
        """What the decoder was trained on."""
        from methods.infty_diff.process import Process

        config = self.config
        return Process.from_config(config.get("diffusion", {}), config["decoder"]["img_size"], self.options["inv_snr"])

    def supports(self, axes: dict[str, Any]) -> str | None:
        """Any canvas of 8 pixels or more (square ones only with the official read-back); 1 to 1000 steps."""
        try:
            official = self.read_back == "official"
        except MissingWeights:
            return None                             # load() says so
        height, width, steps = axes["height"], axes["width"], axes.get("steps")
        if min(height, width) < 8:
            return f"{height}x{width} is smaller than 8 px"
        if official and height != width:
            return f"the official read-back knows square images only, not {height}x{width}; use options: read_back: fixed"
        if max(height, width) > 16 * min(height, width):
            return f"{height}x{width}: the ratio of the sides is above 16"
        if steps is not None and not 1 <= steps <= 1000:
            return f"{steps} sampler steps are not between 1 and 1000"
        if (axes.get("sparsity") or 0.0) > 1 - 8 / (height * width):
            return f"sparsity {axes['sparsity']:g} leaves fewer than 8 of the coordinates of {height}x{width}"
        return None

    def load(self) -> None:
        """Build the networks on the device and fill them, strictly."""
        import torch

        from methods.infty_diff import checkpoint
        from methods.ldm.model import randomise

        networks = checkpoint.build(self.config, self.compat, self.read_back)
        if self.weights == "random":
            for i, module in enumerate(networks.modules()):
                randomise(module, i)
            self.loaded = f"random weights of {self.options['config'] or 'ffhq_256'}"
        elif (self.path / checkpoint.OFFICIAL[0]).exists():
            latent = Path(self.options["latent"]).expanduser() if self.options["latent"] else self.path
            self.loaded = checkpoint.load_official(networks, self.path, latent, self.options["ema"])
        else:
            for name in FILES:
                if not (self.path / name).exists():
                    raise MissingWeights(f"infty-diff: {self.path / name} is missing; {self._get()}")
            self.loaded = checkpoint.load_folder(networks, self.path)
        for module in networks.modules():
            module.requires_grad_(False).eval().to(self.device, getattr(torch, self.dtype))
        for block in (*networks.decoder.down_blocks, *networks.decoder.up_blocks):
            block.block.conv.how = self.options["conv"]
        networks.mean, networks.std = networks.mean.to(self.device), networks.std.to(self.device)
        self.networks, self._plans = networks, {}

    def generate(self, resolution: Resolution, seed: int, *, steps: int | None = None, sparsity: float = 0.0,
                 prompt: str | None = None, stage: Stage = NULL_STAGE) -> "Tensor":
        """One image, uint8 [3, H, W] on the device."""
        prompts = None if prompt is None else [prompt]
        return self.generate_batch(resolution, [seed], steps=steps, sparsity=sparsity, prompts=prompts, stage=stage)[0]

    def generate_batch(self, resolution: Resolution, seeds: Sequence[int], *, steps: int | None = None, sparsity: float = 0.0,
                       prompts: Sequence[str] | None = None, stage: Stage = NULL_STAGE) -> "Tensor":
        """Images uint8 [B, 3, H, W] on the device; image i depends on seeds[i] alone. Prompts are not used.

        `nfe` counts evaluations of the decoder, `coordinates` those at which it was evaluated, over all steps of an image.
        """
        import torch

        from methods.infty_diff import sampling

        networks = self.ready()
        steps = self.default_steps if steps is None else steps
        reason = self.supports({"height": resolution[0], "width": resolution[1], "steps": steps, "sparsity": sparsity})
        if reason:
            raise AdapterError(f"infty-diff: {reason}")
        with torch.inference_mode():
            with stage("encode"):
                codes = self.codes(seeds)
            with stage("denoise"):
                plan = self.plan(resolution, steps, sparsity)
                noise = sampling.mollified_noise(plan, seeds, self.device)
                x = sampling.reverse(networks.decoder, plan, noise, networks.decoder.codes(codes), stage)
            with stage("decode"):
                images = to_uint8(plan.blur.undo(x)).contiguous()
        stage.effective(steps=len(plan), nfe=plan.nfe, tiles=1, sparsity=plan.sparsity, coordinates=plan.coordinates)
        return images

    def ready(self) -> "Networks":
        """The networks, loaded if need be."""
        if self.networks is None:
            self.load()
        assert self.networks is not None
        return self.networks

    def codes(self, seeds: Sequence[int]) -> "Tensor":
        """Codes float32 [B, z] of the prior."""
        from methods.infty_diff.sampling import sample_codes

        networks = self.ready()
        steps = self.options["prior_steps"] or self.config.get("sampling", {}).get("prior_steps", 1000)
        return sample_codes(networks.prior, seeds, steps, self.device) * networks.std + networks.mean

    def plan(self, resolution: Resolution, steps: int, sparsity: float = 0.0, start: int | None = None) -> "Plan":
        """What does not change between images, made once."""
        from methods.infty_diff.sampling import make_plan

        key = (*resolution, steps, sparsity, start)
        if key not in self._plans:
            while len(self._plans) >= PLANS:
                self._plans.pop(next(iter(self._plans)))
            o = self.options
            self._plans[key] = make_plan(self.ready().decoder, self.process, resolution, steps, sparsity=sparsity,
                                         subset=o["subset"], finish=o["finish"], start=start, device=self.device)
        return self._plans[key]

    def run_task(self, task: str, resolution: Resolution, seeds: Sequence[int], *,
                 steps: int | None = None) -> "list[tuple[str, Tensor]]":
        """An application, on the scenes of these seeds: rows (label, uint8 [B, 3, h, w]) of a picture."""
        from methods.infty_diff.tasks import TASKS

        return TASKS[task](self, resolution, seeds, self.default_steps if steps is None else steps)

    def close(self) -> None:
        """Free the networks."""
        self.networks = None
        self._plans = {}

    def weights_digest(self) -> str:
        """SHA-256 of the weight files and the configuration, or of the latter for random weights; needs no load()."""
        if self.weights == "random":
            return digest_of(["random", self.config])
        folders = {self.path, Path(self.options["latent"]).expanduser()} if self.options["latent"] else {self.path}
        files = [file for folder in sorted(folders) for file in sorted(folder.iterdir())]
        return digest_of(self.config, [file for file in files if file.suffix in (".safetensors", ".pkl")])

    def parameters(self) -> int:
        """Parameters of decoder, encoder and prior."""
        if self.networks is not None:
            return sum(p.numel() for module in self.networks.modules() for p in module.parameters())
        import torch

        from methods.infty_diff.checkpoint import build

        with torch.device("meta"):
            networks = build(self.config, self.compat, self.read_back)
        return sum(p.numel() for module in networks.modules() for p in module.parameters())

    @classmethod
    def train(cls, out: Path, *, variant: str = "main", **options: Any) -> dict[str, Any]:
        """Train the reference weights, or those of a variant; see methods/infty_diff/train.py."""
        from methods.infty_diff.train import train

        return train(Path(out), variant=variant, **options)

    @classmethod
    def golden(cls, case: Path) -> Iterable[Any]:
        """Recompute every output of one case folder of golden tensors."""
        from methods.infty_diff.golden import golden

        return golden(Path(case))
