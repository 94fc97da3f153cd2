"""CLIP, DINOv2 and VGG16 extractors on random networks: preprocessing, loading, text, wrong files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import timm
import torch
from PIL import Image
from torchvision import transforms

from hibench.errors import MissingWeights
from hibench.extractors import embedding
from hibench.features import get_extractor


def noise(height: int, width: int) -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, height, width), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.fixture
def small_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, torch.nn.Module]:
    """A CLIP of two layers behind the name clip-vit-b-32."""
    config = {
        "embed_dim": 24,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 224, "layers": 2, "width": 64, "patch_size": 32},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
    }
    (tmp_path / "hibench-small-clip.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "hibench-small-clip.json")
    monkeypatch.setattr(embedding, "CLIP_MODELS", {"clip-vit-b-32": ("hibench-small-clip", 224, 24)})
    torch.manual_seed(0)
    model = open_clip.create_model("hibench-small-clip").eval()
    torch.save(model.state_dict(), tmp_path / "clip.pth")
    return tmp_path / "clip.pth", model


def test_clip_features_follow_clean_fids_preprocessing(small_clip: tuple[Path, torch.nn.Module]) -> None:
    path, model = small_clip
    extractor = get_extractor("clip-vit-b-32", "cpu", str(path))
    x = noise(90, 131)
    pipeline = transforms.Compose(
        [
            transforms.Resize(224, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
        ]
    )
    with torch.inference_mode():
        expected = model.encode_image(torch.stack([pipeline(Image.fromarray(i.permute(1, 2, 0).numpy())) for i in x]))
        found = extractor(x)["embed"]
        text = model.encode_text(open_clip.get_tokenizer("ViT-B-32")(["a red bar"]))
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert torch.allclose(extractor.encode_text(["a red bar"]), text, rtol=1e-4, atol=1e-5)  # type: ignore[attr-defined]
    assert extractor.resize == "pil-bicubic-uint8-shortest-224-centre-crop"


def test_long_captions_are_cut_before_their_end_token(small_clip: tuple[Path, torch.nn.Module]) -> None:
    """torchmetrics cuts the ids of the HuggingFace tokenizer at 77 and loses the end token, whose place is the embedding."""
    path, model = small_clip
    extractor = get_extractor("clip-vit-b-32", "cpu", str(path))
    tokens = open_clip.get_tokenizer("ViT-B-32")(["red " * 100])
    assert int(tokens[0, -1]) == int(tokens.max()) == 49407
    with torch.inference_mode():
        assert torch.allclose(extractor.encode_text(["red " * 100]), model.encode_text(tokens), atol=1e-6)  # type: ignore[attr-defined]
    assert torch.equal(extractor.encode_text(["red " * 100]), extractor.encode_text(["red " * 90 + "blue"]))  # type: ignore[attr-defined]


def test_openai_clips_are_built_with_the_activation_that_they_were_trained_with() -> None:
    """open_clip builds plain GELU for a file under the name ViT-B-32, without a word (its issues 771 and 915)."""
    for architecture, size, width in embedding.CLIP_MODELS.values():
        config = open_clip.get_model_config(architecture)
        assert (config["quick_gelu"], config["vision_cfg"]["image_size"], config["embed_dim"]) == (True, size, width)


def test_a_clip_file_of_another_network_is_refused(small_clip: tuple[Path, torch.nn.Module]) -> None:
    path, _ = small_clip
    state = torch.load(path, weights_only=True)
    del state["visual.proj"]
    torch.save(state, path)
    with pytest.raises(MissingWeights, match=r"wrong keys: 1 of .* tensors are missing, e.g. 'visual.proj'"):
        get_extractor("clip-vit-b-32", "cpu", str(path))


def test_dinov2_is_resized_by_pil_and_keeps_its_own_positions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "DINO_MODELS", {"dinov2-vit-l-14": ("vit_small_patch14_dinov2", 384)})
    torch.manual_seed(0)
    model = timm.create_model("vit_small_patch14_dinov2", num_classes=0).eval()
    state = {**model.state_dict(), "mask_token": torch.zeros(1, 384)}
    torch.save(state, tmp_path / "dino.pth")
    extractor = get_extractor("dinov2-vit-l-14", "cpu", str(tmp_path / "dino.pth"))
    x = noise(100, 60)
    small = [np.asarray(Image.fromarray(i.permute(1, 2, 0).numpy()).resize((224, 224), Image.Resampling.BICUBIC)) for i in x]
    pipeline = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    prepared = torch.stack([pipeline(transforms.functional.to_tensor(i.copy())) for i in small])
    assert torch.allclose(extractor.prepare(x), prepared, atol=1e-5)  # type: ignore[attr-defined]
    with torch.inference_mode():
        found = extractor(x)["cls"]
    assert found.shape == (2, 384)
    assert bool(found.isfinite().all())
    table = embedding._official_positions(state["pos_embed"], 37)
    assert torch.allclose(table[:, :1], state["pos_embed"][:, :1])
    assert embedding._official_positions(state["pos_embed"], 16).shape == (1, 257, 384)


def test_every_dinov2_has_weights_and_the_width_of_its_network() -> None:
    from hibench.features import EXTRACTORS
    from hibench.weights import CATALOG

    assert set(embedding.DINO_MODELS) == {f"dinov2-vit-{size}-14" for size in "sblg"}
    for name, (architecture, width) in embedding.DINO_MODELS.items():
        assert (EXTRACTORS[name].weights, EXTRACTORS[name].takes_name, name in CATALOG) == (name, True, True)
        with torch.device("meta"):
            assert timm.create_model(architecture, img_size=224, num_classes=0).num_features == width


def test_the_gated_layers_of_dinov2_g_are_read_by_their_official_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **more: made(name, **more, depth=1, embed_dim=48, num_heads=2))
    monkeypatch.setattr(embedding, "DINO_MODELS", {"dinov2-vit-g-14": ("vit_giant_patch14_dinov2", 48)})
    torch.manual_seed(0)
    model = timm.create_model("vit_giant_patch14_dinov2", img_size=224, num_classes=0).eval()
    state = {k: torch.randn_like(v) * 0.1 for k, v in model.state_dict().items()}
    model.load_state_dict(state)
    names = {".mlp.fc1.": ".mlp.w12.", ".mlp.fc2.": ".mlp.w3."}
    official = {k.replace(n, names[n]): v for k, v in state.items() for n in [next((n for n in names if n in k), ".mlp.fc1.")]}
    official["pos_embed"] = torch.cat([state["pos_embed"][:, :1], torch.zeros(1, 37 * 37, 48)], 1)
    torch.save(official, tmp_path / "g.pth")
    state["pos_embed"][:, 1:] = 0
    model.load_state_dict(state)
    x = noise(40, 56)
    extractor = get_extractor("dinov2-vit-g-14", "cpu", str(tmp_path / "g.pth"))
    with torch.inference_mode():
        assert torch.allclose(extractor(x)["cls"], model(extractor.prepare(x)), atol=1e-6)  # type: ignore[attr-defined]
        row = torch.randn(3, 48)
        gate, value = (row @ official["blocks.0.mlp.w12.weight"].T + official["blocks.0.mlp.w12.bias"]).chunk(2, -1)
        hidden = torch.nn.functional.silu(gate) * value           # the official order: the first half is the gate
        expected = hidden @ official["blocks.0.mlp.w3.weight"].T + official["blocks.0.mlp.w3.bias"]
        assert torch.allclose(model.blocks[0].mlp(row), expected, atol=1e-5)


@pytest.mark.slow
def test_vgg16_equals_torch_fidelity(tmp_path: Path) -> None:
    import torchvision
    from torch_fidelity.feature_extractor_vgg16 import FeatureExtractorVGG16

    torch.save(torchvision.models.vgg16().state_dict(), tmp_path / "vgg.pth")
    peer = FeatureExtractorVGG16("vgg16", ["fc2_relu"], feature_extractor_weights_path=str(tmp_path / "vgg.pth"))
    x = noise(64, 80)
    assert torch.allclose(get_extractor("vgg16", "cpu", str(tmp_path / "vgg.pth"))(x)["fc2"], peer(x)[0], rtol=1e-4, atol=1e-6)
