"""One cell in one process: `python -m hibench.worker JOB.json` measures speed, makes samples and features, or scores them."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hibench.adapter import NULL_STAGE, Adapter
from hibench.errors import EXIT_USAGE, ContractError, HibenchError
from hibench.job import CellJob, Skip, one_line, resolve_device
from hibench.reconstruct import absent_pairs, pair_arrays
from hibench.stages import RecordingStage

if TYPE_CHECKING:
    import torch

Extract = Callable[["torch.Tensor", Sequence[int]], "dict[str, Any]"]

__all__ = ["TASKS", "main", "prepare_environment", "run_job", "shard_is_whole", "shard_lacks", "shard_path", "write_json"]

DEFAULT_BATCH = 16                     # images per generate_batch of a quality cell
DEFAULT_KEEP = 8                       # samples kept as PNG
SCALED = 8                             # images of a cell that are made at k·R as well, for scale consistency
ENERGY_WINDOW_S = 5.0                  # NVML's counter is too coarse for less (arXiv 2312.02741)
IDLE_WINDOW_S = 2.0


# -- the process -----------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Run one job; 0 whenever a verdict was written, 2 for an unusable job file."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if len(arguments) != 1:
        print("usage: python -m hibench.worker JOB.json", file=sys.stderr)
        return EXIT_USAGE
    prepare_environment()
    try:
        job = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
        task, _ = job["task"], job["cell"]["kind"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"{arguments[0]}: not a job: {type(error).__name__}: {error}", file=sys.stderr)
        return EXIT_USAGE
    if task not in TASKS:
        print(f"{arguments[0]}: unknown task {task!r}; known: {', '.join(TASKS)}", file=sys.stderr)
        return EXIT_USAGE
    if "parent" in job:
        from hibench.engines import die_with_parent

        die_with_parent()
    run_job(job)
    return 0


def prepare_environment() -> None:
    """What has to be set before torch is imported: one numbering of GPUs, one allocator for everybody."""
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    os.environ.setdefault("PYTORCH_ALLOC_CONF", os.environ["PYTORCH_CUDA_ALLOC_CONF"])           # its name since torch 2.9


def run_job(job: dict[str, Any], **tools: Any) -> dict[str, Any]:
    """Run one job, write its verdict into `job["out"]`, and return the verdict.

    `tools` replace parts in tests: `adapter` (a class), `extract` (images uint8 [B, 3, H, W], seeds -> dict of arrays),
    `score`, `clock` and `sleep`.
    """
    cell = CellJob(job, tools)
    cell.out.mkdir(parents=True, exist_ok=True)
    (cell.out / "status.json").unlink(missing_ok=True)
    try:
        verdict = TASKS[job["task"]](cell)
    except (Exception, SystemExit) as error:                    # a method that calls sys.exit() has failed, too
        traceback.print_exc()
        verdict = cell.verdict_of(error)
        write_json(cell.out / "status.json", verdict)
    finally:
        cell.close()
    if job["task"] == "speed":
        write_json(cell.out / f"speed-{int(job.get('replicate', 0))}.json", verdict)
    return verdict


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file so that it is either there and whole, or not there."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    aside.write_text(json.dumps(value, indent=1, allow_nan=False), encoding="utf-8")
    os.replace(aside, path)


# -- speed -----------------------------------------------------------------------------------------------------------------


def run_speed(cell: CellJob) -> dict[str, Any]:
    """Load, warm up and time one replicate of a speed cell, then measure stages' memory and FLOPs in an untimed pass."""
    process: dict[str, Any] = {"replicate": int(cell.job.get("replicate", 0)), **cell.open()}
    import torch

    from hibench.gpu import open_gpu
    from hibench.memory import module_bytes
    from hibench.timing import compile_counters, host_bound, measure

    process["load_s"] = cell.load()
    weights = cell.memory.weights_bytes()
    process["weights_bytes"] = module_bytes(cell.adapter) if weights is None else weights
    settings = cell.settings
    on_gpu = cell.device.startswith("cuda")
    gpu = open_gpu(index=int(cell.device.partition(":")[2] or 0)) if on_gpu and settings.get("energy", True) else None
    timed = measure(cell.generate, device=cell.device, images=int(settings.get("images", 10)),
                    warmup=int(settings.get("warmup", 2)), max_seconds=settings.get("max_seconds"), steps=cell.steps,
                    check=cell.check_image, before_timing=cell.memory.reset_peak)
    process.update(
        first_image_s=timed.first_image_s, warmup_images=timed.warmup_images, warmup_s=timed.warmup_s,
        latency_s=timed.latency_s, gpu_s=timed.gpu_s, stage_s=timed.stage_s, step_s=timed.step_s,
        steps=timed.effective.get("steps", len(timed.step_s) // len(timed.latency_s) or None),
        nfe=timed.effective.get("nfe"), effective=timed.effective, cpu_user_s=timed.cpu_user_s,
        cpu_wait_s=timed.cpu_wait_s, **cell.memory.report())
    process.update(energy(cell, gpu), compile=compile_counters(), clock_mhz=None)
    process.update(untimed_pass(cell))
    process.update(device=cell.device,
                   device_name=torch.cuda.get_device_name(cell.device) if on_gpu else None,
                   threads=torch.get_num_threads(), allocator=os.environ.get("PYTORCH_CUDA_ALLOC_CONF"),
                   cudnn_benchmark=torch.backends.cudnn.benchmark,
                   parameters=ask(cell.adapter, "parameters"), weights_digest=ask(cell.adapter, "weights_digest"))
    process["flags"] = flags(process, host_bound(timed.latency_s, timed.gpu_s))
    return {"status": "ok", "reason": None, "failure": None, "process": process}


def ask(adapter: Adapter, member: str) -> Any:
    """Answer of an optional method of the adapter, None where it has none."""
    question = getattr(adapter, member, None)
    return question() if callable(question) else None


def untimed_pass(cell: CellJob) -> dict[str, Any]:
    """Peak memory per stage and floating-point operations of one image; both are deterministic, so replicate 0 alone does it.

    On a CPU it takes two images: torch's counter imports so much that it would show up in the resident size."""
    from hibench.memory import FLOPS_SOURCE, PeakStage, count_flops

    if int(cell.job.get("replicate", 0)) > 0:
        return {"stage_peak_bytes": {}, "flops": None, "flops_source": None}
    stage = PeakStage(cell.memory)
    if cell.device == "cpu":
        cell.generate(cell.first_seed, stage)
        counted = count_flops(lambda: cell.generate(cell.first_seed, NULL_STAGE))
    else:
        counted = count_flops(lambda: cell.generate(cell.first_seed, stage))
    own = stage.finish().flops
    source = FLOPS_SOURCE + ("+adapter" if own else "")
    return {"stage_peak_bytes": stage.stage_peak_bytes, "flops": counted + own or None,
            "flops_source": source if counted + own else None}


def energy(cell: CellJob, gpu: Any) -> dict[str, Any]:
    """Joules per image by the GPU's total-energy counter over a window of at least 5 s of steady images; None without one."""
    from hibench.timing import Clock

    unknown = {"energy_j_per_image": None, "energy_window_s": None, "idle_w": None}
    if gpu is None or gpu.energy_j() is None:
        return unknown
    clock = cell.tools.get("clock") or Clock.of(cell.device)
    sleep = cell.tools.get("sleep", time.sleep)
    clock.synchronise()
    before, start = gpu.energy_j(), clock.now_ns()
    sleep(IDLE_WINDOW_S)
    idle_w = (gpu.energy_j() - before) / ((clock.now_ns() - start) / 1e9)
    before, start, images, window_s = gpu.energy_j(), clock.now_ns(), 0, 0.0
    while window_s < ENERGY_WINDOW_S:
        cell.generate(cell.first_seed + images, NULL_STAGE)
        clock.synchronise()
        images, window_s = images + 1, (clock.now_ns() - start) / 1e9
    return {"energy_j_per_image": (gpu.energy_j() - before) / images, "energy_window_s": window_s, "idle_w": idle_w}


def flags(process: dict[str, Any], is_host_bound: bool) -> list[dict[str, str]]:
    """What a reader of the record should know about this process, one sentence each."""
    from hibench.timing import contended

    found = []
    if is_host_bound:
        found.append({"name": "host_bound", "text": "the GPU was idle for more than 10 % of each image: "
                      "the CPU or Python sets the pace"})
    if process.get("device") == "cpu" and contended(process["latency_s"], process["cpu_wait_s"]):
        share = process["cpu_wait_s"] / sum(process["latency_s"])
        found.append({"name": "contended", "text": f"threads waited for a core, together during {share:.0%} of the time: other "
                      "processes used the CPU, or the method has more threads than there are cores"})
    if process.get("alloc_retries"):
        found.append({"name": "alloc_retries", "text": f"the allocator freed its cache {process['alloc_retries']} time(s): "
                      "memory was nearly full, and times are longer for it"})
    if (process.get("compile") or {}).get("recompiles"):
        found.append({"name": "recompiled", "text": f"torch.compile compiled {process['compile']['recompiles']} time(s) again: "
                      "some images may contain compilation"})
    return found


# -- quality ---------------------------------------------------------------------------------------------------------------


def run_quality(cell: CellJob) -> dict[str, Any]:
    """Make the samples of every shard that is not there yet, and their features; nothing is written to disk in between."""
    if cell.cell.get("weights") == "random":
        raise Skip("random weights make no images: quality is not measured; use weights: reference or a checkpoint")
    shards = [(int(first), int(count)) for first, count in cell.job["shards"]]
    lacking = {shard: shard_lacks(shard_path(cell.out, *shard), *shard) for shard in shards}
    todo = [shard for shard in shards if lacking[shard] is None]
    if todo:
        cell.open()
    if any(lack != set() for lack in lacking.values()):
        extract, missing = open_extract(cell)
        if cell.settings.get("reconstruct"):
            missing |= absent_pairs(cell.settings["metrics"])
        again = [shard for shard, lack in lacking.items() if lack and lack - missing]       # their network is there now
        if again and not todo:
            cell.open()
        if again or todo:
            cell.load()
        for first, count in sorted([*todo, *again]):
            make_shard(cell, extract, missing, first, count)
    return {"status": "ok", "reason": None, "failure": None, "shards": [shard_path(cell.out, *shard).name for shard in shards]}


def open_extract(cell: CellJob) -> tuple[Extract, set[str]]:
    """The function from images uint8 [B, 3, H, W] and their seeds to named feature arrays float32 [B, ...].

    With it, the names of extractors that could not be opened, because their weights are missing."""
    if "extract" in cell.tools:
        return cell.tools["extract"], set(cell.tools.get("missing", ()))
    from hibench import features

    device = resolve_device(cell.cell.get("device", "auto"))
    extractors = features.open_extractors(cell.settings, device, (cell.height, cell.width))
    for name, reason in extractors.missing.items():
        print(f"extractor {name} is missing: {reason}", file=sys.stderr)
    return (lambda images, seeds: dict(features.run(extractors, images, seeds))), set(extractors.missing)


def shard_path(out: Path, first: int, count: int) -> Path:
    """Where the features of `count` samples from seed `first` on are stored."""
    return out / f"shard-{first}-{count}.npz"


def shard_lacks(path: Path, first: int, count: int) -> set[str] | None:
    """Extractors that were missing when the shard was made; None unless it can be read and holds exactly these seeds."""
    import numpy as np

    try:
        with path.open("rb") as file, np.load(file) as stored:
            if np.array_equal(stored["seeds"], np.arange(first, first + count)):
                return set(stored["missing"].tolist())
        return None
    except (OSError, ValueError, KeyError, EOFError):
        return None
    except Exception as error:                                  # zipfile.BadZipFile and zlib.error have no common base
        print(f"{path.name} cannot be read and is made again: {one_line(error)}", file=sys.stderr)
        return None


def shard_is_whole(path: Path, first: int, count: int) -> bool:
    """True if the file can be read and holds exactly these seeds, whatever extractors were missing."""
    return shard_lacks(path, first, count) is not None


def make_shard(cell: CellJob, extract: Extract, missing: set[str], first: int, count: int) -> None:
    """Samples of one shard, batch by batch, to features in one file that appears when it is whole."""
    import numpy as np

    from hibench.features import count_bad
    from hibench.metrics.shards import write_shard

    batch = int(cell.settings.get("batch", DEFAULT_BATCH))
    keep_until = cell.first_seed + int(cell.settings.get("keep", DEFAULT_KEEP))
    small: dict[int, torch.Tensor] = {}                         # uint8 [3, H, W] of the seeds that scale consistency looks at
    parts: dict[str, list[Any]] = {}
    bad_nan = bad_constant = 0
    for start in range(first, first + count, batch):
        seeds = range(start, min(start + batch, first + count))
        images, truth = cell.make(seeds)
        cell.stage, cell.phase = None, "features"               # from here on a failure is not the method's
        bad_constant += count_bad(images)[1]
        found = {name: np.asarray(value) for name, value in extract(images, seeds).items()}
        if truth is not None:
            found |= pair_arrays(cell.settings["metrics"], images, truth, missing, cell.device)
        finite = np.ones(len(seeds), dtype=bool)
        for name, value in found.items():
            if len(value) != len(seeds):
                raise ContractError(f"extractor output '{name}' has {len(value)} rows for {len(seeds)} images")
            finite &= np.isfinite(value.reshape(len(seeds), -1)).all(axis=1)
            parts.setdefault(name, []).append(value)
        bad_nan += int((~finite).sum())
        for seed, image in zip(seeds, images):
            if seed < keep_until:
                save_png(cell.out / "samples" / f"{seed}.png", image)
            if seed < cell.first_seed + SCALED:
                small[seed] = image
        cell.phase = "generate"
    arrays: dict[str, Any] = {name: np.concatenate(values) for name, values in parts.items()}
    arrays.update(seeds=np.arange(first, first + count, dtype=np.int64), bad_nan=bad_nan, bad_constant=bad_constant,
                  missing=np.array(sorted(missing), dtype=str), **scaled(cell, small))
    write_shard(shard_path(cell.out, first, count), arrays)


def scaled(cell: CellJob, small: dict[int, torch.Tensor]) -> dict[str, Any]:
    """How images at k·R, box-downsampled, differ from those at R of the same seeds, for every k that a metric asks for.

    A method that does not make k·R is no fault; what goes wrong at k·R costs this metric, not the cell."""
    from hibench.memory import is_oom
    from hibench.metrics import scale_arrays, scale_factors
    from hibench.metrics.anyres import scale_consistency

    arrays: dict[str, Any] = {}
    for factor in scale_factors(cell.settings.get("metrics", ())) if small else ():
        reason, found, failed = cell.unsupported(factor), [], ""
        try:
            for seed, image in small.items() if reason is None else ():
                found.append(scale_consistency(cell.generate_batch([seed], factor), image[None]))
        except Exception as error:
            traceback.print_exc()
            height, width = factor * cell.height, factor * cell.width
            failed = f"at {height}x{width}: {'out of memory' if is_oom(error) else one_line(error)}"
        arrays.update(scale_arrays(factor, found, reason or "", failed))
    return arrays


def save_png(path: Path, image: torch.Tensor) -> None:
    """Store one image, uint8 [3, H, W], losslessly at its own size."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    Image.fromarray(image.permute(1, 2, 0).cpu().numpy()).save(aside, format="PNG")
    os.replace(aside, path)


def run_score(cell: CellJob) -> dict[str, Any]:
    """Merge the shards' features and compute the metrics into quality.json."""
    cell.phase = "score"
    shards = [(int(first), int(count)) for first, count in cell.job["shards"]]
    paths = [shard_path(cell.out, *shard) for shard in shards]
    absent = [path.name for path, shard in zip(paths, shards) if not shard_is_whole(path, *shard)]
    if absent:
        raise HibenchError(f"cannot score: {len(absent)} of {len(paths)} shards are missing ({absent[0]}); run the cell again")
    score = cell.tools.get("score")
    if score is None:
        from hibench import metrics

        score = metrics.score_cell
    cache = Path(cell.job["cache"]) if cell.job.get("cache") else None
    write_json(cell.out / "quality.json", score(paths, cell.settings, cell.cell, cache))
    return {"status": "ok", "reason": None, "failure": None}


# -- drift -----------------------------------------------------------------------------------------------------------------


def run_drift(cell: CellJob) -> dict[str, Any]:
    """Images of fixed seeds, one by one, to be compared with golden images by `hibench check`."""
    from hibench.weights import sha256_of

    cell.open()
    cell.load()
    seeds = range(cell.first_seed, cell.first_seed + int(cell.settings.get("images", 8)))
    for seed in seeds:
        stage = RecordingStage()
        image = cell.generate(seed, stage)
        cell.check_image(image, stage.finish())
        save_png(cell.out / "samples" / f"{seed}.png", image)
    samples = {str(seed): f"samples/{seed}.png" for seed in seeds}
    write_json(cell.out / "drift.json", {
        "samples": samples, "sha256": {seed: sha256_of(cell.out / name) for seed, name in samples.items()},
        "parameters": ask(cell.adapter, "parameters"), "weights_digest": ask(cell.adapter, "weights_digest")})
    return {"status": "ok", "reason": None, "failure": None}


TASKS: dict[str, Callable[[CellJob], dict[str, Any]]] = {"speed": run_speed, "quality": run_quality, "score": run_score,
                                                         "drift": run_drift}


if __name__ == "__main__":
    raise SystemExit(main())
