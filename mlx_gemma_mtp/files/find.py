"""From the name of a model to the folders of the target and its drafter, or to what to download.

Models in the Hub's cache are used without network; others are downloaded.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from mlx_gemma_mtp.errors import ModelNotFoundError, UsageError
from mlx_gemma_mtp.files import drafters, hub_cache, preview
from mlx_gemma_mtp.files.checkpoint import read_config
from mlx_gemma_mtp.files.download import complete, snapshot
from mlx_gemma_mtp.files.drafters import Candidate
from mlx_gemma_mtp.files.hub import Download, from_cache, hub_errors, look_up
from mlx_gemma_mtp.files.names import (
    DEMO,
    DRAFTER_SUFFIX,
    check_format,
    is_folder,
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
    if drafter != "auto":
        return folder, None if drafter is None else _find(drafter)[0]
    found = find_drafter(model, folder)
    if found is None and fetched:
        found = _download_drafter(str(model), folder)
    return folder, found


def find_drafter(model: str | Path, folder: Path) -> Path | None:
    """Return the folder of the best drafter on this disk; None if none fits. No network.

    folder: the target's. A drafter inside it, or next to it under its name, is taken as it is.
    """
    whole = folder.resolve()
    inside = [whole / name for name in drafters.INSIDE]
    for path in (*inside, whole.parent / (whole.name + DRAFTER_SUFFIX)):
        if path.is_dir():
            return path
    target = Candidate(target_name(model, folder), folder)
    found = drafters.best(target, drafters.near(folder)) or drafters.best(target, _cached())
    return None if found is None else found.folder


def plan_download(
    model: str, drafter: str | None = "auto", *, update: bool = True
) -> list[Download]:
    """Return what to download for a target and its drafter, if it has one.

    Each is a Hub name as in `find_pair`. update: plan the newest commit, even if the weights of an
    earlier one are cached. Without the Hub, plans from the cache. Raises UsageError for folders and
    the demo, ModelNotFoundError if a model is neither on the Hub nor in the cache, CheckpointError
    if it is not a Gemma 4 model.
    """
    target = look_up(model, update=update)
    if drafter != "auto":
        return [target] if drafter is None else [target, look_up(drafter, update=update)]
    name = None if target.alone else _drafter_to_plan(target)
    return [target] if name is None else [target, look_up(name, update=update)]


def _drafter_to_plan(target: Download) -> str | None:
    """Return the name of the best drafter that is cached, else of the first that is published."""
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as place:
        folder = target.folder
        if not (folder / "config.json").exists():
            folder = Path(place)
            for path in {"config.json", "README.md"}.intersection(one.path for one in target.files):
                preview.fetch_file(target, path, folder)
        cached = drafters.best(Candidate(target.repository, folder), _cached())
        if cached is not None:
            return cached.name
        names = drafters.to_pull(target.repository, read_config(folder))
    if target.refused is not None:
        return None
    with hub_errors(target.name):
        return next((name for name in names if HfApi().repo_exists(name)), None)


def target_name(model: str | Path, folder: Path) -> str:
    """Return the Hub name of a target without its revision, or its folder's name."""
    if model != "demo" and not is_folder(model):
        return split_name(str(model))[0]
    whole = folder.resolve()
    if whole.parent.name == "snapshots":  # in the Hub's cache
        return whole.parent.parent.name.removeprefix("models--").replace("--", "/", 1)
    return whole.name


def _cached() -> Iterator[Candidate]:
    for name in hub_cache.repositories():
        folder = from_cache(name)
        if folder is not None and drafters.is_drafter(folder):
            yield Candidate(name, folder)


def _download_drafter(model: str, folder: Path) -> Path | None:
    for name in drafters.to_pull(target_name(model, folder), read_config(folder)):
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
