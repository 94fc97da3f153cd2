"""The command `hibench`: its verbs parse, call one function of another module each, and turn errors into exit codes."""

from __future__ import annotations

import functools
import inspect
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from hibench import __version__
from hibench.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE, HibenchError, SpecError, did_you_mean

if TYPE_CHECKING:
    from hibench.ray_engine import RayEngine
    from hibench.spec import Spec

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

SpecFile = Annotated[Path, Argument(metavar="SPEC", help="The benchmark file.")]
Only = Annotated[list[str] | None, Option("--only", metavar="NAME", help=(
    "A sweep, method, kind (speed, quality) or a glob over keys such as '*/256x256/*'. Repeat, or separate by commas: "
    "of one sort any may match, of different sorts all must."))]
Set = Annotated[list[str] | None, Option("--set", metavar="PATH=VALUE", help=(
    "Change one value of the benchmark file, e.g. timing.images=5. Repeat for more."))]
DEVICE = "auto|cpu|cuda|cuda:N"
Device = Annotated[str, Option("--device", metavar=DEVICE, help="auto: CUDA where there is one.")]
Json = Annotated[bool, Option("--json", help="Print JSON and nothing else.")]


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


@app.command(epilog="Progress is one line per finished cell; a run can be interrupted anywhere and goes on when started again.")
@verb
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

    loaded, chosen, part = _load(spec, set_), _words(only), _shard(shard)
    _check_choice("--progress", progress, ("auto", "plain", "none"))
    _check_device(device or "auto")
    _check_choice("--engine", engine, ("local", "ray"))
    if address is not None and engine != "ray":
        raise SpecError(f"--address {address}: only with --engine ray")
    from hibench.runner import run_spec

    plan = expand(loaded, chosen)
    with _engine(engine, address) as where:
        return run_spec(loaded, plan, out=out, only=chosen, dry_run=dry_run, fail_fast=fail_fast, retry=retry, shard=part,
                        jobs=jobs, device=device, progress=progress, report=report, engine=where)


@app.command("list")
@verb
def list_(
    what: Annotated[str, Argument(metavar="WHAT", help=(
        "methods, metrics, extractors, weights, references, sweeps, cells or published."))] = "methods",
    spec: SpecFile = Path("benchmarks.yaml"),
    only: Only = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Say what there is, and why something is not available.

    \b
      hibench list methods
      hibench list cells benchmarks.yaml --only steps
      hibench list published --json
    """
    from hibench import listing

    _check_choice("hibench list", what, listing.WHAT)
    loaded = _load(spec, set_) if what in listing.NEEDS_SPEC else None
    if what == "methods" and spec.is_file():
        with suppress(SpecError):                             # a spec that is being written does not hide the methods
            loaded = _load(spec, set_)
    rows = listing.rows_of(what, loaded, _words(only))
    print(listing.json_text(what, rows) if as_json else listing.table(rows))


@app.command()
@verb
def show(
    what: Annotated[str, Argument(metavar="scenes|METHOD", help="The built-in scenes, or a method's images.")],
    resolution: Annotated[str, Option("--resolution", metavar="SIDE|HxW")] = "256",
    count: Annotated[int, Option("--count", min=1)] = 16,
    seed: Annotated[int, Option("--seed", min=0, help="Of the first image; the next has the next seed.")] = 0,
    out: Annotated[Path, Option("--out", help="The picture to write.")] = Path("grid.png"),
    steps: Annotated[int | None, Option("--steps", min=1, help="Sampler steps; not given: the method's own.")] = None,
    sparsity: Annotated[float, Option("--sparsity", help="Fraction of coordinates not evaluated, in [0, 1).")] = 0.0,
    option: Annotated[list[str] | None, Option("--option", metavar="NAME=VALUE", help="An option of the method.")] = None,
    task: Annotated[str | None, Option("--task", metavar="NAME", help="Draw an application of the method instead.")] = None,
    device: Device = "auto",
) -> int:
    """Draw a grid of images, or what a method can do besides generating.

    \b
      hibench show scenes --resolution 512 --count 16 --out grid.png
      hibench show ldm --steps 50 --resolution 128 --out ldm.png
      hibench show infty-diff --task super-resolution --resolution 256 --count 4 --out larger.png
    """
    _check_device(device)
    if not 0 <= sparsity < 1:
        raise SpecError(f"--sparsity {sparsity:g} is out of range: from 0 to 1 excluded")
    size, options = _resolution(resolution), _options(option)
    if task is not None:
        if sparsity:
            raise SpecError("--sparsity does not go together with --task")
        from hibench.show import run_show_task

        return run_show_task(what, task, resolution=size, count=count, seed=seed, out=out, steps=steps, device=device,
                             options=options)
    from hibench.show import run_show

    return run_show(what, resolution=size, count=count, seed=seed, out=out, steps=steps, sparsity=sparsity, device=device,
                    options=options)


@app.command()
@verb
def report(
    results: Annotated[Path, Argument(metavar="DIR", help="What `hibench run --out` wrote.")] = Path("results"),
    out: Annotated[Path | None, Option("--out", help="Where to write; DIR/report if not given.")] = None,
    format_: Annotated[list[str] | None, Option("--format", metavar="md|csv|tex|png|pdf|json|parquet|html", help=(
        "Only these; repeat for more. `--format csv` or `json` without --out prints one row per record."))] = None,
    history: Annotated[Path | None, Option("--history", metavar="FILE", help=(
        "Plot what `hibench check --history FILE` has collected, instead of DIR."))] = None,
    html: Annotated[bool, Option("--html", help="Write one self-contained page instead, report.html.")] = False,
    embed: Annotated[bool, Option("--embed", help="With --html: the images inside it, not beside it.")] = False,
    figures: Annotated[bool, Option("--figures", help="Write the figures that papers show instead (PDF, PNG, LaTeX).")] = False,
    figure: Annotated[list[str] | None, Option("--figure", metavar="NAME", help="Only this one; repeat for more.")] = None,
    compare_: Annotated[tuple[Path, Path] | None, Option("--compare", metavar="RUN_A RUN_B", help=(
        "Two results directories side by side, as md, csv or json; not DIR."))] = None,
) -> int:
    """Write tables (Markdown, CSV, LaTeX) and plots (PNG, PDF) from records.

    \b
      hibench report results --out tables
      hibench report results --html
      hibench report results --figures --out figures
      hibench report --compare before after
      hibench report results --format csv > records.csv
      hibench report --history history.jsonl --out plots
    """
    if history is not None:
        from hibench.history import write_history

        paths = write_history(history, history.parent / "history" if out is None else out)
        print("\n".join(map(str, paths)))
        return EXIT_OK
    formats = _words(format_)
    from hibench import export
    from hibench import report as module

    for name in formats:
        _check_choice("--format", name, (*module.FORMATS, *export.EXPORTS, "html"))
    if compare_ is not None:
        return _side_by_side(*compare_, formats or ["md"], out)
    html = html or "html" in formats
    if embed and not html:
        raise SpecError("--embed goes together with --html")
    if out is None and formats in (["csv"], ["json"]) and not (html or figures or figure):
        sys.stdout.write(module.records_csv(results) if formats == ["csv"] else export.records_json(results))
        return EXIT_OK
    target = results / "report" if out is None else out
    if html:
        from hibench.page import write_page

        page, *beside = write_page(results, target, embed=embed)
        print(f"{page}: {page.stat().st_size / 2**20:.1f} MiB" + (f", {len(beside)} images beside it" if beside else ""))
    if figures or figure:
        from hibench.figures import write_figures

        drawn = write_figures(results, target / "figures" if out is None else out, _words(figure))
        print(f"{drawn[0].parent}: {len(drawn)} files")
    for name in export.EXPORTS:
        if name in formats:
            print(export.write_export(results, target / f"records.{name}", name))
    chosen = [name for name in formats if name in module.FORMATS]
    if not chosen and (formats or html or figures or figure):
        return EXIT_OK
    paths = module.write_report(results, target, formats=chosen or list(module.FORMATS))
    print(f"{target}: {len(paths)} files" + (f", begin with {target / 'report.md'}" if target / "report.md" in paths else ""))
    return EXIT_OK


@app.command()
@verb
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


@app.command()
@verb
def score(
    images: Annotated[Path, Argument(metavar="IMAGES", help="A folder of images; or scenes, with --reconstruction.")],
    reference: Annotated[str, Option("--reference", metavar="FOLDER|scenes", help="What to compare with.")] = "scenes",
    metrics: Annotated[list[str] | None, Option("--metrics", metavar="a,b,...", help="See `hibench list metrics`.")] = None,
    extractor: Annotated[str | None, Option("--extractor", metavar="NAME", help=(
        "See `hibench list extractors`; not given: scenes-clip, or inception-v3-compat with --weights."))] = None,
    weights: Annotated[Path | None, Option("--weights", help="The weights file of the extractor.")] = None,
    crop: Annotated[int | None, Option("--crop", min=1, help="Compare random crops of this many pixels a side.")] = None,
    prompts: Annotated[Path | None, Option("--prompts", help="A text file, one prompt per image, for clip-score.")] = None,
    compiled: Annotated[bool, Option("--compile/--no-compile", help=(
        "Compile Inception first: 20 to 40 s once, worth it for thousands of images."))] = False,
    reconstruction: Annotated[str | None, Option("--reconstruction", metavar="METHOD[=WEIGHTS]", help=(
        "Put IMAGES through this method's encoder and decoder, and score the result against them."))] = None,
    resolution: Annotated[str | None, Option("--resolution", metavar="SIDE|HxW", help="Of --reconstruction.")] = None,
    count: Annotated[int, Option("--count", min=1, help="Images of --reconstruction, at most.")] = 1000,
    as_json: Json = False,
    device: Device = "auto",
) -> int:
    """Compute metrics of a folder of images.

    \b
      hibench score my_images --reference scenes
      hibench score my_images --reference photos --metrics fid,kid --extractor inception-v3-compat --json
      hibench score scenes --reconstruction ldm
    """
    _check_device(device)
    from hibench.score import run_score

    if reconstruction is not None:
        from hibench.reconstruct import score_reconstruction

        return score_reconstruction(images, reconstruction, count, _resolution(resolution) if resolution else None,
                                    metrics=_words(metrics) or None, extractor=extractor, weights=weights, crop=crop,
                                    as_json=as_json, device=device, compiled=compiled)

    return run_score(images, reference, metrics=_words(metrics) or None, extractor=extractor, weights=weights, crop=crop,
                     as_json=as_json, device=device, prompts=prompts, compiled=compiled)


@app.command("test")
@verb
def contract(
    method: Annotated[str, Argument(metavar="METHOD", help="A method's name, or file.py:Class.")],
    golden: Annotated[Path | None, Option("--golden", metavar="DIR", help="Check the recorded cases in it instead.")] = None,
    as_json: Json = False,
    device: Device = "auto",
) -> int:
    """Check that a method keeps the adapter contract.

    \b
      hibench test toy
      hibench test my_method.py:MyMethod
    """
    _check_device(device)
    if golden is not None:
        from hibench.golden import run_golden

        return run_golden(method, golden)
    from hibench.conformance import run_conformance

    return run_conformance(method, device=device, as_json=as_json)


@app.command()
@verb
def doctor(strict: Annotated[bool, Option("--strict", help="Fail where the machine is not fit.")] = False) -> int:
    """Say whether this machine is fit to measure.

    \b
      hibench doctor
    """
    from hibench.doctor import run_doctor

    return run_doctor(strict=strict)


@app.command()
@verb
def fetch(
    names: Annotated[list[str] | None, Argument(metavar="[NAME]...", help=(
        "Weights, a method, or a hub id; none: list the weights."))] = None,
    variant: Annotated[str | None, Option("--variant", metavar="NAME", help="Of a hub id's files, e.g. fp16.")] = None,
) -> None:
    """Download published weights: of extractors, checked by SHA-256, and of pipelines on the Hugging Face hub.

    \b
      hibench fetch
      hibench fetch inception-v3-compat
      hibench fetch stabilityai/stable-diffusion-xl-base-1.0 --variant fp16
    """
    if not names:
        from hibench import listing

        print(listing.table(listing.rows_of("weights")))
        return
    from hibench.fetching import fetch_named

    for name in names:
        for what, path, licence in fetch_named(name, variant):
            print(f"{what}: {path}" + (f" (licence: {licence})" if licence else ""))


@app.command()
@verb
def train(
    name: Annotated[str, Argument(metavar="METHOD|scenes-clip", help="What to train.")],
    out: Annotated[Path | None, Option("--out", help="For weights and checkpoints; not given: runs/NAME.")] = None,
    steps: Annotated[int | None, Option("--steps", min=1, help="Instead of the method's own number.")] = None,
    stage: Annotated[str | None, Option("--stage", help="One stage only, where a method has several.")] = None,
    variant: Annotated[str | None, Option("--variant", metavar="NAME", help="Another model, e.g. of an ablation.")] = None,
    init: Annotated[str | None, Option("--init", metavar="METHOD|none", help="Start from its weights; patch-dm: a folder.")] = None,
    config: Annotated[str | None, Option("--config", metavar="NAME", help="A published recipe, e.g. of ldm.")] = None,
    data: Annotated[Path | None, Option("--data", metavar="FOLDER", help="Images for --config; not given: scenes.")] = None,
    first_stage: Annotated[Path | None, Option("--first-stage", metavar="FILE", help="Autoencoder for --config.")] = None,
    batch: Annotated[int | None, Option("--batch", min=1, help="Instead of the recipe's own.")] = None,
    accumulate: Annotated[int | None, Option("--accumulate", min=1, help="Passes per step of --config.")] = None,
    resume: Annotated[bool, Option("--resume/--no-resume", help="Go on from a checkpoint in OUT.")] = True,
    max_seconds: Annotated[float | None, Option("--max-seconds", min=0, help="Stop then; a later call goes on.")] = None,
    device: Device = "auto",
) -> None:
    """Train a method's reference weights on scenes.

    \b
      hibench train ldm --out runs/ldm
      hibench train infty-diff --variant 8x --out runs/8x
      hibench train scenes-clip --steps 100 --out runs/try
      hibench train ldm --config ffhq256 --data ffhq --first-stage vq-f4.zip --accumulate 4
      torchrun --no-python --nproc_per_node 8 hibench train ldm --config cin256-v2 --data imagenet --first-stage vq-f4.zip
    """
    _check_device(device)
    function = _training(name)
    parameters = inspect.signature(function).parameters.values()
    for word, value, lacks in (("variant", variant, "has no variants"), ("init", init, "always starts from nothing"),
                               ("config", config, "has no recipes")):
        if value is not None and not any(p.name == word or p.kind is p.VAR_KEYWORD for p in parameters):
            raise SpecError(f"--{word} {value}: {name} {lacks}")
    from hibench.job import resolve_device

    target = out or Path("runs") / "-".join(word for word in (name, variant, config) if word is not None)
    choices = {"steps": steps, "stage": stage, "variant": variant, "init": init, "max_seconds": max_seconds, "config": config,
               "data": data, "first_stage": first_stage, "batch": batch, "accumulate": accumulate}
    asked = {key: value for key, value in choices.items() if value is not None}
    function(target, device=resolve_device(device), resume=resume, **asked)
    print(f"{name}: weights in {target}")


@app.command()
@verb
def check(
    first: Annotated[Path, Argument(metavar="DIR", help="Base results; or, alone, head or what `hibench compare` wrote.")],
    second: Annotated[Path | None, Argument(metavar="[HEAD]", help="Head results.")] = None,
    baseline: Annotated[Path | None, Option("--baseline", metavar="FILE", help="E.g. reports/baselines/cpu.json.")] = None,
    only: Annotated[list[str] | None, Option("--only", metavar="NAME", help="Methods, kinds or globs over keys.")] = None,
    tolerance: Annotated[list[str] | None, Option("--tolerance", metavar="NAME=VALUE", help=(
        "E.g. latency=10% or drift=0.05; repeat for more. Without: those of the benchmark file."))] = None,
    strict: Annotated[bool, Option("--strict", help="Exit with 4 when something stays unsure.")] = False,
    everything: Annotated[bool, Option("--all", help="Show every number, also those that are ok or not judged.")] = False,
    as_json: Json = False,
    junit: Annotated[Path | None, Option("--junit", metavar="FILE", help="Write JUnit XML.")] = None,
    summary: Annotated[Path | None, Option("--summary", metavar="FILE", help="Append Markdown ($GITHUB_STEP_SUMMARY).")] = None,
    github: Annotated[bool, Option("--github", help="Print GitHub annotations, too.")] = False,
    history: Annotated[Path | None, Option("--history", metavar="FILE", help="Append one line per cell (JSONL).")] = None,
    update_baseline: Annotated[bool, Option("--update-baseline", help="Make DIR the new --baseline; needs --reason.")] = False,
    reason: Annotated[str, Option("--reason", metavar="TEXT", help="Why the baseline may change.")] = "",
) -> int:
    """Compare results with others, or with a baseline, number by number; exit 1 where something has become worse.

    \b
      hibench check base_results head_results
      hibench check compared                     what `hibench compare --out compared` wrote
      hibench check results --baseline reports/baselines/cpu.json --junit junit.xml
      hibench check results --baseline reports/baselines/cpu.json --update-baseline --reason "why"
    """
    from hibench.check import run_check

    return run_check(first, second, baseline=baseline, only=_words(only), tolerance=_words(tolerance), strict=strict,
                     as_json=as_json, everything=everything, junit=junit, summary=summary, github=github, history=history,
                     update_baseline=update_baseline, reason=reason)


@app.command()
@verb
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
    _check_choice("--progress", progress, ("auto", "plain", "none"))
    _check_device(device or "auto")
    from hibench.compare import run_compare

    return run_compare(spec, base=base, head=head, base_spec=base_spec, out=out, only=_words(only), overrides=set_ or (),
                       pairs=pairs, device=device, progress=progress)


# -- what the verbs share --------------------------------------------------------------------------------------------


def _load(path: Path, overrides: list[str] | None) -> Spec:
    from hibench.spec import load_spec

    return load_spec(path, overrides or ())


def _engine(name: str, address: str | None) -> AbstractContextManager[RayEngine | None]:
    """The Ray engine, connected for the time of a `with`; None for the local one."""
    if name == "local":
        return nullcontext()
    from hibench.ray_engine import RayEngine

    return RayEngine(address)


def _side_by_side(first: Path, second: Path, formats: list[str], out: Path | None) -> int:
    """Print the comparison of two results directories, or write it into `out`."""
    from hibench.side_by_side import COMPARE_FORMATS, compare_runs

    for name in formats:
        _check_choice("--format with --compare", name, tuple(COMPARE_FORMATS))
    found = compare_runs(first, second)
    for name in formats:
        text = COMPARE_FORMATS[name](found, str(first), str(second))
        if out is None:
            sys.stdout.write(text)
        else:
            out.mkdir(parents=True, exist_ok=True)
            (out / f"compare.{name}").write_text(text, encoding="utf-8")
            print(out / f"compare.{name}")
    return EXIT_OK


def _training(name: str) -> Callable[..., Any]:
    """The function that trains: of the default extractor, or of a method's class."""
    if name == "scenes-clip":
        from hibench.scenes_clip import train as scenes_clip

        return scenes_clip.train
    from hibench.registry import load_adapter

    function = getattr(load_adapter(name), "train", None)
    if not callable(function):
        raise SpecError(f"method '{name}' cannot be trained: its class has no class method 'train'")
    trained: Callable[..., Any] = function
    return trained


def _words(values: list[str] | None) -> list[str]:
    """Repeated and comma-separated values as one list."""
    return [word.strip() for value in values or () for word in value.split(",") if word.strip()]


def _check_choice(option: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise SpecError(f"{option}: unknown '{value}'{did_you_mean(value, known) or '; known: ' + ', '.join(known)}")


def _check_device(device: str) -> None:
    from hibench.spec import DEVICES, valid_device

    if not valid_device(device):
        _check_choice("--device", device, (*DEVICES, "cuda:0"))


def _shard(text: str | None) -> tuple[int, int] | None:
    """`2/4` as (2, 4): the second of four parts."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise SpecError(f"--shard {text}: give I/N with I from 1 to N, e.g. 1/4")
    return int(match[1]), int(match[2])


def _resolution(text: str) -> tuple[int, int]:
    """`512` or `256x512` (height x width) as (height, width)."""
    match = re.fullmatch(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?", text)
    if not match:
        raise SpecError(f"--resolution {text}: give a side or HEIGHTxWIDTH in pixels, e.g. 512 or 256x512")
    return int(match[1]), int(match[2] or match[1])


def _options(assignments: list[str] | None) -> dict[str, Any]:
    """`name=value` pairs, values read as YAML."""
    from hibench.values import parse_value

    options: dict[str, Any] = {}
    for text in assignments or ():
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise SpecError(f"--option {text}: give NAME=VALUE")
        options[name.strip()] = parse_value(value, f"--option {name.strip()}")
    return options


if __name__ == "__main__":
    sys.exit(main())
