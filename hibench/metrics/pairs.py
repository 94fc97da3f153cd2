"""Distances between two images of one size: PSNR, SSIM and LPIPS, for reconstruction, drift and scale consistency."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hibench.errors import SpecError

if TYPE_CHECKING:
    import torch

__all__ = ["lpips_distance", "lpips_network", "psnr", "ssim"]

TRUNKS = {"alex": "alexnet", "vgg": "vgg16"}


def _same(a: "torch.Tensor", b: "torch.Tensor", name: str) -> None:
    if a.shape != b.shape or a.ndim != 4:
        raise SpecError(f"{name}: images must be pairs of one size, got {tuple(a.shape)} and {tuple(b.shape)}")


def psnr(a: "torch.Tensor", b: "torch.Tensor") -> "torch.Tensor":
    """10 log₁₀(255²/MSE) per image in dB, over all channels: [B, 3, H, W] in grey levels → [B]; equal images give infinity."""
    import torch

    _same(a, b, "psnr")
    return 10 * torch.log10(255.0**2 / (a.double() - b.double()).square().mean((1, 2, 3)))


def ssim(a: "torch.Tensor", b: "torch.Tensor") -> "torch.Tensor":
    """SSIM (Wang et al. 2004): 11 × 11 Gaussian, σ = 1.5, K = (0.01, 0.03), data range 255, valid windows, mean over RGB.

    [B, 3, H, W] in grey levels → [B]; raises SpecError below 11 px.
    """
    import torch
    import torch.nn.functional as F

    _same(a, b, "ssim")
    if min(a.shape[-2:]) < 11:
        raise SpecError(f"ssim: {a.shape[-1]}x{a.shape[-2]} px is smaller than its 11 px window")
    offset = torch.arange(11, dtype=torch.float64, device=a.device) - 5
    g = torch.exp(-offset.square() / (2 * 1.5**2))
    g = g / g.sum()

    def blur(x: torch.Tensor) -> torch.Tensor:
        flat = x.reshape(-1, 1, *x.shape[-2:])
        return F.conv2d(F.conv2d(flat, g.view(1, 1, 11, 1)), g.view(1, 1, 1, 11))

    x, y = a.double(), b.double()
    mx, my = blur(x), blur(y)
    vx, vy, vxy = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    index = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return index.mean((1, 2, 3)).view(len(a), -1).mean(1)


@lru_cache(maxsize=4)
def lpips_network(net: str = "alex", weights: str | None = None, device: str = "cpu") -> tuple[Any, str]:
    """The lpips package's network with its own linear heads and the trunk from a torchvision file; and the trunk's SHA-256.

    `weights`: a trunk file (None = the published one, MissingWeights without it). Never downloads.
    """
    import warnings

    import lpips

    from hibench.weights import check_state, read_state, resolve

    if net not in TRUNKS:
        raise SpecError(f"lpips: unknown network '{net}'; known: {', '.join(TRUNKS)}")
    found = resolve(TRUNKS[net], weights, user="lpips" if net == "alex" else "psim")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision's deprecated arguments inside lpips
        model = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    state = read_state(Path(found.path), "lpips")
    trunk = model.net.state_dict()
    renamed = {k: "features." + k.split(".", 1)[1] for k in trunk}  # slice3.7.weight → features.7.weight
    check_state(state, {renamed[k]: tuple(v.shape) for k, v in trunk.items()}, found.path, "lpips")
    model.net.load_state_dict({k: state[renamed[k]] for k in trunk})
    return model.to(device).eval().requires_grad_(False), found.sha256


def lpips_distance(a: "torch.Tensor", b: "torch.Tensor", network: Any) -> "torch.Tensor":
    """LPIPS v0.1 (1801.03924) of uint8 pairs [B, 3, H, W] at their own resolution → [B].

    Raises SpecError below 32 px, and for other types than uint8: a range of 0..1 would change the distance without a word.
    """
    import torch

    _same(a, b, "lpips")
    if (a.dtype, b.dtype) != (torch.uint8, torch.uint8):
        raise SpecError(f"lpips: images must be uint8 in grey levels, got {a.dtype} and {b.dtype}; round them first")
    if min(a.shape[-2:]) < 32:
        raise SpecError(f"lpips: {a.shape[-1]}x{a.shape[-2]} px is too small; it needs 32 px")
    with torch.inference_mode():
        out: torch.Tensor = network(a.float() / 127.5 - 1, b.float() / 127.5 - 1)
    return out.flatten()
