"""The text encoder of text-to-image LDM, a transformer trained together with the U-Net, under its official names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.ldm.words import Tokenizer

__all__ = ["TextEncoder", "find_tokenizer", "text_context"]


class Attention(nn.Module):
    """Multi-head self-attention of tokens [B, N, C]; the heads together may be narrower than C."""

    def __init__(self, dim: int, heads: int, dim_head: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, heads * dim_head, bias=False) for _ in range(3))
        self.to_out = nn.Linear(heads * dim_head, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, C] -> [B, N, C]."""
        q, k, v = (layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.to_q, self.to_k, self.to_v))
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Linear, GELU, linear, 4 times as wide inside."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU()), nn.Identity(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, C] -> [B, N, C]."""
        return self.net(x)


class TextEncoder(nn.Module):
    """Tokens int64 [B, M] to a context [B, M, n_embed] (official `BERTEmbedder`; arXiv 2112.10752, appendix E.2.1).

    A pre-norm transformer with learnt positions. Padding is not masked, as in the official code: it is a token like others.
    The published heads are 8 of 64 channels whatever the width.
    """

    def __init__(self, n_embed: int, n_layer: int, vocab_size: int = 30_522, max_seq_len: int = 77, heads: int = 8,
                 dim_head: int = 64, **_: Any) -> None:
        super().__init__()
        self.max_seq_len = max_seq_len
        self.transformer = nn.Module()
        self.transformer.token_emb = nn.Embedding(vocab_size, n_embed)
        self.transformer.pos_emb = nn.Module()
        self.transformer.pos_emb.emb = nn.Embedding(max_seq_len, n_embed)
        layers: list[nn.Module] = []
        for _layer in range(n_layer):
            for part in (Attention(n_embed, heads, dim_head), FeedForward(n_embed)):
                layers.append(nn.ModuleList([nn.LayerNorm(n_embed), part]))
        self.transformer.attn_layers = nn.Module()
        self.transformer.attn_layers.layers = nn.ModuleList(layers)
        self.transformer.norm = nn.LayerNorm(n_embed)
        for embedding in (self.transformer.token_emb, self.transformer.pos_emb.emb):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """int64 [B, M], M <= max_seq_len -> [B, M, n_embed]."""
        net = self.transformer
        x = net.token_emb(tokens) + net.pos_emb.emb.weight[: tokens.shape[1]]
        for norm, part in net.attn_layers.layers:
            x = x + part(norm(x))
        return net.norm(x)

    @property
    def vocabulary(self) -> int:
        """Tokens that it knows."""
        return int(self.transformer.token_emb.num_embeddings)


def find_tokenizer(encoder: TextEncoder, path: Path, given: str | None, random: bool) -> Tokenizer:
    """The vocabulary `given`, or vocab.txt in the folder of the weights; random weights take words by their hash.

    Raises MissingWeights where there is none, AdapterError where it has more tokens than the encoder knows.
    """
    from hibench.errors import AdapterError

    file = Path(given).expanduser() if given is not None else (path if path.is_dir() else path.parent) / "vocab.txt"
    if random and given is None:
        return Tokenizer(None, encoder.vocabulary)
    tokenizer = Tokenizer.read(file)
    if tokenizer.size > encoder.vocabulary:
        raise AdapterError(f"{file}: has {tokenizer.size} tokens, and the text encoder knows {encoder.vocabulary}; "
                           "give the vocab.txt that it was trained with")
    return tokenizer


def text_context(encoder: TextEncoder, tokenizer: Tokenizer, prompts: Sequence[str], options: Mapping[str, Any],
                 device: str | torch.device = "cpu") -> tuple[Tensor, Tensor | None]:
    """Context [B, M, D] of the prompts, and that of the empty text under guidance."""
    tokens = tokenizer.encode(prompts, encoder.max_seq_len).to(device)
    if options["guidance"] == 1.0:
        return encoder(tokens), None
    nothing = encoder(tokenizer.encode([""], encoder.max_seq_len).to(device))
    return encoder(tokens), nothing.expand(len(prompts), -1, -1)
