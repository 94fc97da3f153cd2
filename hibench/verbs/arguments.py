"""Arguments and options that several verbs share, and what their texts mean; SpecError for one that means nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from hibench.errors import SpecError, did_you_mean

if TYPE_CHECKING:
    from hibench.spec import Spec

__all__ = ["DEVICE", "Device", "Json", "Only", "Set", "SpecFile", "check_choice", "check_device", "load", "options_of",
           "resolution_of", "shard_of", "words"]

SpecFile = Annotated[Path, Argument(metavar="SPEC", help="The benchmark file.")]
Only = Annotated[list[str] | None, Option("--only", metavar="NAME", help=(
    "A sweep, method, kind (speed, quality) or a glob over keys such as '*/256x256/*'. Repeat, or separate by commas: "
    "of one sort any may match, of different sorts all must."))]
Set = Annotated[list[str] | None, Option("--set", metavar="PATH=VALUE", help=(
    "Change one value of the benchmark file, e.g. timing.images=5. Repeat for more."))]
DEVICE = "auto|cpu|cuda|cuda:N"
Device = Annotated[str, Option("--device", metavar=DEVICE, help="auto: CUDA where there is one.")]
Json = Annotated[bool, Option("--json", help="Print JSON and nothing else.")]


def load(path: Path, overrides: list[str] | None) -> Spec:
    from hibench.spec import load_spec

    return load_spec(path, overrides or ())


def words(values: list[str] | None) -> list[str]:
    """Repeated and comma-separated values as one list."""
    return [word.strip() for value in values or () for word in value.split(",") if word.strip()]


def check_choice(option: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise SpecError(f"{option}: unknown '{value}'{did_you_mean(value, known) or '; known: ' + ', '.join(known)}")


def check_device(device: str) -> None:
    from hibench.spec import DEVICES, valid_device

    if not valid_device(device):
        check_choice("--device", device, (*DEVICES, "cuda:0"))


def shard_of(text: str | None) -> tuple[int, int] | None:
    """`2/4` as (2, 4): the second of four parts."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise SpecError(f"--shard {text}: give I/N with I from 1 to N, e.g. 1/4")
    return int(match[1]), int(match[2])


def resolution_of(text: str) -> tuple[int, int]:
    """`512` or `256x512` (height x width) as (height, width)."""
    match = re.fullmatch(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?", text)
    if not match:
        raise SpecError(f"--resolution {text}: give a side or HEIGHTxWIDTH in pixels, e.g. 512 or 256x512")
    return int(match[1]), int(match[2] or match[1])


def options_of(assignments: list[str] | None) -> dict[str, Any]:
    """`name=value` pairs, values read as YAML."""
    from hibench.values import parse_value

    options: dict[str, Any] = {}
    for text in assignments or ():
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise SpecError(f"--option {text}: give NAME=VALUE")
        options[name.strip()] = parse_value(value, f"--option {name.strip()}")
    return options
