"""What the shell offers after Tab: models, sizes, conversations. Prints nothing."""

from __future__ import annotations


def models(typed: str) -> list[str]:
    """Return the short names, the demo and the cached targets that start with this."""
    from mlx_gemma_mtp.files import hub_cache, published

    cached = [model.name for model in hub_cache.models() if not model.is_drafter]
    return _starting([*published.SHORT, *cached], typed)


def drafters(typed: str) -> list[str]:
    """Return auto, none and the cached drafters that start with this."""
    from mlx_gemma_mtp.files import hub, hub_cache

    both = [one for model in hub_cache.models() for one in (model, model.drafter) if one]
    cached = {one.name for one in both if one.is_drafter}
    return _starting(["auto", "none", *sorted(cached & {*hub.repositories()})], typed)


def repositories(typed: str) -> list[str]:
    """Return the repositories in the cache that start with this."""
    from mlx_gemma_mtp.files import hub

    return _starting(hub.repositories(), typed)


def sizes(typed: str) -> list[str]:
    """Return the short names of the published sizes that start with this."""
    from mlx_gemma_mtp.files.published import SHORT

    return _starting([*SHORT], typed)


def sessions(typed: str) -> list[str]:
    """Return the saved conversations that start with this."""
    from mlx_gemma_mtp.chat import store

    return _starting([path.stem for path in store.paths()], typed)


def _starting(names: list[str], typed: str) -> list[str]:
    return [name for name in names if name.casefold().startswith(typed.casefold())]
