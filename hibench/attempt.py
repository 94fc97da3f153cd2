"""Measures one task in its staging folder, worker by worker, up to a record or a verdict; what is there is not made again."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from hibench.engines import Engine, Exit, gpu_of, worker_identity
from hibench.excerpt import DISTURBED
from hibench.prepare import Task, Verdict
from hibench.progress import duration
from hibench.recording import failed, full_disk, make_record, quality_part, read_verdict, speed_part
from hibench.store import Store, clean_errors, read_json, utc_now, write_json
from hibench.worker import shard_lacks, shard_path

__all__ = ["Attempt", "gather", "most_processes", "processes_of", "shards_of", "split", "times"]

PARTS = "parts"                                                # in a staging folder: what workers of one cell make side by side
MOST = 16                                                      # shards of a part: what is lost with a worker is bounded
COOL_DOWN_S = 10.0                                             # before a throttled replicate is repeated


@dataclass
class Attempt:
    """One task being measured."""

    task: Task
    store: Store
    engine: Engine
    env: dict[str, Any]
    say: Callable[[str], None]                                 # a line for the reader
    show: Callable[[str], None] | None = None                  # what is going on, every second; None = nobody looks
    cache: Path | None = None                                  # features of references; None = hibench's own place
    cool_down_s: float = COOL_DOWN_S

    def open(self) -> Path:
        """The staging folder, with what an earlier attempt has left in it."""
        if self.store.cell(self.task.id).exists():
            self.store.reopen(self.task.id)
        return self.store.staging(self.task.id)

    # -- speed ---------------------------------------------------------------------------------------------------------

    def replicate(self, replicate: int) -> Verdict | float:
        """One fresh process, or the one that is already there: its seconds, or the verdict on what went wrong.

        A replicate that the machine has disturbed (throttled, contended) is repeated once."""
        folder = self.open()
        path = folder / f"speed-{replicate}.json"
        if _is_ok(path):
            return float(read_json(path).get("wall_s") or 0.0)
        for again in (True, False):
            path.unlink(missing_ok=True)
            doing = f"replicate {replicate + 1} of {processes_of(self.task)}"
            verdict = self._work(folder, {"task": "speed", "replicate": replicate}, path.stem, doing, lambda: _is_ok(path))
            if verdict is not None:
                return verdict
            flags = {flag["name"] for flag in read_json(path)["process"]["flags"]}
            if not again or not flags & DISTURBED:
                break
            self.say(f"{self.task.cell.key}: {' and '.join(sorted(flags & DISTURBED))}; {doing} is measured once more")
            if "throttled" in flags:
                time.sleep(self.cool_down_s)
        return float(read_json(path)["wall_s"])

    def enough(self, count: int) -> bool:
        """Whether `count` replicates do: all that were asked for, and, where the spec asks for an `interval`, one so narrow."""
        settings = self.task.cell.settings
        if count < processes_of(self.task):
            return False
        asked = settings.get("interval")
        if not asked or count >= most_processes(self.task):
            return True
        speed = speed_part(self._processes(count))[0]
        ends = speed["latency_ci_s"]
        return ends is not None and (ends[1] - ends[0]) / 2 <= asked * speed["latency_p50_s"]

    def _processes(self, count: int) -> list[dict[str, Any]]:
        folder = self.open()
        return [read_json(folder / f"speed-{p}.json")["process"] for p in range(count)]

    def speed_record(self, count: int) -> dict[str, Any]:
        """The record from `count` replicates."""
        folder, processes = self.open(), self._processes(count)
        speed, flags = speed_part(processes)
        return make_record(self.task, self.env, speed=speed, flags=flags, parameters=processes[0].get("parameters"),
                           weights_digest=processes[0].get("weights_digest"), **times(folder))

    # -- quality -------------------------------------------------------------------------------------------------------

    def quality(self, parts: int = 1) -> Verdict | dict[str, Any]:
        """Make the shards that are not there and score them: the record, or the verdict on what went wrong.

        `parts`: worker processes that share the shards, as far as the engine runs them at once; the samples are the same."""
        folder, shards = self.open(), shards_of(self.task)
        gather(folder)                                         # what an interrupted run has left in parts
        lacks = _lacks(folder, shards)
        todo = [shard for shard, lack in zip(shards, lacks) if lack != set()]
        verdict = None
        if todo and parts == 1:
            samples = sum(count for (_, count), lack in zip(shards, lacks) if lack is None)
            verdict = self._samples(folder, shards, samples)
        elif todo:
            verdict = self._parts(folder, split(todo, parts))
        if verdict is not None:
            return verdict
        scored = folder / "quality.json"
        scored.unlink(missing_ok=True)
        verdict = self._work(folder, {"task": "score", "shards": shards}, "score", "scoring", scored.exists)
        if verdict is not None:
            return verdict
        quality = quality_part(folder, self.task.cell)
        parameters = quality.pop("parameters", None)
        return make_record(self.task, self.env, quality=quality, flags=_quality_flags(quality), parameters=parameters,
                           **times(folder))

    def _samples(self, folder: Path, shards: list[list[int]], samples: int) -> Verdict | None:
        """One worker for these shards: None when all are there afterwards, else the verdict."""
        doing = f"{samples} samples" if samples else "features of extractors that were missing"
        return self._work(folder, {"task": "quality", "shards": shards}, "quality", doing,
                          lambda: None not in _lacks(folder, shards))

    def _parts(self, folder: Path, groups: list[list[list[int]]]) -> Verdict | None:
        """A worker per group of shards, each in a folder of its own whose shards come over when it ends."""
        def part(group: list[list[int]]) -> Verdict | None:
            own = folder / PARTS / str(group[0][0])
            with clean_errors(f"write {own}"):
                own.mkdir(parents=True, exist_ok=True)
            for first, count in group:                         # made without an extractor that was missing then
                path = shard_path(folder, first, count)
                if path.exists():
                    os.replace(path, own / path.name)
            return self._samples(own, group, sum(count for _, count in group))

        verdict = None
        with ThreadPoolExecutor(len(groups)) as pool:
            futures = {pool.submit(part, group): group for group in groups}
            try:
                for future in as_completed(futures):
                    verdict = verdict or future.result()
                    gather(folder, str(futures[future][0][0]))
                    if verdict is not None:
                        for other in futures:
                            other.cancel()
                        break
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        gather(folder)                                         # of the parts that were still at work
        return verdict

    # -- drift ---------------------------------------------------------------------------------------------------------

    def drift(self) -> Verdict | dict[str, Any]:
        """Make the images of the fixed seeds: the record, or the verdict on what went wrong."""
        folder = self.open()
        made = folder / "drift.json"
        made.unlink(missing_ok=True)
        verdict = self._work(folder, {"task": "drift"}, "drift", "golden seeds", made.exists)
        if verdict is not None:
            return verdict
        drift = read_json(made)
        parameters, digest = drift.pop("parameters", None), drift.pop("weights_digest", None)
        return make_record(self.task, self.env, drift=drift, parameters=parameters, weights_digest=digest, **times(folder))

    # -- one worker ----------------------------------------------------------------------------------------------------

    def _work(self, folder: Path, job: dict[str, Any], name: str, doing: str, done: Callable[[], bool]) -> Verdict | None:
        """Run one job in `folder`; None when `done()` holds afterwards, else the verdict on what went wrong.

        Raises HibenchError when the disk is full."""
        cell = self.task.cell
        log, path = folder / "log.txt", folder / f"job-{name}.json"
        write_json(path, {"replicate": 0, "shards": [], **job, "cell": cell.to_json(), "out": str(folder),
                          "cache": str(self.cache) if self.cache else None, "parent": worker_identity()}, durable=False)
        (folder / "status.json").unlink(missing_ok=True)
        gpu = gpu_of(cell.device) if cell.kind == "speed" else None
        end = self.engine.run(path, log, timeout_s=cell.timeout_s, gpu=gpu, tick=self._ticker(folder, job, doing))
        _add_time(folder, end.wall_s)
        if done():
            if job["task"] == "speed":
                _complete(folder / f"{name}.json", end)
            return None
        said = read_verdict(folder / "status.json") or read_verdict(folder / f"{name}.json")
        verdict = failed(end, said, log, doing, cell.timeout_s)
        stop = full_disk(verdict, log)
        if stop is not None:
            raise stop
        return verdict

    def _ticker(self, folder: Path, job: dict[str, Any], doing: str) -> Callable[[], None] | None:
        """A function that shows how far a job is; None when nobody looks."""
        show = self.show
        if show is None:
            return None
        start = time.monotonic()
        shards = [folder / f"shard-{first}-{count}.npz" for first, count in job.get("shards", ()) if job["task"] == "quality"]

        def tick() -> None:
            part = f", shard {sum(map(Path.exists, shards))} of {len(shards)}" if len(shards) > 1 else ""
            show(f"{self.task.cell.key}: {doing}{part}, {duration(time.monotonic() - start)}")

        tick()
        return tick


def processes_of(task: Task) -> int:
    """How many replicates a speed cell has."""
    return int(task.cell.settings.get("processes", 5))


def most_processes(task: Task) -> int:
    """How many replicates it may have when its interval stays wider than asked."""
    settings = task.cell.settings
    return max(processes_of(task), int(settings.get("max_processes", 15)) if settings.get("interval") else 0)


def shards_of(task: Task) -> list[list[int]]:
    """[first seed, count] of every shard; boundaries lie on whole batches, so that resuming makes the same batches."""
    settings = task.cell.settings
    images, first, batch = int(settings["images"]), int(settings.get("first_seed", 0)), int(settings.get("batch", 16))
    size = max(batch, int(settings.get("shard", 64)) // batch * batch)
    return [[first + start, min(size, images - start)] for start in range(0, images, size)]


def split(shards: list[list[int]], parts: int) -> list[list[list[int]]]:
    """Neighbouring shards in `parts` groups of nearly equal size, or in a multiple of them where a group would exceed MOST."""
    groups = min(len(shards), parts * -(-len(shards) // (MOST * parts)))
    edges = [len(shards) * group // groups for group in range(groups + 1)]
    return [shards[start:end] for start, end in pairwise(edges)]


def gather(folder: Path, part: str = "*") -> None:
    """Bring shards and samples of parts over into the staging folder of their cell, with their logs and their seconds."""
    for own in sorted((folder / PARTS).glob(part)):
        with clean_errors(f"write {folder}"):
            (folder / "samples").mkdir(exist_ok=True)
            for path in [*own.glob("shard-*.npz"), *own.glob("samples/*.png")]:
                os.replace(path, folder / path.relative_to(own))
            if (own / "log.txt").exists():
                with (folder / "log.txt").open("ab") as log:
                    log.write((own / "log.txt").read_bytes())
        seconds = times(own)["wall_s"]
        if seconds:
            _add_time(folder, seconds)
        shutil.rmtree(own, ignore_errors=True)
    if (folder / PARTS).is_dir() and not any((folder / PARTS).iterdir()):
        (folder / PARTS).rmdir()


def _lacks(folder: Path, shards: list[list[int]]) -> list[set[str] | None]:
    """Of every shard: None when it is not there, else the extractors that it was made without."""
    return [shard_lacks(shard_path(folder, first, count), first, count) for first, count in shards]


def times(folder: Path) -> dict[str, Any]:
    """When the first run began with a cell, and the seconds that all runs have spent on it (None: none yet)."""
    seen = read_json(folder / "session.json")
    return {"started_at": seen.get("started_at") or utc_now(), "wall_s": seen.get("wall_s")}


def _add_time(folder: Path, wall_s: float) -> None:
    seen = times(folder)
    write_json(folder / "session.json", {"started_at": seen["started_at"], "wall_s": (seen["wall_s"] or 0.0) + wall_s},
               durable=False)


def _is_ok(path: Path) -> bool:
    said = read_verdict(path)
    return said is not None and said["status"] == "ok"


def _complete(path: Path, end: Exit) -> None:
    """Add what only the parent knows to a replicate's file: what the GPU did, how the process ended, how long it took."""
    said = read_json(path)
    process = said["process"]
    flags = list(process.get("flags") or ())
    if end.trace is not None:
        summary = end.trace.summary()
        process["clock_mhz"], process["gpu"] = summary.pop("clock_mhz"), summary
        flags += end.trace.flags()
    if end.returncode != 0:
        flags.append({"name": "unclean_exit", "text": "the process measured everything, and then did not end as it should "
                      f"(return code {end.returncode}); log.txt tells more"})
    process["flags"], said["wall_s"] = flags, end.wall_s
    write_json(path, said, durable=False)                      # after a power cut a broken one is measured again


def _quality_flags(quality: dict[str, Any]) -> list[dict[str, str]]:
    texts = {"nan": "gave features that are not finite", "constant": "have one single colour"}
    return [{"name": f"bad_{kind}", "text": f"{count} of {quality['n']} images {texts[kind]}; look at the samples"}
            for kind, count in (quality.get("bad") or {}).items() if count and kind in texts]
