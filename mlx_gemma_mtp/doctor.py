"""What this machine has for running Gemma 4, what is amiss, and why drafts would not come.

Looks and tells: changes nothing, asks no network, opens no weights, prints nothing. The self-test
is another matter, see `selftest`.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from mlx_gemma_mtp import __version__, device, memory
from mlx_gemma_mtp.device import chip_name, system_name
from mlx_gemma_mtp.engine.batch import SIZES
from mlx_gemma_mtp.errors import CheckpointError
from mlx_gemma_mtp.files import folders, hub, remembered
from mlx_gemma_mtp.files import hub_cache as cached
from mlx_gemma_mtp.files.hub_cache import CachedModel

PACKAGES = ("mlx", "mlx-lm", "huggingface_hub", "transformers")
PREFIXES = ("MGM_", "HF_", "HUGGINGFACE_", "MLX_", "TRANSFORMERS_")


class Folder(NamedTuple):
    """Where something is kept: its disk's free bytes, and whether it can be written to."""

    path: Path
    free_bytes: int
    writable: bool


@dataclass(frozen=True)
class Checked:
    """A model in the cache.

    needs_bytes: `memory.Pair.needs_to_load`, drafter and all; fits: is there so much;
    longest_context: of one text that fits, 0 where none does. None where its files do not tell.
    no_drafts: why nothing would be drafted, or not everywhere; None where nothing speaks against.
    """

    model: CachedModel
    needs_bytes: int | None
    fits: bool | None
    longest_context: int | None
    no_drafts: str | None

    def to_json(self) -> dict[str, Any]:
        """The model's fields and these."""
        own = {key: value for key, value in vars(self).items() if key != "model"}
        return self.model.to_json() | own


@dataclass(frozen=True)
class Report:
    """What was found. problems: what is amiss with the machine; none is healthy.

    memory_bytes: the machine's; available_bytes: what a model may take of it. backend: metal, cuda
    or cpu. versions: by package, None where it is not installed. variables: those in effect, with
    nothing secret in them. `to_json` has these fields as they are.
    """

    chip: str
    system: str
    architecture: str
    memory_bytes: int
    available_bytes: int
    backend: str
    versions: dict[str, str | None]
    cache: Folder
    depth: Folder
    variables: dict[str, str]
    models: list[Checked]
    problems: list[str]

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON takes it; "schema" changes where a key goes or means something else."""
        folders = {
            "cache": self.cache._asdict() | {"path": str(self.cache.path)},
            "depth": self.depth._asdict() | {"path": str(self.depth.path)},
        }
        models = {"models": [one.to_json() for one in self.models]}
        return {"schema": 1} | vars(self) | folders | models


def examine() -> Report:
    """Look at everything."""
    versions: dict[str, str | None] = {
        "python": platform.python_version(),
        "mlx_gemma_mtp": __version__,
    }
    versions |= {name: _version(name) for name in PACKAGES}
    cache, file = _folder(hub.cache_folder()), folders.depth_file()
    depth = _folder(file.parent)._replace(path=file)  # the file is never written to, but replaced
    backend = device.backend()
    return Report(
        chip=chip_name(),
        system=system_name(),
        architecture=platform.machine(),
        memory_bytes=device.installed(),
        available_bytes=device.available(),
        backend=backend,
        versions=versions,
        cache=cache,
        depth=depth,
        variables=_variables(),
        models=[check(model) for model in cached.models() if not model.is_drafter],
        problems=[*_problems(backend, versions, cache, depth)],
    )


def check(model: CachedModel) -> Checked:
    """What a model needs here, and whether its drafter would be used."""
    drafter = model.drafter.folder if model.drafter and not model.drafter.problem else None
    if model.problem is not None:
        return Checked(model, None, None, None, None)
    try:
        pair = memory.read_pair(model.folder, drafter)
    except CheckpointError as error:  # also where only the weights' headers tell
        return Checked(replace(model, problem=str(error)), None, None, None, None)
    needs, have = pair.needs_to_load, device.available()
    longest = pair.longest_context(batch=1, have=have)
    return Checked(model, needs, needs <= have, longest, why_no_drafts(model))


def why_no_drafts(model: CachedModel) -> str | None:
    """Why "auto" would not draft with this target; None where nothing speaks against it."""
    if model.drafter is None:
        return f"no drafter is there: mgm pull {model.name} fetches it, where the Hub has one"
    if model.drafter.problem is not None:
        return model.drafter.problem
    learned = [*remembered.depths_of(model.folder.name)]  # with any bits
    batches = [batch for batch in SIZES if any(depth.plain_at(batch) for depth in learned)]
    if not batches:
        return None
    sizes = " and ".join(map(str, batches))
    return (
        f"at batch {sizes} plain decoding was measured to be faster here; "
        f"without {folders.depth_file()} it is measured anew"
    )


def _problems(
    backend: str, versions: dict[str, str | None], cache: Folder, depth: Folder
) -> Iterator[str]:
    for name, found in versions.items():
        if found is None:
            yield f"{name} is not installed: install mlx-gemma-mtp again"
    if platform.system() == "Darwin" and backend != "metal":
        intel = platform.machine() != "arm64"
        way_out = (
            "this Python is built for Intel: install one for arm64"
            if intel
            else ("in a virtual machine there is none")
        )
        yield f"MLX finds no GPU, and on the CPU drafting does not pay; {way_out}"
    if not cache.writable:
        yield f"{cache.path} cannot be written to: nothing can be downloaded; set HF_HOME"
    if not depth.writable:
        yield f"{depth.path} cannot be written to: no run learns from another; set MGM_CACHE_DIR"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _folder(path: Path) -> Folder:
    """A folder that is there or can be made."""
    nearest = folders.nearest(path)
    writable = nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)
    return Folder(path, folders.free_bytes(path), writable)


def _variables() -> dict[str, str]:
    """Those that change what mgm does; of a token only that it is set."""
    return {
        key: "set" if "TOKEN" in key else value
        for key, value in sorted(os.environ.items())
        if key.startswith(PREFIXES)
    }
