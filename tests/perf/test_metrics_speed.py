"""Speed of scoring against the installed peers, in one run over the same images: `pytest tests/perf -m perf -s`.

Values are compared first: a ratio only counts where the numbers agree. Warm-up (imports, loading weights, compilation) is
outside the clock, except that torch-fidelity's own loading of weights cannot be told apart. On 2 cores the floor of the network
is 11.42 GFLOP per image.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from inception_weights import make
from PIL import Image

from hibench.metrics import frechet

pytestmark = pytest.mark.perf
IMAGES = 32


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


def seconds(function: Callable[[], object]) -> tuple[float, object]:
    start = time.perf_counter()
    value = function()
    return time.perf_counter() - start, value


def report(name: str, theirs: float, ours: float) -> float:
    print(f"\n{name}: peer {theirs:.2f} s, hibench {ours:.2f} s, {theirs / ours:.2f}x ({torch.get_num_threads()} threads)")
    return theirs / ours


def ours(
    setup: tuple[Path, Path, Path], metrics: str, cache: Path, compiled: bool = False
) -> tuple[float, dict[str, dict[str, object]]]:
    from hibench.features import get_extractor
    from hibench.score import score_folders

    a, b, weights = setup
    made = get_extractor("inception-v3-compat", "cpu", str(weights), compiled)
    with torch.inference_mode():
        for _ in range(2):
            made(torch.zeros(32, 3, 256, 256, dtype=torch.uint8))  # warm-up (and compilation), outside the clock
    with pytest.MonkeyPatch.context() as patch:
        import hibench.features as features

        patch.setattr(features, "get_extractor", lambda name, *rest: made if name == made.name else get_extractor(name, *rest))
        took, (values, missing) = seconds(
            lambda: score_folders(a, b, metrics=metrics, weights=weights, device="cpu", cache=cache)
        )  # type: ignore[misc]
    assert missing == {}
    return took, values


def test_all_metrics_against_torch_fidelity(setup: tuple[Path, Path, Path], tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch_fidelity

        theirs_s, theirs = seconds(
            lambda: torch_fidelity.calculate_metrics(
                input1=str(setup[0]),
                input2=str(setup[1]),
                cuda=False,
                fid=True,
                kid=True,
                isc=True,
                prc=True,
                verbose=False,
                cache=False,
                kid_subset_size=IMAGES,
                feature_extractor="inception-v3-compat",
                feature_extractor_weights_path=str(setup[2]),
            )
        )
    ours_s, values = ours(setup, "fid,kid,is,precision,recall", tmp_path / "cache")
    assert isinstance(theirs, dict)
    assert values["fid"]["value"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-5)
    assert values["kid"]["value"] == pytest.approx(theirs["kernel_inception_distance_mean"], abs=1e-6)
    assert values["is"]["value"] == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
    assert (values["precision"]["value"], values["recall"]["value"]) == (
        pytest.approx(theirs["precision"]),
        pytest.approx(theirs["recall"]),
    )
    ratio = report("all metrics, torch-fidelity from folders", theirs_s, ours_s)
    warm_s, _ = ours(setup, "fid,kid,is,precision,recall", tmp_path / "cache")
    warm = report("warm reference", ours_s, warm_s)
    assert ratio > 1.6
    assert warm > 1.6


def test_all_metrics_compiled(setup: tuple[Path, Path, Path], tmp_path: Path) -> None:
    plain_s, plain = ours(setup, "fid,is", tmp_path / "one")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fast_s, fast = ours(setup, "fid,is", tmp_path / "two", compiled=True)
    assert fast["fid"]["value"] == pytest.approx(plain["fid"]["value"], rel=1e-5)
    report("compiled against eager", plain_s, fast_s)


def test_fid_and_kid_against_clean_fid(setup: tuple[Path, Path, Path], tmp_path: Path) -> None:
    a, b, weights = setup
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from cleanfid import fid
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        peer = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(weights))
        blocks = [f"Mixed_{n}" for n in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")]
        first = ["Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "MaxPool_2"]
        names = [*first, *blocks, "AvgPool"]
        trunk = torch.nn.Sequential(*[getattr(peer, n) for n in names], torch.nn.Flatten())
        scripted = torch.jit.optimize_for_inference(torch.jit.freeze(torch.jit.trace(trunk.eval(), torch.rand(1, 3, 299, 299))))

        def network(x: torch.Tensor) -> torch.Tensor:
            return scripted((x - 128) / 128)

        def peers() -> tuple[float, float]:  # what its two functions do: each extracts both folders
            sets = [
                [
                    fid.get_folder_features(
                        str(d), network, num_workers=2, batch_size=32, device=torch.device("cpu"), verbose=False
                    )
                    for d in (a, b)
                ]
                for _ in range(2)
            ]
            x, y = sets[0]
            return (
                fid.frechet_distance(x.mean(0), np.cov(x, rowvar=False), y.mean(0), np.cov(y, rowvar=False)),
                fid.kernel_distance(*sets[1]),
            )

        theirs_s, theirs = seconds(peers)
    import hibench.features as features
    from hibench.score import score_folders

    made = features.get_extractor("inception-v3-clean", "cpu", str(weights))
    with torch.inference_mode():
        made(torch.zeros(32, 3, 256, 256, dtype=torch.uint8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "get_extractor", lambda name, *rest: made)
        ours_s, found = seconds(
            lambda: score_folders(
                a, b, metrics="fid,kid", extractor="inception-v3-clean", weights=weights, device="cpu", cache=tmp_path
            )
        )
    values, missing = found  # type: ignore[misc]
    assert missing == {}
    assert values["clean-fid"]["value"] == pytest.approx(float(theirs[0]), rel=1e-4, abs=1e-3)  # type: ignore[index]
    assert report("FID + KID, clean-fid from folders", theirs_s, ours_s) > 2.5


@pytest.mark.parametrize(("n", "least"), [(256, 50), (1000, 20), (4000, 5)])
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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs_s, theirs = seconds(peer)
    ours_s, value = seconds(lambda: frechet.distance(*fits))
    assert value == pytest.approx(theirs, rel=1e-4)
    assert report(f"Fréchet distance, d = 2048, N = {n}", theirs_s, ours_s) > least
