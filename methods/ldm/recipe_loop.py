"""The loop behind a recipe: encode, noise, accumulate gradients, and average weights, over as many processes as there are."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from hibench import training
from hibench.errors import SpecError
from methods.diffusion.ema import EMA
from methods.diffusion.losses import per_sample, q_sample, velocity
from methods.ldm.checkpoint import load_first_stage
from methods.ldm.model import LatentDiffusion
from methods.ldm.recipes import Images, Recipe, condition_of, open_images, share_checkpoint, write_config
from methods.nn.autoencoder import AutoencoderKL

__all__ = ["Learner", "run_recipe", "shares"]


class Learner(nn.Module):
    """The loss of one batch as a module, so that gradients of all its parameters are exchanged between processes."""

    def __init__(self, model: LatentDiffusion) -> None:
        super().__init__()
        self.unet, self.cond = model.unet, model.cond_stage_model
        self.model = [model]                        # a list does not register its parameters
        self.register_buffer("cumprod", torch.from_numpy(model.alphas_cumprod).float())

    def forward(self, x: Tensor, t: Tensor, noise: Tensor, posterior: Tensor | None, given: dict[str, Any]) -> Tensor:
        """Mean loss of images [B, 3, H, W] in [-1, 1] at times t [B]; noise [B, C, h, w]; given: as `condition_of` takes."""
        model = self.model[0]
        with torch.no_grad():
            z = model.encode(x, posterior).float()
        more = condition_of(model, x, **given)
        prediction = self.unet(q_sample(z, t, noise, self.cumprod), t, **more)
        target = velocity(z, t, noise, self.cumprod) if model.parameterization == "v" else noise
        return per_sample(prediction, target, model.loss_type).mean()


def shares(batch: int, processes: int, accumulate: int) -> int:
    """Images of one pass in one process; SpecError for a batch that does not divide."""
    if accumulate < 1 or batch % (processes * accumulate):
        raise SpecError(f"train ldm: a batch of {batch} cannot be shared by {processes} process(es) x {accumulate} passes; "
                        "give another --accumulate or --batch")
    return batch // (processes * accumulate)


def run_recipe(out: Path, name: str, params: dict[str, Any], recipe: Recipe, *, data: Path | None, first_stage: Path,
               accumulate: int, images: int, device: str, resume: bool, max_seconds: float | None) -> dict[str, Any]:
    """Train; see `methods.ldm.recipes.train_config`."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=not device.startswith("cuda"))
    each = shares(recipe.batch, accelerator.num_processes, accumulate)
    if accelerator.num_processes > 1 and max_seconds is not None:
        raise SpecError("train ldm: --max-seconds stops one process before another; train on several without it")
    where = accelerator.device
    torch.manual_seed(3)
    model = LatentDiffusion(params)
    model.first_stage_model = load_first_stage(first_stage, params["first_stage_config"]).requires_grad_(False)
    model.to(where)
    side = int(params["first_stage_config"]["params"]["ddconfig"]["resolution"])
    classes = 0 if model.cond_stage_model is None else model.cond_stage_model.embedding.num_embeddings
    null = params.get("unconditional_class")
    pictures = open_images(data, side, images, classes - (null is not None))
    if model.scale_by_std:
        model.scale_factor = _measured_scale(model, pictures, recipe.batch, str(where))
    learner = Learner(model)
    for module in (learner.unet, learner.cond):
        if module is not None:
            module.train()
    ema = EMA(learner, decay=recipe.ema)
    optimizer = torch.optim.AdamW(learner.parameters(), lr=recipe.rate, weight_decay=0.01)
    wrapped = accelerator.prepare(learner.to(where))
    step = _stepper(accelerator, wrapped, learner, optimizer, ema, pictures, recipe, each, accumulate, null)
    stem = f"ldm-{name}"
    accelerator.wait_for_everyone()
    folder = share_checkpoint(out, stem, accelerator.process_index)     # also without resuming: one file each
    assert recipe.steps is not None
    result = training.fit(stem, step, {"learner": learner, "ema": ema, "optimizer": optimizer}, steps=recipe.steps, out=folder,
                          resume=resume, max_seconds=max_seconds)
    if accelerator.is_main_process:
        ema.copy_to(learner)
        _write(out, name, model, params, recipe, pictures, result, str(where), accumulate, accelerator.num_processes)
    accelerator.wait_for_everyone()
    return result


def _stepper(accelerator: Any, wrapped: nn.Module, learner: Learner, optimizer: torch.optim.Optimizer, ema: EMA,
             pictures: Images, recipe: Recipe, each: int, accumulate: int, null: int | None) -> Any:
    """One optimiser step; what it draws depends on the step and the place in the batch alone."""
    model = learner.model[0]
    factor, where = model.first_stage_model.factor, accelerator.device
    kl = isinstance(model.first_stage_model, AutoencoderKL)

    def step(k: int) -> dict[str, Tensor]:
        training.set_rate(optimizer, recipe.rate * min(1.0, (k + 1) / max(1, recipe.warmup)))
        index = training.batch_seeds(k, recipe.batch, pictures.count, seed=3).tolist()
        mine = index[accelerator.process_index * each * accumulate :][: each * accumulate]
        total = torch.zeros((), device=where)
        for number in range(accumulate):
            part = mine[number * each : (number + 1) * each]
            x = pictures.get(part).to(where).float() / 127.5 - 1
            place = accelerator.process_index * accumulate + number
            draws = [training.step_generator(k * recipe.batch + place * each + i, seed=4) for i in range(each)]
            if recipe.flip:
                x = torch.stack([image.flip(-1) if torch.rand((), generator=d) < 0.5 else image for image, d in zip(x, draws)])
            shape = (model.latent_channels, x.shape[2] // factor, x.shape[3] // factor)
            t = torch.stack([torch.randint(len(model.betas), (), generator=d) for d in draws]).to(where)
            noise, posterior = (torch.stack([torch.randn(shape, generator=d) for d in draws]).to(where) for _ in range(2))
            given = {"index": part, "labels": pictures.labels(part) if learner.cond is not None else [], "null": null,
                     "draws": draws}
            with accelerator.no_sync(wrapped) if number < accumulate - 1 else nullcontext():
                with training.autocast(str(where)):
                    loss = wrapped(x, t, noise, posterior if kl else None, given) / accumulate
                accelerator.backward(loss)
            total += loss.detach()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ema.update()
        return {"loss": total}

    return step


@torch.no_grad()
def _measured_scale(model: LatentDiffusion, pictures: Images, batch: int, where: str) -> float:
    """1 / standard deviation of the latents of the first batch (official `scale_by_std`)."""
    x = pictures.get(list(range(min(batch, pictures.count)))).to(where).float() / 127.5 - 1
    return 1.0 / float(model.encode(x).std())


def _write(out: Path, name: str, model: LatentDiffusion, params: dict[str, Any], recipe: Recipe, pictures: Images,
           result: dict[str, Any], where: str, accumulate: int, processes: int) -> None:
    """Weights in hibench's own layout, config.json and training.json."""
    parts = {"unet": model.unet, "first_stage": model.first_stage_model, "cond": model.cond_stage_model}
    for stem, module in parts.items():
        if module is not None:
            state = {k: v.detach().cpu().contiguous() for k, v in module.state_dict().items()}
            save_file(state, out / f"{stem}.safetensors")
    write_config(out, params, model.scale_factor)
    training.write_training_json(out / "training.json", result, device=where, data=pictures.about, config=name,
                                 batch=recipe.batch, rate=recipe.rate, ema=recipe.ema, accumulate=accumulate,
                                 processes=processes, recipe=recipe.source)
