"""The weights store: which files extractors need, where they are looked for, and how they are fetched and checked."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hibench.errors import MissingWeights, SpecError, did_you_mean

if TYPE_CHECKING:
    import torch

__all__ = [
    "CATALOG",
    "Found",
    "WeightFile",
    "cache_directory",
    "check_state",
    "describe",
    "digest_of",
    "fetch",
    "find",
    "is_published",
    "is_torchscript",
    "load_script",
    "read_state",
    "resolve",
    "sha256_of",
]


@dataclass(frozen=True)
class WeightFile:
    """One published weights file; `sha256` may be a prefix where the publisher states only that (at least 8 hex digits)."""

    name: str
    filename: str
    url: str
    sha256: str
    about: str


def _clip(name: str, file: str, digest: str) -> WeightFile:
    return WeightFile(name, file, f"https://openaipublic.azureedge.net/clip/models/{digest}/{file}", digest, "OpenAI CLIP, MIT")


def _dinov2(size: str, digest: str) -> WeightFile:
    stem = f"dinov2_vit{size.lower()}14"
    url = f"https://dl.fbaipublicfiles.com/dinov2/{stem}/{stem}_pretrain.pth"
    return WeightFile(
        f"dinov2-vit-{size.lower()}-14", f"{stem}_pretrain.pth", url, digest, f"DINOv2 ViT-{size}/14, Apache-2.0"
    )


_FILES = (
    WeightFile(
        "inception-v3-compat",
        "weights-inception-2015-12-05-6726825d.pth",
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
        "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        "TF Inception-v3 (2015-12-05), Apache-2.0",
    ),
    WeightFile(
        "vgg16",
        "vgg16-397923af.pth",
        "https://download.pytorch.org/models/vgg16-397923af.pth",
        "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        "VGG16 (ImageNet), for vgg16 features and psim",
    ),
    WeightFile(
        "alexnet",
        "alexnet-owt-7be5be79.pth",
        "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        "7be5be79",
        "AlexNet (ImageNet), the trunk of lpips",
    ),
    _clip("clip-vit-b-32", "ViT-B-32.pt", "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"),
    _clip("clip-vit-b-16", "ViT-B-16.pt", "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f"),
    _clip("clip-vit-l-14", "ViT-L-14.pt", "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"),
    _clip("clip-vit-l-14-336", "ViT-L-14-336px.pt", "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02"),
    _dinov2("S", "b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9"),
    _dinov2("B", "0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73"),
    _dinov2("L", "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428"),
    _dinov2("g", "baf8467e50af277596bbbafa06887c177ee899ab46033649c383577d7e9309d3"),
)
CATALOG: Mapping[str, WeightFile] = {f.name: f for f in _FILES}


@dataclass(frozen=True)
class Found:
    """A weights file on this machine."""

    path: Path
    sha256: str


def cache_directory() -> Path:
    """Where hibench keeps what it can make or fetch again: $HIBENCH_CACHE, else ~/.cache/hibench."""
    return Path(os.environ.get("HIBENCH_CACHE") or Path.home() / ".cache" / "hibench").expanduser()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def digest_of(config: Any, files: Iterable[Path] = ()) -> str:
    """SHA-256 of a configuration (what JSON can hold) and of the bytes of files in the order given, hex."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for path in files:
        digest.update(sha256_of(path).encode())
    return digest.hexdigest()


def is_published(name: str, sha256: str | None) -> bool:
    """Whether these are the published weights of that name."""
    entry = CATALOG.get(name)
    return entry is not None and bool(sha256) and str(sha256).startswith(entry.sha256)


def _places(entry: WeightFile) -> list[Path]:
    """Where a published file is looked for, in order."""
    torch_home = Path(
        os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torch"
    )
    own = os.environ.get("HIBENCH_WEIGHTS")
    folders = [*([Path(own)] if own else []), cache_directory() / "weights", torch_home / "hub" / "checkpoints"]
    if entry.name.startswith("clip-"):
        folders.append(Path.home() / ".cache" / "clip")
    return [folder.expanduser() / entry.filename for folder in folders]


def find(name: str) -> Path | None:
    """The first copy of a published file on this machine, unverified; None if there is none."""
    return next((p for p in _places(_entry(name)) if p.is_file()), None)


def _entry(name: str) -> WeightFile:
    if name not in CATALOG:
        raise SpecError(f"no weights named '{name}'{did_you_mean(name, CATALOG)}; known: {', '.join(CATALOG)}")
    return CATALOG[name]


def resolve(name: str, explicit: str | Path | None = None, user: str | None = None) -> Found:
    """The file that holds the weights `name`: `explicit` if given (any hash), else a published copy, whose hash is checked.

    `user`: the extractor or metric that asks, for the message. Never downloads. Raises MissingWeights.
    """
    user = user or name
    if explicit is not None:
        path = Path(explicit).expanduser()
        if not path.is_file():
            raise MissingWeights(
                f"{user}: no weights file at {path}; check the path, or get the published one with: hibench fetch {name}"
            )
        return Found(path, sha256_of(path))
    entry = _entry(name)
    here = find(name)
    if here is None:
        raise MissingWeights(
            f"{user}: weights {entry.filename} are not on this machine (looked in "
            f"{', '.join(str(p.parent) for p in _places(entry))}); get them with: hibench fetch {name}"
        )
    digest = sha256_of(here)
    if not digest.startswith(entry.sha256):
        raise MissingWeights(
            f"{user}: {here} has SHA-256 {digest[:16]}…, the published file {entry.sha256[:16]}… (truncated or another "
            f"file); remove it, then: hibench fetch {name}"
        )
    return Found(here, digest)


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive (as OpenAI's CLIP files are)."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(n.endswith("/constants.pkl") for n in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def load_script(path: Path, device: str = "cpu") -> Any:
    """A TorchScript archive as a module; torch's announcement that it will go is not the user's concern."""
    import warnings

    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return torch.jit.load(str(path), map_location=device).eval()  # type: ignore[no-untyped-call]


def read_state(path: Path, user: str) -> "dict[str, torch.Tensor]":
    """The tensors of a .safetensors, .pth or TorchScript file, on the CPU; nothing in it is executed but TorchScript's own
    loader.

    Raises MissingWeights in one line for a truncated or foreign file.
    """
    import torch

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        if is_torchscript(path):
            return dict(load_script(path).state_dict())
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile, pickle, safetensors and torch each have their own errors
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise MissingWeights(
            f"{user}: {path} is not a readable weights file ({type(error).__name__}: {reason}); "
            "it may be truncated: get it again"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not state or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise MissingWeights(f"{user}: {path} holds no table of tensors; give a state_dict file")
    return state


def check_state(state: "Mapping[str, torch.Tensor]", shapes: Mapping[str, tuple[int, ...]], path: Path, user: str) -> None:
    """Every expected tensor is there with its shape, else MissingWeights that names the first difference."""
    lacking = [k for k in shapes if k not in state]
    if lacking:
        surplus = [k for k in state if k not in shapes and not k.endswith("num_batches_tracked")]
        hint = f"; it holds e.g. '{surplus[0]}'" if surplus else ""
        raise MissingWeights(
            f"{user}: {path} has wrong keys: {len(lacking)} of {len(shapes)} tensors are missing, e.g. '{lacking[0]}'{hint}; "
            "give the file of this network"
        )
    for key, shape in shapes.items():
        if tuple(state[key].shape) != tuple(shape):
            raise MissingWeights(
                f"{user}: {path}: tensor '{key}' has shape {tuple(state[key].shape)}, expected {tuple(shape)}; "
                "give the file of this network"
            )


def fetch(name: str, opener: Callable[..., Any] | None = None) -> Path:
    """Download published weights into the cache, check the SHA-256 and return the path; an existing good copy is kept.

    `opener`: what opens a URL (None = urllib's); for tests. Raises MissingWeights with the address when there is no network or
    the hash is wrong, SpecError for an unknown name.
    """
    import urllib.request

    entry = _entry(name)
    here = find(name)
    if here is not None and sha256_of(here).startswith(entry.sha256):
        return here
    target = cache_directory() / "weights" / entry.filename
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        with (opener or urllib.request.urlopen)(entry.url, timeout=60) as response, part.open("wb") as out:
            while chunk := response.read(1 << 20):
                out.write(chunk)
        digest = sha256_of(part)
        if not digest.startswith(entry.sha256):
            raise MissingWeights(
                f"{name}: {entry.url} gave a file with SHA-256 {digest[:16]}…, expected {entry.sha256[:16]}…; "
                f"nothing was kept; try again: hibench fetch {name}"
            )
        os.replace(part, target)
    except OSError as error:
        raise MissingWeights(
            f"{name}: could not download {entry.url} ({error}); copy the file by hand to {target} "
            f"(SHA-256 {entry.sha256}), or try again: hibench fetch {name}"
        ) from error
    finally:
        part.unlink(missing_ok=True)
    return target


def describe() -> list[dict[str, Any]]:
    """One row per weights file: name, file, whether it is here, what it is, and the command that gets it."""
    rows = []
    for entry in CATALOG.values():
        here = find(entry.name)
        rows.append(
            {
                "name": entry.name,
                "file": str(here) if here else entry.filename,
                "available": here is not None,
                "about": entry.about,
                "next": "" if here else f"hibench fetch {entry.name}",
            }
        )
    return rows
