"""The OpenAI-style U-Net (ADM, arXiv 2105.05233) with the constructor arguments and key names of CompVis LDM and INFD."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.nn.attention import AttentionBlock, SpatialTransformer

__all__ = ["ResBlock", "UNet", "timestep_embedding"]


def timestep_embedding(t: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Sinusoidal embedding float32 [B, dim] of timesteps [B]: cosines first, then sines, frequencies max_period^(-i/half)."""
    half = dim // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t.float()[:, None] * frequencies
    embedding = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return F.pad(embedding, (0, dim % 2))


def zero(layer: nn.Conv2d) -> nn.Conv2d:
    """Set a layer's parameters to zero, so that its residual branch starts as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class Upsample(nn.Module):
    """Nearest-neighbour x2, then a 3x3 convolution unless `conv` is False."""

    def __init__(self, channels: int, conv: bool, out_channels: int | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels or channels, 3, padding=1) if conv else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', 2H, 2W]."""
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        return x if self.conv is None else self.conv(x)


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2, or a 2x2 mean when `conv` is False."""

    def __init__(self, channels: int, conv: bool, out_channels: int | None = None) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, out_channels or channels, 3, stride=2, padding=1) if conv else nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H/2, W/2]."""
        return self.op(x)


class ResBlock(nn.Module):
    """Two normalised convolutions with a time embedding between them, and a skip connection; optionally resampling."""

    def __init__(self, channels: int, emb_channels: int, dropout: float, out_channels: int, use_scale_shift_norm: bool = False,
                 resample: nn.Module | None = None) -> None:
        super().__init__()
        self.scale_shift = use_scale_shift_norm
        self.resample = resample                    # has no parameters
        self.in_layers = nn.Sequential(nn.GroupNorm(32, channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, (1 + use_scale_shift_norm) * out_channels))
        self.out_layers = nn.Sequential(nn.GroupNorm(32, out_channels), nn.SiLU(), nn.Dropout(dropout),
                                        zero(nn.Conv2d(out_channels, out_channels, 3, padding=1)))
        self.skip_connection = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """Feature map [B, C, H, W] and this block's projected embedding [B or 1, C' or 2C'] -> [B, C', H', W']."""
        h = F.silu(self.in_layers[0](x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.in_layers[2](h)
        e = e[:, :, None, None]
        if self.scale_shift:
            scale, shift = e.chunk(2, dim=1)
            h = torch.addcmul(shift, self.out_layers[0](h), 1 + scale)
        else:
            h = self.out_layers[0](h + e)
        return self.skip_connection(x) + self.out_layers[1:](h)


class Block(nn.Sequential):
    """One entry of the U-Net: residual blocks, attention and resampling, each given what it needs."""

    def forward(self, x: Tensor, embeddings: Sequence[Tensor],  # type: ignore[override]
                context: Tensor | None) -> Tensor:
        """[B, C, H, W] -> [B, C', H', W']."""
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, embeddings[layer.index])
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context)
            else:
                x = layer(x)
        return x


class UNet(nn.Module):
    """eps = UNet(x, t), with the official arguments (openaimodel.UNetModel) and parameter names.

    - `attention_resolutions` are downsampling factors, not sizes.
    - Heads: `num_head_channels` != -1 gives channels // num_head_channels heads, else `num_heads` heads everywhere
      (so that the head dimension grows with the channels); `num_heads_upsample` replaces it on the way up.
    - `use_new_attention_order=False` is the QKV layout of every published LDM and INFD checkpoint.
    - `legacy` only matters where the head count does not divide the channels, which is refused here.
    - `image_size`, `dims=2`, `use_checkpoint`, `use_fp16` are accepted for the sake of official configurations; sizes are free.

    H and W must be multiples of `self.multiple` (2^(levels-1)).
    """

    def __init__(self, image_size: int | None = None, in_channels: int = 3, model_channels: int = 128, out_channels: int = 3,
                 num_res_blocks: int = 2, attention_resolutions: Sequence[int] = (), dropout: float = 0.0,
                 channel_mult: Sequence[int] = (1, 2, 4, 8), conv_resample: bool = True, dims: int = 2,
                 num_classes: int | None = None, use_checkpoint: bool = False, use_fp16: bool = False, num_heads: int = -1,
                 num_head_channels: int = -1, num_heads_upsample: int = -1, use_scale_shift_norm: bool = False,
                 resblock_updown: bool = False, use_new_attention_order: bool = False, use_spatial_transformer: bool = False,
                 transformer_depth: int = 1, context_dim: int | Sequence[int] | None = None, n_embed: int | None = None,
                 legacy: bool = True) -> None:
        super().__init__()
        if dims != 2:
            raise ValueError(f"dims={dims}: only two-dimensional U-Nets are supported")
        if num_heads == -1 and num_head_channels == -1 and (attention_resolutions or use_spatial_transformer):
            raise ValueError("either num_heads or num_head_channels must be set")
        if context_dim is not None and not use_spatial_transformer:
            raise ValueError("context_dim needs use_spatial_transformer")
        if isinstance(context_dim, Sequence):
            context_dim = context_dim[0]
        self.model_channels = model_channels
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.multiple = 2 ** (len(channel_mult) - 1)
        emb = 4 * model_channels

        def res(channels: int, out: int, resample: nn.Module | None = None) -> ResBlock:
            return ResBlock(channels, emb, dropout, out, use_scale_shift_norm, resample)

        def attend(channels: int, up: bool = False) -> nn.Module:
            fixed = num_heads_upsample if up and num_heads_upsample != -1 and not use_spatial_transformer else num_heads
            heads = fixed if num_head_channels == -1 else channels // num_head_channels
            if not use_spatial_transformer:
                return AttentionBlock(channels, heads, use_new_attention_order)
            return SpatialTransformer(channels, heads, channels // heads, transformer_depth, context_dim)

        self.time_embed = nn.Sequential(nn.Linear(model_channels, emb), nn.SiLU(), nn.Linear(emb, emb))
        self.label_emb = None if num_classes is None else nn.Embedding(num_classes, emb)
        self.input_blocks = nn.ModuleList([Block(nn.Conv2d(in_channels, model_channels, 3, padding=1))])
        skips, ch, ds = [model_channels], model_channels, 1
        for level, mult in enumerate(channel_mult):
            for _ in range(num_res_blocks):
                layers: list[nn.Module] = [res(ch, mult * model_channels)]
                ch = mult * model_channels
                if ds in attention_resolutions:
                    layers.append(attend(ch))
                self.input_blocks.append(Block(*layers))
                skips.append(ch)
            if level != len(channel_mult) - 1:
                self.input_blocks.append(Block(res(ch, ch, Downsample(ch, False)) if resblock_updown
                                               else Downsample(ch, conv_resample)))
                skips.append(ch)
                ds *= 2
        self.middle_block = Block(res(ch, ch), attend(ch), res(ch, ch))
        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(channel_mult))):
            for i in range(num_res_blocks + 1):
                layers = [res(ch + skips.pop(), mult * model_channels)]
                ch = mult * model_channels
                if ds in attention_resolutions:
                    layers.append(attend(ch, up=True))
                if level and i == num_res_blocks:
                    layers.append(res(ch, ch, Upsample(ch, False)) if resblock_updown else Upsample(ch, conv_resample))
                    ds //= 2
                self.output_blocks.append(Block(*layers))
        self.out = nn.Sequential(nn.GroupNorm(32, ch), nn.SiLU(), zero(nn.Conv2d(model_channels, out_channels, 3, padding=1)))
        self.id_predictor = (None if n_embed is None
                             else nn.Sequential(nn.GroupNorm(32, ch), nn.Conv2d(model_channels, n_embed, 1)))
        self.res_blocks = tuple(m for m in self.modules() if isinstance(m, ResBlock))   # a tuple does not register twice
        for index, block in enumerate(self.res_blocks):
            block.index = index

    def embed(self, t: Tensor, y: Tensor | None = None) -> list[Tensor]:
        """Projected time (and class) embeddings of every residual block, [N, C_i] for timesteps [N].

        They do not depend on x: a sampler computes them once for all its steps and passes one row per step to `forward`.
        """
        if (y is None) != (self.label_emb is None):
            raise ValueError("class labels y must be given if and only if the U-Net has num_classes")
        dtype = self.time_embed[0].weight.dtype
        e = self.time_embed(timestep_embedding(t, self.model_channels).to(dtype))
        if self.label_emb is not None:
            e = e + self.label_emb(y)
        e = F.silu(e)
        return [block.emb_layers[1](e) for block in self.res_blocks]

    def forward(self, x: Tensor, t: Tensor | None = None, context: Tensor | None = None, y: Tensor | None = None, *,
                embeddings: Sequence[Tensor] | None = None, concat: Tensor | None = None, features: bool = False) -> Tensor:
        """eps [B, out_channels, H, W] of x [B, C, H, W] at timesteps t [B] (0..999).

        `embeddings` (rows of `embed`, [B or 1, C_i] each) replaces t and y; `context` [B, M, D] goes to cross-attention;
        `concat` [B, k, H, W] is appended to x. With `n_embed`, returns code-book logits [B, n_embed, H, W].
        """
        if embeddings is None:
            if t is None:
                raise ValueError("give timesteps t or precomputed embeddings")
            embeddings = self.embed(t, y)
        h = x if concat is None else torch.cat([x, concat], dim=1)
        h = h.to(self.time_embed[0].weight.dtype) if not torch.is_autocast_enabled(h.device.type) else h
        skips = []
        for block in self.input_blocks:
            h = block(h, embeddings, context)
            skips.append(h)
        h = self.middle_block(h, embeddings, context)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), embeddings, context)
        if features:
            return h
        return self.out(h) if self.id_predictor is None else self.id_predictor(h)

    @classmethod
    def from_config(cls, params: dict[str, Any]) -> "UNet":
        """From the `params` of an official yaml or JSON configuration."""
        return cls(**params)
