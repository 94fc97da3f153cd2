"""The U-Net, the autoencoders and the quantiser against diffusers, closed forms, and the published sizes."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from methods.ldm.configs import FIRST_STAGES, first_stage_config, model_params
from methods.ldm.model import randomise
from methods.nn import attention, autoencoder, quantize, unet
from methods.nn.autoencoder import AutoencoderKL, VQModel, build_first_stage
from methods.nn.unet import UNet

DD = {"double_z": True, "z_channels": 4, "resolution": 32, "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [1, 2, 2],
      "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def small_unet(**more) -> UNet:
    settings = {"in_channels": 3, "out_channels": 3, "model_channels": 32, "num_res_blocks": 1, "attention_resolutions": [2],
                "channel_mult": [1, 2], "num_head_channels": 16} | more
    torch.manual_seed(0)
    net = UNet(**settings).eval()
    randomise(net)
    return net


def published(name: str) -> UNet:
    with torch.device("meta"):
        return UNet.from_config(model_params(name)["unet_config"]["params"])


def test_published_sizes() -> None:
    ffhq = published("ffhq256")
    assert count(ffhq) == 274_056_163
    assert len(list(ffhq.named_parameters())) == 368
    with torch.device("meta"):
        vq = build_first_stage(first_stage_config("vq-f4"))
    assert count(vq.encoder) + count(vq.quant_conv) == 22_337_423
    assert vq.quantize.embedding.weight.shape == (8192, 3)
    head = count(vq.decoder.norm_out) + count(vq.decoder.conv_out)
    assert count(vq.decoder) + count(vq.post_quant_conv) - head == 32_957_068


@pytest.mark.parametrize("name", FIRST_STAGES)
def test_every_published_first_stage_builds(name: str) -> None:
    with torch.device("meta"):
        model = build_first_stage(first_stage_config(name))
    assert model.factor == int(name.split("-")[1][1:])
    assert isinstance(model, VQModel) == name.startswith("vq")
    has_attention = any(isinstance(m, autoencoder.AttnBlock) for m in model.modules())
    assert has_attention == (name != "vq-f4-noattn")


def test_head_semantics() -> None:
    churches = [m for m in published("lsun_churches256").modules() if isinstance(m, attention.AttentionBlock)]
    assert {m.heads for m in churches} == {8}                       # the head dimension grows: 24, 48, 96
    assert {m.norm.num_channels // m.heads for m in churches} == {24, 48, 96}
    ffhq = [m for m in published("ffhq256").modules() if isinstance(m, attention.AttentionBlock)]
    assert {m.norm.num_channels // m.heads for m in ffhq} == {32}
    cin = [m for m in published("cin256-v2").modules() if isinstance(m, attention.SpatialTransformer)]
    assert {m.transformer_blocks[0].attn1.heads for m in cin} == {1}


def test_precomputed_embeddings_change_nothing() -> None:
    net = small_unet(num_classes=5)
    x, t, y = torch.randn(2, 3, 8, 12), torch.tensor([3, 900]), torch.tensor([0, 4])
    with torch.inference_mode():
        assert torch.equal(net(x, t, y=y), net(x, embeddings=net.embed(t, y)))
        one = [e[1:] for e in net.embed(t, y)]
        assert torch.allclose(net(x[1:], embeddings=one), net(x, t, y=y)[1:], atol=1e-5)


def test_time_embedding_is_cosines_then_sines() -> None:
    e = unet.timestep_embedding(torch.tensor([0, 7]), 6)
    assert torch.equal(e[0], torch.tensor([1.0, 1, 1, 0, 0, 0]))
    angles = 7 * torch.tensor([1.0, 10_000 ** (-1 / 3), 10_000 ** (-2 / 3)])
    assert torch.allclose(e[1], torch.cat([angles.cos(), angles.sin()]), atol=1e-5)
    assert unet.timestep_embedding(torch.tensor([1]), 5).shape == (1, 5)


def test_both_qkv_orders_hold_the_same_function() -> None:
    torch.manual_seed(0)
    old, new = attention.AttentionBlock(64, 4), attention.AttentionBlock(64, 4, new_order=True)
    randomise(old)
    new.load_state_dict(old.state_dict())
    new.qkv.weight.data = old.qkv.weight.data.unflatten(0, (4, 3, 16)).transpose(0, 1).flatten(0, 2)
    x = torch.randn(2, 64, 4, 6)
    with torch.inference_mode():
        assert torch.allclose(old(x), new(x), atol=1e-5)
        q, k, v = old.qkv(old.norm(x).flatten(2)).view(2, 4, 3, 16, 24).unbind(2)        # by the definition, head by head
        weights = torch.einsum("bhct,bhcs->bhts", q, k).mul(16**-0.5).softmax(-1)
        out = torch.einsum("bhts,bhcs->bhct", weights, v).reshape(2, 64, 24)
        assert torch.allclose(old(x), x + old.proj_out(out).view_as(x), atol=1e-5)


@pytest.mark.parametrize("direction", ["up", "down", "same"])
def test_residual_block_with_scale_shift_and_resampling(direction: str) -> None:
    resample = {"up": unet.Upsample(32, False), "down": unet.Downsample(32, False), "same": None}[direction]
    block = unet.ResBlock(32, 16, 0.0, 64, use_scale_shift_norm=True, resample=resample).eval()
    randomise(block)
    x, e = torch.randn(2, 32, 8, 8), torch.randn(2, 128)
    change = {"up": lambda h: h.repeat_interleave(2, 2).repeat_interleave(2, 3),
              "down": lambda h: F.avg_pool2d(h, 2), "same": lambda h: h}[direction]
    with torch.inference_mode():
        h = block.in_layers[2](change(F.silu(F.group_norm(x, 32))))
        h = F.group_norm(h, 32) * (1 + e[:, :64, None, None]) + e[:, 64:, None, None]
        expected = block.skip_connection(change(x)) + block.out_layers[3](F.silu(h))
        assert torch.allclose(block(x, e), expected, atol=1e-5)


def test_layouts_sizes_and_concatenation() -> None:
    net = small_unet(in_channels=5, resblock_updown=True, use_scale_shift_norm=True, num_heads=4, num_head_channels=-1)
    x, more, t = torch.randn(1, 3, 8, 20), torch.randn(1, 2, 8, 20), torch.tensor([10])
    with torch.inference_mode():
        plain = net(torch.cat([x, more], 1), t)
        assert torch.equal(net(x, t, concat=more), plain)
        last = copy.deepcopy(net).to(memory_format=torch.channels_last)
        assert torch.allclose(last(x, t, concat=more), plain, atol=1e-4)
    assert plain.shape == (1, 3, 8, 20)
    codes = small_unet(n_embed=7)(torch.randn(1, 3, 8, 8), t)
    assert codes.shape == (1, 7, 8, 8)


@pytest.mark.parametrize(("settings", "message"), [
    ({"num_head_channels": -1}, "either num_heads or num_head_channels"),
    ({"context_dim": 8}, "needs use_spatial_transformer"),
    ({"dims": 3}, "two-dimensional"),
    ({"num_heads": 3, "num_head_channels": -1}, "do not divide into 3"),
])
def test_impossible_networks_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_unet(**settings)


def test_missing_time_or_class_is_refused() -> None:
    x = torch.randn(1, 3, 8, 8)
    with pytest.raises(ValueError, match="timesteps t or precomputed"):
        small_unet()(x)
    with pytest.raises(ValueError, match="if and only if"):
        small_unet(num_classes=3)(x, torch.tensor([1]))


def to_diffusers(name: str) -> str:
    """One of our autoencoder names (three levels) in diffusers' naming."""
    pairs = [("mid.block_1", "mid_block.resnets.0"), ("mid.block_2", "mid_block.resnets.1"),
             ("mid.attn_1.norm", "mid_block.attentions.0.group_norm"), ("mid.attn_1.q", "mid_block.attentions.0.to_q"),
             ("mid.attn_1.k", "mid_block.attentions.0.to_k"), ("mid.attn_1.v", "mid_block.attentions.0.to_v"),
             ("mid.attn_1.proj_out", "mid_block.attentions.0.to_out.0"), ("norm_out", "conv_norm_out"),
             ("nin_shortcut", "conv_shortcut"), (".block.", ".resnets."), ("downsample.conv", "downsamplers.0.conv"),
             ("upsample.conv", "upsamplers.0.conv"), ("encoder.down.", "encoder.down_blocks.")]
    pairs += [(f"decoder.up.{i}.", f"decoder.up_blocks.{2 - i}.") for i in range(3)]
    for ours, theirs in pairs:
        name = name.replace(ours, theirs)
    return name


def test_kl_autoencoder_equals_diffusers() -> None:
    import diffusers

    ours = AutoencoderKL(DD, embed_dim=4).eval()
    randomise(ours)
    theirs = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, block_out_channels=(32, 64, 64),
        latent_channels=4).eval()
    shapes = {k: v.shape for k, v in theirs.state_dict().items()}
    theirs.load_state_dict({to_diffusers(k): v.view(shapes[to_diffusers(k)]) for k, v in ours.state_dict().items()})
    x, noise = torch.rand(2, 3, 24, 40) * 2 - 1, torch.randn(2, 4, 6, 10)
    with torch.inference_mode():
        a, b = ours.encode(x), theirs.encode(x).latent_dist
        assert torch.allclose(a.mode(), b.mode(), atol=1e-4)
        assert torch.allclose(a.kl(), b.kl(), rtol=1e-4)
        z = a.sample(noise)
        assert torch.allclose(z, b.mean + b.std * noise, atol=1e-4)
        assert torch.allclose(ours.decode(z), theirs.decode(z).sample, atol=1e-3)
        assert torch.allclose(ours.decoder.head(ours.decode_features(z)), ours.decode(z), atol=1e-6)
        assert torch.allclose(ours(x, noise)[0], ours.decode(z), atol=1e-4)


def test_feature_map_before_the_head() -> None:
    params = {"ddconfig": DD | {"double_z": False, "z_channels": 3}, "n_embed": 64, "embed_dim": 3}
    model = VQModel(**params).eval()
    randomise(model)
    z = torch.randn(1, 3, 4, 6)
    with torch.inference_mode():
        features = model.decode_features(z)
        assert features.shape == (1, model.decoder.channels, 16, 24)
        assert torch.equal(model.decoder.head(features), model.decode(z))
        assert torch.equal(model.decode(model.codes(z), force_not_quantize=True), model.decode(z))
        assert model.last_layer is model.decoder.conv_out.weight
    bare = VQModel(**(params | {"ddconfig": params["ddconfig"] | {"give_pre_end": True}})).eval()
    assert not [k for k in bare.state_dict() if "norm_out" in k and k.startswith("decoder")]
    assert bare.decode(z).shape == (1, 32, 16, 24)
    with pytest.raises(ValueError, match="without an output head"):
        bare.decoder.head(features)
    with pytest.raises(ValueError, match="double_z"):
        VQModel(DD, 64, 3)
    with pytest.raises(ValueError, match="attn_type"):
        autoencoder.attention(32, "linear")


def test_quantiser_gradients_and_losses() -> None:
    for legacy, on_commit, on_code in ((True, 1.0, 0.25), (False, 0.25, 1.0)):
        q = quantize.VectorQuantizer(16, 3, beta=0.25, legacy=legacy)
        torch.nn.init.normal_(q.embedding.weight, generator=torch.Generator().manual_seed(0))
        z = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
        out = q(z)
        gap = (out.z - z).detach()
        assert out.loss.item() == pytest.approx(1.25 * gap.square().mean().item(), rel=1e-5)
        grads = torch.autograd.grad(out.loss, [z, q.embedding.weight], retain_graph=True)
        assert torch.allclose(grads[0], -on_commit * 2 * gap / gap.numel(), atol=1e-6)
        assert grads[1].abs().sum() == pytest.approx(
            (on_code * 2 / gap.numel() * torch.zeros(16, 3).index_add(
                0, out.indices.flatten(), gap.permute(0, 2, 3, 1).reshape(-1, 3))).abs().sum().item(), rel=1e-4)
        assert torch.equal(torch.autograd.grad(out.z.sum(), z)[0], torch.ones_like(z))      # straight through


def test_nearest_code_in_chunks_equals_all_at_once() -> None:
    generator = torch.Generator().manual_seed(0)
    z, codes = torch.randn(500, 3, generator=generator), torch.randn(64, 3, generator=generator)
    expected = torch.cdist(z.double(), codes.double()).argmin(1)
    assert torch.equal(quantize.nearest_code(z, codes), expected)
    assert torch.equal(quantize.nearest_code(z, codes, chunk=64 * 7), expected)


def test_codebook_starts_on_the_data_and_revives_dead_codes() -> None:
    q = quantize.VectorQuantizer(32, 3)
    z = 5 + torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert q.indices(z).unique().numel() < 8                        # the official start wastes most codes
    q.init_from(z, torch.Generator().manual_seed(0))
    assert q.indices(z).unique().numel() > 24
    used = torch.ones(32, dtype=torch.bool)
    used[:4] = False
    before = q.embedding.weight.clone()
    assert q.revive(z + 100, used, torch.Generator().manual_seed(0)) == 4
    assert (q.embedding.weight[:4] > 50).all()
    assert torch.equal(q.embedding.weight[4:], before[4:])


def test_posterior_divergence_is_the_textbook_one() -> None:
    moments = torch.randn(2, 6, 4, 4)
    posterior = quantize.DiagonalGaussian(moments)
    normal = torch.distributions.Normal(posterior.mean, posterior.std)
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).sum((1, 2, 3))
    assert torch.allclose(posterior.kl(), expected, rtol=1e-4)
    assert quantize.DiagonalGaussian(torch.full((1, 2, 1, 1), 99.0)).logvar.item() == 20.0


@pytest.mark.parametrize("module", [attention, autoencoder, quantize, unet])
def test_all_names_exist(module) -> None:
    assert all(hasattr(module, name) for name in module.__all__)


@pytest.mark.perf
def test_unet_is_as_fast_as_diffusers() -> None:
    """Medians of interleaved runs, ffhq256's structure at a third of its width, on this machine's CPU."""
    import statistics
    import time

    from diffusers import UNet2DModel

    ours = UNet(in_channels=3, out_channels=3, model_channels=64, num_res_blocks=2, attention_resolutions=[2, 4, 8],
                channel_mult=[1, 2, 3, 4], num_head_channels=32).eval().to(memory_format=torch.channels_last)
    theirs = UNet2DModel(sample_size=32, block_out_channels=(64, 128, 192, 256), layers_per_block=2, attention_head_dim=32,
                         down_block_types=("DownBlock2D", *["AttnDownBlock2D"] * 3), downsample_padding=1, norm_eps=1e-5,
                         up_block_types=(*["AttnUpBlock2D"] * 3, "UpBlock2D"), flip_sin_to_cos=True, freq_shift=0,
                         ).eval().to(memory_format=torch.channels_last)
    assert count(ours) == count(theirs)
    x, t = torch.randn(1, 3, 32, 32), torch.tensor([500])
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    with torch.inference_mode():
        for _ in range(20):
            for name, net in (("ours", ours), ("theirs", theirs)):
                begin = time.perf_counter()
                net(x, t)
                seconds[name].append(time.perf_counter() - begin)
    assert statistics.median(seconds["ours"][3:]) <= 1.10 * statistics.median(seconds["theirs"][3:])
