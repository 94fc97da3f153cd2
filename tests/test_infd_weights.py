"""Weights of INFD: official checkpoints, hibench's folder with its variants, and autoencoders and latents of LDM."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hibench.adapter import seeded_noise
from hibench.errors import AdapterError, MissingWeights, SpecError
from methods.infd import INFD, checkpoint, configs, model
from methods.infd.render import render_uint8
from methods.ldm import LDM
from methods.ldm.model import LatentDiffusion, randomise
from methods.nn.autoencoder import VQModel

CHECKPOINT = Path(__file__).parent / "golden" / "infd" / "f_checkpoint" / "last-model.pth"


def official() -> dict:
    """The checkpoint's content; its tensors may be changed."""
    found = torch.load(CHECKPOINT, weights_only=True)
    found["model"]["sd"] = {k: v.clone() for k, v in found["model"]["sd"].items()}
    return found


def saved(path: Path, content: object) -> str:
    torch.save(content, path)
    return str(path)


# -- official checkpoints ------------------------------------------------------------------------------------------------


def test_official_checkpoint_through_the_adapter() -> None:
    infd = INFD(str(CHECKPOINT))
    image = infd.generate((24, 40), 0, steps=4)
    assert image.shape == (3, 24, 40)
    assert "averaged U-Net weights" in infd.loaded
    raw = INFD(str(CHECKPOINT), {"ema": False})
    assert not torch.equal(raw.generate((24, 40), 0, steps=4), image)
    assert "raw U-Net weights" in raw.loaded
    state = official()["model"]["sd"]
    assert torch.equal(infd.model.z_dm.out[2].weight, state["z_dm_ema.out.2.weight"])
    assert torch.equal(raw.model.z_dm.out[2].weight, state["z_dm.out.2.weight"])
    assert infd.weights_digest() == raw.weights_digest() != INFD("random", {"config": "tiny"}).weights_digest()
    assert infd.parameters() == sum(p.numel() for p in infd.model.parameters())


def test_strict_loading_lists_what_differs(tmp_path: Path) -> None:
    content = official()
    state = content["model"]["sd"]
    state["encoder.0.extra"] = torch.zeros(1)
    state["perc_loss.more"] = state["disc.more"] = torch.zeros(1)       # parts of training are nobody's business
    del state["decoder.0.bias"]
    state["renderer.net.conv_out.bias"] = torch.zeros(5)
    with pytest.raises(AdapterError) as error:
        INFD(saved(tmp_path / "x.pth", content)).load()
    text = str(error.value)
    assert "1 missing (decoder.0.bias)" in text
    assert "1 unexpected (encoder.0.extra)" in text
    assert "1 of another shape (renderer.net.conv_out.bias [5] instead of [3])" in text
    assert "\n" not in text


def test_an_autoencoder_alone_reconstructs_and_cannot_generate(tmp_path: Path) -> None:
    content = official()
    content["model"]["sd"] = {k: v for k, v in content["model"]["sd"].items() if not k.startswith("z_dm")}
    del content["model"]["args"]["z_dm"]
    infd = INFD(saved(tmp_path / "ae.pth", content))
    infd.load()
    assert "no U-Net" in infd.loaded
    with pytest.raises(AdapterError, match="an autoencoder without a diffusion model"):
        infd.generate((16, 16), 0, steps=4)
    x = seeded_noise((3, 16, 16), [0])
    with torch.inference_mode():
        assert infd.model.features(infd.model.encode(x)).shape == (1, 32, 16, 16)


def test_without_averages_the_raw_weights_serve(tmp_path: Path) -> None:
    content = official()
    content["model"]["sd"] = {k: v for k, v in content["model"]["sd"].items() if not k.startswith("z_dm_ema.")}
    infd = INFD(saved(tmp_path / "raw.pth", content))
    infd.load()
    assert "raw U-Net weights" in infd.loaded


class Evil:
    """Would run code if it were unpickled by the ordinary loader."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('code ran')",))


@pytest.mark.parametrize(("kind", "message"), [
    ("truncated", "not a readable checkpoint"), ("garbage", "not a readable checkpoint"), ("code", "pickled code"),
    ("empty", "not a readable checkpoint"), ("list", "not an INFD checkpoint"), ("ldm", "not an INFD checkpoint"),
    ("other", "holds a model 'edsr', not infd"), ("encoder", "names 'encoder_kl' where only encoder_vqf4"),
    ("unet", "unexpected keyword argument 'model_chanels'"),
])
def test_bad_files_are_one_clear_line(tmp_path: Path, kind: str, message: str) -> None:
    path, content = tmp_path / "model.pth", official()
    if kind == "truncated":
        path.write_bytes(CHECKPOINT.read_bytes()[:300_000])
    elif kind in ("garbage", "empty"):
        path.write_bytes(b"not a checkpoint at all" * (kind == "garbage"))
    elif kind == "code":
        saved(path, {"model": {"name": "infd", "args": Evil(), "sd": {}}})
    elif kind in ("list", "ldm"):
        saved(path, [1] if kind == "list" else {"state_dict": {"a": torch.zeros(1)}})
    else:
        if kind == "other":
            content["model"]["name"] = "edsr"
        elif kind == "encoder":
            content["model"]["args"]["encoder"]["name"] = "encoder_kl"
        else:
            content["model"]["args"]["z_dm"]["args"]["model_chanels"] = 3
        saved(path, content)
    with pytest.raises(AdapterError, match=message) as error:
        INFD(str(path)).load()
    assert "\n" not in str(error.value)


def test_a_checkpoint_holds_its_own_renderer() -> None:
    with pytest.raises(SpecError, match="a checkpoint holds its own renderer"):
        INFD(str(CHECKPOINT), {"renderer": "liif"}).load()


# -- hibench's folder ----------------------------------------------------------------------------------------------------


def write_folder(folder: Path, seed: int = 0) -> model.INFDModel:
    """Weights of the tiny network, with one variant."""
    args = configs.config_args("tiny")
    variant = configs.with_renderer(args, "liif")
    folder.mkdir(exist_ok=True)
    network, other = model.random_model(args, seed=seed), model.random_model(variant, seed=seed + 1)
    state = network.state_dict()
    save_file({k: v.half() for k, v in state.items() if not k.startswith("z_dm.")}, folder / "autoencoder.safetensors")
    save_file({k[5:]: v.half() for k, v in state.items() if k.startswith("z_dm.")}, folder / "unet.safetensors")
    own = {k: v.half() for k, v in other.state_dict().items() if k.startswith(("decoder.", "renderer."))}
    save_file(own, folder / "variant-liif.safetensors")
    config = {"name": "infd", "args": args, "variants": {"liif": variant["renderer"]}}
    (folder / "config.json").write_text(json.dumps(config))
    return network


def test_a_folder_and_its_variants(tmp_path: Path) -> None:
    folder = tmp_path / "w"
    network = write_folder(folder)
    main, liif = INFD(str(folder)), INFD(str(folder), {"renderer": "liif"})
    image = main.generate((24, 24), 0, steps=4)
    assert torch.equal(main.model.z_dm.out[2].weight, network.z_dm.out[2].weight.half().float())
    assert not torch.equal(liif.generate((24, 24), 0, steps=4), image)
    assert torch.equal(liif.model.encoder[1].weight, main.model.encoder[1].weight)
    assert "renderer liif" in liif.loaded
    assert main.weights_digest() != liif.weights_digest()
    digest = main.weights_digest()
    (folder / "variant-liif.safetensors").unlink()
    assert INFD(str(folder)).weights_digest() == digest                 # what is not used does not count
    with pytest.raises(MissingWeights, match=r"get it with: hibench train infd --variant liif --out .*w$"):
        INFD(str(folder), {"renderer": "liif"}).load()
    with pytest.raises(SpecError, match="option renderer: 'lif' is not known; did you mean 'liif'"):
        INFD(str(folder), {"renderer": "lif"}).load()
    (folder / "unet.safetensors").unlink()
    with pytest.raises(MissingWeights, match=r"get it with: hibench train infd --stage unet --out"):
        INFD(str(folder)).load()


def test_unusable_folders_say_why(tmp_path: Path) -> None:
    with pytest.raises(MissingWeights, match=r"no config.json in"):
        INFD(str(tmp_path)).load()
    for text, message in (("{", "not readable as JSON"), ('{"name": "ldm"}', "not an INFD configuration")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(AdapterError, match=message):
            INFD(str(tmp_path)).load()
    write_folder(tmp_path)
    state = load_file(tmp_path / "autoencoder.safetensors")
    save_file({k: v for k, v in state.items() if k != "quantizer.embedding.weight"}, tmp_path / "autoencoder.safetensors")
    with pytest.raises(AdapterError, match=r"1 missing \(quantizer.embedding.weight\)"):
        INFD(str(tmp_path)).load()


# -- LDM -----------------------------------------------------------------------------------------------------------------


def ldm_params(codes: int = 64) -> dict:
    """An LDM with the autoencoder of the tiny INFD."""
    args = configs.config_args("tiny")
    coder = args["encoder"]["args"] | {"double_z": False, "in_channels": 3, "out_ch": 3, "attn_resolutions": [], "dropout": 0.0}
    unet = {"in_channels": 3, "out_channels": 3, **args["z_dm"]["args"]}
    return {"linear_start": 0.0015, "linear_end": 0.0195, "scale_factor": 0.5, "unet_config": {"params": unet},
            "first_stage_config": {"params": {"embed_dim": 3, "n_embed": codes, "ddconfig": coder}}}


def test_an_ldm_autoencoder_becomes_a_neural_field_one() -> None:
    """With the output head as its renderer, INFD is the LDM's autoencoder."""
    params = ldm_params()["first_stage_config"]["params"]
    theirs = VQModel(params["ddconfig"], params["n_embed"], params["embed_dim"]).eval()
    randomise(theirs, 3)
    ours = model.empty_model(configs.with_renderer(configs.config_args("tiny"), "fixed"), diffusion=False)
    checkpoint.fill(ours, checkpoint.from_ldm(theirs.state_dict()), "the LDM")
    x = seeded_noise((3, 16, 24), [0, 1])
    with torch.inference_mode():
        z = theirs.encode(x)
        assert torch.equal(ours.encode(x), z)
        assert torch.allclose(ours.renderer(ours.features(z)), theirs.decode(z), rtol=1e-4, atol=1e-4)
    with pytest.raises(AdapterError, match=r"'loss.x' is not part of an LDM autoencoder"):
        checkpoint.from_ldm({"loss.x": torch.zeros(1)})
    with pytest.raises(AdapterError, match="no codebook or no output head"):
        checkpoint.from_ldm({"encoder.conv_in.bias": torch.zeros(1)})


def write_ldm(folder: Path, infd: Path, codes: int = 64) -> None:
    network = LatentDiffusion(ldm_params(codes))
    randomise(network, 5)
    state = network.first_stage_model.state_dict()
    book = load_file(infd / "autoencoder.safetensors")["quantizer.embedding.weight"]
    if codes == len(book):
        state["quantize.embedding.weight"] = book
    folder.mkdir()
    save_file({k: v.half() for k, v in state.items()}, folder / "first_stage.safetensors")
    save_file({k: v.half() for k, v in network.unet.state_dict().items()}, folder / "unet.safetensors")
    (folder / "config.json").write_text(json.dumps(ldm_params(codes)))


def test_latents_of_an_ldm_are_rendered_at_any_size(tmp_path: Path) -> None:
    write_folder(tmp_path / "infd")
    write_ldm(tmp_path / "ldm", tmp_path / "infd")
    infd = INFD(str(tmp_path / "infd"), {"latents": str(tmp_path / "ldm")})
    assert "do not divide" in infd.supports({"height": 40, "width": 40, "steps": 300})
    image = infd.generate((40, 40), 4, steps=5)
    assert infd.parameters() == sum(p.numel() for p in infd.model.parameters()) + sum(
        p.numel() for p in infd.ldm.model.unet.parameters())
    assert infd.weights_digest() != INFD(str(tmp_path / "infd")).weights_digest()
    ldm = LDM(str(tmp_path / "ldm"))
    ldm.load()
    kept = []
    ldm.model.decode = lambda z: kept.append(z) or torch.zeros(len(z), 3, 16, 16)
    ldm.generate((16, 16), 4, steps=5)
    with torch.inference_mode():
        phi = infd.model.features(kept[0] / ldm.model.scale_factor)
        expected = render_uint8(infd.model, phi, 40, 40, infd.tiles)[0]
    assert (image.int() - expected.int()).abs().max() <= 1


def test_latents_of_another_codebook_are_refused(tmp_path: Path) -> None:
    write_folder(tmp_path / "infd")
    write_ldm(tmp_path / "ldm", tmp_path / "infd", codes=32)
    with pytest.raises(AdapterError, match="has another codebook"):
        INFD(str(tmp_path / "infd"), {"latents": str(tmp_path / "ldm")}).load()
