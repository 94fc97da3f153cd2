"""Realistic fake records for the tests of report, tables and plots: no method runs, no torch is imported."""

from __future__ import annotations

import hashlib
import json
import math
import random
from pathlib import Path
from typing import Any

CPU = {"kind": "cpu", "cpu": "Example CPU @ 2.50GHz", "cores": 2, "memory_bytes": 16 * 2**30, "gpus": []}
GPU = {"kind": "cuda", "cpu": "Example EPYC", "cores": 16, "memory_bytes": 128 * 2**30,
       "gpus": [{"name": "NVIDIA H200", "memory_bytes": 141 * 2**30}]}
BETTER = {"fd": "lower", "kd": "lower", "is": "higher", "precision": "higher", "recall": "higher", "clip-score": "higher"}
PARAMETERS = {"ldm": 2_800_000, "infd": 3_100_000, "infty-diff": 2_900_000, "patch-dm": 2_700_000, "upsample": 2_800_000}
# (seconds per image at 64 px and 50 steps, how it grows with the pixels, FD at 64 px, how it grows with the resolution)
CHARACTER = {
    "ldm": (0.42, 1.15, 31.0, 0.85), "infd": (0.55, 0.35, 36.0, 0.30), "infty-diff": (1.9, 1.0, 44.0, 0.22),
    "patch-dm": (1.2, 1.05, 39.0, 0.45), "upsample": (0.43, 0.02, 31.0, 0.70), "real": (0.03, 1.0, 1.9, 0.02),
    "gaussian": (0.01, 1.0, 240.0, 0.10),
}


def digest(*parts: Any) -> str:
    """A stable 16-digit id."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def key_of(method: str, kind: str, height: int, width: int, steps: int | None, sparsity: float | None,
           options: dict[str, Any]) -> str:
    """The readable key of a cell."""
    parts = [method, kind, f"{height}x{width}"]
    parts += [f"steps={steps}"] if steps is not None else []
    parts += [f"sparsity={sparsity:g}"] if sparsity is not None else []
    return "/".join(parts + [f"{name}={value}" for name, value in sorted(options.items())])


def record(method: str = "ldm", kind: str = "speed", resolution: int | tuple[int, int] = 64, steps: int | None = 50,
           sparsity: float | None = None, *, options: dict[str, Any] | None = None, hardware: dict[str, Any] = CPU,
           status: str = "ok", n: int = 128, started_at: str = "2026-11-21T10:00:00Z", extractor: str = "scenes-clip",
           seed: int = 0) -> dict[str, Any]:
    """One record; a status other than ok brings a failure with it."""
    height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
    key = key_of(method, kind, height, width, steps, sparsity, options or {})
    hardware_digest = digest(hardware)
    made: dict[str, Any] = {
        "schema": 1, "id": digest(key, hardware_digest if kind == "speed" else "", seed), "key": key, "kind": kind,
        "status": status, "reason": None,
        "method": {"name": method, "adapter": method, "adapter_digest": digest("adapter", method), "weights": "reference",
                   "weights_digest": digest("weights", method), "options": {}, "parameters": PARAMETERS.get(method)},
        "axes": {"height": height, "width": width, "steps": steps, "sparsity": sparsity or 0.0, "options": options or {}},
        "settings": {},
        "env": {"hardware": hardware, "software": {"python": "3.11.9", "torch": "2.9.0", "numpy": "2.2.0"},
                "hardware_digest": hardware_digest, "software_digest": "5f0e1d2c3b4a5968",
                "git": {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": False}},
        "started_at": started_at, "wall_s": 12.3, "hibench": "0.1.0", "flags": [], "failure": None, "speed": None,
        "quality": None,
    }
    if status != "ok":
        _fail(made, status, method)
    elif kind == "speed":
        made["speed"] = _speed(method, height, width, steps, sparsity or 0.0, hardware, random.Random(key + hardware_digest))
    else:
        made["quality"] = _quality(method, height, width, steps, sparsity or 0.0, n, extractor, random.Random(key))
    return made


def _fail(made: dict[str, Any], status: str, method: str) -> None:
    if status == "skip":
        made["reason"] = f"{method} does not support sparsity: it evaluates every coordinate"
        return
    text = {"oom": "CUDA out of memory: tried to allocate 96.0 GiB", "timeout": "no result after 600 s",
            "died": "killed by SIGKILL (usually the host ran out of memory)",
            "missing": "no weights; run: hibench fetch " + method,
            "error": "RuntimeError: expected 4 | got 3 <channels> & 50% _more_"}[status]
    made["failure"] = {"stage": "denoise", "type": status, "message": text,
                       "requested_bytes": 96 * 2**30 if status == "oom" else None, "allocated_bytes": None,
                       "reserved_bytes": None, "free_bytes": None}


def _speed(method: str, height: int, width: int, steps: int | None, sparsity: float, hardware: dict[str, Any],
           rng: random.Random) -> dict[str, Any]:
    base, growth, _, _ = CHARACTER.get(method, (0.8, 1.0, 40.0, 0.5))
    pixels = height * width / 64**2
    on_gpu = bool(hardware["gpus"])
    centre = base * pixels**growth * (((steps or 50) + 4) / 54) * (0.25 + 0.75 * (1 - sparsity)) / (18 if on_gpu else 1)
    peak = int((60 + 45 * pixels**min(growth + 0.1, 1.0)) * 2**20 * (0.5 + 0.5 * (1 - sparsity)))
    processes = []
    for replicate in range(5):
        latency = [centre * (1 + rng.gauss(0, 0.015)) for _ in range(10)]
        mine = peak + rng.randrange(2**19)
        processes.append({
            "replicate": replicate, "import_s": 2.1, "load_s": 0.31, "first_image_s": centre * 1.4, "warmup_images": 2,
            "latency_s": latency, "gpu_s": None, "stage_s": {}, "step_s": [], "steps": steps, "nfe": steps,
            "weights_bytes": 11_200_000, "peak_allocated_bytes": mine if on_gpu else None, "peak_reserved_bytes": None,
            "peak_device_bytes": None,
            "peak_device_source": None, "idle_rss_bytes": 400 * 2**20, "peak_rss_bytes": 400 * 2**20 + mine,
            "stage_peak_bytes": {},
            "flops": int(4e9 * pixels * (steps or 50)), "flops_source": "FlopCounterMode", "energy_j_per_image": None,
            "energy_window_s": None, "idle_w": None, "clock_mhz": None, "cpu_user_s": 1.0, "cpu_wait_s": 0.0})
    return {"processes": processes, "latency_p50_s": centre, "latency_p90_s": centre * 1.03,
            "latency_ci_s": [centre * 0.985, centre * 1.018], "images": 50, "load_s": 0.31, "first_image_s": centre * 1.4,
            "peak_bytes": peak + 2**18, "peak_source": "cuda-allocated" if on_gpu else "rss-over-idle",
            "weights_bytes": 11_200_000,
            "flops": int(4e9 * pixels * (steps or 50)), "nfe": steps, "energy_j_per_image": 0.8 * centre if on_gpu else None,
            "mad_s": centre * 0.01, "outliers": 0}


def _quality(method: str, height: int, width: int, steps: int | None, sparsity: float, n: int, extractor: str,
             rng: random.Random) -> dict[str, Any]:
    _, _, fd, growth = CHARACTER.get(method, (0.8, 1.0, 40.0, 0.5))
    octaves = math.log2(math.sqrt(height * width) / 64)
    few = 0.0 if method in ("real", "gaussian") else 2.4 * math.exp(-(steps or 50) / 9)
    fd = fd * (1 + growth * octaves) * (1 + few) * (1 + 0.25 * sparsity**2) * (1 + rng.gauss(0, 0.01))
    good = math.exp(-fd / 90)
    numbers = {"fd": (fd, 0.03 * fd + 0.4), "kd": (fd / 4200, fd / 60000 + 2e-4), "is": (1 + 5.5 * good, 0.09),
               "precision": (0.1 + 0.75 * good, 0.021), "recall": (0.05 + 0.62 * good, 0.026),
               "clip-score": (18 + 11 * good, 0.22)}
    values = {
        f"{name}@{extractor}": {
            "value": value, "pm": pm, "n": n, "n_reference": n, "pm_rule": "sd over 3 seed blocks", "extractor": extractor,
            "weights_sha256": digest("clip") * 4, "resize": "area-64", "reference": "scenes",
            "reference_digest": digest("scenes"),
            "better": BETTER[name], "unit": ""}
        for name, (value, pm) in numbers.items()}
    return {"n": n, "first_seed": 0, "values": values, "missing": {}, "bad": {"nan": 0, "constant": 0}, "samples": []}


def write(root: Path, records: list[dict[str, Any]], *, samples: int = 0) -> Path:
    """Write records as the store lays them out; quality records that are ok get `samples` little images."""
    for made in records:
        folder = root / "cells" / made["id"][:2] / made["id"]
        folder.mkdir(parents=True, exist_ok=True)
        if made["kind"] == "quality" and made["status"] == "ok" and samples:
            made["quality"]["samples"] = [f"samples/{seed}.png" for seed in range(samples)]
            (folder / "samples").mkdir(exist_ok=True)
            for seed in range(samples):
                _image(made, seed).save(folder / "samples" / f"{seed}.png")
        (folder / "record.json").write_text(json.dumps(made, indent=1), encoding="utf-8")
    return root


def manifest(root: Path, sweeps: dict[str, list[str]], records: list[dict[str, Any]], *, at: str = "20261121T100000Z") -> Path:
    """Write results/runs/<at>.json: which keys a sweep has and which record answers a key."""
    (root / "runs").mkdir(parents=True, exist_ok=True)
    path = root / "runs" / f"{at}.json"
    path.write_text(json.dumps({"spec_digest": digest("spec"), "argv": ["hibench", "run", "benchmarks.yaml"], "sweeps": sweeps,
                                "cells": {made["key"]: made["id"] for made in records}}), encoding="utf-8")
    return path


def suite(root: Path, *, methods: tuple[str, ...] = ("infty-diff", "ldm", "upsample", "real", "gaussian"),
          resolutions: tuple[int | tuple[int, int], ...] = (64, 128, 256), steps: tuple[int, ...] = (5, 10, 25, 50),
          sparsity: tuple[float, ...] = (0.0, 0.5, 0.75, 0.875), failures: dict[str, str] | None = None,
          hardware: tuple[dict[str, Any], ...] = (CPU,), samples: int = 0, **more: Any) -> Path:
    """A whole results directory with the sweeps resolution, steps and sparsity; `failures` maps a key to its status."""
    sweeps: dict[str, list[str]] = {"resolution": [], "steps": [], "sparsity": []}
    made: dict[tuple[str, str], dict[str, Any]] = {}

    def add(sweep: str, method: str, resolution: Any, count: int | None, fraction: float | None) -> None:
        baseline = method in ("real", "gaussian")
        for kind in ("quality",) if baseline else ("speed", "quality"):
            for machine in hardware if kind == "speed" else hardware[:1]:
                height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
                key = key_of(method, kind, height, width, count, fraction, {})
                one = record(method, kind, resolution, count, fraction, hardware=machine,
                             status=(failures or {}).get(key, "ok"), **more)
                made[key, one["id"]] = one
            if key not in sweeps[sweep]:
                sweeps[sweep].append(key)

    for method in methods:
        baseline = method in ("real", "gaussian")
        for resolution in resolutions:
            add("resolution", method, resolution, None if baseline else 50, None)
        for count in steps:
            add("steps", method, 128, None if baseline else count, None)
        for fraction in sparsity if method == "infty-diff" else (None,) if baseline else ():
            add("sparsity", method, 128, None if baseline else 50, fraction)
    records = list(made.values())
    sweeps = {name: keys for name, keys in sweeps.items() if keys}
    write(root, records, samples=samples)
    for position, machine in enumerate(hardware):
        mine = [one for one in records if one["kind"] == "quality" or one["env"]["hardware"] == machine]
        manifest(root, sweeps, mine, at=f"20261121T1{position}0000Z")
    return root


def _image(made: dict[str, Any], seed: int) -> Any:
    """A little scene that depends on the seed (what it shows) and on the method (how rough it is)."""
    import numpy as np
    from PIL import Image

    height, width = made["axes"]["height"], made["axes"]["width"]
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    image = np.empty((height, width, 3))
    image[:] = rng.uniform(0.3, 0.9, 3)
    for _ in range(14):
        centre, radius, colour = rng.uniform(0, 1, 2), 0.04 + 0.2 * rng.uniform() ** 2, rng.uniform(0, 1, 3)
        angle, frequency = rng.uniform(0, np.pi), rng.uniform(20, 200)
        inside = np.hypot(y - centre[0], x - centre[1]) < radius
        stripes = 0.85 + 0.15 * np.sin(frequency * (np.cos(angle) * x + np.sin(angle) * y))
        image[inside] = (colour[None, None] * stripes[..., None])[inside]
    rough = 0.0 if made["method"]["name"] == "real" else 0.04
    noise = np.random.default_rng([seed, len(made["method"]["name"])]).normal(0, rough, image.shape)
    return Image.fromarray(((image + noise).clip(0, 1) * 255).astype("uint8"), "RGB")
