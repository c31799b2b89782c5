"""manifest.json of a converted folder: what it was made from and with, and what must be in it.

Knows only the file, not how weights are made or checked.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from mlx_gemma_mtp.errors import CheckpointError
from mlx_gemma_mtp.files.checkpoint import read_json

MANIFEST = "manifest.json"
SCHEMA = 1
UNLISTED = (MANIFEST, "README.md")  # files of the folder that it does not list


@dataclass(frozen=True)
class Origin:
    """Where a checkpoint came from: a Hub name and its commit, or a folder's name."""

    name: str
    revision: str | None


@dataclass(frozen=True)
class RecipeRecord:
    """The recipe, and all rules that applied, in order."""

    name: str
    bits: str
    group_size: int | None  # of the common format
    dtype: str  # of unquantized tensors
    rules: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class FileRecord:
    bytes: int
    sha256: str


@dataclass(frozen=True)
class TensorRecord:
    """One parameter: its shape before quantizing; no bits if it is unquantized."""

    shape: tuple[int, ...]
    dtype: str
    bits: int | None = None
    group_size: int | None = None
    mode: str | None = None


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The whole file. Only `created` depends on when or where it was made."""

    kind: Literal["target", "drafter"]
    source: Origin
    created: str  # ISO 8601, UTC
    tools: dict[str, str]
    recipe: RecipeRecord
    bits_per_weight: float
    parameters: int
    files: dict[str, FileRecord]
    tensors: dict[str, TensorRecord]

    def to_json(self) -> str:
        """Return the content of the file."""
        tensors = {
            name: {key: value for key, value in asdict(tensor).items() if value is not None}
            for name, tensor in self.tensors.items()
        }
        return json.dumps({"schema": SCHEMA} | asdict(self) | {"tensors": tensors}, indent=1) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a converted folder. Raises CheckpointError."""
    path = folder / MANIFEST
    raw = read_json(path, "mgm convert writes one")
    if raw.get("schema") not in (None, SCHEMA):
        raise CheckpointError(
            f"{path} has schema {raw['schema']!r}, but this version reads {SCHEMA}: update mgm"
        )
    try:
        if raw["kind"] not in ("target", "drafter"):
            raise ValueError(f"kind is {raw['kind']!r}")
        rules = tuple((str(pattern), str(name)) for pattern, name in raw["recipe"]["rules"])
        return Manifest(
            kind=raw["kind"],
            source=Origin(**raw["source"]),
            created=raw["created"],
            tools=dict(raw["tools"]),
            recipe=RecipeRecord(**raw["recipe"] | {"rules": rules}),
            bits_per_weight=float(raw["bits_per_weight"]),
            parameters=int(raw["parameters"]),
            files={
                name: FileRecord(int(entry["bytes"]), entry["sha256"])
                for name, entry in raw["files"].items()
            },
            tensors={
                name: TensorRecord(**entry | {"shape": tuple(map(int, entry["shape"]))})
                for name, entry in raw["tensors"].items()
            },
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({type(error).__name__}: {error})") from None
