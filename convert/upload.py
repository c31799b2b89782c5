"""A converted folder's way to the Hub, through huggingface_hub: its token, its endpoint.

A repository that is not there is created as huggingface_hub does by default: public, unless the
organization says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlx_gemma_mtp.errors import MgmError, UsageError, one_line


def check_upload(repository: str) -> None:
    """Find out before the work whether it can be uploaded at all.

    Raises UsageError for what is no repository's name, MgmError without a token that the Hub takes.
    """
    import huggingface_hub
    from huggingface_hub.utils._validators import validate_repo_id

    with _in_one_line(repository, ""):
        validate_repo_id(repository)
        huggingface_hub.HfApi().whoami()


def upload(folder: Path, repository: str) -> str:
    """Upload a folder; returns the repository's address. Raises MgmError; the folder stays."""
    import huggingface_hub

    then = f"; {folder} is complete: hf upload {repository} {folder} tries again"
    with _in_one_line(repository, then):
        api = huggingface_hub.HfApi()
        address = api.create_repo(repository, exist_ok=True)
        api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message="Add weights by mgm convert"
        )
    return str(address)


@contextmanager
def _in_one_line(repository: str, then: str) -> Iterator[None]:
    from huggingface_hub import errors

    http_error = errors.HTTPError  # type: ignore[attr-defined] # of the client's HTTP library
    try:
        yield
    except errors.HFValidationError:
        raise UsageError(
            f"{repository!r} is no Hub repository's name, such as me/gemma-4-31B-it-4bit"
        ) from None
    except errors.LocalTokenNotFoundError:
        raise MgmError(f"uploading needs a token: set HF_TOKEN, or hf auth login{then}") from None
    except (http_error, OSError) as error:
        reason = one_line(error)
        raise MgmError(f"{repository} cannot be uploaded to ({reason}){then}") from None
