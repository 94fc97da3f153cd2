"""Train scenes-clip: the contrastive loss of CLIP (Radford et al. 2021) on scenes and captions, long ones and short ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hibench import scenes_clip, training
from hibench.references import scenes
from hibench.references.scene_cache import TRAINING_SEED, about, rendered, say

if TYPE_CHECKING:
    import torch

__all__ = ["HELD_OUT_SEED", "evaluate", "rank_degradations", "train"]

STEPS, BATCH, IMAGES, RATE = 1300, 192, 50_000, 2e-3
HELD_OUT_SEED = 2 * 10**9               # seeds of the evaluation; nothing is trained or measured on them


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
    """Train, evaluate and write out/weights.safetensors (float16) and out/training.json; returns the evaluation.

    Two losses: the symmetric one over whole captions, and that of every image over the 64 short captions ("a red star").
    Whole captions alone tell a batch apart by colour, place and ground, and shapes are not learnt.
    """
    import torch
    import torch.nn.functional as F

    data = rendered(images, scenes_clip.INPUT_SIZE, progress=say)
    torch.manual_seed(0)
    network = scenes_clip.build().to(device, memory_format=torch.channels_last).train()
    decayed = [p for p in network.parameters() if p.ndim >= 2]
    others = [p for p in network.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.98))
    target = torch.arange(BATCH, device=device)

    def step(k: int) -> dict[str, torch.Tensor | float]:
        index = training.batch_seeds(k, BATCH, images)
        batch = scenes_clip.network_input(torch.from_numpy(data[index.numpy()]).to(device))
        seeds = [TRAINING_SEED + i for i in index.tolist()]
        tokens = scenes_clip.tokenize([*scenes.captions(seeds), *scenes_clip.CLASS_PROMPTS])
        label = torch.tensor([scenes.class_index(s) for s in seeds], device=device)
        training.set_rate(optimizer, training.cosine_rate(k, steps, RATE, warmup=100))
        with training.autocast(device):
            image = network.encode_image(batch.contiguous(memory_format=torch.channels_last), normalize=True)
            text = network.encode_text(tokens.to(device), normalize=True)
        similar = network.logit_scale.exp() * image.float() @ text.float().T  # [B, B + classes]
        logits, short = similar[:, :BATCH], similar[:, BATCH:]
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2 + F.cross_entropy(short, label)
        training.descend(loss, optimizer, [network])
        with torch.no_grad():
            network.logit_scale.clamp_(0, 4.6052)
        found = (logits.detach().argmax(1) == target).float().mean(), (short.detach().argmax(1) == label).float().mean()
        return {"loss": loss, "caption_top1": found[0], "class_top1": found[1]}

    state = {"network": network, "optimizer": optimizer}
    result = training.fit("scenes-clip", step, state, steps=steps, out=out, resume=resume, max_seconds=max_seconds)
    clip = scenes_clip.load(device, _save(network, out / "weights.safetensors"))
    scores: dict[str, Any] = {**evaluate(clip), "fd_by_degradation": rank_degradations(clip)}
    training.write_training_json(
        out / "training.json",
        result,
        device=device,
        batch=BATCH,
        parameters=sum(p.numel() for p in network.parameters()),
        data=about(images, scenes_clip.INPUT_SIZE),
        held_out=scores,
    )
    return scores


def _save(network: Any, path: Path) -> Path:
    """Parameters as float16 (half the size), batch-norm statistics as they are, and the class embeddings made from them."""
    import torch
    from safetensors.torch import save_file

    halved = {name for name, _ in network.named_parameters()} - {"logit_scale"}
    state = {k: (v.half() if k in halved else v).detach().cpu().contiguous() for k, v in network.state_dict().items()}
    network.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})  # as readers will
    device = next(network.parameters()).device
    classes = scenes_clip.ScenesClip(network, torch.empty(0), device, "").class_embeddings()
    save_file({**state, "class_embeddings": classes.cpu().contiguous()}, path)
    path.chmod(0o644)
    return path


def evaluate(clip: scenes_clip.ScenesClip, count: int = 1000, first_seed: int = HELD_OUT_SEED) -> dict[str, float]:
    """On held-out scenes: zero-shot top-1 of shape, colour and both; image→text retrieval top-1 among `count` captions."""
    import torch
    import torch.nn.functional as F

    seeds = range(first_seed, first_seed + count)
    parts = [scenes.render(seeds[i : i + 100], scenes_clip.INPUT_SIZE) for i in range(0, count, 100)]
    images = torch.cat([clip.encode_image(part) for part in parts])
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
    told = ranking(lambda images: distance(fit(embed(images)), reference), count, start + count)
    return {"strengths": list(STRENGTHS), "scenes": count, **{name: [round(v, 3) for v in d] for name, d in told.items()}}
