"""The adapters diffusers, direct and direct-upsample on tiny pipelines: the contract, parity with the library, prompts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers_pipelines import saved
from PIL import Image

from hibench.conformance import check_adapter
from hibench.errors import AdapterError, SpecError
from hibench.job import prompts_digest, prompts_for
from hibench.references import scenes
from hibench.stages import RecordingStage
from methods.diffusers_pipeline import DiffusersPipeline, Direct, DirectUpsample
from methods.diffusers_pipeline.calling import generators, steps_done
from methods.diffusers_pipeline.loading import load
from methods.diffusers_pipeline.text import default_prompts, encode

pytestmark = [pytest.mark.usefixtures("no_network"),
              pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")]      # diffusers on numpy 2
PROMPTS = ["a red star", "a blue ring"]


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    """Folders by kind."""
    folder = tmp_path_factory.mktemp("pipelines")
    return {kind: str(saved(folder, kind)) for kind in ("tiny-sd", "tiny-sdxl", "flux", "pixart")}


def test_contract(pipelines, monkeypatch):
    monkeypatch.setattr(Direct, "default_steps", 3)
    findings = check_adapter(Direct, weights=pipelines["tiny-sdxl"], options={"scheduler": "euler-ancestral"})
    assert not [finding for finding in findings if finding.ok is False]
    assert len(findings) == 18


@pytest.mark.parametrize("kind", ["flux", "pixart"])
def test_pipelines_of_other_makes(pipelines, kind):
    adapter = DiffusersPipeline(pipelines[kind], {"arguments": {"max_sequence_length": 16}})
    stage = RecordingStage()
    images = adapter.generate_batch((32, 40), [3, 4], steps=3, prompts=PROMPTS, stage=stage)
    trace = stage.finish()
    assert images.shape == (2, 3, 32, 40)
    assert (trace.effective["steps"], len(trace.step_s)) == (3, 3)
    assert trace.effective["nfe"] == {"flux": 3, "pixart": 6}[kind]          # FLUX is distilled: no second row for guidance
    assert set(trace.stage_s) == {"encode", "denoise", "decode"}
    alone = adapter.generate((32, 40), 4, steps=3, prompt=PROMPTS[1])
    assert (images[1].int() - alone.int()).abs().max() <= 2


def test_an_image_is_what_the_library_makes(pipelines):
    adapter = DiffusersPipeline(pipelines["tiny-sd"], {"guidance": 3.0, "negative_prompt": "dark", "scheduler": "ddim"})
    images = adapter.generate_batch((48, 64), [7, 8], steps=4, prompts=PROMPTS)
    pipe = load(pipelines["tiny-sd"], options={"scheduler": "DDIMScheduler"})
    for image, seed, prompt in zip(images, (7, 8), PROMPTS):
        theirs = pipe(prompt, height=48, width=64, num_inference_steps=4, guidance_scale=3.0, negative_prompt="dark",
                      generator=torch.Generator().manual_seed(seed), output_type="np").images[0]
        assert np.abs(image.permute(1, 2, 0).numpy() / 255 - theirs).max() < 1.5 / 255


def test_the_watch_is_taken_off_again(pipelines, monkeypatch):
    adapter = DiffusersPipeline(pipelines["tiny-sd"])
    adapter.generate((32, 32), 0, steps=2)
    assert "decode" not in vars(adapter.pipe.vae)
    assert not adapter.pipe.unet._forward_pre_hooks

    def broken(*args, **kwargs):
        raise RuntimeError("boom")

    monkeypatch.setattr(type(adapter.pipe.unet), "forward", broken)
    stage = RecordingStage()
    with pytest.raises(RuntimeError, match="boom"):
        adapter.generate((32, 32), 0, steps=2, stage=stage)
    assert stage.failed_in == "denoise"
    assert "decode" not in vars(adapter.pipe.vae)


def test_prompts(pipelines):
    adapter = DiffusersPipeline(pipelines["tiny-sdxl"], {"guidance": 8.0})
    default = adapter.generate((32, 32), 5, steps=2)
    assert default.equal(adapter.generate((32, 32), 5, steps=2, prompt=scenes.captions([5])[0]))
    assert not default.equal(adapter.generate((32, 32), 5, steps=2, prompt="a blue ring"))
    assert adapter.captions([5, 6]) == default_prompts([5, 6]) == scenes.captions([5, 6])
    with pytest.raises(AdapterError, match="2 seeds but 1 prompts"):
        adapter.generate_batch((32, 32), [1, 2], steps=2, prompts=["a red star"])


@pytest.mark.parametrize("kind", ["tiny-sd", "tiny-sdxl"])
@pytest.mark.parametrize("negative", [None, "dark and blurry"])
def test_conditioning_is_what_the_library_makes(pipelines, kind, negative):
    pipe = load(pipelines[kind])
    ours = encode(pipe, PROMPTS, negative)
    with torch.no_grad():
        theirs = pipe.encode_prompt(PROMPTS, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True,
                                    negative_prompt=None if negative is None else [negative] * 2)
    assert torch.equal(ours.prompt, theirs[0])
    assert torch.equal(ours.negative, theirs[1])
    if kind == "tiny-sdxl":
        assert torch.equal(ours.pooled, theirs[2])
        assert torch.equal(ours.negative_pooled, theirs[3])
        assert ours[:1].pooled.shape == (1, 16)
    else:
        assert ours.pooled is None
    assert ours[1:].prompt.equal(ours.prompt[1:])


def test_one_negative_text_per_prompt_or_one_for_all(pipelines):
    pipe = load(pipelines["tiny-sd"])
    assert encode(pipe, PROMPTS, "dark").negative.equal(encode(pipe, PROMPTS, ["dark", "dark"]).negative)
    with pytest.raises(AdapterError, match="2 prompts but 1 negative"):
        encode(pipe, PROMPTS, ["dark"])
    pipe.register_modules(tokenizer=None)
    with pytest.raises(AdapterError, match="no tokenizer"):
        encode(pipe, PROMPTS)


@pytest.mark.parametrize(("scheduler", "timesteps"), [("heun", 7), ("pndm", 5), ("dpm++2m", 4)])
def test_steps_are_counted_as_people_count_them(pipelines, scheduler, timesteps):
    stage = RecordingStage()
    DiffusersPipeline(pipelines["tiny-sd"], {"scheduler": scheduler}).generate((32, 32), 0, steps=4, stage=stage)
    trace = stage.finish()
    assert (trace.effective["steps"], len(trace.step_s), trace.effective["nfe"]) == (4, 4, 2 * timesteps)


def test_an_unfinished_schedule_is_no_whole_number_of_steps():
    class Scheduler:
        timesteps, num_inference_steps = range(7), 4

    assert [steps_done(Scheduler, calls) for calls in (1, 2, 6, 7)] == [0, 1, 3, 4]
    assert steps_done(object(), 3) == 3


def test_generators_are_those_of_the_seeds():
    first, second = generators([3, 4])
    assert first.initial_seed() == 3
    assert torch.equal(torch.randn(4, generator=second), torch.randn(4, generator=torch.Generator().manual_seed(4)))


def test_direct_wants_size_and_crop_conditioning(pipelines):
    axes = {"height": 64, "width": 64, "steps": 2, "sparsity": 0.0}
    assert "not like SDXL" in Direct(pipelines["tiny-sd"]).supports(axes)
    assert Direct(pipelines["tiny-sdxl"]).supports(axes) is None
    assert "the nearest is 64x72" in Direct(pipelines["tiny-sdxl"]).supports({**axes, "height": 65, "width": 71})
    assert "sparsity" in Direct(pipelines["tiny-sdxl"]).supports({**axes, "sparsity": 0.5})
    assert "from 1 to 1000" in Direct(pipelines["tiny-sdxl"]).supports({**axes, "steps": 1001})


@pytest.mark.parametrize(("kind", "how"), [("lanczos", Image.Resampling.LANCZOS), ("bicubic", Image.Resampling.BICUBIC)])
def test_direct_upsample_enlarges_the_native_image(pipelines, kind, how):
    adapter = DirectUpsample(pipelines["tiny-sdxl"], {"filter": kind})
    large = adapter.generate((128, 192), 2, steps=2)
    small = Direct(pipelines["tiny-sdxl"]).generate((64, 96), 2, steps=2)
    there = Image.fromarray(small.permute(1, 2, 0).numpy()).resize((192, 128), how)
    assert np.array_equal(large.permute(1, 2, 0).numpy(), np.asarray(there))
    axes = {"width": 128, "steps": 2, "sparsity": 0.0}
    assert "nothing to enlarge" in adapter.supports({**axes, "height": 32})
    assert "no whole-pixel canvas" in adapter.supports({**axes, "height": 120})
    assert "nothing to enlarge" in DirectUpsample(pipelines["tiny-sdxl"], {"native": 256}).supports({**axes, "height": 128})


def test_images_that_are_not_finite_are_an_error(pipelines):
    adapter = DiffusersPipeline(pipelines["tiny-sd"])
    adapter.load()
    with torch.no_grad():
        adapter.pipe.vae.decoder.conv_out.bias.fill_(float("nan"))
    with pytest.raises(AdapterError, match="not finite"):
        adapter.generate((32, 32), 0, steps=2)


@pytest.mark.parametrize(("options", "message"), [
    ({"guidence": 3}, "no option 'guidence'; did you mean 'guidance'"),
    ({"guidance": -1}, "not a number >= 0"),
    ({"negative_prompt": 3}, "not a text"),
    ({"arguments": 3}, "not a table"),
    ({"offload": "disk"}, "not one of none, model, sequential"),
    ({"vae_tiling": 1}, "not true or false"),
    ({"config": "sdxl"}, "goes with weights: random"),
    ({"scheduler": 3}, "not a name"),
])
def test_wrong_options_are_seen_before_anything_is_loaded(options, message):
    with pytest.raises(SpecError, match=message):
        DiffusersPipeline("owner/name", options)


@pytest.mark.parametrize(("options", "message"), [
    ({"scheduler": "eular"}, "no scheduler 'eular'; did you mean 'euler'"),
    ({"scheduler": "UNet2DModel"}, "no scheduler"),
    ({"offload": "model"}, "the device is cpu"),
    ({"arguments": {"guidance_rescal": 0.5}}, "did you mean 'guidance_rescale'"),
    ({"arguments": {"height": 3}}, "'height' is set by hibench"),
])
def test_options_that_the_pipeline_does_not_take(pipelines, options, message):
    with pytest.raises(SpecError, match=message):
        DiffusersPipeline(pipelines["tiny-sd"], options).load()


@pytest.mark.parametrize(("options", "message"), [({"filter": "box"}, "lanczos, bicubic"), ({"native": 0}, "number of pixels")])
def test_wrong_options_of_direct_upsample(options, message):
    with pytest.raises(SpecError, match=message):
        DirectUpsample("owner/name", options)


def test_a_record_tells_prompts_by_their_digest(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a red star\n\na blue ring\n")
    assert prompts_digest(str(file)) == prompts_digest(PROMPTS) != prompts_digest(PROMPTS[::-1])
    assert prompts_digest(None) is prompts_digest(str(tmp_path / "absent.txt")) is None
    assert prompts_for(str(file), [10, 11, 12], 10) == ["a red star", "a blue ring", "a red star"]
