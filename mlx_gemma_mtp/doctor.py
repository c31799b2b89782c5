"""What this machine has for running Gemma 4, what is wrong, and why a model would not draft.

Read-only: no network, no weights, no printing. The self-test is in `check`.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import mlx.core as mx
from rich.filesize import decimal

from mlx_gemma_mtp import __version__, device, memory
from mlx_gemma_mtp.command_buffers import (
    LEAST,
    NAMES,
    OTHERS,
    TOO_LOW,
    BufferLimits,
    limits_set,
    num_buffers,
)
from mlx_gemma_mtp.decode.table import PassTable
from mlx_gemma_mtp.engine.rows import SIZES
from mlx_gemma_mtp.errors import CheckpointError
from mlx_gemma_mtp.files import folders, hub, hub_cache, remembered
from mlx_gemma_mtp.files.checkpoint import read_target_config
from mlx_gemma_mtp.files.choice import Choice, choose
from mlx_gemma_mtp.files.drafters import Target, googles
from mlx_gemma_mtp.files.find import target_name
from mlx_gemma_mtp.files.hub_cache import CachedModel
from mlx_gemma_mtp.files.published import best_fit
from mlx_gemma_mtp.model.config import TargetConfig

PACKAGES = ("mlx", "huggingface_hub", "tokenizers", "jinja2")
PREFIXES = ("MGM_", "HF_", "HUGGINGFACE_", "MLX_", "TRANSFORMERS_")


@dataclass(frozen=True)
class Place:
    """Where something is kept, the free bytes of its disk, and whether it can be written to."""

    path: str
    free_bytes: int
    writable: bool


@dataclass(frozen=True)
class Checked:
    """A cached model.

    needs_bytes: `memory.Pair.needs_to_load` with its drafter; fits: whether that is available;
    longest_context: the longest that fits at batch 1, 0 if none does. These are None if the model
    has a problem. no_drafts: why "auto" would not draft, or not at every batch size. tables: what
    was measured of it here, for each format in which it was loaded.
    """

    model: CachedModel
    needs_bytes: int | None = None
    fits: bool | None = None
    longest_context: int | None = None
    no_drafts: str | None = None
    tables: tuple[PassTable, ...] = ()


@dataclass(frozen=True)
class CommandBuffers:
    """The limits of Metal's command buffers, see `command_buffers`.

    set_by_user: otherwise MLX's own, which `load` raises for the models that gain from it.
    """

    max_ops: int
    max_mb: int
    set_by_user: bool

    @classmethod
    def here(cls, architecture: str, environ: Mapping[str, str] = os.environ) -> CommandBuffers:
        """Return the limits with a GPU of this architecture, as `mx.device_info` names it."""
        return cls(*limits_set(architecture, environ), any(name in environ for name in NAMES))

    def problems(self, models: Iterable[tuple[str, TargetConfig]]) -> Iterator[str]:
        """Yield what is wrong with the limits that the user has set, for these models."""
        if not self.set_by_user:
            return
        limits, either = BufferLimits(self.max_ops, self.max_mb), " or ".join(NAMES)
        if min(limits) < TOO_LOW:
            yield (
                f"{either} is below {TOO_LOW} or not a number: MLX then sends work to the GPU in "
                "very small portions, which is slow; unset both"
            )
            return
        for name, config in models:
            few = num_buffers(config, limits)
            # Tiny models never have enough.
            if few < LEAST <= num_buffers(config, OTHERS):
                yield (
                    f"{either} is so high that a round of {name} may have only {few} command "
                    f"buffers, not {LEAST}: MLX may then copy the KV cache in every round; "
                    "unset both"
                )
                return


@dataclass(frozen=True)
class Report:
    """What was found. problems: of the machine; it is healthy without any.

    memory_bytes: the machine's; available_bytes: what a model may use of it now. best_fit: the most
    capable published model that runs here while nothing else does. backend: metal, cuda or cpu.
    buffers: None without Metal. versions: by package, None if it is not installed. variables: those
    that change what mgm does, without secrets.
    """

    chip: str
    system: str
    architecture: str
    memory_bytes: int
    available_bytes: int
    best_fit: Choice
    backend: str
    buffers: CommandBuffers | None
    versions: dict[str, str | None]
    cache: Place
    depth: Place
    variables: dict[str, str]
    models: list[Checked]
    problems: list[str]

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON takes it. "schema" changes if a key goes or changes meaning."""
        own = [
            {k: v for k, v in vars(one).items() if k != "model"}
            | {"tables": [table.to_json() for table in one.tables]}
            for one in self.models
        ]
        models = [one.model.to_json() | more for one, more in zip(self.models, own, strict=True)]
        best = self.best_fit._asdict() | {"fits": self.best_fit.fits}
        return {"schema": 2} | asdict(self) | {"best_fit": best, "models": models}


def examine(packages: Sequence[str] = PACKAGES) -> Report:
    """Look at this machine and its models."""
    versions = {
        "python": platform.python_version(),
        "mlx_gemma_mtp": __version__,
        **{name: _version(name) for name in packages},
    }
    cache, file = _place(hub.cache_folder()), folders.depth_file()
    depth = replace(_place(file.parent), path=str(file))  # the file is replaced, not written to
    backend, available = device.backend(), device.available()
    usable = device.usable()
    best = choose(best_fit(usable)[0].short, available=usable, free=available)
    assert best is not None  # it is a short name
    models = [one for one in hub_cache.models() if not one.is_drafter]
    buffers, shapes = None, []
    if backend == "metal":
        buffers = CommandBuffers.here(str(mx.device_info()["architecture"]))
        shapes = [(one.name, read_target_config(one.folder)) for one in models if not one.problem]
    return Report(
        chip=device.chip_name(),
        system=device.system_name(),
        architecture=platform.machine(),
        memory_bytes=device.installed(),
        available_bytes=available,
        best_fit=best,
        backend=backend,
        buffers=buffers,
        versions=versions,
        cache=cache,
        depth=depth,
        variables={  # of a token only that it is set
            key: "set" if "TOKEN" in key else value
            for key, value in sorted(os.environ.items())
            if key.startswith(PREFIXES)
        },
        models=[check(one, available) for one in models],
        problems=[
            *_problems(backend, versions, cache, depth),
            *(buffers.problems(shapes) if buffers else ()),
            *mlx_problems(device.chip_name(), Path(mx.__file__)),
        ],
    )


def check(model: CachedModel, available: int) -> Checked:
    """Return what a model needs of the available bytes, and whether its drafter would be used."""
    drafter = model.drafter.folder if model.drafter and not model.drafter.problem else None
    if model.problem is not None:
        return Checked(model)
    try:
        pair = memory.read_pair(model.folder, drafter)
    except CheckpointError as error:  # in the weight files, which listing doesn't open
        return Checked(replace(model, problem=str(error)))
    longest = pair.longest_context(batch=1, have=available)
    needs = pair.needs_to_load
    learned = remembered.depths_of(model.folder.name)
    tables = tuple(depth.table for depth in learned if depth.table is not None)
    return Checked(model, needs, needs <= available, longest, why_no_drafts(model), tables)


def why_no_drafts(model: CachedModel) -> str | None:
    """Return why "auto" would not draft with this target; None if it would."""
    if model.drafter is None:
        found = googles(Target.at(model.folder, target_name(model.name, model.folder)))
        if found is None:
            return "no drafts: no drafter in its folder, next to it or in the Hub's cache"
        return f"no drafts: no drafter here: mgm pull {found[0]} ({decimal(found[1])})"
    if model.drafter.problem is not None:
        return f"no drafts: {model.drafter.problem}"
    learned = [*remembered.depths_of(model.folder.name)]  # with any bits
    batches = [str(size) for size in SIZES if any(depth.plain_at(size) for depth in learned)]
    if not batches:
        return None
    return (
        f"no drafts at batch {' and '.join(batches)}: decoding without was measured to be faster; "
        f"remove {folders.depth_file()} to measure again"
    )


def _problems(
    backend: str, versions: dict[str, str | None], cache: Place, depth: Place
) -> Iterator[str]:
    for name, found in versions.items():
        if found is None:
            yield f"{name} is not installed: install mlx-gemma-mtp again"
    if platform.system() == "Darwin" and backend != "metal":
        arm = platform.machine() == "arm64"
        why = "virtual machines have none" if arm else "this Python is for Intel: install arm64's"
        yield f"MLX finds no GPU, and on a CPU drafting rarely helps; {why}"
    if not cache.writable:
        yield f"{cache.path} is not writable, so nothing can be downloaded: set HF_HOME"
    if not depth.writable:
        yield f"{depth.path} is not writable, so timings are not kept: set MGM_CACHE_DIR"
    for what, folder in (
        ("chats are not saved", folders.sessions_folder()),
        ("the history of chats is not kept", folders.history_file().parent),
    ):
        if not _place(folder).writable:
            yield f"{folder} is not writable, so {what}: set MGM_DATA_DIR"


def mlx_problems(chip: str, path: Path) -> Iterator[str]:
    """Yield what is wrong with this chip's MLX. path: its module.

    Homebrew's bottle of 0.32.0 was measured at a quarter of the speed of PyPI's wheel (AX Engine).
    """
    if "M5" in chip and "Cellar" in path.resolve().parts:
        yield "Homebrew's MLX lacks the fast products of the M5: install mlx with pip instead"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _place(folder: Path) -> Place:
    """Describe a folder that exists or can be made."""
    nearest = folders.nearest(folder)
    writable = nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)
    return Place(str(folder), folders.free_bytes(folder), writable)
