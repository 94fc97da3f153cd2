"""A method that is killed once in the middle of its samples, for tests of resuming."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import ClassVar

from hibench.toy import Toy


class KilledOnce(Toy):
    """Dies by SIGKILL when it makes seed 6, unless the file `marker` is there; notes every seed in the file `seeds`."""

    OPTIONS: ClassVar = {**Toy.OPTIONS, "marker": "", "seeds": ""}

    def generate_batch(self, resolution, seeds, **kwargs):
        marker = Path(self.options["marker"])
        if 6 in seeds and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        with Path(self.options["seeds"]).open("a") as file:
            file.write("".join(f"{seed}\n" for seed in seeds))
        return super().generate_batch(resolution, seeds, **kwargs)
