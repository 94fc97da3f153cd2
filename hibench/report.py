"""From records to tables, plots and an index page; reads only the results directory and never imports torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hibench import tables, typeset
from hibench.errors import HibenchError, SpecError, did_you_mean
from hibench.tables import Row, number
from hibench.typeset import escape_markdown

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FORMATS", "flatten", "hardware_name", "load_records", "load_table", "records_csv", "sweep_rows", "write_report"]

FORMATS = ("md", "csv", "tex", "png", "pdf")
SCHEMA = 1
FIRST = ("key", "method", "kind", "status", "height", "width", "steps", "sparsity", "latency_p50_s", "latency_p90_s",
         "latency_lo_s", "latency_hi_s", "peak_bytes", "peak_source", "weights_bytes", "first_image_s", "load_s", "flops",
         "nfe", "energy_j_per_image", "n", "reason", "flags", "id", "parameters")
COUNTS = ("height", "width", "steps", "peak_bytes", "weights_bytes", "flops", "nfe", "n", "parameters", "images", "processes")


def load_records(results: Path) -> list[dict[str, Any]]:
    """Every record under results/cells, ordered by key and id.

    Raises HibenchError when there is none, or when a record cannot be read (the message names the file)."""
    paths = sorted((Path(results) / "cells").glob("*/*/record.json"))
    if not paths:
        raise HibenchError(f"no records in {results}: nothing was run there; next: hibench run benchmarks.yaml")
    records = [_read(path) for path in paths]
    for path, record in zip(paths, records):
        if record.get("schema") != SCHEMA:
            raise HibenchError(f"{path}: record of schema {record.get('schema')!r}, this hibench reads {SCHEMA}; "
                               "next: use the hibench that wrote it, or run the cell again")
    return sorted(records, key=lambda record: (record["key"], record["id"]))


def _read(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise HibenchError(f"{path}: cannot be read ({error}); next: delete its folder and run again") from error
    if not isinstance(read, dict):
        raise HibenchError(f"{path}: holds no JSON object; next: delete its folder and run again")
    return read


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
        "extractor": ";".join(extractors) or None, "hardware": hardware_name(env.get("hardware") or {}),
        "hardware_digest": env.get("hardware_digest"), "software_digest": env.get("software_digest"),
        "adapter_digest": method.get("adapter_digest"), "weights_digest": method.get("weights_digest"),
        "commit": git.get("commit"), "dirty": git.get("dirty"), "started_at": record.get("started_at"),
        "wall_s": number(record.get("wall_s")),
        "method_options": json.dumps(method.get("options") or {}, sort_keys=True),
    }
    for name in ("latency_p50_s", "latency_p90_s", "peak_bytes", "weights_bytes", "first_image_s", "load_s", "flops", "nfe",
                 "energy_j_per_image"):
        row[name] = number(speed.get(name))
    row["_options"] = axes.get("options") or {}
    row["_metrics"] = {name: entry for name, entry in metrics.items() if name not in broken}
    row["_missing"] = {**(quality.get("missing") or {}), **broken}
    row["_flags"] = [str(flag.get("text") or flag.get("name")) for flag in record.get("flags") or ()]
    row["_samples"] = list(quality.get("samples") or ())
    row["_intervals"] = {"latency_p50_s": (span[0], span[1]), "peak_bytes": _peak_range(speed, row["peak_bytes"])}
    row["_env"] = env
    return row


def _peak_range(speed: dict[str, Any], peak: float | None) -> tuple[float | None, float | None]:
    """Smallest and largest peak over the processes, widened to hold the reported one; (None, None) below two processes."""
    peaks = []
    for process in speed.get("processes") or ():
        allocated = number(process.get("peak_allocated_bytes"))
        resident, idle = number(process.get("peak_rss_bytes")), number(process.get("idle_rss_bytes"))
        over_idle = None if resident is None or idle is None else resident - idle
        value = allocated if speed.get("peak_source") == "cuda-allocated" else over_idle
        peaks += [] if value is None else [value]
    if len(peaks) < 2 or peak is None:
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


def hardware_name(hardware: dict[str, Any]) -> str:
    """A short name of a machine: its GPUs, or its CPU with the number of cores."""
    gpus = hardware.get("gpus") or hardware.get("gpu") or []
    gpus = gpus if isinstance(gpus, list) else [gpus]
    names = [str(gpu.get("name", "GPU")) if isinstance(gpu, dict) else str(gpu) for gpu in gpus]
    if names:
        return ", ".join(f"{names.count(name)} × {name}" if names.count(name) > 1 else name for name in sorted(set(names)))
    cpu = next((hardware[key] for key in ("cpu", "cpu_model", "cpu_name", "machine") if hardware.get(key)), "unknown machine")
    inside = cpu if isinstance(cpu, dict) else hardware
    name = str(inside.get("name") or inside.get("model") or "CPU") if isinstance(cpu, dict) else str(cpu)
    cores = next((inside[key] for key in ("cores", "cpu_count", "logical_cores", "threads") if inside.get(key)), None)
    return f"{name} ({cores} cores)" if cores else name


def load_rows(results: Path) -> list[Row]:
    """All records as flat rows; machines with the same name but another digest are told apart by their digest."""
    rows = [flatten(record) for record in load_records(results)]
    digests: dict[str, set[str]] = {}
    for row in rows:
        digests.setdefault(row["hardware"], set()).add(str(row["hardware_digest"]))
    for row in rows:
        if len(digests[row["hardware"]]) > 1:
            row["hardware"] = f"{row['hardware']} [{str(row['hardware_digest'])[:6]}]"
    return rows


def load_table(results: Path) -> "pd.DataFrame":
    """One row per record: key, method, axes, numbers in base units, a column per metric and `<metric>_pm`."""
    return _frame(load_rows(results))


def _frame(rows: list[Row]) -> "pd.DataFrame":
    import pandas as pd

    metrics = tables.metric_names(row for row in rows if row["kind"] != "speed")
    options = sorted({name for row in rows for name in row["_options"]})
    flat = []
    for row in rows:
        one = {name: value for name, value in row.items() if not name.startswith("_")}
        one |= {f"option.{name}": row["_options"].get(name) for name in options}
        for name in metrics:
            entry = row["_metrics"].get(name) or {}
            one |= {name: number(entry.get("value")), f"{name}_pm": number(entry.get("pm"))}
        flat.append(one)
    named = [f"option.{name}" for name in options], [part for name in metrics for part in (name, f"{name}_pm")]
    rest = [name for name in flat[0] if name not in FIRST and name not in (*named[0], *named[1])]
    frame: pd.DataFrame = pd.DataFrame(flat, columns=[*FIRST, *named[0], *named[1], *rest])
    for name in [str(column) for column in frame.columns]:
        if name in named[1] or name.endswith(("_s", "_j_per_image")) or name in COUNTS:
            frame[name] = frame[name].astype("float64")
        if name in COUNTS and bool((frame[name].dropna() % 1 == 0).all()):
            frame[name] = frame[name].astype("Int64")
    return frame


def records_csv(results: Path) -> str:
    """The tidy table of all records as CSV; empty fields where a number is unknown."""
    return str(load_table(results).to_csv(index=False, lineterminator="\n"))


def sweep_rows(results: Path, rows: list[Row]) -> dict[str, list[Row]]:
    """The rows of every sweep, as the newest manifest that names the sweep lists its keys.

    A quality key gives its newest row. A speed key gives one row per machine, as long as method and weights are the same.
    A key without a record gives a row of status `not run`. Without any manifest everything is one sweep, `all`.
    """
    manifests = [_read(path) for path in sorted((Path(results) / "runs").glob("*.json"), reverse=True)]
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


def _answers(key: str, found: list[Row], manifests: list[dict[str, str]]) -> list[Row]:
    """The rows that answer a key, newest manifest first; rows that no manifest names only when there is no other."""
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


def write_report(results: Path, out: Path, *, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Write records.csv, tables/, plots/ and report.md under `out`; returns the paths written, in order.

    The same records give the same bytes. Raises HibenchError without records, SpecError for an unknown format."""
    for name in formats:
        if name not in FORMATS:
            raise SpecError(f"unknown report format '{name}'{did_you_mean(name, FORMATS)}; known: {', '.join(FORMATS)}")
    results, out = Path(results), Path(out)
    rows = load_rows(results)
    written: list[Path] = []
    if "csv" in formats:
        written.append(_put(out / "records.csv", str(_frame(rows).to_csv(index=False, lineterminator="\n"))))
    sweeps = sweep_rows(results, rows)
    made = {name: tables.build(name, mine) for name, mine in sweeps.items()}
    writers = {"md": typeset.to_markdown, "csv": typeset.to_csv, "tex": typeset.to_latex}
    for name, table in made.items():
        written += [_put(out / "tables" / f"{name}.{kind}", write(table)) for kind, write in writers.items() if kind in formats]
    pictures = [kind for kind in ("png", "pdf") if kind in formats]
    drawn: dict[str, list[tuple[str, list[Path]]]] = {name: [] for name in sweeps}
    if pictures:
        from hibench.plots import write_plots

        for name, caption, paths in write_plots(sweeps, results, out / "plots", pictures):
            drawn[name].append((caption, paths))
            written += paths
    if "md" in formats:
        written.append(_put(out / "report.md", _index(rows, made, drawn, out)))
    return written


def _put(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")
    return path


def _index(rows: list[Row], made: dict[str, tables.Table], drawn: dict[str, list[tuple[str, list[Path]]]], out: Path) -> str:
    """report.md: summary, a section per sweep with table, plots and provenance, failures, environment."""
    counts = {status: sum(row["status"] == status for row in rows) for status in sorted({row["status"] for row in rows})}
    text = ["# Benchmark report", "",
            f"{len(rows)} records: " + ", ".join(f"{count} {status}" for status, count in counts.items())
            + ". Every number below comes from one record; its id stands under *Provenance*, and record `ID` lies in "
            "`cells/<first two letters of ID>/ID/record.json` of the results directory.", ""]
    for name, table in made.items():
        text += [f"## {escape_markdown(name)}", "", typeset.to_markdown(table)]
        for caption, paths in drawn[name]:
            files = [path.relative_to(out).as_posix() for path in paths]
            shown = next((file for file in files if file.endswith(".png")), None)
            links = ", ".join(f"[{file.rsplit('.', 1)[1].upper()}]({file})" for file in files)
            said = escape_markdown(caption)
            text += [*([f"![{said}]({shown})", ""] if shown else []), f"{said} ({links})", ""]
        text += _provenance(table)
    failed = [row for row in rows if row["status"] != "ok" or row["_missing"]]
    if failed:
        text += ["## Cells without a full result", "", "| Cell | Status | Reason | Record |", "|---|---|---|---|"]
        for row in failed:
            missing = "; ".join(f"{name}: {reason}" for name, reason in row["_missing"].items())
            why = escape_markdown(row["reason"] or missing)
            text.append(f"| {escape_markdown(row['key'])} | {row['status']} | {why} | `{row['id']}` |")
        text.append("")
    return "\n".join([*text, *_environment(rows)]).rstrip() + "\n"


def _provenance(table: tables.Table) -> list[str]:
    """The record ids of every line, folded away."""
    text = ["<details><summary>Provenance: the record of each number</summary>", "",
            "| Method | Axes | Hardware | Speed record | Quality record |", "|---|---|---|---|---|"]
    for line in table.lines:
        axes = f"{tables.resolution_text(line.height, line.width)}, {tables.settings_text(line)}"
        ids = [f"`{row['id']}`" if row and row["id"] else tables.NOTHING for row in (line.speed, line.quality)]
        said = [escape_markdown(one) for one in (line.name, axes, line.hardware or tables.NOTHING)]
        text.append("| " + " | ".join(said + ids) + " |")
    return [*text, "", "</details>", ""]


def _environment(rows: list[Row]) -> list[str]:
    """One table per environment: machine, versions, commit, and how many records came from it."""
    seen: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        place = tuple(str(row[name]) for name in ("hardware", "hardware_digest", "software_digest", "commit", "dirty"))
        seen.setdefault(place, []).append(row)
    text = ["## Environment", ""]
    for (hardware, _, _, commit, dirty), mine in sorted(seen.items(), key=lambda item: item[0]):
        env = mine[0]["_env"]
        state = " with uncommitted changes" if dirty == "True" else ""
        text += [f"### {escape_markdown(hardware)}", "", f"{len(mine)} records, commit `{commit}`{state}.", "", "| | |"]
        leaves = [leaf for part in ("hardware", "software") for leaf in _leaves(env.get(part) or {}, "")]
        text += ["|---|---|", *(f"| {escape_markdown(name)} | {escape_markdown(value)} |" for name, value in leaves)]
        text.append("")
    return text


def _leaves(tree: Any, path: str) -> Iterable[tuple[str, str]]:
    """Every scalar of nested JSON with its path; byte counts also in GiB (2^30 bytes)."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield from _leaves(value, f"{path}.{name}" if path else str(name))
    elif isinstance(tree, list):
        for position, value in enumerate(tree):
            yield from _leaves(value, f"{path}[{position}]")
    elif tree is not None:
        size = number(tree) if path.endswith("_bytes") else None
        yield path, f"{tree} ({size / 2**30:.1f} GiB)" if size else str(tree)
