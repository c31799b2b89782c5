"""From a model's name to the folder that holds it: a path, the embedded demo, or the Hub.

What the Hub's cache holds is not asked for again. Knows nothing of what is in the files, but that
a checkpoint without its config or a part of its weights is not one.
"""

from __future__ import annotations

import re
from pathlib import Path

from mlx_gemma_mtp.errors import CheckpointError, ModelNotFoundError, UsageError
from mlx_gemma_mtp.weights import read_config, weight_files

DEMO = Path(__file__).parent / "demo" / "gemma-4-demo-it"
DRAFTER_SUFFIX = "-assistant"

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model"]


def find_pair(model: str | Path, drafter: str | Path | None) -> tuple[Path, Path | None]:
    """The folders of a target and its drafter.

    Each is a folder, "demo" or a Hub name. drafter "auto": in the target's folder as `drafter`,
    beside it, or on the Hub, as `<model>-assistant`; None where there is none. A target that was
    in the cache already has its drafter looked up in the cache only: no network for a cached
    model. Raises ModelNotFoundError, UsageError.
    """
    folder, fetched = _find(model)
    if drafter != "auto":
        return folder, None if drafter is None else _find(drafter)[0]
    whole = folder.resolve()
    for near in (whole / "drafter", whole.parent / (whole.name + DRAFTER_SUFFIX)):
        if near.is_dir():
            return folder, near
    if model == "demo" or _is_folder(model):
        return folder, None
    name = f"{model}{DRAFTER_SUFFIX}"
    try:
        return folder, _from_hub(name) if fetched else _from_cache(name)
    except ModelNotFoundError:
        return folder, None


def _find(name: str | Path) -> tuple[Path, bool]:
    """The folder, and whether it had to be downloaded."""
    if not isinstance(name, (str, Path)):
        raise UsageError(f"a model is a folder or a name, not {type(name).__name__}")
    if name == "demo":
        return DEMO, False
    if _is_folder(name):
        return Path(name).expanduser(), False
    if isinstance(name, Path) or not _HUB_NAME.fullmatch(name):
        raise ModelNotFoundError(
            f"no folder {str(name)[:200]!r}; give a folder, a Hub name such as "
            'google/gemma-4-E4B-it, or "demo"'
        )
    cached = _from_cache(name)
    return (cached, False) if cached is not None else (_from_hub(name), True)


def _is_folder(name: str | Path) -> bool:
    try:
        return str(name) != "" and Path(name).expanduser().is_dir()
    except (OSError, RuntimeError):  # a name too long to be one; a user without a home
        return False


def _from_cache(name: str) -> Path | None:
    """The cached folder of a Hub name, if it holds a whole checkpoint."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        folder = Path(
            huggingface_hub.snapshot_download(name, local_files_only=True, allow_patterns=_FILES)
        )
        read_config(folder)
        weight_files(folder)
    except (errors.LocalEntryNotFoundError, errors.HFValidationError, CheckpointError):
        return None
    return folder


def _from_hub(name: str) -> Path:
    """Download what the cache lacks of a Hub name. Raises ModelNotFoundError."""
    import huggingface_hub
    from huggingface_hub import errors

    # Of the client's HTTP library, whichever it is: what ends a download half-way.
    http_error = errors.HTTPError  # type: ignore[attr-defined]
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=_FILES))
    except errors.HFValidationError:
        raise ModelNotFoundError(f"{name[:200]!r} is neither a folder nor a Hub name") from None
    except errors.GatedRepoError:
        raise ModelNotFoundError(
            f"{name} asks for its terms to be accepted: do so on its Hub page, then set HF_TOKEN"
        ) from None
    except errors.RepositoryNotFoundError:
        raise ModelNotFoundError(f"no folder and no Hub repository named {name!r}") from None
    except (http_error, errors.LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelNotFoundError(
            f"{name} is not in the cache and the Hub cannot be reached ({reason}); "
            "give a folder, or try again online"
        ) from None
