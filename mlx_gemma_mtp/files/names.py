"""What a model's name means: a folder, the embedded demo, or a repository on the Hub.

Looks at folders only: neither at the Hub nor at what is downloaded.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from pathlib import Path

from mlx_gemma_mtp.errors import CheckpointError, MgmError, ModelNotFoundError
from mlx_gemma_mtp.files.published import SHORT, SIZES, size_of, size_within

DEMO = Path(__file__).parents[1] / "demo" / "gemma-4-demo-it"
DRAFTER_SUFFIX = "-assistant"
DEMO_DRAFTER = DEMO.with_name(DEMO.name + DRAFTER_SUFFIX)
MAIN = "main"  # the revision that a name without one means

_HUB_NAME = re.compile(r"([\w-][\w.-]*/[\w.-]+)(?:@([\w./-]+))?")
_HUB_PAGE = re.compile(r"(?:https?://)?(?:huggingface\.co|hf\.co)/([\w-][\w.-]*/[\w.-]+)")
_OTHER_GEMMA = re.compile(r"(?<![a-z])gemma-?[1-3]n?(?=[-_]|$)", re.IGNORECASE)
_DRAFTER = re.compile(r"gemma-4-[\w.]+-it(-qat-q4_0-unquantized)?-assistant", re.IGNORECASE)
_OTHER_FORMAT = re.compile(
    r"GGUF|AWQ|GPTQ|w4a16-ct|mobile-ct|LiteRT|ONNX|bnb-4bit|(?<![a-z])FP8(?=-|$)", re.IGNORECASE
)


def split_name(name: str) -> tuple[str, str]:
    """Return a Hub name's repository and revision. Raises what `no_such` returns."""
    match = _HUB_NAME.fullmatch(name)
    if match is None or is_file(name):
        raise no_such(name)
    return match[1], match[2] or MAIN


def is_folder(name: str | Path) -> bool:
    """Return True if this is a folder."""
    return _is(name, Path.is_dir)


def is_file(name: str | Path) -> bool:
    """Return True if this is a file."""
    return _is(name, Path.is_file)


def _is(name: str | Path, kind: Callable[[Path], bool]) -> bool:
    try:
        return str(name) != "" and kind(Path(name).expanduser())
    except (OSError, RuntimeError):  # a name too long to be one; a user without a home
        return False


def is_local(name: str | Path) -> bool:
    """Return True for a folder and for the demo, which are not looked for on the Hub."""
    return name == "demo" or is_folder(name)


def no_such(name: str | Path) -> MgmError:
    """Return the error for a name that is neither a folder, nor a Hub name, nor the demo."""
    short = str(name)[:200]
    if short.casefold().endswith(".gguf"):
        return CheckpointError(f"{short}: GGUF files are not supported; {_instead(short)}")
    if is_file(name) or Path(short).suffix in (".safetensors", ".json"):
        return ModelNotFoundError(f"{short} is a file: give the folder that holds the model")
    meant = did_you_mean(short)
    if meant is not None:
        return ModelNotFoundError(f"{short!r}: did you mean {meant}?")
    return ModelNotFoundError(
        f"no folder {short!r}: give a size ({', '.join(SHORT)}), a folder, a Hub name such as "
        f"{SIZES[1].original}, or demo"
    )


def drafter_called(name: str | Path | None) -> str | Path | None:
    """Return what a drafter's name means: for a size, Google's drafter of that size.

    Raises ModelNotFoundError for anything that is not a drafter's name.
    """
    if not isinstance(name, str) or name in ("auto", "none", "demo") or is_folder(name):
        return name
    if (size := size_of(name)) is not None:
        return size.drafter()
    if is_file(name):
        raise no_such(name)
    if _HUB_NAME.fullmatch(name):
        return name
    names = {one.drafter().rpartition("/")[2].casefold(): one.drafter() for one in SIZES}
    near = difflib.get_close_matches(name.casefold(), names, 1, 0.9)
    way = (
        f"did you mean {names[near[0]]}?"
        if near
        else f"give a size ({', '.join(SHORT)}), a folder, a Hub name such as "
        f"{SIZES[1].drafter()}, auto or none"
    )
    raise ModelNotFoundError(f"no drafter {name[:200]!r}: {way}")


def check_target(name: str | Path) -> None:
    """Raise CheckpointError if a name is that of a published drafter, which cannot run alone."""
    found = _DRAFTER.search(name) if isinstance(name, str) and not is_folder(name) else None
    size = size_within(found[0]) if found else None
    if found and size:
        target = f"{size.original}{found[1] or ''}"
        raise CheckpointError(f"{name} is a drafter: run its target, such as {target}")


def did_you_mean(name: str) -> str | None:
    """Return the published Hub name or the short name that is closest to this one, if one is."""
    page, size = _HUB_PAGE.match(name), size_of(name)
    if page is not None:
        return page[1]
    if size is not None:
        return size.original
    known = [one for size in SIZES for one in (size.original, size.quantized(8), size.quantized(4))]
    whole = {one.casefold(): one for one in known}
    if "/" not in name:
        whole = {one.rpartition("/")[2]: known for one, known in whole.items()}
        whole |= {short: short for short in SHORT}
    cutoff = 0.6 if len(name) < 5 else 0.8
    near = difflib.get_close_matches(name.casefold(), whole, 1, cutoff)
    return whole[near[0]] if near and whole[near[0]] != name else None


def check_format(name: str) -> None:
    """Raise CheckpointError if a Hub name says that it is an older Gemma, or in another format."""
    own = name.rpartition("/")[2]
    older, format = _OTHER_GEMMA.search(own), _OTHER_FORMAT.search(own)
    if older is not None and "gemma-4" not in own.casefold():
        raise CheckpointError(
            f"{name} is not a Gemma 4 model; give a size ({', '.join(SHORT)}), or the Hub name of "
            "a Gemma 4 model"
        )
    if format is not None:
        raise CheckpointError(f"{name}: {format[0]} weights are not supported; {_instead(name)}")


def _instead(name: str) -> str:
    size = size_within(name)
    if size is None:
        return f"use the original checkpoint, such as {SIZES[1].original}"
    if "qat" in name.casefold():
        return f"take {size.original}-qat-q4_0-unquantized with --bits 4"
    return f"take {size.quantized(4)}"
