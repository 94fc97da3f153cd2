"""Verbs that judge: `score` images, `test` a method's contract, `doctor` the machine, `check` results against others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from hibench.errors import SpecError
from hibench.verbs.arguments import DEVICE, Device, Json, Only, Set, check_device, resolution_of, words

__all__ = ["check", "contract", "doctor", "score"]


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
    check_device(device)
    from hibench.score import run_score

    if reconstruction is not None:
        from hibench.reconstruct import score_reconstruction

        return score_reconstruction(images, reconstruction, count, resolution_of(resolution) if resolution else None,
                                    metrics=words(metrics) or None, extractor=extractor, weights=weights, crop=crop,
                                    as_json=as_json, device=device, compiled=compiled)

    return run_score(images, reference, metrics=words(metrics) or None, extractor=extractor, weights=weights, crop=crop,
                     as_json=as_json, device=device, prompts=prompts, compiled=compiled)


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
    check_device(device)
    if golden is not None:
        from hibench.golden import run_golden

        return run_golden(method, golden)
    from hibench.conformance import run_conformance

    return run_conformance(method, device=device, as_json=as_json)


def doctor(
    spec: Annotated[Path | None, Argument(metavar="[SPEC]", help="Look at what this benchmark file needs, too.")] = None,
    only: Only = None,
    set_: Set = None,
    device: Annotated[str | None, Option("--device", metavar=DEVICE, help="Instead of the file's.")] = None,
    strict: Annotated[bool, Option("--strict", help="Fail where the machine is not fit.")] = False,
) -> int:
    """Say whether this machine is fit to measure, and whether it has what a benchmark file needs.

    \b
      hibench doctor
      hibench doctor benchmarks.yaml --only nightly --strict
    """
    check_device(device or "auto")
    from hibench.doctor import run_doctor

    if spec is None and (only or set_ or device):
        raise SpecError("--only, --set and --device choose cells of a benchmark file; write hibench doctor SPEC ...")
    return run_doctor(strict=strict, spec=spec, only=words(only), overrides=set_ or (), device=device)


def check(
    first: Annotated[Path, Argument(metavar="DIR", help="Base results; or, alone, head or what `hibench compare` wrote.")],
    second: Annotated[Path | None, Argument(metavar="[HEAD]", help="Head results.")] = None,
    baseline: Annotated[Path | None, Option("--baseline", metavar="FILE", help="E.g. reports/baselines/cpu.json.")] = None,
    only: Annotated[list[str] | None, Option("--only", metavar="NAME", help="Methods, kinds or globs over keys.")] = None,
    tolerance: Annotated[list[str] | None, Option("--tolerance", metavar="NAME=VALUE", help=(
        "E.g. latency=10%, drift=0.05 or ldm:latency=8%; repeat for more. Without: those of the benchmark file."))] = None,
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

    return run_check(first, second, baseline=baseline, only=words(only), tolerance=words(tolerance), strict=strict,
                     as_json=as_json, everything=everything, junit=junit, summary=summary, github=github, history=history,
                     update_baseline=update_baseline, reason=reason)
