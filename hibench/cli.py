"""The command `hibench`: its verbs (functions of `hibench.verbs`), and the exit codes of what they return and raise."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import typer
from typer import Option

from hibench import __version__
from hibench.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE, HibenchError
from hibench.verbs.judging import check, contract, doctor, score
from hibench.verbs.running import compare, merge, run
from hibench.verbs.showing import list_, report, show
from hibench.verbs.supplying import fetch, train

__all__ = ["app", "main"]

EXAMPLES = """\b
  hibench run benchmarks.yaml                  run the default sweeps; again: nothing is repeated
  hibench run benchmarks.yaml --dry-run        what would run, and what would be skipped, and why
  hibench list methods                         what there is (also metrics, references, sweeps, cells)
  hibench show scenes --out grid.png           a picture of the built-in image distribution
  hibench score IMAGES --reference scenes      metrics of a folder of images
  hibench test ldm                             does a method keep the contract?
  hibench check BASE HEAD                      has anything become worse?

Benchmarks for high-resolution and any-resolution image generation: quality, latency, memory and failures of every method
in one record for the same weights and settings.

\b
Exit codes: 0 good · 1 regression · 2 bad benchmark file or usage · 3 some cells failed or nothing was measured
            4 only unsure, under --strict · 130 interrupted
"""
PRINTING = ("list_", "show", "report", "fetch")                # functions of verbs whose reader may leave early

app = typer.Typer(name="hibench", help=EXAMPLES, add_completion=False, no_args_is_help=True, rich_markup_mode=None,
                  pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]})

VERBS: Mapping[str, Callable[..., int | None]] = {             # in the order of --help
    "run": run, "list": list_, "show": show, "report": report, "merge": merge, "score": score, "test": contract,
    "doctor": doctor, "fetch": fetch, "train": train, "check": check, "compare": compare,
}
EPILOGS = {"run": "Progress is one line per finished cell; a run can be interrupted anywhere and goes on when started again."}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command (None: of this process) and return its exit code."""
    args = list(sys.argv[1:] if arguments is None else arguments)
    try:
        app(args, prog_name="hibench")
        code = EXIT_OK
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else EXIT_OK if stop.code is None else EXIT_USAGE
    try:
        sys.stdout.flush()
    except BrokenPipeError:                          # of --help
        return _reader_left("list_")
    return code


def _reader_left(verb: str) -> int:
    """Who reads our output has gone: be silent from here on; it is no failure of a verb that only prints."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):                    # a stdout without a file descriptor, in tests
        sys.stdout = open(os.devnull, "w")           # noqa: SIM115  lives as long as the process
    return EXIT_OK if verb in PRINTING else EXIT_INTERRUPTED


def verb(function: Callable[..., int | None]) -> Callable[..., None]:
    """The command of a function: its return value is the exit code; errors that hibench raises become one line."""

    @functools.wraps(function)
    def command(*args: Any, **kwargs: Any) -> None:
        try:
            code = function(*args, **kwargs) or EXIT_OK
            sys.stdout.flush()
        except BrokenPipeError:
            code = _reader_left(function.__name__)
        except HibenchError as error:
            _say(str(error))
            code = error.exit_code
        except KeyboardInterrupt:
            _say("interrupted; what is finished is kept, and the same command goes on from there")
            code = EXIT_INTERRUPTED
        raise typer.Exit(code)

    return command


def _say(message: str) -> None:
    """One line on stderr; of several (the problems of a file) the last one carries the name."""
    *first, last = message.splitlines() or [""]
    sys.stderr.write("\n".join([*first, f"hibench: {last}"]) + "\n")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"hibench {__version__}")
        raise typer.Exit()


@app.callback()
def _root(version: Annotated[bool, Option("--version", callback=_version, is_eager=True,
                                          help="Print the version.")] = False) -> None:
    pass


for _name, _function in VERBS.items():
    app.command(_name, epilog=EPILOGS.get(_name))(verb(_function))

if __name__ == "__main__":
    sys.exit(main())
