"""All records of a results directory at once: file by file, and beyond a thousand from an index that cannot be stale."""

from __future__ import annotations

import gc
import json
import marshal
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import sha256
from itertools import compress
from pathlib import Path
from sys import intern
from typing import Any

from hibench.store import SCHEMA, Corrupt, check_record, read_record
from hibench.weights import cache_directory

__all__ = ["FEWEST", "index_file", "interned", "load_records", "without_collector"]

FEWEST = 1000  # records that are not in the index before one is written; fewer are read in less than a second
MAGIC = b"hibench records 3\n"
Stamp = tuple[int, int, int, int]  # inode, bytes, time of the content and of the inode in ns: no change leaves all of them
Take = Callable[[dict[str, Any]], dict[str, Any]]
Chunk = tuple[list[str], list[Stamp], list[dict[str, Any]]]  # what is held of one folder: ids, stamps, records or their rows


def load_records(
    root: Path, take: Take | None = None, version: str = ""
) -> tuple[list[dict[str, Any]], list[str]]:
    """Every record under `root`/cells that can be read, by key and id; and a sentence for each that cannot.

    A record comes from the index only while its file still has the inode, size and times that it had when it was read, so
    whatever was copied, merged or edited is read again. `take` makes a smaller dict of a record, with its `key` and `id`. Each
    such function has an index of its own; `version` says which code it is. What it does not keep is let go folder by folder.
    Equal environments are one object: change none of them. Raises HibenchError for a newer schema.
    """
    problems: list[str] = []
    found: list[dict[str, Any]] = []
    version = "" if take is None else f"{take.__name__} {version}"
    with without_collector():
        cells = {folder: _cells(folder) for folder in _folders(root / "cells")}
        count = sum(map(len, cells.values()))
        index, known = _Index.read(root, version) if count > FEWEST else _Index({}, {}, b""), _Environments()
        fresh = sum(index.stamps.get(id) != stamp for mine in cells.values() for id, (_, stamp) in mine.items())
        renew = fresh > max(FEWEST, count // 20) or len(index.stamps) > 2 * count + FEWEST
        chunks: dict[str, bytes] = {}
        held: dict[str, Stamp] = {}
        for folder, mine in cells.items():
            name = os.path.basename(folder)
            ids, stamps, values = chunk = index.chunk(name, mine)
            stale = {id: path for id, (path, _) in mine.items() if id not in set(ids)} if len(ids) < len(mine) else {}
            problems += _read_folder(stale, chunk, take)
            for value in values:
                known.share(value)
            if renew:
                chunks[name] = marshal.dumps(chunk)
                held.update(zip(ids, stamps))
            found += values
        if renew:
            _write(root, version, chunks, held)
        found.sort(key=lambda value: (value["key"], value["id"]))
    return found, problems


@contextmanager
def without_collector() -> Iterator[None]:
    """No search for cyclic garbage meanwhile: records hold no cycles, and walking through millions of parts takes seconds.

    What was made and stays counts as old afterwards: otherwise it would be walked through right away, once per generation.
    Nothing stays frozen, and where somebody else has frozen objects, nothing is moved.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            if gc.get_freeze_count() == 0:
                gc.freeze()
                gc.unfreeze()                             # into the oldest generation, whatever generation it was in
            gc.enable()


# -- files -----------------------------------------------------------------------------------------------------------------


def _folders(path: Path) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return sorted(entry.path for entry in entries if entry.is_dir())
    except FileNotFoundError:
        return []


def _cells(folder: str) -> dict[str, tuple[str, Stamp | None]]:
    """Id → record.json and its stamp of every cell in a folder, in order."""
    with os.scandir(folder) as entries:
        paths = sorted((entry.name, f"{entry.path}/record.json") for entry in entries if entry.is_dir())
    return {id: (path, _stamp(path)) for id, path in paths}


def _stamp(path: str | int) -> Stamp | None:
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _read_folder(cells: Mapping[str, str], chunk: Chunk, take: Take | None) -> list[str]:
    """Read the records of one folder (id → path), or what `take` makes of them, into `chunk`; a sentence for each unreadable.

    They are parsed together, which is quicker and lets them share their keys, or one by one where that fails.
    """
    ids, stamps, kept = chunk
    read = [_content(path) for path in cells.values()]
    try:
        whole = all(text.startswith("{") for _, text in read)
        values = json.loads(f"[{','.join(text for _, text in read)}]") if whole else []
    except ValueError:
        values = []
    problems = []
    for at, (id, path) in enumerate(cells.items()):
        try:
            record = check_record(values[at], path, id) if len(values) == len(cells) else read_record(Path(path), id)
        except Corrupt as error:
            problems.append(str(error))
            continue
        ids.append(id)
        stamps.append(read[at][0])
        kept.append(record if take is None else take(record))
    return problems


def _content(path: str) -> tuple[Stamp, str]:
    """A file's stamp and text, both of the same moment; no text where it cannot be read."""
    try:
        with open(path, "rb", buffering=0) as file:
            stamp, content = _stamp(file.fileno()), file.read()
            return stamp or (0, 0, 0, 0), content.decode()
    except (OSError, UnicodeDecodeError):
        return (0, 0, 0, 0), ""


class _Environments:
    """One object for equal environments: most records of a run have the same, and it is half of their size."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, str], list[dict[str, Any]]] = {}

    def share(self, record: dict[str, Any]) -> None:
        """Give a record (or row, as `_env`) an equal environment that is known already, or get to know its own."""
        name = "env" if "env" in record else "_env"
        env = record.get(name)
        if not isinstance(env, dict):
            return
        same = self.known.setdefault((str(env.get("hardware_digest")), str(env.get("software_digest"))), [])
        for other in same:
            if other is env or other == env:
                record[name] = other
                return
        if len(same) < 16:
            same.append(env)


# -- the index -------------------------------------------------------------------------------------------------------------


def index_file(root: Path, version: str = "") -> Path:
    """Where an index of a results directory is: in hibench's cache, so that it does not travel with what it describes.

    The first word of `version` is the function that made its dicts; "" = whole records."""
    name = "-".join([sha256(os.fsencode(root.resolve())).hexdigest()[:24], *version.split()[:1]])
    return cache_directory() / "records" / f"{name}.{sys.implementation.cache_tag}.index"


def interned(values: dict[str, Any]) -> dict[str, Any]:
    """The same with one object for equal strings: most records say the same, and it is written and read once per folder."""
    return {name: intern(value) if type(value) is str else value for name, value in values.items()}


def _head(root: Path, version: str) -> bytes:
    said = {"root": os.fspath(root.resolve()), "version": version, "schema": SCHEMA, "marshal": marshal.version}
    return MAGIC + json.dumps(said).encode() + b"\n"


class _Index:
    """The index of a directory: the stamp of every record, and the records by folder, unpacked when they are asked for."""

    def __init__(self, stamps: dict[str, Stamp], places: dict[str, tuple[int, int]], content: bytes) -> None:
        self.stamps, self.places, self.content = stamps, places, memoryview(content)

    @classmethod
    def read(cls, root: Path, version: str = "") -> _Index:
        """The index; an empty one without any, or where it is another's, of another version or damaged."""
        head = _head(root, version)
        try:
            with index_file(root, version).open("rb") as file:
                if os.fstat(file.fileno()).st_uid == os.getuid() and file.read(len(head)) == head:
                    checksum, content = file.read(4), file.read()
                    if zlib.crc32(content).to_bytes(4, "big") == checksum:
                        size = int.from_bytes(content[:8], "big")
                        stamps, places = marshal.loads(content[8 : 8 + size])
                        return cls(stamps, places, content[8 + size :])
        except (OSError, RuntimeError):  # RuntimeError: there is no home directory
            pass
        return cls({}, {}, b"")

    def chunk(self, folder: str, cells: Mapping[str, tuple[str, Stamp | None]]) -> Chunk:
        """Of what is held of a folder: the records whose files have not changed."""
        if folder not in self.places:
            return [], [], []
        start, end = self.places[folder]
        ids, stamps, records = marshal.loads(self.content[start:end])
        same = [id in cells and cells[id][1] == stamp for id, stamp in zip(ids, stamps)]
        if all(same):
            return ids, stamps, records
        return list(compress(ids, same)), list(compress(stamps, same)), list(compress(records, same))


def _write(root: Path, version: str, chunks: Mapping[str, bytes], stamps: dict[str, Stamp]) -> None:
    """Write the index whole, and remove those of directories that are gone; where that is impossible, there is none."""
    places: dict[str, tuple[int, int]] = {}
    end = 0
    for folder, chunk in chunks.items():
        places[folder] = end, end + len(chunk)
        end += len(chunk)
    table = marshal.dumps((stamps, places))
    parts = [len(table).to_bytes(8, "big"), table, *chunks.values()]
    checksum = 0
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    with suppress(OSError, RuntimeError):
        path = index_file(root, version)
        aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with aside.open("wb") as file:
                file.writelines([_head(root, version), checksum.to_bytes(4, "big"), *parts])
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
