"""All records of a results directory at once: file by file, and beyond a thousand from an index that cannot be stale."""

from __future__ import annotations

import gc
import json
import marshal
import os
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from hibench.store import SCHEMA, Corrupt, check_record, read_record
from hibench.weights import cache_directory

__all__ = ["FEWEST", "index_file", "load_records", "without_collector"]

FEWEST = 1000  # records that are not in the index before one is written; fewer are read in less than a second
MAGIC = b"hibench records 1\n"
Stamp = tuple[int, int, int, int]  # inode, bytes, time of the content and of the inode in ns: no change leaves all of them
Held = dict[str, tuple[Stamp, dict[str, Any]]]  # id -> what stood in its file when it had this stamp


def load_records(root: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Every record under `root`/cells that can be read, by key and id, and one sentence for each that cannot.

    A record comes from the index only while its file still has the inode, size and times that it had when it was read, so
    whatever was copied, merged or edited is read again. Records share equal parts (the environment): change none of them.
    Raises HibenchError for a newer schema.
    """
    with without_collector():
        held = _read_index(root)
        found, problems, fresh = {}, [], 0
        for folder in _folders(root / "cells"):
            stale = []
            for id, path in _cells(folder):
                known = held.get(id)
                if known is not None and known[0] == _stamp(path):
                    found[id] = known
                else:
                    stale.append((id, path))
            fresh += len(stale)
            problems += _read_folder(stale, found)
        _share(found)
        if fresh > max(FEWEST, len(found) // 20) or len(held) > 2 * len(found) + FEWEST:
            _write_index(root, found)
        records = sorted((record for _, record in found.values()), key=lambda record: (record["key"], record["id"]))
        if len(records) > FEWEST:
            gc.freeze()
    return records, problems


@contextmanager
def without_collector() -> Iterator[None]:
    """No search for cyclic garbage meanwhile: records hold no cycles, and walking through millions of parts takes seconds.

    What is made here and stays is better frozen (`gc.freeze`) before the end, or it is walked through right afterwards.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


# -- files -----------------------------------------------------------------------------------------------------------------


def _folders(path: Path) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return sorted(entry.path for entry in entries if entry.is_dir())
    except FileNotFoundError:
        return []


def _cells(folder: str) -> list[tuple[str, str]]:
    """Id and record.json of every cell in a folder, in order."""
    with os.scandir(folder) as entries:
        return sorted((entry.name, f"{entry.path}/record.json") for entry in entries if entry.is_dir())


def _stamp(path: str | int) -> Stamp | None:
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _read_folder(cells: list[tuple[str, str]], found: Held) -> list[str]:
    """Read the records of one folder into `found`; a sentence for each that cannot be read.

    They are parsed together, which is quicker and lets them share their keys, or one by one where that fails.
    """
    stamps, texts = [], []
    for _, path in cells:
        stamp, text = _content(path)
        stamps.append(stamp)
        texts.append(text)
    try:
        values = json.loads(f"[{','.join(texts)}]") if all(text.lstrip().startswith("{") for text in texts) else []
    except ValueError:
        values = []
    problems = []
    for at, (id, path) in enumerate(cells):
        try:
            record = check_record(values[at], Path(path), id) if len(values) == len(cells) else read_record(Path(path), id)
            found[id] = stamps[at], record
        except Corrupt as error:
            problems.append(str(error))
    return problems


def _content(path: str) -> tuple[Stamp, str]:
    """A file's stamp and text, both of the same moment; no text where it cannot be read."""
    try:
        with open(path, "rb", buffering=0) as file:
            stamp, content = _stamp(file.fileno()), file.read()
            return stamp or (0, 0, 0, 0), content.decode()
    except (OSError, UnicodeDecodeError):
        return (0, 0, 0, 0), ""


def _share(found: Held) -> None:
    """One object for equal environments: most records of a run have the same, and it is half of their size."""
    known: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for _, record in found.values():
        env = record.get("env")
        if isinstance(env, dict):
            same = known.setdefault((str(env.get("hardware_digest")), str(env.get("software_digest"))), [])
            for other in same:
                if other is env or other == env:
                    record["env"] = other
                    break
            else:
                if len(same) < 16:
                    same.append(env)


# -- the index -------------------------------------------------------------------------------------------------------------


def index_file(root: Path) -> Path:
    """Where the index of a results directory is: in hibench's cache, so that it does not travel with what it describes."""
    name = sha256(os.fsencode(root.resolve())).hexdigest()[:24]
    return cache_directory() / "records" / f"{name}.{sys.implementation.cache_tag}.index"


def _head(root: Path) -> bytes:
    said = {"root": os.fspath(root.resolve()), "schema": SCHEMA, "marshal": marshal.version}
    return MAGIC + json.dumps(said).encode() + b"\n"


def _read_index(root: Path) -> Held:
    """What the index holds; {} without one, or where it is another's, of another version or damaged."""
    head = _head(root)
    try:
        with index_file(root).open("rb") as file:
            if os.fstat(file.fileno()).st_uid != os.getuid() or file.read(len(head)) != head:
                return {}
            checksum, content = file.read(4), file.read()
    except OSError:
        return {}
    if zlib.crc32(content).to_bytes(4, "big") != checksum:
        return {}
    ids, stamps, records = marshal.loads(content)
    return {id: (stamp, record) for id, stamp, record in zip(ids, stamps, records)}


def _write_index(root: Path, found: Held) -> None:
    """Write the index whole, and remove those of directories that are gone; where that is impossible, there is none."""
    content = marshal.dumps((list(found), [stamp for stamp, _ in found.values()], [record for _, record in found.values()]))
    path = index_file(root)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with aside.open("wb") as file:
                file.write(_head(root) + zlib.crc32(content).to_bytes(4, "big"))
                file.write(content)
            aside.chmod(0o600)
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)
        for other in path.parent.glob("*.index"):
            with other.open("rb") as file:
                if file.readline() == MAGIC and not _exists(file.readline()):
                    other.unlink()


def _exists(line: bytes) -> bool:
    try:
        return Path(json.loads(line)["root"]).is_dir()
    except (ValueError, KeyError, TypeError):
        return False
