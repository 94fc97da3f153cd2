"""A job on a machine that shares no files with the driver: what it needs and what it made travel by value, with checksums."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hibench.engines import WORKER, Exit, LocalEngine, gpu_of, worker_identity
from hibench.errors import HibenchError
from hibench.store import clean_errors

__all__ = ["Parcel", "do_job", "inputs_of", "unpack"]

PREFIX = "hibench-job-"


@dataclass(frozen=True)
class Parcel:
    """What came of a job: how its process ended, its log, and the files that it made."""

    end: Exit
    log: bytes
    files: dict[str, bytes]  # path below the job's folder -> content
    sha256: dict[str, str]
    host: str


def inputs_of(job: Mapping[str, Any], out: Path) -> list[str]:
    """Names of the files in the driver's folder that a job reads: the shards that are there."""
    names = [f"shard-{first}-{count}.npz" for first, count in job.get("shards") or ()]
    return [name for name in names if (out / name).is_file()]


def do_job(
    job: dict[str, Any],
    inputs: Iterable[tuple[str, Callable[[], bytes]]],
    timeout_s: float | None,
    command: Sequence[str] = WORKER,
) -> Parcel:
    """Run a job file's content in a folder of its own on this machine; the folder is gone afterwards.

    `inputs`: names with functions that fetch their content, called one at a time.
    """
    _sweep()
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
    try:
        out, path, log = folder / "out", folder / "job.json", folder / "log.txt"
        out.mkdir()
        given = {}
        for name, fetch in inputs:
            content = fetch()
            (out / name).write_bytes(content)
            given[name] = hashlib.sha256(content).hexdigest()
        path.write_text(json.dumps({**job, "out": str(out), "parent": worker_identity()}), encoding="utf-8")
        gpu = gpu_of(job["cell"].get("device") or "cpu") if job["task"] == "speed" else None
        end = LocalEngine(command).run(path, log, timeout_s=timeout_s, gpu=gpu)
        files, sums = _made(out, given)
        return Parcel(end, log.read_bytes(), files, sums, os.uname().nodename)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _made(out: Path, given: Mapping[str, str]) -> tuple[dict[str, bytes], dict[str, str]]:
    """Files that are new or changed, and half-written ones left out."""
    files, sums = {}, {}
    for path in sorted(path for path in out.rglob("*") if path.is_file() and not path.name.startswith(".")):
        name, content = str(path.relative_to(out)), path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        if given.get(name) != digest:
            files[name], sums[name] = content, digest
    return files, sums


def unpack(parcel: Parcel, out: Path, log: Path) -> None:
    """Put the files of a parcel into the driver's folder, each by one rename, and its log behind what is there.

    Raises HibenchError when a file was damaged on the way, or the disk is full.
    """
    for name, content in parcel.files.items():
        if hashlib.sha256(content).hexdigest() != parcel.sha256[name]:
            raise HibenchError(f"{name} was damaged on its way from {parcel.host}; run again")
        target = out / name
        with clean_errors(f"write {target}"):
            target.parent.mkdir(parents=True, exist_ok=True)
            aside = target.with_name(f".{target.name}.tmp")
            aside.write_bytes(content)
            os.replace(aside, target)
    with clean_errors(f"write {log}"), log.open("ab") as file:
        file.write(parcel.log)


def _sweep() -> None:
    """Remove the folders of jobs whose process was killed."""
    import psutil

    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        pid = folder.name.removeprefix(PREFIX).partition("-")[0]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)
