"""The autoencoders of latent diffusion (VQ and KL), with the configuration and key names of CompVis LDM and INFD."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.nn.attention import from_tokens, to_tokens
from methods.nn.quantize import DiagonalGaussian, VectorQuantizer

__all__ = ["AutoencoderKL", "Decoder", "Encoder", "VQModel", "build_first_stage"]


def norm(channels: int) -> nn.GroupNorm:
    """Group normalisation with 32 groups and eps 1e-6."""
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    """norm-swish-conv twice, with a 1x1 shortcut where the channels change."""

    def __init__(self, channels: int, out_channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = norm(channels)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm2 = norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = None if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H, W]."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class AttnBlock(nn.Module):
    """Single-head self-attention over all pixels, with 1x1 convolutions as projections."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        tokens = to_tokens(self.norm(x))[:, None]                   # one head
        q, k, v = (F.linear(tokens, layer.weight[:, :, 0, 0], layer.bias) for layer in (self.q, self.k, self.v))
        out = F.scaled_dot_product_attention(q, k, v)[:, 0]
        out = F.linear(out, self.proj_out.weight[:, :, 0, 0], self.proj_out.bias)
        return x + from_tokens(out, *x.shape[2:])


def attention(channels: int, attn_type: str) -> nn.Module:
    """An attention block, or nothing for `attn_type="none"` (the vq-f4-noattn model)."""
    if attn_type not in ("vanilla", "none"):
        raise ValueError(f"attn_type '{attn_type}' is not supported: use 'vanilla' or 'none'")
    return AttnBlock(channels) if attn_type == "vanilla" else nn.Identity()


class Downsample(nn.Module):
    """Zero-pad right and bottom by one, then a 3x3 convolution of stride 2 (or a 2x2 mean)."""

    def __init__(self, channels: int, conv: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2) if conv else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H/2, W/2]."""
        return F.avg_pool2d(x, 2) if self.conv is None else self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest-neighbour x2, then a 3x3 convolution (or none)."""

    def __init__(self, channels: int, conv: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if conv else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, 2H, 2W]."""
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        return x if self.conv is None else self.conv(x)


def middle(channels: int, attn_type: str, dropout: float) -> nn.Module:
    """block_1, attn_1, block_2 at the lowest resolution."""
    mid = nn.Module()
    mid.block_1 = ResnetBlock(channels, channels, dropout)
    mid.attn_1 = attention(channels, attn_type)
    mid.block_2 = ResnetBlock(channels, channels, dropout)
    return mid


def run_middle(mid: nn.Module, h: Tensor) -> Tensor:
    """Apply what `middle` built."""
    return mid.block_2(mid.attn_1(mid.block_1(h)))


def run_level(level: nn.Module, h: Tensor) -> Tensor:
    """Apply the residual and attention blocks of one resolution."""
    for i, block in enumerate(level.block):
        h = block(h)
        if len(level.attn):
            h = level.attn[i](h)
    return h


class Encoder(nn.Module):
    """Images [B, in_channels, H, W] to moments or latents [B, z_channels (x2 with double_z), H/f, W/f], f = 2^(levels-1).

    `attn_resolutions` are sizes at the training `resolution`, as in the official configurations.
    """

    def __init__(self, *, ch: int, ch_mult: Sequence[int] = (1, 2, 4, 8), num_res_blocks: int, attn_resolutions: Sequence[int],
                 in_channels: int, resolution: int, z_channels: int, double_z: bool = True, dropout: float = 0.0,
                 resamp_with_conv: bool = True, attn_type: str = "vanilla", **_: Any) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, ch, 3, padding=1)
        self.down = nn.ModuleList()
        current, size = ch, resolution
        for i, mult in enumerate(ch_mult):
            level = nn.Module()
            level.block, level.attn = nn.ModuleList(), nn.ModuleList()
            for _block in range(num_res_blocks):
                level.block.append(ResnetBlock(current, ch * mult, dropout))
                current = ch * mult
                if size in attn_resolutions:
                    level.attn.append(attention(current, attn_type))
            if i != len(ch_mult) - 1:
                level.downsample = Downsample(current, resamp_with_conv)
                size //= 2
            self.down.append(level)
        self.mid = middle(current, attn_type, dropout)
        self.norm_out = norm(current)
        self.conv_out = nn.Conv2d(current, 2 * z_channels if double_z else z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, z, H/f, W/f]."""
        h = self.conv_in(x)
        for level in self.down:
            h = run_level(level, h)
            if hasattr(level, "downsample"):
                h = level.downsample(h)
        h = run_middle(self.mid, h)
        return self.conv_out(F.silu(self.norm_out(h)))


class Decoder(nn.Module):
    """Latents [B, z_channels, h, w] to images [B, out_ch, f*h, f*w].

    `features` stops before the output head (norm_out, swish, conv_out); with `give_pre_end=True` there is no head, and
    `forward` returns the feature map [B, ch * ch_mult[0], f*h, f*w] (what INFD's renderer takes).
    """

    def __init__(self, *, ch: int, out_ch: int = 3, ch_mult: Sequence[int] = (1, 2, 4, 8), num_res_blocks: int,
                 attn_resolutions: Sequence[int], resolution: int, z_channels: int, dropout: float = 0.0,
                 resamp_with_conv: bool = True, give_pre_end: bool = False, tanh_out: bool = False, attn_type: str = "vanilla",
                 **_: Any) -> None:
        super().__init__()
        self.tanh_out = tanh_out
        current, size = ch * ch_mult[-1], resolution // 2 ** (len(ch_mult) - 1)
        self.conv_in = nn.Conv2d(z_channels, current, 3, padding=1)
        self.mid = middle(current, attn_type, dropout)
        levels: list[nn.Module] = []
        for i, mult in reversed(list(enumerate(ch_mult))):
            level = nn.Module()
            level.block, level.attn = nn.ModuleList(), nn.ModuleList()
            for _block in range(num_res_blocks + 1):
                level.block.append(ResnetBlock(current, ch * mult, dropout))
                current = ch * mult
                if size in attn_resolutions:
                    level.attn.append(attention(current, attn_type))
            if i:
                level.upsample = Upsample(current, resamp_with_conv)
                size *= 2
            levels.insert(0, level)
        self.up = nn.ModuleList(levels)
        self.channels = current                             # of the feature map
        self.norm_out = None if give_pre_end else norm(current)
        self.conv_out = None if give_pre_end else nn.Conv2d(current, out_ch, 3, padding=1)

    def features(self, z: Tensor) -> Tensor:
        """Latents [B, z_channels, h, w] -> feature map [B, channels, f*h, f*w], before the output head."""
        h = run_middle(self.mid, self.conv_in(z))
        for level in reversed(self.up):
            h = run_level(level, h)
            if hasattr(level, "upsample"):
                h = level.upsample(h)
        return h

    def head(self, h: Tensor) -> Tensor:
        """Feature map -> image."""
        if self.norm_out is None or self.conv_out is None:
            raise ValueError("this decoder was built without an output head (give_pre_end)")
        h = self.conv_out(F.silu(self.norm_out(h)))
        return torch.tanh(h) if self.tanh_out else h

    def forward(self, z: Tensor) -> Tensor:
        """Latents -> image, or -> feature map where there is no head."""
        h = self.features(z)
        return h if self.conv_out is None else self.head(h)


class FirstStage(nn.Module):
    """What the two autoencoders share."""

    encoder: Encoder
    decoder: Decoder
    post_quant_conv: nn.Conv2d
    quantises = False                                       # decode() quantises

    def __init__(self, ddconfig: dict[str, Any], embed_dim: int, moments: int) -> None:
        super().__init__()
        z = ddconfig["z_channels"]
        self.embed_dim = embed_dim
        self.factor = 2 ** (len(ddconfig["ch_mult"]) - 1)   # pixels per latent
        self.encoder = Encoder(**ddconfig)
        self.decoder = Decoder(**ddconfig)
        self.quant_conv = nn.Conv2d(moments * z, moments * embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, z, 1)

    @property
    def last_layer(self) -> Tensor:
        """The weight with respect to which VQGAN's adaptive discriminator weight is taken."""
        if self.decoder.conv_out is None:
            raise ValueError("this decoder has no output head")
        return self.decoder.conv_out.weight


class VQModel(FirstStage):
    """VQ-regularised autoencoder (official `VQModelInterface`): `encode` stops before quantisation, `decode` quantises."""

    quantises = True

    def __init__(self, ddconfig: dict[str, Any], n_embed: int, embed_dim: int, beta: float = 0.25) -> None:
        super().__init__(ddconfig, embed_dim, 2 if ddconfig.get("double_z") else 1)
        self.quantize = VectorQuantizer(n_embed, embed_dim, beta)
        if ddconfig.get("double_z"):
            raise ValueError("a VQ autoencoder needs double_z=False")

    def encode(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] -> latents before quantisation [B, embed_dim, H/f, W/f]."""
        return self.quant_conv(self.encoder(x))

    def codes(self, z: Tensor) -> Tensor:
        """Quantised latents, without gradient bookkeeping."""
        return self.quantize.lookup(self.quantize.indices(z)).to(z.dtype)

    def decode(self, z: Tensor, force_not_quantize: bool = False) -> Tensor:
        """Latents -> images [B, 3, f*h, f*w], unclamped; quantises first."""
        return self.decoder(self.post_quant_conv(z if force_not_quantize else self.codes(z)))

    def decode_features(self, z: Tensor, force_not_quantize: bool = False) -> Tensor:
        """Latents -> the decoder's feature map before its output head; quantises first."""
        return self.decoder.features(self.post_quant_conv(z if force_not_quantize else self.codes(z)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For training: (reconstruction [B, 3, H, W], codebook loss, indices int64 [B, h, w])."""
        z_q, loss, indices = self.quantize(self.encode(x))
        return self.decoder(self.post_quant_conv(z_q)), loss, indices


class AutoencoderKL(FirstStage):
    """KL-regularised autoencoder: `encode` gives the posterior."""

    def __init__(self, ddconfig: dict[str, Any], embed_dim: int) -> None:
        if not ddconfig.get("double_z", True):
            raise ValueError("a KL autoencoder needs double_z=True")
        super().__init__(ddconfig, embed_dim, 2)

    def encode(self, x: Tensor) -> DiagonalGaussian:
        """Images [B, 3, H, W] in [-1, 1] -> posterior over latents [B, embed_dim, H/f, W/f]."""
        return DiagonalGaussian(self.quant_conv(self.encoder(x)))

    def decode(self, z: Tensor) -> Tensor:
        """Latents -> images [B, 3, f*h, f*w], unclamped."""
        return self.decoder(self.post_quant_conv(z))

    def decode_features(self, z: Tensor) -> Tensor:
        """Latents -> the decoder's feature map before its output head."""
        return self.decoder.features(self.post_quant_conv(z))

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, DiagonalGaussian]:
        """For training: (reconstruction of a posterior sample, posterior)."""
        posterior = self.encode(x)
        return self.decode(posterior.sample(noise)), posterior


def build_first_stage(config: dict[str, Any]) -> VQModel | AutoencoderKL:
    """From an official `first_stage_config` ({"target": ..., "params": {...}}); VQ or KL by whether it has `n_embed`."""
    params = config["params"]
    if "n_embed" in params:
        return VQModel(params["ddconfig"], params["n_embed"], params["embed_dim"])
    return AutoencoderKL(params["ddconfig"], params["embed_dim"])
