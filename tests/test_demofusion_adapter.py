"""DemoFusion and MultiDiffusion behind the contract: seeds, batches, options, previews, pictures to start from, errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hibench.adapter import Adapter
from hibench.errors import AdapterError, MissingWeights, SpecError
from hibench.stages import RecordingStage
from methods.demofusion import DemoFusion, MultiDiffusion
from methods.demofusion import options as own
from methods.diffusers_pipeline import loading

SIZE, STEPS, MORE = (96, 64), 2, 5  # with two steps the second has no skip residual any more
TRAINED = Path(__file__).parent / "golden" / "demofusion" / "tiny_sdxl"


@pytest.fixture(scope="module")
def pipe() -> Any:
    """A tiny SDXL-shaped pipeline: random text encoders, and networks that were trained a little, so that inputs matter."""
    from safetensors.torch import load_file

    pipe = loading.load("random", "cpu", "float32", {"config": "tiny-sdxl"})
    for part in ("unet", "vae"):
        getattr(pipe, part).load_state_dict(load_file(TRAINED / part / "diffusion_pytorch_model.safetensors"))
    return pipe


@pytest.fixture
def make(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An adapter with these options on the shared pipeline; it decodes as a whole unless told otherwise, which is quicker."""
    monkeypatch.setattr("methods.demofusion.adapter.load", lambda *_: pipe)

    def made(cls: type[DemoFusion] = DemoFusion, **options: Any) -> DemoFusion:
        adapter = cls("random", {"tiled_decode": False} | options)
        adapter.load()
        return adapter

    return made


def levels(a: torch.Tensor, b: torch.Tensor) -> int:
    return int((a.int() - b.int()).abs().max())


@pytest.mark.parametrize("cls", [DemoFusion, MultiDiffusion])
def test_contract_and_batches(make: Any, cls: type[DemoFusion]) -> None:
    adapter = make(cls)
    assert isinstance(adapter, Adapter)
    state = torch.get_rng_state()
    together = adapter.generate_batch(SIZE, [3, 5], steps=STEPS)
    assert torch.equal(state, torch.get_rng_state())
    assert together.shape == (2, 3, *SIZE)
    assert together.dtype == torch.uint8
    assert not together.requires_grad
    assert levels(together[0], together[1]) > 20
    assert levels(adapter.generate(SIZE, 5, steps=STEPS), together[1]) <= 2
    assert torch.equal(adapter.generate_batch(SIZE, [3, 5], steps=STEPS), together)


def test_what_is_reported_is_what_was_done(make: Any) -> None:
    """At 96 x 64 with f = 4: one native window, then 2 x 1 local and 2 x 2 dilated ones; twice as many with guidance."""
    for cls, options, nfe, tiles, calls in (
        (DemoFusion, {}, 2 * STEPS * (1 + 2 + 4), 6, 2 * STEPS),
        (DemoFusion, {"guidance": 1.0}, STEPS * (1 + 2 + 4), 6, 2 * STEPS),
        (DemoFusion, {"dilated": False}, 2 * STEPS * (1 + 2), 2, 2 * STEPS),
        (MultiDiffusion, {}, 2 * STEPS * 2, 2, STEPS),
    ):
        stage = RecordingStage()
        make(cls, **options).generate_batch(SIZE, [1, 2], steps=STEPS, stage=stage)
        trace = stage.finish()
        assert trace.effective == {"steps": STEPS, "nfe": nfe, "tiles": tiles}
        assert len(trace.step_s) == calls
        assert set(trace.stage_s) == {"encode", "denoise", "decode"}


CHANGES: list[dict[str, Any]] = [
    {"compat": "official"},
    {"skip_residual": False},
    {"dilated": False},
    {"stride": 4},
    {"jitter": False},
    {"jitter": 3},
    {"crops": False},
    {"sigma": 4.0},
    {"alpha": [1.0, 1.0, 1.0]},
    {"alpha": [3.0, 3.0, 1.0]},
    {"guidance": 1.0},
    {"guidance_rescale": 0.7},
    {"eta": 1.0},
    {"negative_prompt": "blurry"},
    {"scheduler": "euler"},
    {"tiled_decode": True},
]


@pytest.fixture(scope="module")
def plain(pipe: Any) -> torch.Tensor:
    adapter = DemoFusion("random", {"tiled_decode": False})
    adapter.load()
    adapter.pipe = pipe
    return adapter.generate(SIZE, 7, steps=MORE)


@pytest.mark.parametrize("options", CHANGES, ids=lambda options: "-".join(map(str, options.items())))
def test_every_option_changes_the_image(make: Any, plain: torch.Tensor, options: dict[str, Any]) -> None:
    assert levels(make(**options).generate(SIZE, 7, steps=MORE), plain) > 1


@pytest.mark.parametrize("options", [{"max_windows": 1}, {"max_windows": None}, {"view_batch": 2}])
def test_batch_sizes_do_not(make: Any, plain: torch.Tensor, options: dict[str, Any]) -> None:
    assert levels(make(**options).generate(SIZE, 7, steps=MORE), plain) <= 1


def test_tiles_at_once_do_not_either(make: Any) -> None:
    a, b = (make(tiled_decode=True, max_tiles=n).generate(SIZE, 7, steps=1) for n in (5, None))
    assert levels(a, b) <= 1


def test_the_released_index_depends_on_its_batches(make: Any) -> None:
    a, b = (make(compat="official", view_batch=n).generate(SIZE, 7, steps=MORE) for n in (1, 16))
    assert levels(a, b) > 2
    a, b = (make(compat="official", max_windows=n).generate(SIZE, 7, steps=MORE) for n in (1, 16))
    assert levels(a, b) <= 1


def test_compat_chooses_the_scheduler(make: Any) -> None:
    assert type(make().scheduler).__name__ == "DDIMScheduler"
    assert type(make(compat="official").scheduler).__name__ == "EulerDiscreteScheduler"
    assert type(make(compat="official", scheduler="unipc").scheduler).__name__ == "UniPCMultistepScheduler"


def test_without_progress_the_last_phase_follows_the_first(make: Any) -> None:
    assert [p.scale for p in make().phases((192, 64))] == [1, 2, 3]
    assert [p.scale for p in make(progressive=False).phases((192, 64))] == [1, 3]


@pytest.mark.parametrize("size", [(64, 64), (32, 48), (68, 64), (36, 100)])
def test_any_size_that_f_divides(make: Any, size: tuple[int, int]) -> None:
    for cls in (DemoFusion, MultiDiffusion):
        assert make(cls).generate(size, 1, steps=1).shape == (3, *size)


def test_previews_are_the_phases_in_order(make: Any) -> None:
    seen: list[tuple[int, torch.Tensor]] = []
    images = make().generate_batch((132, 44), [7], steps=STEPS, on_phase=lambda s, x: seen.append((s, x)))
    assert [s for s, _ in seen] == [1, 2, 3]
    assert [tuple(x.shape[2:]) for _, x in seen] == [(64, 20), (128, 40), (132, 44)]
    assert torch.equal(seen[-1][1], images)
    assert torch.equal(make().generate_batch((132, 44), [7], steps=STEPS), images)


def test_earlier_phases_are_decoded_for_previews_alone(make: Any, pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, ...]] = []
    decode = pipe.vae.decode
    monkeypatch.setattr(pipe.vae, "decode", lambda z, **more: sizes.append(tuple(z.shape)) or decode(z, **more))
    make().generate(SIZE, 1, steps=1)
    assert sizes == [(1, 4, 24, 16)]


def test_a_picture_to_start_from(make: Any, tmp_path: Path) -> None:
    from PIL import Image

    pixels = np.zeros((50, 80, 3), np.uint8)
    pixels[:, :40, 0] = 255
    file = tmp_path / "picture.png"
    Image.fromarray(pixels).save(file)
    picture = torch.from_numpy(pixels).permute(2, 0, 1)
    adapter, stage = make(), RecordingStage()
    images = adapter.refine(picture, (96, 96), [1, 2], steps=STEPS, stage=stage)
    assert images.shape == (2, 3, 96, 96)
    assert stage.finish().effective["nfe"] == 2 * STEPS * (1 + 1 + 4 + 4)
    assert levels(images[0], images[1]) > 0
    assert levels(adapter.refine(picture, (96, 96), [2], steps=STEPS)[0], images[1]) <= 2
    assert torch.equal(make(image=str(file)).generate_batch((96, 96), [1, 2], steps=STEPS), images)
    assert levels(adapter.generate((96, 96), 1, steps=STEPS), images[0]) > 0
    with pytest.raises(SpecError, match="cannot be read as a picture"):
        make(image=str(tmp_path / "none.png")).generate((96, 96), 1, steps=STEPS)
    with pytest.raises(AdapterError, match="starts from noise"):
        make(MultiDiffusion).refine(picture, (96, 96), [1])


def test_prompts_are_used_one_per_seed(make: Any) -> None:
    adapter = make()
    both = adapter.generate_batch((64, 64), [1, 1], steps=STEPS, prompts=["a red circle", "a blue square on sand"])
    assert levels(both[0], both[1]) > 0
    with pytest.raises(AdapterError, match="one prompt per seed"):
        adapter.generate_batch((64, 64), [1, 2], prompts=["one"])


def test_what_is_not_supported_says_why(make: Any) -> None:
    adapter = make()
    axes = {"height": 128, "width": 128, "steps": None, "sparsity": 0.0}
    assert adapter.supports(axes) is None
    assert "nearest is 128x132" in adapter.supports(axes | {"width": 131})
    assert "no sparsity axis" in adapter.supports(axes | {"sparsity": 0.5})
    assert adapter.supports(axes | {"steps": 0})
    assert adapter.supports(axes | {"steps": 1001})
    with pytest.raises(AdapterError, match="not a multiple of 4"):
        adapter.generate((130, 127), 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compat": "new"}, "one of paper, official"),
        ({"dilated": 1}, "true or false"),
        ({"crops": "yes"}, "true or false"),
        ({"stride": 0}, "whole number"),
        ({"max_windows": 2.0}, "whole number"),
        ({"view_batch": None}, "whole number"),
        ({"jitter": True}, "latents"),
        ({"jitter": -1}, "latents"),
        ({"sigma": 0}, "number > 0"),
        ({"guidance": "7"}, "number >= 0"),
        ({"alpha": [1, 2]}, "three numbers"),
        ({"negative_prompt": 3}, "a text"),
        ({"dilate": True}, "did you mean 'dilated'"),
    ],
)
def test_wrong_options_are_refused_before_weights_are_read(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        DemoFusion("nowhere", options)


def test_multidiffusion_has_only_its_options() -> None:
    with pytest.raises(SpecError, match="no option 'skip_residual'"):
        MultiDiffusion("random", {"skip_residual": True})


def test_gaps_between_windows_are_refused(make: Any) -> None:
    for options, message in (({"stride": 17}, "leave gaps"), ({"stride": 14, "jitter": 2}, "at most 1")):
        with pytest.raises(SpecError, match=message):
            make(**options).generate(SIZE, 1, steps=1)
    assert own.rules(own.OPTIONS | {"compat": "official"}, 128, 8).reach == 16
    assert own.rules(own.OPTIONS, 128, 8).reach == 8
    assert own.rules(own.OPTIONS | {"stride": 124}, 128, 8).reach == 2


def test_missing_weights(tmp_path: Path) -> None:
    with pytest.raises(MissingWeights, match="does not exist"):
        DemoFusion(str(tmp_path / "none")).generate((64, 64), 1)
    assert DemoFusion(str(tmp_path / "none")).supports({"height": 64, "width": 64}) is None


def test_overflow_of_the_decoder_is_an_error(make: Any, pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipe.vae, "decode", lambda z, **_: (torch.full((1, 3, 64, 64), torch.nan),))
    with pytest.raises(AdapterError, match="not finite"):
        make().generate((64, 64), 1, steps=1)


def test_a_pipeline_without_unet_is_refused(make: Any, pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipe, "unet", None)
    with pytest.raises(AdapterError, match="has no unet"):
        make()


@pytest.mark.parametrize("cls", [DemoFusion, MultiDiffusion])
def test_a_pipeline_without_micro_conditioning_works_too(cls: type[DemoFusion]) -> None:
    adapter = cls("random", {"config": "tiny-sd", "tiled_decode": False})
    assert adapter.generate(SIZE, 1, steps=1).shape == (3, *SIZE)
    adapter.close()
    assert adapter.pipe is None
