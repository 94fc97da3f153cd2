"""published: what papers say is checked, carries its protocol and source, and is listed apart from our numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hibench import cli
from hibench.errors import SpecError
from hibench.published import BETTER, KINDS, load_published, published_files, published_of, published_rows, read_published

GOOD = """method: toy
protocols: {fid: "FID, 50 000 samples"}
sources: {paper: {kind: paper, cite: A paper}, quote: {kind: secondary, cite: Another paper}}
numbers:
"""


def written(tmp_path: Path, numbers: str, head: str = GOOD) -> Path:
    path = tmp_path / "published.yaml"
    path.write_text(head + numbers, encoding="utf-8")
    return path


def test_every_file_that_is_shipped_is_valid_and_names_its_method_folder() -> None:
    folders = {path.parent.name for path in published_files()}
    assert {"ldm", "infd", "infty_diff", "patch_dm", "demofusion"} <= folders
    for path in published_files():
        numbers = read_published(path)
        assert {one.method.replace("-", "_") for one in numbers} == {path.parent.name}
        for one in numbers:
            assert one.protocol
            assert one.source
            assert "?" not in one.source + one.protocol + one.note      # nothing that is marked as unverified
            assert one.source_kind in KINDS
            assert one.better in BETTER


def test_some_numbers_as_their_sources_give_them() -> None:
    found = {(one.model, one.metric, one.dataset, one.steps, one.note): one for one in load_published()}
    ffhq = found["LDM-4", "fid", "FFHQ", 200, ""]
    assert (ffhq.value, ffhq.resolution, ffhq.source_kind, ffhq.table) == (4.98, (256, 256), "paper", "Table 1")
    assert found["LDM-4-G", "is", "ImageNet", 250, "guidance 1.5"].pm == 5.59
    assert found["INFD", "pfid@256/1024", "FFHQ", 200, ""].source_kind == "code"
    sparse = [one for one in published_of(["infty-diff"]) if one.sparsity == 0.875 and one.metric == "fid-clip"]
    assert [(one.value, one.source_kind) for one in sparse] == [(6.48, "secondary")]
    assert {one.method for one in published_of(["ldm", "nobody"])} == {"ldm"}


def test_nothing_of_a_method_is_imported() -> None:
    code = ("import sys; from hibench.published import load_published; load_published(); "
            "print('torch' in sys.modules, 'methods.ldm' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True).stdout == "False False\n"


@pytest.mark.parametrize(("number", "problem"), [
    ("{metric: fid, value: 1, dataset: A, protocol: fid}", "'source' is missing"),
    ("{metric: fid, value: 1, dataset: A, protocol: fdi, source: paper}", "there is no protocol 'fdi'; did you mean 'fid'?"),
    ("{metric: fid, value: 1, dataset: A, protocol: fid, source: pape}", "there is no source 'pape'; did you mean 'paper'?"),
    ("{metric: fid, value: .nan, dataset: A, protocol: fid, source: paper}", "'value' must be a finite number, not nan"),
    ("{metric: fid, value: high, dataset: A, protocol: fid, source: paper}", "'value' must be a finite number, not 'high'"),
    ("{metric: fid, value: 1, dataset: A, protocol: fid, source: paper, stesp: 5}",
     "unknown key 'stesp'; did you mean 'steps'?"),
    ("{metric: fid, value: 1, dataset: A, protocol: fid, source: paper, steps: 0}", "'steps' must be a whole number from 1"),
    ("{metric: fid, value: 1, dataset: A, protocol: fid, source: paper, resolution: [1, 2, 3]}", "'resolution' must be a side"),
    ("{metric: fid, value: 1, dataset: A, protocol: fid, source: paper, better: less}", "'better' must be one of"),
    ("just text", "is no mapping"),
])
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, number: str, problem: str) -> None:
    path = written(tmp_path, f"  - {{metric: kid, value: 1, dataset: A, protocol: fid, source: paper}}\n  - {number}\n")
    with pytest.raises(SpecError) as error:
        read_published(path)
    assert f"{path}: number 2: " in str(error.value)
    assert problem in str(error.value)


@pytest.mark.parametrize(("text", "problem"), [
    ("[1, 2]\n", "is no mapping"), ("method: toy\nnumber: []\n", "unknown key 'number'; did you mean 'numbers'?"),
    ("method: [\n", "cannot be read"),
    ("method: toy\nprotocols: {}\nsources: {a: {kind: rumour, cite: b}}\nnumbers: []\n", "source 'a' must have cite and kind"),
])
def test_a_file_that_is_no_list_of_numbers(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(SpecError, match=problem.replace("?", r"\?")):
        read_published(written(tmp_path, text, ""))


def test_the_same_number_twice_is_refused(tmp_path: Path) -> None:
    one = "  - {metric: fid, value: 1, dataset: A, protocol: fid, source: paper}\n"
    with pytest.raises(SpecError, match="number 2: says the same thing as number 1"):
        read_published(written(tmp_path, one + one))
    assert len(read_published(written(tmp_path, one + one.replace("source: paper", "source: quote")))) == 2


def test_rows_say_direction_size_and_that_a_source_is_secondary(tmp_path: Path) -> None:
    path = written(tmp_path, "  - {metric: is, better: higher, value: 9, pm: 2, dataset: A, resolution: [64, 128], steps: 5, "
                             "protocol: fid, source: quote, table: Table 3}\n")
    head, row = published_rows(read_published(path))
    said = dict(zip(head, row))
    assert (said["METRIC"], said["VALUE"], said["RESOLUTION"]) == ("is ↑", "9 ± 2", "64x128")
    assert said["SOURCE"] == "Another paper, Table 3 (secondary)"


def test_list_published_as_table_and_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "published"]) == 0
    table = capsys.readouterr().out
    assert table.splitlines()[0].split() == ["METHOD", "MODEL", "METRIC", "VALUE", "DATASET", "RESOLUTION", "STEPS", "PROTOCOL",
                                             "SOURCE"]
    assert cli.main(["list", "published", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found) == len(load_published()) == len(table.splitlines()) - 1
    assert cli.main(["list", "sweeps", "--json", "benchmarks.yaml"]) == 0
    assert {"sweep", "runs", "cells", "methods", "axes"} == set(json.loads(capsys.readouterr().out)[0])
