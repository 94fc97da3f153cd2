"""Extractors over other networks: scenes-clip, CLIP (open_clip), DINOv2 (timm) and VGG16, each with its protocol's resize."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hibench.errors import MissingWeights

if TYPE_CHECKING:
    import torch

__all__ = [
    "CLIP_MODELS",
    "DINO_MODELS",
    "Embedding",
    "ScenesClipExtractor",
    "open_clip_model",
    "open_dinov2",
    "open_scenes_clip",
    "open_vgg16",
]

CLIP_MODELS = {
    "clip-vit-b-32": ("ViT-B-32-quickgelu", 224, 512),
    "clip-vit-b-16": ("ViT-B-16-quickgelu", 224, 512),
    "clip-vit-l-14": ("ViT-L-14-quickgelu", 224, 768),
    "clip-vit-l-14-336": ("ViT-L-14-336-quickgelu", 336, 768),
}
DINO_MODELS = {
    "dinov2-vit-s-14": ("vit_small_patch14_dinov2", 384),
    "dinov2-vit-b-14": ("vit_base_patch14_dinov2", 768),
    "dinov2-vit-l-14": ("vit_large_patch14_dinov2", 1024),
    "dinov2-vit-g-14": ("vit_giant_patch14_dinov2", 1536),
}
_GATED = {".mlp.w12.": ".mlp.fc1.", ".mlp.w3.": ".mlp.fc2."}  # the official names of ViT-g's gated layers, in timm's
_CLIP_NORM = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_IMAGENET_NORM = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Embedding:
    """An extractor made of three functions: resize (uint8 to uint8 or float), normalise, network."""

    def __init__(
        self,
        name: str,
        weights_sha256: str,
        resize: str,
        outputs: dict[str, int],
        roles: dict[str, str],
        device: str,
        resizer: "Callable[[torch.Tensor], torch.Tensor]",
        norm: tuple[Sequence[float], Sequence[float]],
        forward: "Callable[[torch.Tensor], dict[str, torch.Tensor]]",
        text: "Callable[[Sequence[str]], torch.Tensor] | None" = None,
    ) -> None:
        import torch

        self.name, self.weights_sha256, self.resize, self.outputs, self.roles = name, weights_sha256, resize, outputs, roles
        self.device, self.resizer, self.forward, self._text = device, resizer, forward, text
        self._mean = torch.tensor(norm[0], device=device).view(3, 1, 1)
        self._std = torch.tensor(norm[1], device=device).view(3, 1, 1)

    def prepare(self, images: "torch.Tensor") -> "torch.Tensor":
        """uint8 [B, 3, H, W] → the network's float32 input."""
        return (self.resizer(images.to(self.device)).float() / 255 - self._mean) / self._std

    def network(self, x: "torch.Tensor") -> "dict[str, torch.Tensor]":
        """Prepared images → one float32 [B, D] per output."""
        return self.forward(x)

    def __call__(self, images: "torch.Tensor") -> "dict[str, torch.Tensor]":
        return self.network(self.prepare(images))

    def encode_text(self, prompts: Sequence[str]) -> "torch.Tensor":
        """Prompts → float32 [B, D]."""
        if self._text is None:
            raise MissingWeights(
                f"{self.name}: has no text encoder; choose a CLIP extractor for clip-score, e.g. clip-vit-b-32"
            )
        return self._text(prompts)


class ScenesClipExtractor:
    """hibench's own small CLIP as an extractor."""

    resize = "box-64"

    def __init__(self, model: Any) -> None:
        from hibench.scenes_clip import CLASS_PROMPTS, EMBED_DIM

        self.model, self.weights_sha256, self.name = model, model.weights_sha256, "scenes-clip"
        self.outputs = {"embed": EMBED_DIM, "logits": len(CLASS_PROMPTS)}
        self.roles = {"features": "embed", "logits": "logits", "text": "embed"}

    def __call__(self, images: "torch.Tensor") -> "dict[str, torch.Tensor]":
        embed = self.model.encode_image(images)
        return {"embed": embed, "logits": self.model.class_logits(embed)}

    def encode_text(self, prompts: Sequence[str]) -> "torch.Tensor":
        """Prompts → float32 [B, 128]."""
        out: torch.Tensor = self.model.encode_text(list(prompts))
        return out


def open_scenes_clip(device: str, weights: str | None = None, compiled: bool = False) -> ScenesClipExtractor:
    """The shipped default extractor."""
    from hibench import scenes_clip

    return ScenesClipExtractor(scenes_clip.load(device, Path(weights) if weights else None))


def open_clip_model(name: str, device: str, weights: str | None = None) -> Embedding:
    """An OpenAI CLIP through open_clip (QuickGELU), with clean-fid's preprocessing: PIL bicubic of the shorter side, centre
    crop, uint8."""
    import open_clip
    import torch

    from hibench.resize import shortest_side_crop
    from hibench.weights import read_state, resolve

    found = resolve(name, weights)
    architecture, size, width = CLIP_MODELS[name]
    model = open_clip.create_model(architecture, pretrained=None)  # weights are loaded below, never downloaded
    state = {
        k: v for k, v in read_state(found.path, name).items() if k not in ("input_resolution", "context_length", "vocab_size")
    }
    _load(model, state, found.path, name)
    model = model.float().to(device).eval().requires_grad_(False)
    tokenizer = open_clip.get_tokenizer(architecture)

    def text(prompts: Sequence[str]) -> "torch.Tensor":
        with torch.inference_mode():
            out: torch.Tensor = model.encode_text(tokenizer(list(prompts)).to(device))
            return out.float()

    return Embedding(
        name,
        found.sha256,
        f"pil-bicubic-uint8-shortest-{size}-centre-crop",
        {"embed": width},
        {"features": "embed", "text": "embed"},
        device,
        lambda x: shortest_side_crop(x, size),
        _CLIP_NORM,
        lambda x: {"embed": model.encode_image(x).float()},
        text,
    )


def open_dinov2(name: str, device: str, weights: str | None = None) -> Embedding:
    """DINOv2 through timm: the class token, 224 px by PIL bicubic on uint8 (Stein et al. 2306.04675)."""
    import timm
    import torch

    from hibench.resize import pil_resize
    from hibench.weights import read_state, resolve

    found = resolve(name, weights)
    architecture, width = DINO_MODELS[name]
    with torch.device("meta"):
        model = timm.create_model(architecture, pretrained=False, img_size=224, num_classes=0)
    state = {_renamed(key): value for key, value in read_state(found.path, name).items()}
    if "pos_embed" in state:
        state["pos_embed"] = _official_positions(state["pos_embed"].float(), 16)
    _load(model, state, found.path, name, assign=True)
    model = model.float().to(device).eval().requires_grad_(False)
    return Embedding(
        name,
        found.sha256,
        "pil-bicubic-uint8-224",
        {"cls": width},
        {"features": "cls"},
        device,
        lambda x: pil_resize(x, 224, 224),
        _IMAGENET_NORM,
        lambda x: {"cls": model(x).float()},
    )


def _renamed(key: str) -> str:
    """An official key of DINOv2 as timm calls it; only the gated layers of ViT-g differ."""
    for official, own in _GATED.items():
        key = key.replace(official, own)
    return key


def _official_positions(table: "torch.Tensor", grid: int) -> "torch.Tensor":
    """DINOv2's own resampling of its 37 × 37 position table (bicubic, offset 0.1, no antialias): [1, 1 + 37², D] → [1, 1 +
    grid², D]."""
    import torch
    import torch.nn.functional as F

    side = round((table.shape[1] - 1) ** 0.5)
    patches = table[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    scale = (grid + 0.1) / side
    small = F.interpolate(patches, scale_factor=(scale, scale), mode="bicubic", recompute_scale_factor=False)
    return torch.cat([table[:, :1], small.permute(0, 2, 3, 1).reshape(1, grid * grid, -1)], 1)


def open_vgg16(device: str, weights: str | None = None) -> Embedding:
    """VGG16's fc2 after ReLU, as torch-fidelity: TF1 bilinear to 224 px."""
    import torch
    import torchvision

    from hibench.resize import tf1_bilinear
    from hibench.weights import read_state, resolve

    found = resolve("vgg16", weights)
    with torch.device("meta"):
        model = torchvision.models.vgg16()
    _load(model, read_state(found.path, "vgg16"), found.path, "vgg16", assign=True)
    model.classifier = model.classifier[:5]  # fc1, ReLU, dropout, fc2, ReLU
    model = model.float().to(device).eval().requires_grad_(False)
    return Embedding(
        "vgg16",
        found.sha256,
        "tf1-bilinear-224",
        {"fc2": 4096},
        {"features": "fc2"},
        device,
        lambda x: tf1_bilinear(x, 224),
        _IMAGENET_NORM,
        lambda x: {"fc2": model(x).float()},
    )


def _load(model: Any, state: "Mapping[str, torch.Tensor]", path: Path, user: str, assign: bool = False) -> None:
    from hibench.weights import check_state

    check_state(state, {k: tuple(v.shape) for k, v in model.state_dict().items()}, path, user)
    model.load_state_dict({k: v for k, v in state.items() if k in model.state_dict()}, assign=assign)
