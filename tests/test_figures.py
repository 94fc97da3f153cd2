"""figures: what papers show, laid out by files beside the methods, filled from records alone, missing where there are none."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import records

from hibench import cli, draw, rows
from hibench.errors import SpecError
from hibench.figures import load_figures, pictures, write_figures
from hibench.figures.catalogue import Cell, Line, read_figures
from hibench.figures.pick import metric_of, pick
from hibench.figures.table import fill, rows_behind, to_latex, to_markdown

HEAD = "one:\n  kind: table\n  title: A title\n  after: A paper, Table 1\n"
TABLE = HEAD + """  lines:
    - {label: LDM, method: ldm}
    - {label: 50 % & more, method: infd}
    - {label: floor, method: real}
    - {label: nobody, method: nobody}
  columns:
    - {metric: fid, resolution: 64}
    - {metric: latency, resolution: 64}
    - {metric: parameters}
"""


def table_of(tmp_path: Path, text: str, made: list[dict[str, Any]]) -> Any:
    path = tmp_path / "figures.yaml"
    path.write_text(text, encoding="utf-8")
    return fill(read_figures(path)["one"], [rows.flatten(one) for one in made])


def some(**more: Any) -> list[dict[str, Any]]:
    return [records.record(method, kind, 64, **more) for method in ("ldm", "infd", "real") for kind in ("speed", "quality")]


def test_the_figures_that_the_issue_names_are_there() -> None:
    found = load_figures()
    assert {f"infd-table-{number}" for number in range(1, 5)} <= set(found)
    assert {"infd-scale-consistency", "infty-diff-quality", "infty-diff-sparsity", "infty-diff-steps",
            "infty-diff-discretisation", "patch-dm-quality", "patch-dm-parameters", "patch-dm-ablation", "ldm-table-1",
            "ldm-table-8", "ldm-speed-quality", "demofusion-table-1", "demofusion-ablation", "demofusion-comparison"
            } <= set(found)
    for figure in found.values():
        assert figure.title
        assert figure.after
        assert figure.lines


def test_a_table_takes_values_and_records_from_the_right_cells(tmp_path: Path) -> None:
    made = some()
    filled = table_of(tmp_path, TABLE, made)
    ldm, infd, real, nobody = filled.values
    fd = made[1]["quality"]["values"]["fd@scenes-clip"]
    assert (ldm[0].value, ldm[0].row["id"]) == (fd["value"], made[1]["id"])
    assert ldm[0].pm == pytest.approx(fd["pm"])
    assert ldm[1].value == pytest.approx(0.42)
    assert ldm[2].value == pytest.approx(2.8)
    assert filled.heads[0] == ("FD ↓", "@scenes-clip 64²")          # honest: not FID
    assert nobody[0].reason == "no record of nobody at 64²"
    assert real[2].reason == "the record has no parameters"
    assert (0, 0) in filled.best                                    # ldm, not the floor, which is lower
    assert (2, 0) not in filled.best
    assert {row["id"] for row in rows_behind(filled)} >= {made[0]["id"], made[1]["id"]}
    assert infd[0].value > ldm[0].value


def test_failures_and_absent_metrics_say_why(tmp_path: Path) -> None:
    made = [records.record("ldm", "speed", 64, status="oom"), records.record("ldm", "quality", 64)]
    made[1]["quality"]["values"] = {}
    made[1]["quality"]["missing"] = {"fid": "too few images"}
    text = to_markdown(table_of(tmp_path, TABLE, made))
    assert "oom: in denoise: CUDA out of memory" in text
    assert "too few images" in text
    assert text.count("no record of infd") == 2


def test_best_needs_the_same_protocol(tmp_path: Path) -> None:
    made = some()
    assert (0, 0) in table_of(tmp_path, TABLE, made).best
    made[1]["quality"]["values"]["fd@scenes-clip"]["n"] = 64
    assert not {place for place in table_of(tmp_path, TABLE, made).best if place[1] == 0}


def test_lines_of_a_column_are_taken_under_one_protocol_where_they_can(tmp_path: Path) -> None:
    few = [records.record(method, "quality", 64, n=24, seed=1) for method in ("ldm", "infd", "real")]
    many = records.record("ldm", "quality", 64, n=512)
    filled = table_of(tmp_path, TABLE, [*few, many])
    assert [filled.values[at][0].row["n"] for at in range(3)] == [24, 24, 24]     # not ldm of 512 beside the others of 24
    more = records.record("infd", "quality", 64, n=512)
    real = records.record("real", "quality", 64, n=512)
    assert [one[0].row["n"] for one in table_of(tmp_path, TABLE, [*few, many, more, real]).values[:3]] == [512, 512, 512]
    assert [one[0].row["n"] for one in table_of(tmp_path, TABLE, [few[1], many]).values[:2]] == [512, 24]


def test_a_record_without_the_metric_does_not_hide_one_that_has_it(tmp_path: Path) -> None:
    bare = records.record("ldm", "quality", 64, n=512)
    bare["quality"]["values"].pop("fd@scenes-clip")
    filled = table_of(tmp_path, TABLE, [bare, records.record("ldm", "quality", 64, n=24, seed=1)])
    assert filled.values[0][0].row["n"] == 24


def test_latex_is_escaped_and_balanced_and_states_its_protocol(tmp_path: Path) -> None:
    text = to_latex(table_of(tmp_path, TABLE, some()))
    assert r"50 \% \& more" in text
    assert text.count("{") == text.count("}")
    assert text.count(r"\toprule") == text.count(r"\midrule") == text.count(r"\bottomrule") == 1
    body = [line for line in text.splitlines() if line.endswith(r" \\")]
    assert {len(re.split(r"(?<!\\)&", line)) for line in body} == {4}
    for part in ("Steps: 50.", "n = 128 images; extractor scenes-clip; reference scenes.", "Speed on Example CPU",
                 "laid out after A paper, Table 1"):
        assert part in text


def test_options_sparsity_and_names_choose_the_record() -> None:
    made = [rows.flatten(one) for one in (
        records.record("patch-dm", "quality", 64, options={"collage": "pixel"}), records.record("patch-dm", "quality", 64),
        records.record("infty-diff", "quality", 128, 50, 0.75), records.record("infty-diff", "quality", 128, 50, 0.0))]
    pixel, default, thin, dense = made

    def found(method: str, **at: Any) -> str | None:
        row = pick(made, Line("", method, Cell()), "fd@scenes-clip", Cell(**at)).row
        return None if row is None else str(row["id"])

    assert found("patch-dm", options=(("collage", ("pixel",)),)) == pixel["id"]
    assert found("patch-dm", options=(("collage", ("feature", None)),)) == default["id"]
    assert found("infty-diff", sparsity=0.75) == thin["id"]
    assert found("infty-diff") == dense["id"]
    assert found("infty-diff", resolution=(64, 64)) is None
    assert metric_of(made, "fid") == "fd@scenes-clip"
    assert metric_of(made, "pfid@32") == "pfid@32"                    # nobody has it


def test_crops_are_found_by_their_size_at_the_resolution_of_the_column(tmp_path: Path) -> None:
    made = []
    for size in (64, 128):
        one = records.record("ldm", "quality", size)
        entry = one["quality"]["values"]["fd@scenes-clip"]
        one["quality"]["values"] |= {f"pfd@scenes-clip@{crop}/{size}-x1-native-s0": {**entry, "value": float(size + crop)}
                                     for crop in (32, 64)}
        made.append(one)
    columns = "  columns:\n    - {metric: pfid@32, resolution: 64}\n    - {metric: pfid@64, resolution: 128}\n"
    filled = table_of(tmp_path, TABLE.partition("  columns:")[0] + columns, made)
    assert [value.value for value in filled.values[0]] == [96.0, 192.0]
    flat = [rows.flatten(one) for one in made]
    assert metric_of(flat, "pfid@scenes-clip@64").startswith("pfd@scenes-clip@64/")
    assert metric_of(flat, "pfid@6") == "pfid@6"


@pytest.mark.parametrize(("text", "problem"), [
    ("one: {kind: tabel}\n", "'kind' must be one of table, plot, strip, zoom, not 'tabel'"),
    (HEAD + "  lines: []\n", "'columns' is missing"),
    (HEAD + "  lines: [{label: a}]\n  columns: []\n", "lines 1: 'method' is missing"),
    (HEAD + "  lines: []\n  columns: [{metric: fid, resolutoin: 64}]\n",
     "unknown key 'resolutoin'; did you mean 'resolution'?"),
    ("one: {kind: plot, title: a, after: b, lines: [], x: time, y: fid}\n", "'x' must be one of"),
    ("one: {kind: plot, title: a, after: b, lines: [{label: a, method: b}], x: given, y: fid}\n", "lines 1: 'x' is missing"),
    ("- 1\n", "is no mapping"),
])
def test_what_is_wrong_with_a_file(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "figures.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SpecError) as error:
        read_figures(path)
    assert problem in str(error.value)


DRAWN = """
strip:
  kind: strip
  title: A strip
  after: a paper
  lines: [{label: "∞-Diff", method: infty-diff}, {label: real, method: real}]
  resolutions: [32, 64]
zoom:
  kind: zoom
  title: Insets
  after: a paper
  lines: [{label: "∞-Diff", method: infty-diff}, {label: nobody, method: nobody}]
  resolution: 64
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = [records.record("infty-diff", "quality", 64, steps) for steps in (10, 25)]
    made += [records.record("real", "quality", 64, None), records.record("ldm", "quality", 64)]
    made += [records.record("infty-diff", "speed", 128, 25, sparsity) for sparsity in (0.0, 0.75)]
    return records.write(tmp_path_factory.mktemp("results"), made, samples=1)


def test_pictures_are_drawn_and_what_is_missing_is_drawn_as_missing(results: Path, tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    (tmp_path / "figures.yaml").write_text(DRAWN, encoding="utf-8")
    figures = read_figures(tmp_path / "figures.yaml")
    written = write_figures(results, tmp_path, figures=figures)
    assert [path.name for path in written] == [f"{name}.{kind}" for name in ("strip", "zoom") for kind in ("pdf", "png", "tex")]
    for name in ("strip", "zoom"):
        tex = (tmp_path / f"{name}.tex").read_text(encoding="utf-8")
        assert rf"{{{name}.pdf}}" in tex
        assert "n = 128 images" in tex
        assert "Seed 0." in tex
        with Image.open(tmp_path / f"{name}.png") as opened:
            pixels = np.asarray(opened.convert("RGB")).astype(int)
        assert np.any(np.all(pixels == 240, axis=-1))     # the grey field of what has no record
        assert np.any(pixels.max(axis=-1) - pixels.min(axis=-1) > 60)      # and the colours of what has one


@pytest.mark.parametrize(("side", "part", "factor"), [(16, 16, 8), (64, 24, 8), (128, 48, 4), (256, 96, 2), (512, 192, 1),
                                                      (4096, 192, 1)])
def test_an_inset_shows_at_most_two_fifths_of_a_side(side: int, part: int, factor: int) -> None:
    assert pictures._inset(side) == (part, factor)


def test_an_inset_is_native_pixels_enlarged_by_a_whole_number(results: Path, tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    (tmp_path / "figures.yaml").write_text(DRAWN, encoding="utf-8")
    drawn, behind = pictures.zoom(read_figures(tmp_path / "figures.yaml")["zoom"], rows.load_rows(results)[0], results)
    draw.save(drawn, tmp_path, ["png"])
    folder = results / "cells" / behind[0]["id"][:2] / behind[0]["id"]
    with Image.open(tmp_path / "zoom.png") as opened, Image.open(folder / "samples" / "0.png") as sample:
        shown, pixels = np.asarray(opened.convert("RGB")), np.asarray(sample.convert("RGB"))
    large = pixels[20:44, 20:44].repeat(8, axis=0).repeat(8, axis=1)
    columns = np.lib.stride_tricks.sliding_window_view(shown[:, :, 0], large.shape[:2])
    matches = np.argwhere(columns[:, :, 0, 0] == large[0, 0, 0])
    assert any(np.array_equal(columns[y, x], large[:, :, 0]) for y, x in matches)


def test_a_plot_has_a_curve_per_line_and_names_what_is_missing(results: Path) -> None:
    figure = load_figures()["infty-diff-steps"]
    drawn, behind = pictures.plot(figure, rows.load_rows(results)[0])
    assert [row["steps"] for row in behind] == [25, 10]
    (axes,) = drawn.figure.axes
    (curve,) = axes.containers
    assert list(curve[0].get_xdata()) == [10, 25]
    assert "128 px: no record of infty-diff at 128², s = 0" in " ".join(drawn.figure.get_suptitle().split())


PLOTS = """
one: {kind: plot, title: a, after: b, x: given, x_title: Factor, y: fid, lines: [
  {label: VQ, method: ldm, x: 8}, {label: VQ, method: infd, x: 4},
  {label: KL, method: real, x: 4}, {label: KL, method: nobody, x: 8}]}
two: {kind: plot, title: a, after: b, x: options.guidance, y: fid, lines: [{label: LDM, method: ldm}]}
"""


def test_a_plot_over_given_places_joins_equal_labels_and_one_over_options_orders_them(tmp_path: Path) -> None:
    (tmp_path / "figures.yaml").write_text(PLOTS, encoding="utf-8")
    figures = read_figures(tmp_path / "figures.yaml")
    made = [rows.flatten(one) for one in some()]
    drawn, behind = pictures.plot(figures["one"], made)
    (axes,) = drawn.figure.axes
    assert [list(curve[0].get_xdata()) for curve in axes.containers] == [[4, 8], [4]]
    assert axes.get_xlabel() == "Factor"
    assert len(behind) == 3
    assert "KL: no record of nobody" in " ".join(drawn.figure.get_suptitle().split())
    swept = [rows.flatten(records.record("ldm", "quality", 64, options={"guidance": scale})) for scale in (4.0, 1.0, 2.0)]
    drawn, behind = pictures.plot(figures["two"], swept)
    (axes,) = drawn.figure.axes
    assert list(axes.containers[0][0].get_xdata()) == [1, 2, 4]
    assert axes.get_xlabel() == "Guidance"


def test_the_command_writes_tables_from_the_records_alone(results: Path, tmp_path: Path,
                                                          capsys: pytest.CaptureFixture[str]) -> None:
    names = ["--figure", "infty-diff-sparsity", "--figure", "ldm-table-1"]
    assert cli.main(["report", str(results), *names, "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path}: 6 files\n"
    with (tmp_path / "infty-diff-sparsity.csv").open() as file:
        found = list(csv.DictReader(file))
    assert [bool(row["value"]) for row in found if row["column"].startswith("Latency")] == [True, False, True, False]
    assert next(row["reason"] for row in found if row["line"] == "2x") == "no record of infty-diff at 128², s = 0.5"
    assert cli.main(["report", str(results), "--figure", "ldm-table-2"]) == 2
    code = ("import sys; from pathlib import Path; from hibench.figures import write_figures; "
            "write_figures(Path(sys.argv[1]), Path(sys.argv[2]), ['ldm-table-1']); print('torch' in sys.modules)")
    ran = subprocess.run([sys.executable, "-c", code, str(results), str(tmp_path)], text=True, capture_output=True, check=True)
    assert ran.stdout == "False\n"
