"""What measuring costs: a loop under the harness against a bare loop around `generate`, in turns in one process."""

from __future__ import annotations

import statistics
import time

import pytest
import torch

from hibench.adapter import NULL_STAGE
from hibench.job import CellJob
from hibench.timing import measure
from hibench.toy import Toy

IMAGE_S = 0.1


class Works(Toy):
    """Keeps the CPU busy for 100 ms per image, in 10 steps that it tells the stage clock about."""

    starts: list[float]

    def generate(self, resolution, seed, *, steps=None, sparsity=0.0, prompt=None, stage=NULL_STAGE):
        start = time.perf_counter()
        self.starts.append(start)
        image = torch.zeros(3, *resolution, dtype=torch.uint8)
        with stage("denoise"):
            for step in range(1, 11):
                while time.perf_counter() < start + IMAGE_S * step / 10:
                    image[0, 0, 0] = step
                stage.step()
        with stage("decode"):
            stage.effective(steps=10, nfe=10, sparsity=0.0)
        return image

    def intervals(self) -> list[float]:
        """Seconds from one image's start to the next one's: the image, and whatever is done between images."""
        found = [after - before for before, after in zip(self.starts, self.starts[1:])]
        self.starts = []
        return found


def open_job(tmp_path) -> CellJob:
    cell = CellJob({"task": "speed", "out": str(tmp_path), "cell": {
        "kind": "speed", "adapter": "toy", "height": 1024, "width": 1024, "steps": 10, "device": "cpu", "settings": {}}},
        {"adapter": Works})
    cell.open()
    cell.load()
    cell.adapter.starts = []
    return cell


def bare(cell: CellJob, images: int) -> list[float]:
    for seed in range(images + 1):
        cell.adapter.generate((1024, 1024), seed, steps=10)
    return cell.adapter.intervals()


def harnessed(cell: CellJob, images: int) -> list[float]:
    """All that a worker does per image, its checks included; collecting garbage once before the first is not."""
    measure(cell.generate, images=images + 1, warmup=1, steps=10, check=cell.check_image)
    return cell.adapter.intervals()[1:]


@pytest.mark.perf
def test_the_harness_costs_at_most_two_percent_of_images_of_100_ms(tmp_path, capsys):
    cell, plain, measured = open_job(tmp_path), [], []
    bare(cell, 1)
    for _ in range(5):                                         # in turns, so that both see the same machine
        plain += bare(cell, 10)
        measured += harnessed(cell, 10)
    assert len(plain) == len(measured) == 50
    ratio = statistics.median(measured) / statistics.median(plain)
    with capsys.disabled():
        print(f"\nharness / bare loop around generate, 50 images of 1024² each: {ratio:.4f} "
              f"({statistics.median(measured) * 1e3:.2f} ms against {statistics.median(plain) * 1e3:.2f} ms)")
    assert ratio <= 1.02
