"""Text-conditional LDM: tokenizer, text encoder, training, prompts and guidance; label maps; official networks by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hibench.adapter import Stage
from hibench.errors import AdapterError, MissingWeights, SpecError
from hibench.metrics import _captions
from hibench.references import scenes
from methods.ldm import LDM, conditional, configs, contexts, pool, text, train_variant, variants, words
from methods.ldm.adapter import REFERENCE
from methods.ldm.checkpoint import load_checkpoint
from methods.ldm.model import LatentDiffusion, empty_model, random_model, randomise

VOCABULARY = words.scene_vocabulary()


def tiny(**encoder: int) -> dict:
    """An official configuration of a text-conditional network of the smallest size, latents 4 x 4 of 16 px."""
    params = configs.model("vq-f4", 4, 3, 32, [1, 2], [2], text=(16, 2))
    params["unet_config"]["params"]["num_res_blocks"] = 1
    params["cond_stage_config"]["params"] |= {"vocab_size": len(VOCABULARY), "max_seq_len": 24} | encoder
    first = params["first_stage_config"]["params"]
    first["ddconfig"] |= {"ch": 32, "ch_mult": [1, 1, 1], "num_res_blocks": 1, "resolution": 16}
    first["n_embed"] = 16
    return params


def write_checkpoint(folder: Path, params: dict) -> dict[str, torch.Tensor]:
    """A model.ckpt with its configuration and vocabulary, as CompVis' files are laid out; returns its state dict."""
    network = random_model(params)
    state = {k: v.clone() for k, v in network.state_dict().items()}
    state["cond_stage_model.transformer.to_logits.weight"] = torch.zeros(3, 16)         # in official files, and never used
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": state, "global_step": 1}, folder / "model.ckpt")
    (folder / "config.json").write_text(json.dumps({"model": {"params": params}}))
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    return state


# -- tokens ----------------------------------------------------------------------------------------------------------------


def test_tokens_are_berts(tmp_path: Path) -> None:
    from transformers import BertTokenizer

    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    texts = ["", "A small RED circle at the top-left on green leaves!", "déjà vu, xyz9\tred\x00circle", "红 circle\ufffd",
             "[UNK] ©", "x" * 101, "redcircle circles", *scenes.captions(range(50))]
    theirs = BertTokenizer(str(tmp_path / "vocab.txt"))(
        texts, padding="max_length", truncation=True, max_length=24)["input_ids"]
    mine = words.Tokenizer.read(tmp_path / "vocab.txt").encode(texts, 24)
    plain = [i for i in range(len(texts)) if "[UNK]" not in texts[i]]           # they read special tokens out of a text
    assert mine[plain].tolist() == [theirs[i] for i in plain]


def test_every_caption_of_scenes_is_known_word_by_word() -> None:
    tokenizer = words.Tokenizer(VOCABULARY)
    captions = scenes.captions(range(10**9, 10**9 + 300))
    tokens = tokenizer.encode(captions, variants.TOKENS)
    assert len(VOCABULARY) == len(set(VOCABULARY)) < 160
    assert not (tokens == tokenizer.known["[UNK]"]).any()
    assert [int((row > 4).sum()) for row in tokens] == [len(caption.split()) for caption in captions]
    spelt = tokenizer.words("zebra")
    assert [VOCABULARY[number] for number in spelt] == ["z", "##e", "##b", "##r", "##a"]


def test_a_vocabulary_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(MissingWeights, match="options: vocabulary"):
        words.Tokenizer.read(tmp_path / "vocab.txt")
    (tmp_path / "vocab.txt").write_text("[PAD]\nred\n")
    with pytest.raises(AdapterError, match=r"has no line \[UNK\]"):
        words.Tokenizer.read(tmp_path / "vocab.txt")
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY))
    with pytest.raises(AdapterError, match="the text encoder knows 7"):
        text.find_tokenizer(text.TextEncoder(8, 1, vocab_size=7, heads=1, dim_head=8), tmp_path, None, False)
    hashed = text.find_tokenizer(text.TextEncoder(8, 1, vocab_size=50, heads=1, dim_head=8), tmp_path, None, True)
    row = hashed.encode(["red circle red"], 8)[0]
    assert row[1] == row[3] != row[2]
    assert row.max() < 50


# -- the encoder -----------------------------------------------------------------------------------------------------------


def test_the_encoder_is_that_of_the_official_text_to_image_model() -> None:
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel

    mine = text.TextEncoder(32, 3, vocab_size=50, max_seq_len=12, heads=4, dim_head=16)
    randomise(mine)
    theirs = LDMBertModel(LDMBertConfig(
        vocab_size=50, max_position_embeddings=12, encoder_layers=3, encoder_ffn_dim=128, encoder_attention_heads=4,
        head_dim=16, d_model=32)).eval()
    names = {"embed_tokens.weight": "token_emb.weight", "embed_positions.weight": "pos_emb.emb.weight", "layer_norm.": "norm."}
    state = {}
    for name, tensor in mine.state_dict().items():
        name = name.removeprefix("transformer.")
        for new, old in names.items():
            if name.startswith(old):
                name = name.replace(old, new)
        if name.startswith("attn_layers.layers."):
            number, part, rest = name.removeprefix("attn_layers.layers.").split(".", 2)
            place = f"layers.{int(number) // 2}."
            if part == "0":
                rest = ("self_attn_layer_norm." if int(number) % 2 == 0 else "final_layer_norm.") + rest
            else:
                for old, new in (("to_q.", "self_attn.q_proj."), ("to_k.", "self_attn.k_proj."), ("to_v.", "self_attn.v_proj."),
                                 ("to_out.", "self_attn.out_proj."), ("net.0.0.", "fc1."), ("net.2.", "fc2.")):
                    rest = rest.replace(old, new)
            name = place + rest
        state[f"model.{name}"] = tensor
    kept = theirs.load_state_dict(state, strict=False)
    assert not kept.unexpected_keys
    assert all(key.startswith("to_logits") for key in kept.missing_keys)
    tokens = torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        difference = (mine(tokens) - theirs(tokens).last_hidden_state).abs().max()
    assert difference < 1e-5


@pytest.mark.parametrize(("name", "unet", "encoder"), [("text2img256", 403_623_939, 640), ("txt2img-1p4B", 872_300_484, 1280)])
def test_official_networks_have_their_size(name: str, unet: int, encoder: int) -> None:
    params = configs.model_params(name)
    with torch.device("meta"):
        network = LatentDiffusion(params)
    assert sum(p.numel() for p in network.unet.parameters()) == unet
    assert network.cond_stage_model.transformer.token_emb.weight.shape == (30_522, encoder)
    assert network.cond_stage_model.transformer.attn_layers.layers[63][1].net[0][0].weight.shape == (4 * encoder, encoder)
    assert len(network.cond_stage_model.transformer.attn_layers.layers) == 2 * 32
    assert network.scale_factor == (0.18215 if name == "txt2img-1p4B" else 1.0)
    assert LDM.captioned({"config": name})


# -- behind the adapter ----------------------------------------------------------------------------------------------------


def test_an_official_checkpoint_follows_its_prompts(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, tiny())
    plain = LDM(str(tmp_path))
    a, b = (plain.generate((16, 16), 3, steps=2, prompt=prompt) for prompt in ("a red circle", "a blue bar at the top"))
    assert not torch.equal(a, b)
    caption = scenes.captions([3])[0]
    assert torch.equal(plain.generate((16, 16), 3, steps=2), plain.generate((16, 16), 3, steps=2, prompt=caption))

    class Heard(Stage):
        def effective(self, **done: float) -> None:
            self.done = done

    stage = Heard()
    guided = LDM(str(tmp_path), {"guidance": 3.0})
    c = guided.generate_batch((16, 16), [3, 4], steps=2, prompts=["a red circle", "a bar"], stage=stage)
    assert stage.done["nfe"] == 4
    assert (c[0].int() - guided.generate((16, 16), 3, steps=2, prompt="a red circle").int()).abs().max() <= 2
    assert not torch.equal(c[0], a)
    with pytest.raises(AdapterError, match="2 seeds but 1 prompts"):
        plain.generate_batch((16, 16), [3, 4], steps=2, prompts=["a bar"])
    digest = plain.weights_digest()
    (tmp_path / "vocab.txt").write_text("\n".join([*VOCABULARY[:5], *reversed(VOCABULARY[5:])]))
    assert LDM(str(tmp_path)).weights_digest() != digest            # other numbers for the same words, so other images
    (tmp_path / "vocab.txt").unlink()
    with pytest.raises(MissingWeights, match=r"vocab\.txt"):
        LDM(str(tmp_path)).generate((16, 16), 3, steps=2)


def test_guidance_is_measured_from_the_empty_text() -> None:
    params = tiny()
    network = random_model(params)
    tokenizer = words.Tokenizer(VOCABULARY)
    context, null = text.text_context(network.cond_stage_model, tokenizer, ["a bar", ""], {"guidance": 2.0})
    assert context.shape == null.shape == (2, 24, 16)
    assert torch.allclose(context[1], null[0], atol=1e-6)
    assert not torch.allclose(context[0], null[0], atol=1e-3)
    assert text.text_context(network.cond_stage_model, tokenizer, ["a bar"], {"guidance": 1.0})[1] is None


def test_random_weights_need_no_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    from methods.ldm import adapter

    monkeypatch.setattr(adapter, "model_params", lambda _: tiny())
    method = LDM("random", {"config": "text2img256"})
    a, b = (method.generate((16, 16), 0, steps=2, prompt=prompt) for prompt in ("any words at all", "others"))
    assert not torch.equal(a, b)


def test_only_networks_for_text_are_scored_by_the_captions_of_scenes() -> None:
    cell = {"adapter": "ldm", "prompts": None}
    assert _captions({**cell, "options": {"variant": "text", "guidance": 2}}, [5, 6], 0) == scenes.captions([5, 6])
    assert _captions({**cell, "options": {}}, [5, 6], 0) is None
    assert _captions({**cell, "options": {"variant": "class"}}, [5], 0) is None
    assert _captions({"adapter": "real"}, [5], 0) is not None       # shows the scenes themselves, whatever its options


# -- training --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an unconditional model, and a text variant that was trained from it for three steps."""
    base = tmp_path_factory.mktemp("ldm")
    config = json.loads((REFERENCE / "config.json").read_text())
    config["first_stage_config"]["params"]["n_embed"] = 32
    config["unet_config"]["params"] |= {"model_channels": 32, "channel_mult": [1, 2], "attention_resolutions": [2]}
    network = random_model(config)
    (base / "config.json").write_text(json.dumps(config))
    save_file(network.first_stage_model.state_dict(), base / "first_stage.safetensors")
    save_file(network.unet.state_dict(), base / "unet.safetensors")
    train(base, base / "text", 3)
    return base


def train(base: Path, out: Path, steps: int, **more: float) -> dict:
    draw = np.random.default_rng(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "rendered", lambda count, side, **_: draw.integers(0, 256, (count, 3, side, side), dtype=np.uint8))
        patch.setattr(train_variant, "DROP", 0.5)
        patch.setitem(variants.VARIANTS, "text", variants.VARIANTS["text"]._replace(batch=4, images=8))
        return train_variant.train_variant(out, "text", steps=steps, base=base, **more)


def test_the_text_variant_is_trained_with_its_encoder(trained: Path) -> None:
    folder = trained / "text"
    after = load_file(folder / "cond.safetensors")
    torch.manual_seed(2)
    before = LatentDiffusion(json.loads((folder / "config.json").read_text())).cond_stage_model.state_dict()
    moved = {k for k in after if not torch.equal(after[k].float(), before[k].half().float())}
    assert "transformer.attn_layers.layers.7.1.net.2.weight" in moved
    assert "transformer.norm.bias" in moved
    assert (folder / "vocab.txt").read_text().splitlines() == VOCABULARY
    saved = load_file(next(folder.glob("pool-text-*.cache")))
    assert torch.equal(saved["labels"], words.Tokenizer(VOCABULARY).encode(scenes.captions(range(10**9, 10**9 + 8)), 24))
    assert (folder / "cond.safetensors").stat().st_size < 2e6
    (folder / "first_stage.safetensors").unlink()                   # the one above serves both
    method = LDM(str(trained), {"variant": "text", "guidance": 2.0})
    assert method.generate((32, 32), 0, steps=2).shape == (3, 32, 32)
    randomise(method.model.unet)                                    # three steps teach it little
    assert not torch.equal(*(method.generate((32, 32), 0, steps=2, prompt=p) for p in ("a red circle", "a blue bar")))


def test_text_training_resumes(trained: Path, tmp_path: Path) -> None:
    assert train(trained, tmp_path, 3, max_seconds=0)["steps"] == 1
    train(trained, tmp_path, 3)
    for name in ("unet", "cond"):
        whole, resumed = (load_file(folder / f"{name}.safetensors") for folder in (trained / "text", tmp_path))
        assert all(torch.equal(whole[k], resumed[k]) for k in whole)


def test_the_text_variant_fits_the_reference() -> None:
    params = variants.variant_config("text", json.loads((REFERENCE / "config.json").read_text()))
    with torch.device("meta"):
        network = LatentDiffusion(params)
    assert sum(p.numel() for p in network.unet.parameters()) * 2 < 8e6              # bytes of a float16 file
    assert network.cond_stage_model.vocabulary == len(VOCABULARY)
    assert "unconditional_class" not in params


# -- label maps ------------------------------------------------------------------------------------------------------------


def label_model() -> dict:
    """A network that takes label maps of 5 classes, at 16 px, with the official names."""
    params = tiny() | {"cond_stage_config": {
        "target": "ldm.modules.encoders.modules.SpatialRescaler",
        "params": {"n_stages": 2, "in_channels": 5, "out_channels": 3}}}
    unet = params["unet_config"]["params"]
    for key in ("use_spatial_transformer", "transformer_depth", "context_dim"):
        unet.pop(key)
    unet["in_channels"] = 6
    return params


def test_label_maps_are_rescaled_and_followed() -> None:
    network = random_model(label_model())
    labels = torch.zeros(1, 16, 16, dtype=torch.long)
    labels[:, :, 8:] = 4
    weight = network.cond_stage_model.channel_mapper.weight[:, :, 0, 0]
    condition = conditional.label_condition(network, labels)
    assert condition.shape == (1, 3, 4, 4)
    assert torch.allclose(condition[0, :, 0, 0], weight[:, 0])      # far from the border: one class alone
    assert torch.allclose(condition[0, :, 0, 3], weight[:, 4])
    a, b = (conditional.synthesise(network, given, [1], steps=2) for given in (labels, labels.flip(2)))
    assert a.shape == (1, 3, 16, 16)
    assert not torch.equal(a, b)
    for wrong, said in ((labels + 1, "this model knows 0 to 4"), (labels - 1, "labels -1 to 3")):
        with pytest.raises(ValueError, match=said):
            conditional.label_condition(network, wrong)
    with pytest.raises(ValueError, match="takes no label map"):
        conditional.label_condition(random_model(tiny()), labels)


def test_label_models_load_by_official_names() -> None:
    network = random_model(label_model())
    state = {k: v.clone() for k, v in network.state_dict().items()}
    assert state["cond_stage_model.channel_mapper.weight"].shape == (3, 5, 1, 1)
    other = empty_model(label_model())
    load_checkpoint(other, state)
    assert torch.equal(other.cond_stage_model.channel_mapper.weight, network.cond_stage_model.channel_mapper.weight)
    del state["cond_stage_model.channel_mapper.weight"]
    with pytest.raises(AdapterError, match="channel_mapper"):
        load_checkpoint(other, state)
    for name, size in (("semantic_synthesis256", 64), ("semantic_synthesis512", 128)):
        params = configs.model_params(name)
        assert params["cond_stage_config"]["params"] == {"n_stages": 2, "in_channels": 182, "out_channels": 3}
        assert params["unet_config"]["params"]["image_size"] == size
    with pytest.raises(SpecError, match="published ones halve bilinearly"):
        conditional.SpatialRescaler(multiplier=0.25)


@pytest.mark.parametrize("module", [contexts, text, words])
def test_all_names_exist(module) -> None:
    assert all(hasattr(module, name) for name in module.__all__)
