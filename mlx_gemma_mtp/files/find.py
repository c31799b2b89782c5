"""From the name of a model to the folders of the target and its drafter.

Models in the Hub's cache are used without network; others are downloaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mlx_gemma_mtp.errors import ModelNotFoundError, UsageError
from mlx_gemma_mtp.files import drafters
from mlx_gemma_mtp.files.download import complete, snapshot
from mlx_gemma_mtp.files.drafters import Candidate, Target
from mlx_gemma_mtp.files.hub import from_cache, repository_of
from mlx_gemma_mtp.files.names import (
    DEMO,
    DEMO_DRAFTER,
    DRAFTER_SUFFIX,
    check_format,
    is_folder,
    is_local,
    no_such,
    split_name,
)


def find_pair(model: str | Path, drafter: str | Path | None) -> tuple[Path, Path | None]:
    """Return the folders of a target and its drafter.

    Each is a folder, "demo" or a Hub name, which may end in @ and a revision: a branch, a tag or a
    commit. drafter "auto": the best that fits the target, in its folder, next to it or in the
    cache; None if there is none. If the target has to be downloaded, its drafter is too. Raises
    ModelNotFoundError, UsageError, and MgmError if the files cannot be written to disk.
    """
    folder, fetched = _find(model)
    if drafter == "demo":
        return folder, DEMO_DRAFTER
    if drafter != "auto":
        return folder, None if drafter is None else _find(drafter)[0]
    found = find_drafter(model, folder)
    if found is None and fetched:
        found = _download_drafter(str(model), folder)
    return folder, found


def find_drafter(
    model: str | Path, folder: Path, cached: Sequence[Candidate] | None = None
) -> Path | None:
    """Return the folder of the best drafter on this disk; None if none fits. No network.

    folder: the target's. A drafter inside it, or next to it under its name, is taken as it is.
    cached: the drafters of the Hub's cache, if they are known.
    """
    whole = folder.resolve()
    inside = [whole / name for name in drafters.INSIDE]
    for path in (*inside, whole.parent / (whole.name + DRAFTER_SUFFIX)):
        if path.is_dir():
            return path
    target = Target.at(folder, target_name(model, folder))
    found = drafters.best(target, drafters.near(folder))
    if found is None:
        found = drafters.best(target, drafters.in_cache() if cached is None else cached)
    return None if found is None else found.folder


def target_without_drafter(model: str) -> Target | None:
    """Return a target that is on this disk, unless a drafter for it is too."""
    folder = DEMO if model == "demo" else None
    if folder is None:
        folder = Path(model).expanduser() if is_folder(model) else from_cache(model)
    if folder is None or find_drafter(model, folder) is not None:
        return None
    return Target.at(folder, target_name(model, folder))


def target_name(model: str | Path, folder: Path) -> str:
    """Return the Hub name of a target without its revision, or its folder's name."""
    if not is_local(model):
        return split_name(str(model))[0]
    whole = folder.resolve()
    if whole.parent.name == "snapshots":  # in the Hub's cache
        return repository_of(whole.parents[1])
    return whole.name


def _download_drafter(model: str, folder: Path) -> Path | None:
    for name in drafters.to_pull(Target.at(folder, target_name(model, folder))):
        try:
            return snapshot(name)
        except ModelNotFoundError:
            continue
    return None


def _find(name: str | Path) -> tuple[Path, bool]:
    """Return the folder, and True if it had to be downloaded."""
    if not isinstance(name, (str, Path)):
        raise UsageError(f"a model is a folder or a name, not {type(name).__name__}")
    if name == "demo":
        return DEMO, False
    if is_folder(name):
        return Path(name).expanduser(), False
    if isinstance(name, Path):
        raise no_such(name)
    cached = from_cache(name)
    if cached is not None:
        return complete(name, cached), False
    check_format(name)
    return snapshot(name), True
