"""Cells: expansion, keys, ids."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hibench import cells
from hibench.cells import Cell, cell_id, expand
from hibench.errors import SpecError
from hibench.spec import Method, Quality, Reference, Spec, Sweep, Timing, load_spec

SCENES = {"name": "scenes", "kind": "scenes", "seed": 0}
CELL = Cell("ldm", "ldm", "quality", 64, 128, options={"collage": "pixel", "eta": 0.0}, steps=50, sparsity=0.75, settings={
    "images": 1000, "reference": SCENES, "extractor": "scenes-clip", "metrics": ["fid", "kid"], "batch": 16, "shard": 64,
    "keep": 8, "first_seed": 0, "blocks": 3})
SPEED = dataclasses.replace(CELL, kind="speed", settings={"processes": 5, "images": 10, "warmup": 2, "max_seconds": None,
                                                          "energy": True})


def make(**sweeps: Sweep) -> Spec:
    """A spec of two methods; `first` has options of its own."""
    methods = {"first": Method("first", "toy", options={"waves": 24}), "second": Method("second", "toy")}
    return Spec(Path("b.yaml"), methods, {name: dataclasses.replace(sweep, name=name) for name, sweep in sweeps.items()})


def sweep(**changes: object) -> Sweep:
    return Sweep(**{"name": "", "methods": ("first",), "resolution": ((64, 64),), "measure": ("speed",), **changes})


def keys(spec: Spec, *only: str) -> list[str]:
    return [cell.key for cell in expand(spec, only or None, lambda adapter: None)]


def ident(cell: Cell, **more: object) -> str:
    return cell_id(cell, **{"adapter_digest": "a", "weights_digest": "w", "env_digest": "e", **more})


# -- keys and expansion ----------------------------------------------------------------------------------------------


def test_key():
    assert CELL.key == "ldm/quality/64x128/steps=50/sparsity=0.75"
    assert dataclasses.replace(CELL, steps=None, sparsity=0.0).key == "ldm/quality/64x128"
    assert dataclasses.replace(CELL, option_axes={"collage": "pixel", "a": [1, "x/y"]}).key == (
        "ldm/quality/64x128/steps=50/sparsity=0.75/a=1+x_y/collage=pixel")
    plain = dataclasses.replace(CELL, steps=None, sparsity=0.0)
    assert dataclasses.replace(plain, setting_axes={"images": 10}).key == "ldm/quality/64x128/images=10"
    long = dataclasses.replace(CELL, option_axes={"prompt": "x" * 200}).key
    assert len(long) < 120
    assert long != dataclasses.replace(CELL, option_axes={"prompt": "x" * 201}).key


def test_axes_and_json():
    assert CELL.axes == {"height": 64, "width": 128, "steps": 50, "sparsity": 0.75}
    assert Cell.from_json(json.loads(json.dumps(CELL.to_json()))) == CELL
    with pytest.raises(SpecError, match="unknown keys zebra"):
        Cell.from_json(CELL.to_json() | {"zebra": 1})


def test_expand_is_the_product_in_the_order_of_the_file():
    methods, kinds = ("second", "first"), ("quality", "speed")
    spec = make(one=sweep(methods=methods, measure=kinds, resolution=((64, 64), (32, 64)), steps=(2, 4)))
    assert keys(spec) == [f"{method}/{kind}/{size}/steps={steps}" for method in methods for kind in kinds
                          for size in ("64x64", "32x64") for steps in (2, 4)]


def test_cells_hold_what_their_worker_needs():
    method = Method("m", "toy", "w.pt", {"waves": 3}, ["a cat"], "bfloat16", "cuda", 9.0)
    photos = Reference("photos", "folder", path="/photos")
    both = sweep(methods=("m",), measure=("speed", "quality"), options={"cost": [5]}, quality=Quality(reference="photos"))
    spec = Spec(Path("b.yaml"), {"m": method}, {"one": both}, {"photos": photos})
    speed, quality = expand(spec, axes_of=lambda adapter: None)
    assert (speed.weights, speed.options, speed.option_axes) == ("w.pt", {"waves": 3, "cost": 5}, {"cost": 5})
    assert (speed.prompts, speed.dtype, speed.device, speed.timeout_s) == (["a cat"], "bfloat16", "cuda", 9.0)
    assert speed.settings == dataclasses.asdict(Timing())
    assert speed.settings["processes"] == 5
    assert quality.settings["reference"] == {"name": "photos", "kind": "folder", "path": "/photos"}
    assert quality.settings["metrics"] == ["fid", "kid", "is", "precision", "recall", "clip-score"]
    assert json.loads(json.dumps(quality.to_json())) == quality.to_json()


def test_cells_that_sweeps_share_are_run_once():
    spec = make(one=sweep(steps=(2, 4)), two=sweep(steps=(4, 8)))
    plan = expand(spec, axes_of=lambda adapter: None)
    assert [cell.steps for cell in plan] == [2, 4, 8]
    assert plan.sweeps == {"one": ["first/speed/64x64/steps=2", "first/speed/64x64/steps=4"],
                           "two": ["first/speed/64x64/steps=4", "first/speed/64x64/steps=8"]}


def test_an_option_that_the_method_has_anyway_is_the_same_cell():
    """A key is a function of the content, so it stays when another sweep is added."""
    spec = make(one=sweep(), two=sweep(options={"waves": [24.0, 3]}))
    assert keys(spec) == ["first/speed/64x64", "first/speed/64x64/waves=3"]


def test_other_settings_are_another_cell_with_another_key():
    other = Quality(images=9, metrics=("fid", "kid"), keep=1)
    spec = make(one=sweep(measure=("quality",)), two=sweep(measure=("quality",), quality=other))
    assert keys(spec) == ["first/quality/64x64", "first/quality/64x64/images=9/metrics=fid+kid"]


def test_settings_that_change_no_number_are_the_same_cell():
    spec = make(one=sweep(measure=("quality",)), two=sweep(measure=("quality",), quality=Quality(keep=1, shard=2, batch=3)))
    assert keys(spec) == ["first/quality/64x64"]


def test_two_contents_with_one_key_are_an_error():
    spec = make(one=sweep(measure=("quality",), options={"images": [9]}),
                two=sweep(measure=("quality",), quality=Quality(images=9)))
    with pytest.raises(SpecError, match=r"sweeps\.two: two different cells have the key first/quality/64x64/images=9"):
        keys(spec)


def test_a_method_without_steps_has_one_cell_for_all_of_them():
    plan = expand(make(one=sweep(methods=("first", "second"), steps=(2, 4))), axes_of={"toy": frozenset({"resolution"})}.get)
    assert [cell.key for cell in plan] == ["first/speed/64x64", "second/speed/64x64"]
    assert plan.sweeps["one"] == ["first/speed/64x64", "second/speed/64x64"]


def test_axes_of_adapters_are_looked_up():
    assert cells.adapter_axes("toy") == {"resolution", "steps", "sparsity"}
    assert cells.adapter_axes("nobody") is None
    assert [cell.steps for cell in expand(make(one=sweep(steps=(2, 4))))] == [2, 4]


# -- only ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def three() -> Spec:
    return make(one=sweep(methods=("first", "second"), measure=("speed", "quality")), two=sweep(steps=(2,)),
                paper=sweep(steps=(2, 4), default=False))


def test_without_only_the_default_sweeps_run(three):
    assert set(expand(three, axes_of=lambda adapter: None).sweeps) == {"one", "two"}
    assert len(keys(three)) == 5


@pytest.mark.parametrize(("only", "found"), [
    (["paper"], ["first/speed/64x64/steps=2", "first/speed/64x64/steps=4"]),
    (["two", "paper"], ["first/speed/64x64/steps=2", "first/speed/64x64/steps=4"]),
    (["second"], ["second/speed/64x64", "second/quality/64x64"]),
    (["second", "quality"], ["second/quality/64x64"]),
    (["*/64x64"], ["first/speed/64x64", "first/quality/64x64", "second/speed/64x64", "second/quality/64x64"]),
    (["*steps=2", "first"], ["first/speed/64x64/steps=2"]),
    (["first/speed/64x64"], ["first/speed/64x64"]),
    (["first/speed/64x64/steps=2", "second/*", "speed"], ["second/speed/64x64", "first/speed/64x64/steps=2"]),
])
def test_only(three, only, found):
    assert keys(three, *only) == found


@pytest.mark.parametrize(("only", "said"), [
    (["papr"], "--only: no sweep, method or kind is named 'papr'; did you mean 'paper'?"),
    (["xyz"], "--only: no sweep, method or kind is named 'xyz' (sweeps: one, two, paper)"),
    (["*/7x7"], "--only */7x7: names no cell; `hibench list cells` shows them"),
    (["paper", "second"], "--only paper second: names no cell; `hibench list cells` shows them"),
])
def test_only_that_names_nothing(three, only, said):
    with pytest.raises(SpecError) as caught:
        keys(three, *only)
    assert str(caught.value) == said


def test_a_file_without_default_sweeps_says_so():
    with pytest.raises(SpecError, match=r"b.yaml: every sweep has `default: false`; name one, e.g. --only paper"):
        keys(make(paper=sweep(default=False)))


# -- ids -------------------------------------------------------------------------------------------------------------


def test_id_is_16_hex_digits_and_stays_the_same():
    """The literal guards every record on disk: if it must change, raise PROTOCOL."""
    assert ident(CELL) == "40e296435c043a66"
    assert ident(SPEED) == "fcddf7c5a889d828"


@pytest.mark.parametrize("changes", [
    {"method": "other"}, {"kind": "drift"}, {"height": 65}, {"width": 129}, {"steps": 51}, {"steps": None}, {"sparsity": 0.5},
    {"weights": "random"}, {"options": {"collage": "pixel", "eta": 0.5}}, {"options": {"collage": "pixel"}}, {"prompts": ["a"]},
    {"device": "cuda"}, {"dtype": "float16"}, {"adapter": "toy"},
    *({"settings": CELL.settings | change} for change in (
        {"images": 999}, {"first_seed": 1}, {"blocks": 4}, {"metrics": ["fid"]}, {"extractor": "vgg16"},
        {"reference": {"name": "scenes", "kind": "scenes", "seed": 1}}, {"reference": {"kind": "folder", "path": "/x"}})),
], ids=str)
def test_whatever_changes_a_number_changes_the_id(changes):
    assert ident(dataclasses.replace(CELL, **changes)) != ident(CELL)


@pytest.mark.parametrize("changes", [
    {"timeout_s": 5.0}, {"option_axes": {"collage": "pixel"}}, {"setting_axes": {"images": 1000}},
    {"options": {"eta": 0, "collage": "pixel"}},
    *({"settings": CELL.settings | change} for change in (
        {"keep": 99}, {"batch": 1}, {"shard": 7}, {"reference": {"seed": 0, "kind": "scenes", "name": "renamed"}})),
], ids=str)
def test_whatever_changes_no_number_keeps_the_id(changes):
    assert ident(dataclasses.replace(CELL, **changes)) == ident(CELL)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Timing) if field.name != "max_processes"])
def test_every_setting_of_timing_changes_the_id_of_speed_cells(name):
    assert ident(dataclasses.replace(SPEED, settings=SPEED.settings | {name: 77})) != ident(SPEED)


def test_a_setting_that_is_off_does_not_count_so_that_new_ones_keep_old_records():
    assert ident(dataclasses.replace(SPEED, settings=SPEED.settings | {"new": None, "max_processes": 7})) == ident(SPEED)
    one, two = (SPEED.settings | {"interval": 0.1, "max_processes": count} for count in (7, 8))
    assert ident(dataclasses.replace(SPEED, settings=one)) != ident(dataclasses.replace(SPEED, settings=two))


def test_digests():
    for name in ("adapter_digest", "weights_digest"):
        assert ident(CELL, **{name: "changed"}) != ident(CELL)
    assert ident(CELL, protocol=2) != ident(CELL)
    assert ident(CELL, env_digest="changed") == ident(CELL)
    assert ident(SPEED, env_digest="changed") != ident(SPEED)


def test_places_on_disk_do_not_count():
    one, two = (dataclasses.replace(CELL, adapter=f"/{place}/m.py:Mine", weights=f"/{place}/w.pt") for place in ("a", "b"))
    assert ident(one) == ident(two)
    assert ident(dataclasses.replace(one, adapter="/a/m.py:Other")) != ident(one)


def test_prompts_count_by_their_text(tmp_path):
    for name, text in (("a", "a cat\n"), ("b", "a cat\n"), ("c", "a dog\n")):
        (tmp_path / name).write_text(text)
    a, b, c = (ident(dataclasses.replace(CELL, prompts=str(tmp_path / name))) for name in "abc")
    assert a == b != c


def test_sweeps_reordered_and_renamed_keep_ids(tmp_path):
    text = """\
version: 1
methods: {toy: {adapter: toy}, other: {adapter: toy, options: {waves: 3}}}
sweeps:
  one: {methods: [toy, other], resolution: [64, 32], steps: [2, 4]}
  two: {methods: [other], resolution: [32], options: {waves: [3, 5]}, quality: {images: 20}}
"""
    turned = """\
sweeps:
  zwei: {quality: {images: 20}, options: {waves: [5, 3]}, resolution: [[32, 32]], methods: [other]}
  eins: {steps: [4, 2], resolution: [32, 64], methods: [other, toy], measure: [quality, speed]}
methods: {other: {options: {waves: 3}, adapter: toy, timeout: 7}, toy: {adapter: toy}}
version: 1
"""
    found = []
    for content in (text, turned):
        (tmp_path / "b.yaml").write_text(content)
        found.append({cell.key: ident(cell) for cell in expand(load_spec(tmp_path / "b.yaml"), axes_of=lambda adapter: None)})
    assert found[0] == found[1]
    assert len(set(found[0].values())) == len(found[0]) == 20


SCALARS = st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-9, 9) | st.text(max_size=3)
KEYS = st.text(max_size=2)
VALUES = st.recursive(SCALARS, lambda inner:
                      st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=2), max_leaves=6)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.dictionaries(st.text(max_size=2), VALUES, max_size=4))
def test_order_of_options_does_not_count_and_json_keeps_the_id(options):
    cell = dataclasses.replace(CELL, options=options)
    turned = dataclasses.replace(CELL, options=dict(reversed(options.items())))
    assert ident(cell) == ident(turned) == ident(Cell.from_json(json.loads(json.dumps(cell.to_json()))))


def test_exports_are_true():
    assert all(hasattr(cells, name) for name in cells.__all__)
