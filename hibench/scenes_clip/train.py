"""Train scenes-clip: the symmetric contrastive loss of CLIP (Radford et al. 2021) on scenes and their captions at 64 px."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hibench import scenes_clip, training
from hibench.references import scenes
from hibench.references.scene_cache import TRAINING_SEED, rendered

__all__ = ["HELD_OUT_SEED", "evaluate", "rank_degradations", "train"]

STEPS, BATCH, IMAGES, RATE = 600, 256, 50_000, 2e-3
HELD_OUT_SEED = 2 * 10**9  # seeds of the evaluation; nothing is trained or measured on them


def train(
    out: Path,
    *,
    steps: int = STEPS,
    images: int = IMAGES,
    device: str = "cpu",
    resume: bool = True,
    max_seconds: float | None = None,
    **_: Any,
) -> dict[str, Any]:
    """Train, evaluate and write out/weights.safetensors (float16) and out/training.json; returns the evaluation."""
    import torch
    import torch.nn.functional as F

    data = rendered(
        images,
        scenes_clip.INPUT_SIZE,
        progress=lambda done, n: print(f"scenes-clip: rendered {done}/{n}") if done % 5000 == 0 else None,
    )
    tokens = scenes_clip.tokenize([scenes.scene(TRAINING_SEED + i).caption for i in range(images)])
    torch.manual_seed(0)
    network = scenes_clip.build().to(device, memory_format=torch.channels_last).train()
    decayed = [p for n, p in network.named_parameters() if p.ndim >= 2]
    others = [p for n, p in network.named_parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}], lr=RATE, betas=(0.9, 0.98)
    )
    target = torch.arange(BATCH, device=device)

    def step(k: int) -> dict[str, torch.Tensor]:
        index = training.batch_seeds(k, BATCH, images)
        batch = torch.from_numpy(data[index.numpy()]).to(device)
        training.set_rate(optimizer, training.cosine_rate(k, steps, RATE, warmup=100))
        with training.autocast(device):
            image, text, scale = network(
                scenes_clip.network_input(batch).contiguous(memory_format=torch.channels_last), tokens[index].to(device)
            )
        logits = scale.float() * image.float() @ text.float().T
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            network.logit_scale.clamp_(0, 4.6052)
        return {"loss": loss, "accuracy": (logits.detach().argmax(1) == target).float().mean()}

    result = training.fit(
        "scenes-clip",
        step,
        {"network": network, "optimizer": optimizer},
        steps=steps,
        out=out,
        resume=resume,
        max_seconds=max_seconds,
    )
    path = _save(network, out / "weights.safetensors")
    clip = scenes_clip.load(device, path)
    scores: dict[str, Any] = {**evaluate(clip), "fd_by_degradation": rank_degradations(clip)}
    training.write_training_json(
        out / "training.json",
        result,
        device=device,
        batch=BATCH,
        parameters=sum(p.numel() for p in network.parameters()),
        data=f"scenes v{scenes.VERSION}, seeds {TRAINING_SEED}+{images}, 64 px",
        held_out=scores,
    )
    return scores


def _save(network: Any, path: Path) -> Path:
    """Parameters as float16 (half the size), batch-norm statistics as they are, and the class embeddings made from them."""
    import torch
    from safetensors.torch import save_file

    parameters = dict(network.named_parameters())
    state = {
        k: (v.half() if k in parameters and k != "logit_scale" else v).detach().cpu().contiguous()
        for k, v in network.state_dict().items()
    }
    network.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})  # what a reader will have
    device = next(network.parameters()).device
    classes = scenes_clip.ScenesClip(network, torch.empty(0), device, "").class_embeddings()
    save_file({**state, "class_embeddings": classes.cpu().contiguous()}, path)
    return path


def evaluate(clip: scenes_clip.ScenesClip, count: int = 1000, first_seed: int = HELD_OUT_SEED) -> dict[str, float]:
    """On held-out scenes: zero-shot top-1 of shape, colour and both; image→text retrieval top-1 among `count` captions."""
    import torch
    import torch.nn.functional as F

    seeds = range(first_seed, first_seed + count)
    images = torch.cat(
        [clip.encode_image(scenes.render(seeds[i : i + 100], scenes_clip.INPUT_SIZE)) for i in range(0, count, 100)]
    )
    truth = torch.tensor([scenes.class_index(s) for s in seeds])
    guess = clip.class_logits(images).argmax(1).cpu()
    texts = F.normalize(clip.encode_text(scenes.captions(seeds)), dim=-1)
    found = (F.normalize(images, dim=-1) @ texts.T).argmax(1).cpu()
    return {
        "scenes": count,
        "shape_top1": (guess // 8 == truth // 8).float().mean().item(),
        "colour_top1": (guess % 8 == truth % 8).float().mean().item(),
        "class_top1": (guess == truth).float().mean().item(),
        "retrieval_top1": (found == torch.arange(count)).float().mean().item(),
    }


def rank_degradations(clip: scenes_clip.ScenesClip, count: int = 500) -> dict[str, Any]:
    """FD@scenes-clip of held-out scenes under every known damage, by strength, against other held-out scenes."""
    import torch

    from hibench.metrics.frechet import distance, fit
    from hibench.scenes_clip.degradations import STRENGTHS, ranking

    def embed(images: torch.Tensor) -> torch.Tensor:
        return torch.cat([clip.encode_image(part).cpu() for part in torch.split(images, 100)])

    start = HELD_OUT_SEED + 10**6
    reference = fit(embed(scenes.render(range(start, start + count), scenes_clip.INPUT_SIZE)))
    return {
        "strengths": list(STRENGTHS),
        "scenes": count,
        **{
            name: [round(v, 3) for v in values]
            for name, values in ranking(lambda images: distance(fit(embed(images)), reference), count, start + count).items()
        },
    }
