"""What a check reads of a record: one number per process in place of its samples, and metrics without their descriptions."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from hibench.record_index import interned

__all__ = ["DISTURBED", "PER_PROCESS", "SPEED", "VALUE", "excerpt"]

RECORD = ("key", "id", "kind", "status", "reason", "failure", "flags", "env", "device", "hibench", "started_at", "drift")
DISTURBED = frozenset({"throttled", "contended"})              # flags that say that the machine disturbed a measurement
SPEED = ("nfe", "flops", "weights_bytes", "peak_bytes", "peak_source", "latency_p50_s", "first_image_s", "load_s")
VALUE = ("value", "pm", "n", "n_reference", "extractor", "weights_sha256", "resize", "reference_digest", "better")
PER_PROCESS: dict[str, tuple[str, Callable[[dict[str, Any]], Any]]] = {                        # unit, number of a process
    "latency": ("s", lambda process: statistics.median(process["latency_s"])),
    "first_image": ("s", lambda process: process["first_image_s"]),
    "load": ("s", lambda process: process["load_s"]),
    "energy": ("J", lambda process: process["energy_j_per_image"]),
    "memory": ("bytes", lambda process: process["peak_rss_bytes"] - process["idle_rss_bytes"]),
}


def excerpt(record: dict[str, Any]) -> dict[str, Any]:
    """A record with what a check reads of it, a third of its size.

    `speed.per_process` holds a list per name of `PER_PROCESS`, in the order of the replicates.
    """
    made = interned({name: record[name] for name in RECORD if name in record})
    if speed := record.get("speed"):
        made["speed"] = interned({name: speed.get(name) for name in (*SPEED, "latency_ci_s")})
        processes = speed.get("processes") or ()
        made["speed"]["per_process"] = {name: _numbers(processes, of) for name, (_, of) in PER_PROCESS.items()}
    if quality := record.get("quality"):
        made["quality"] = {"values": {name: interned({part: entry[part] for part in VALUE if part in entry})
                                      for name, entry in (quality.get("values") or {}).items()}}
    return made


def _numbers(processes: Any, of: Callable[[dict[str, Any]], Any]) -> list[float]:
    """A number of every process; [] when some process does not know it."""
    found = []
    for process in processes:
        try:
            value = of(process)
        except (KeyError, TypeError, statistics.StatisticsError):
            return []
        if not isinstance(value, (int, float)):
            return []
        found.append(float(value))
    return found
