"""Verbs that measure: `run` and `compare`, and `merge`, which joins what several machines measured."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from hibench.errors import SpecError
from hibench.verbs.arguments import DEVICE, Only, Set, SpecFile, check_choice, check_device, load, shard_of, words

if TYPE_CHECKING:
    from hibench.ray_engine import RayEngine

__all__ = ["compare", "merge", "run"]


def run(
    spec: SpecFile = Path("benchmarks.yaml"),
    out: Annotated[Path, Option("--out", help="The results directory.")] = Path("results"),
    only: Only = None,
    set_: Set = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Say what would run, and run nothing.")] = False,
    fail_fast: Annotated[bool, Option("--fail-fast", help="Stop at the first cell that fails.")] = False,
    retry: Annotated[bool, Option("--retry", help="Run cells again that failed before.")] = False,
    shard: Annotated[str | None, Option("--shard", metavar="I/N", help="The I-th (from 1) of N parts of the cells.")] = None,
    jobs: Annotated[int | None, Option("--jobs", min=1, help=(
        "Quality cells at the same time; not given: one per core on a CPU, else one. Speed cells run alone."))] = None,
    device: Annotated[str | None, Option("--device", metavar=DEVICE, help="Instead of the file's.")] = None,
    progress: Annotated[str, Option("--progress", metavar="auto|plain|none", help="auto: a live bar on a terminal.")] = "auto",
    report: Annotated[bool, Option("--report/--no-report", help="Write tables and plots to OUT/report at the end.")] = True,
    engine: Annotated[str, Option("--engine", metavar="local|ray", help="ray: on all machines of a Ray cluster.")] = "local",
    address: Annotated[str | None, Option("--address", metavar="ADDRESS", help=(
        "Of the Ray cluster, e.g. auto or ray://head:10001; without: one is started on this machine."))] = None,
) -> int:
    """Run the cells of a benchmark file that have no record yet; write records, tables and plots.

    \b
      hibench run benchmarks.yaml
      hibench run benchmarks.yaml --only steps --only ldm --set quality.images=200
      hibench run benchmarks.yaml --engine ray --address auto
    """
    from hibench.cells import expand

    loaded, chosen, part = load(spec, set_), words(only), shard_of(shard)
    check_choice("--progress", progress, ("auto", "plain", "none"))
    check_device(device or "auto")
    check_choice("--engine", engine, ("local", "ray"))
    if address is not None and engine != "ray":
        raise SpecError(f"--address {address}: only with --engine ray")
    from hibench.runner import run_spec

    plan = expand(loaded, chosen)
    with _engine(engine, address) as where:
        return run_spec(loaded, plan, out=out, only=chosen, dry_run=dry_run, fail_fast=fail_fast, retry=retry, shard=part,
                        jobs=jobs, device=device, progress=progress, report=report, engine=where)


def _engine(name: str, address: str | None) -> AbstractContextManager[RayEngine | None]:
    """The Ray engine, connected for the time of a `with`; None for the local one."""
    if name == "local":
        return nullcontext()
    from hibench.ray_engine import RayEngine

    return RayEngine(address)


def merge(
    results: Annotated[list[Path], Argument(metavar="DIR...", help="Results directories, e.g. of `--shard 1/4` to `4/4`.")],
    out: Annotated[Path, Option("--out", help="Where all of them go; it may hold cells already.")] = Path("results"),
) -> int:
    """Copy the finished cells of several results directories into one; refuse results that contradict each other.

    \b
      hibench merge shard-1 shard-2 shard-3 --out results
    """
    from hibench.merge import run_merge

    return run_merge(results, out)


def compare(
    spec: SpecFile = Path("benchmarks.yaml"),
    base: Annotated[str | None, Option("--base", metavar="REV", help=(
        "A git revision, a folder that holds the package hibench, or a Python interpreter."))] = None,
    head: Annotated[str | None, Option("--head", metavar="REV", help="The same; without: the code that is running.")] = None,
    base_spec: Annotated[Path | None, Option("--base-spec", metavar="FILE", help="Another benchmark file for base.")] = None,
    out: Annotated[Path, Option("--out", help="Gets base/ and head/.")] = Path("compared"),
    only: Only = None,
    set_: Set = None,
    pairs: Annotated[int, Option("--pairs", help="At most so many pairs of processes per cell.")] = 9,
    device: Annotated[str | None, Option("--device", metavar=DEVICE, help="Instead of the file's.")] = None,
    progress: Annotated[str, Option("--progress", metavar="plain|none")] = "plain",
) -> int:
    """Measure two revisions of the code, or two benchmark files, side by side; `hibench check OUT` gives the verdict.

    \b
      hibench compare benchmarks.yaml --base main
      hibench compare benchmarks.yaml --base v0.1.0 --head main --only ldm --out compared
      hibench compare new.yaml --base-spec old.yaml
    """
    check_choice("--progress", progress, ("auto", "plain", "none"))
    check_device(device or "auto")
    from hibench.compare import run_compare

    return run_compare(spec, base=base, head=head, base_spec=base_spec, out=out, only=words(only), overrides=set_ or (),
                       pairs=pairs, device=device, progress=progress)
