"""Training losses of the INFD autoencoder: L1, perceptual, codebook, and the adaptive hinge GAN."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hibench.weights import find
from methods.nn.discriminator import adaptive_weight, gradient_l1

__all__ = ["GeneratorLoss", "generator_loss", "perceptual", "psnr"]

Perceptual = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class GeneratorLoss:
    """What the encoder, decoder and renderer are trained on; `total` is what is minimised."""

    total: Tensor
    l1: Tensor
    perceptual: Tensor
    adversarial: Tensor | None                      # -mean D(fake)
    weight: Tensor | None                           # adaptive, without the constant


def generator_loss(fake: Tensor, real: Tensor, quantisation: Tensor, last_layer: Tensor, perceptual: Perceptual,
                   disc: nn.Module | None = None, gan_weight: float = 0.75, l1_weight: float = 1.0,
                   perceptual_weight: float = 1.0) -> GeneratorLoss:
    """L1 + perceptual + quantisation + gan_weight * w * (-mean D(fake)) for images [B, 3, h, w] (official models/infd.py).

    w is |grad of L1 + perceptual| / |grad of the adversarial term| at the renderer's last layer. Without `disc`, no GAN.
    """
    l1, perceived = F.l1_loss(fake, real), perceptual(fake, real)
    reconstruction = l1_weight * l1 + perceptual_weight * perceived
    total = reconstruction + quantisation
    if disc is None:
        return GeneratorLoss(total, l1, perceived, None, None)
    adversarial = -disc(fake).mean()
    weight = adaptive_weight(reconstruction, adversarial, last_layer)
    return GeneratorLoss(total + gan_weight * weight * adversarial, l1, perceived, adversarial, weight)


def psnr(fake: Tensor, real: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of images [B, 3, h, w] in [-1, 1], the mean over the batch."""
    return -10 * ((fake - real) / 2).square().flatten(1).mean(1).log10().mean()


def perceptual(device: str | torch.device) -> tuple[str, Perceptual]:
    """(name, loss): LPIPS-VGG16 when the trunk's published weights are on this machine, else a stand-in without weights.

    The stand-in is the mean absolute difference of finite differences, summed over three scales; it sees edges and texture
    amplitude, no semantics. Which one was used belongs into the training's record.
    """
    if find("vgg16") is None:
        return "gradient-l1 at 3 scales (stand-in: the weights of LPIPS-VGG16 are not here)", gradient_l1
    from hibench.metrics.pairs import lpips_network

    network, digest = lpips_network("vgg", None, str(device))
    network.requires_grad_(False)
    return f"LPIPS-VGG16 (trunk {digest[:16]})", lambda x, y: network(x, y).mean()
