"""The same numbers as torch-fidelity, clean-fid and lpips on the same images and weights; and their known failures, absent
here."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from inception_weights import make
from PIL import Image

from hibench.extractors.inception import open_clean, open_compat
from hibench.features import Collector
from hibench.metrics import frechet, kernel, neighbours, pairs, scores, sliced
from hibench.references import FolderReference
from hibench.resize import bicubic_antialias, shortest_side_crop, tf1_bilinear

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the peers' imports warn about their own dependencies
    import lpips
    import torch_fidelity  # noqa: F401
    from cleanfid import fid as cleanfid
    from cleanfid.inception_torchscript import InceptionV3W
    from cleanfid.resize import build_resizer
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("weights") / "random-inception.pth")


@pytest.fixture(scope="module")
def peer(weights: Path) -> FeatureExtractorInceptionV3:
    return FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights)
    )


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Blobs of many scales, uint8 [12, 3, 72, 56]."""
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(12, 3, 72, 56)
    for side in (3, 9, 30):
        noise = torch.rand(12, 3, side, side, generator=generator) - 0.5
        total += torch.nn.functional.interpolate(noise, (72, 56), mode="bilinear") / side**0.5
    return ((total - total.amin()) / (total.amax() - total.amin()) * 255).to(torch.uint8)


@pytest.fixture(scope="module")
def folder(images: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for i, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(root / f"{i:03}.png")
    return root


def features(seed: int, n: int = 120, d: int = 64) -> torch.Tensor:
    """Non-negative features of Inception's size, float32 [n, d]."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(n, d, generator=generator) * 0.3 + 0.35 + 0.05 * seed).relu()


def relative(a: torch.Tensor | np.ndarray, b: torch.Tensor | np.ndarray) -> float:
    a, b = torch.as_tensor(a).double(), torch.as_tensor(b).double()
    return float((a - b).norm() / b.norm())


def test_inception_features_and_logits_equal_torch_fidelity(
    peer: FeatureExtractorInceptionV3, weights: Path, images: torch.Tensor
) -> None:
    spatial: list[torch.Tensor] = []
    hook = peer.Mixed_6d.branch1x1.register_forward_hook(
        lambda module, inputs, output: spatial.append(output[:, :7].flatten(1))
    )
    with torch.inference_mode():
        theirs, ours = peer(images[:6]), open_compat("cpu", str(weights))(images[:6])
    hook.remove()
    assert 0.1 < float(theirs[0].mean()) < 2
    assert relative(ours["2048"], theirs[0]) < 1e-5
    assert relative(ours["logits"], theirs[1]) < 1e-5
    assert relative(ours["mixed6"], spatial[0]) < 1e-5  # sFID's layer: Mixed_6d.branch1x1


@pytest.mark.parametrize("size", [(256, 256), (40, 61), (1, 1), (299, 299), (700, 640)])
def test_tf1_resize_is_bit_equal_to_torch_fidelity(size: tuple[int, int]) -> None:
    x = torch.randint(0, 256, (2, 3, *size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert torch.equal(
        tf1_bilinear(x, 299), interpolate_bilinear_2d_like_tensorflow1x(x.float(), size=(299, 299), align_corners=False)
    )


@pytest.mark.parametrize("size", [(64, 64), (320, 411), (600, 512), (1, 1)])
def test_clean_resize_equals_clean_fid_within_a_hundredth_of_a_level(size: tuple[int, int]) -> None:
    x = torch.randint(0, 256, (1, 3, *size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        theirs = build_resizer("clean")(x[0].permute(1, 2, 0).numpy())
    assert float((bicubic_antialias(x, 299, 299)[0] - torch.tensor(theirs).permute(2, 0, 1)).abs().max()) < 1e-2


def test_clip_crop_equals_torchvision_on_pil_images() -> None:
    from torchvision import transforms

    x = torch.randint(0, 256, (1, 3, 90, 131), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    pipeline = transforms.Compose([transforms.Resize(32, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(32)])
    theirs = np.asarray(pipeline(Image.fromarray(x[0].permute(1, 2, 0).numpy())))
    assert np.array_equal(shortest_side_crop(x, 32)[0].permute(1, 2, 0).numpy(), theirs)


def test_clean_features_and_distance_equal_clean_fid_from_the_same_files(
    peer: FeatureExtractorInceptionV3, weights: Path, folder: Path, tmp_path: Path
) -> None:
    class Layers(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            order = (
                "Conv2d_1a_3x3",
                "Conv2d_2a_3x3",
                "Conv2d_2b_3x3",
                "MaxPool_1",
                "Conv2d_3b_1x1",
                "Conv2d_4a_3x3",
                "MaxPool_2",
                "Mixed_5b",
                "Mixed_5c",
                "Mixed_5d",
                "Mixed_6a",
                "Mixed_6b",
                "Mixed_6c",
                "Mixed_6d",
                "Mixed_6e",
                "Mixed_7a",
                "Mixed_7b",
                "Mixed_7c",
            )
            self.layers = torch.nn.Sequential(*[getattr(peer, name) for name in order], peer.AvgPool)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers(x)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(Layers(), torch.rand(1, 3, 75, 75), check_trace=False).save(str(tmp_path / "inception-2015-12-05.pt"))
        network = InceptionV3W(str(tmp_path), download=False)
        with torch.jit.optimized_execution(False):
            theirs = cleanfid.get_folder_features(
                str(folder), network, num_workers=0, batch_size=12, device=torch.device("cpu"), mode="clean", verbose=False
            )
    collector = Collector([open_clean("cpu", str(weights))], batch=5)
    for batch in FolderReference(folder).images():
        collector.add(batch)
    ours = collector.finish()["inception-v3-clean/2048"]
    assert relative(ours, theirs) < 1e-4
    assert frechet.frechet_distance(ours[:6], ours[6:]) == pytest.approx(
        frechet.frechet_distance(theirs[:6], theirs[6:]), rel=1e-5
    )
    script = open_clean("cpu", str(tmp_path / "inception-2015-12-05.pt"))  # clean-fid's own file serves as well
    with torch.inference_mode(), torch.jit.optimized_execution(False):
        assert relative(script(next(FolderReference(folder).images())[:2])["2048"], theirs[:2]) < 1e-4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if int(__import__("scipy").__version__.split(".")[1]) < 18:  # SciPy 1.18 breaks clean-fid's own distance
            x, y = theirs[:6, :40], theirs[6:, :40]
            direct = cleanfid.frechet_distance(x.mean(0), np.cov(x, rowvar=False), y.mean(0), np.cov(y, rowvar=False))
            assert frechet.frechet_distance(x, y) == pytest.approx(float(direct), rel=1e-5, abs=1e-4)


@pytest.mark.parametrize("n", [60, 400])
def test_frechet_distance_equals_torch_fidelity(n: int) -> None:
    x, y = features(1, n), features(2, 300)
    theirs = fid_statistics_to_metric(fid_features_to_statistics(x), fid_features_to_statistics(y), False)[
        "frechet_inception_distance"
    ]
    assert frechet.frechet_distance(x, y) == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize(("n", "m", "subsets", "size"), [(120, 150, 50, 40), (120, 90, 10, 90), (700, 650, 3, 60)])
def test_kernel_distance_equals_torch_fidelity(n: int, m: int, subsets: int, size: int) -> None:
    x, y = features(1, n), features(2, m)
    theirs = kid_features_to_metric(x, y, kid_subsets=subsets, kid_subset_size=size, rng_seed=2020, verbose=False)
    mean, deviation, used = kernel.kernel_distance(x.numpy(), y.numpy(), subsets, size)
    assert mean == pytest.approx(theirs["kernel_inception_distance_mean"], abs=1e-6)
    assert deviation == pytest.approx(theirs["kernel_inception_distance_std"], abs=1e-6)
    assert used == size


def test_inception_score_equals_torch_fidelity() -> None:
    logits = torch.randn(103, 30, generator=torch.Generator().manual_seed(0)) * 3
    theirs = isc_features_to_metric(logits)
    mean, deviation = scores.inception_score(logits.numpy())
    assert mean == pytest.approx(theirs["inception_score_mean"], rel=1e-9)
    assert deviation == pytest.approx(theirs["inception_score_std"], rel=1e-6)


def test_precision_and_recall_equal_torch_fidelity() -> None:
    x, y = features(1, 300), torch.cat([features(2, 200), features(1, 20)])  # 20 shared images: ties
    theirs = prc_features_to_metric(x, y, prc_neighborhood=3, prc_batch_size=10000, save_cpu_ram=False, verbose=False)
    found = neighbours.neighbours(x.numpy(), y.numpy(), rows=64)
    assert (found.precision, found.recall) == (
        pytest.approx(theirs["precision"], abs=1e-7),
        pytest.approx(theirs["recall"], abs=1e-7),
    )


def test_mind_equals_its_published_recipe() -> None:
    x, y = features(1, 90), features(2, 70)
    generator = torch.Generator().manual_seed(2020)
    kept = x[torch.randperm(90, generator=generator)[:70]]
    u = torch.randn(1000, 64, generator=generator)
    u = u / u.norm(dim=1, keepdim=True)
    expected = 3 * 64 * ((kept @ u.T).sort(0).values - (y @ u.T).sort(0).values).square().mean()
    assert sliced.mind(x.numpy(), y.numpy()) == pytest.approx(float(expected), rel=1e-5)


def test_lpips_equals_the_package_with_the_same_trunk(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        theirs = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    trunk = {f"features.{k.split('.', 1)[1]}": v for k, v in theirs.net.state_dict().items()}
    torch.save(trunk, tmp_path / "alexnet.pth")
    network, sha = pairs.lpips_network("alex", str(tmp_path / "alexnet.pth"))
    a, b = torch.randint(0, 256, (2, 2, 3, 64, 48), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.inference_mode():
        expected = theirs(a.float() / 127.5 - 1, b.float() / 127.5 - 1).flatten()
    assert torch.allclose(pairs.lpips_distance(a, b, network), expected, rtol=1e-5)
    assert len(sha) == 64


# -- what goes wrong in the peers -------------------------------------------------------------------------------------------


def test_distance_of_equal_sets_with_fewer_images_than_features_is_zero_where_the_peer_goes_below() -> None:
    x = features(1, 80, 300)
    stats = fid_features_to_statistics(x)
    theirs = fid_statistics_to_metric(stats, stats, False)["frechet_inception_distance"]
    ours = frechet.frechet_distance(x, x)
    assert -1e-8 <= ours <= 1e-9
    assert abs(ours) < abs(theirs)


def test_images_of_many_sizes_share_batches(weights: Path, images: torch.Tensor) -> None:
    extractor = open_compat("cpu", str(weights))
    collector = Collector([extractor], batch=4)
    parts = [images[:1], images[1:2, :, :50], images[2:4, :, :, :30]]
    for part in parts:
        collector.add(part)
    whole = collector.finish()["inception-v3-compat/2048"]
    alone = np.concatenate([extractor(part)["2048"].numpy() for part in parts])
    assert whole.shape == (4, 2048)
    assert relative(whole, alone) < 1e-5


def test_one_extractor_instance_never_returns_features_of_another_buffer(weights: Path, images: torch.Tensor) -> None:
    extractor, buffer = open_compat("cpu", str(weights)), images[:2].clone()
    first = extractor(buffer)["2048"].clone()
    buffer.copy_(images[2:4])
    assert relative(extractor(buffer)["2048"], first) > 1e-3


def test_no_metric_module_needs_scipy() -> None:
    import subprocess
    import sys

    code = (
        "import sys, hibench.metrics.frechet, hibench.metrics.kernel, hibench.metrics.evaluate, "
        "hibench.score, hibench.features;"
        "print('scipy' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
