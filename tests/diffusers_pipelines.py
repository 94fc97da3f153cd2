"""Tiny diffusers pipelines with random weights, made on the fly in the layouts of real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from methods.diffusers_pipeline.configs import CONFIGS, random_pipeline
from methods.diffusers_pipeline.tokenizer import byte_tokenizer

WORDS = ("<pad>", "</s>", "<unk>", "a", "red", "star", "blue", "ring", "on")


def saved(folder: Path, kind: str) -> Path:
    """A pipeline in the layout of `save_pretrained`: kind "tiny-sd", "tiny-sdxl", "flux" or "pixart"."""
    made = {"flux": flux, "pixart": pixart}.get(kind)
    pipe = made() if made else random_pipeline(kind)
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    pipe.save_pretrained(folder / kind)
    return folder / kind


def word_tokenizer() -> Any:
    """One token per word of `WORDS`, at most 16."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
                                   model_max_length=16)


def t5() -> Any:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4))


def flux() -> Any:
    """Packed latents, two kinds of text encoder, flow matching."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = FluxTransformer2DModel(
            patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8))
        vae = AutoencoderKL(block_out_channels=(8, 16), layers_per_block=1, latent_channels=4, norm_num_groups=4,
                            sample_size=32, down_block_types=("DownEncoderBlock2D",) * 2,
                            up_block_types=("UpDecoderBlock2D",) * 2,
                            scaling_factor=1.5, shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False)
        ends = {"bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513}
        text = {**CONFIGS["tiny-sd"]["text"][0], "hidden_size": 32, **ends}
        return FluxPipeline(scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae, transformer=transformer,
                            text_encoder=CLIPTextModel(CLIPTextConfig(**text)), tokenizer=byte_tokenizer(), text_encoder_2=t5(),
                            tokenizer_2=word_tokenizer())


def pixart() -> Any:
    """A diffusion transformer with T5; its call has no `callback_on_step_end`, and would round sizes to its bins."""
    from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = PixArtTransformer2DModel(
            sample_size=8, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=3, caption_channels=32,
            in_channels=4, cross_attention_dim=24, out_channels=8, attention_bias=True, activation_fn="gelu-approximate",
            num_embeds_ada_norm=1000, norm_type="ada_norm_single", norm_elementwise_affine=False, norm_eps=1e-6,
            use_additional_conditions=False)
        vae = AutoencoderKL(**CONFIGS["tiny-sd"]["vae"])
        return PixArtSigmaPipeline(tokenizer=word_tokenizer(), text_encoder=t5(), vae=vae, transformer=transformer,
                                   scheduler=DPMSolverMultistepScheduler())
