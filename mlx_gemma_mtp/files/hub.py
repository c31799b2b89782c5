"""From a model's name to the folder that holds it: a path, the embedded demo, or the Hub.

What the Hub's cache holds is not asked for again. Knows nothing of what is in the files, but that
a checkpoint without its config or a part of its weights is not one.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from json import JSONDecodeError
from pathlib import Path

from mlx_gemma_mtp.errors import CheckpointError, MgmError, ModelNotFoundError, UsageError
from mlx_gemma_mtp.files.checkpoint import read_config, weight_files

DEMO = Path(__file__).parents[1] / "demo" / "gemma-4-demo-it"
DRAFTER_SUFFIX = "-assistant"
DEMO_DRAFTER = DEMO.with_name(DEMO.name + DRAFTER_SUFFIX)
FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model"]  # what a checkpoint needs
MAIN = "main"  # the revision that a name without one means

_HUB_NAME = re.compile(r"([\w-][\w.-]*/[\w.-]+)(?:@([\w./-]+))?")


def find_pair(model: str | Path, drafter: str | Path | None) -> tuple[Path, Path | None]:
    """The folders of a target and its drafter.

    Each is a folder, "demo" or a Hub name, which may end in @ and a revision: a branch, a tag or a
    commit. drafter "auto": in the target's folder as `drafter`, beside it, or on the Hub, as
    `<model>-assistant`; None where there is none. A target that was in the cache already has its
    drafter looked up in the cache only: no network for a cached model. Raises ModelNotFoundError,
    UsageError, and MgmError where the disk does not take the files.
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
        return folder, _from_hub(name) if fetched else from_cache(name)
    except ModelNotFoundError:
        return folder, None


def split_name(name: str) -> tuple[str, str]:
    """A Hub name's repository and revision. Raises ModelNotFoundError for what is no such name."""
    match = _HUB_NAME.fullmatch(name)
    if match is None:
        raise _no_such(name)
    return match[1], match[2] or MAIN


def drafter_name(name: str) -> str:
    """The Hub name of a target's drafter, whose revisions are its own."""
    return split_name(name)[0] + DRAFTER_SUFFIX


def is_folder(name: str | Path) -> bool:
    """Is this a folder, and so not looked for on the Hub?"""
    try:
        return str(name) != "" and Path(name).expanduser().is_dir()
    except (OSError, RuntimeError):  # a name too long to be one; a user without a home
        return False


def cache_folder() -> Path:
    """Where the Hub's client keeps its downloads: HF_HUB_CACHE, or `hub` in HF_HOME."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser()


def repository_folder(repository: str) -> Path:
    """Where the cache keeps a repository, there or not."""
    return cache_folder() / f"models--{repository.replace('/', '--')}"


def from_cache(name: str) -> Path | None:
    """The cached folder of a Hub name, if it holds a whole checkpoint. No network."""
    import huggingface_hub

    repository, revision = split_name(name)
    try:
        folder = Path(
            huggingface_hub.snapshot_download(
                repository, revision=revision, local_files_only=True, allow_patterns=FILES
            )
        )
        read_config(folder)
        weight_files(folder)
    except (OSError, ValueError, CheckpointError):  # nothing there, no valid name, or damaged
        return None
    return folder


@contextmanager
def hub_errors(name: str) -> Iterator[None]:
    """Within it, what the Hub's client raises for this name becomes an MgmError of one line.

    A ModelNotFoundError, or an MgmError where the disk does not take the files.
    """
    from huggingface_hub import constants, errors

    # Of the client's HTTP library, whichever it is: what ends a download half-way.
    http_error = errors.HTTPError  # type: ignore[attr-defined]
    try:
        yield
    except errors.HFValidationError:
        raise ModelNotFoundError(f"{name[:200]!r} is neither a folder nor a Hub name") from None
    except errors.GatedRepoError:
        raise ModelNotFoundError(
            f"{name} asks for its terms to be accepted: do so on its Hub page, then set HF_TOKEN"
        ) from None
    except errors.RepositoryNotFoundError:
        raise ModelNotFoundError(
            f"no folder and no Hub repository named {name!r}; if it is a private one, set HF_TOKEN"
        ) from None
    except errors.RevisionNotFoundError:
        repository, revision = split_name(name)
        raise ModelNotFoundError(f"{repository} has no revision {revision!r}") from None
    # JSONDecodeError: something on the way answered in the Hub's place.
    except (http_error, errors.LocalEntryNotFoundError, OSError, JSONDecodeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, OSError) and (error.filename or error.errno == errno.ENOSPC):
            raise MgmError(
                f"{name} cannot be written to {cache_folder()} ({reason}): make room there, "
                "or have HF_HOME name another folder"
            ) from None
        if constants.HF_HUB_OFFLINE:
            reason = "HF_HUB_OFFLINE is set"
        raise ModelNotFoundError(
            f"{name} is to come from the Hub, which cannot be reached ({reason}); "
            "give a folder, or try again online"
        ) from None


def _no_such(name: str | Path) -> ModelNotFoundError:
    return ModelNotFoundError(
        f"no folder {str(name)[:200]!r}; give a folder, a Hub name such as "
        'google/gemma-4-E4B-it, or "demo"'
    )


def _find(name: str | Path) -> tuple[Path, bool]:
    """The folder, and whether it had to be downloaded."""
    if not isinstance(name, (str, Path)):
        raise UsageError(f"a model is a folder or a name, not {type(name).__name__}")
    if name == "demo":
        return DEMO, False
    if is_folder(name):
        return Path(name).expanduser(), False
    if isinstance(name, Path):
        raise _no_such(name)
    cached = from_cache(name)
    return (cached, False) if cached is not None else (_from_hub(name), True)


def _from_hub(name: str) -> Path:
    """Download what the cache lacks of a Hub name. Raises as `hub_errors` says."""
    import huggingface_hub

    repository, revision = split_name(name)
    with hub_errors(name):
        return Path(
            huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=FILES)
        )
