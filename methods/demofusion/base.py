"""The small base of DemoFusion here: the parts of an SDXL-shaped latent diffusion model of 64 px, in diffusers' classes.

Its autoencoder is the reference LDM's first stage, read as an `AutoencoderKL` without variance (the code book is left out:
latents decoded as they are come closer to the image by 0.3 dB). Its U-Net starts as the reference LDM's, with transformers that
do nothing yet. What SDXL adds is trained by `methods.demofusion.train`: two text encoders, cross-attention, sizes and crops.
"""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file
from torch import nn

from hibench.references import scenes
from methods.diffusers_pipeline.tokenizer import END, START, byte_letters
from methods.ldm.adapter import REFERENCE as LDM_REFERENCE
from methods.ldm.diffusers_format import first_stage_names, unet_names

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel

__all__ = ["NATIVE", "SCHEDULER", "TOKENS", "autoencoder", "text_encoders", "unet", "write_pipeline", "write_tokenizer"]

NATIVE, TOKENS = 64, 24                             # px; tokens per prompt (the longest caption has 21 words)
SHARD = "6MB"                                       # no file of weights is larger
LOGVAR = -20.0                                      # of the latents: the encoder is deterministic
SCHEDULER: dict[str, Any] = {
    "_class_name": "EulerDiscreteScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0195,
    "num_train_timesteps": 1000, "prediction_type": "v_prediction", "timestep_spacing": "leading", "steps_offset": 1,
    "interpolation_type": "linear", "use_karras_sigmas": False,
}
_UNET: dict[str, Any] = {  # the reference LDM's U-Net with transformers where that has attention
    "sample_size": 16, "in_channels": 3, "out_channels": 3, "block_out_channels": (64, 64, 128), "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "norm_num_groups": 32,
    "attention_head_dim": (2, 2, 4), "use_linear_projection": True, "cross_attention_dim": 128,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 32, "projection_class_embeddings_input_dim": 6 * 32 + 64,
}
_TEXT: dict[str, Any] = {  # two of them; SDXL reads the last but one of the three layers
    "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 2, "projection_dim": 64,
    "max_position_embeddings": TOKENS,
}


def unet(warm: bool = True) -> UNet2DConditionModel:
    """The denoiser. `warm`: with the weights of the reference LDM's U-Net, and transformers that add nothing yet."""
    from diffusers import UNet2DConditionModel

    network = UNet2DConditionModel(**_UNET)
    if warm:
        official = {k: v.float() for k, v in load_file(LDM_REFERENCE / "unet.safetensors").items()}
        attention = [t.startswith("Cross") for t in _UNET["up_block_types"]]
        own = [k for k in network.state_dict() if ".attentions." not in k and not k.startswith("add_embedding")]
        network.load_state_dict({k: official[unet_names(k, 1, attention)] for k in own}, strict=False)
        for module in network.modules():
            if type(module).__name__ == "Transformer2DModel":
                nn.init.zeros_(module.proj_out.weight)
                nn.init.zeros_(module.proj_out.bias)
        nn.init.zeros_(network.add_embedding.linear_2.weight)
        nn.init.zeros_(network.add_embedding.linear_2.bias)
    return network


def autoencoder() -> AutoencoderKL:
    """The reference LDM's first stage as an AutoencoderKL of the same images: its mean is the latent before quantisation."""
    from diffusers import AutoencoderKL

    config = json.loads((LDM_REFERENCE / "config.json").read_text())
    dd = config["first_stage_config"]["params"]["ddconfig"]
    channels, z = [dd["ch"] * m for m in dd["ch_mult"]], dd["z_channels"]
    network = AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=z, block_out_channels=channels, layers_per_block=dd["num_res_blocks"],
        down_block_types=["DownEncoderBlock2D"] * len(channels), up_block_types=["UpDecoderBlock2D"] * len(channels),
        norm_num_groups=32, sample_size=NATIVE, scaling_factor=config["scale_factor"], force_upcast=False)
    official = {k: v.float() for k, v in load_file(LDM_REFERENCE / "first_stage.safetensors").items()}
    for layer, columns, logvar in (("encoder.conv_out", 0, 0.0), ("quant_conv", z, LOGVAR)):   # a log-variance beside each mean
        official[f"{layer}.weight"] = nn.functional.pad(official[f"{layer}.weight"], (0, 0, 0, 0, 0, columns, 0, z))
        official[f"{layer}.bias"] = nn.functional.pad(official[f"{layer}.bias"], (0, z), value=logvar)
    state = {k: official[first_stage_names(k, len(channels))].reshape(v.shape) for k, v in network.state_dict().items()}
    network.load_state_dict(state)
    return network.eval()


def text_encoders(vocabulary: int) -> tuple[nn.Module, nn.Module]:
    """SDXL's pair in small: the second one has the projection whose output is the pooled embedding."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    special = {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, "pad_token_id": vocabulary - 1}
    first, second = (CLIPTextConfig(vocab_size=vocabulary, hidden_act=a, **_TEXT, **special) for a in ("quick_gelu", "gelu"))
    return CLIPTextModel(first), CLIPTextModelWithProjection(second)


def vocabulary_words() -> list[str]:
    """Every word that a caption of scenes may have."""
    parts = [*scenes.SIZES, "tiny", *scenes.MATERIALS, *scenes.COLOURS, *scenes.SHAPES, *scenes.POSITIONS, *scenes.GROUNDS]
    return sorted(set(" ".join([*parts, "a an and at in the on"]).split()))


def merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, most frequent pair first, until every one of these words is one token."""
    split = [(*word[:-1], word[-1] + "</w>") for word in words]
    found = []
    while any(len(w) > 1 for w in split):
        pairs = Counter(pair for w in split for pair in pairwise(w))
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        found.append(best)
        split = [_merged(w, best) for w in split]
    return found


def _merged(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    out: list[str] = []
    for token in word:
        if out and (out[-1], token) == pair:
            out[-1] += token
        else:
            out.append(token)
    return tuple(out)


def write_tokenizer(folder: Path) -> int:
    """CLIP's byte-level tokenizer with a vocabulary learnt from the words of scenes; other text is spelt. Returns its size."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs, letters = merges(vocabulary_words()), byte_letters()
    tokens = [*letters, *(x + "</w>" for x in letters), *(a + b for a, b in pairs), START, END]
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(f"{a} {b}" for a, b in pairs) + "\n")
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    _write(folder / "special_tokens_map.json", special)
    _write(folder / "tokenizer_config.json", {"tokenizer_class": "CLIPTokenizer", "model_max_length": TOKENS,
                                              "do_lower_case": True, "errors": "replace", "add_prefix_space": False, **special})
    return len(tokens)


def write_pipeline(out: Path, parts: dict[str, Any]) -> None:
    """Write unet, vae, text_encoder and text_encoder_2 as float16 with tokenizers and scheduler: `save_pretrained`'s layout."""
    for name, part in parts.items():
        part.half().save_pretrained(out / name, max_shard_size=SHARD)
        part.float()
    for name in ("tokenizer", "tokenizer_2"):
        write_tokenizer(out / name)
    (out / "scheduler").mkdir(exist_ok=True)
    _write(out / "scheduler" / "scheduler_config.json", SCHEDULER)
    _write(out / "model_index.json", {
        "_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True, "add_watermarker": None,
        "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "EulerDiscreteScheduler"], "feature_extractor": [None, None], "image_encoder": [None, None],
        "text_encoder": ["transformers", "CLIPTextModel"], "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"], "tokenizer_2": ["transformers", "CLIPTokenizer"]})
    for file in out.rglob("*.safetensors"):
        file.chmod(0o644)


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
