"""The pictures that the sample browser shows: which there are, and lossless copies of them beside or inside the page."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hibench.lines import BASELINES, Row, pair, resolution_text, settings_text

__all__ = ["collect"]

TYPES = {".png": "image/png", ".webp": "image/webp", ".bmp": "image/bmp"}


def collect(rows: Iterable[Row], results: Path, out: Path, *, embed: bool, most: int) -> tuple[dict[str, Any], list[Path]]:
    """What the browser shows, and the files written for it.

    Every item is one quality cell: method, role, resolution, setting, order, id and `seeds`, a map from seed to the address of
    its picture (relative to the page, or a data URI). Of every cell the `most` lowest seeds are taken."""
    once = {row["id"]: row for row in rows if row["kind"] == "quality" and row["_samples"]}
    items: list[dict[str, Any]] = []
    written: list[Path] = []
    for line in pair(once.values()):
        row = line.quality or {}
        folder = results / "cells" / row["id"][:2] / row["id"]
        found = sorted((int(Path(name).stem), folder / name) for name in row["_samples"]
                       if Path(name).stem.isdigit() and Path(name).suffix in TYPES and (folder / name).is_file())
        if not found:
            continue
        seeds = {}
        for seed, path in found[:most]:
            target = out / "samples" / row["id"] / f"{seed}{path.suffix}"
            seeds[str(seed)] = _embedded(path) if embed else target.relative_to(out).as_posix()
            if not embed:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
                written.append(target)
        items.append({"method": line.method, "role": BASELINES.get(row["adapter"]), "height": line.height, "width": line.width,
                      "resolution": resolution_text(line.height, line.width), "setting": _setting(line), "id": row["id"],
                      "rank": [line.steps or 0, -line.sparsity], "seeds": seeds})
    return {"items": items}, written


def _setting(line: Any) -> str:
    """What was asked for besides the resolution; the sparsity only where there is some."""
    names = [name for name in ("steps", "sparsity", "options") if name != "sparsity" or line.sparsity]
    return settings_text(line, names) or "no settings"


def _embedded(path: Path) -> str:
    return f"data:{TYPES[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"
