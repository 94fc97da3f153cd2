"""DemoFusion's base: what it takes over from the LDM, its vocabulary, its examples, and a training that can be resumed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hibench.references import scenes
from hibench.scenes_clip import box_resize
from methods.demofusion import base, train
from methods.ldm.adapter import LDM


@pytest.fixture(scope="module")
def ldm():
    adapter = LDM()
    adapter.load()
    yield adapter.model
    adapter.close()


def pixels(count: int) -> torch.Tensor:
    return scenes.render(range(count), 64).float() / 127.5 - 1


def test_the_autoencoder_is_the_first_stage_of_the_ldm(ldm):
    vae, images = base.autoencoder(), pixels(3)
    with torch.no_grad():
        posterior = vae.encode(images).latent_dist
        z = ldm.first_stage_model.encode(images)
        assert (posterior.mean - z).abs().max() <= 1e-5 * z.abs().max()
        assert posterior.std.max() < 1e-4
        decoded, own = vae.decode(z).sample, ldm.first_stage_model.decode(z, force_not_quantize=True)
    assert (decoded - own).abs().max() <= 1e-5 * own.abs().max()
    assert vae.config.scaling_factor == ldm.scale_factor


def test_the_network_starts_as_the_ldm_without_attention(ldm):
    """Its transformers add nothing at first; the LDM with its own attention cut out is then the same function."""
    from methods.nn.attention import AttentionBlock

    network, z, t = base.unet().eval(), torch.randn(2, 3, 16, 16), torch.tensor([7, 900])
    hooks = [m.register_forward_hook(lambda _, inputs, __: inputs[0]) for m in ldm.unet.modules()
             if isinstance(m, AttentionBlock)]
    assert hooks
    more = {"text_embeds": torch.randn(2, 64), "time_ids": torch.randint(256, (2, 6)).float()}
    try:
        with torch.no_grad():
            expected = ldm.unet(z, t)
            found = network(z, t, torch.randn(2, base.TOKENS, 128), added_cond_kwargs=more).sample
    finally:
        for hook in hooks:
            hook.remove()
    assert (found - expected).abs().max() <= 2e-5 * expected.abs().max()


def test_every_word_of_scenes_is_one_token_and_other_text_is_spelt(tmp_path):
    from transformers import CLIPTokenizer

    size = base.write_tokenizer(tmp_path)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == size
    for caption in scenes.captions(range(300)):
        tokens = tokenizer.tokenize(caption)
        assert [t.removesuffix("</w>") for t in tokens] == caption.split()
        assert len(tokens) + 2 <= base.TOKENS
    assert tokenizer.decode(tokenizer("zwölf Äpfel").input_ids, skip_special_tokens=True).strip() == "zwölf äpfel"
    assert tokenizer("a red star").input_ids[-1] == size - 1


def test_merges_take_the_most_frequent_pair_first():
    assert base.merges(["aab", "aac", "aa"])[0] == ("a", "a")       # twice; all other pairs are rarer
    assert base.merges(["ab"]) == [("a", "b</w>")]


def test_crops_show_what_their_place_says():
    image = scenes.render([5], 256).numpy()
    ((crops, place),) = train._crops(image)
    assert crops.shape == (train.CROPS_PER_IMAGE, 3, 64, 64)
    for crop, (size, y, x) in zip(crops, place.tolist()):
        scene = box_resize(torch.tensor(image).float(), size, size)[0, :, y:y + 64, x:x + 64].round().byte().numpy()
        assert np.array_equal(crop, scene)


def test_a_batch_tells_sizes_and_corners():
    place = torch.zeros(50, 3, dtype=torch.int64)
    place[30:] = torch.tensor([192, 17, 40])
    data = train.Examples(torch.zeros(50, 3, 16, 16), torch.arange(50), place, 30)
    index, ids = train.conditioning(data, 4000, torch.Generator().manual_seed(0))
    whole = index < 30
    assert 0.55 < whole.float().mean() < 0.65
    assert set(ids[whole, 0].tolist()) == set(train.WHOLE_SIZES)
    assert torch.equal(ids[whole][:, [0, 0, 0]], ids[whole][:, [1, 4, 5]])
    assert not ids[whole, 2:4].any()
    assert (ids[~whole, :4] == torch.tensor([192, 192, 17, 40])).all()
    assert set(ids[~whole, 4].tolist()) == {64, 192}
    assert torch.equal(ids[:, 4], ids[:, 5])


def test_training_resumes_as_if_undisturbed_and_writes_a_pipeline(tmp_path, monkeypatch):
    from methods.diffusers_pipeline.loading import load
    from methods.diffusers_pipeline.text import encode

    monkeypatch.setenv("HIBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(train, "LARGE_IMAGES", 2)
    monkeypatch.setitem(train._O, "batch", 2)
    once, twice = tmp_path / "once", tmp_path / "twice"
    train.train(once, steps=3, images=6)
    stopped = train.train(twice, steps=3, images=6, max_seconds=0)
    assert (stopped["steps"], stopped["finished"]) == (1, False)
    assert train.train(twice, steps=3, images=6)["finished"]
    for file in sorted(once.rglob("*.safetensors")):
        first, second = load_file(file), load_file(twice / file.relative_to(once))
        assert all(torch.equal(first[k], second[k]) for k in first), file
        assert file.stat().st_size <= 8e6
    assert json.loads((once / "training.json").read_text())["steps"] == 3
    pipe = load(str(once))
    cond = encode(pipe, ["a small red star at the top on blue water"])
    assert cond.prompt.shape == (1, base.TOKENS, 128)
    assert cond.pooled is not None
    assert cond.pooled.shape == (1, 64)


def test_the_text_is_encoded_in_training_as_the_pipeline_encodes_it(tmp_path):
    from methods.diffusers_pipeline.loading import load
    from methods.diffusers_pipeline.text import encode

    texts = scenes.captions([3, 4])
    torch.manual_seed(0)
    size = base.write_tokenizer(tmp_path / "tokenizer")
    first, second = base.text_encoders(size)
    model = torch.nn.ModuleDict({"text_encoder": first, "text_encoder_2": second, "unet": base.unet()}).eval()
    base.write_pipeline(tmp_path, {**dict(model.items()), "vae": base.autoencoder()})
    with torch.no_grad():
        model.half().float()
        states, pooled = train._encode(model, train._tokenize(tmp_path, texts))
    found = encode(load(str(tmp_path)), texts)
    assert (found.prompt - states).abs().max() <= 1e-5 * states.abs().max()
    assert (found.pooled - pooled).abs().max() <= 1e-5 * pooled.abs().max()


def test_the_shipped_files_are_small():
    folder = Path(base.__file__).parent / "reference"
    files = list(folder.rglob("*.safetensors"))
    assert files
    assert max(f.stat().st_size for f in files) <= 8e6
    assert sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) <= 24e6
