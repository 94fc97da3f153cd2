"""Weights: where they are looked for, how they are checked and fetched, and one clear line when something is wrong."""

from __future__ import annotations

import dataclasses
import hashlib
import io
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hibench import weights
from hibench.errors import MissingWeights, SpecError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No weights of this machine: every place that is looked at lies in an empty folder."""
    for name in ("HIBENCH_CACHE", "TORCH_HOME", "HIBENCH_WEIGHTS", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    return tmp_path


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The catalog's vgg16 replaced by a file of a few bytes."""
    data = b"weights" * 10
    entry = dataclasses.replace(weights.CATALOG["vgg16"], sha256=hashlib.sha256(data).hexdigest())
    monkeypatch.setattr(weights, "CATALOG", {**weights.CATALOG, "vgg16": entry})
    return data


def test_missing_weights_end_with_the_command_that_gets_them(home: Path) -> None:
    with pytest.raises(
        MissingWeights,
        match=r"fid: weights weights-inception.*6726825d\.pth are not on this machine .*hibench fetch inception-v3-compat$",
    ):
        weights.resolve("inception-v3-compat", user="fid")
    with pytest.raises(MissingWeights, match="no weights file at"):
        weights.resolve("vgg16", home / "nothing.pth")
    with pytest.raises(SpecError, match="no weights named 'vgg'; did you mean 'vgg16'"):
        weights.find("vgg")


def test_a_fetched_file_is_verified_kept_and_found(small: bytes, home: Path) -> None:
    asked: list[str] = []

    def opener(url: str, timeout: float) -> io.BytesIO:
        asked.append(url)
        return io.BytesIO(small)

    path = weights.fetch("vgg16", opener)
    assert path.read_bytes() == small
    assert weights.fetch("vgg16", opener) == path
    assert asked == ["https://download.pytorch.org/models/vgg16-397923af.pth"]
    assert weights.resolve("vgg16").sha256 == hashlib.sha256(small).hexdigest()
    assert weights.is_published("vgg16", weights.resolve("vgg16").sha256)
    assert {row["name"]: row["available"] for row in weights.describe()}["vgg16"]


def test_a_wrong_hash_keeps_nothing(small: bytes, home: Path) -> None:
    with pytest.raises(MissingWeights, match=r"gave a file with SHA-256 .*, expected .*nothing was kept"):
        weights.fetch("vgg16", lambda url, timeout: io.BytesIO(b"other"))
    assert not list((home / "HIBENCH_CACHE").rglob("*.p*"))


def test_without_a_network_the_address_and_the_place_are_said(small: bytes, home: Path) -> None:
    def opener(url: str, timeout: float) -> io.BytesIO:
        raise OSError("Name or service not known")

    with pytest.raises(
        MissingWeights, match=r"could not download https://download.*vgg16.*copy the file by hand to .*vgg16-397923af\.pth"
    ):
        weights.fetch("vgg16", opener)


def test_a_truncated_copy_in_a_cache_is_told_from_a_good_one(small: bytes, home: Path) -> None:
    copy = home / "TORCH_HOME" / "hub" / "checkpoints" / "vgg16-397923af.pth"
    copy.parent.mkdir(parents=True)
    copy.write_bytes(small[:-1])
    with pytest.raises(MissingWeights, match=r"has SHA-256 .*truncated or another file.*hibench fetch vgg16"):
        weights.resolve("vgg16")
    copy.write_bytes(small)
    assert weights.resolve("vgg16").path == copy


def test_state_files_of_every_kind_are_read_and_others_refused_in_one_line(home: Path) -> None:
    state = {"a.weight": torch.arange(3.0)}
    torch.save(state, home / "plain.pth")
    torch.save({"state_dict": state}, home / "nested.pth")
    save_file(state, home / "safe.safetensors")
    for name in ("plain.pth", "nested.pth", "safe.safetensors"):
        assert torch.equal(weights.read_state(home / name, "x")["a.weight"], state["a.weight"])
    (home / "cut.pth").write_bytes((home / "plain.pth").read_bytes()[:200])
    (home / "text.pth").write_text("hello")
    torch.save([1, 2], home / "list.pth")
    for name in ("cut.pth", "text.pth", "list.pth"):
        with pytest.raises(MissingWeights, match=f"fid: .*{name}") as caught:
            weights.read_state(home / name, "fid")
        assert "\n" not in str(caught.value)


def test_wrong_keys_and_shapes_name_the_first_difference(home: Path) -> None:
    state = {"a": torch.zeros(2), "zz": torch.zeros(1)}
    with pytest.raises(MissingWeights, match=r"wrong keys: 1 of 2 tensors are missing, e.g. 'b'; it holds e.g. 'zz'"):
        weights.check_state(state, {"a": (2,), "b": (1,)}, home, "fid")
    with pytest.raises(MissingWeights, match=r"tensor 'a' has shape \(2,\), expected \(3,\)"):
        weights.check_state(state, {"a": (3,)}, home, "fid")
    weights.check_state(state, {"a": (2,)}, home, "fid")


def test_every_catalog_entry_has_an_address_and_a_checkable_hash() -> None:
    for entry in weights.CATALOG.values():
        assert entry.url.startswith("https://")
        assert entry.url.endswith(entry.filename)
        assert len(entry.sha256) >= 8
        assert int(entry.sha256, 16)
