"""Vector quantisation with bounded memory, and the diagonal Gaussian posterior of a KL autoencoder."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["DiagonalGaussian", "Quantized", "VectorQuantizer", "nearest_code"]

CHUNK = 1 << 24                                     # distances held at a time (64 MiB of float32)


class Quantized(NamedTuple):
    """What the quantiser returns."""

    z: Tensor                                       # [B, C, H, W], straight-through gradient
    loss: Tensor                                    # scalar: codebook + commitment
    indices: Tensor                                 # int64 [B, H, W]


def nearest_code(z: Tensor, codebook: Tensor, chunk: int = CHUNK) -> Tensor:
    """Index int64 [N] of the code [K, C] nearest to each row of z [N, C], in float32, at most `chunk` distances at a time."""
    z, codebook = z.float(), codebook.float()
    squares = codebook.square().sum(1)
    rows = max(1, chunk // len(codebook))
    parts = [torch.addmm(squares, part, codebook.T, alpha=-2).argmin(1) for part in z.split(rows)]
    return torch.cat(parts) if len(parts) > 1 else parts[0]


class VectorQuantizer(nn.Module):
    """The nearest of `n_embed` codes for each pixel (VQ-VAE, arXiv 1711.00937, as taming's VectorQuantizer2).

    loss = |sg(z_q) - z|^2 + beta |z_q - sg(z)|^2 with `legacy=True` (what the published models were trained with: beta is on
    the codebook term), else beta is on the commitment term.
    """

    def __init__(self, n_embed: int, dim: int, beta: float = 0.25, legacy: bool = True) -> None:
        super().__init__()
        self.beta = beta
        self.legacy = legacy
        self.embedding = nn.Embedding(n_embed, dim)
        nn.init.uniform_(self.embedding.weight, -1.0 / n_embed, 1.0 / n_embed)

    def indices(self, z: Tensor) -> Tensor:
        """int64 [B, H, W] of z [B, C, H, W]."""
        flat = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])
        return nearest_code(flat, self.embedding.weight).view(z.shape[0], *z.shape[2:])

    def lookup(self, indices: Tensor) -> Tensor:
        """Codes [B, C, H, W] of indices [B, H, W]."""
        return self.embedding(indices).permute(0, 3, 1, 2)

    def forward(self, z: Tensor) -> Quantized:
        """Quantise z [B, C, H, W]."""
        with torch.no_grad():
            indices = self.indices(z)
        z_q = self.lookup(indices)
        commit, codebook = F.mse_loss(z_q.detach(), z), F.mse_loss(z_q, z.detach())
        loss = commit + self.beta * codebook if self.legacy else self.beta * commit + codebook
        return Quantized(z + (z_q - z).detach(), loss, indices)

    @torch.no_grad()
    def init_from(self, z: Tensor, generator: torch.Generator | None = None) -> None:
        """Place every code on a random encoding out of z [B, C, H, W]: how to start training without dead codes."""
        flat = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1]).float()
        n = self.embedding.num_embeddings
        device = generator.device if generator is not None else flat.device
        pick = torch.randint(len(flat), (n,), generator=generator, device=device).to(flat.device)
        jitter = torch.randn(n, flat.shape[1], generator=generator, device=device).to(flat.device)
        self.embedding.weight.copy_(flat[pick] + 1e-3 * flat.std() * jitter)

    @torch.no_grad()
    def revive(self, z: Tensor, used: Tensor, generator: torch.Generator | None = None) -> int:
        """Move the codes that are unused (bool [n_embed] `used` is False) onto random encodings out of z; returns how many."""
        dead = (~used).nonzero()[:, 0]
        if len(dead):
            flat = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])
            device = generator.device if generator is not None else flat.device
            pick = torch.randint(len(flat), (len(dead),), generator=generator, device=device).to(flat.device)
            self.embedding.weight[dead] = flat[pick].to(self.embedding.weight.dtype)
        return len(dead)


class DiagonalGaussian:
    """N(mean, std^2) from moments [B, 2C, H, W]; log-variances are clamped to [-30, 20]."""

    def __init__(self, moments: Tensor) -> None:
        self.mean, logvar = moments.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)
        self.std = torch.exp(0.5 * self.logvar)

    def sample(self, noise: Tensor) -> Tensor:
        """mean + std * noise, for noise of the mean's shape."""
        return self.mean + self.std * noise

    def mode(self) -> Tensor:
        """The mean."""
        return self.mean

    def kl(self) -> Tensor:
        """KL divergence from N(0, 1), summed over all dimensions, [B]."""
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1.0 - self.logvar).sum(dim=(1, 2, 3))
