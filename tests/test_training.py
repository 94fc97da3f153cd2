"""The training loop: a resumed run equals an undisturbed one, and what goes wrong is said."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from hibench import training
from hibench.adapter import from_uint8, to_uint8
from hibench.errors import HibenchError, SpecError


def make() -> tuple[torch.nn.Linear, torch.optim.Adam]:
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    return model, torch.optim.Adam(model.parameters(), lr=0.1)


def stepper(model: torch.nn.Linear, optimizer: torch.optim.Optimizer, stop_at: int | None = None):  # type: ignore[no-untyped-def]
    def step(k: int) -> dict[str, torch.Tensor]:
        if k == stop_at:
            raise KeyboardInterrupt
        x = torch.randn(8, 4, generator=training.step_generator(k))
        training.set_rate(optimizer, training.cosine_rate(k, 20, 0.1, warmup=5))
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        training.descend(loss, optimizer)
        return {"loss": loss}

    return step


class Shadow:
    """An average that remembers the weight it was shown."""

    def __init__(self, model: torch.nn.Linear) -> None:
        self.model, self.seen = model, torch.empty(0)

    def update(self) -> None:
        self.seen = self.model.weight.detach().clone()


def test_a_step_clips_each_module_by_itself_and_then_tells_the_averages() -> None:
    one, two, free = (torch.nn.Linear(1, 1, bias=False) for _ in range(3))
    before = [m.weight.item() for m in (one, two, free)]
    for module in (one, two, free):
        module.weight.grad = torch.full((1, 1), 1e6)            # left over from another loss: not part of this step
    optimizer = torch.optim.SGD([m.weight for m in (one, two, free)], lr=1.0)
    shadow = Shadow(one)
    training.descend((30 * one.weight + 0.5 * two.weight + 2 * free.weight).sum(), optimizer, [one, two], [shadow])
    moved = [a - m.weight.item() for a, m in zip(before, (one, two, free))]
    assert moved == pytest.approx([1.0, 0.5, 2.0], abs=1e-5)     # a norm of 30 becomes 1; one of 0.5 stays; free has no limit
    assert torch.equal(shadow.seen, one.weight)


def test_a_shipped_state_is_float16_on_the_cpu_and_contiguous() -> None:
    state = training.half_state({"w": torch.rand(3, 4, requires_grad=True).T})
    assert state["w"].dtype == torch.half
    assert state["w"].is_contiguous()
    assert not state["w"].requires_grad


def test_every_level_of_a_read_only_array_comes_back() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    levels.flags.writeable = False
    floats = from_uint8(levels)
    assert (floats.dtype, floats.min(), floats.max()) == (torch.float32, -1, 1)
    assert np.array_equal(to_uint8(floats).numpy(), levels)
    assert torch.equal(from_uint8(torch.from_numpy(levels.copy())), floats)


def test_interrupted_and_resumed_equals_undisturbed(tmp_path: Path) -> None:
    model, optimizer = make()
    training.fit(
        "a",
        stepper(model, optimizer),
        {"model": model, "optimizer": optimizer},
        steps=20,
        out=tmp_path / "whole",
        report=lambda _: None,
    )
    expected = model.weight.clone()

    model, optimizer = make()
    with pytest.raises(KeyboardInterrupt):
        training.fit(
            "a",
            stepper(model, optimizer, stop_at=11),
            {"model": model, "optimizer": optimizer},
            steps=20,
            out=tmp_path / "parts",
            report=lambda _: None,
        )
    model, optimizer = make()
    lines: list[str] = []
    result = training.fit(
        "a",
        stepper(model, optimizer),
        {"model": model, "optimizer": optimizer},
        steps=20,
        out=tmp_path / "parts",
        report=lines.append,
    )
    assert torch.equal(model.weight, expected)
    assert lines[0] == "a: resumed at step 11/20"
    assert result["finished"]
    assert result["steps"] == 20


def test_time_limit_stops_and_says_unfinished(tmp_path: Path) -> None:
    model, optimizer = make()
    result = training.fit(
        "a", stepper(model, optimizer), {"model": model}, steps=20, out=tmp_path, max_seconds=0.0, report=lambda _: None
    )
    assert not result["finished"]
    assert result["steps"] == 1


def test_a_loss_that_is_not_finite_stops_with_the_checkpoint_named(tmp_path: Path) -> None:
    with pytest.raises(HibenchError, match=r"loss is not finite near step 3: lower the learning rate; .*a\.ckpt"):
        training.fit("a", lambda k: {"loss": float("nan")}, {}, steps=3, out=tmp_path, report=lambda _: None)


def test_every_image_once_per_epoch_and_epochs_differ() -> None:
    epochs = [torch.cat([training.batch_seeds(k, 4, 12) for k in range(e * 3, e * 3 + 3)]).tolist() for e in range(2)]
    assert all(Counter(e) == Counter(range(12)) for e in epochs)
    assert epochs[0] != epochs[1]
    with pytest.raises(SpecError, match="a batch of 16 needs at least as many images"):
        training.batch_seeds(0, 16, 12)


def test_cosine_rate_warms_up_and_ends_at_the_floor() -> None:
    rates = [training.cosine_rate(k, 100, 1.0, warmup=10, floor=0.1) for k in range(100)]
    assert rates[9] == pytest.approx(1.0)
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[-1] == pytest.approx(0.1, abs=0.01)


def test_training_json_thins_the_curve_and_keeps_its_end(tmp_path: Path) -> None:
    result = {"steps": 1000, "seconds": 1.0, "curve": [[i, {"loss": i / 7}] for i in range(1000)]}
    training.write_training_json(tmp_path / "t.json", result, device="cpu", data="scenes")
    written = json.loads((tmp_path / "t.json").read_text())
    assert len(written["curve"]) <= 70
    assert written["curve"][-1] == [999, {"loss": round(999 / 7, 5)}]
