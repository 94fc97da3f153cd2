"""Where semantic codes come from: a convolutional encoder of whole images, or a table with a row per training image."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from methods.nn.attention import AttentionBlock
from methods.nn.unet import Downsample
from methods.patch_dm.unet import Block, ResBlock, norm

__all__ = ["CodeTable", "SemanticEncoder"]


class SemanticEncoder(nn.Module):
    """Images [B, 3, H, W] in [-1, 1] to codes [B, D] (BeatGANsEncoderModel; the downward half of a U-Net that knows no time).

    `attention_resolutions` are compared with a counter that starts at `image_size`. Ours are `input_size`, the
    height of the images it reads (larger ones are averaged down to it first; None = as they come), and `pool_size`: the code is
    a linear map of the last feature map averaged to that many rows and columns. The official mean of all of it (1) keeps little
    of where things are unless training is very long.
    """

    def __init__(self, image_size: int = 256, in_channels: int = 3, model_channels: int = 64, out_channels: int = 512,
                 num_res_blocks: int = 2, attention_resolutions: Sequence[int] = (16,), dropout: float = 0.0,
                 channel_mult: Sequence[int] = (1, 2, 4, 8, 8), num_heads: int = 1, num_head_channels: int = -1,
                 resblock_updown: bool = True, conv_resample: bool = True, use_new_attention_order: bool = False,
                 input_size: int | None = None, pool_size: int = 1, norm_groups: int = 32) -> None:
        super().__init__()
        self.input_size = input_size

        def attend(c: int) -> AttentionBlock:
            return AttentionBlock(c, num_heads if num_head_channels == -1 else c // num_head_channels, use_new_attention_order,
                                  norm_groups)

        ch, counter = channel_mult[0] * model_channels, image_size
        self.input_blocks = nn.ModuleList([Block(nn.Conv2d(in_channels, ch, 3, padding=1))])
        for level, mult in enumerate(channel_mult):
            for _ in range(num_res_blocks):
                layers: list[nn.Module] = [ResBlock(ch, mult * model_channels, dropout=dropout, groups=norm_groups)]
                ch = mult * model_channels
                if counter in attention_resolutions:
                    layers.append(attend(ch))
                self.input_blocks.append(Block(*layers))
            if level != len(channel_mult) - 1:
                half: nn.Module = Downsample(ch, conv_resample and not resblock_updown)
                if resblock_updown:
                    half = ResBlock(ch, ch, resample=half, groups=norm_groups)
                self.input_blocks.append(Block(half))
                counter //= 2
        self.middle_block = Block(ResBlock(ch, ch, dropout=dropout, groups=norm_groups), attend(ch),
                                  ResBlock(ch, ch, dropout=dropout, groups=norm_groups))
        self.out = nn.Sequential(norm(ch, norm_groups), nn.SiLU(), nn.AdaptiveAvgPool2d(pool_size),
                                 nn.Conv2d(ch, out_channels, pool_size), nn.Flatten())

    def features(self, images: Tensor) -> Tensor:
        """The last feature map [B, C, h, w]."""
        if self.input_size is not None and images.shape[2] > self.input_size:
            images = F.avg_pool2d(images, images.shape[2] // self.input_size)
        h = images.to(self.out[3].weight.dtype)
        for block in self.input_blocks:
            h = block(h)
        return self.middle_block(h)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D]."""
        return self.out(self.features(images))

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "SemanticEncoder":
        """From an official BeatGANsEncoderConfig; `out_hid_channels` and the rest of its unused fields are left out."""
        known = inspect.signature(cls).parameters
        return cls(**{k: v for k, v in config.items() if k in known})


class CodeTable(nn.Module):
    """A trainable code per training image, which starts as its CLIP image feature (un-normalised, ViT-B/16 in the paper).

    The official code halves its gradient for LHQ (`gradient_scale` 0.5).
    """

    def __init__(self, rows: int, channels: int, gradient_scale: float = 1.0) -> None:
        super().__init__()
        self.semantic_enc = nn.Embedding(rows, channels)
        self.gradient_scale = gradient_scale

    def forward(self, index: Tensor) -> Tensor:
        """Rows int64 [B] -> codes [B, D]."""
        codes = self.semantic_enc(index)
        if self.gradient_scale == 1.0 or not codes.requires_grad:
            return codes
        return codes * self.gradient_scale + codes.detach() * (1 - self.gradient_scale)
