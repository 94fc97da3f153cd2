"""Drift: distances of images, golden files by content, and a wrong scheduler step that costs no time and is found."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hibench import drift, spec
from hibench.cells import DRIFT_IMAGES, Cell, expand
from hibench.drift import Golden, compare, pixel_distance
from hibench.errors import HibenchError, MissingWeights, NoBaseline
from hibench.judge import check_sides
from hibench.sides import Side
from hibench.toy import Toy
from hibench.worker import run_job


class WrongStep(Toy):
    """A sampler that uses the step before: as many steps, evaluations and seconds as before, and other images."""

    def generate_batch(self, resolution, seeds, *, steps=None, stage, **more):
        steps = self.default_steps if steps is None else steps

        class OneLess:
            left_out = True

            def __call__(self, name):
                return stage(name)

            def step(self):
                stage.step()
                if self.left_out:                                # pretends to have taken them all
                    stage.step()
                self.left_out = False

            def effective(self, **done):
                stage.effective(**{**done, "steps": steps, "nfe": steps})

        return super().generate_batch(resolution, seeds, steps=steps - 1, stage=OneLess(), **more)


def images(folder: Path, count: int = 8, shift: int = 0, size: int = 16) -> dict[int, Path]:
    folder.mkdir(parents=True)
    for seed in range(count):
        pixels = np.random.default_rng(seed).integers(60, 180, (size, size, 3)) + shift
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{seed}.png")
    return {seed: folder / f"{seed}.png" for seed in range(count)}


def make(adapter, out: Path) -> dict:
    """A drift record of an adapter, made by the worker in this process."""
    cell = Cell("toy", "toy", "drift", 24, 24, steps=4, settings={"images": 8, "first_seed": 0}, device="cpu")
    verdict = run_job({"task": "drift", "cell": cell.to_json(), "out": str(out), "replicate": 0, "shards": []}, adapter=adapter)
    assert verdict["status"] == "ok", verdict
    return {"key": cell.key, "kind": "drift", "status": "ok", "id": "x", "drift": json.loads((out / "drift.json").read_text())}


def side(record: dict, folder: Path) -> Side:
    found = {int(seed): folder / name for seed, name in record["drift"]["samples"].items()}
    return Side(folder.name, {record["key"]: record}, lambda key, record: found)


# -- the gate ----------------------------------------------------------------------------------------------------------------


def test_the_same_method_draws_the_same_images(tmp_path):
    a, b = make(Toy, tmp_path / "a"), make(Toy, tmp_path / "b")
    assert a["drift"]["sha256"] == b["drift"]["sha256"]
    assert len(a["drift"]["samples"]) == DRIFT_IMAGES == drift.SEEDS
    (row,) = [row for row in check_sides(side(a, tmp_path / "a"), side(b, tmp_path / "b")).rows if row.metric == "drift"]
    assert (row.verdict, row.text) == ("ok", "identical")


def test_a_wrong_scheduler_step_is_found(tmp_path):
    base, head = make(Toy, tmp_path / "a"), make(WrongStep, tmp_path / "b")
    report = check_sides(side(base, tmp_path / "a"), side(head, tmp_path / "b"), networks=False)
    (row,) = report.of("regressed")
    assert row.metric == "drift"
    assert row.head > 0.02
    assert "not the images of the baseline" in row.text


def test_other_software_may_explain_a_difference_that_no_network_sees(tmp_path, monkeypatch):
    base, head = make(Toy, tmp_path / "a"), make(WrongStep, tmp_path / "b")
    head["env"] = {"hardware": {"cpu": "another"}, "hardware_digest": "h2", "software_digest": "s"}
    for seen, verdict in ((0.001, "unsure"), (0.5, "regressed")):
        monkeypatch.setattr(drift, "_clip", lambda pairs, seen=seen: seen)
        report = check_sides(side(base, tmp_path / "a"), side(head, tmp_path / "b"))
        assert [row.verdict for row in report.rows if row.metric == "drift"] == [verdict]


def test_a_spec_asks_for_drift(tmp_path):
    path = tmp_path / "b.yaml"
    path.write_text("version: 1\nmethods: {toy: {adapter: toy}}\n"
                    "sweeps: {s: {methods: [toy], measure: [drift], resolution: [8]}}\n")
    (cell,) = expand(spec.load_spec(path)).cells
    assert (cell.key, cell.settings) == ("toy/drift/8x8", {"images": 8, "first_seed": 0})


# -- distances ---------------------------------------------------------------------------------------------------------------


def test_pixels():
    black, grey = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 51, np.uint8)
    assert pixel_distance(black, black) == (0.0, math.inf)
    largest, psnr = pixel_distance(black, grey)
    assert (largest, round(psnr, 2)) == (pytest.approx(0.2), 13.98)
    assert pixel_distance(black, np.zeros((4, 5, 3), np.uint8)) == (1.0, 0.0)


def test_the_worst_image_is_named(tmp_path):
    golden, new = images(tmp_path / "a"), images(tmp_path / "b")
    pixels = np.asarray(Image.open(new[5])).copy()
    pixels[0, 0] = 255
    Image.fromarray(pixels).save(new[5])
    found = compare(golden, new, networks=False)
    assert found.seed == 5
    assert found.text().endswith("(seed 5)")


def test_images_that_are_not_there_or_broken(tmp_path):
    golden, new = images(tmp_path / "a"), images(tmp_path / "b")
    del new[3]
    with pytest.raises(NoBaseline, match="no image of seed 3"):
        compare(golden, new)
    with pytest.raises(NoBaseline, match="no golden images"):
        compare({}, new)
    new[3] = tmp_path / "b" / "3.png"
    new[3].write_bytes(b"no image")
    with pytest.raises(HibenchError, match=r"3\.png: is no readable image"):
        compare(golden, new)


def test_scenes_clip_sees_another_picture_and_not_rounding(tmp_path):
    from hibench import scenes_clip

    try:
        scenes_clip.load("cpu")
    except MissingWeights as error:
        pytest.skip(str(error))
    golden = images(tmp_path / "a", 2, size=64)
    rounding, other = images(tmp_path / "b", 2, shift=1, size=64), images(tmp_path / "c", 4, size=64)
    assert compare(golden, rounding).clip < 0.02
    assert compare(golden, {0: other[2], 1: other[3]}).clip > compare(golden, rounding).clip


def test_lpips_is_left_out_without_its_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert drift._lpips([]) is None


def test_golden_images_are_named_by_their_content(tmp_path):
    made, golden = images(tmp_path / "a"), Golden(tmp_path / "golden")
    digest = golden.add(made[0])
    assert golden.add(made[0]) == digest
    assert golden.path(digest).read_bytes() == made[0].read_bytes()
    golden.add(made[1])
    golden.prune({digest})
    assert [path.stem for path in golden.folder.iterdir()] == [digest]
    with pytest.raises(NoBaseline, match="is not there"):
        golden.path("0" * 64)
