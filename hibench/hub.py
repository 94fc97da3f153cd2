"""Model repositories of the Hugging Face hub: found in the local cache, fetched when asked for, never during a run."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from hibench.errors import HibenchError, MissingWeights

__all__ = ["KNOWN_LICENCES", "UNKNOWN_LICENCE", "fetch", "fetch_command", "find", "folder_digest", "is_hub_id", "licence",
           "select"]

UNKNOWN_LICENCE = "unknown"
KNOWN_LICENCES = {                                  # hub id: the licence its publisher states for the weights
    "stabilityai/stable-diffusion-xl-base-1.0": "CreativeML OpenRAIL++-M",
    "madebyollin/sdxl-vae-fp16-fix": "MIT",
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "CreativeML OpenRAIL-M",
    "runwayml/stable-diffusion-v1-5": "CreativeML OpenRAIL-M",
    "CompVis/stable-diffusion-v1-4": "CreativeML OpenRAIL-M",
    "stabilityai/stable-diffusion-2-base": "CreativeML OpenRAIL++-M",
    "black-forest-labs/FLUX.1-schnell": "Apache-2.0",
    "black-forest-labs/FLUX.1-dev": "FLUX.1 [dev] Non-Commercial",
}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_TENSORS = (".safetensors", ".bin")
_TEXTS = (".json", ".txt", ".model")
_VARIANT = re.compile(r"\.(fp16|bf16|fp32|fp8|int8|non_ema|ema)(?=[.-])")
_INDEX = re.compile(r"\.index(\.\w+)?\.json$")     # which tensor lies in which shard
_OTHER_FRAMEWORKS = re.compile(r"(^|/)(flax_|tf_|openvino_|onnx)|\.(onnx|onnx_data|msgpack|h5)$")


def is_hub_id(text: str) -> bool:
    """Does this look like `owner/name` (and not like a path)?"""
    return bool(_HUB_ID.fullmatch(text)) and not text.startswith((".", "/", "~"))


def fetch_command(repo: str, variant: str | None = None) -> str:
    """What a person types to get a repository."""
    return f"hibench fetch {repo}" + (f" --variant {variant}" if variant else "")


def select(files: Iterable[str], variant: str | None = None) -> list[str]:
    """The files of a repository that a pipeline (or one of its parts) is loaded from, sorted.

    Configurations, vocabularies and tensors; in each folder safetensors rather than pickles, and those of `variant` where
    the folder has them, else those without a variant. Single-file checkpoints beside a `model_index.json`, exports for other
    frameworks, and pictures are left out.
    """
    names = sorted(name for name in files if not _OTHER_FRAMEWORKS.search(name))
    pipeline = "model_index.json" in names
    chosen = [name for name in names if name.endswith(_TEXTS) and not _INDEX.search(name)]
    folders: dict[str, list[str]] = {}
    for name in names:
        if (name.endswith(_TENSORS) or _INDEX.search(name)) and not (pipeline and "/" not in name):
            folders.setdefault(name.rpartition("/")[0], []).append(name)
    for tensors in folders.values():
        safe = [name for name in tensors if ".safetensors" in name] or tensors
        mine = [name for name in safe if variant and variant in _variants(name)]
        chosen += mine or [name for name in safe if not _variants(name)] or safe
    return sorted(chosen)


def _variants(name: str) -> set[str]:
    return set(_VARIANT.findall(name.rpartition("/")[2]))


def find(repo: str, variant: str | None = None) -> Path:
    """The folder of a repository's snapshot in the local cache. Never asks the network; raises MissingWeights."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    missing = f"{repo} is not on this machine; get it with: {fetch_command(repo, variant)}"
    try:
        folder = Path(snapshot_download(repo, local_files_only=True))
    except (LocalEntryNotFoundError, OSError, ValueError) as error:
        raise MissingWeights(missing) from error
    if not any(folder.rglob("*.json")):
        raise MissingWeights(missing)
    return folder


def fetch(repo: str, variant: str | None = None, download: Callable[..., str] | None = None,
          listing: Callable[[str], Iterable[str]] | None = None) -> Path:
    """Download what a pipeline needs of a repository into the hub's local cache and return the snapshot's folder.

    `variant`: precision of the files, e.g. "fp16" (None = the repository's main ones). `download`, `listing`: None =
    huggingface_hub's; for tests. Raises MissingWeights with the reason (no network, no such repository, gated, ...).
    """
    import huggingface_hub

    try:
        names = list(listing(repo) if listing else huggingface_hub.HfApi().list_repo_files(repo))
        wanted = [*select(names, variant), *(["README.md"] if "README.md" in names else [])]
        if not any(name.endswith(_TENSORS) for name in wanted):
            raise MissingWeights(f"{repo}: this repository holds no weights in diffusers' format; name another one")
        return Path((download or huggingface_hub.snapshot_download)(repo, allow_patterns=wanted))
    except HibenchError:
        raise
    except Exception as error:                      # requests, httpx and the hub each have their own errors
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise MissingWeights(f"{repo}: could not be fetched ({type(error).__name__}: {reason}); with a network and, where its "
                             f"licence has to be accepted, HF_TOKEN set, try again: {fetch_command(repo, variant)}") from error


def licence(weights: str) -> str:
    """The licence of a hub id, or of a folder with a model card (README.md); "unknown" where none is stated. No network."""
    if weights in KNOWN_LICENCES:
        return KNOWN_LICENCES[weights]
    try:
        folder = find(weights) if is_hub_id(weights) and not Path(weights).exists() else Path(weights).expanduser()
    except MissingWeights:
        return UNKNOWN_LICENCE
    return _card_licence(folder / "README.md") or UNKNOWN_LICENCE


def _card_licence(card: Path) -> str | None:
    """`license_name` or `license` of the YAML block at the top of a model card."""
    import yaml

    try:
        parts = card.read_text(encoding="utf-8").split("---", 2)
        block: Any = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    stated = (block.get("license_name") or block.get("license")) if isinstance(block, dict) else None
    return str(stated) if stated else None


def folder_digest(folder: Path, variant: str | None = None) -> str:
    """SHA-256 over names and contents of the files that a pipeline in `folder` is loaded from.

    Files of the hub's cache that are stored under their own SHA-256 are not read again.
    """
    total = hashlib.sha256()
    for name in select((file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()), variant):
        total.update(f"{name}\0{_file_digest(folder / name)}\n".encode())
    return total.hexdigest()


def _file_digest(path: Path) -> str:
    from hibench.weights import sha256_of

    real = path.resolve()
    stored = real.name if real.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", real.name) else None
    return stored or sha256_of(real)
