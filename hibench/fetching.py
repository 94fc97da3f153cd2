"""`hibench fetch NAME`: weights of extractors, repositories of the Hugging Face hub, and what a method is published with."""

from __future__ import annotations

from pathlib import Path

from hibench.errors import SpecError, did_you_mean

__all__ = ["fetch_named"]


def fetch_named(name: str, variant: str | None = None) -> list[tuple[str, Path, str]]:
    """Fetch what a name stands for; (what, where it is now, its licence or "" where it is known by its name) of each.

    name: weights of an extractor | a hub id (owner/name) | a method, for the weights it is published with. variant: precision
    of the files of a hub id, e.g. "fp16". Raises MissingWeights (no network, ...), SpecError (no such name, nothing to fetch).
    """
    from hibench import hub, weights
    from hibench.registry import load_adapter, method_names

    if name in weights.CATALOG:
        if variant is not None:
            raise SpecError(f"--variant {variant}: {name} has no variants; give it for a hub id (owner/name)")
        return [(name, weights.fetch(name), "")]
    if hub.is_hub_id(name):
        return [(name, hub.fetch(name, variant), hub.licence(name))]
    if name not in method_names():
        known = [*weights.CATALOG, *method_names()]
        raise SpecError(f"nothing to fetch is named '{name}'{did_you_mean(name, known)}; give weights of `hibench list "
                        "weights`, a method, or a hub id (owner/name)")
    repositories: tuple[str, ...] = getattr(load_adapter(name), "hub_weights", ())
    if not repositories:
        raise SpecError(f"{name}: there is nothing to fetch: its reference weights come with hibench; to run others, give "
                        "their hub id (owner/name)")
    return [(repo, hub.fetch(repo, variant), hub.licence(repo)) for repo in repositories]
