"""scenes-clip: a small CLIP, built by open_clip and trained on scenes and their captions; the default extractor."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hibench.errors import MissingWeights, SpecError, did_you_mean
from hibench.references import scenes

if TYPE_CHECKING:
    import torch

__all__ = ["CONTEXT", "EMBED_DIM", "INPUT_SIZE", "ScenesClip", "build", "box_resize", "load", "tokenize"]

FOLDER = Path(__file__).parent
WEIGHTS = FOLDER / "weights.safetensors"
INPUT_SIZE = 64  # every image is box-filtered to this many pixels per side
EMBED_DIM = 128
CONTEXT = 32
CLASS_PROMPTS = tuple(f"a {colour} {shape}" for shape in scenes.SHAPES for colour in scenes.COLOURS)
_START, _END = 1, 63  # the end token has the largest id: open_clip pools the text there


@lru_cache(maxsize=1)
def _vocabulary() -> dict[str, int]:
    text = " ".join(
        [
            *scenes.SIZES,
            "tiny",
            *scenes.MATERIALS,
            *scenes.COLOURS,
            *scenes.SHAPES,
            *scenes.POSITIONS,
            *scenes.GROUNDS,
            "a an and at in the on",
        ]
    )
    return {word: i + 2 for i, word in enumerate(sorted(set(text.split())))}


def tokenize(texts: Sequence[str]) -> "torch.Tensor":
    """Word tokens int64 [B, 32]. A word that scenes never use is a SpecError: this CLIP knows only scenes."""
    import torch

    words = _vocabulary()
    out = torch.zeros(len(texts), CONTEXT, dtype=torch.int64)
    for row, text in zip(out, texts):
        found = re.findall(r"[a-z]+", text.lower())
        unknown = [w for w in found if w not in words]
        if unknown:
            raise SpecError(
                f"scenes-clip: unknown word '{unknown[0]}' in prompt {text!r}{did_you_mean(unknown[0], words)}; "
                "it knows the vocabulary of scenes only: use another CLIP extractor for other prompts"
            )
        if len(found) > CONTEXT - 2:
            raise SpecError(f"scenes-clip: prompt of {len(found)} words, at most {CONTEXT - 2} fit: {text[:60]!r}…; shorten it")
        ids = [_START, *(words[w] for w in found), _END]
        row[: len(ids)] = torch.tensor(ids)
    return out


def build() -> Any:
    """The network of config.json with random weights (an open_clip CLIP)."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    config = json.loads((FOLDER / "config.json").read_text())
    return CLIP(config["embed_dim"], CLIPVisionCfg(**config["vision_cfg"]), CLIPTextCfg(**config["text_cfg"]))


@lru_cache(maxsize=64)
def _box_weights(source: int, target: int) -> "torch.Tensor":
    """Overlap of target pixel i with source pixel j, rows normalised: float32 [target, source]."""
    import torch

    edge = torch.arange(target + 1, dtype=torch.float64) * (source / target)
    pixel = torch.arange(source, dtype=torch.float64)
    overlap = (torch.minimum(edge[1:, None], pixel + 1) - torch.maximum(edge[:-1, None], pixel)).clamp_(min=0)
    return (overlap * (target / source)).float()


def box_resize(images: "torch.Tensor", height: int, width: int) -> "torch.Tensor":
    """Exact area resampling, up or down, by any ratio: float [B, C, H, W] to [B, C, height, width]."""
    h, w = images.shape[-2:]
    if h != height:
        images = _box_weights(h, height).to(images) @ images
    if w != width:
        images = images @ _box_weights(w, width).to(images).T
    return images


def network_input(images: "torch.Tensor") -> "torch.Tensor":
    """uint8 [B, 3, H, W] to the network's float input: box filter to 64 px, [-1, 1], bilinear to the tower's 96 px."""
    import torch.nn.functional as F

    small = box_resize(images.float(), INPUT_SIZE, INPUT_SIZE) / 127.5 - 1
    return F.interpolate(small, size=96, mode="bilinear", align_corners=False)


class ScenesClip:
    """The trained network on one device. Image features are the projected embeddings before normalisation, float32 [B, 128]."""

    def __init__(self, network: Any, classes: "torch.Tensor", device: "str | torch.device", weights_sha256: str) -> None:
        self.network, self.device, self.weights_sha256 = network.to(device).eval().requires_grad_(False), device, weights_sha256
        self.classes = classes.to(device)  # [64, 128] unit vectors

    def encode_image(self, images: "torch.Tensor") -> "torch.Tensor":
        """uint8 [B, 3, H, W], any size (squashed to a square) → float32 [B, 128], not normalised."""
        import torch

        with torch.inference_mode():
            out: torch.Tensor = self.network.encode_image(network_input(images.to(self.device)))
            return out.float()

    def encode_text(self, texts: Sequence[str]) -> "torch.Tensor":
        """Prompts in the words of scenes → float32 [B, 128], not normalised."""
        import torch

        with torch.inference_mode():
            out: torch.Tensor = self.network.encode_text(tokenize(texts).to(self.device))
            return out.float()

    def class_logits(self, embed: "torch.Tensor") -> "torch.Tensor":
        """Zero-shot logits [B, 64] over shape × colour (index shape·8 + colour), from embeddings [B, 128]."""
        import torch
        import torch.nn.functional as F

        with torch.inference_mode():
            scale: torch.Tensor = self.network.logit_scale.exp()
            return scale * F.normalize(embed.to(self.classes), dim=-1) @ self.classes.T

    def class_embeddings(self) -> "torch.Tensor":
        """One unit vector per class [64, 128], of its short caption."""
        import torch.nn.functional as F

        return F.normalize(self.encode_text(CLASS_PROMPTS), dim=-1)


def load(device: "str | torch.device" = "cpu", weights: Path | None = None) -> ScenesClip:
    """Load the shipped weights, or a file of the same layout. MissingWeights when there is none or its keys are wrong."""
    from safetensors import SafetensorError
    from safetensors.torch import load as read

    path = weights or WEIGHTS
    if not path.is_file():
        raise MissingWeights(f"scenes-clip: no weights at {path}; make them with: hibench train scenes-clip")
    data = path.read_bytes()
    network = build()
    try:
        state = {k: v.float() if v.is_floating_point() else v for k, v in read(data).items()}
        classes = state.pop("class_embeddings")
        network.load_state_dict(state, strict=True)
    except (SafetensorError, RuntimeError, KeyError) as error:
        raise MissingWeights(
            f"scenes-clip: {path} is not a scenes-clip weights file ({str(error).splitlines()[0]}); "
            "make a new one with: hibench train scenes-clip"
        ) from error
    return ScenesClip(network, classes, device, hashlib.sha256(data).hexdigest())
