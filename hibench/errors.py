"""Every error that hibench raises on purpose, and the exit codes of its commands.

Tree::

    HibenchError
    ├── SpecError            the benchmark file or a command-line value is wrong      (exit 2)
    ├── UnknownMethod        no such method; says which name was probably meant       (exit 2)
    ├── MissingWeights       weights are not on this machine; ends with the command   (exit 3)
    ├── AdapterError         a method raised while it loaded or generated             (exit 3)
    │   └── ContractError    a method broke the adapter contract                      (exit 3)
    ├── OutOfMemory          device or host memory ran out                            (exit 3)
    ├── CellTimeout          a cell took longer than it may                           (exit 3)
    ├── WorkerDied           a worker process ended by a signal or an exit code       (exit 3)
    ├── Unfit                the machine is not fit for what was asked                (exit 3)
    └── NoBaseline           nothing comparable to compare with; names what differs   (exit 3)

A message is one line: what, where, why, what next.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "AdapterError",
    "CellTimeout",
    "ContractError",
    "EXIT_FAILED",
    "EXIT_INTERRUPTED",
    "EXIT_OK",
    "EXIT_REGRESSION",
    "EXIT_UNSURE",
    "EXIT_USAGE",
    "HibenchError",
    "MissingWeights",
    "NoBaseline",
    "OutOfMemory",
    "SpecError",
    "Unfit",
    "UnknownMethod",
    "WorkerDied",
    "did_you_mean",
    "signal_text",
]

EXIT_OK = 0
EXIT_REGRESSION = 1
EXIT_USAGE = 2
EXIT_FAILED = 3
EXIT_UNSURE = 4
EXIT_INTERRUPTED = 130


class HibenchError(Exception):
    """Base of every error that hibench raises on purpose; `exit_code` is what the command line returns."""

    exit_code = EXIT_FAILED


class SpecError(HibenchError):
    """The benchmark file, or a value given on the command line, is wrong."""

    exit_code = EXIT_USAGE


class UnknownMethod(HibenchError):
    """No method has this name."""

    exit_code = EXIT_USAGE


class MissingWeights(HibenchError):
    """Weights are not on this machine; the message ends with the command that gets them."""


class AdapterError(HibenchError):
    """A method raised while it was loaded or while it generated."""


class ContractError(AdapterError):
    """A method broke the adapter contract (wrong shape, dtype, step count, ...)."""


class OutOfMemory(HibenchError):
    """Device or host memory ran out."""


class CellTimeout(HibenchError):
    """A cell took longer than it may."""


class WorkerDied(HibenchError):
    """A worker process ended by a signal or an unexpected exit code."""


class Unfit(HibenchError):
    """The machine is not fit for what was asked."""


class NoBaseline(HibenchError):
    """There is nothing comparable to compare with; the message names what differs."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the closest known word, or `""` when nothing is close."""
    close = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


def signal_text(returncode: int) -> str:
    """Decode a process's return code: -9 becomes `killed by SIGKILL (...)`, 3 becomes `exit code 3`."""
    if returncode >= 0:
        return f"exit code {returncode}"
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = f"signal {-returncode}"
    hint = " (usually the host ran out of memory)" if returncode == -signal.SIGKILL else ""
    return f"killed by {name}{hint}"
