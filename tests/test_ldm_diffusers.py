"""LDM pipelines in diffusers' folder format: the same images as diffusers' own modules, and the traps of the format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hibench.adapter import seeded_noise, to_uint8
from hibench.errors import AdapterError, MissingWeights
from methods.ldm import LDM, diffusers_format
from methods.ldm.model import randomise

AXES = {"height": 32, "width": 48, "steps": 5, "sparsity": 0.0}


def make_pipeline(folder: Path, vq: bool, in_channels: int = 3, **unet) -> tuple:
    import diffusers

    net = diffusers.UNet2DModel(**{
        "sample_size": 16, "in_channels": in_channels, "out_channels": 3, "block_out_channels": (32, 64, 64),
        "layers_per_block": 1, "attention_head_dim": 16, "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"), "norm_eps": 1e-5, "downsample_padding": 1,
        "flip_sin_to_cos": True, "freq_shift": 0, **unet})
    blocks = {"block_out_channels": (32, 64), "down_block_types": ("DownEncoderBlock2D",) * 2, "latent_channels": 3,
              "up_block_types": ("UpDecoderBlock2D",) * 2, "layers_per_block": 1}
    first = diffusers.VQModel(**blocks, num_vq_embeddings=32) if vq else diffusers.AutoencoderKL(**blocks, scaling_factor=0.5)
    scheduler = diffusers.DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.0015, beta_end=0.0195, steps_offset=1,
                                        set_alpha_to_one=False, clip_sample=False)
    for name, module in (("unet", net), ("vqvae" if vq else "vae", first)):
        randomise(module)
        module.eval().save_pretrained(folder / name)
    scheduler.save_pretrained(folder / "scheduler")
    index = {"_class_name": "LDMPipeline", "unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDIMScheduler"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return net, first, scheduler


def theirs(net, first, scheduler, scale: float) -> torch.Tensor:
    """What LDMPipeline computes, with the right latent scale."""
    scheduler.set_timesteps(5)
    z = seeded_noise((3, 16, 24), [4])
    with torch.inference_mode():
        for t in scheduler.timesteps:
            z = scheduler.step(net(z, t).sample, t, z).prev_sample
        return to_uint8(first.decode(z / scale).sample)[0]


@pytest.mark.parametrize("vq", [True, False])
def test_a_pipeline_folder_gives_the_images_of_diffusers(tmp_path: Path, vq: bool) -> None:
    parts = make_pipeline(tmp_path, vq)
    ldm = LDM(str(tmp_path))
    assert ldm.supports(AXES) is None
    image = ldm.generate((32, 48), 4, steps=5)
    scale = 1.0 if vq else 0.5
    assert f"latent scale {scale:g}" in ldm.loaded
    difference = (image.int() - theirs(*parts, scale).int()).abs()
    assert difference.float().mean() < 0.05
    assert ldm.weights_digest() != LDM("random", {"config": "tiny"}).weights_digest()
    if vq:
        stored = json.loads((tmp_path / "vqvae" / "config.json").read_text())["scaling_factor"]
        assert stored == 0.18215                    # the trap: diffusers wrote it, and it must not be used


def test_early_attention_names_are_understood(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    make_pipeline(tmp_path, True)
    before = LDM(str(tmp_path)).generate((32, 48), 0, steps=2)
    for part in ("unet", "vqvae"):
        file = tmp_path / part / "diffusion_pytorch_model.safetensors"
        state = load_file(file)
        for old, new in diffusers_format.OLD_ATTENTION.items():
            state = {k.replace(f".{new}.", f".{old}."): v for k, v in state.items()}
        save_file(state, file)
    assert torch.equal(LDM(str(tmp_path)).generate((32, 48), 0, steps=2), before)


def test_super_resolution_pipelines_need_an_image(tmp_path: Path) -> None:
    make_pipeline(tmp_path, True, in_channels=6)
    assert "needs an image" in LDM(str(tmp_path)).supports(AXES)


@pytest.mark.parametrize(("file", "change", "error", "message"), [
    ("unet/config.json", {"freq_shift": 1}, AdapterError, "freq_shift=1 is not how LDM's U-Nets are built"),
    ("unet/config.json", {"up_block_types": ["UpBlock2D"] * 3}, AdapterError, "attention at other levels"),
    ("unet/config.json", {"block_out_channels": [32, 48, 64]}, AdapterError, "not multiples of the first"),
    ("scheduler/scheduler_config.json", {"beta_schedule": "linear"}, AdapterError, "its beta_schedule is 'linear'"),
    ("model_index.json", {"unet": ["diffusers", "UNet2DConditionModel"]}, AdapterError, "only UNet2DModel is read"),
    ("vqvae/config.json", None, MissingWeights, "no vqvae/config.json"),
    ("unet/diffusion_pytorch_model.safetensors", None, MissingWeights, "no diffusion_pytorch_model"),
    ("unet/config.json", "{", AdapterError, "not readable as JSON"),
])
def test_unusable_folders_say_why(tmp_path: Path, file: str, change, error: type, message: str) -> None:
    make_pipeline(tmp_path, True)
    path = tmp_path / file
    if change is None:
        path.unlink()
    elif isinstance(change, str):
        path.write_text(change)
    else:
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(error, match=message):
        LDM(str(tmp_path)).load()


def test_all_names_exist() -> None:
    assert all(hasattr(diffusers_format, name) for name in diffusers_format.__all__)
