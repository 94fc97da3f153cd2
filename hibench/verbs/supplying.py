"""Verbs that get weights: `fetch` published ones, `train` the reference ones."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from hibench.errors import SpecError
from hibench.verbs.arguments import Device, check_device

__all__ = ["fetch", "train"]


def fetch(
    names: Annotated[list[str] | None, Argument(metavar="[NAME]...", help=(
        "Weights, a method, or a hub id; none: list the weights."))] = None,
    variant: Annotated[str | None, Option("--variant", metavar="NAME", help="Of a hub id's files, e.g. fp16.")] = None,
) -> None:
    """Download published weights: of extractors, checked by SHA-256, and of pipelines on the Hugging Face hub.

    \b
      hibench fetch
      hibench fetch inception-v3-compat
      hibench fetch stabilityai/stable-diffusion-xl-base-1.0 --variant fp16
    """
    if not names:
        from hibench import listing

        print(listing.table(listing.rows_of("weights")))
        return
    from hibench.fetching import fetch_named

    for name in names:
        for what, path, licence in fetch_named(name, variant):
            print(f"{what}: {path}" + (f" (licence: {licence})" if licence else ""))


def train(
    name: Annotated[str, Argument(metavar="METHOD|scenes-clip", help="What to train.")],
    out: Annotated[Path | None, Option("--out", help="For weights and checkpoints; not given: runs/NAME.")] = None,
    steps: Annotated[int | None, Option("--steps", min=1, help="Instead of the method's own number.")] = None,
    stage: Annotated[str | None, Option("--stage", help="One stage only, where a method has several.")] = None,
    variant: Annotated[str | None, Option("--variant", metavar="NAME", help="Another model, e.g. of an ablation.")] = None,
    init: Annotated[str | None, Option("--init", metavar="METHOD|none", help=(
        "Start from its weights; patch-dm: a folder."))] = None,
    config: Annotated[str | None, Option("--config", metavar="NAME", help="A published recipe, e.g. of ldm.")] = None,
    data: Annotated[Path | None, Option("--data", metavar="FOLDER", help="Images for --config; not given: scenes.")] = None,
    first_stage: Annotated[Path | None, Option("--first-stage", metavar="FILE", help="Autoencoder for --config.")] = None,
    batch: Annotated[int | None, Option("--batch", min=1, help="Instead of the recipe's own.")] = None,
    accumulate: Annotated[int | None, Option("--accumulate", min=1, help="Passes per step of --config.")] = None,
    resume: Annotated[bool, Option("--resume/--no-resume", help="Go on from a checkpoint in OUT.")] = True,
    max_seconds: Annotated[float | None, Option("--max-seconds", min=0, help="Stop then; a later call goes on.")] = None,
    device: Device = "auto",
) -> None:
    """Train a method's reference weights on scenes.

    \b
      hibench train ldm --out runs/ldm
      hibench train infty-diff --variant 8x --out runs/8x
      hibench train scenes-clip --steps 100 --out runs/try
      hibench train ldm --config ffhq256 --data ffhq --first-stage vq-f4.zip --accumulate 4
      torchrun --no-python --nproc_per_node 8 hibench train ldm --config cin256-v2 --data imagenet --first-stage vq-f4.zip
    """
    check_device(device)
    function = _training(name)
    parameters = inspect.signature(function).parameters.values()
    for word, value, lacks in (("variant", variant, "has no variants"), ("init", init, "always starts from nothing"),
                               ("config", config, "has no recipes")):
        if value is not None and not any(p.name == word or p.kind is p.VAR_KEYWORD for p in parameters):
            raise SpecError(f"--{word} {value}: {name} {lacks}")
    from hibench.job import resolve_device

    target = out or Path("runs") / "-".join(word for word in (name, variant, config) if word is not None)
    choices = {"steps": steps, "stage": stage, "variant": variant, "init": init, "max_seconds": max_seconds, "config": config,
               "data": data, "first_stage": first_stage, "batch": batch, "accumulate": accumulate}
    asked = {key: value for key, value in choices.items() if value is not None}
    function(target, device=resolve_device(device), resume=resume, **asked)
    print(f"{name}: weights in {target}")


def _training(name: str) -> Callable[..., Any]:
    """The function that trains: of the default extractor, or of a method's class."""
    if name == "scenes-clip":
        from hibench.scenes_clip import train as scenes_clip

        return scenes_clip.train
    from hibench.registry import load_adapter

    function = getattr(load_adapter(name), "train", None)
    if not callable(function):
        raise SpecError(f"method '{name}' cannot be trained: its class has no class method 'train'")
    trained: Callable[..., Any] = function
    return trained
