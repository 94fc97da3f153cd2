"""Records as flat rows, and which rows a sweep has; reads only the results directory."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from hibench import columns, lines
from hibench.columns import ORDER
from hibench.errors import HibenchError
from hibench.lines import Row, number
from hibench.record_index import interned
from hibench.record_index import load_records as load_records_of
from hibench.weights import digest_of

__all__ = ["flatten", "hardware_name", "honest", "load_records", "load_rows", "sweep_rows"]


def load_records(results: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Every readable record under results/cells by key and id, and one sentence for each that cannot be read.

    Raises HibenchError when there is none, and for records that a newer hibench wrote."""
    return _some(results, load_records_of(Path(results).absolute()))


def _some(results: Path, loaded: tuple[list[Row], list[str]]) -> tuple[list[Row], list[str]]:
    """What was loaded; HibenchError when there is nothing."""
    taken, problems = loaded
    if not taken:
        broken = f" ({len(problems)} cannot be read: {problems[0]})" if problems else ""
        raise HibenchError(f"no records in {results}{broken}; next: hibench run benchmarks.yaml")
    return taken, problems


def flatten(record: dict[str, Any]) -> Row:
    """A record as one flat row; keys with an underscore hold what does not fit a cell of a table."""
    speed, quality, env = record.get("speed") or {}, record.get("quality") or {}, record.get("env") or {}
    method, axes, git = record["method"], record["axes"], (env.get("git") or {})
    metrics = dict(quality.get("values") or {})
    broken = {name: f"not a finite number ({entry.get('value')})" for name, entry in metrics.items()
              if number(entry.get("value")) is None}
    span = [number(end) for end in speed.get("latency_ci_s") or ()] or [None, None]
    extractors = sorted({str(entry["extractor"]) for entry in metrics.values() if entry.get("extractor")})
    row: Row = {
        "key": record["key"], "method": method["name"], "kind": record["kind"], "status": record["status"],
        "height": axes["height"], "width": axes["width"], "steps": axes.get("steps"),
        "sparsity": number(axes.get("sparsity")) or 0.0,
        "latency_lo_s": span[0], "latency_hi_s": span[1], "peak_source": speed.get("peak_source"),
        "n": number(quality.get("n") if quality else speed.get("images")), "reason": _reason(record),
        "flags": ";".join(str(flag.get("name")) for flag in record.get("flags") or ()), "id": record["id"],
        "parameters": number(method.get("parameters")), "adapter": method.get("adapter"), "weights": method.get("weights"),
        "images": number(speed.get("images")), "processes": len(speed.get("processes") or ()) or None,
        "extractor": ";".join(extractors) or None,
        "hardware": hardware_name(env.get("hardware") or {}, (speed.get("processes") or [{}])[0]),
        "hardware_digest": env.get("hardware_digest"), "software_digest": env.get("software_digest"),
        "adapter_digest": method.get("adapter_digest"), "weights_digest": method.get("weights_digest"),
        "commit": git.get("commit"), "dirty": git.get("dirty"), "started_at": record.get("started_at"),
        "wall_s": number(record.get("wall_s")),
        "method_options": json.dumps(method["options"], sort_keys=True) if method.get("options") else "{}",
    }
    for name in ("latency_p50_s", "latency_p90_s", "peak_bytes", "weights_bytes", "first_image_s", "load_s", "flops", "nfe",
                 "energy_j_per_image"):
        row[name] = number(speed.get(name))
    row["coordinates"] = _effective(speed, "coordinates")
    row["_options"] = axes.get("options") or {}
    row["_metrics"] = {name: interned(entry) for name, entry in metrics.items() if name not in broken}
    extractor = str((record.get("settings") or {}).get("extractor") or "")
    missing, inapplicable = ({honest(name, extractor): str(why) for name, why in (quality.get(part) or {}).items()}
                             for part in ("missing", "inapplicable"))
    row["_missing"], row["_inapplicable"] = {**missing, **broken}, inapplicable
    row["_flags"] = [str(flag.get("text") or flag.get("name")) for flag in record.get("flags") or ()]
    row["_samples"] = list(quality.get("samples") or ())
    row["_intervals"] = {"latency_p50_s": (span[0], span[1]), "peak_bytes": _peak_range(speed, row["peak_bytes"])}
    row["_env"] = env
    return interned(row)


def honest(name: str, extractor: str) -> str:
    """The name that a metric asked for by its family would carry: `fid` with scenes-clip is `fd@scenes-clip`."""
    if name not in ORDER or extractor in ("", "inception-v3-compat"):
        return name
    family = {"fid": "fd", "kid": "kd"}.get(name, name)
    return f"{family}@{extractor}"


def _effective(speed: dict[str, Any], name: str) -> float | None:
    """What the method said it did for one image, median over processes; None when no process says."""
    said = [number((process.get("effective") or {}).get(name)) for process in speed.get("processes") or ()]
    known = [one for one in said if one is not None]
    return statistics.median_low(known) if known else None


def _peak_range(speed: dict[str, Any], peak: float | None) -> tuple[float | None, float | None]:
    """Smallest and largest peak over the processes, widened to hold the reported one; (None, None) below two processes."""
    processes = speed.get("processes") or ()
    if len(processes) < 2 or peak is None:
        return None, None
    if speed.get("peak_source") == "cuda-allocated":
        known = [number(process.get("peak_allocated_bytes")) for process in processes]
    else:
        both = [(number(process.get("peak_rss_bytes")), number(process.get("idle_rss_bytes"))) for process in processes]
        known = [None if resident is None or idle is None else resident - idle for resident, idle in both]
    peaks = [value for value in known if value is not None]
    if len(peaks) < 2:
        return None, None
    return min(*peaks, peak), max(*peaks, peak)


def _reason(record: dict[str, Any]) -> str | None:
    """Why a cell is not ok, in one line; None for a cell that is."""
    failure = record.get("failure") or {}
    said = record.get("reason") or failure.get("message")
    if failure.get("stage") and said:
        said = f"in {failure['stage']}: {said}"
    wanted = number(failure.get("requested_bytes"))
    if wanted and "iB" not in str(said):
        said = f"{said or 'out of memory'} (asked for {wanted / 2**30:.2f} GiB)"
    return " ".join(str(said).split()) if said else None


def hardware_name(hardware: dict[str, Any], process: dict[str, Any] | None = None) -> str:
    """A short name of what did the work: the device of a process where that is known, else the GPUs, else the CPU."""
    process = process or {}
    if process.get("device_name"):
        return str(process["device_name"])
    names = [] if process.get("device") == "cpu" else [str(gpu.get("name")) for gpu in hardware.get("gpus") or ()]
    if names:
        return ", ".join(f"{names.count(name)} × {name}" if names.count(name) > 1 else name for name in sorted(set(names)))
    cores = hardware.get("usable_cores") or hardware.get("cores")
    return str(hardware.get("cpu") or "unknown machine") + (f" ({cores} cores)" if cores else "")


def load_rows(results: Path) -> tuple[list[Row], list[str]]:
    """All records as flat rows, and the sentences about unreadable ones.

    Machines with the same name but another digest are told apart by their digest; a failed cell counts to the device on which
    the other cells of its machine ran."""
    code = digest_of("rows", [Path(file) for file in (__file__, lines.__file__, columns.__file__)])
    rows, problems = _some(results, load_records_of(Path(results).absolute(), flatten, code))
    devices: dict[str, set[str]] = {}
    digests: dict[str, set[str]] = {}
    for row in rows:
        if row["kind"] == "speed" and row["status"] == "ok":
            devices.setdefault(str(row["hardware_digest"]), set()).add(row["hardware"])
            digests.setdefault(row["hardware"], set()).add(str(row["hardware_digest"]))
    for row in rows:
        ran_on = devices.get(str(row["hardware_digest"]), set())
        if row["status"] != "ok" and len(ran_on) == 1:
            row["hardware"] = next(iter(ran_on))
        if len(digests.get(row["hardware"], ())) > 1:
            row["hardware"] = f"{row['hardware']} [{str(row['hardware_digest'])[:6]}]"
    return rows, problems


def sweep_rows(results: Path, rows: list[Row]) -> dict[str, list[Row]]:
    """The rows of every sweep, as the newest manifest that names the sweep lists its keys.

    A quality key gives its newest row. A speed key gives one row per machine, as long as method and weights are the same.
    A key without a record gives a row of status `not run`. Without any manifest everything is one sweep, `all`.
    """
    manifests = [_read(path) for path in sorted((Path(results) / "runs").glob("*.json"), key=_written, reverse=True)]
    sweeps: dict[str, list[str]] = {}
    for manifest in manifests:
        for name, keys in (manifest.get("sweeps") or {}).items():
            sweeps.setdefault(name, list(keys))
    by_key: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (str(row["started_at"]), row["id"]), reverse=True):
        by_key.setdefault(row["key"], []).append(row)
    if not sweeps:
        sweeps = {"all": sorted(by_key)}
    rank = [manifest.get("cells") or {} for manifest in manifests]
    return {name: [row for key in dict.fromkeys(keys) for row in _answers(key, by_key.get(key, []), rank)]
            for name, keys in sweeps.items()}


def _written(path: Path) -> tuple[str, int]:
    """Order of manifests: their time, then the suffix of a second one in the same second."""
    time, _, suffix = path.stem.partition("-")
    return time, int(suffix) if suffix.isdigit() else 1


def _read(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise HibenchError(f"{path}: cannot be read ({error}); next: delete it and run again") from error
    return read if isinstance(read, dict) else {}


def _answers(key: str, found: list[Row], manifests: list[dict[str, str]]) -> list[Row]:
    """The rows that answer a key, newest manifest first; rows that no manifest names only when there is no other."""
    if len(found) == 1:
        return found
    by_id = {row["id"]: row for row in found}
    named = [by_id[ids[key]] for ids in manifests if ids.get(key) in by_id]
    found = list({row["id"]: row for row in named or found}.values())
    if not found:
        return [_not_run(key)]
    code = ("adapter_digest", "weights_digest", "_options")
    same = [row for row in found if all(row[name] == found[0][name] for name in code)]
    if found[0]["kind"] != "speed":
        return same[:1]
    return list({row["hardware"]: row for row in reversed(same)}.values())[::-1]


def _not_run(key: str) -> Row:
    """A row for a key that has no record (yet): what the key says, and nothing else."""
    method, kind, size, *more = key.split("/")
    height, _, width = size.partition("x")
    said = dict(part.partition("=")[::2] for part in more)
    steps, sparsity = said.pop("steps", None), said.pop("sparsity", 0)
    row = flatten({"key": key, "id": "", "kind": kind, "status": "not run", "method": {"name": method, "adapter": method},
                   "axes": {"height": int(height), "width": int(width or height), "steps": int(steps) if steps else None,
                            "sparsity": float(sparsity), "options": said},
                   "reason": "this cell has no record yet; run again to resume"})
    return {**row, "hardware": None}
