"""plots, draw, show: figures hold the records' numbers, say what they show, and keep text and data apart."""

from __future__ import annotations

import functools
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import records
from PIL import Image

from hibench import draw, plots, rows, show
from hibench.errors import SpecError


def rows_of(made: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [rows.flatten(one) for one in made]


def drawn(made: list[dict[str, Any]], results: Path = Path("nowhere")) -> dict[str, draw.Drawn]:
    return {one.stem.partition("-")[2]: one for one in plots.draw_sweep("sweep", rows_of(made), results)}


def both(method: str, resolution: Any = 64, steps: int | None = 50, sparsity: float | None = None,
         **more: Any) -> list[dict[str, Any]]:
    return [records.record(method, kind, resolution, steps, sparsity, **more) for kind in ("speed", "quality")]


def lines(one: draw.Drawn, panel: int = 0) -> list[tuple[list[float], list[float]]]:
    """The data of the error-bar lines of a panel."""
    return [(list(map(float, box.lines[0].get_xdata())), list(map(float, box.lines[0].get_ydata())))
            for box in one.figure.axes[panel].containers]


RESOLUTIONS = [one for method in ("ldm", "infd") for resolution in (64, 128, 256) for one in both(method, resolution)]
REAL = [records.record("real", "quality", resolution, None) for resolution in (64, 128, 256)]


@functools.cache
def standard() -> dict[str, draw.Drawn]:
    """The figures of RESOLUTIONS, drawn once for the tests that only look."""
    return drawn(RESOLUTIONS)


def test_only_plots_that_have_data_are_drawn() -> None:
    assert drawn(both("ldm")) == {}
    assert set(standard()) == {"quality-resolution", "latency-resolution", "memory-resolution", "pareto"}
    assert set(drawn([one for one in RESOLUTIONS if one["kind"] == "speed"])) == {"latency-resolution", "memory-resolution"}
    stepped = [one for steps in (5, 50) for one in both("ldm", steps=steps)]
    assert set(drawn(stepped)) == {"quality-steps", "latency-steps", "pareto"}
    sparse = [one for sparsity in (0.0, 0.5) for one in both("infty-diff", sparsity=sparsity)]
    assert set(drawn(sparse)) == {"quality-sparsity", "latency-sparsity", "pareto"}
    failed = [records.record("ldm", "speed", resolution, status="oom") for resolution in (64, 128)]
    assert drawn(failed) == {}


def test_curves_are_the_numbers_of_the_records() -> None:
    found = lines(standard()["latency-resolution"])
    for method, (x, y) in zip(("infd", "ldm"), found, strict=True):
        wanted = [one["speed"] for one in RESOLUTIONS if one["method"]["name"] == method and one["kind"] == "speed"]
        assert x == [64, 128, 256]
        assert y == pytest.approx([speed["latency_p50_s"] for speed in wanted])
    box = standard()["latency-resolution"].figure.axes[0].containers[1]
    assert list(box.lines[2][0].get_segments()[0][:, 1]) == pytest.approx(wanted[0]["latency_ci_s"])


def test_every_metric_has_a_panel_with_its_extractor_and_direction() -> None:
    axes = standard()["quality-resolution"].figure.axes
    labels = [one.get_ylabel() for one in axes]
    assert labels[:3] == ["FD ↓\n@scenes-clip", "KD ×10³ ↓\n@scenes-clip", "IS ↑\n@scenes-clip"]
    assert len(labels) == 6
    fd = next(one["quality"]["values"]["fd@scenes-clip"]["value"] for one in RESOLUTIONS
              if one["kind"] == "quality" and one["method"]["name"] == "infd")
    assert lines(standard()["quality-resolution"])[0][1][0] == pytest.approx(fd)


def test_axes_have_units_true_resolutions_and_natural_scales() -> None:
    more = [*RESOLUTIONS, *both("ldm", (64, 1024))]
    axes = drawn(more)["latency-resolution"].figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["64²", "128²", "256²"]     # 64×1024 has the area of 256²
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("Latency per image (s)", "Resolution (pixels)")
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    memory = standard()["memory-resolution"].figure.axes[0]
    assert memory.get_ylabel() == "Peak memory (MiB)"
    wide = drawn([*both("ldm", (64, 128)), *both("ldm", 64)])["latency-resolution"].figure.axes[0]
    assert [label.get_text() for label in wide.get_xticklabels()] == ["64²", "64×128"]


def test_a_figure_states_sweep_n_fixed_axes_and_machine() -> None:
    figures = standard()
    says = figures["quality-resolution"].figure.get_suptitle()
    assert says == "Sweep sweep, n = 128 images per point, 50 steps"
    says = figures["latency-resolution"].figure.get_suptitle().replace("\n", " ")
    assert says == "Sweep sweep, 50 timed images in 5 processes per point, 50 steps; Example CPU @ 2.50GHz (2 cores)"
    assert says in figures["latency-resolution"].caption


def test_machines_get_figures_of_their_own() -> None:
    figures = drawn([one for machine in (records.CPU, records.GPU) for resolution in (64, 128)
                     for one in both("ldm", resolution, hardware=machine)])
    assert {"latency-resolution-a", "latency-resolution-b", "quality-resolution"} <= set(figures)
    for stem, machine in (("latency-resolution-a", "Example CPU"), ("latency-resolution-b", "NVIDIA H200")):
        assert machine in figures[stem].caption
        assert len(lines(figures[stem])) == 1


def test_failures_are_marked_above_the_data_and_in_the_legend() -> None:
    failed = records.record("patch-dm", resolution=256, status="oom")
    made = [*RESOLUTIONS, failed, *both("patch-dm", 64), *both("patch-dm", 128)]
    figure = drawn(made)["latency-resolution"].figure
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["oom"]
    assert "no result (see table)" in [text.get_text() for text in figure.legends[0].get_texts()]
    figure.draw_without_rendering()
    mark = next(line for line in axes.lines if line.get_marker() == "x")
    highest = max(value for box in axes.containers for value in box.lines[0].get_ydata())
    edge = axes.transAxes.inverted().transform(axes.transData.transform((256, highest)))[1]
    assert edge < mark.get_ydata()[0] - 0.05


def test_baselines_beside_the_data_are_lines_and_far_ones_are_named_with_their_value() -> None:
    figures = drawn([*RESOLUTIONS, *REAL])
    figure = figures["quality-resolution"].figure
    fd, kd = figure.axes[:2]
    assert (fd.get_title(loc="right"), len(fd.containers)) == ("", 3)
    assert kd.get_title(loc="right").startswith("real (floor) 0.4")
    assert kd.get_title(loc="right").endswith(" ↓")
    assert len(kd.containers) == 2
    assert min(kd.get_ylim()) > 2                                # the far baseline does not squeeze the data
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["infd", "ldm", "real (floor)"]
    assert len(figures["latency-resolution"].figure.axes[0].containers) == 2


def test_the_front_holds_what_nothing_beats() -> None:
    made = []
    for name, latency, fd in (("a", 1.0, 50.0), ("b", 2.0, 20.0), ("c", 3.0, 30.0), ("d", 4.0, 10.0)):
        speed, quality = both(name)
        speed["speed"] |= {"latency_p50_s": latency, "latency_ci_s": None}
        quality["quality"]["values"]["fd@scenes-clip"] |= {"value": fd, "pm": None}
        made += [speed, quality]
    axes = drawn(made)["pareto"].figure.axes[0]
    front = next(line for line in axes.lines if line.get_drawstyle() == "steps-post")
    assert list(zip(front.get_xdata(), front.get_ydata())) == [(1.0, 50.0), (2.0, 20.0), (4.0, 10.0)]
    assert axes.get_xscale() == "log"
    assert axes.get_title(loc="left") == "64²"


@pytest.mark.parametrize("stem", ["quality-resolution", "latency-resolution", "pareto"])
def test_legend_and_texts_stay_off_the_panels(stem: str) -> None:
    made = [one for method in ("ldm", "infd", "infty-diff", "patch-dm", "upsample") for resolution in (64, 128)
            for one in both(method, resolution)] + REAL[:2]
    figure = drawn(made)[stem].figure
    figure.draw_without_rendering()
    page = figure.bbox
    for axes in figure.axes:
        box = axes.get_window_extent()
        assert not figure.legends[0].get_window_extent().overlaps(box)
        assert box.width > 0.14 * page.width
        for text in (axes.xaxis.label, axes.yaxis.label):
            edge = text.get_window_extent()
            assert edge.x0 >= -1
            assert edge.y0 >= -1
            assert edge.x1 <= page.width + 1
            assert edge.y1 <= page.height + 1
        shown = [label.get_window_extent() for label in axes.get_xticklabels()]
        assert not any(one.overlaps(other) for one, other in itertools.pairwise(shown))
    texts = figure.findobj(lambda artist: hasattr(artist, "get_fontsize") and artist.get_text())
    assert min(text.get_fontsize() for text in texts) >= 6


def test_methods_differ_by_more_than_colour() -> None:
    looks = draw.looks_of(f"m{number:02}" for number in range(14))
    assert len({(one["color"], one["marker"], one["linestyle"]) for one in looks.values()}) == 14
    assert len({one["marker"] for one in list(looks.values())[:11]}) == 11
    assert draw.looks_of(["b", "a"]) == draw.looks_of(["a", "b"])


def test_too_many_curves_become_panels_per_method() -> None:
    made = [records.record(method, "speed", resolution, steps) for method in ("ldm", "infd", "patch-dm")
            for resolution in (64, 128) for steps in (5, 10, 25, 50)]
    figure = drawn(made)["latency-resolution"].figure
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["infd", "ldm", "patch-dm"]
    assert all(len(axes.containers) == 4 for axes in figure.axes)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["5 steps", "10 steps", "25 steps", "50 steps"]
    for settings in zip(*(axes.containers for axes in figure.axes)):
        assert len({box.lines[0].get_color() for box in settings}) == 1


def steps_and_sizes(*methods: str, sparsity: tuple[float | None, ...] = (None,)) -> list[dict[str, Any]]:
    return [records.record(method, "quality", resolution, steps, fraction) for method in methods for fraction in sparsity
            for resolution in (64, 128) for steps in (5, 10, 50)]


def test_quality_over_steps_and_resolutions_has_a_figure_per_metric_and_a_line_per_resolution() -> None:
    made = steps_and_sizes("ldm", "infd")
    figures = [one for one in drawn([*made, *REAL[:2]]).items() if one[0].startswith("steps-resolution")]
    assert [stem for stem, _ in figures] == [f"steps-resolution-{name}-scenes-clip"
                                             for name in ("fd", "kd", "is", "precision", "recall", "clip-score")]
    figure = figures[0][1].figure
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["infd", "ldm"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["64²", "128²"]
    for panel, method in enumerate(("infd", "ldm")):
        for resolution, (x, y) in zip((64, 128), lines(figures[0][1], panel), strict=True):
            mine = [one["quality"]["values"]["fd@scenes-clip"]["value"] for one in made
                    if (one["method"]["name"], one["axes"]["height"]) == (method, resolution)]
            assert (x, y) == ([5, 10, 50], pytest.approx(mine))
    assert len({axes.get_ylim() for axes in figure.axes}) == 1
    assert figure.axes[0].get_xscale() == "log"
    value = made[0]["quality"]["values"]["fd@scenes-clip"]
    bar = lines_of_bars(figure.axes[1])[0][0]
    assert list(bar) == pytest.approx([value["value"] - value["pm"], value["value"] + value["pm"]])
    assert "FD against steps, a line per resolution. Sweep sweep, n = 128 images per point" in figures[0][1].caption


def lines_of_bars(axes: Any) -> list[list[np.ndarray]]:
    """Lower and upper ends of the error bars, per line of a panel and per point."""
    return [[segment[:, 1] for segment in box.lines[2][0].get_segments()] for box in axes.containers]


def test_sparsities_get_panels_and_failed_cells_a_mark_in_the_colour_of_their_resolution() -> None:
    made = [*steps_and_sizes("infty-diff", sparsity=(0.0, 0.75)), *steps_and_sizes("ldm")]
    made[5] = records.record("infty-diff", "quality", 128, 50, 0.0, status="oom")
    figure = drawn(made)["steps-resolution-fd-scenes-clip"].figure
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["infty-diff, s = 0", "infty-diff, s = 0.75", "ldm"]
    assert [text.get_text() for text in figure.axes[0].texts] == ["oom"]
    mark = next(line for line in figure.axes[0].lines if line.get_marker() == "x")
    assert mark.get_color() == figure.axes[0].containers[1].lines[0].get_color()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["64²", "128²", "no result (see table)"]


def test_methods_that_vary_steps_or_resolution_alone_get_no_panel_of_both() -> None:
    alone = [records.record("infd", "quality", 64, steps) for steps in (5, 50)]
    alone += [records.record("upsample", "quality", resolution, 50) for resolution in (64, 128)]
    assert not [stem for stem in drawn(alone) if stem.startswith("steps-resolution")]
    figure = drawn([*steps_and_sizes("ldm"), *alone])["steps-resolution-fd-scenes-clip"].figure
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["ldm"]


def test_crowded_ticks_keep_their_marks_and_lose_their_labels() -> None:
    figure, (axes,), _ = draw.panels(1, 1)
    draw.ticks(axes, {0.0: "0", 0.5: "0.5", 0.75: "0.75", 0.875: "0.875"}, log2=False, width_in=1.0)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "0.5", "0.875"]
    assert list(axes.get_xticks(minor=True)) == [0.75]
    assert figure.get_size_inches()[0] == draw.COLUMN_IN


def test_png_is_200_dpi_and_pdf_is_vector_with_truetype(tmp_path: Path) -> None:
    made = [records.record("ldm", "speed", resolution) for resolution in (64, 128)]
    png, pdf = draw.save(drawn(made)["latency-resolution"], tmp_path)
    with Image.open(png) as image:
        assert image.width == round(draw.COLUMN_IN * 200)
        assert image.info["dpi"] == pytest.approx((200, 200), abs=0.1)
    content = pdf.read_bytes()
    assert b"/FontFile2" in content
    assert b"/Subtype /Image" not in content


def test_missing_intervals_and_values_are_no_obstacle() -> None:
    made = [one for resolution in (64, 128, 256) for one in both("ldm", resolution)]
    for one in made:
        if one["kind"] == "speed":
            one["speed"] |= {"latency_ci_s": None, "peak_bytes": None}
        else:
            value = math.nan if one["axes"]["height"] == 128 else 30.0
            one["quality"]["values"]["fd@scenes-clip"] |= {"value": value, "pm": None}
    figures = drawn(made)
    assert set(figures) == {"quality-resolution", "latency-resolution"}
    assert lines(figures["quality-resolution"])[0] == ([64, 256], [30.0, 30.0])


# -- grids of images -------------------------------------------------------------------------------------------------------


def sample_axes(one: draw.Drawn) -> dict[tuple[int, int], Any]:
    """Pictures of a grid by (row from the top, column)."""
    axes = [axis for axis in one.figure.axes if axis.images]
    tops = sorted({round(axis.get_position().y1, 4) for axis in axes}, reverse=True)
    lefts = sorted({round(axis.get_position().x0, 4) for axis in axes})
    return {(tops.index(round(axis.get_position().y1, 4)), lefts.index(round(axis.get_position().x0, 4))): axis
            for axis in axes}


def test_sample_grid_shows_the_same_seeds_unblurred(tmp_path: Path) -> None:
    made = [records.record(method, "quality", resolution) for method in ("ldm", "real") for resolution in (64, 128)]
    records.write(tmp_path, made, samples=3)
    (tmp_path / "cells" / made[0]["id"][:2] / made[0]["id"] / "samples" / "0.png").unlink()
    grid = drawn(made, tmp_path)["samples"]
    assert "seeds 1, 2" in grid.caption
    pictures = sample_axes(grid)
    assert len(pictures) == 8
    shown = np.asarray(pictures[1, 0].images[0].get_array())     # real comes first, then ldm
    with Image.open(tmp_path / "cells" / made[0]["id"][:2] / made[0]["id"] / "samples" / "1.png") as opened:
        native = np.asarray(opened)
    factor = shown.shape[0] // 64
    assert factor > 1
    assert (shown == native.repeat(factor, 0).repeat(factor, 1)).all()
    grid.figure.draw_without_rendering()
    assert pictures[1, 0].get_window_extent().width == pytest.approx(shown.shape[1], abs=0.5)   # one pixel is one pixel
    texts = [text.get_text() for text in grid.figure.texts]
    assert {"64²", "128²", "ldm", "real (floor)"} <= set(texts)


def test_sample_grid_names_what_has_no_picture(tmp_path: Path) -> None:
    made = [records.record("ldm", "quality", 64), records.record("ldm", "quality", 128, status="oom"),
            records.record("infd", "quality", 64), records.record("infd", "quality", 128)]
    records.write(tmp_path, made, samples=1)
    grid = drawn(made, tmp_path)["samples"]
    assert [text.get_text() for axes in grid.figure.axes for text in axes.texts] == ["oom"]
    assert "samples" not in drawn(made, tmp_path / "elsewhere")


def test_sample_grid_of_one_resolution_goes_along_the_steps(tmp_path: Path) -> None:
    made = [records.record("ldm", "quality", 64, steps) for steps in (5, 50)] + [records.record("real", "quality", 64, None)]
    records.write(tmp_path, made, samples=1)
    grid = drawn(made, tmp_path)["samples"]
    texts = [text.get_text() for text in grid.figure.texts]
    assert {"5 steps", "50 steps", "ldm", "real (floor)\nin all columns"} <= set(texts)
    assert len(sample_axes(grid)) == 3


@pytest.mark.parametrize(("size", "fitted"), [((64, 64), (256, 256)), ((1000, 500), (256, 128)), ((100, 256), (100, 256))])
def test_fit_keeps_the_aspect(size: tuple[int, int], fitted: tuple[int, int]) -> None:
    assert show.fit(Image.new("RGB", size), 256).size == fitted


def test_captioned_grid_holds_native_pixels_and_wrapped_captions() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 40, 120), dtype=np.uint8)
    captions = ["a long caption that needs more than a single line here", *"bcde"]
    sheet = np.asarray(show.captioned_grid(images, captions, columns=2))
    where = [(y, x) for y in range(sheet.shape[0] - 40) for x in range(sheet.shape[1] - 120)
             if (sheet[y, x:x + 120] == images[3, :, 0].T).all()]
    (y, x), = where
    assert (sheet[y:y + 40, x:x + 120] == images[3].transpose(1, 2, 0)).all()
    assert (sheet[y + 40:y + 60, x:x + 120] < 128).any()         # its caption, below
    assert (sheet[-8:, :] == 255).all()


def test_show_draws_scenes_and_methods(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert show.run_show("scenes", resolution=32, count=3, seed=5, out=tmp_path / "new" / "scenes.png") == 0
    assert show.run_show("toy", resolution=(32, 48), count=2, seed=0, out=tmp_path / "toy.png") == 0
    assert capsys.readouterr().out.endswith("toy.png: 2 images of 32×48\n")
    from hibench.references import scenes

    with Image.open(tmp_path / "new" / "scenes.png") as opened:
        sheet = np.asarray(opened.convert("RGB"))
    first = scenes.render([5], 32, 32)[0].permute(1, 2, 0).numpy()
    gap = np.flatnonzero((sheet != 255).any((1, 2)))[0]
    left = (96 - 32) // 2 + 8
    assert (sheet[gap:gap + 32, left:left + 32] == first).all()


def test_show_refuses_what_it_cannot_draw(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"unknown picture format '\.xyz'; use one of \.png"):
        show.run_show("scenes", resolution=32, count=1, seed=0, out=tmp_path / "a.xyz")
    with pytest.raises(SpecError, match="0 images of 32x32 pixels"):
        show.run_show("scenes", resolution=32, count=0, seed=0, out=tmp_path / "a.png")
