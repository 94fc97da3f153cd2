"""∞-Diff's training: a resumed run equals an undisturbed one, what it writes is what the adapter reads, variants differ."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hibench.cli import main
from hibench.errors import MissingWeights, SpecError
from methods.infty_diff import InftyDiff, configs, train
from methods.infty_diff.geometry import Points
from methods.infty_diff.sparse import SparseConv
from methods.infty_diff.uno import ConvBlock


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few images, subsets and steps of a narrow network."""
    images = np.random.default_rng(0).integers(0, 256, (40, 3, 64, 64), dtype=np.uint8)
    monkeypatch.setattr(train, "rendered", lambda count, resolution, **_: images[:count])
    monkeypatch.setattr(train, "IMAGES", 40)
    monkeypatch.setattr(train, "BANK", 3)
    monkeypatch.setattr(train, "_DECODER", train._DECODER | {"batch": 4})
    monkeypatch.setattr(configs, "_SHARED", configs._SHARED | {"nf": 8, "uno_base_nf": 8, "uno_res": 12, "attn_res": []})


def run(out: Path, **more):  # type: ignore[no-untyped-def]
    return train.train(out, images=40, **({"steps": 3} | more))


def test_interrupted_and_resumed_equals_undisturbed(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    assert whole["prior"]["finished"]
    first = run(tmp_path / "parts", max_seconds=0.0)
    assert (first["decoder"]["steps"], first["decoder"]["finished"], "prior" in first) == (1, False, False)
    while not run(tmp_path / "parts", max_seconds=0.0).get("prior", {}).get("finished"):
        pass
    for name in ("decoder", "encoder", "prior"):
        a, b = (load_file(tmp_path / which / f"{name}.safetensors") for which in ("whole", "parts"))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[k], b[k]) for k in a), name


def test_what_is_written_is_what_the_adapter_reads(tmp_path: Path) -> None:
    run(tmp_path)
    method = InftyDiff(str(tmp_path), {"prior_steps": 4})
    image = method.generate((16, 24), 0, steps=2, sparsity=0.5)
    assert image.shape == (3, 16, 24)
    assert method.compat == "fixed"
    assert method.process.velocity
    assert method.process.sigma == 0.5
    state = load_file(tmp_path / "prior.safetensors")
    assert state["latents.std"].shape == (64,)
    assert {str(v.dtype) for k, v in state.items() if not k.startswith("latents")} == {"torch.float16"}
    assert max(path.stat().st_size for path in tmp_path.glob("*.safetensors")) < 8 * 2**20
    report = json.loads((tmp_path / "training-decoder.json").read_text())
    assert (report["steps"], report["subsample"], report["points"], report["variant"]) == (3, 4, 1024, "main")
    assert "scenes v" in report["data"]


@pytest.mark.parametrize(("variant", "points", "sigma"), [("1x", 4096, 0.5), ("8x", 512, 0.5), ("white-noise", 1024, 0.0),
                                                          ("halton", 1024, 0.5), ("full-kernel", 1024, 0.5)])
def test_variants(tmp_path: Path, variant: str, points: int, sigma: float) -> None:
    result = run(tmp_path, variant=variant, stage="decoder", steps=1)
    assert result["decoder"]["finished"]
    assert json.loads((tmp_path / "training-decoder.json").read_text())["points"] == points
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["diffusion"]["gaussian_filter_std"] == sigma
    kernel = load_file(tmp_path / "decoder.safetensors")["down_blocks.0.block.conv.kernel"]
    assert kernel.shape == (49, 8 if variant == "full-kernel" else 1, 8)


def test_the_reference_networks_fit_into_their_files() -> None:
    for name in configs.VARIANTS:
        with torch.device("meta"):
            from methods.infty_diff.checkpoint import build

            networks = build(configs.variant_config(name), "fixed", "fixed")
        assert all(2 * train.count(module) < 8 * 2**20 for module in networks.modules())


def test_residual_branches_start_quietly() -> None:
    decoder, encoder = train.networks(configs.variant_config("main"), "cpu")
    blocks = [module for module in decoder.modules() if isinstance(module, ConvBlock)]
    assert blocks
    assert all(block.out_layers[2].weight.std() < 0.3 * block.in_layers[2].weight.std() for block in blocks)
    assert {module.thin for module in encoder.modules() if isinstance(module, SparseConv)} == {4}
    dense = decoder.support(Points(decoder.canvas(64, 64)))
    assert train.at(torch.ones(2, 4096, 3), dense).shape == (2, 4096, 3)


def test_a_batch_sees_all_noise_levels() -> None:
    times = train.spread_times(8, 1000, torch.Generator().manual_seed(0))
    assert [int(t) // 125 for t in times] == list(range(8))


def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SpecError, match="no variant '3x'"):
        run(tmp_path, variant="3x")
    with pytest.raises(SpecError, match="stage 'unet' is not known; it is one of: decoder, prior"):
        run(tmp_path, stage="unet")
    with pytest.raises(MissingWeights, match=r"no encoder at .*; train it with: hibench train infty-diff --stage decoder"):
        run(tmp_path, stage="prior")
    (tmp_path / "mine.py").write_text("from methods.infty_diff import InftyDiff as Mine\n")
    args = ["--variant", "16x", "--out", str(tmp_path / "o"), "--device", "cpu"]
    assert main(["train", f"{tmp_path / 'mine.py'}:Mine", *args]) == 2
    assert "no variant '16x'; did you mean" in capsys.readouterr().err
