"""Speed of scoring against the installed peers, in one run over the same images: `pytest tests/perf -m perf -s`.

A ratio only counts where the numbers agree, which is checked. Warm-up (imports, loading the weights on both sides,
compilation) is outside the clock. Peer and hibench take turns, so that other work on the machine slows both; printed are
seconds on the clock and seconds of CPU (with child processes), and the medians of the ratios. README.md beside this file holds
what was measured.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from inception_weights import make
from PIL import Image

from hibench.metrics import frechet

pytestmark = [pytest.mark.perf, pytest.mark.filterwarnings("ignore")]  # the peers warn
IMAGES = int(os.environ.get("HIBENCH_PERF_IMAGES", "32"))  # per folder
ROUNDS = int(os.environ.get("HIBENCH_PERF_ROUNDS", "3"))


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Two folders of 256 px PNG images and a weights file."""
    root = tmp_path_factory.mktemp("speed")
    generator = torch.Generator().manual_seed(0)
    for side, gain in (("a", 1.0), ("b", 0.8)):
        (root / side).mkdir()
        for i in range(IMAGES):
            x = sum(
                torch.nn.functional.interpolate(torch.rand(1, 3, k, k, generator=generator), (256, 256), mode="bicubic")
                for k in (4, 16, 64)
            )
            image = (x[0] * gain / 3).clamp(0, 1) * 255
            Image.fromarray(image.byte().permute(1, 2, 0).numpy()).save(root / side / f"{i:04}.png")
    return root / "a", root / "b", make(root / "weights.pth")


def cpu_s() -> float:
    """CPU seconds of this process and of its children that have ended."""
    return sum(os.times()[:4])


def timed(function: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds on the clock, CPU seconds, result."""
    start, cpu = time.perf_counter(), cpu_s()
    value = function()
    return time.perf_counter() - start, cpu_s() - cpu, value


def race(name: str, peer: Callable[[], Any], ours: Callable[[], Any], rounds: int = ROUNDS) -> tuple[float, Any, Any]:
    """Peer and ours in turns: the median ratio of seconds on the clock, and the last result of each."""
    runs = [(timed(peer), timed(ours)) for _ in range(rounds)]
    wall, cpu = (statistics.median(p[i] / o[i] for p, o in runs) for i in (0, 1))
    seconds = [" ".join(f"{run[k][i]:.2f}" for run in runs) for k in (0, 1) for i in (0, 1)]
    print(f"\n{name}: {wall:.2f}x on the clock, {cpu:.2f}x in CPU time ({torch.get_num_threads()} threads)")
    print(f"  peer    {seconds[0]} s, CPU {seconds[1]} s\n  hibench {seconds[2]} s, CPU {seconds[3]} s", flush=True)
    return wall, runs[-1][0][2], runs[-1][1][2]


class Ours:
    """hibench's scoring of the two folders with networks that are loaded and warm."""

    def __init__(self, setup: tuple[Path, Path, Path], patch: pytest.MonkeyPatch) -> None:
        from hibench import features

        self.setup, self.made, self.calls = setup, dict[Any, Any](), 0
        opened = features.get_extractor

        def get(name: str, device: str, weights: str | None = None, compiled: bool = False) -> Any:
            if (name, compiled) not in self.made:
                self.made[name, compiled] = opened(name, device, str(setup[2]), compiled)
                with torch.inference_mode():
                    for _ in range(2):
                        self.made[name, compiled](torch.zeros(min(IMAGES, 32), 3, 256, 256, dtype=torch.uint8))
            return self.made[name, compiled]

        self.get = get
        patch.setattr(features, "get_extractor", get)

    def score(self, metrics: str, cache: Path, extractor: str = "inception-v3-compat", compiled: bool = False) -> Any:
        """Values by name; `cache`: a folder that is new unless the reference is meant to be warm."""
        from hibench.score import score_folders

        a, b, weights = self.setup
        values, missing = score_folders(
            a, b, metrics=metrics, extractor=extractor, weights=weights, device="cpu", cache=cache, compiled=compiled
        )
        assert missing == {}
        return values

    def fresh(self, root: Path) -> Path:
        self.calls += 1
        return root / f"cache-{self.calls}"


@pytest.fixture(scope="module")
def ours(setup: tuple[Path, Path, Path]) -> Iterator[Ours]:
    with pytest.MonkeyPatch.context() as patch:
        yield Ours(setup, patch)


ALL = "fid,kid,is,precision,recall"


def torch_fidelity_scores(weights: Path, side: int, device: str = "cpu") -> Callable[[Path, Path], Any]:
    """torch-fidelity's own pass over two folders, with its network loaded once and warm, as ours is."""
    import torch_fidelity
    import torch_fidelity.metrics

    cuda = device != "cpu"
    peer = torch_fidelity.metrics.create_feature_extractor(
        "inception-v3-compat", ["2048", "logits_unbiased"], cuda=cuda, verbose=False,
        feature_extractor_weights_path=str(weights),
    )
    with torch.inference_mode():
        peer(torch.zeros(min(IMAGES, 32), 3, side, side, dtype=torch.uint8, device=device))

    def theirs(a: Path, b: Path) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch_fidelity.metrics, "create_feature_extractor", lambda *_, **__: peer)
            return torch_fidelity.calculate_metrics(
                input1=str(a), input2=str(b), cuda=cuda, fid=True, kid=True, isc=True, prc=True, verbose=False, cache=False,
                kid_subset_size=IMAGES, feature_extractor="inception-v3-compat", feature_extractor_weights_path=str(weights),
            )

    return theirs


def check_values(values: Any, found: Any, loose: float = 1.0) -> None:
    """The same numbers within the tolerances of tests/test_metrics_parity.py; `loose`: so many times as far apart."""
    near = 1e-6 if loose == 1 else 0.05
    assert values["fid"]["value"] == pytest.approx(found["frechet_inception_distance"], rel=1e-5 * loose)
    assert values["kid"]["value"] == pytest.approx(found["kernel_inception_distance_mean"], abs=1e-6 * loose)
    assert values["is"]["value"] == pytest.approx(found["inception_score_mean"], rel=1e-6 * loose)
    assert values["precision"]["value"] == pytest.approx(found["precision"], abs=near)
    assert values["recall"]["value"] == pytest.approx(found["recall"], abs=near)


@pytest.mark.parametrize(("compiled", "least"), [(False, 1.6), (True, 2.0)], ids=["eager", "compiled"])
def test_all_metrics_against_torch_fidelity(
    setup: tuple[Path, Path, Path], ours: Ours, tmp_path: Path, compiled: bool, least: float
) -> None:
    theirs = torch_fidelity_scores(setup[2], 256)
    ours.get("inception-v3-compat", "cpu", None, compiled)
    ratio, found, values = race(
        f"all metrics, torch-fidelity from folders{', hibench compiled' if compiled else ''}",
        lambda: theirs(*setup[:2]),
        lambda: ours.score(ALL, ours.fresh(tmp_path), compiled=compiled),
    )
    check_values(values, found)
    assert ratio > least


def test_a_warm_reference_against_a_cold_one(ours: Ours, tmp_path: Path) -> None:
    ours.score(ALL, tmp_path / "warm")
    ratio, cold, warm = race(
        "warm reference against cold", lambda: ours.score(ALL, ours.fresh(tmp_path)), lambda: ours.score(ALL, tmp_path / "warm")
    )
    assert {k: v["value"] for k, v in cold.items()} == {k: v["value"] for k, v in warm.items()}
    assert ratio > 1.6


def test_fid_and_kid_against_clean_fid(setup: tuple[Path, Path, Path], ours: Ours, tmp_path: Path) -> None:
    from cleanfid import fid
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    a, b, weights = setup
    peer = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(weights))
    blocks = [f"Mixed_{n}" for n in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")]
    first = ["Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "MaxPool_2"]
    trunk = torch.nn.Sequential(*[getattr(peer, n) for n in [*first, *blocks, "AvgPool"]], torch.nn.Flatten())
    scripted = torch.jit.optimize_for_inference(torch.jit.freeze(torch.jit.trace(trunk.eval(), torch.rand(1, 3, 299, 299))))

    def network(x: torch.Tensor) -> torch.Tensor:
        return scripted((x - 128) / 128)

    def extracted(folder: Path) -> Any:
        return fid.get_folder_features(
            str(folder), network, num_workers=2, batch_size=32, device=torch.device("cpu"), verbose=False
        )

    def theirs() -> tuple[Any, Any, float]:  # what its two functions do: each extracts both folders; sqrtm is not in the clock
        x, y = extracted(a), extracted(b)
        return x, y, float(fid.kernel_distance(extracted(a), extracted(b)))

    with torch.inference_mode():
        network(torch.zeros(min(IMAGES, 32), 3, 299, 299))
    ours.get("inception-v3-clean", "cpu")
    ratio, found, values = race(
        "FID + KID, clean-fid from folders, its sqrtm not counted",
        theirs,
        lambda: ours.score("fid,kid", ours.fresh(tmp_path), "inception-v3-clean"),
        rounds=max(1, ROUNDS - 1),
    )
    assert values["clean-fid"]["value"] == pytest.approx(frechet.frechet_distance(found[0], found[1]), rel=1e-4, abs=1e-3)
    assert ratio > 2.5


def test_a_kept_fit_of_the_reference_against_fitting(tmp_path: Path) -> None:
    x = torch.randn(4096, 2048, generator=torch.Generator().manual_seed(0)).numpy()
    kept = tmp_path / "x.fit.npz"
    frechet.cached_fit(x, kept)
    ratio, made, read = race(
        "Gaussian of 4096 references, d = 2048: read against fitted",
        lambda: frechet.cached_fit(x, None),
        lambda: frechet.cached_fit(x, kept),
    )
    assert made.trace == read.trace
    assert ratio > 2


@pytest.mark.parametrize(("n", "least"), [(256, 50), (1000, 20), (4000, 5), (10_000, 5)])
def test_frechet_distance_against_sqrtm(n: int, least: float) -> None:
    scipy_linalg = pytest.importorskip("scipy.linalg")
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 2048, generator=generator).relu() * scale for scale in (1.0, 1.1))
    stats = [(v.double().mean(0).numpy(), np.cov(v.double().numpy(), rowvar=False)) for v in (x, y)]

    def peer() -> float:
        (m1, s1), (m2, s2) = stats
        root = scipy_linalg.sqrtm(s1 @ s2)
        return float(((m1 - m2) ** 2).sum() + np.trace(s1) + np.trace(s2) - 2 * np.trace(np.real(root)))

    fits = [frechet.fit(v) for v in (x, y)]
    name = f"Fréchet distance from fitted moments, d = 2048, N = {n}"
    ratio, theirs, value = race(name, peer, lambda: frechet.distance(*fits), rounds=1)
    assert value == pytest.approx(theirs, rel=1e-4)
    assert ratio > least


def test_compiled_against_eager(ours: Ours, tmp_path: Path) -> None:
    for compiled in (False, True):
        ours.get("inception-v3-compat", "cpu", None, compiled)
    ratio, plain, fast = race(
        "compiled against eager, fid and is",
        lambda: ours.score("fid,is", ours.fresh(tmp_path)),
        lambda: ours.score("fid,is", ours.fresh(tmp_path), compiled=True),
    )
    assert fast["fid"]["value"] == pytest.approx(plain["fid"]["value"], rel=1e-5)
    assert ratio > 0.9


# -- on a GPU ----------------------------------------------------------------------------------------------------------------


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@needs_gpu
def test_all_metrics_on_a_gpu_from_folders(setup: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Aim: 4x at 256 px. Give HIBENCH_PERF_IMAGES=1000 or more: with few images the start of the peer's workers counts most."""
    from hibench.score import score_folders

    theirs, calls = torch_fidelity_scores(setup[2], 256, "cuda"), iter(range(1000))

    def score() -> Any:
        cache = tmp_path / f"cache-{next(calls)}"
        return score_folders(setup[0], setup[1], metrics=ALL, weights=setup[2], device="cuda", cache=cache)[0]

    score()                                               # kernels chosen, weights read
    ratio, found, values = race("all metrics on a GPU, torch-fidelity from folders", lambda: theirs(*setup[:2]), score)
    check_values(values, found, loose=1000)               # cuDNN's TF32 on either side
    assert ratio > 2


@pytest.mark.gpu
@needs_gpu
def test_all_metrics_on_a_gpu_from_device_memory(setup: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Aim: 20x at 1024 px, where the peer has to write and read PNG files of what is in memory already."""
    from hibench.extractors.inception import open_compat
    from hibench.features import Collector
    from hibench.metrics import frechet, kernel, neighbours, scores

    generator = torch.Generator(device="cuda").manual_seed(0)
    sets = [(torch.rand(IMAGES, 3, 1024, 1024, generator=generator, device="cuda") * top).byte() for top in (255, 200)]
    theirs, extractor = torch_fidelity_scores(setup[2], 1024, "cuda"), open_compat("cuda", str(setup[2]))
    extractor(sets[0][:32])

    def peer() -> Any:
        for name, images in zip("xy", sets):
            (tmp_path / name).mkdir(exist_ok=True)
            for i, image in enumerate(images.cpu()):
                Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / name / f"{i:05}.png", compress_level=1)
        return theirs(tmp_path / "x", tmp_path / "y")

    def own() -> Any:
        found = []
        for images in sets:
            collector = Collector([extractor], 32)
            for at in range(0, IMAGES, 32):
                collector.add(images[at : at + 32])
            found.append(collector.finish())
        (x, logits), (y, _) = [(f["inception-v3-compat/2048"], f["inception-v3-compat/logits"]) for f in found]
        near = neighbours.neighbours(x, y)
        values = {"fid": frechet.frechet_distance(x, y), "kid": kernel.kernel_distance(x, y, 100, IMAGES)[0],
                  "is": scores.inception_score(logits)[0], "precision": near.precision, "recall": near.recall}
        return {name: {"value": value} for name, value in values.items()}

    ratio, found, values = race("all metrics on a GPU at 1024 px, torch-fidelity by way of PNG files", peer, own)
    check_values(values, found, loose=1000)
    assert ratio > 10
