"""The two sides of `hibench compare`: git revisions in worktrees with an environment of their own, installations, or specs.

An environment holds the revision's own package and shares every dependency (torch and so on) with the running interpreter:
what is compared is this project, not its dependencies. To compare those, name another interpreter: --base /venv/bin/python.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import hibench
from hibench.cells import PROTOCOL, Cell
from hibench.errors import HibenchError, NoBaseline, SpecError
from hibench.limits import Rule, from_json
from hibench.prepare import Task, Verdict

__all__ = ["Planned", "Revision", "here", "open_revision", "plan"]

SETUPTOOLS = 77                            # what pyproject.toml asks for
# Makes a folder the only source of this project: an editable installation would fill in modules that a revision lacks.
FIRST = """
import sys
sys.path[0] = {path!r}
sys.meta_path[:] = [f for f in sys.meta_path
                    if "hibench" not in getattr(sys.modules.get(getattr(f, "__module__", "")), "MAPPING", ())]
"""
# Runs inside the environment of a revision, so it uses nothing but what revisions have in common.
PLAN = """
import json, sys
asked = json.loads(sys.argv[1])
from dataclasses import asdict
from hibench.cells import PROTOCOL, expand
from hibench.env import describe
from hibench.errors import HibenchError
from hibench.prepare import prepare
from hibench.spec import load_spec
try:
    spec = load_spec(asked["spec"], asked["set"])
    plan = expand(spec, asked["only"])
    env = describe()
    tasks = prepare(plan, env, asked["device"])
except HibenchError as error:
    said = {"error": str(error)}
else:
    said = {"protocol": PROTOCOL, "env": env, "sweeps": plan.sweeps,
            "tolerance": [["*", name, t.value, t.relative] for name, t in spec.check.tolerance.items()] + [
                [where, name, t.value, t.relative] for where, named in getattr(spec.check, "cells", {}).items()
                for name, t in named.items()],
            "tasks": [{"cell": t.cell.to_json(), "id": t.id, "adapter_digest": t.adapter_digest,
                       "weights_digest": t.weights_digest, "verdict": asdict(t.verdict) if t.verdict else None} for t in tasks]}
with open(asked["out"], "w", encoding="utf-8") as file:
    json.dump(said, file)
"""


@dataclass(frozen=True)
class Revision:
    """One side: an interpreter, and the folder of the packages that it is to use."""

    label: str                             # for people
    commit: str | None = None
    dirty: bool | None = None
    python: str = sys.executable
    path: Path | None = None               # first on sys.path; None = as the interpreter finds it
    tree: Path | None = None               # the worktree, None = none was made

    @property
    def worker(self) -> tuple[str, ...]:
        """The command that runs a job of this side."""
        if self.path is None:
            return (self.python, "-m", "hibench.worker")
        return (self.python, "-c", self.first + "from hibench.worker import main; raise SystemExit(main())")

    @property
    def first(self) -> str:
        """Python code that puts the packages of this side first."""
        return "" if self.path is None else FIRST.format(path=str(self.path))


@dataclass(frozen=True)
class Planned:
    """What a side is to measure."""

    tasks: list[Task]
    env: dict[str, Any]
    sweeps: dict[str, list[str]]
    limits: list[Rule] = field(default_factory=list)             # of the benchmark file


def here() -> Revision:
    """The code that is running, with its uncommitted changes."""
    from hibench.env import git_state

    state = git_state()
    told = f"{state['commit'][:10]}{'-dirty' * bool(state['dirty'])}" if state["commit"] else f"hibench {hibench.__version__}"
    root = Path(hibench.__file__).resolve().parent.parent
    return Revision(f"this code ({told})", state["commit"], state["dirty"], path=root)


@contextmanager
def open_revision(name: str, work: Path, say: Callable[[str], None]) -> Iterator[Revision]:
    """A side by name: a git revision of the project, a folder with the package hibench in it, or a Python interpreter.

    A revision gets a worktree and an environment below `work`; both are removed at the end. HibenchError where git or pip fail.
    """
    given = Path(name).expanduser()
    if given.is_file() and os.access(given, os.X_OK):
        yield Revision(f"hibench of {given}", python=str(given.absolute()))
        return
    if (given / "hibench" / "__init__.py").is_file():
        yield Revision(f"hibench in {given}", path=given.resolve())
        return
    root = Path(hibench.__file__).resolve().parent.parent
    commit = _git(root, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
    if commit is None:
        raise SpecError(f"'{name}' is no git revision of {root}, no folder with the package hibench, and no Python interpreter")
    tree, target = work / "tree", work / "packages"
    shutil.rmtree(work, ignore_errors=True)
    _git(root, "worktree", "prune")
    if _git(root, "worktree", "add", "--detach", "--force", str(tree), commit) is None:
        raise HibenchError(f"git could not make a worktree of {name} in {tree}; see `git worktree list`")
    try:
        say(f"{name}: installing {commit[:10]} into an environment of its own")
        _install(tree, target)
        label = commit[:10] if commit.startswith(name) else f"{name} ({commit[:10]})"
        yield Revision(label, commit, False, path=target, tree=tree)
    finally:
        _git(root, "worktree", "remove", "--force", str(tree))
        shutil.rmtree(work, ignore_errors=True)


def _install(tree: Path, target: Path) -> None:
    """The package of a worktree alone: its dependencies are those of the running interpreter."""
    try:
        isolated = int(metadata.version("setuptools").split(".")[0]) < SETUPTOOLS
    except (metadata.PackageNotFoundError, ValueError):
        isolated = True                                          # pip then gets setuptools from the package index
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check",
               *([] if isolated else ["--no-build-isolation"]), "--target", str(target), str(tree)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise HibenchError(f"{tree.name}: pip could not install this revision: {last}")


def _git(root: Path, *arguments: str) -> str | None:
    """What git says; None where it fails."""
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def plan(side: Revision, spec: Path, work: Path, *, only: Sequence[str] = (), overrides: Sequence[str] = (),
         device: str | None = None) -> Planned:
    """The tasks of a side, found by the side's own code.

    A spec inside the repository is put into the worktree, at its own place, so that relative paths mean the side's files; if
    the side cannot read it (a method that did not exist yet), the side's own version of the file counts.
    """
    candidates = [spec.resolve()]
    if side.tree is not None:
        root = Path(hibench.__file__).resolve().parent.parent
        if candidates[0].is_relative_to(root):
            own = side.tree / candidates[0].relative_to(root)
            mine = own.with_name(f".compare-{own.name}")
            own.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(spec, mine)
            candidates = [mine, own] if own.exists() else [mine]
    said: dict[str, Any] = {}
    for path in candidates:
        said = _ask(side, path, work, {"only": list(only), "set": list(overrides), "device": device})
        if "error" not in said:
            return _planned(side, said)
    raise SpecError(f"{side.label}: {said['error']}")


def _ask(side: Revision, spec: Path, work: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """Run `PLAN` in the environment of a side."""
    work.mkdir(parents=True, exist_ok=True)
    out = work / "plan.json"
    out.unlink(missing_ok=True)
    question = json.dumps({**asked, "spec": str(spec), "out": str(out.absolute())})
    command = [side.python, "-c", side.first + PLAN, question]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=work)
    try:
        said: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        out.unlink()
    except (OSError, ValueError):
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise NoBaseline(f"{side.label} cannot plan the cells ({last}); it may be too old to compare with") from None
    return said


def _planned(side: Revision, said: dict[str, Any]) -> Planned:
    if said["protocol"] != PROTOCOL:
        raise NoBaseline(f"{side.label} measures by protocol {said['protocol']}, and this hibench by {PROTOCOL}: "
                         "their numbers cannot be compared")
    env = {**said["env"], "git": {"commit": side.commit, "dirty": side.dirty}} if side.commit else said["env"]
    try:
        tasks = [Task(Cell.from_json(t["cell"]), t["id"], t["adapter_digest"], t["weights_digest"],
                      Verdict(**t["verdict"]) if t["verdict"] else None) for t in said["tasks"]]
    except (SpecError, TypeError) as error:
        raise NoBaseline(f"{side.label} describes cells in another way ({error}); it is too far from this hibench") from error
    return Planned([replace(task) for task in tasks], env, said["sweeps"], from_json(said["tolerance"]))
