"""From the name of a model to the folders of the target and its drafter.

Models in the Hub's cache are used without network; others are downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from mlx_gemma_mtp.errors import CheckpointError, ModelNotFoundError, UsageError
from mlx_gemma_mtp.files import drafters
from mlx_gemma_mtp.files.checkpoint import read_target_config
from mlx_gemma_mtp.files.download import complete, fetch
from mlx_gemma_mtp.files.drafters import Candidate, Target
from mlx_gemma_mtp.files.hub import from_cache, repository_of
from mlx_gemma_mtp.files.names import (
    DEMO,
    DEMO_DRAFTER,
    DRAFTER_SUFFIX,
    check_target,
    drafter_called,
    is_folder,
    is_local,
    no_such,
    split_name,
)
from mlx_gemma_mtp.files.plan import Download, check_room, look_up, plan_download


def find_pair(
    model: str | Path,
    drafter: str | Path | None,
    before_download: Callable[[Sequence[Download]], None] = lambda _: None,
) -> tuple[Path, Path | None]:
    """Return the folders of a target and its drafter.

    Each is a folder, "demo" or a Hub name, which may end in @ and a revision: a branch, a tag or a
    commit. drafter: also a size, for Google's drafter of that size. "auto": the best that fits the
    target, in its folder, next to it or in the cache; None if there is none. If the target has to
    be downloaded, its drafter is too. before_download: gets what has to be downloaded, if anything,
    and may raise. Raises ModelNotFoundError, UsageError, CheckpointError for what is not Gemma 4,
    and MgmError if the files cannot be written to disk.
    """
    check_target(model)
    drafter = drafter_called(drafter)
    downloads = _to_download(model, drafter)
    if downloads:
        before_download(downloads)
        check_room(downloads)
    for one in downloads:
        fetch(one)
    folder = _folder(model)
    if drafter is None:
        return folder, None
    if drafter == "demo":
        return folder, DEMO_DRAFTER
    return folder, find_drafter(model, folder) if drafter == "auto" else _folder(drafter)


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


def target_without_drafter(model: str) -> tuple[Path, Target] | None:
    """Return a target that is on this disk, and its folder, unless a drafter for it is too."""
    folder = _on_disk(model)
    if folder is None or find_drafter(model, folder) is not None:
        return None
    return folder, Target.at(folder, target_name(model, folder))


def check_tokenizer(model: str) -> None:
    """Raise CheckpointError if a folder that is on this disk has no target, or no tokenizer."""
    folder = _on_disk(model)
    if folder is None:
        return
    read_target_config(folder)
    if not (folder / "tokenizer.json").is_file():
        raise CheckpointError(f"tokenizer.json is missing from {folder}: download or copy it")


def target_name(model: str | Path, folder: Path) -> str:
    """Return the Hub name of a target without its revision, or its folder's name."""
    if not is_local(model):
        return split_name(str(model))[0]
    whole = folder.resolve()
    if whole.parent.name == "snapshots":  # in the Hub's cache
        return repository_of(whole.parents[1])
    return whole.name


def _to_download(model: str | Path, drafter: str | Path | None) -> list[Download]:
    """Return what is not on this disk. Asks the Hub if anything is not."""
    wanted = None if drafter is None or (drafter != "auto" and _is_local(drafter)) else str(drafter)
    if not (_is_local(model) or from_cache(str(model))):
        return plan_download(str(model), wanted, update=False)
    if wanted in (None, "auto") or from_cache(wanted):
        return []
    return [look_up(wanted, update=False)]


def _folder(name: str | Path) -> Path:
    """Return the folder of what is on this disk."""
    folder = _on_disk(name)
    if folder is None:
        raise ModelNotFoundError(f"{name} was removed from the cache meanwhile: run this again")
    return folder if is_local(name) else complete(str(name), folder)


def _on_disk(name: str | Path) -> Path | None:
    """Return the folder of a name if it is whole on this disk."""
    if name == "demo":
        return DEMO
    return Path(name).expanduser() if is_folder(name) else from_cache(str(name))


def _is_local(name: str | Path) -> bool:
    """Return True for the demo and a folder, False for a Hub name. Raises for anything else."""
    if not isinstance(name, (str, Path)):
        raise UsageError(f"a model is a folder or a name, not {type(name).__name__}")
    if isinstance(name, Path) and not is_folder(name):
        raise no_such(name)
    return is_local(name)
