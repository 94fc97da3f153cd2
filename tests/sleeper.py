"""Methods that only sleep, and a worker for them without torch: `python sleeper.py JOB.json`, so that processes start fast.

The worker is hibench's own as far as timing goes (hibench.timing, hibench.stages); images are not looked at.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path


class Sleeper:
    """Sleeps `seconds` per image, by process `spread` (relative, or in two `modes`) longer or shorter; holds `memory_bytes`.

    Fails from `fails_above` pixels of a side on, as a method does that has run out of memory.
    """

    name = "sleeper"
    axes = frozenset({"resolution"})

    def __init__(self, weights="reference", options=None, device="cpu", dtype="float32"):
        self.options = {"seconds": 0.01, "spread": 0.0, "modes": 0.0, "memory_bytes": 0, "fails_above": 0, "entropy": None,
                        **(options or {})}
        self.held = b""

    def supports(self, axes):
        return None

    def load(self):
        rng = random.Random(self.options["entropy"])             # None: of this process
        self.factor = 1 + rng.gauss(0, 1) * self.options["spread"] + rng.choice((-1, 1)) * self.options["modes"]
        self.held = bytes(1) * int(self.options["memory_bytes"])

    def generate(self, resolution, seed, *, steps=None, sparsity=0.0, prompt=None, stage=None):
        limit = self.options["fails_above"]
        if limit and max(resolution) > limit:
            raise MemoryError("cannot hold the canvas")
        time.sleep(self.options["seconds"] * self.factor)

    def close(self):
        self.held = b""


class Slower(Sleeper):
    """The same, 10 % slower."""

    def generate(self, resolution, seed, **more):
        super().generate(resolution, seed, **more)
        time.sleep(0.1 * self.options["seconds"] * self.factor)


def run(job):
    """The worker's task `speed`."""
    import psutil

    from hibench.memory import oom_failure
    from hibench.timing import measure
    from hibench.worker import write_json

    cell, settings = job["cell"], job["cell"]["settings"]
    adapter = Slower if cell["adapter"].endswith(":Slower") else Sleeper
    made, out = adapter(options=cell["options"]), Path(job["out"])
    idle = psutil.Process().memory_info().rss
    made.load()
    try:
        timed = measure(lambda seed, stage: made.generate((cell["height"], cell["width"]), seed), images=settings["images"],
                        warmup=settings["warmup"])
    except MemoryError as error:
        class NoState:
            state = staticmethod(lambda: {"allocated_bytes": None, "reserved_bytes": None, "free_bytes": None})

        failure = oom_failure(error, "denoise", NoState())
        write_json(out / f"speed-{job['replicate']}.json",
                   {"status": "oom", "reason": failure["message"], "failure": failure, "process": None})
        return
    process = {"replicate": job["replicate"], "import_s": 0.0, "load_s": 0.001, "first_image_s": timed.first_image_s,
               "warmup_images": timed.warmup_images, "latency_s": timed.latency_s, "weights_bytes": 1000,
               "peak_allocated_bytes": None, "idle_rss_bytes": idle, "peak_rss_bytes": psutil.Process().memory_info().rss,
               "flops": 1000, "nfe": 1, "energy_j_per_image": None, "flags": []}
    write_json(out / f"speed-{job['replicate']}.json", {"status": "ok", "reason": None, "failure": None, "process": process})


if __name__ == "__main__":
    import json

    run(json.loads(Path(sys.argv[1]).read_text()))
