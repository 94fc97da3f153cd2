"""The patch discriminator and the losses of VQGAN (Esser et al. 2021), as LDM and INFD train their first stages with them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["NLayerDiscriminator", "adaptive_weight", "gradient_l1", "hinge_loss"]


class NLayerDiscriminator(nn.Module):
    """PatchGAN (Isola et al. 2017) with batch norm and the official key names `main.*`: [B, 3, H, W] to logits [B, 1, h, w]."""

    def __init__(self, input_nc: int = 3, ndf: int = 64, n_layers: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(input_nc, ndf, 4, 2, 1), nn.LeakyReLU(0.2, True)]
        width = ndf
        for n in range(1, n_layers + 1):
            following = ndf * min(2**n, 8)
            layers += [
                nn.Conv2d(width, following, 4, 2 if n < n_layers else 1, 1, bias=False),
                nn.BatchNorm2d(following),
                nn.LeakyReLU(0.2, True),
            ]
            width = following
        self.main = nn.Sequential(*layers, nn.Conv2d(width, 1, 4, 1, 1))
        for module in self.main:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Patch logits."""
        return self.main(x)


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Discriminator's hinge loss: ½ (mean relu(1 − real) + mean relu(1 + fake))."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """λ = |∇ reconstruction| / (|∇ adversarial| + 1e-4) at the decoder's last layer, at most 1e4, detached (VQGAN eq. 7)."""
    (g_rec,) = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)
    (g_adv,) = torch.autograd.grad(adversarial, last_layer, retain_graph=True)
    return (g_rec.norm() / (g_adv.norm() + 1e-4)).clamp(0.0, 1e4).detach()


def gradient_l1(x: Tensor, y: Tensor, scales: int = 3) -> Tensor:
    """Mean absolute difference of the finite differences of two images [B, C, H, W], summed over halved scales.

    Stands where the papers have LPIPS: perceptual networks cannot be had without a download.
    """
    total = x.new_zeros(())
    for scale in range(scales):
        if scale:
            x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
        d = x - y
        total = total + d.diff(dim=-1).abs().mean() + d.diff(dim=-2).abs().mean()
    return total
