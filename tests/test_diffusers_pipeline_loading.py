"""Weights of diffusers pipelines: found, loaded, identified, fetched and licensed, always without a network."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers_pipelines import saved

from hibench import hub, listing
from hibench.errors import AdapterError, MissingWeights, SpecError
from hibench.fetching import fetch_named
from hibench.registry import load_adapter
from hibench.spec import Method, Spec
from methods.diffusers_pipeline import DiffusersPipeline, Direct, loading
from methods.diffusers_pipeline.configs import CONFIGS, random_pipeline
from methods.diffusers_pipeline.geometry import geometry

pytestmark = [pytest.mark.usefixtures("no_network"),
              pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")]      # diffusers on numpy 2
SDXL = "stabilityai/stable-diffusion-xl-base-1.0"


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("pipelines"), "tiny-sdxl")


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty cache of the hub; a call puts a folder into it as the snapshot of a repository."""
    import huggingface_hub

    def put(repo: str, folder: Path) -> Path:
        place = tmp_path / f"models--{repo.replace('/', '--')}"
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "main").write_text("a" * 40)
        shutil.copytree(folder, place / "snapshots" / ("a" * 40))
        return place / "snapshots" / ("a" * 40)

    download = huggingface_hub.snapshot_download
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo, **more: download(repo, cache_dir=tmp_path, **more))
    return put


# -- finding -------------------------------------------------------------------------------------------------------------


def test_missing_weights_end_with_the_command(monkeypatch, tmp_path, cache, sdxl):
    monkeypatch.setattr(loading, "REFERENCE", tmp_path / "none")
    with pytest.raises(MissingWeights, match=r"make them with: hibench train demofusion$"):
        DiffusersPipeline().load()
    with pytest.raises(MissingWeights, match=rf"{SDXL} is not on this machine; get it with: hibench fetch {SDXL}$"):
        DiffusersPipeline(SDXL).load()
    with pytest.raises(MissingWeights, match=r"hibench fetch a/b --variant fp16$"):
        DiffusersPipeline("a/b", {"variant": "fp16"}).weights_digest()
    folder = cache("a/c", sdxl)
    shutil.rmtree(folder / "unet")
    with pytest.raises(MissingWeights, match=r"lacks unet; get it with: hibench fetch a/c$"):
        loading.find("a/c")
    with pytest.raises(MissingWeights, match=r"no model_index\.json"):
        loading.find(str(tmp_path))
    with pytest.raises(MissingWeights, match="does not exist"):
        loading.find("/nowhere/at/all")
    assert DiffusersPipeline(SDXL).supports({"height": 1024, "width": 1024, "steps": 5}) is None     # load() says so


def test_a_hub_id_in_the_cache_is_loaded(cache, sdxl):
    folder = cache("owner/tiny", sdxl)
    adapter = DiffusersPipeline("owner/tiny")
    assert loading.find("owner/tiny") == folder
    assert adapter.weights_digest() == DiffusersPipeline(str(sdxl)).weights_digest()
    assert adapter.parameters() is None
    adapter.load()
    assert adapter.parameters() == sum(p.numel() for name in ("unet", "vae", "text_encoder", "text_encoder_2")
                                       for p in getattr(adapter.pipe, name).parameters())


def test_a_damaged_pipeline_is_one_error(sdxl, tmp_path):
    folder = shutil.copytree(sdxl, tmp_path / "damaged")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(AdapterError, match="cannot be loaded as a diffusers pipeline"):
        loading.load(str(folder))


# -- loading -------------------------------------------------------------------------------------------------------------


def test_the_vae_stays_in_float32(sdxl):
    adapter = Direct(str(sdxl), dtype="bfloat16")
    image = adapter.generate((64, 64), 0, steps=2)
    assert image.float().std() > 0
    assert (adapter.pipe.unet.dtype, adapter.pipe.text_encoder.dtype, adapter.pipe.vae.dtype) == (
        torch.bfloat16, torch.bfloat16, torch.float32)
    assert loading.load(str(sdxl), dtype="bfloat16", options={"vae": "same"}).vae.dtype == torch.bfloat16


def test_another_vae(sdxl, tmp_path):
    from diffusers import AutoencoderKL

    other = AutoencoderKL(**{**CONFIGS["tiny-sdxl"]["vae"], "layers_per_block": 2})
    other.save_pretrained(tmp_path / "vae")
    options = {"vae": str(tmp_path / "vae")}
    pipe = loading.load(str(sdxl), dtype="bfloat16", options=options)
    assert pipe.vae.config.layers_per_block == 2
    assert pipe.vae.dtype == torch.bfloat16
    assert loading.weights_digest(str(sdxl), options) != loading.weights_digest(str(sdxl), {})
    with pytest.raises(MissingWeights, match="neither float32, same, a folder nor a hub id"):
        loading.load(str(sdxl), options={"vae": "float64"})


def test_switches_that_save_memory(sdxl):
    pipe = loading.load(str(sdxl), options={"vae_tiling": True, "vae_slicing": True, "attention_slicing": True})
    assert (pipe.vae.use_tiling, pipe.vae.use_slicing) == (True, True)
    assert not any(p.requires_grad for p in pipe.unet.parameters())


def test_loading_is_silent_and_leaves_the_random_state(sdxl, capfd):
    from diffusers.utils import logging

    logging.enable_progress_bar()
    before = torch.get_rng_state()
    adapter = DiffusersPipeline(str(sdxl))
    adapter.generate((32, 32), 0, steps=2)
    loading.load("random")
    assert torch.get_rng_state().equal(before)
    assert logging.is_progress_bar_enabled()
    assert "it/s" not in capfd.readouterr().err


def test_random_weights():
    with torch.device("meta"):
        from diffusers import AutoencoderKL, UNet2DConditionModel

        unet = UNet2DConditionModel(**CONFIGS["sdxl"]["unet"])
        vae = AutoencoderKL(**CONFIGS["sdxl"]["vae"])
    assert sum(p.numel() for p in unet.parameters()) == 2_567_463_684          # SDXL's
    assert sum(p.numel() for p in vae.parameters()) == 83_653_863
    first, second = random_pipeline("tiny-sd"), random_pipeline("tiny-sd", seed=1)
    weight = "conv_in.weight"
    assert first.unet.state_dict()[weight].equal(random_pipeline("tiny-sd").unet.state_dict()[weight])
    assert not first.unet.state_dict()[weight].equal(second.unet.state_dict()[weight])
    digests = {loading.weights_digest("random", {"config": name}) for name in CONFIGS}
    assert len(digests) == len(CONFIGS)
    with pytest.raises(SpecError, match="no configuration"):
        random_pipeline("sd9")


@pytest.mark.parametrize(("configs", "factor", "multiple", "native"), [
    (CONFIGS["sdxl"], 8, 8, 1024),
    (CONFIGS["tiny-sdxl"], 4, 8, 64),
    ({"vae": {"block_out_channels": [1] * 4, "latent_channels": 4},                                     # PixArt-Σ
      "transformer": {"sample_size": 128, "patch_size": 2, "in_channels": 4}}, 8, 16, 1024),
    ({"vae": {"encoder_block_out_channels": [1] * 6, "latent_channels": 32},                            # Sana
      "transformer": {"sample_size": 32, "patch_size": 1, "in_channels": 32}}, 32, 32, 1024),
    ({"vae": {"block_out_channels": [1] * 4, "latent_channels": 16},                                    # FLUX.1
      "transformer": {"patch_size": 1, "in_channels": 64}}, 8, 16, None),
    ({"vae": {"temperal_downsample": [False, True, True], "z_dim": 16},                                 # Qwen-Image
      "transformer": {"patch_size": [1, 1], "in_channels": 64}}, 8, 16, None),
    ({}, 8, 8, None),
])
def test_sizes_come_from_the_configuration(configs, factor, multiple, native):
    found = geometry(configs)
    assert (found.factor, found.multiple, found.native) == (factor, multiple, native)


# -- the hub -------------------------------------------------------------------------------------------------------------


FILES = ["README.md", "model_index.json", "sd_xl_base_1.0.safetensors", "01.png", "scheduler/scheduler_config.json",
         "tokenizer/vocab.json", "tokenizer/merges.txt", "text_encoder/flax_model.msgpack", "text_encoder/model.onnx",
         "unet/config.json", "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.bin",
         "unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.safetensors",
         "vae/diffusion_pytorch_model.bin"]
ALWAYS = ["model_index.json", "scheduler/scheduler_config.json", "tokenizer/merges.txt", "tokenizer/vocab.json",
          "unet/config.json"]


@pytest.mark.parametrize(("variant", "file"), [(None, "unet/diffusion_pytorch_model.safetensors"),
                                               ("fp16", "unet/diffusion_pytorch_model.fp16.safetensors")])
def test_only_what_a_pipeline_is_loaded_from_is_fetched(variant, file):
    assert hub.select(FILES, variant) == sorted([*ALWAYS, file, "vae/diffusion_pytorch_model.bin"])


def test_shards_come_with_their_index():
    shards = [f"transformer/m{variant}-0000{i}-of-00002.safetensors" for variant in ("", ".fp16") for i in (1, 2)]
    indices = ["transformer/m.safetensors.index.json", "transformer/m.safetensors.index.fp16.json"]
    assert hub.select([*shards, *indices]) == sorted([*shards[:2], indices[0]])
    assert hub.select([*shards, *indices], "fp16") == sorted([*shards[2:], indices[1]])


def test_fetch(tmp_path):
    asked = []

    def download(repo, allow_patterns):
        asked.append((repo, allow_patterns))
        return str(tmp_path)

    assert hub.fetch("a/b", "fp16", download, lambda repo: FILES) == tmp_path
    assert asked == [("a/b", [*hub.select(FILES, "fp16"), "README.md"])]
    with pytest.raises(MissingWeights, match="holds no weights in diffusers' format"):
        hub.fetch("a/b", None, download, lambda repo: ["README.md", "x.ckpt"])

    def unreachable(repo):
        raise OSError("no route\nto host")

    with pytest.raises(MissingWeights, match=r"OSError: no route to host.*try again: hibench fetch a/b$"):
        hub.fetch("a/b", None, download, unreachable)


def test_what_can_be_fetched(monkeypatch):
    calls = []
    monkeypatch.setattr(hub, "fetch", lambda repo, variant=None: calls.append((repo, variant)) or Path("/cache"))
    monkeypatch.setattr("hibench.registry.method_names", lambda: ("direct", "ldm"))
    monkeypatch.setattr("hibench.registry.load_adapter", lambda name: {"direct": Direct}.get(name, DiffusersPipeline))
    assert fetch_named(SDXL, "fp16") == fetch_named("direct", "fp16") == [(SDXL, Path("/cache"), "CreativeML OpenRAIL++-M")]
    assert calls == [(SDXL, "fp16")] * 2
    with pytest.raises(SpecError, match="nothing to fetch: its reference weights come with hibench"):
        fetch_named("ldm")
    with pytest.raises(SpecError, match="did you mean 'direct'"):
        fetch_named("dirct")
    with pytest.raises(SpecError, match="vgg16 has no variants"):
        fetch_named("vgg16", "fp16")


def test_licences(cache, sdxl, tmp_path):
    card = "---\nlanguage: en\nlicense: other\nlicense_name: my-licence\n---\n# A model\n"
    folder = cache("owner/tiny", sdxl)
    assert hub.licence("owner/tiny") == hub.licence("owner/absent") == "unknown"
    (folder / "README.md").write_text(card)
    assert hub.licence("owner/tiny") == hub.licence(str(folder)) == "my-licence"
    (folder / "README.md").write_text(card.replace("license_name: my-licence\n", ""))
    assert hub.licence("owner/tiny") == "other"
    (folder / "README.md").write_text("---\n: [\n---\n")
    assert hub.licence("owner/tiny") == "unknown"
    assert hub.licence("madebyollin/sdxl-vae-fp16-fix") == "MIT"


def test_list_methods_shows_the_licence_of_a_specs_weights(cache, sdxl, monkeypatch):
    monkeypatch.setattr("hibench.registry.load_adapter", lambda name: {"diffusers": DiffusersPipeline}[name])
    monkeypatch.setattr("hibench.registry.method_names", lambda: ("diffusers",))
    folder = cache("owner/tiny", sdxl)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    methods = {"big": Method("big", "diffusers", SDXL), "tiny": Method("tiny", "diffusers", "owner/tiny"),
               "own": Method("own", "diffusers"), "gone": Method("gone", "diffusers", "/nowhere")}
    rows = listing.rows_of("methods", Spec(Path("b.yaml"), methods=methods, sweeps={}))
    assert rows[:2] == [("METHOD", "AXES", "LICENCE", "AVAILABLE"), ("diffusers", "resolution, steps", "MIT", "yes")]
    assert {row[0]: row[2] for row in rows[2:]} == {"big": "CreativeML OpenRAIL++-M", "tiny": "mit", "gone": "unknown"}
    assert {row[0]: row[3][:3] for row in rows[2:]} == {"big": "no:", "tiny": "yes", "gone": "no:"}
    assert f"hibench fetch {SDXL}" in rows[2][3]


def test_the_digest_follows_what_is_loaded(sdxl, tmp_path):
    folder = shutil.copytree(sdxl, tmp_path / "copy")
    before = loading.digest(folder)
    (folder / "README.md").write_text("a card")
    (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"x")
    assert loading.digest(folder) == before == loading.digest(sdxl)
    assert loading.digest(folder, "fp16") != before
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "steps_offset": 0}))
    assert loading.digest(folder) != before


def test_the_digest_believes_the_names_of_the_hubs_blobs(sdxl, tmp_path):
    folder, name = shutil.copytree(sdxl, tmp_path / "copy"), "unet/diffusion_pytorch_model.safetensors"
    from hibench.weights import sha256_of

    blob = tmp_path / "blobs" / sha256_of(folder / name)
    blob.parent.mkdir()
    (folder / name).rename(blob)
    (folder / name).symlink_to(blob)
    assert loading.digest(folder) == loading.digest(sdxl)


def test_entry_points():
    assert load_adapter("diffusers") is DiffusersPipeline
    assert load_adapter("direct") is Direct
