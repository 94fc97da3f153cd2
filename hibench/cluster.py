"""What the machines of a Ray cluster are and have installed, compared with the driver's before anything runs there."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hibench.cells import Cell
from hibench.env import THREAD_VARIABLES, describe
from hibench.errors import HibenchError, Unfit
from hibench.prepare import Task, prepare

__all__ = ["Host", "Survey", "adopt_threads", "answer", "choose", "look", "mismatch", "source_digest", "usable", "versions"]

SHOWN = 4  # differences that a message names
ALONE = "hibench_host"  # a custom resource, 1 per machine: who holds all of it is alone there


@dataclass(frozen=True)
class Survey:
    """What one machine says about itself."""

    versions: dict[str, str]  # name -> version, of what decides a number
    methods: dict[str, tuple[str, str]]  # method -> digests of its source and of its weights
    env: dict[str, Any] = field(default_factory=dict)  # as in a record
    tasks: tuple[Task, ...] = ()  # the cells, with ids and verdicts as they are there
    error: str | None = None  # why it could not look


@dataclass(frozen=True)
class Host:
    """One machine of the cluster, with what Ray may hand out there."""

    id: str
    name: str
    cpus: float
    gpus: float
    alone: float = 0.0  # of the custom resource hibench_host

    def everything(self) -> dict[str, Any]:
        """Ray options of a task that has this machine to itself."""
        wanted: dict[str, Any] = {"num_cpus": self.cpus, "num_gpus": self.gpus}
        return {**wanted, "resources": {ALONE: self.alone}} if self.alone else wanted


def usable(nodes: Iterable[Mapping[str, Any]]) -> list[Host]:
    """The living machines of `ray.nodes()` that may run anything, by name; Unfit when there is none."""
    hosts = []
    for node in nodes:
        has = node.get("Resources") or {}
        host = Host(node["NodeID"], node["NodeName"], has.get("CPU", 0.0), has.get("GPU", 0.0), has.get(ALONE, 0.0))
        if node.get("Alive") and (host.cpus >= 1 or host.gpus >= 1):
            hosts.append(host)
    if not hosts:
        raise Unfit("the Ray cluster has no machine with a CPU or a GPU to hand out; look at `ray status`")
    return sorted(hosts, key=lambda host: (host.name, host.id))


def look(cells: Sequence[Cell], device: str | None, threads: Mapping[str, str]) -> Survey:
    """Survey of the machine on which this is called; raises what `hibench.prepare.prepare` raises."""
    adopt_threads(threads)
    env = describe()
    tasks = prepare(cells, env, device)
    return Survey(versions(env["software"]), _digests(tasks), env, tuple(tasks))


def answer(cells: Sequence[Cell], device: str | None, threads: Mapping[str, str]) -> Survey:
    """The Ray task around `look`: what hibench raises on purpose comes back as a value."""
    try:
        return look(cells, device, threads)
    except HibenchError as error:
        return Survey(versions(), {}, error=str(error))


def _digests(tasks: Iterable[Task]) -> dict[str, tuple[str, str]]:
    return {task.cell.method: (task.adapter_digest, task.weights_digest or "") for task in tasks}


def adopt_threads(threads: Mapping[str, str]) -> None:
    """Take over the driver's thread settings: Ray sets some of its own, which would change hibench's numbers."""
    for name in THREAD_VARIABLES:
        if name in threads:
            os.environ[name] = threads[name]
        else:
            os.environ.pop(name, None)


def versions(software: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Versions that have to agree: hibench (its source), Python to the minor version, torch and every package of `env`."""
    import hibench

    software = software or describe()["software"]
    python = ".".join(platform.python_version_tuple()[:2])
    named = {"hibench": f"{hibench.__version__} ({source_digest()})", "python": python, "torch": str(software.get("torch"))}
    return {**{name: str(version) for name, version in (software.get("packages") or {}).items()}, **named}


def source_digest(package: Path | None = None) -> str:
    """8 hex digits of the Python files of a package (None: hibench)."""
    package = package or Path(__file__).parent
    total = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        total.update(f"{path.relative_to(package)}\n".encode() + path.read_bytes())
    return total.hexdigest()[:8]


def mismatch(here: Survey, there: Survey) -> str | None:
    """What differs between the driver and another machine, most important first; None = nothing that matters."""
    if there.error is not None:
        return there.error
    first = ("hibench", "torch", "python")
    names = [*first, *sorted({*here.versions, *there.versions} - set(first))]
    found = [
        f"{name} {there.versions.get(name, 'missing')} and {here.versions.get(name, 'none')} here"
        for name in names
        if there.versions.get(name) != here.versions.get(name)
    ]
    for method, (code, weights) in sorted(here.methods.items()):
        other = there.methods.get(method, ("", ""))
        found += [f"another source of method {method}"] * (other[0] != code)
        found += [f"{'other' if other[1] else 'no'} weights of method {method}"] * (other[1] != weights)
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return ", ".join(found[:SHOWN]) + more if found else None


def choose(surveys: Mapping[Host, Survey]) -> list[Host]:
    """The machines on which speed is measured: the largest group of equal hardware and software, GPUs before CPUs."""
    groups: dict[tuple[str, str], list[Host]] = {}
    for host, survey in surveys.items():
        groups.setdefault((survey.env["hardware_digest"], survey.env["software_digest"]), []).append(host)
    return max(
        groups.values(), key=lambda hosts: (hosts[0].gpus > 0, len(hosts), sum(host.gpus or host.cpus for host in hosts))
    )
