"""Recompute golden cases of the official DemoFusion, each kind by the parts that sampling uses."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hibench.errors import AdapterError
from hibench.golden import GoldenOutput
from methods.demofusion.conditioning import Text, time_ids
from methods.demofusion.decode import decode_tiled, decoder, tile_rule, unscaled
from methods.demofusion.denoise import Rules
from methods.demofusion.network import Network
from methods.demofusion.phases import Phase
from methods.demofusion.sampling import Job, Stop, demofusion, multidiffusion
from methods.demofusion.scheduler import make_scheduler

__all__ = ["golden"]

Named = Iterator[tuple[str, Any]]
FORWARD = ("timesteps", "sigmas", "eps", "decoded", "moments")


class Case:
    """One case folder: configuration, inputs as tensors, names of outputs, and the pipeline that it is about."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        if self.config.get("kind") not in KINDS or "pipeline" not in self.config:
            raise AdapterError(
                f"{folder / 'config.json'}: not a DemoFusion golden case: it has no pipeline and no kind of {', '.join(KINDS)}"
            )
        with np.load(folder / self.config.get("inputs", "inputs.npz")) as file:
            self.inputs = {k: torch.from_numpy(file[k]) for k in file.files}
        with np.load(folder / "outputs.npz") as file:
            self.wanted = frozenset(file.files)
        self.path = (folder / self.config["pipeline"]).resolve()

    @property
    def call(self) -> dict[str, Any]:
        call: dict[str, Any] = self.config["call"]
        return call

    def part(self, name: str) -> Any:
        """The U-Net or the first stage, float32."""
        import diffusers

        cls = {"unet": diffusers.UNet2DConditionModel, "vae": diffusers.AutoencoderKL}[name]
        return cls.from_pretrained(self.path / name).eval()

    def scheduler(self) -> Any:
        """The one of the case, with the noise schedule of the pipeline."""
        import diffusers

        kind = self.config.get("scheduler_kind", "ddim")
        own = diffusers.EulerDiscreteScheduler.from_pretrained(self.path / "scheduler")
        if kind not in ("ddim", "euler_corrected", "euler_official"):
            known = "ddim, euler_corrected or euler_official"
            raise AdapterError(f"{self.folder / 'config.json'}: scheduler_kind {kind!r} is not {known}")
        return make_scheduler(own, "ddim" if kind == "ddim" else None)

    def job(self, rules: Rules) -> Job:
        """As the adapter makes it, with the given noise and shifts."""
        inputs, call = self.inputs, self.call
        text = Text(
            inputs["prompt_embeds"],
            inputs["pooled_prompt_embeds"],
            inputs["negative_prompt_embeds"],
            inputs["negative_pooled_prompt_embeds"],
        )
        network = Network(self.part("unet"), text, call["guidance_scale"], call.get("guidance_rescale", 0.0))
        return Job(
            network,
            self.scheduler(),
            rules,
            StoredDraws(inputs),
            1,
            inputs["x_T"].shape[1],
            call["num_inference_steps"],
            eta=call.get("eta", 0.0),
        )


class StoredDraws:
    """The draws of a case."""

    def __init__(self, inputs: dict[str, Tensor]) -> None:
        self.inputs = inputs

    def initial(self, shape: tuple[int, ...]) -> Tensor:
        return self.inputs["x_T"].reshape(-1, *shape)

    def noise(self, s: int, shape: tuple[int, ...]) -> Tensor:
        return self.inputs[f"noise_phase{s}"].reshape(-1, *shape)

    def shifts(self, s: int, ranges: np.ndarray, steps: int) -> np.ndarray:
        """As stored, and checked: within their ranges, and the official draws in the official order."""
        stored = self.inputs[f"jitter_phase{s}"].numpy().astype(np.int64)
        if stored.shape != (steps, len(ranges), 2) or (stored < ranges[..., 0]).any() or (stored > ranges[..., 1]).any():
            raise AdapterError(f"jitter_phase{s}: the shifts do not fit {len(ranges)} windows and their ranges")
        return stored[:, None]

    def generators(self, s: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(s)]


def golden(folder: Path) -> Iterator[GoldenOutput]:
    """Every output of the case that this implementation knows, recomputed in float32 on the CPU."""
    case = Case(folder)
    with torch.inference_mode():
        for name, got in KINDS[case.config["kind"]](case):
            if name in case.wanted:
                forward = name in FORWARD or case.config["kind"] == "tiled_decode"
                yield GoldenOutput(name, got, "forward" if forward else "sampling")


def run_demofusion(case: Case) -> Named:
    """All phases, with latents, windows and pictures of each."""
    call, config = case.call, case.config
    unet_window, factor = int(config["window"]), int(config["vae_scale_factor"])
    official = config.get("scheduler_kind") == "euler_official"
    alpha = (call["cosine_scale_1"], call["cosine_scale_2"], call["cosine_scale_3"])
    rules = Rules(
        unet_window,
        factor,
        call["stride"],
        (unet_window - call["stride"]) // 4,
        alpha,
        call["sigma"],
        kernel="2s-1",
        padded_frame=True,
        official_index=call["view_batch_size"] if official else None,
    )
    sizes = released_phases(call["height"], call["width"], unet_window * factor, factor)
    if [[p.rows, p.columns] for p in sizes] != config["phase_latent_sizes"]:
        raise AdapterError(f"phase_latent_sizes: expected {config['phase_latent_sizes']}, got {[p[3:] for p in sizes]}")
    job = case.job(rules)
    size = (call["height"], call["width"])
    crop = tuple(call.get("crops_coords_top_left") or (0, 0))
    job.ids = time_ids(tuple(call.get("original_size") or size), crop, tuple(call.get("target_size") or size))
    seen: dict[int, list[Tensor]] = {}
    job.on_step = lambda s, i, z: seen.setdefault(s, []).append(z)
    stepper = job.stepper(1)
    yield "timesteps", stepper.timesteps.double()
    if hasattr(stepper.scheduler, "sigmas"):
        yield "sigmas", stepper.scheduler.sigmas
    vae = case.part("vae")
    for stop in demofusion(job, sizes):
        s = stop.phase.scale
        yield f"latents_phase{s}", stop.latents
        if s > 1:
            yield f"latents_steps_phase{s}", torch.stack(seen[s])
            yield f"views_phase{s}", borders(stop, unet_window)
        if f"image_phase{s}" in case.wanted:
            tiled = s > 1 and call.get("multi_decoder", True)
            yield f"image_phase{s}", picture(vae, stop.latents, factor, unet_window if tiled else None)


def released_phases(height: int, width: int, native: int, factor: int) -> list[Phase]:
    """As `phases`, with the released code's rounding: its floating-point ratio may lose a pixel of the shorter side."""
    count, ratio = max(height, width) // native, min(height, width) / max(height, width)
    sizes = [(height // count, width // count)]
    for s in range(2, count + 1):
        long, short = native * s, int(native * s * ratio)
        sizes.append((long, short) if height > width else (short, long))
    return [Phase(s, h, w, h // factor, w // factor) for s, (h, w) in enumerate(sizes, 1)]


def borders(stop: Stop, window: int) -> np.ndarray:
    """First and last rows and columns of the windows of image 0 in the frame with padding: int16 [steps, V, 4]."""
    assert stop.corners is not None
    y, x = stop.corners[:, 0, :, 0], stop.corners[:, 0, :, 1]
    height, width = min(window, stop.phase.rows), min(window, stop.phase.columns)
    return np.stack([y, y + height, x, x + width], axis=-1).astype(np.int16)


def picture(vae: Any, z: Tensor, factor: int, window: int | None) -> Tensor:
    """Image float32 [H, W, 3] in [0, 1] of latents [1, C, h, w]: whole, or tiled for a native side of `window` latents."""
    z, decode = unscaled(z, vae.config), decoder(vae)
    image = decode(z) if window is None else decode_tiled(decode, z, factor, tile_rule(window))
    return (image[0].permute(1, 2, 0) / 2 + 0.5).clamp(0, 1)


def run_multidiffusion(case: Case) -> Named:
    """From noise, windows only, all told the same crop, and none beyond the last whole stride."""
    call, factor = case.call, int(case.config["vae_scale_factor"])
    rules = Rules(call["window_size"], factor, call["stride"], 0, crops=False, cover=False)
    job = case.job(rules)
    yield "timesteps", job.stepper(1).timesteps.double()
    stop = multidiffusion(job, Phase(1, call["height"], call["width"], call["latent_height"], call["latent_width"]))
    yield "latents", stop.latents
    yield "views", borders(stop, call["window_size"])[0]


def tiled_decode(case: Case) -> Named:
    """Tiles by both official rules, and the whole."""
    config, vae = case.config, case.part("vae")
    factor, decode, low = int(config["vae_scale_factor"]), decoder(vae), config["lowvram"]
    rules = {
        "tiled": (config["core"], config["core"], config["pad"]),
        "tiled_lowvram": (config["core"], low["core_stride"], low["pad"]),
    }
    expected = {"tiled": tile_rule(config["window"]), "tiled_lowvram": tile_rule(config["window"], small=True)}
    if rules != expected:
        where = case.folder / "config.json"
        raise AdapterError(f"{where}: tiles {rules} are not those of a window of {config['window']}: {expected}")
    for name, latents in case.inputs.items():
        z = unscaled(latents, vae.config)
        yield f"{name}.whole", decode(z)
        for kind, rule in rules.items():
            yield f"{name}.{kind}", decode_tiled(decode, z, factor, rule)


def components(case: Case) -> Named:
    """One call of each network."""
    inputs, vae = case.inputs, case.part("vae")
    unet = case.part("unet")
    added = {"text_embeds": inputs["text_embeds"], "time_ids": inputs["time_ids"]}
    yield (
        "eps",
        unet(
            inputs["sample"],
            inputs["timestep"],
            encoder_hidden_states=inputs["encoder_hidden_states"],
            added_cond_kwargs=added,
            return_dict=False,
        )[0],
    )
    yield "decoded", decoder(vae)(unscaled(inputs["latents"], vae.config))
    yield "moments", vae.encode(inputs["image"]).latent_dist.parameters


KINDS: dict[str, Callable[[Case], Named]] = {
    "demofusion": run_demofusion,
    "multidiffusion": run_multidiffusion,
    "tiled_decode": tiled_decode,
    "components": components,
}
