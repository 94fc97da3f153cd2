"""scenes-clip: what the shipped weights know, and that their Fréchet distance ranks damages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hibench import scenes_clip
from hibench.errors import MissingWeights, SpecError
from hibench.metrics.frechet import distance, fit
from hibench.references import scenes
from hibench.scenes_clip.degradations import DEGRADATIONS, degraded
from hibench.scenes_clip.train import HELD_OUT_SEED, evaluate


@pytest.fixture(scope="module")
def clip() -> scenes_clip.ScenesClip:
    return scenes_clip.load()


def test_shipped_weights_know_shapes_colours_and_captions(clip: scenes_clip.ScenesClip) -> None:
    """Held-out scenes; the figures of 1000 scenes are in training.json."""
    scores = evaluate(clip, 200, HELD_OUT_SEED + 5 * 10**6)
    assert scores["shape_top1"] > 0.9
    assert scores["colour_top1"] > 0.9
    assert scores["retrieval_top1"] > 0.9
    assert scenes_clip.WEIGHTS.stat().st_size < 8e6


def test_stored_class_embeddings_are_those_of_the_text_tower(clip: scenes_clip.ScenesClip) -> None:
    assert torch.allclose(clip.class_embeddings(), clip.classes, atol=1e-4)


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_distance_grows_with_the_strength_of_a_damage(clip: scenes_clip.ScenesClip, name: str) -> None:
    reference = fit(clip.encode_image(scenes.render(range(HELD_OUT_SEED, HELD_OUT_SEED + 200), 64)))
    strengths = (0.0, 0.5, 1.0)
    d = [distance(fit(clip.encode_image(degraded(name, s, 200, HELD_OUT_SEED + 1000))), reference) for s in strengths]
    assert d[0] < d[1] < d[2]


def test_training_json_tells_the_ranking_at_every_strength() -> None:
    told = json.loads((scenes_clip.FOLDER / "training.json").read_text())["held_out"]["fd_by_degradation"]
    for name in DEGRADATIONS:
        assert told[name] == sorted(told[name]), name


def test_features_do_not_depend_on_the_batch(clip: scenes_clip.ScenesClip) -> None:
    images = scenes.render(range(3), 96, 160)
    assert torch.allclose(clip.encode_image(images)[1:2], clip.encode_image(images[1:2]), atol=1e-4)


def test_box_resize_is_the_mean_over_areas() -> None:
    x = torch.rand(1, 2, 6, 9)
    assert torch.allclose(scenes_clip.box_resize(x, 2, 3), torch.nn.functional.avg_pool2d(x, 3), atol=1e-6)
    assert torch.allclose(scenes_clip.box_resize(x, 12, 9), x.repeat_interleave(2, 2), atol=1e-6)
    assert scenes_clip.box_resize(x, 4, 4).mean() == pytest.approx(float(x.mean()), abs=1e-6)


def test_text_beyond_the_world_of_scenes_is_refused(clip: scenes_clip.ScenesClip) -> None:
    with pytest.raises(SpecError, match="unknown word 'cat' in prompt"):
        clip.encode_text(["a photo of a cat".replace("photo of a ", "")])
    with pytest.raises(SpecError, match="did you mean 'purple'"):
        clip.encode_text(["a purpel star"])
    with pytest.raises(SpecError, match="at most 30 fit"):
        clip.encode_text(["a red star and " * 10])


@pytest.mark.parametrize("content", [b"", b"not safetensors", "truncated"])
def test_a_bad_weights_file_is_one_clear_error(tmp_path: Path, content: bytes | str) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(scenes_clip.WEIGHTS.read_bytes()[:-1000] if isinstance(content, str) else content)
    with pytest.raises(MissingWeights, match="is not a scenes-clip weights file") as error:
        scenes_clip.load("cpu", path)
    assert "\n" not in str(error.value)
    with pytest.raises(MissingWeights, match="make them with: hibench train scenes-clip"):
        scenes_clip.load("cpu", tmp_path / "none")
