"""What a conditional network is trained on, encoded once: latents of training scenes beside their conditions."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from hibench.references import scenes
from hibench.references.scene_cache import TRAINING_SEED, rendered, say
from methods.ldm.masks import draw_masks
from methods.ldm.variants import CLASSES, TOKENS, check_variant
from methods.ldm.words import Tokenizer, scene_vocabulary

__all__ = ["LARGE", "Pool", "make_pool", "reduce", "super_resolution_images"]

SIDE, LARGE = 64, 256                               # sides of training images and of the scenes that crops come from, pixels
LARGE_SCENES = 3000


class Pool(NamedTuple):
    """Training pairs; what a variant does not use is empty."""

    latents: Tensor                                 # scaled, before quantisation, float16 [N, C, h, w]
    concat: Tensor                                  # float16 [N, k, h, w]
    labels: Tensor                                  # int64 [N]; of text int64 [N, TOKENS]


def reduce(images: Tensor, factor: int) -> Tensor:
    """Images [B, C, H, W] with every `factor` x `factor` pixels averaged, which for scenes equals rendering them smaller."""
    return F.avg_pool2d(images, factor)


def super_resolution_images(count: int) -> Tensor:
    """uint8 [count, 3, 64, 64]: a third each are scenes at 64 px, and 64-px crops of scenes at 128 and at 256 px.

    An image that is enlarged four times is a scene at 64 px as well as a 16-px one, so its parts are seen at all scales.
    """
    whole = count - 2 * (count // 3)
    large = rendered(min(LARGE_SCENES, max(1, count // 3)), LARGE, progress=say)
    images = [torch.from_numpy(np.array(rendered(whole, SIDE, progress=say)))]
    for number in range(count - whole):
        draw = torch.Generator().manual_seed(number)
        image = torch.from_numpy(np.array(large[number // 2 % len(large)]))
        if number % 2:
            image = reduce(image[None].float(), 2)[0].round().to(torch.uint8)
        top, left = torch.randint(image.shape[-1] - SIDE + 1, (2,), generator=draw).tolist()
        images.append(image[None, :, top : top + SIDE, left : left + SIDE])
    return torch.cat(images)


def make_pool(variant: str, encode: Callable[[Tensor], Tensor], factor: int, images: int, kept: Path,
              identity: bytes = b"") -> Pool:
    """The pool of a variant, kept in the folder `kept` for resuming.

    `encode` takes float images [B, 3, 64, 64] in [-1, 1] to scaled latents; `identity` is the encoder's weights, whose hash
    the file's name carries.
    """
    check_variant(variant)
    path = kept / f"pool-{variant}-{images}-{hashlib.sha256(identity).hexdigest()[:12]}.cache"
    if path.exists():
        return Pool(**load_file(path))
    pixels = super_resolution_images(images) if variant == "super-resolution" else rendered(images, SIDE, progress=say)
    latents, concat = [], []
    with torch.inference_mode():
        for start in range(0, images, 20):
            index = range(start, min(start + 20, images))
            x = pixels[start : start + 20]
            x = (x if isinstance(x, Tensor) else torch.from_numpy(np.array(x))).float() / 127.5 - 1
            latents.append(encode(x).half())
            concat.append(_concat(variant, x, index, encode, factor).half())
            if start % 1000 == 0:
                print(f"ldm {variant}: encoded {start}/{images}", flush=True)
    tensors: dict[str, Any] = {"latents": torch.cat(latents), "concat": torch.cat(concat), "labels": _labels(variant, images)}
    save_file(tensors, path)
    return Pool(**tensors)


def _labels(variant: str, images: int) -> Tensor:
    """What is told of the first `images` training scenes: the class, the tokens of the caption, or nothing."""
    seeds = range(TRAINING_SEED, TRAINING_SEED + images)
    if variant == "text":
        return Tokenizer(scene_vocabulary()).encode(scenes.captions(seeds), TOKENS)
    labels = [scenes.class_index(seed) for seed in seeds] if variant == "class" else []
    assert all(0 <= label < CLASSES for label in labels)
    return torch.tensor(labels, dtype=torch.long)


def _concat(variant: str, x: Tensor, index: range, encode: Callable[[Tensor], Tensor], factor: int) -> Tensor:
    """What is concatenated to the latents of images [B, 3, H, W], [B, k, h, w]."""
    if variant == "super-resolution":
        return reduce(x, factor)
    if variant == "inpainting":
        mask = draw_masks(index, *x.shape[2:])
        latent = encode(torch.where(mask > 0.5, -1.0, x))
        return torch.cat([latent, F.interpolate(mask, size=latent.shape[2:], mode="nearest") * 2 - 1], 1)
    return x.new_zeros(len(x), 0, x.shape[2] // factor, x.shape[3] // factor)
