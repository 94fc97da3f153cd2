"""The U-Net of Patch-DM on patches: conditioned on time and position, scaled by a semantic code; official key names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.nn.attention import AttentionBlock
from methods.nn.unet import Downsample, Upsample, timestep_embedding, zero

__all__ = ["Embedding", "Modulation", "PatchUNet", "ResBlock", "position_embedding"]

POSITION_DIM = 64                                   # sinusoidal embedding of a row, and of a column, whatever the width
COUNTER = 64                                        # attention_resolutions are compared with 64, 32, ..., whatever the patch

Modulation = tuple[Tensor, Tensor]                  # weight and bias of a block's second normalisation, per patch: [N, C] each


def norm(channels: int, groups: int = 32) -> nn.GroupNorm:
    """Group normalisation, with one channel per group in maps that are narrower than that."""
    return nn.GroupNorm(min(groups, channels), channels)


def position_embedding(where: Tensor) -> Tensor:
    """(row, column) [N, 2] to sinusoids [N, 128], the row's first."""
    return timestep_embedding(where.flatten(), POSITION_DIM).view(len(where), 2 * POSITION_DIM)


def modulated_norm(h: Tensor, layer: nn.GroupNorm, weight: Tensor, bias: Tensor) -> Tensor:
    """Group normalisation of [N, C, H, W] with a weight and a bias [N, C] for each patch.

    One pass instead of three: the patches are laid side by side as channels, whose groups are then normalised as ever.
    """
    beside = h.reshape(1, -1, *h.shape[2:])
    return F.group_norm(beside, len(h) * layer.num_groups, weight.reshape(-1), bias.reshape(-1), layer.eps).view(h.shape)


class Embedding(nn.Module):
    """Time and position to half an embedding each, before the activation that every residual block applies."""

    def __init__(self, time_channels: int, embed_channels: int) -> None:
        super().__init__()
        half = embed_channels // 2

        def mlp(channels: int) -> nn.Sequential:
            return nn.Sequential(nn.Linear(channels, half), nn.SiLU(), nn.Linear(half, half))

        self.time_channels = time_channels
        self.time_embed = mlp(time_channels)
        self.pos_embed = mlp(2 * POSITION_DIM)

    def time(self, t: Tensor) -> Tensor:
        """Timesteps [N] to [N, E/2]."""
        return self.time_embed(timestep_embedding(t, self.time_channels).to(self.time_embed[0].weight.dtype))

    def position(self, where: Tensor, keep: Tensor | None = None) -> Tensor:
        """Positions [N, 2] to [N, E/2]; where `keep` [N] is 0, the sinusoids are zero."""
        sinusoids = position_embedding(where)
        if keep is not None:
            sinusoids = sinusoids * keep[:, None]
        return self.pos_embed(sinusoids.to(self.pos_embed[0].weight.dtype))


class ResBlock(nn.Module):
    """Two normalised convolutions; after the second normalisation time and position scale and shift, and the code scales.

    Without `embed_channels` (the semantic encoder, which knows no time) it has the first convolution only.
    """

    def __init__(self, channels: int, out_channels: int, embed_channels: int | None = None, cond_channels: int | None = None,
                 dropout: float = 0.0, resample: nn.Module | None = None, groups: int = 32) -> None:
        super().__init__()
        self.resample = resample                    # has no parameters
        self.in_layers = nn.Sequential(norm(channels, groups), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1))
        self.out_layers: Any = None                 # nn.Sequential where there is an embedding
        if embed_channels is not None:
            self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embed_channels, 2 * out_channels))
            if cond_channels is not None:
                self.cond_emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(cond_channels, out_channels))
            self.out_layers = nn.Sequential(norm(out_channels, groups), nn.SiLU(), nn.Dropout(dropout),
                                            zero(nn.Conv2d(out_channels, out_channels, 3, padding=1)))
        self.skip_connection = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def modulation(self, embedding: Tensor, cond: Tensor) -> Modulation:
        """(norm(h) (1 + scale_t) + shift_t) (1 + scale_code) as one weight and one bias, of SiLU-ed [N, E] and [N, D]."""
        scale, shift = self.emb_layers[1](embedding).chunk(2, dim=1)
        code = 1 + self.cond_emb_layers[1](cond)
        scale, second = (1 + scale) * code, self.out_layers[0]
        return second.weight * scale, torch.addcmul(shift * code, second.bias, scale)

    def forward(self, x: Tensor, modulation: Modulation | None = None) -> Tensor:
        """[N, C, H, W] -> [N, C', H', W']."""
        h = F.silu(self.in_layers[0](x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.in_layers[2](h)
        if self.out_layers is not None:
            assert modulation is not None
            h = self.out_layers[1:](modulated_norm(h, self.out_layers[0], *modulation))
        return self.skip_connection(x) + h


class Block(nn.Sequential):
    """One entry of the network: residual blocks, attention and resampling, each given what it needs."""

    def forward(self, x: Tensor, modulations: Sequence[Modulation] | None = None) -> Tensor:
        """[N, C, H, W] -> [N, C', H', W']; `modulations` is indexed by residual block."""
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, None if modulations is None else modulations[layer.index])
            else:
                x = layer(x)
        return x


class PatchUNet(nn.Module):
    """eps of patches, in two halves: `encode` works on the patches of the padded image, `decode` on tiles of the image.

    Constructor arguments have their official names (BeatGANsAutoencConfig); `attention_resolutions` are compared with a counter
    that starts at 64 at the finest level, whatever the size of a patch. `norm_groups` is ours: with the official 32, maps of 32
    channels are normalised channel by channel, and the mean colour of a patch can hardly pass. `encoder` and `latent_net` hold
    the semantic encoder (or the table of codes) and the prior, where there are any.
    """

    def __init__(self, model_channels: int = 64, channel_mult: Sequence[int] = (1, 2, 4, 8), num_res_blocks: int = 2,
                 attention_resolutions: Sequence[int] = (16,), embed_channels: int = 512, dropout: float = 0.0,
                 in_channels: int = 3, out_channels: int = 3, num_heads: int = 1, num_head_channels: int = -1,
                 num_heads_upsample: int = -1, resblock_updown: bool = True, conv_resample: bool = True,
                 use_new_attention_order: bool = False, time_embed_channels: int | None = None,
                 norm_groups: int = 32) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.code_channels = in_channels, out_channels, embed_channels
        self.multiple = 2 ** len(channel_mult)      # a patch is a multiple of this: its lowest map is cut in half
        channels = model_channels

        def res(c: int, out: int, resample: nn.Module | None = None) -> ResBlock:
            return ResBlock(c, out, embed_channels, embed_channels, dropout, resample, norm_groups)

        def attend(c: int, up: bool = False) -> AttentionBlock:
            heads = num_heads_upsample if up and num_heads_upsample != -1 else num_heads
            return AttentionBlock(c, heads if num_head_channels == -1 else c // num_head_channels, use_new_attention_order,
                                  norm_groups)

        def down(c: int) -> nn.Module:
            return res(c, c, Downsample(c, False)) if resblock_updown else Downsample(c, conv_resample)

        def up(c: int) -> nn.Module:
            return res(c, c, Upsample(c, False)) if resblock_updown else Upsample(c, conv_resample)

        self.time_embed = Embedding(time_embed_channels or model_channels, embed_channels)
        self.input_blocks = nn.ModuleList([Block(nn.Conv2d(in_channels, channels, 3, padding=1))])
        skips, ch, counter = [channels], channels, COUNTER
        for level, mult in enumerate(channel_mult):
            for _ in range(num_res_blocks):
                layers: list[nn.Module] = [res(ch, mult * channels)]
                ch = mult * channels
                if counter in attention_resolutions:
                    layers.append(attend(ch))
                self.input_blocks.append(Block(*layers))
                skips.append(ch)
            if level != len(channel_mult) - 1:
                self.input_blocks.append(Block(down(ch)))
                skips.append(ch)
                counter //= 2
        self.middle_block = Block(res(ch, ch), attend(ch), res(ch, ch))
        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(channel_mult))):
            for i in range(num_res_blocks + 1):
                layers = [res(ch + skips.pop(), mult * channels)]
                ch = mult * channels
                if counter in attention_resolutions:
                    layers.append(attend(ch, up=True))
                if level and i == num_res_blocks:
                    layers.append(up(ch))
                    counter *= 2
                self.output_blocks.append(Block(*layers))
        self.out = nn.Sequential(norm(ch, norm_groups), nn.SiLU(), zero(nn.Conv2d(ch, out_channels, 3, padding=1)))
        self.res_blocks = tuple(m for m in self.modules() if isinstance(m, ResBlock))   # a tuple does not register twice
        for index, block in enumerate(self.res_blocks):
            block.index = index
        self.encoder_blocks = sum(isinstance(m, ResBlock) for part in (self.input_blocks, self.middle_block)
                                  for m in part.modules())
        self.encoder: nn.Module | None = None
        self.latent_net: nn.Module | None = None

    def modulations(self, time: Tensor, position: Tensor, cond: Tensor) -> list[Modulation]:
        """Scale and shift of every residual block for time and position embeddings [N, E/2] and codes [N, D]."""
        embedding, cond = F.silu(torch.cat([time, position], dim=1)), F.silu(cond)
        return [block.modulation(embedding, cond) for block in self.res_blocks]

    def encode(self, x: Tensor, modulations: Sequence[Modulation]) -> tuple[Tensor, list[Tensor]]:
        """Patches [N, 3, p, p] to the middle block's output and the skips, the finest first."""
        h, skips = x, []
        for block in self.input_blocks:
            h = block(h, modulations)
            skips.append(h)
        return self.middle_block(h, modulations), skips

    def decode(self, h: Tensor, skips: list[Tensor], modulations: Sequence[Modulation],
               join: Callable[[Tensor, Tensor], Tensor] | None = None) -> Tensor:
        """eps [N, 3, p, p]; `join(h, skip)` is what enters each output block (None = their channels concatenated).

        `skips` is emptied on the way, so that each one is freed when it has been used.
        """
        for block in self.output_blocks:
            skip = skips.pop()
            h = block(torch.cat([h, skip], dim=1) if join is None else join(h, skip), modulations)
        return self.out[2](F.silu(self.out[0](h)))

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "PatchUNet":
        """From an official BeatGANsAutoencConfig; what does not concern the U-Net is left out."""
        import inspect

        known = inspect.signature(cls).parameters
        return cls(**{k: v for k, v in config.items() if k in known})
