"""Imported once by the server from which `runner_tools.ForkEngine` forks its workers: everything they need is warm."""

import gc
import tempfile

import adapters  # noqa: F401
import torch

from hibench.features import count_bad  # noqa: F401
from hibench.worker import run_job

torch.set_num_threads(1)                                       # threads do not survive a fork
with tempfile.TemporaryDirectory() as folder:
    run_job({"task": "speed", "out": folder, "cell": {"kind": "speed", "adapter": "toy", "height": 8, "width": 8, "steps": 1,
                                                      "device": "cpu", "settings": {"images": 1, "warmup": 1}}})
gc.collect()
gc.freeze()                                                    # so that collecting in a worker looks at its own objects only
