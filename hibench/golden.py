"""`hibench test METHOD --golden DIR`: compare an adapter with tensors of the official implementation, output by output."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hibench.errors import EXIT_OK, EXIT_REGRESSION, HibenchError, SpecError

if TYPE_CHECKING:
    import numpy as np

__all__ = ["GoldenOutput", "Line", "TOLERANCES", "check_case", "compare", "find_cases", "run_golden"]

TOLERANCES = {"forward": 2e-5, "sampling": 2e-4, "gradient": 2e-4}         # relative, float32 on a CPU


class GoldenOutput(NamedTuple):
    """One recomputed output of a case; an adapter's `golden(case)` yields these (any object with these attributes will do)."""

    name: str                                  # as in outputs.npz
    got: Any                                   # array or tensor
    kind: str = "forward"                      # a key of TOLERANCES: one forward pass, or many
    scale: float | None = None                 # what the error is relative to; None = the largest value expected. For a small
                                               # difference of large numbers it is the size of those numbers


@dataclass(frozen=True)
class Line:
    """The verdict on one output (or on a whole case, where `output` is empty)."""

    case: str
    output: str
    ok: bool
    text: str                                  # numbers, or what is wrong

    def __str__(self) -> str:
        return f"{'ok  ' if self.ok else 'FAIL'}  {self.case}  {self.output or '-'}  {self.text}"


def run_golden(method: str, directory: str | Path, write: Callable[[str], None] = print) -> int:
    """Check every case folder under `directory`, write one line per output, and return 0, or 1 beyond the tolerance.

    `directory` is a case folder (it holds config.json), a folder of case folders, or a folder that holds such a folder per
    method. Raises UnknownMethod, and SpecError when there is no case or the method has no golden check.
    """
    from hibench.registry import load_adapter

    adapter = load_adapter(method)
    golden = getattr(adapter, "golden", None)
    if not callable(golden):
        raise SpecError(f"method '{method}' cannot check golden tensors: its class has no `golden(case)`")
    cases = find_cases(Path(directory), (method, adapter.name))
    failed = total = 0
    for case in cases:
        for line in check_case(golden, case):
            write(str(line))
            total, failed = total + 1, failed + (not line.ok)
    write(f"{total - failed} of {total} outputs of {len(cases)} cases agree" + (f", {failed} do not" if failed else ""))
    return EXIT_REGRESSION if failed else EXIT_OK


def find_cases(directory: Path, names: Iterable[str] = ()) -> list[Path]:
    """Case folders under `directory`, sorted; `names` choose among folders of several methods (`-` and `_` are the same)."""
    if not directory.is_dir():
        raise SpecError(f"--golden {directory}: there is no such folder")
    if (directory / "config.json").is_file():
        return [directory]
    cases = _children(directory)
    if not cases:
        wanted = {_plain(name) for name in names}
        parents = [child for child in sorted(directory.iterdir()) if child.is_dir() and _children(child)]
        chosen = [parent for parent in parents if _plain(parent.name) in wanted]
        if parents and not chosen:
            raise SpecError(f"--golden {directory}: none of its folders is named after the method; "
                            f"give one of them: {', '.join(parent.name for parent in parents)}")
        cases = [case for parent in chosen for case in _children(parent)]
    if not cases:
        raise SpecError(f"--golden {directory}: no folder in it is a case (with config.json and outputs.npz)")
    return cases


def _children(directory: Path) -> list[Path]:
    """Sub-folders that are cases."""
    return [child for child in sorted(directory.iterdir()) if (child / "config.json").is_file()]


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")


def check_case(golden: Callable[[Path], Iterable[Any]], case: Path) -> Iterator[Line]:
    """One line per output of a case: compared, unknown, or not covered; a case that raises gives one line with the error."""
    import numpy as np

    try:
        with np.load(case / "outputs.npz") as stored:
            wanted = {name: stored[name] for name in stored.files}
    except Exception as error:
        yield Line(case.name, "", False, f"outputs.npz cannot be read: {_one_line(error)}")
        return
    done: set[str] = set()
    raised = ""
    try:
        for output in golden(case):
            if output.name in done:
                yield Line(case.name, output.name, False, "was given twice")
            elif output.name not in wanted:
                yield Line(case.name, output.name, False, "is not in outputs.npz")
            else:
                yield compare(case.name, output, wanted[output.name])
            done.add(output.name)
    except (Exception, SystemExit) as error:
        if not isinstance(error, HibenchError):
            traceback.print_exc()
        raised = _one_line(error)
        yield Line(case.name, "", False, raised)
    for name in wanted:
        if name not in done:
            yield Line(case.name, name, False, "not covered" + (" (the case stopped before)" if raised else ""))


def compare(case: str, output: Any, want: np.ndarray[Any, Any]) -> Line:
    """Largest absolute error, and relative to the largest absolute value expected; integers and texts have to be equal."""
    import numpy as np

    def line(ok: bool, text: str) -> Line:
        return Line(case, output.name, ok, text)

    kind = getattr(output, "kind", "forward")
    if kind not in TOLERANCES:
        return line(False, f"unknown kind {kind!r}; known: {', '.join(TOLERANCES)}")
    got = _array(output.got)
    if got.shape != want.shape:
        return line(False, f"shape {list(got.shape)}, expected {list(want.shape)}")
    if want.dtype.kind not in "fc":
        same = got == want if got.dtype.kind == want.dtype.kind or {got.dtype.kind, want.dtype.kind} <= set("iub") else None
        if same is None:
            return line(False, f"type {got.dtype}, expected {want.dtype}")
        wrong = int(np.size(same) - np.count_nonzero(same))
        by = f"abs {_integer_error(got, want)}  " if want.dtype.kind in "iub" else ""
        return line(wrong == 0, f"{by}{wrong} of {want.size} differ, must be equal")
    if got.dtype.kind not in "fciub":
        return line(False, f"type {got.dtype}, expected {want.dtype}")
    return line(*_float_verdict(got, want, TOLERANCES[kind], getattr(output, "scale", None)))


def _integer_error(got: np.ndarray[Any, Any], want: np.ndarray[Any, Any]) -> int:
    """Largest difference of two integer arrays."""
    return max((abs(int(a) - int(b)) for a, b in zip(got.ravel(), want.ravel()) if a != b), default=0)


def _float_verdict(got: np.ndarray[Any, Any], want: np.ndarray[Any, Any], tolerance: float,
                   scale: float | None = None) -> tuple[bool, str]:
    import numpy as np

    wide = np.complex128 if "c" in (got.dtype.kind, want.dtype.kind) else np.float64
    a, b = got.astype(wide), want.astype(wide)
    finite = np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return False, f"{int((~finite).sum())} values have to be infinite or NaN, and are not the same"
    if not np.isfinite(a[finite]).all():
        return False, f"{int((~np.isfinite(a[finite])).sum())} of {want.size} values are not finite"
    error = float(np.abs(a[finite] - b[finite]).max(initial=0.0))
    scale = float(np.abs(b[finite]).max(initial=0.0)) if scale is None else scale
    relative = error / scale if scale > 0 else error             # all zeros are expected: the error itself counts
    return relative <= tolerance, f"abs {error:.1e}  rel {relative:.1e}  tolerance {tolerance:.0e}"


def _array(value: Any) -> np.ndarray[Any, Any]:
    import numpy as np

    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value
        value = value.numpy()
    array: np.ndarray[Any, Any] = np.asarray(value)
    return array


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, HibenchError) and text else f"{type(error).__name__}: {text}"
