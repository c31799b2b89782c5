"""From a model's name to the folder that holds it: a path, the embedded demo, or the Hub.

The Hub is asked only for what its cache does not hold. Knows nothing of what is in the files.
"""

from __future__ import annotations

from pathlib import Path

from mlx_gemma_mtp.errors import CheckpointError, ModelNotFoundError
from mlx_gemma_mtp.weights import weight_files

DEMO = Path(__file__).parent / "demo" / "gemma-4-demo-it"
DRAFTER_SUFFIX = "-assistant"

_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model"]


def find_model(name: str | Path) -> Path:
    """The folder of a model given as a folder, "demo" or a Hub name. Raises ModelNotFoundError."""
    if str(name) == "demo":
        return DEMO
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    text = str(name)
    if isinstance(name, Path) or text.count("/") != 1 or text[0] in "./~" or text.endswith("/"):
        raise ModelNotFoundError(
            f"no folder {text!r}; give a folder, a Hub name such as google/gemma-4-E4B-it, "
            'or "demo"'
        )
    return _from_hub(text)


def find_drafter(name: str | Path, folder: Path) -> Path | None:
    """The drafter of a model: in its folder, beside it, or `<name>-assistant` on the Hub."""
    for near in (folder / "drafter", folder.with_name(folder.name + DRAFTER_SUFFIX)):
        if near.is_dir():
            return near
    if str(name) == "demo" or Path(name).expanduser().is_dir():
        return None
    try:
        return _from_hub(f"{name}{DRAFTER_SUFFIX}")
    except ModelNotFoundError:
        return None


def _from_hub(name: str) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    try:
        cached = Path(
            huggingface_hub.snapshot_download(name, allow_patterns=_FILES, local_files_only=True)
        )
        weight_files(cached)
        return cached
    except (errors.LocalEntryNotFoundError, CheckpointError):
        pass  # not in the cache, or only a part of it
    except errors.HFValidationError:
        raise ModelNotFoundError(f"{name!r} is neither a folder nor a Hub name") from None
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=_FILES))
    except errors.GatedRepoError:
        raise ModelNotFoundError(
            f"{name} asks for its terms to be accepted: do so on its Hub page, then set HF_TOKEN"
        ) from None
    except errors.RepositoryNotFoundError:
        raise ModelNotFoundError(f"no folder and no Hub repository named {name!r}") from None
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelNotFoundError(
            f"{name} is not in the cache and the Hub cannot be reached ({reason}); "
            "give a folder, or try again online"
        ) from None
