"""Which drafter belongs to a target: by the shapes in both configs, then by names.

A drafter fits if it was made for a target of this shape. Of those that fit, the names decide: the
same model before another of its size, QAT for QAT, the same publisher, similar bits. Reads
headers of weight files, and asks no network.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from mlx_gemma_mtp.errors import CheckpointError
from mlx_gemma_mtp.files import hub
from mlx_gemma_mtp.files.checkpoint import (
    is_drafter,
    parse_config,
    read_config,
)
from mlx_gemma_mtp.files.names import DRAFTER_SUFFIX
from mlx_gemma_mtp.files.published import Size, size_with
from mlx_gemma_mtp.files.quantization import stored_bits
from mlx_gemma_mtp.model.config import DrafterConfig, TargetConfig, check_pair

INSIDE = ("drafter", "assistant")  # folders in a target's own folder

# Parts of names that say how weights are stored, not which model they are.
_STORED = re.compile(
    r"assistant|drafter|mlx|ud|optiq|dwq|ct|mobile|unquantized|quantized|text|only"
    r"|(bf|fp|f|int)\d+|\d+-?bit|mxfp\d|nvfp\d|oq\w*|q\d\w*|w\d+a\d+|g(s|roup)?\d+|v\d+"
)


class Target(NamedTuple):
    """A target. name: its Hub name or its folder's name. raw: its config.json. bases: Hub names of
    the models that it comes from, by its model card. bits: of most weights, if they are here.
    """

    name: str
    raw: dict[str, Any]
    bases: Sequence[str] = ()
    bits: int | None = None

    @classmethod
    def at(cls, folder: Path, name: str) -> Target:
        """Return the target in a folder. Raises CheckpointError without a config.json."""
        return cls(name, read_config(folder), base_models(folder), stored_bits(folder))


class Candidate(NamedTuple):
    """A drafter, perhaps. name: its Hub name, or its folder's name."""

    name: str
    folder: Path


def best(target: Target, drafters: Iterable[Candidate]) -> Candidate | None:
    """Return the best of the drafters that fit the target; None if none fits."""
    fitting = []
    for one in drafters:
        with suppress(CheckpointError):  # no config.json, or a damaged one
            if fits(target, read_config(one.folder)):
                fitting.append(one)
    return min(fitting, key=_ranking(target), default=None)


def fits(target: Target, raw: dict[str, Any]) -> bool:
    """Return True if this config.json is that of a drafter for a target of this shape."""
    where = Path(target.name)  # of errors that nobody sees
    try:
        config = parse_config(TargetConfig.from_dict, target.raw, where)
        check_pair(config, parse_config(DrafterConfig.from_dict, raw, where))
    except CheckpointError:
        return False
    return True


def near(folder: Path) -> list[Candidate]:
    """Return the drafters that are kept next to a target's folder.

    In `models/PUBLISHER/NAME`, as LM Studio keeps them, those of other publishers too.
    """
    whole = folder.resolve()
    places = [whole.parent]
    if whole.parent.parent.name == "models":
        with suppress(OSError):
            places += sorted(path for path in whole.parent.parent.iterdir() if path != whole.parent)
    found = []
    for place in places:
        with suppress(OSError):  # not a folder, or one that cannot be listed
            found += sorted(path for path in place.iterdir() if _sounds_like_one(path.name))
    return [Candidate(path.name, path) for path in found if path.is_dir()]


def in_cache() -> list[Candidate]:
    """Return the drafters that are whole in the Hub's cache."""
    found = [(name, hub.from_cache(name)) for name in hub.repositories()]
    return [Candidate(name, folder) for name, folder in found if folder and is_drafter(folder)]


def to_pull(target: Target) -> list[str]:
    """Return the Hub names under which a target's drafter may be published, likeliest first."""
    names = [target.name + DRAFTER_SUFFIX] if "/" in target.name else []
    size = _size(target)
    if size is not None:
        names += [size.drafter(qat=True)] if _is_for_qat(target) else []
        names.append(size.drafter())
    return list(dict.fromkeys(names))


def googles(target: Target) -> tuple[str, int] | None:
    """Return the Hub name and the bytes of Google's drafter for a target of a published size."""
    size = _size(target)
    return None if size is None else (size.drafter(qat=_is_for_qat(target)), size.drafter_bytes)


def stem(name: str) -> str:
    """Return which model a name means, without publisher and how it is stored: "gemma-4-e4b-it"."""
    parts = name.rpartition("/")[2].partition("@")[0].casefold().split("-")
    return "-".join(part for part in parts if not _STORED.fullmatch(part))


def base_models(folder: Path) -> list[str]:
    """Return the Hub names that the model card in a folder gives as its base models."""
    from huggingface_hub.repocard import metadata_load
    from yaml import YAMLError

    try:
        found = (metadata_load(folder / "README.md") or {}).get("base_model")
    except (OSError, ValueError, YAMLError):  # no card, or a damaged one: then names decide
        return []
    return [one for one in (found if isinstance(found, list) else [found]) if type(one) is str]


def _ranking(target: Target) -> Callable[[Candidate], Any]:
    """Return the key to sort drafters of this target by; the smallest is best."""
    own, bases, qat = stem(target.name), [*map(stem, target.bases)], _is_for_qat(target)
    size = _size(target)
    official = [] if size is None else [stem(size.drafter(qat=qat)) for qat in (False, True)]
    groups = [[own], bases, official]

    def rank(drafter: Candidate) -> tuple[int, bool, bool, int, str]:
        model = stem(drafter.name)
        group = next((i for i, stems in enumerate(groups) if model in stems), len(groups))
        publisher = drafter.name.rpartition("/")[0] != target.name.rpartition("/")[0]
        difference = abs((stored_bits(drafter.folder) or 16) - (target.bits or 16))
        return group, _is_qat(model) != qat, publisher, difference, drafter.name

    return rank


def _size(target: Target) -> Size | None:
    text = target.raw.get("text_config")
    return size_with((text if isinstance(text, dict) else target.raw).get("hidden_size"))


def _is_for_qat(target: Target) -> bool:
    return any(map(_is_qat, [target.name, *target.bases]))


def _is_qat(name: str) -> bool:
    return "qat" in stem(name).split("-")


def _sounds_like_one(name: str) -> bool:
    return any(word in name.casefold() for word in INSIDE)
