"""The results directory: records published by one rename, staging that survives `kill -9`, manifests, and a lock."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from hibench.errors import HibenchError

__all__ = ["SCHEMA", "Corrupt", "Store", "check_record", "clean_errors", "finite", "read_json", "read_record", "utc_now",
           "write_json"]

SCHEMA = 1                                                     # of record.json; this version reads nothing newer
REQUIRED = ("schema", "id", "key", "kind", "status", "method", "axes")
FULL = {errno.ENOSPC: "no space left on the device", errno.EDQUOT: "the disk quota is used up",
        errno.EROFS: "the file system is read-only", errno.EACCES: "permission denied", errno.EPERM: "permission denied",
        errno.EFBIG: "the file would be too large", errno.ENOTDIR: "a part of the path is not a directory",
        errno.EEXIST: "a file is in the way", errno.EIO: "input/output error", errno.ENOTEMPTY: "a folder is in the way",
        errno.ESTALE: "the network file system lost track of the file", errno.EBUSY: "it is in use",
        errno.EXDEV: "a part of the results lies on another file system", errno.ENOLCK: "the file system has no locks to give",
        errno.EOPNOTSUPP: "the file system cannot do that", errno.ETIMEDOUT: "the file system does not answer"}


class Corrupt(HibenchError):
    """A record that cannot be read; the message names the file and what is wrong with it."""


def utc_now() -> str:
    """The time as `2026-11-21T10:00:00Z`."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def finite(value: Any) -> Any:
    """JSON values with None in the place of every NaN and infinity, which JSON does not know."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def clean_errors(doing: str) -> Iterator[None]:
    """A full disk, a read-only file system and their like become a HibenchError that says what next."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise HibenchError(f"cannot {doing}: {FULL[error.errno]}{f' ({error.filename})' if error.filename else ''}; "
                           "what was measured so far is kept: make room or choose another --out, and run again") from error


def write_json(path: Path, value: Any, durable: bool = True) -> None:
    """Write a JSON file that is either there and whole or not there; `durable`: also after a power cut (some 20 ms)."""
    aside = path.with_name(f".{path.name}.tmp")
    with clean_errors(f"write {path}"):
        try:
            with aside.open("w", encoding="utf-8") as file:
                json.dump(finite(value), file, indent=1, allow_nan=False)
                file.write("\n")
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            os.replace(aside, path)
        except OSError:
            with suppress(OSError):
                aside.unlink()
            raise
        if durable:
            _sync_folder(path.parent)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; {} where there is none that can be read."""
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}


class Store:
    """One results directory.

    ::

        cells/3f/3f9a…/{record.json, log.txt, samples/, …}     finished, whatever the outcome; appears by one rename
        work/3f9a…/                                           being measured; resumed from there
        runs/20261121T100000.000000Z.json                      which sweeps asked for which cells
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).absolute()
        self.cells, self.work, self.runs = self.root / "cells", self.root / "work", self.root / "runs"

    def create(self) -> None:
        """Make the folders; HibenchError where that is impossible."""
        with clean_errors(f"write results to {self.root}"):
            for folder in (self.cells, self.work, self.runs):
                folder.mkdir(parents=True, exist_ok=True)

    # -- cells -------------------------------------------------------------------------------------------------------

    def cell(self, id: str) -> Path:
        """The folder of a finished cell."""
        return self.cells / id[:2] / id

    def staging(self, id: str) -> Path:
        """The folder in which a cell is being measured; it is made if it is not there."""
        folder = self.work / id
        with clean_errors(f"write {folder}"):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def record(self, id: str) -> dict[str, Any] | None:
        """The record of a cell, None = not finished; raises Corrupt, and HibenchError for a newer schema."""
        path = self.cell(id) / "record.json"
        if not path.parent.is_dir():
            return None
        return read_record(path, id)

    def publish(self, id: str, record: dict[str, Any]) -> Path:
        """Make the staging folder with its record the finished cell, in place of an earlier one; returns its folder.

        Killed before the rename, `recover` finishes the job; nothing that looks finished is ever half there.
        """
        folder, target, old = self.staging(id), self.cell(id), self.work / f"{id}.old"
        write_json(folder / "record.json", record)
        with clean_errors(f"publish {target}"):
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():
                shutil.rmtree(old, ignore_errors=True)
                _move(target, old)
            _move(folder, target)
            _sync_folder(target.parent)
        shutil.rmtree(old, ignore_errors=True)
        return target

    def reopen(self, id: str) -> Path:
        """Turn a finished (failed or corrupt) cell back into a staging folder: what it holds is used again."""
        folder, target = self.work / id, self.cell(id)
        with clean_errors(f"reopen {target}"):
            if target.exists():
                shutil.rmtree(folder, ignore_errors=True)
                self.work.mkdir(parents=True, exist_ok=True)
                _move(target, folder)
            if (folder / "record.json").exists():
                os.replace(folder / "record.json", folder / "previous.json")
        return self.staging(id)

    def recover(self) -> list[str]:
        """Finish what a killed run was about to publish; returns one sentence per repair. Call it under the lock."""
        with clean_errors(f"repair {self.root}"):
            return self._recover()

    def _recover(self) -> list[str]:
        said = []
        for folder in sorted(self.work.iterdir()) if self.work.is_dir() else []:
            if folder.is_dir() and not folder.name.endswith(".old") and (folder / "record.json").exists():
                try:
                    record = read_record(folder / "record.json", folder.name)
                except Corrupt as error:
                    (folder / "record.json").unlink()
                    said.append(f"{error}; the cell is measured again")
                    continue
                self.publish(folder.name, record)
                said.append(f"{record['key']}: its record was finished by the interrupted run, and is published now")
        for old in sorted(self.work.glob("*.old")):
            target = self.cell(old.name.removesuffix(".old"))
            if target.exists():
                shutil.rmtree(old, ignore_errors=True)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                _move(old, target)
        return said

    def records(self) -> tuple[list[dict[str, Any]], list[str]]:
        """Every record that can be read, by key and id (to be left unchanged), and one sentence for each that cannot."""
        from hibench.record_index import load_records

        return load_records(self.root)

    # -- manifests -----------------------------------------------------------------------------------------------------

    def write_manifest(self, manifest: dict[str, Any]) -> Path:
        """Store what a run was asked for under the time of its end; names sort by time."""
        path = self.runs / f"{datetime.now(timezone.utc).strftime('%Y%m%dT%H%M%S.%fZ')}.json"
        write_json(path, manifest)
        return path

    def newest_manifest(self) -> dict[str, Any] | None:
        """The newest manifest that can be read, None = none."""
        for path in sorted(self.runs.glob("*.json"), reverse=True):
            manifest = read_json(path)
            if manifest:
                return manifest
        return None

    # -- the lock --------------------------------------------------------------------------------------------------------

    @contextmanager
    def lock(self, shard: tuple[int, int] | None = None) -> Iterator[None]:
        """Only one run at a time works in this directory; the shards I/N of one run work side by side.

        The operating system drops the lock with its process, so a killed run leaves none behind.
        Raises HibenchError that names the process which holds it.
        """
        name = "lock" if shard is None else f"lock-{shard[0]}-of-{shard[1]}"
        files = [self._locked(self.root / "lock", shared=shard is not None)]
        try:
            if shard is not None:
                files.append(self._locked(self.root / name, shared=False))
            yield
        finally:
            for file in files:
                os.close(file)

    def _locked(self, path: Path, shared: bool) -> int:
        import fcntl

        with clean_errors(f"lock {self.root}"):
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            with clean_errors(f"lock {self.root}"):
                fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(file, 200, 0).decode(errors="replace").strip() or "an unknown process"
            os.close(file)
            raise HibenchError(f"{self.root} is in use by another run ({holder}); wait until it is done, "
                               "or choose another directory by --out") from None
        except HibenchError:
            os.close(file)
            raise
        os.ftruncate(file, 0)
        os.pwrite(file, f"pid {os.getpid()} on {socket.gethostname()} since {utc_now()}\n".encode(), 0)
        return file


def read_record(path: Path, id: str) -> dict[str, Any]:
    """Read and check one record.json; raises Corrupt, and HibenchError for a schema that is newer than this version."""
    try:
        record = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise Corrupt(f"{path}: is not there, though its folder is") from None
    except OSError as error:
        raise Corrupt(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise Corrupt(f"{path}: is corrupt ({error})") from error
    return check_record(record, path, id)


def check_record(record: Any, path: Path | str, id: str) -> dict[str, Any]:
    """What stood in the file `path`, if it is the record of cell `id`; raises as `read_record` does."""
    if not isinstance(record, dict):
        raise Corrupt(f"{path}: is corrupt (no JSON object)")
    schema = record.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise HibenchError(f"{path}: record of schema {schema}, and this hibench reads {SCHEMA}; update hibench, "
                           "or choose another directory by --out")
    absent = [name for name in REQUIRED if name not in record]
    if absent:
        raise Corrupt(f"{path}: is corrupt (without {', '.join(absent)})")
    if record["id"] != id:
        raise Corrupt(f"{path}: is corrupt (it says id {record['id']}, its folder {id})")
    return record


def _move(source: Path, target: Path) -> None:
    """Rename; a network file system that lost its own answer and says that there is no source has done it already."""
    try:
        os.rename(source, target)
    except FileNotFoundError:
        if source.exists() or not target.exists():
            raise


def _sync_folder(path: Path) -> None:
    """Make a rename in this folder survive a power cut, where the file system can."""
    try:
        folder = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(folder)
    except OSError:
        pass
    finally:
        os.close(folder)
