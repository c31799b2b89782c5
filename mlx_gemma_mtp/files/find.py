"""From the name of a model to the folders of the target and its drafter.

Models in the Hub's cache are used without network; others are downloaded.
"""

from __future__ import annotations

from pathlib import Path

from mlx_gemma_mtp.errors import ModelNotFoundError, UsageError
from mlx_gemma_mtp.files.download import snapshot
from mlx_gemma_mtp.files.hub import from_cache
from mlx_gemma_mtp.files.names import DEMO, DRAFTER_SUFFIX, drafter_name, is_folder, no_such


def find_pair(model: str | Path, drafter: str | Path | None) -> tuple[Path, Path | None]:
    """Return the folders of a target and its drafter.

    Each is a folder, "demo" or a Hub name, which may end in @ and a revision: a branch, a tag or a
    commit. drafter "auto": `drafter` in the target's folder, `<model>-assistant` next to it or on
    the Hub, or None if there is none; if the target is cached, only the cache is searched. Raises
    ModelNotFoundError, UsageError, and MgmError if the files cannot be written to disk.
    """
    folder, fetched = _find(model)
    if drafter != "auto":
        return folder, None if drafter is None else _find(drafter)[0]
    whole = folder.resolve()
    for near in (whole / "drafter", whole.parent / (whole.name + DRAFTER_SUFFIX)):
        if near.is_dir():
            return folder, near
    if model == "demo" or is_folder(model):
        return folder, None
    name = drafter_name(str(model))
    try:
        return folder, snapshot(name) if fetched else from_cache(name)
    except ModelNotFoundError:
        return folder, None


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
    return (cached, False) if cached is not None else (snapshot(name), True)
