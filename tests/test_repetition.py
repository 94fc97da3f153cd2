"""Repeated objects: true scenes against collages of scenes, the metric's name, and when it does not apply."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hibench import features
from hibench.errors import SpecError
from hibench.extractors.windows import windows
from hibench.metrics.evaluate import FeatureSet, Scores, evaluate
from hibench.metrics.plan import parse
from hibench.metrics.repetition import classes_of_prompts, shown
from hibench.references import scenes

SEEDS = range(40)
NAME = "repetition@scenes-clip@64"


def measured(images: torch.Tensor, prompts: list[str] | None, reference: torch.Tensor | None = None) -> Scores:
    """`repetition@64` of images, with true scenes of the same seeds as the reference."""
    size = (images.shape[-2], images.shape[-1])
    opened = features.open_extractors({"metrics": ["repetition@64"]}, resolution=size)
    samples = FeatureSet(features.run(opened, images), len(images), size, captions=prompts)
    true = None
    if reference is not None:
        true = FeatureSet(features.run(opened, reference), len(reference), size, captions=scenes.captions(SEEDS))
    return evaluate([parse("repetition@64")], samples, true, opened)


@pytest.fixture(scope="module")
def native() -> torch.Tensor:
    return scenes.render(SEEDS, 64)


def test_collages_repeat_and_true_scenes_do_not(native):
    prompts = scenes.captions(SEEDS)
    true = scenes.render(SEEDS, 128)
    real = measured(true, prompts, true).values[NAME]
    tiled = measured(native.repeat(1, 1, 2, 2), prompts, true).values[NAME]
    assert real["value"] == real["reference_value"] < 0.25
    assert tiled["value"] > 0.8
    assert tiled["value"] > 3 * tiled["reference_value"]
    assert tiled["images_with_several"] > 0.8 > 0.3 > real["images_with_several"]
    assert tiled["windows"] == 4
    assert len(tiled["prompts_digest"]) == 64


def test_an_object_of_another_prompt_is_no_repetition(native):
    others = scenes.captions([seed + 1 for seed in SEEDS])
    assert measured(native.repeat(1, 1, 2, 2), others).values[NAME]["value"] < 0.2


def test_a_collage_of_two_scenes_has_half_of_the_windows(native):
    prompts = scenes.captions(SEEDS)
    whole = measured(torch.cat([native, native], -1), prompts).values[NAME]["value"]
    half = measured(torch.cat([native, native.roll(1, 0)], -1), prompts).values[NAME]["value"]
    assert whole / 2 - 0.05 < half < whole / 2 + 0.15


def test_it_does_not_apply_without_prompts_objects_or_windows(native):
    wide = native[:2].repeat(1, 1, 1, 2)
    assert measured(wide, None).inapplicable == {"repetition@64": "repetition@64: the method takes no prompt"}
    assert "names no object" in measured(wide, ["a red star", "a photo of a cat"]).inapplicable["repetition@64"]
    assert "64x64 px images have no two windows" in measured(native[:2], ["a red star"] * 2).inapplicable["repetition@64"]
    assert "2 images but 1 prompts" in measured(wide, ["a red star"]).missing["repetition@64"]


def test_its_name_says_the_size_of_the_windows():
    with pytest.raises(SpecError, match="repetition@64"):
        parse("repetition")
    with pytest.raises(SpecError, match="defined with scenes-clip"):
        parse("repetition@64@clip-vit-b-32")


def test_windows_are_cut_row_by_row():
    images = torch.arange(2 * 3 * 5 * 6).view(2, 3, 5, 6)
    cut = windows(images, 2)
    assert cut.shape == (2, 6, 3, 2, 2)
    assert cut[1, 4].equal(images[1, :, 2:4, 2:4])


def test_the_first_object_of_a_prompt_counts():
    found = classes_of_prompts([*scenes.captions(SEEDS), "A Blue  Ring and a red star"])
    assert found.tolist() == [*(scenes.class_index(seed) for seed in SEEDS), 4 * 8 + 5]
    assert classes_of_prompts(["two stars"]) is None


def test_the_class_of_a_window_is_the_most_likely_one():
    logits = np.zeros((2, 3, 64), np.float32)
    logits[0, 1, 7], logits[1, :, 9] = 1, 1
    assert shown(logits, np.array([7, 9])).tolist() == [[False, True, False], [True, True, True]]
