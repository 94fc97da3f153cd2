"""One call of any diffusers pipeline, through its own signature, watched from outside: stages, steps, network evaluations."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hibench.adapter import Stage, to_uint8
from hibench.errors import AdapterError, SpecError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Watch", "arguments", "check_arguments", "generators", "run", "steps_done", "watched"]

DENOISERS = ("unet", "transformer", "transformer_2", "prior", "decoder")
OURS = ("prompt", "height", "width", "num_inference_steps", "generator", "output_type", "num_images_per_prompt",
        "callback_on_step_end", "guidance_scale", "negative_prompt")
PLAIN = {                                           # where a pipeline takes it: what is measured is what was asked for
    "use_resolution_binning": False,                # else PixArt and Sana make another size and resize the picture
    "clean_caption": False,                         # else prompts change with the packages that happen to be installed
}


def check_arguments(pipe: Any, options: Mapping[str, Any], method: str) -> None:
    """SpecError for a pipeline that takes no prompt or generator, or an option that it does not take."""
    known = inspect.signature(type(pipe).__call__).parameters
    name = type(pipe).__name__
    for needed in ("prompt", "height", "width", "num_inference_steps", "generator"):
        if needed not in known:
            raise SpecError(f"{method}: {name} is no text-to-image pipeline: its call takes no {needed}; use another model")
    for option, parameter in (("guidance", "guidance_scale"), ("negative_prompt", "negative_prompt")):
        if options[option] is not None and parameter not in known:
            raise SpecError(f"{method}: option {option}: {name} takes no {parameter}; drop it, or see options: arguments")
    for key in options["arguments"]:
        if key not in known or key in ("self", *OURS):
            reason = "is set by hibench" if key in OURS else f"is not taken by {name}{did_you_mean(key, known)}"
            raise SpecError(f"{method}: option arguments: '{key}' {reason}")


def arguments(pipe: Any, options: Mapping[str, Any], prompts: Sequence[str], resolution: tuple[int, int], seeds: Sequence[int],
              steps: int) -> dict[str, Any]:
    """The keyword arguments of the call: those that every text-to-image pipeline takes, and those it has of the others."""
    known = inspect.signature(type(pipe).__call__).parameters
    given = {"prompt": list(prompts), "height": resolution[0], "width": resolution[1], "num_inference_steps": steps,
             "generator": generators(seeds), "output_type": "pt"}
    more = {**PLAIN, "guidance_scale": options["guidance"], "num_images_per_prompt": 1,
            "negative_prompt": None if options["negative_prompt"] is None else [options["negative_prompt"]] * len(prompts)}
    taken = {key: value for key, value in more.items() if key in known and value is not None}
    return {**given, **taken, **options["arguments"]}


def generators(seeds: Sequence[int]) -> list[Any]:
    """One CPU generator per seed, so that an image depends on its own seed alone, whatever the device."""
    import torch

    return [torch.Generator("cpu").manual_seed(int(seed) % 2**63) for seed in seeds]


def run(pipe: Any, call: dict[str, Any], stage: Stage) -> Tensor:
    """Call the pipeline and return its images, uint8 [B, 3, H, W]; reports stages, steps, and what was done.

    Raises AdapterError when the pipeline returns something else than pictures, or values that are not finite.
    """
    import torch

    count = len(call["prompt"])
    with torch.no_grad(), watched(pipe, stage) as watch:
        if "callback_on_step_end" in inspect.signature(type(pipe).__call__).parameters:
            output = pipe(**call, callback_on_step_end=watch.callback)
        else:
            with _each_step(pipe.scheduler, watch):
                output = pipe(**call)
        images = _pictures(output, count)
    stage.effective(steps=watch.steps, nfe=watch.rows // count)
    return images


def steps_done(scheduler: Any, calls: int) -> int:
    """Whole sampling steps, as people count them, in the timesteps that were gone through.

    A scheduler may need more timesteps than steps: PNDM goes through N + 1, a second-order one through 2N − 1, in N steps.
    """
    timesteps, steps = getattr(scheduler, "timesteps", None), getattr(scheduler, "num_inference_steps", None)
    return calls if timesteps is None or not steps or len(timesteps) == 0 else calls * int(steps) // len(timesteps)


class Watch:
    """Which stage a pipeline is in, told by what it calls: the denoiser ends `encode`, the VAE's decoder ends `denoise`."""

    def __init__(self, stage: Stage) -> None:
        self.stage, self.name = stage, ""
        self.rows = self.timesteps = self.steps = 0     # rows through the denoiser, timesteps and whole steps gone through
        self._open: Any = None

    def enter(self, name: str) -> None:
        """Go to a stage, out of the one that is open."""
        if name != self.name:
            self.leave()
            self.name, self._open = name, self.stage(name)
            self._open.__enter__()

    def leave(self) -> None:
        """Close the open stage, with the exception that is on its way."""
        if self._open is not None:
            opened, self._open, self.name = self._open, None, ""
            opened.__exit__(*sys.exc_info())

    def before_network(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The denoiser is about to be evaluated: count its rows."""
        import torch

        self.enter("denoise")
        tensors = [*args, *(kwargs[key] for key in ("sample", "hidden_states", "x") if key in kwargs)]
        first = next((t[0] if isinstance(t, (list, tuple)) else t for t in tensors), None)
        count = len(tensors[0]) if tensors and isinstance(tensors[0], (list, tuple)) else None
        self.rows += count or (first.shape[0] if isinstance(first, torch.Tensor) and first.ndim else 1)

    def callback(self, pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """diffusers' `callback_on_step_end`; it changes nothing."""
        self.after_timestep(pipe.scheduler)
        return tensors

    def after_timestep(self, scheduler: Any) -> None:
        """A timestep is done: mark a step when it completes one."""
        self.timesteps += 1
        if steps_done(scheduler, self.timesteps) > self.steps:
            self.steps += 1
            self.stage.step()


@contextmanager
def watched(pipe: Any, stage: Stage) -> Iterator[Watch]:
    """A watch on a pipeline's denoisers and its VAE's decoder; what was put on them is taken off again."""
    watch, vae = Watch(stage), getattr(pipe, "vae", None) or getattr(pipe, "vqvae", None)
    networks = [getattr(pipe, name) for name in DENOISERS if hasattr(getattr(pipe, name, None), "register_forward_pre_hook")]
    hooks = [network.register_forward_pre_hook(watch.before_network, with_kwargs=True) for network in networks]
    decode = getattr(vae, "decode", None)

    def decoding(latents: Any, *args: Any, **kwargs: Any) -> Any:
        watch.enter("decode")
        return decode(latents.to(vae.dtype), *args, **kwargs)           # type: ignore[misc, union-attr]

    try:
        if decode is not None:
            vae.decode = decoding                   # type: ignore[union-attr]
        watch.enter("encode")
        yield watch
    finally:
        watch.leave()
        for hook in hooks:
            hook.remove()
        if decode is not None:
            del vae.decode                          # type: ignore[union-attr]


@contextmanager
def _each_step(scheduler: Any, watch: Watch) -> Iterator[None]:
    """For pipelines without `callback_on_step_end`: count the scheduler's steps instead."""
    step = scheduler.step

    def counted(*args: Any, **kwargs: Any) -> Any:
        out = step(*args, **kwargs)
        watch.after_timestep(scheduler)
        return out

    scheduler.step = counted
    try:
        yield
    finally:
        del scheduler.step


def _pictures(output: Any, count: int) -> Tensor:
    """The images of a pipeline's output ("pt": float [B, 3, H, W] in [0, 1]) as uint8."""
    import torch

    images = getattr(output, "images", None)
    images = output[0] if images is None and isinstance(output, tuple) else images
    if not isinstance(images, torch.Tensor) or images.ndim != 4 or images.shape[:2] != (count, 3):
        raise AdapterError(f"the pipeline returned {type(output).__name__} instead of {count} RGB images as a tensor; "
                           "it is no text-to-image pipeline that hibench can call")
    if not bool(torch.isfinite(images).all()):
        raise AdapterError("the pipeline returned values that are not finite: a network overflows in this dtype; "
                           "use dtype: bfloat16, or keep the VAE in float32 (options: vae)")
    return to_uint8(images.float() * 2 - 1)
