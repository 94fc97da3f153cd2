"""The paper's training recipes by configuration name: batch, steps and learning rate, run on one device or on many."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hibench.errors import MissingWeights, SpecError
from methods.ldm.configs import TEXT_MODELS, model_params

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from methods.ldm.model import LatentDiffusion

__all__ = ["RECIPES", "Images", "Recipe", "check_recipe", "condition_of", "open_images", "train_config"]


class Recipe(NamedTuple):
    """How a published model was trained; the batch is that of an optimiser step, over all devices and accumulation."""

    batch: int
    steps: int | None                               # None: the sources at hand state none
    rate: float
    warmup: int = 0                                 # steps of linear warm-up
    flip: bool = False                              # mirror images at random
    source: str = "arXiv 2112.10752, Table 12"
    ema: float = 0.9999


ASSUMED = "batch and rate of the official cin-ldm-vq-f8.yaml (base rate 1e-6 x 48); no step count is published in our sources"
RECIPES: dict[str, Recipe] = {
    "celebahq256": Recipe(48, 410_000, 9.6e-5),
    "ffhq256": Recipe(42, 635_000, 8.4e-5),
    "lsun_churches256": Recipe(96, 500_000, 5e-5, warmup=10_000, flip=True),
    "lsun_beds256": Recipe(48, 1_900_000, 9.6e-5, flip=True),
    "cin256-v2": Recipe(1200, 178_000, 1e-4, source="arXiv 2112.10752, appendix E: LDM-4 on ImageNet"),
    "bsr_sr": Recipe(64, 860_000, 6.4e-5, source="arXiv 2112.10752, appendix E: super-resolution"),
    "cin256": Recipe(48, None, 4.8e-5, source=ASSUMED),
    "inpainting_big": Recipe(48, None, 4.8e-5, source=ASSUMED),
    "tiny": Recipe(8, 1000, 1e-4, source="for trying things out"),
}
DROP = 0.1                                          # labels replaced by the class "none", where there is one


def check_recipe(name: str) -> Recipe:
    """The recipe of a configuration; SpecError for one that has none."""
    model_params(name)
    if name not in RECIPES:
        what = "pairs of images and texts" if name in TEXT_MODELS else "label maps"
        raise SpecError(f"train ldm: config {name} is conditioned on {what}, which no data set here has; "
                        f"there are recipes for: {', '.join(RECIPES)}")
    return RECIPES[name]


class Images(NamedTuple):
    """Training images by index."""

    get: Callable[[list[int]], "Tensor"]            # uint8 [B, 3, side, side]
    labels: Callable[[list[int]], list[int]]
    count: int                                      # type: ignore[assignment]  # hides tuple.count, which nobody needs
    about: str


def open_images(data: Path | None, side: int, count: int, classes: int) -> Images:
    """Images of a folder, centre-cropped and reduced to `side`, or else `count` training scenes rendered at that side.

    Classes are a folder's subfolders in alphabetical order, or the 64 of scenes; SpecError where there are too many.
    """
    import numpy as np
    import torch

    from hibench.references import scenes
    from hibench.references.folder import FolderReference
    from hibench.references.scene_cache import TRAINING_SEED, rendered, say

    if data is None:
        pixels = rendered(count, side, progress=say)
        return Images(lambda index: torch.from_numpy(np.array(pixels[index])),
                      lambda index: [scenes.class_index(TRAINING_SEED + i) for i in index], count,
                      f"scenes v{scenes.VERSION}, {count} from seed {TRAINING_SEED} on, {side} px")
    folder = FolderReference(data)
    names = sorted({path.parent.name for path in folder.paths})
    if classes and len(names) > classes:
        raise SpecError(f"train ldm: {data} has {len(names)} subfolders, and the configuration {classes} classes")
    return Images(lambda index: torch.cat([next(iter(folder.images((side, side), i, 1))) for i in index]),
                  lambda index: [names.index(folder.paths[i].parent.name) for i in index], len(folder.paths),
                  f"{len(folder.paths)} images, centre-cropped, {side} px")


def condition_of(model: LatentDiffusion, x: Tensor, index: list[int], labels: list[int], null: int | None,
                 draws: Sequence[torch.Generator]) -> dict[str, Tensor]:
    """What the U-Net gets besides the noisy latent of images [B, 3, H, W]: context and concat, as far as it takes them.

    `draws`: one generator per image; `null`: the label of none. Super-resolution gets the pixel means of f x f, inpainting a
    masked latent and the mask (`methods.ldm.masks`).
    """
    import torch

    from methods.ldm.conditional import inpainting_condition
    from methods.ldm.masks import draw_masks
    from methods.ldm.pool import reduce

    given: dict[str, Tensor] = {}
    if model.cond_stage_model is not None:
        chosen = torch.tensor(labels)
        if null is not None:
            dropped = torch.stack([torch.rand((), generator=draw) < DROP for draw in draws])
            chosen = torch.where(dropped, null, chosen)
        given["context"] = model.cond_stage_model(chosen.to(x.device))
    extra = model.unet.in_channels - model.latent_channels
    with torch.no_grad():
        if extra == 3:
            given["concat"] = reduce(x, model.first_stage_model.factor)
        elif extra:
            seeds = [i + int(torch.randint(1 << 30, (), generator=draw)) for i, draw in zip(index, draws)]
            given["concat"] = inpainting_condition(model, x, draw_masks(seeds, *x.shape[2:]).to(x.device))
    return given


def train_config(out: Path, name: str, *, data: Path | None = None, first_stage: Path | None = None, steps: int | None = None,
                 batch: int | None = None, accumulate: int = 1, images: int = 50_000, device: str = "cpu", resume: bool = True,
                 max_seconds: float | None = None) -> dict[str, Any]:
    """Train the U-Net (and class embedding) of a published configuration as published; `out` is then weights for `ldm`.

    data: a folder of images; None = scenes. first_stage: a published or own first-stage file. None = the recipe's own steps
    and batch. The batch of a step is shared by the processes of `torchrun` and by `accumulate` passes in each; what is
    learned depends on none of the two. Raises SpecError for a batch that cannot be shared so, MissingWeights.
    """
    from methods.ldm.recipe_loop import run_recipe

    recipe, params = check_recipe(name), model_params(name)
    recipe = recipe._replace(steps=steps or recipe.steps, batch=batch or recipe.batch)
    if recipe.steps is None:
        raise SpecError(f"train ldm: config {name}: {recipe.source}; say how many with --steps")
    if first_stage is None or not first_stage.exists():
        place = "" if first_stage is None else f", which is not at {first_stage}"
        raise MissingWeights(f"train ldm: config {name} needs its trained first stage{place}; give the file with "
                             "--first-stage (a published zip, a model.ckpt or a .safetensors)")
    out.mkdir(parents=True, exist_ok=True)
    return run_recipe(out, name, params, recipe, data=data, first_stage=first_stage, accumulate=accumulate, images=images,
                      device=device, resume=resume, max_seconds=max_seconds)


def share_checkpoint(out: Path, name: str, rank: int) -> Path:
    """The folder where one process keeps its checkpoint; it starts from that of process 0, so that all resume alike."""
    if rank == 0:
        return out
    own = out / f"process-{rank}"
    own.mkdir(parents=True, exist_ok=True)
    file = own / f"{name}.ckpt"
    file.unlink(missing_ok=True)
    if (out / file.name).exists():
        shutil.copyfile(out / file.name, file)
    return own


def write_config(out: Path, params: dict[str, Any], scale_factor: float) -> None:
    """config.json of the trained model, with the latent scale that was measured."""
    (out / "config.json").write_text(json.dumps({**params, "scale_factor": scale_factor}, indent=1) + "\n")
