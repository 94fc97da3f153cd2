"""fits: which measured resolution fits a smaller device."""

from __future__ import annotations

from typing import Any

import records

from hibench import fits, rows

GIB = 2**30


def speed(resolution: int, peak_gib: float | None, method: str = "ldm", hardware: dict[str, Any] = records.GPU,
          **more: Any) -> dict[str, Any]:
    made = records.record(method, "speed", resolution, hardware=hardware, **more)
    row = rows.flatten(made)
    return row | {"peak_bytes": None if peak_gib is None else int(peak_gib * GIB),
                  "peak_source": row["peak_source"] if hardware is records.CPU else "cuda-allocated"}


def test_the_last_size_before_the_first_that_does_not_fit() -> None:
    found = fits.fits([speed(1024, 20), speed(256, 3), speed(512, 7.6), speed(2048, 70)])
    assert [one.largest for one in found] == [("256²", "512²", "1024²", "≥ 2048²")]      # 7.6 GiB + 600 MiB are more than 8


def test_not_even_the_smallest() -> None:
    assert fits.fits([speed(256, 9), speed(512, 12)])[0].largest[:2] == ("< 256²", "≥ 512²")


def test_running_out_of_memory_is_a_result_and_an_error_is_none() -> None:
    failed = speed(1024, None, status="error")
    found = fits.fits([speed(512, 3), failed, speed(2048, None, status="oom")])
    assert found[0].largest == ("512²",) * 4
    assert fits.fits([failed])[0].largest == ("—",) * 4


def test_methods_and_settings_apart_and_nothing_from_a_cpu() -> None:
    found = fits.fits([speed(64, 1), speed(64, 1, steps=10), speed(64, 1, "infd"), speed(64, 1, hardware=records.CPU),
                       speed(64, 1, "real")])
    assert [(one.method, one.settings) for one in found] == [("ldm", "50 steps"), ("ldm", "10 steps"), ("infd", "50 steps")]
    text = fits.to_markdown(found)
    assert text.splitlines()[0] == "| Method | Setting | Measured on | 8 GiB | 16 GiB | 24 GiB | 80 GiB |"
    assert "| ldm | 50 steps |" in text
    assert text.count("≥ 64²") == 12
