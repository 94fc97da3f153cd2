"""Train the base of DemoFusion on captioned scenes: whole images and crops, told their sizes and places as SDXL is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hibench import training
from hibench.adapter import from_uint8
from hibench.references import scenes
from hibench.references.scene_cache import TRAINING_SEED, about, rendered, say
from methods.demofusion.base import NATIVE, SCHEDULER, TOKENS, autoencoder, text_encoders, unet, write_pipeline, write_tokenizer
from methods.diffusion import schedules
from methods.diffusion.ema import EMA
from methods.diffusion.losses import per_sample, q_sample, truncated_weight, velocity

__all__ = ["Examples", "conditioning", "examples", "train"]

IMAGES, LARGE_IMAGES, LARGE = 16_000, 3_000, 256
CROPS_PER_IMAGE = 4                                 # of each large image, at random sizes and places
SIZES = (128, 192, 256)                             # px: what the sampler enlarges to
WHOLE_SIZES = (64, 96, 128, 192, 256)               # what whole images claim to be cut from
_O: dict[str, Any] = {"steps": 3200, "batch": 16, "rate": 5e-4, "ema": 0.999, "drop": 0.1, "whole": 0.6, "own_target": 0.7}


class Examples:
    """Latents float16 [N, 3, 16, 16] of whole scenes (the first `whole`) and of crops, seeds int64 [N], and of crops
    size (R, y, x) int64 [N, 3] in px of the enlarged scene."""

    def __init__(self, latents: Tensor, seeds: Tensor, place: Tensor, whole: int) -> None:
        self.latents, self.seeds, self.place, self.whole = latents, seeds, place, whole


def train(
    out: Path,
    *,
    steps: int | None = None,
    images: int = IMAGES,
    device: str = "cpu",
    resume: bool = True,
    max_seconds: float | None = None,
    **_: Any,
) -> dict[str, Any]:
    """Train U-Net and text encoders together; writes the pipeline in `save_pretrained`'s layout, and training.json, to `out`.

    The U-Net starts from the reference LDM's and predicts v; the error of x0 counts min(SNR + 1, 6) times (Hang et al. 2023).
    Six in ten examples are whole scenes at 64 px that claim to be cut from an image of 64 to 256 px; the others are crops of
    64 px from a scene of 128, 192 or 256 px with its size and their place (SDXL, arXiv 2307.01952 §2.2): without crops the base
    would know nothing of what DemoFusion's local windows show. One caption in ten is dropped: half of those are the empty
    text, the others zeros, as SDXL's pipeline takes no negative prompt. The moving average of the weights is what ships.
    Goes on after `max_seconds` or Ctrl-C at the next call.
    """
    out.mkdir(parents=True, exist_ok=True)
    steps = steps or int(_O["steps"])
    vae = autoencoder()
    data = examples(vae, out, images, device)
    tokens = _tokens(out, data.seeds)
    torch.manual_seed(2)
    first, second = text_encoders(write_tokenizer(out / "tokenizer"))
    model = nn.ModuleDict({"unet": unet(), "text_encoder": first, "text_encoder_2": second}).to(device).train()
    if device == "cpu":
        model["unet"].to(memory_format=torch.channels_last)
    ema = EMA(model, decay=_O["ema"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=_O["rate"], weight_decay=0.01, fused=True)
    betas = schedules.sqrt_linear_betas(SCHEDULER["beta_start"], SCHEDULER["beta_end"], SCHEDULER["num_train_timesteps"])
    cumprod = torch.from_numpy(schedules.alphas_cumprod(betas)).float().to(device)
    weight = truncated_weight(cumprod)
    empty = _tokenize(out, [""])

    def step(k: int) -> dict[str, Tensor]:
        draw = training.step_generator(k)
        index, ids = conditioning(data, int(_O["batch"]), draw)
        z = data.latents[index].to(device).float()
        dropped = torch.rand(len(index), generator=draw)
        words = torch.where((dropped < _O["drop"])[:, None], empty, tokens[index])
        kept = (dropped >= _O["drop"] / 2).float().to(device)
        t = torch.randint(len(cumprod), (len(z),), generator=draw).to(device)
        noise = torch.randn(z.shape, generator=draw).to(device)
        training.set_rate(optimizer, training.cosine_rate(k, steps, _O["rate"]))
        with training.autocast(device, cpu=True):
            states, pooled = _encode(model, words.to(device))
            prediction = model["unet"](
                q_sample(z, t, noise, cumprod), t, states * kept[:, None, None],
                added_cond_kwargs={"text_embeds": pooled * kept[:, None], "time_ids": ids.to(device).float()}).sample
        loss = (weight[t] * per_sample(prediction, velocity(z, t, noise, cumprod))).mean()
        training.descend(loss, optimizer, [model], [ema])
        return {"loss": loss}

    result = training.fit("demofusion", step, {"model": model, "ema": ema, "optimizer": optimizer}, steps=steps, out=out,
                          resume=resume, max_seconds=max_seconds)
    ema.copy_to(model)
    write_pipeline(out, {**dict(model.items()), "vae": vae})
    training.write_training_json(
        out / "training.json", result, device=device, batch=_O["batch"], ema=_O["ema"], init="the reference LDM", target="v",
        parameters=sum(p.numel() for p in model.parameters()), data=(
            f"{about(images, NATIVE)}; "
            f"{CROPS_PER_IMAGE} crops of {NATIVE} px of each of the first {min(images, LARGE_IMAGES)} at {SIZES} px"))
    return result


def conditioning(data: Examples, batch: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Which examples make a batch, int64 [B], and their time ids int64 [B, 6]: original size, corner, target size, each (y, x).

    A whole scene claims an original and target size R, corner (0, 0). A crop tells its scene's R and its corner; its target is
    R (what DemoFusion's windows claim) in seven cases of ten, else the 64 px it has (SDXL's own training).
    """
    whole = torch.rand(batch, generator=draw) < _O["whole"]
    uniform = torch.rand(batch, generator=draw)
    count = torch.where(whole, torch.tensor(data.whole), torch.tensor(len(data.latents) - data.whole))
    index = (uniform * count).long() + torch.where(whole, 0, data.whole)
    claimed = torch.tensor(WHOLE_SIZES)[torch.randint(len(WHOLE_SIZES), (batch,), generator=draw)]
    own = torch.rand(batch, generator=draw) < _O["own_target"]
    place = data.place[index]
    size = torch.where(whole, claimed, place[:, 0])
    target = torch.where(whole | own, size, NATIVE)
    return index, torch.stack([size, size, place[:, 1], place[:, 2], target, target], 1)


def examples(vae: Any, out: Path, images: int, device: str) -> Examples:
    """Encode whole scenes and crops once; kept in `out` for resuming."""
    large = min(images, LARGE_IMAGES)
    digest = hashlib.sha256(b"".join(v.numpy().tobytes() for v in vae.state_dict().values())).hexdigest()[:12]
    file = out / f"latents-{images}-{digest}.cache"
    if not file.exists():
        small = rendered(images, NATIVE, progress=say)
        parts = [_encoded(vae, small[i:i + 50], device) for i in range(0, images, 50)]
        places = []
        for crops, place in _crops(rendered(large, LARGE, progress=say)):
            parts.append(_encoded(vae, crops, device))
            places.append(place)
        place = torch.cat([torch.zeros(images, 3, dtype=torch.int64), *places])
        save_file({"latents": torch.cat(parts).contiguous(), "place": place}, file)
    kept = load_file(file)
    seeds = torch.cat([torch.arange(images), torch.arange(large).repeat_interleave(CROPS_PER_IMAGE)]) + TRAINING_SEED
    return Examples(kept["latents"], seeds, kept["place"], images)


def _crops(images: NDArray[np.uint8]) -> Iterator[tuple[NDArray[np.uint8], Tensor]]:
    """Of each image [3, R, R]: its random crops uint8 [4, 3, 64, 64] and their (R, y, x) int64 [4, 3]."""
    from hibench.scenes_clip import box_resize

    random = np.random.default_rng(0)
    for image in images:
        pyramid = {s: box_resize(torch.tensor(image)[None].float(), s, s)[0].round().byte().numpy() for s in SIZES}
        sizes = random.choice(SIZES, CROPS_PER_IMAGE)
        corners = [(int(random.integers(s - NATIVE + 1)), int(random.integers(s - NATIVE + 1))) for s in sizes]
        yield (np.stack([pyramid[s][:, y:y + NATIVE, x:x + NATIVE] for s, (y, x) in zip(sizes, corners)]),
               torch.tensor([[int(s), y, x] for s, (y, x) in zip(sizes, corners)]))


def _encoded(vae: Any, pixels: NDArray[np.uint8], device: str) -> Tensor:
    """Scaled latents float16 [B, 3, 16, 16] of images uint8 [B, 3, 64, 64]."""
    vae.to(device)
    with torch.inference_mode():
        return (vae.encode(from_uint8(pixels, device)).latent_dist.mean * vae.config.scaling_factor).half().cpu()


def _tokenize(out: Path, texts: list[str]) -> Tensor:
    """int64 [B, TOKENS], padded as the pipeline pads."""
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer")
    found: Tensor = tokenizer(texts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt").input_ids
    return found


def _tokens(out: Path, seeds: Tensor) -> Tensor:
    """Tokens of the caption of every example."""
    write_tokenizer(out / "tokenizer")
    return _tokenize(out, scenes.captions(seeds.tolist()))


def _encode(model: nn.ModuleDict, words: Tensor) -> tuple[Tensor, Tensor]:
    """Token states [B, L, 128] and pooled [B, 64] as SDXL's pipeline makes them (2307.01952 §2.1)."""
    first = model["text_encoder"](words, output_hidden_states=True).hidden_states[-2]
    second = model["text_encoder_2"](words, output_hidden_states=True)
    return torch.cat([first, second.hidden_states[-2]], -1), second.text_embeds
