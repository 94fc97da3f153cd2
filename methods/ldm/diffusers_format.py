"""Pipelines in diffusers' folder format (model_index.json, unet/, vqvae/ or vae/), as official configurations and tensors."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hibench.errors import AdapterError, MissingWeights

if TYPE_CHECKING:
    from torch import Tensor

    from methods.ldm.model import LatentDiffusion

__all__ = ["first_stage_names", "is_pipeline", "load_pipeline", "pipeline_params", "unet_names"]

WRONG_DEFAULT = 0.18215                             # VQModel's default scaling_factor; no VQ model of LDM has it
EXPECTED_UNET = {"flip_sin_to_cos": True, "freq_shift": 0, "norm_eps": 1e-5, "norm_num_groups": 32, "act_fn": "silu",
                 "downsample_padding": 1, "center_input_sample": False, "class_embed_type": None, "mid_block_scale_factor": 1,
                 "resnet_time_scale_shift": "default"}
RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
          "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}      # before diffusers 0.15


def is_pipeline(folder: Path) -> bool:
    """Is this folder a diffusers pipeline?"""
    return (folder / "model_index.json").is_file()


def pipeline_params(folder: Path) -> dict[str, Any]:
    """`model.params` in the official structure; AdapterError names the first setting that this U-Net cannot express."""
    index, first = read(folder / "model_index.json"), first_stage_folder(folder)
    if index.get("unet", ["", ""])[1] != "UNet2DModel":
        raise AdapterError(f"{folder}: its unet is a {index.get('unet', ['', 'missing'])[1]}; only UNet2DModel is read")
    scheduler, vae = read(folder / "scheduler" / "scheduler_config.json"), read(first / "config.json")
    if scheduler.get("beta_schedule") != "scaled_linear":
        raise AdapterError(f"{folder}: its beta_schedule is {scheduler.get('beta_schedule')!r}; LDM's is 'scaled_linear'")
    return {"linear_start": scheduler["beta_start"], "linear_end": scheduler["beta_end"],
            "timesteps": scheduler.get("num_train_timesteps", 1000), "scale_factor": scale_factor(vae),
            "unet_config": {"params": unet_params(read(folder / "unet" / "config.json"), folder)},
            "first_stage_config": {"params": first_stage_params(vae)}, "cond_stage_config": "__is_unconditional__"}


def scale_factor(vae: dict[str, Any]) -> float:
    """What latents are multiplied by: 1 for a VQ model that carries diffusers' default, which was never meant for it.

    `VQModel.config.scaling_factor` defaults to 0.18215, and LDMPipeline divides by it since 0.22 (huggingface/diffusers #6725).
    """
    stored = float(vae.get("scaling_factor", 1.0))
    return 1.0 if "num_vq_embeddings" in vae and stored == WRONG_DEFAULT else stored


def first_stage_folder(folder: Path) -> Path:
    """vqvae/ or vae/."""
    for name in ("vqvae", "vae"):
        if (folder / name / "config.json").is_file():
            return folder / name
    raise MissingWeights(f"{folder}: has no vqvae/config.json or vae/config.json; download the whole pipeline again")


def read(file: Path) -> dict[str, Any]:
    """A JSON object, or one clear error."""
    try:
        content = json.loads(file.read_text())
    except FileNotFoundError:
        raise MissingWeights(f"{file}: missing; download the whole pipeline again") from None
    except (ValueError, OSError) as error:
        raise AdapterError(f"{file}: not readable as JSON ({error}); download it again") from error
    if not isinstance(content, dict):
        raise AdapterError(f"{file}: holds no JSON object; download it again")
    return content


def unet_params(config: dict[str, Any], where: Path) -> dict[str, Any]:
    """UNet2DModel's configuration as official U-Net arguments."""
    for key, value in EXPECTED_UNET.items():
        if config.get(key, value) != value:
            raise AdapterError(f"{where}: unet {key}={config[key]!r} is not how LDM's U-Nets are built (it is {value!r} there)")
    channels, attention = config["block_out_channels"], [t.startswith("Attn") for t in config["down_block_types"]]
    if [t.startswith("Attn") for t in reversed(config["up_block_types"])] != attention:
        raise AdapterError(f"{where}: its unet has attention at other levels on the way down than on the way up")
    if any(c % channels[0] for c in channels):
        raise AdapterError(f"{where}: block_out_channels {list(channels)} are not multiples of the first")
    head = config.get("attention_head_dim", 8)
    return {"in_channels": config["in_channels"], "out_channels": config["out_channels"], "model_channels": channels[0],
            "num_res_blocks": config["layers_per_block"], "channel_mult": [c // channels[0] for c in channels],
            "attention_resolutions": [2**i for i, has in enumerate(attention) if has], "dropout": config.get("dropout", 0.0),
            **({"num_heads": 1} if head is None else {"num_head_channels": head})}


def first_stage_params(config: dict[str, Any]) -> dict[str, Any]:
    """VQModel's or AutoencoderKL's configuration as official autoencoder arguments."""
    channels, vq = config["block_out_channels"], "num_vq_embeddings" in config
    resolution = 2 ** (len(channels) + 4)
    attention = [resolution >> i for i, t in enumerate(config["down_block_types"]) if t.startswith("Attn")]
    ddconfig = {"double_z": not vq, "z_channels": config["latent_channels"], "resolution": resolution,
                "in_channels": config["in_channels"], "out_ch": config["out_channels"], "ch": channels[0],
                "ch_mult": [c // channels[0] for c in channels], "num_res_blocks": config["layers_per_block"],
                "attn_resolutions": attention, "dropout": 0.0,
                "attn_type": "vanilla" if config.get("mid_block_add_attention", True) else "none"}
    embed = config.get("vq_embed_dim") or config["latent_channels"]
    return {"ddconfig": ddconfig, "embed_dim": embed} | ({"n_embed": config["num_vq_embeddings"]} if vq else {})


def first_stage_names(name: str, levels: int) -> str:
    """diffusers' name of an autoencoder tensor -> the official one."""
    name = re.sub(r"up_blocks\.(\d+)", lambda m: f"up.{levels - 1 - int(m[1])}", name.replace("down_blocks", "down"))
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    for theirs, ours in {"mid_block.attentions.0": "mid.attn_1", ".resnets.": ".block.", ".attentions.": ".attn.",
                         "downsamplers.0": "downsample", "upsamplers.0": "upsample", "conv_norm_out": "norm_out",
                         "conv_shortcut": "nin_shortcut", "group_norm": "norm", ".to_q.": ".q.", ".to_k.": ".k.",
                         ".to_v.": ".v.", ".to_out.0.": ".proj_out."}.items():
        name = name.replace(theirs, ours)
    return name


def unet_names(name: str, per_level: int, attention: list[bool]) -> str:
    """diffusers' name of a UNet2DModel tensor -> the official one; `attention`: which of its up blocks have any.

    q, k and v keep their own names (`...1.to_q.weight`): they become one tensor later.
    """
    top = {"conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
           "conv_norm_out": "out.0", "conv_out": "out.2"}
    stem, leaf = name.rsplit(".", 1)
    if stem in top:
        return f"{top[stem]}.{leaf}"
    match = re.fullmatch(r"(mid_block|(?:down|up)_blocks\.\d+)\.(\w+)\.(\d+)\.(.*)", stem)
    assert match is not None
    block, kind, number, rest = match.groups()
    j = int(number)
    if block == "mid_block":
        place = f"middle_block.{2 * j if kind == 'resnets' else 1}"
    else:
        i, n = int(block.split(".")[1]), per_level + 1
        if kind == "downsamplers":
            return f"input_blocks.{(i + 1) * n}.0.op.{leaf}"
        if kind == "upsamplers":
            return f"output_blocks.{i * n + per_level}.{2 if attention[i] else 1}.conv.{leaf}"
        index = f"input_blocks.{1 + i * n + j}" if block.startswith("down") else f"output_blocks.{i * n + j}"
        place = f"{index}.{0 if kind == 'resnets' else 1}"
    rest = {"group_norm": "norm", "to_out.0": "proj_out", **RESNET}.get(rest, rest)
    return f"{place}.{rest}.{leaf}"


def merge_qkv(state: dict[str, Tensor], heads: Any) -> dict[str, Tensor]:
    """Three projections [C, C] become one `qkv` [3C, C, 1] in the official order [heads][q, k, v]; `heads(C)` counts them."""
    import torch

    out = {}
    for name, tensor in state.items():
        if ".to_k." in name or ".to_v." in name:
            continue
        if ".to_q." in name:
            parts = [state[name.replace(".to_q.", f".to_{p}.")].flatten(1) if tensor.dim() > 1
                     else state[name.replace(".to_q.", f".to_{p}.")] for p in "qkv"]
            split = torch.stack([p.unflatten(0, (heads(len(p)), -1)) for p in parts], 1).flatten(0, 2)
            out[name.replace(".to_q.", ".qkv.")] = split[..., None] if tensor.dim() > 1 else split
        else:
            out[name] = tensor.flatten(1)[..., None] if name.endswith("1.proj_out.weight") else tensor
    return out


def load_pipeline(model: LatentDiffusion, folder: Path) -> str:
    """Fill a model built from `pipeline_params`, strictly; returns a sentence on what was loaded."""
    from methods.ldm.checkpoint import fill

    first, config = first_stage_folder(folder), read(folder / "unet" / "config.json")
    attention = [t.startswith("Attn") for t in config["up_block_types"]]
    raw = tensors(folder / "unet")
    unet = {unet_names(k, config["layers_per_block"], attention): v for k, v in raw.items()}
    head = config.get("attention_head_dim", 8)
    fill(model.unet, merge_qkv(unet, lambda c: 1 if head is None else c // head), f"{folder / 'unet'}")
    levels = len(read(first / "config.json")["block_out_channels"])
    own = model.first_stage_model.state_dict()
    renamed = {first_stage_names(k, levels): v for k, v in tensors(first).items()}
    shaped = {k: v.reshape(own[k].shape) if k in own and own[k].numel() == v.numel() else v for k, v in renamed.items()}
    fill(model.first_stage_model, shaped, str(first))
    return f"diffusers pipeline, {len(unet)} + {len(shaped)} tensors, latent scale {model.scale_factor:g}"


def tensors(folder: Path) -> dict[str, Tensor]:
    """The weights of one component, with attention under its present names."""
    from methods.ldm.checkpoint import read_state_dict

    for name in ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"):
        if (folder / name).is_file():
            state = read_state_dict(folder / name)
            return {rename_old(k): v for k, v in state.items()}
    raise MissingWeights(f"{folder}: has no diffusion_pytorch_model.safetensors or .bin; download the whole pipeline again")


def rename_old(name: str) -> str:
    """Attention tensors of early diffusers files under their present names."""
    for old, new in OLD_ATTENTION.items():
        name = name.replace(f".{old}.", f".{new}.")
    return name
