"""Methods that misbehave, each in one way: a spec or a test names them as `tests/adapters.py:Class`."""

from __future__ import annotations

import os
import random
import signal
import sys
import time

import numpy as np
import torch

from hibench.adapter import NULL_STAGE, to_uint8
from hibench.errors import MissingWeights
from hibench.toy import Toy


class Small(Toy):
    """A good method without batches, seeds of its own or options."""

    generate_batch = None

    def generate(self, resolution, seed, *, steps=None, sparsity=0.0, prompt=None, stage=NULL_STAGE):
        return Toy.generate_batch(self, resolution, [seed], steps=steps, sparsity=sparsity, stage=stage)[0]


class Raises(Toy):
    def generate_batch(self, *args, **kwargs):
        raise ValueError("the method\nis broken")


class RaisesWhenLoading(Toy):
    def load(self):
        raise RuntimeError("state_dict has unexpected keys")


class Misses(Toy):
    def load(self):
        raise MissingWeights("no weights; get them with: hibench train misses")


class Hangs(Toy):
    def generate_batch(self, *args, **kwargs):
        time.sleep(3600)


class HangsIgnoringSigterm(Toy):
    def generate_batch(self, *args, **kwargs):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(3600)


class ReturnsNaN(Toy):
    def generate_batch(self, resolution, seeds, **kwargs):
        return torch.full((len(seeds), 3, *resolution), float("nan"))


class ReturnsFloat(Toy):
    def generate_batch(self, resolution, seeds, **kwargs):
        return torch.zeros(len(seeds), 3, *resolution)


class ReturnsNone(Toy):
    def generate(self, *args, **kwargs):
        return None


class WrongShape(Toy):
    def generate_batch(self, resolution, seeds, **kwargs):
        return super().generate_batch((resolution[0] + 1, resolution[1]), seeds, **kwargs)


class SwapsSides(Toy):
    def generate_batch(self, resolution, seeds, **kwargs):
        return super().generate_batch(resolution[::-1], seeds, **kwargs)


class Dies(Toy):
    def generate_batch(self, *args, **kwargs):
        os._exit(9)


class ExitsPolitely(Toy):
    def generate_batch(self, *args, **kwargs):
        sys.exit(0)


class KilledBySignal(Toy):
    def generate_batch(self, *args, **kwargs):
        os.kill(os.getpid(), signal.SIGKILL)


class OutOfMemory(Toy):
    """Runs out of device memory while it decodes."""

    def generate_batch(self, resolution, seeds, *, stage=NULL_STAGE, **kwargs):
        with stage("denoise"):
            pass
        with stage("decode"):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 8 GiB")


class HostOutOfMemory(Toy):
    """Really asks for more host memory than there can be."""

    def generate_batch(self, resolution, seeds, *, stage=NULL_STAGE, **kwargs):
        with stage("denoise"):
            return torch.empty(1 << 55, dtype=torch.uint8)


class IgnoresSteps(Toy):
    def generate_batch(self, resolution, seeds, *, steps=None, **kwargs):
        return super().generate_batch(resolution, seeds, steps=3, **kwargs)


class LiesAboutSteps(Toy):
    """Does three steps and reports what it was asked for."""

    def generate_batch(self, resolution, seeds, *, steps=None, stage=NULL_STAGE, **kwargs):
        images = super().generate_batch(resolution, seeds, steps=3, stage=stage, **kwargs)
        stage.effective(steps=steps or 3)
        return images


class SaysNothing(Toy):
    """Never tells the stage clock anything."""

    def generate_batch(self, resolution, seeds, *, stage=NULL_STAGE, **kwargs):
        return super().generate_batch(resolution, seeds, **kwargs)


class IgnoresSparsity(Toy):
    def generate_batch(self, resolution, seeds, *, sparsity=0.0, **kwargs):
        return super().generate_batch(resolution, seeds, **kwargs)


class UndeclaredSparsity(Toy):
    axes = frozenset({"resolution", "steps"})


class NeverEvaluates(Toy):
    def generate_batch(self, resolution, seeds, *, stage=NULL_STAGE, **kwargs):
        images = super().generate_batch(resolution, seeds, stage=stage, **kwargs)
        stage.effective(nfe=0)
        return images


class UnknownStage(Toy):
    def generate_batch(self, resolution, seeds, *, stage=NULL_STAGE, **kwargs):
        with stage("denoising"):
            return super().generate_batch(resolution, seeds, **kwargs)


class NestedStages(Toy):
    def generate_batch(self, resolution, seeds, *, stage=NULL_STAGE, **kwargs):
        with stage("decode"):
            return super().generate_batch(resolution, seeds, stage=stage, **kwargs)


class OpenStage(Toy):
    def generate_batch(self, resolution, seeds, *, stage=NULL_STAGE, **kwargs):
        images = super().generate_batch(resolution, seeds, stage=stage, **kwargs)
        left_open = stage("decode")
        left_open.__enter__()
        return images


class ReadsGlobalRandom(Toy):
    def generate_batch(self, resolution, seeds, **kwargs):
        state = torch.get_rng_state()
        images = super().generate_batch(resolution, seeds, **kwargs) ^ torch.randint(0, 255, (1,)).to(torch.uint8)
        torch.set_rng_state(state)
        return images


class MovesTorchRandom(Toy):
    def generate_batch(self, *args, **kwargs):
        torch.rand(1)
        return super().generate_batch(*args, **kwargs)


class MovesNumpyRandom(Toy):
    def generate_batch(self, *args, **kwargs):
        np.random.rand()
        return super().generate_batch(*args, **kwargs)


class MovesPythonRandom(Toy):
    def generate_batch(self, *args, **kwargs):
        random.random()
        return super().generate_batch(*args, **kwargs)


class BatchDependent(Toy):
    """One generator for the whole batch, seeded by its first image: the common mistake."""

    def generate_batch(self, resolution, seeds, **kwargs):
        generator = torch.Generator().manual_seed(int(seeds[0]))
        noise = torch.randn(len(seeds), 3, *resolution, generator=generator)
        super().generate_batch(resolution, seeds, **kwargs)
        return to_uint8(noise / 3)


class Remembers(Toy):
    """Each image depends on how many were made before."""

    count = 0

    def generate_batch(self, resolution, seeds, **kwargs):
        self.count += 1
        return super().generate_batch(resolution, seeds, **kwargs) // 2 + self.count


class IgnoresSeed(Toy):
    def generate_batch(self, resolution, seeds, **kwargs):
        return super().generate_batch(resolution, [0] * len(seeds), **kwargs)


class OneColour(Toy):
    def generate_batch(self, resolution, seeds, **kwargs):
        return torch.zeros_like(super().generate_batch(resolution, seeds, **kwargs))


class TurnsGradientsOff(Toy):
    def generate_batch(self, *args, **kwargs):
        torch.set_grad_enabled(False)
        return super().generate_batch(*args, **kwargs)


class SquareOnly(Toy):
    """Says it takes any size, and fails at one that is not square."""

    def generate_batch(self, resolution, seeds, **kwargs):
        if resolution[0] != resolution[1]:
            raise ValueError("only square images")
        return super().generate_batch(resolution, seeds, **kwargs)


class SupportsAnything(Toy):
    def supports(self, axes):
        return None

    def generate_batch(self, resolution, seeds, *, steps=None, **kwargs):
        return super().generate_batch(resolution, seeds, steps=steps or 4, **kwargs)


class SupportsWithBooleans(Toy):
    def supports(self, axes):
        return True


class SupportsNothing(Toy):
    def supports(self, axes):
        return "this method is out of order"


class LoadsOnce(Toy):
    def close(self):
        self.load = None


class NeedsSteps(Toy):
    def generate_batch(self, resolution, seeds, *, steps=None, **kwargs):
        return super().generate_batch(resolution, seeds, steps=int(steps), **kwargs)


class SlowToy(Toy):
    """Takes its time, so that a test can kill it in the middle."""

    def generate_batch(self, *args, **kwargs):
        time.sleep(0.05)
        return super().generate_batch(*args, **kwargs)


class FailsToClose(Toy):
    def close(self):
        raise RuntimeError("cannot close")
