"""What the cells of a benchmark file need that this machine may lack: their weights, networks of metrics, reference images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hibench.doctor import Check
from hibench.errors import HibenchError
from hibench.prepare import Task

__all__ = ["look_ahead"]

TOLD = 5                                   # reasons of one sort


def look_ahead(spec: Path, only: Sequence[str] = (), overrides: Sequence[str] = (), device: str | None = None) -> list[Check]:
    """One point per thing that is missing or damaged, or one that all is there. Raises SpecError, UnknownMethod and Unfit.

    Weights are hashed, as `hibench run` would; nothing is downloaded or loaded."""
    from hibench.cells import expand
    from hibench.env import describe
    from hibench.prepare import prepare
    from hibench.spec import load_spec

    tasks = prepare(expand(load_spec(spec, overrides), only), describe(), device)
    quality = [task for task in tasks if task.verdict is None and task.cell.kind == "quality"]
    return [*_cells(tasks), *_networks(quality), *_references(quality)]


def _cells(tasks: Sequence[Task]) -> Iterator[Check]:
    """Cells that cannot run, by reason."""
    lost = Counter(task.verdict.reason for task in tasks if task.verdict and task.verdict.status != "skip")
    skipped = Counter(task.verdict.reason for task in tasks if task.verdict and task.verdict.status == "skip")
    for reason, count in list(lost.items())[:TOLD]:
        yield Check("cells", "fail", f"{count} of {len(tasks)} cells cannot run", reason)
    run = len(tasks) - sum(lost.values()) - sum(skipped.values())
    text = f"{run} of {len(tasks)} cells can run" + "".join(f", {n} skipped: {why}" for why, n in list(skipped.items())[:1])
    if run == 0:
        yield Check("cells", "fail", text, "ask for other cells, or mend what is said above")
    elif not lost:
        yield Check("cells", "ok", text)


def _networks(tasks: Iterable[Task]) -> Iterator[Check]:
    """Published networks that metrics need: there, and as published."""
    from hibench.features import EXTRACTORS
    from hibench.metrics.plan import TRUNKS, parse
    from hibench.weights import resolve

    wanted: dict[str, str] = {}                                  # weights by name, and the metric that asks first
    for task in tasks:
        for metric in task.cell.settings["metrics"]:
            request = parse(metric, task.cell.settings["extractor"])
            entry = EXTRACTORS.get(request.extractor) if request.family.source == "features" else None
            name = entry.weights if entry else TRUNKS.get(request.family.name)
            if name:
                wanted.setdefault(name, metric)
    good = []
    for name, metric in wanted.items():
        try:
            good.append(resolve(name, user=metric).path.name)
        except HibenchError as error:
            yield Check("networks", "fail", f"{metric} cannot be measured", str(error))
    if len(good) == len(wanted):
        yield Check("networks", "ok", f"{', '.join(good)}: as published" if good else "the metrics need no published network")


def _references(tasks: Iterable[Task]) -> Iterator[Check]:
    """Reference images: there, as many as asked for, and not smaller than the samples."""
    from hibench.references import open_reference
    from hibench.references.folder import FolderReference

    asked: dict[str, tuple[Any, int, tuple[int, int]]] = {}      # by name: definition, samples, largest sides
    for task in tasks:
        cell, settings = task.cell, task.cell.settings
        definition = settings["reference"]
        name = definition["name"]
        _, count, (height, width) = asked.get(name, (None, 0, (0, 0)))
        asked[name] = (definition, max(count, settings["images"]), (max(height, cell.height), max(width, cell.width)))
    for name, (definition, count, (height, width)) in asked.items():
        try:
            reference = open_reference(definition, n=count)
            size = reference.size if isinstance(reference, FolderReference) else None
        except HibenchError as error:
            yield Check("reference", "fail", f"{name} cannot be read", str(error))
            continue
        here = f"{name} has {len(reference)} images"
        if size and (size[0] < height or size[1] < width):
            yield Check("reference", "fail", f"{here} of {size[1]}x{size[0]} px, and samples are {width}x{height} px",
                        "use larger reference images or a smaller resolution")
        elif len(reference) < count:
            yield Check("reference", "warn", f"{here}, and cells have {count} samples",
                        "add images: distances of few images are biased")
        else:
            yield Check("reference", "ok", here)
