"""The one training loop: interruptible, and a function of the step number alone: a resumed run equals an undisturbed one."""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from hibench.errors import HibenchError, SpecError

if TYPE_CHECKING:
    import torch

__all__ = [
    "Averaged",
    "Stateful",
    "autocast",
    "batch_seeds",
    "cosine_rate",
    "descend",
    "fit",
    "half_state",
    "set_rate",
    "step_generator",
    "write_training_json",
]

_CHECKPOINT_EVERY_S = 120.0
_REPORT_EVERY_S = 20.0


class Stateful(Protocol):
    """Anything with torch's pair of state methods: a module, an optimiser, an EMA."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


class Averaged(Protocol):
    """Anything that follows the weights step by step: an EMA."""

    def update(self) -> None: ...


def cosine_rate(step: int, steps: int, peak: float, warmup: int = 200, floor: float = 0.02) -> float:
    """Learning rate: linear warm-up, then a cosine from `peak` to `floor`·`peak`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def set_rate(optimizer: "torch.optim.Optimizer", rate: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def descend(
    loss: "torch.Tensor",
    optimizer: "torch.optim.Optimizer",
    clipped: Iterable["torch.nn.Module"] = (),
    averages: Iterable[Averaged] = (),
) -> None:
    """One optimiser step down a scalar loss.

    Gradients left from before are dropped. Of each module in `clipped` the norm of its gradients is limited to 1, each by
    itself; then the optimiser steps, and every moving average takes the new weights.
    """
    import torch

    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    for module in clipped:
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimizer.step()
    for average in averages:
        average.update()


def half_state(state: Mapping[str, "torch.Tensor"]) -> dict[str, "torch.Tensor"]:
    """A state dict as it is shipped: float16, contiguous, on the CPU."""
    return {k: v.detach().half().cpu().contiguous() for k, v in state.items()}


def step_generator(step: int, device: "str | torch.device" = "cpu", seed: int = 0) -> "torch.Generator":
    """A generator that depends on (seed, step) alone: what a step draws does not depend on where training resumed."""
    import torch

    return torch.Generator(device).manual_seed(seed * 1_000_000_007 + step)


def batch_seeds(step: int, batch: int, count: int, seed: int = 0) -> "torch.Tensor":
    """Indices int64 [batch] into `count` training images: every image once per epoch, shuffled anew each epoch."""
    import torch

    per_epoch = count // batch
    if per_epoch < 1:
        raise SpecError(f"training: a batch of {batch} needs at least as many images, not {count}; ask for a smaller batch")
    epoch, k = divmod(step, per_epoch)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed * 7919 + epoch))
    return order[k * batch : (k + 1) * batch]


def autocast(device: str, cpu: bool = False) -> "torch.amp.autocast_mode.autocast":
    """bfloat16 autocast on a GPU; with `cpu` also on a CPU that multiplies bfloat16 itself, else nothing there."""
    import torch

    if device.startswith("cuda"):
        return torch.autocast("cuda", torch.bfloat16)
    return torch.autocast("cpu", torch.bfloat16, enabled=cpu and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def fit(
    name: str,
    step: Callable[[int], Mapping[str, "torch.Tensor | float"]],
    state: Mapping[str, Stateful],
    *,
    steps: int,
    out: Path,
    resume: bool = True,
    max_seconds: float | None = None,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Call step(0) … step(steps − 1); returns {"steps", "seconds", "curve": [[step, {loss: value}], …], "finished"}.

    A checkpoint of everything in `state` is written to out/NAME.ckpt every two minutes, on Ctrl-C and at the end; `resume`
    continues from it. `max_seconds` stops early (the result says finished: false, and a later call goes on).
    A loss that is not finite stops with an error and keeps the last checkpoint.
    """
    import torch

    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.ckpt"
    first, seconds, curve = 0, 0.0, []
    if resume and path.exists():
        saved = torch.load(path, map_location="cpu", weights_only=True)
        for key, item in state.items():
            item.load_state_dict(saved["state"][key])
        first, seconds, curve = saved["step"], saved["seconds"], saved["curve"]
        report(f"{name}: resumed at step {first}/{steps}")
    begin = mark = reported = time.monotonic()
    sums: dict[str, float] = {}
    counts: Counter[str] = Counter()                        # not every loss occurs in every step
    since = 0
    done = first

    def save() -> None:
        temporary = path.with_suffix(".tmp")
        torch.save(
            {
                "state": {k: v.state_dict() for k, v in state.items()},
                "step": done,
                "seconds": seconds + time.monotonic() - begin,
                "curve": curve,
            },
            temporary,
        )
        os.replace(temporary, path)

    def mean_losses() -> dict[str, float]:
        nonlocal since
        means = {k: float(v) / counts[k] for k, v in sums.items()}
        sums.clear()
        counts.clear()
        since = 0
        bad = [k for k, v in means.items() if not math.isfinite(v)]
        if bad:
            raise HibenchError(
                f"training {name}: {', '.join(bad)} is not finite near step {done}: "
                f"lower the learning rate; {path} holds the last good state"
            )
        return means

    try:
        for k in range(first, steps):
            for key, value in step(k).items():
                sums[key] = sums.get(key, 0.0) + (value.detach() if isinstance(value, torch.Tensor) else value)  # type: ignore[assignment]
                counts[key] += 1
            since, done = since + 1, k + 1
            now = time.monotonic()
            if now - reported > _REPORT_EVERY_S:
                means = mean_losses()
                curve.append([done, means])
                rate = (now - begin) / (done - first)
                report(
                    f"{name}: step {done}/{steps}  "
                    + "  ".join(f"{a} {b:.4f}" for a, b in means.items())
                    + f"  {rate:.3f} s/step, ~{rate * (steps - done) / 60:.0f} min left"
                )
                reported = now
            if now - mark > _CHECKPOINT_EVERY_S:
                save()
                mark = time.monotonic()
            if max_seconds is not None and now - begin > max_seconds:
                break
    finally:
        if done > first:
            save()
    if since:
        curve.append([done, mean_losses()])
    return {"steps": done, "seconds": seconds + time.monotonic() - begin, "curve": curve, "finished": done >= steps}


def write_training_json(path: Path, result: Mapping[str, Any], *, device: str, data: str, **more: Any) -> None:
    """Write what a reader must know of shipped weights: data, steps, seconds, device, loss curve (at most 60 points)."""
    import torch

    curve = list(result["curve"])
    curve = curve[:: max(1, len(curve) // 60)] + (curve[-1:] if len(curve) > 60 else [])
    hardware = (
        torch.cuda.get_device_name()
        if device.startswith("cuda")
        else f"CPU, {torch.get_num_threads()} thread(s), {platform.machine()}"
    )
    path.write_text(
        json.dumps(
            {
                "data": data,
                "steps": result["steps"],
                "seconds": round(result["seconds"], 1),
                "device": hardware,
                "torch": torch.__version__.split("+")[0],
                **more,
                "curve": [[s, {k: round(v, 5) for k, v in losses.items()}] for s, losses in curve],
            },
            indent=1,
        )
        + "\n"
    )
