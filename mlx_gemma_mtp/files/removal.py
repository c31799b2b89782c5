"""How a model leaves the Hub's cache: what goes, what that frees, and the deed.

Touches the folders of the named repository and of its drafter, and nothing else.
"""

from __future__ import annotations

import dataclasses
import difflib
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mlx_gemma_mtp.errors import MgmError, ModelNotFoundError, UsageError
from mlx_gemma_mtp.files import download, hub
from mlx_gemma_mtp.files import hub_cache as cached

if TYPE_CHECKING:
    from huggingface_hub import DeleteCacheStrategy


class Removal(NamedTuple):
    """A repository that is to leave the cache, and the bytes that this frees."""

    name: str
    folder: Path
    size_bytes: int
    strategy: DeleteCacheStrategy | None  # None: in no state that the Hub's client understands


def removals(name: str) -> list[Removal]:
    """What rids the cache of a repository and of its drafter, if that is there.

    Raises UsageError for what is not the cache's to give away, ModelNotFoundError for a name that
    is not in the cache.
    """
    if name == "demo" or hub.is_folder(name):
        raise UsageError(f"{name} is not in the Hub's cache: only what is there can be removed")
    there = cached.repositories()
    if name not in there:
        near = difflib.get_close_matches(name, there)
        hint = f"did you mean {' or '.join(near)}?" if near else "mgm list shows what is there"
        raise ModelNotFoundError(f"{name[:200]} is not in the cache; {hint}")
    return [_removal(one) for one in (name, name + hub.DRAFTER_SUFFIX) if one in there]


def remove(removal: Removal) -> None:
    """Remove a repository, all its revisions and what a download left. Raises MgmError."""
    from huggingface_hub.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what cannot be removed is said below, in one line
    try:
        if removal.strategy is not None:
            removal.strategy.execute()
        if removal.folder.exists():
            shutil.rmtree(removal.folder)
    except OSError as error:
        raise MgmError(f"{removal.name} cannot be removed ({error})") from None
    finally:
        logging.set_verbosity(verbosity)


def _removal(name: str) -> Removal:
    import huggingface_hub
    from huggingface_hub import errors

    folder = hub.repository_folder(name)
    with suppress(errors.CacheNotFound, OSError, ValueError):  # of any repository in the cache
        scan = huggingface_hub.scan_cache_dir(hub.cache_folder())
        mine = next((repo for repo in scan.repos if repo.repo_path.name == folder.name), None)
        if mine is not None and mine.revisions:
            # Two repositories may hold the same commit, and only one of them is to go.
            scan = dataclasses.replace(scan, repos=frozenset([mine]))
            strategy = scan.delete_revisions(*(one.commit_hash for one in mine.revisions))
            parts = sum(cached.size_on_disk(path) for path in download.parts(name))
            return Removal(name, folder, strategy.expected_freed_size + parts, strategy)
    return Removal(name, folder, cached.size_on_disk(folder), None)
