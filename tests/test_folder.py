"""Image files of every kind, and folders of them as references."""

from __future__ import annotations

import io
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hibench.errors import SpecError
from hibench.images import decode, folder_digest, image_size, in_parallel, list_images, stream
from hibench.references import FolderReference, ScenesReference, open_reference
from hibench.references.folder import fit


def save(path: Path, array: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_rgb_is_read_as_it_is(tmp_path: Path) -> None:
    x = noise(5, 7)
    assert np.array_equal(decode(save(tmp_path / "a.png", x)), x.transpose(2, 0, 1))
    assert decode(save(tmp_path / "one.png", noise(1, 1))).shape == (3, 1, 1)


def test_greyscale_sixteen_bit_palette_and_cmyk_become_rgb(tmp_path: Path) -> None:
    grey = np.array([[0, 100, 255]], np.uint8)
    assert decode(save(tmp_path / "grey.png", grey))[:, 0].tolist() == [[0, 100, 255]] * 3
    deep = np.array([[0, 257 * 100, 65535, 257 * 7 + 200]], np.uint16)
    assert decode(save(tmp_path / "deep.png", deep))[0, 0].tolist() == [0, 100, 255, 8]  # rounded, not cut
    Image.fromarray(noise(4, 4)).quantize(8).save(tmp_path / "palette.gif")
    assert decode(tmp_path / "palette.gif").shape == (3, 4, 4)
    Image.new("CMYK", (3, 2), (0, 255, 255, 0)).save(tmp_path / "ink.jpg", quality=100)
    assert decode(tmp_path / "ink.jpg")[0].min() > 200
    Image.new("1", (3, 2), 1).save(tmp_path / "bit.png")
    assert decode(tmp_path / "bit.png").min() == 255


def test_alpha_is_composited_over_white(tmp_path: Path) -> None:
    rgba = np.array([[[200, 0, 0, 255], [200, 0, 0, 0], [200, 0, 0, 128]]], np.uint8)
    found = decode(save(tmp_path / "alpha.png", rgba))
    assert found[:, 0, 0].tolist() == [200, 0, 0]
    assert found[:, 0, 1].tolist() == [255, 255, 255]
    assert found[1, 0, 2] == pytest.approx(127, abs=1)
    grey = Image.merge("LA", [Image.new("L", (1, 1), 9), Image.new("L", (1, 1), 0)])
    grey.save(tmp_path / "la.png")
    assert decode(tmp_path / "la.png").ravel().tolist() == [255, 255, 255]


def test_exif_orientation_turns_the_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    x = np.zeros((8, 16, 3), np.uint8)
    x[:, :8] = 255
    path = save(tmp_path / "turned.jpg", x, exif=exif, quality=100)
    found = decode(path)
    assert found.shape == (3, 16, 8)
    assert image_size(path) == (16, 8)
    assert found[0, :6].mean() > 200 > 50 > found[0, 10:].mean()


@pytest.mark.parametrize("kind", ["truncated", "empty", "text", "float"])
def test_a_broken_file_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "bad.tiff" if kind == "float" else tmp_path / "bad.png"
    if kind == "truncated":
        buffer = io.BytesIO()
        Image.fromarray(noise(64, 64)).save(buffer, "PNG")
        path.write_bytes(buffer.getvalue()[:2000])
    elif kind == "float":
        Image.fromarray(np.ones((2, 2), np.float32)).save(path)
    else:
        path.write_bytes(b"" if kind == "empty" else b"not an image")
    save(tmp_path / "a.png", noise(64, 64))
    with pytest.raises(SpecError, match=r"bad\.(png|tiff): not a readable image .*; replace or remove"):
        list(FolderReference(tmp_path).images())


def test_files_are_listed_in_one_order_and_others_are_left_out(tmp_path: Path) -> None:
    for name in ("b/2.PNG", "a.png", "b/10.png", ".hidden.png", "b.jpg"):
        save(tmp_path / name, noise(2, 2))
    (tmp_path / "captions.txt").write_text("no image")
    assert [p.relative_to(tmp_path).as_posix() for p in list_images(tmp_path)] == ["a.png", "b.jpg", "b/10.png", "b/2.PNG"]
    with pytest.raises(SpecError, match="not a folder"):
        list_images(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SpecError, match="holds no image"):
        list_images(tmp_path / "empty")


def test_the_digest_names_content_and_order(tmp_path: Path) -> None:
    save(tmp_path / "a.png", noise(4, 4))
    first = FolderReference(tmp_path).digest
    assert FolderReference(tmp_path).digest == first == folder_digest(tmp_path, list_images(tmp_path))
    (tmp_path / "a.png").rename(tmp_path / "b.png")
    renamed = FolderReference(tmp_path).digest
    save(tmp_path / "b.png", noise(4, 4, seed=1))
    assert len({first, renamed, FolderReference(tmp_path).digest}) == 3


def test_images_of_one_size_come_in_batches_and_others_alone(tmp_path: Path) -> None:
    sizes = [(4, 4), (4, 4), (4, 4), (6, 4), (4, 4)]
    for i, (h, w) in enumerate(sizes):
        save(tmp_path / f"{i}.png", noise(h, w, i))
    reference = FolderReference(tmp_path)
    batches = list(reference.images(batch=2))
    assert [tuple(b.shape) for b in batches] == [(2, 3, 4, 4), (1, 3, 4, 4), (1, 3, 6, 4), (1, 3, 4, 4)]
    assert np.array_equal(batches[2][0].numpy(), noise(6, 4, 3).transpose(2, 0, 1))
    assert reference.size is None
    assert len(next(iter(reference.images(first=1, count=2)))) == 2
    assert reference.captions(0, 5) is None


def test_large_images_are_box_downsampled_and_small_ones_refused() -> None:
    x = torch.randint(0, 256, (3, 8, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert torch.equal(fit(x, (4, 8), "x"), x.view(3, 4, 2, 8, 2).float().mean((2, 4)).round().to(torch.uint8))
    assert torch.equal(fit(x, (4, 4), "x"), fit(x[:, :, 4:12], (4, 4), "x"))  # centre crop to the aspect ratio
    assert fit(x, (8, 16), "x") is x
    with pytest.raises(SpecError, match=r"x\.png: 16x8 px is smaller than the 16x16 px"):
        fit(x, (16, 16), "x.png")


def test_decoding_keeps_order_and_holds_little() -> None:
    lock, alive, most = threading.Lock(), [0], [0]

    def work(i: int) -> int:
        with lock:
            alive[0] += 1
            most[0] = max(most[0], alive[0])
        return i

    seen = []
    for i in in_parallel(work, range(200), threads=3):
        with lock:
            alive[0] -= 1
        seen.append(i)
    assert seen == list(range(200))
    assert most[0] <= 2 * 3 + 2
    assert list(stream([])) == []


def test_decoding_in_threads_leaves_the_warnings_of_others_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)    # PIL warns of every picture; errors here, unless silenced
    paths = [save(tmp_path / f"{i}.png", noise(4, 4, i)) for i in range(40)]
    assert len(list(stream(paths, threads=8))) == 40
    assert image_size(paths[0]) == (4, 4)
    with pytest.warns(UserWarning, match="heard"):
        warnings.warn("heard", stacklevel=1)


def test_scenes_references_are_disjoint_rendered_and_captioned() -> None:
    reference = open_reference({"kind": "scenes", "seed": 1}, (24, 32), n=3)
    assert isinstance(reference, ScenesReference)
    images = torch.cat(list(reference.images(batch=2)))
    assert images.shape == (3, 3, 24, 32)
    assert images.dtype == torch.uint8
    assert reference.seeds() == range(2_000_000, 2_000_003)
    assert len(reference.captions(0, 3) or []) == 3
    assert reference.digest != open_reference({"kind": "scenes", "seed": 2}, n=3).digest
    assert len(open_reference({"kind": "scenes", "images": 7}, n=3)) == 7


def test_a_wrong_definition_says_what_is_known(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="unknown kind 'scene'; did you mean 'scenes'"):
        open_reference({"kind": "scene"})
    with pytest.raises(SpecError, match="needs a path"):
        open_reference({"kind": "folder"})
    with pytest.raises(SpecError, match=r"must be in 0\.\.899"):
        open_reference({"kind": "scenes", "seed": 900})
