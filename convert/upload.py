"""Uploads a converted folder to the Hub through huggingface_hub, with its token and endpoint.

A new repository is public, unless the organization says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlx_gemma_mtp.errors import MgmError, UsageError, one_line
from mlx_gemma_mtp.files.hub import http_error


def check_upload(repository: str) -> None:
    """Raise UsageError for an invalid repository name, MgmError without a valid Hub token."""
    import huggingface_hub
    from huggingface_hub.utils._validators import validate_repo_id

    with _readable_errors(repository, ""):
        validate_repo_id(repository)
        huggingface_hub.HfApi().whoami()


def upload(folder: Path, repository: str) -> str:
    """Upload a folder; return the repository's address. Raises MgmError, and keeps the folder."""
    import huggingface_hub

    then = f"; {folder} is complete, to try again: hf upload {repository} {folder}"
    with _readable_errors(repository, then):
        api = huggingface_hub.HfApi()
        address = api.create_repo(repository, exist_ok=True)
        api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message="Add weights by mgm convert"
        )
    return str(address)


@contextmanager
def _readable_errors(repository: str, then: str) -> Iterator[None]:
    from huggingface_hub import errors

    try:
        yield
    except errors.HFValidationError:
        raise UsageError(
            f"{repository!r} is not a Hub repository name (example: me/gemma-4-31B-it-4bit)"
        ) from None
    except errors.LocalTokenNotFoundError:
        raise MgmError(f"no Hub token: set HF_TOKEN, or run hf auth login{then}") from None
    except (http_error(), OSError) as error:
        raise MgmError(f"cannot upload to {repository} ({one_line(error)}){then}") from None
