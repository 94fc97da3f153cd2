"""Attention blocks of the U-Net: self-attention over pixels, and the spatial transformer with cross-attention."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["AttentionBlock", "SpatialTransformer", "from_tokens", "to_tokens"]


def to_tokens(x: Tensor) -> Tensor:
    """Feature map [B, C, H, W] to tokens [B, H*W, C] (no copy for channels-last memory)."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def from_tokens(tokens: Tensor, height: int, width: int) -> Tensor:
    """Tokens [B, H*W, C] to a channels-last feature map [B, C, H, W] (no copy)."""
    return tokens.unflatten(1, (height, width)).permute(0, 3, 1, 2)


class AttentionBlock(nn.Module):
    """Residual self-attention over all pixels (ADM, arXiv 2105.05233).

    `new_order=False` is the layout of published checkpoints: the 3C outputs of `qkv` are [heads][q, k, v];
    `True` is [q, k, v][heads]. The scale is 1/sqrt(C / heads). Narrow maps have one channel per group of the normalisation.
    """

    def __init__(self, channels: int, heads: int, new_order: bool = False, groups: int = 32) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels do not divide into {heads} attention heads")
        self.heads = heads
        self.new_order = new_order
        self.norm = nn.GroupNorm(min(groups, channels), channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)
        for parameter in self.proj_out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        tokens = to_tokens(self.norm(x))
        qkv = F.linear(tokens, self.qkv.weight[:, :, 0], self.qkv.bias)
        if self.new_order:
            q, k, v = qkv.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        else:
            q, k, v = qkv.unflatten(2, (self.heads, 3, -1)).permute(3, 0, 2, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        out = F.linear(out, self.proj_out.weight[:, :, 0], self.proj_out.bias)
        return x + from_tokens(out, *x.shape[2:])


class CrossAttention(nn.Module):
    """Multi-head attention of tokens [B, N, C] to a context [B, M, D]; without a context, to themselves."""

    def __init__(self, dim: int, context_dim: int | None, heads: int, head_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        inner = heads * head_dim
        self.heads = heads
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_k = nn.Linear(context_dim or dim, inner, bias=False)
        self.to_v = nn.Linear(context_dim or dim, inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, dim), nn.Dropout(dropout))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """[B, N, C] -> [B, N, C]."""
        context = x if context is None else context
        q, k, v = (layer(source).unflatten(2, (self.heads, -1)).transpose(1, 2)
                   for layer, source in ((self.to_q, x), (self.to_k, context), (self.to_v, context)))
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.to_out(out)


class GEGLU(nn.Module):
    """x, gate = Wx split in two; x * gelu(gate) (arXiv 2002.05202)."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] -> [..., inner]."""
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    """The gated feed-forward part of a transformer block, 4 times as wide inside."""

    def __init__(self, dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.net = nn.Sequential(GEGLU(dim, 4 * dim), nn.Dropout(dropout), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] -> [..., dim]."""
        return self.net(x)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward, each with a pre-norm and a residual."""

    def __init__(self, dim: int, context_dim: int | None, heads: int, head_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.attn1 = CrossAttention(dim, None, heads, head_dim, dropout)
        self.ff = FeedForward(dim, dropout)
        self.attn2 = CrossAttention(dim, context_dim, heads, head_dim, dropout)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """[B, N, dim] -> [B, N, dim]."""
        x = self.attn1(self.norm1(x)) + x
        x = self.attn2(self.norm2(x), context) + x
        return self.ff(self.norm3(x)) + x


class SpatialTransformer(nn.Module):
    """Transformer blocks over the pixels of a feature map, conditioned by cross-attention (LDM, arXiv 2112.10752 §3.3)."""

    def __init__(self, channels: int, heads: int, head_dim: int, depth: int = 1, context_dim: int | None = None,
                 dropout: float = 0.0) -> None:
        super().__init__()
        inner = heads * head_dim
        self.norm = nn.GroupNorm(32, channels, eps=1e-6)
        self.proj_in = nn.Conv2d(channels, inner, 1)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(inner, context_dim, heads, head_dim, dropout) for _ in range(depth))
        self.proj_out = nn.Conv2d(inner, channels, 1)
        for parameter in self.proj_out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """[B, C, H, W] and context [B, M, D] -> [B, C, H, W]."""
        tokens = to_tokens(self.norm(x))
        tokens = F.linear(tokens, self.proj_in.weight[:, :, 0, 0], self.proj_in.bias)
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        tokens = F.linear(tokens, self.proj_out.weight[:, :, 0, 0], self.proj_out.bias)
        return x + from_tokens(tokens, *x.shape[2:])
