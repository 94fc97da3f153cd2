"""The TF-ported Inception-v3 of FID, from torch-fidelity's weights file, folded and fused so that it runs fast.

Batch norm is folded into the convolutions; the 1×1 convolutions that read the same tensor are one; a 1×1 convolution goes
before
the average pool that it follows (both are linear, and an average that leaves padding out keeps a bias). Features stay within a
relative 1e-5 of the unfused network. Structure: Szegedy et al. 1512.00567 as ported by torch-fidelity (no padding in average
pools, max pool in the last block, eps 1e-3).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hibench.errors import MissingWeights

if TYPE_CHECKING:
    import torch

__all__ = ["CleanScript", "FastInception", "Inception", "open_clean", "open_compat", "shapes"]

_BLOCKS_A, _BLOCKS_C = ("Mixed_5b", "Mixed_5c", "Mixed_5d"), ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e")
_HEADS = {
    **{f"Mixed_5{c}": ("branch1x1", "branch5x5_1", "branch3x3dbl_1", "branch_pool") for c in "bcd"},
    "Mixed_6a": ("branch3x3dbl_1",),
    **{f"Mixed_6{c}": ("branch1x1", "branch7x7_1", "branch7x7dbl_1", "branch_pool") for c in "bcde"},
    "Mixed_7a": ("branch3x3_1", "branch7x7x3_1"),
    "Mixed_7b": ("branch1x1", "branch3x3_1", "branch3x3dbl_1", "branch_pool"),
    "Mixed_7c": ("branch1x1", "branch3x3_1", "branch3x3dbl_1"),
}


class FastInception:
    """The network as a function: float32 [B, 3, 299, 299] in (−1, 1) → `features` [B, 2048], `logits` [B, 1008], `spatial`
    [B, 2023]."""

    def __init__(self, state: "Mapping[str, torch.Tensor]", device: str = "cpu") -> None:
        import torch

        self.device = device
        self.weights: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self.widths: dict[str, list[int]] = {}
        names = [k[: -len(".conv.weight")] for k in state if k.endswith(".conv.weight")]
        folded = {name: _fold(state, name) for name in names}
        for block, heads in _HEADS.items():
            parts = [folded.pop(f"{block}.{head}") for head in heads]
            self.widths[block] = [len(weight) for weight, _ in parts]
            folded[f"{block}.head"] = torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
        for name, (weight, bias) in folded.items():
            self.weights[name] = (
                weight.float().to(device).contiguous(memory_format=torch.channels_last),
                bias.float().to(device),
            )
        self.fc = state["fc.weight"].float().to(device).T.contiguous()

    def conv(self, x: "torch.Tensor", name: str, stride: int = 1, padding: Any = 0) -> "torch.Tensor":
        """Folded convolution and ReLU."""
        import torch.nn.functional as F

        weight, bias = self.weights[name]
        return F.conv2d(x, weight, bias, stride=stride, padding=padding).relu_()

    def heads(self, x: "torch.Tensor", block: str) -> "tuple[torch.Tensor, ...]":
        """The block's first 1×1 convolutions in one; the one that follows an average pool is pooled here."""
        import torch
        import torch.nn.functional as F

        weight, bias = self.weights[f"{block}.head"]
        parts = list(torch.split(F.conv2d(x, weight, bias), self.widths[block], 1))
        if _HEADS[block][-1] == "branch_pool":
            parts[-1] = F.avg_pool2d(parts[-1], 3, 1, 1, count_include_pad=False)
        return tuple(p.relu() for p in parts)

    def __call__(self, x: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
        import torch
        import torch.nn.functional as F

        conv = self.conv
        x = conv(x.contiguous(memory_format=torch.channels_last), "Conv2d_1a_3x3", 2)
        x = conv(conv(x, "Conv2d_2a_3x3"), "Conv2d_2b_3x3", padding=1)
        x = conv(conv(F.max_pool2d(x, 3, 2), "Conv2d_3b_1x1"), "Conv2d_4a_3x3")
        x = F.max_pool2d(x, 3, 2)
        for block in _BLOCKS_A:
            x = self._a(x, block)
        (d,) = self.heads(x, "Mixed_6a")
        d = conv(conv(d, "Mixed_6a.branch3x3dbl_2", padding=1), "Mixed_6a.branch3x3dbl_3", 2)
        x = torch.cat([conv(x, "Mixed_6a.branch3x3", 2), d, F.max_pool2d(x, 3, 2)], 1)
        spatial = x
        for block in _BLOCKS_C:
            x = self._c(x, block)
            if block == "Mixed_6d":
                spatial = x[:, :7].flatten(1)  # branch1x1 comes first: TF's mixed_6/conv:0, 7 channels
        x = self._d(x, "Mixed_7a")
        x = self._e(self._e(x, "Mixed_7b"), "Mixed_7c")
        features = x.mean((2, 3))
        return features, features @ self.fc, spatial

    def _a(self, x: "torch.Tensor", block: str) -> "torch.Tensor":
        import torch

        one, five, three, pool = self.heads(x, block)
        five = self.conv(five, f"{block}.branch5x5_2", padding=2)
        three = self.conv(self.conv(three, f"{block}.branch3x3dbl_2", padding=1), f"{block}.branch3x3dbl_3", padding=1)
        return torch.cat([one, five, three, pool], 1)

    def _c(self, x: "torch.Tensor", block: str) -> "torch.Tensor":
        import torch

        one, seven, double, pool = self.heads(x, block)
        seven = self.conv(seven, f"{block}.branch7x7_2", padding=(0, 3))
        seven = self.conv(seven, f"{block}.branch7x7_3", padding=(3, 0))
        for i, padding in ((2, (3, 0)), (3, (0, 3)), (4, (3, 0)), (5, (0, 3))):
            double = self.conv(double, f"{block}.branch7x7dbl_{i}", padding=padding)
        return torch.cat([one, seven, double, pool], 1)

    def _d(self, x: "torch.Tensor", block: str) -> "torch.Tensor":
        import torch
        import torch.nn.functional as F

        three, seven = self.heads(x, block)
        seven = self.conv(self.conv(seven, f"{block}.branch7x7x3_2", padding=(0, 3)), f"{block}.branch7x7x3_3", padding=(3, 0))
        return torch.cat(
            [self.conv(three, f"{block}.branch3x3_2", 2), self.conv(seven, f"{block}.branch7x7x3_4", 2), F.max_pool2d(x, 3, 2)],
            1,
        )

    def _e(self, x: "torch.Tensor", block: str) -> "torch.Tensor":
        import torch
        import torch.nn.functional as F

        conv = self.conv
        one, three, double, *pooled = self.heads(x, block)
        double = conv(double, f"{block}.branch3x3dbl_2", padding=1)
        pool = pooled[0] if pooled else conv(F.max_pool2d(x, 3, 1, 1), f"{block}.branch_pool")
        return torch.cat(
            [
                one,
                conv(three, f"{block}.branch3x3_2a", padding=(0, 1)),
                conv(three, f"{block}.branch3x3_2b", padding=(1, 0)),
                conv(double, f"{block}.branch3x3dbl_3a", padding=(0, 1)),
                conv(double, f"{block}.branch3x3dbl_3b", padding=(1, 0)),
                pool,
            ],
            1,
        )


def _fold(state: "Mapping[str, torch.Tensor]", name: str) -> "tuple[torch.Tensor, torch.Tensor]":
    """Convolution weights and bias with batch norm (eps 1e-3) folded in, float64."""
    scale = state[f"{name}.bn.weight"].double() / (state[f"{name}.bn.running_var"].double() + 1e-3).sqrt()
    bias = state[f"{name}.bn.bias"].double() - state[f"{name}.bn.running_mean"].double() * scale
    return state[f"{name}.conv.weight"].double() * scale[:, None, None, None], bias


class Inception:
    """Extractor over FastInception; `mode` chooses the resize: `tf1` as torch-fidelity, `clean` as clean-fid."""

    outputs: ClassVar[dict[str, int]] = {"2048": 2048, "logits": 1008, "mixed6": 2023}
    roles: ClassVar[dict[str, str]] = {"features": "2048", "logits": "logits", "spatial": "mixed6"}

    def __init__(self, name: str, mode: str, network: FastInception, weights_sha256: str, compiled: bool = False) -> None:
        self.name, self.mode, self.net, self.weights_sha256 = name, mode, network, weights_sha256
        self.resize = {"tf1": "tf1-bilinear-299", "clean": "pil-bicubic-antialias-299"}[mode]
        self.compiled = compiled
        if compiled:
            import torch

            self.forward: Any = torch.compile(network.__call__)
        else:
            self.forward = network

    def prepare(self, images: "torch.Tensor") -> "torch.Tensor":
        """uint8 [B, 3, H, W] → float32 [B, 3, 299, 299], (x − 128)/128."""
        from hibench.resize import bicubic_antialias, tf1_bilinear

        images = images.to(self.net.device)
        x = tf1_bilinear(images, 299) if self.mode == "tf1" else bicubic_antialias(images, 299, 299)
        return (x - 128) / 128

    def network(self, x: "torch.Tensor") -> "dict[str, torch.Tensor]":
        """Prepared images → one float32 [B, D] per output."""
        return dict(zip(self.outputs, self.forward(x)))

    def __call__(self, images: "torch.Tensor") -> "dict[str, torch.Tensor]":
        return self.network(self.prepare(images))


class CleanScript:
    """clean-fid's own TorchScript archive (inception-2015-12-05.pt) as an extractor: features only, clean-fid's resize."""

    outputs: ClassVar[dict[str, int]] = {"2048": 2048}
    roles: ClassVar[dict[str, str]] = {"features": "2048"}
    resize = "pil-bicubic-antialias-299"

    def __init__(self, name: str, path: Path, weights_sha256: str, device: str) -> None:
        from hibench.weights import load_script

        self.name, self.weights_sha256, self.device = name, weights_sha256, device
        try:
            self.layers = load_script(path, device).layers
        except (RuntimeError, AttributeError) as error:
            raise MissingWeights(
                f"{name}: {path} is a TorchScript archive without Inception's `layers`; "
                "get the weights with: hibench fetch inception-v3-compat"
            ) from error

    def prepare(self, images: "torch.Tensor") -> "torch.Tensor":
        """uint8 [B, 3, H, W] → float32 [B, 3, 299, 299], (x − 128)/128."""
        from hibench.resize import bicubic_antialias

        return (bicubic_antialias(images.to(self.device), 299, 299) - 128) / 128

    def network(self, x: "torch.Tensor") -> "dict[str, torch.Tensor]":
        """Prepared images → {"2048": float32 [B, 2048]}."""
        return {"2048": self.layers(x).reshape(len(x), 2048).float()}

    def __call__(self, images: "torch.Tensor") -> "dict[str, torch.Tensor]":
        return self.network(self.prepare(images))


def shapes() -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the weights file (torch-fidelity's names)."""
    convs: dict[str, tuple[int, int, int, int]] = {
        "Conv2d_1a_3x3": (32, 3, 3, 3),
        "Conv2d_2a_3x3": (32, 32, 3, 3),
        "Conv2d_2b_3x3": (64, 32, 3, 3),
        "Conv2d_3b_1x1": (80, 64, 1, 1),
        "Conv2d_4a_3x3": (192, 80, 3, 3),
    }
    for block, cin, pool in zip(_BLOCKS_A, (192, 256, 288), (32, 64, 64)):
        convs |= {
            f"{block}.{k}": v
            for k, v in {
                "branch1x1": (64, cin, 1, 1),
                "branch5x5_1": (48, cin, 1, 1),
                "branch5x5_2": (64, 48, 5, 5),
                "branch3x3dbl_1": (64, cin, 1, 1),
                "branch3x3dbl_2": (96, 64, 3, 3),
                "branch3x3dbl_3": (96, 96, 3, 3),
                "branch_pool": (pool, cin, 1, 1),
            }.items()
        }
    convs |= {
        "Mixed_6a.branch3x3": (384, 288, 3, 3),
        "Mixed_6a.branch3x3dbl_1": (64, 288, 1, 1),
        "Mixed_6a.branch3x3dbl_2": (96, 64, 3, 3),
        "Mixed_6a.branch3x3dbl_3": (96, 96, 3, 3),
    }
    for block, c in zip(_BLOCKS_C, (128, 160, 160, 192)):
        convs |= {
            f"{block}.{k}": v
            for k, v in {
                "branch1x1": (192, 768, 1, 1),
                "branch7x7_1": (c, 768, 1, 1),
                "branch7x7_2": (c, c, 1, 7),
                "branch7x7_3": (192, c, 7, 1),
                "branch7x7dbl_1": (c, 768, 1, 1),
                "branch7x7dbl_2": (c, c, 7, 1),
                "branch7x7dbl_3": (c, c, 1, 7),
                "branch7x7dbl_4": (c, c, 7, 1),
                "branch7x7dbl_5": (192, c, 1, 7),
                "branch_pool": (192, 768, 1, 1),
            }.items()
        }
    convs |= {
        "Mixed_7a.branch3x3_1": (192, 768, 1, 1),
        "Mixed_7a.branch3x3_2": (320, 192, 3, 3),
        "Mixed_7a.branch7x7x3_1": (192, 768, 1, 1),
        "Mixed_7a.branch7x7x3_2": (192, 192, 1, 7),
        "Mixed_7a.branch7x7x3_3": (192, 192, 7, 1),
        "Mixed_7a.branch7x7x3_4": (192, 192, 3, 3),
    }
    for block, cin in (("Mixed_7b", 1280), ("Mixed_7c", 2048)):
        convs |= {
            f"{block}.{k}": v
            for k, v in {
                "branch1x1": (320, cin, 1, 1),
                "branch3x3_1": (384, cin, 1, 1),
                "branch3x3_2a": (384, 384, 1, 3),
                "branch3x3_2b": (384, 384, 3, 1),
                "branch3x3dbl_1": (448, cin, 1, 1),
                "branch3x3dbl_2": (384, 448, 3, 3),
                "branch3x3dbl_3a": (384, 384, 1, 3),
                "branch3x3dbl_3b": (384, 384, 3, 1),
                "branch_pool": (192, cin, 1, 1),
            }.items()
        }
    out: dict[str, tuple[int, ...]] = {"fc.weight": (1008, 2048), "fc.bias": (1008,)}
    for name, shape in convs.items():
        out[f"{name}.conv.weight"] = shape
        out |= {f"{name}.bn.{k}": (shape[0],) for k in ("weight", "bias", "running_mean", "running_var")}
    return out


def _open(name: str, mode: str, device: str, weights: str | None, compiled: bool) -> Inception:
    from hibench.weights import check_state, read_state, resolve

    found = resolve("inception-v3-compat", weights, user=name)
    state = read_state(found.path, name)
    check_state(state, shapes(), found.path, name)
    return Inception(name, mode, FastInception(state, device), found.sha256, compiled)


def open_compat(device: str, weights: str | None = None, compiled: bool = False) -> Inception:
    """torch-fidelity's Inception with its TF1 resize: the network that `fid` means."""
    return _open("inception-v3-compat", "tf1", device, weights, compiled)


def open_clean(device: str, weights: str | None = None, compiled: bool = False) -> Any:
    """The same network behind clean-fid's antialiased resize."""
    from hibench.weights import is_torchscript, resolve

    if weights is not None and is_torchscript(Path(weights)):
        found = resolve("inception-v3-compat", weights, user="inception-v3-clean")
        return CleanScript("inception-v3-clean", found.path, found.sha256, device)
    return _open("inception-v3-clean", "clean", device, weights, compiled)
