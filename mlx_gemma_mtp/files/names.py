"""What a model's name means: a folder, the embedded demo, or a repository on the Hub.

Looks at folders only: neither at the Hub nor at what is downloaded.
"""

from __future__ import annotations

import re
from pathlib import Path

from mlx_gemma_mtp.errors import ModelNotFoundError

DEMO = Path(__file__).parents[1] / "demo" / "gemma-4-demo-it"
DRAFTER_SUFFIX = "-assistant"
DEMO_DRAFTER = DEMO.with_name(DEMO.name + DRAFTER_SUFFIX)
MAIN = "main"  # the revision that a name without one means

_HUB_NAME = re.compile(r"([\w-][\w.-]*/[\w.-]+)(?:@([\w./-]+))?")
_PUBLISHED = [f"google/gemma-4-{size}-it" for size in ("E2B", "E4B", "12B", "26B-A4B", "31B")]


def split_name(name: str) -> tuple[str, str]:
    """Return a Hub name's repository and revision. Raises ModelNotFoundError."""
    match = _HUB_NAME.fullmatch(name)
    if match is None:
        raise no_such(name)
    return match[1], match[2] or MAIN


def drafter_name(name: str) -> str:
    """Return the Hub name of a target's drafter, without a revision."""
    return split_name(name)[0] + DRAFTER_SUFFIX


def is_folder(name: str | Path) -> bool:
    """Return True if this is a folder, and so not looked for on the Hub."""
    try:
        return str(name) != "" and Path(name).expanduser().is_dir()
    except (OSError, RuntimeError):  # a name too long to be one; a user without a home
        return False


def no_such(name: str | Path) -> ModelNotFoundError:
    """Return the error for a name that is neither a folder, nor a Hub name, nor the demo."""
    short = str(name)[:200]
    if short.endswith(".gguf"):
        return ModelNotFoundError(
            f"{short}: GGUF files are not supported; give a folder with safetensors, or a Hub name"
        )
    near = [one for one in _PUBLISHED if len(short) > 2 and short.casefold() in one.casefold()]
    if len(near) == 1:
        return ModelNotFoundError(
            f"{short!r}: did you mean {near[0]}? Otherwise give a folder, a Hub name or demo"
        )
    return ModelNotFoundError(
        f"no folder {short!r}: give a folder, a Hub name such as {_PUBLISHED[1]}, or demo"
    )
