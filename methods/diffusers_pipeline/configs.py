"""Pipelines with random weights: the network of Stable Diffusion XL, and tiny ones of the same make for tests."""

from __future__ import annotations

from typing import Any

from hibench.errors import SpecError
from methods.diffusers_pipeline.tokenizer import byte_tokenizer

__all__ = ["CONFIGS", "random_pipeline"]

_SD_SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "timestep_spacing": "leading",
                 "steps_offset": 1}
_SDXL = {                                           # 2307.01952 as released: 2 567 463 684 parameters in the U-Net
    "unet": {
        "sample_size": 128, "in_channels": 4, "out_channels": 4, "block_out_channels": (320, 640, 1280), "layers_per_block": 2,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "attention_head_dim": (5, 10, 20),
        "transformer_layers_per_block": (1, 2, 10), "cross_attention_dim": 2048, "use_linear_projection": True,
        "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
    },
    "vae": {
        "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4, "sample_size": 1024,
        "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
        "scaling_factor": 0.13025, "force_upcast": True,
    },
    "text": (
        {"vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
         "max_position_embeddings": 77, "hidden_act": "quick_gelu", "projection_dim": 768},
        {"vocab_size": 49408, "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32,
         "num_attention_heads": 20, "max_position_embeddings": 77, "hidden_act": "gelu", "projection_dim": 1280},
    ),
}
_TINY_VAE = {
    "block_out_channels": (16, 16, 32), "layers_per_block": 1, "latent_channels": 4, "sample_size": 64, "norm_num_groups": 8,
    "down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3, "scaling_factor": 0.13025,
}
_TINY_UNET = {
    "sample_size": 16, "in_channels": 4, "out_channels": 4, "block_out_channels": (16, 32), "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (2, 4), "transformer_layers_per_block": (1, 1), "use_linear_projection": True, "norm_num_groups": 8,
}
_TINY_TEXT = {"vocab_size": 514, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
              "max_position_embeddings": 77, "projection_dim": 16}
CONFIGS: dict[str, dict[str, Any]] = {
    "sdxl": _SDXL,
    "tiny-sdxl": {
        "unet": {**_TINY_UNET, "cross_attention_dim": 32, "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
                 "projection_class_embeddings_input_dim": 6 * 8 + 16},
        "vae": _TINY_VAE, "text": (_TINY_TEXT, _TINY_TEXT),
    },
    "tiny-sd": {"unet": {**_TINY_UNET, "cross_attention_dim": 16}, "vae": {**_TINY_VAE, "scaling_factor": 0.18215},
                "text": (_TINY_TEXT,)},
}


def random_pipeline(name: str, device: str = "cpu", dtype: Any = None, seed: int = 0) -> Any:
    """A pipeline of a configuration of `CONFIGS` with random weights: one text encoder gives StableDiffusionPipeline, two
    StableDiffusionXLPipeline. The networks are made on the device; the global random state is left as it was."""
    import torch
    from diffusers import (
        AutoencoderKL,
        EulerDiscreteScheduler,
        StableDiffusionPipeline,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    if name not in CONFIGS:
        raise SpecError(f"no configuration '{name}'; there are: {', '.join(CONFIGS)}")
    config = CONFIGS[name]
    cuda = [torch.device(device)] if device.startswith("cuda") else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        with torch.device(device):
            parts: dict[str, Any] = {
                "unet": UNet2DConditionModel(**config["unet"]), "vae": AutoencoderKL(**config["vae"]),
                "scheduler": EulerDiscreteScheduler(**_SD_SCHEDULER),
            }
            for i, text in enumerate(config["text"]):
                kind = CLIPTextModel if i == 0 else CLIPTextModelWithProjection
                suffix = "" if i == 0 else "_2"
                ends = {"bos_token_id": text["vocab_size"] - 2, "eos_token_id": text["vocab_size"] - 1}
                parts[f"text_encoder{suffix}"] = kind(CLIPTextConfig(**text, **ends, pad_token_id=ends["eos_token_id"]))
                parts[f"tokenizer{suffix}"] = byte_tokenizer(text["vocab_size"], text["max_position_embeddings"])
    for part in parts.values():
        if isinstance(part, torch.nn.Module):
            (part if dtype in (None, torch.float32) else part.to(dtype)).eval().requires_grad_(False)
    if len(config["text"]) == 2:
        return StableDiffusionXLPipeline(**parts, add_watermarker=False)
    return StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
