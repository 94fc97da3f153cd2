"""A stand-in for hibench.worker without torch: `python stub_worker.py JOB.json`; the cell's options say how to behave."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from hibench.engines import die_with_parent


def write(path: Path, value) -> None:
    path.write_text(json.dumps(value))


def speed(job, options, out: Path) -> None:
    latency = [0.01 * (1 + job["replicate"])] * 3
    process = {"replicate": job["replicate"], "import_s": 0.1, "load_s": 0.1, "first_image_s": 0.02, "latency_s": latency,
               "weights_bytes": 12, "peak_allocated_bytes": None, "idle_rss_bytes": 100, "peak_rss_bytes": 400, "flops": 7,
               "nfe": 4, "parameters": 3, "weights_digest": "w", "flags": []}
    write(out / f"speed-{job['replicate']}.json", {"status": "ok", "reason": None, "failure": None, "process": process})


def quality(job, options, out: Path) -> None:
    for first, count in job["shards"]:
        path = out / f"shard-{first}-{count}.npz"
        if path.exists():
            continue
        with open(options["calls"], "a") as calls:
            calls.write(f"{first}\n")
        seeds = np.arange(first, first + count)
        if first == options.get("stop_at") and not Path(options["marker"]).exists():
            Path(options["marker"]).write_text(str(os.getpid()))
            if options["stop"] == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(300)
        np.savez(out / f".{path.name}.tmp.npz", seeds=seeds, missing=np.array([], dtype=str),
                 **{"stub/embed": np.sin(seeds[:, None] + np.arange(4.0))})
        os.replace(out / f".{path.name}.tmp.npz", path)
        (out / "samples").mkdir(exist_ok=True)
        (out / "samples" / f"{first}.png").write_bytes(b"png")


def score(job, options, out: Path) -> None:
    features = [np.load(out / f"shard-{first}-{count}.npz")["stub/embed"] for first, count in job["shards"]]
    merged = np.concatenate(features)
    write(out / "quality.json", {"n": len(merged), "values": {"fd@stub": {"value": float(np.abs(merged).sum()), "pm": 0.5}},
                                 "missing": options.get("missing", {}),
                                 "inapplicable": options.get("inapplicable", {}), "bad": {"nan": 0, "constant": 0}})


if __name__ == "__main__":
    die_with_parent()
    job = json.loads(Path(sys.argv[-1]).read_text())
    {"speed": speed, "quality": quality, "score": score}[job["task"]](job, job["cell"]["options"], Path(job["out"]))
