"""From a published pair to a converted one: find, plan, write, and put in place at once.

Knows nothing of the terminal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mlx_gemma_mtp import __version__
from mlx_gemma_mtp.errors import MgmError, ModelNotFoundError, UsageError
from mlx_gemma_mtp.files import hub
from mlx_gemma_mtp.files.checkpoint import weight_files

from . import output
from .formats import AFFINE_BITS, UNQUANTIZED
from .manifest import Origin
from .output import Model, OnProgress
from .partial import Partial, check_place, check_room
from .plan import Options, Plan, plan_drafter, plan_target
from .remote import remote_source
from .source import Source, read_source


@dataclass(frozen=True)
class Conversion:
    """A planned conversion; no weights were read for it."""

    options: Options
    target: Model
    drafter: Model | None

    @property
    def models(self) -> list[Model]:
        return [self.target] if self.drafter is None else [self.target, self.drafter]

    @property
    def nbytes(self) -> int:
        """Of all weights of the output."""
        return sum(model.plan.nbytes for model in self.models)


def prepare(
    source: str | Path,
    options: Options,
    drafter: str | Path | None = "auto",
    *,
    headers_only: bool = False,
) -> Conversion:
    """Plan a conversion; downloads the source if need be, or its headers only.

    source and drafter are as in `hub.find_pair`. Raises ModelNotFoundError, CheckpointError for a
    source that is none, UsageError for options that do not fit it.
    """
    if headers_only:
        found = _look_up(source, drafter)
    else:
        found = [_local(folder) for folder in hub.find_pair(source, drafter) if folder is not None]
    target = Model("target", found[0][0], plan_target(found[0][1], options))
    if len(found) == 1:
        if options.drafter_bits or any(rule.startswith("drafter.") for rule in options.rules):
            raise UsageError(f"{source} has no drafter here: --drafter names one")
        return Conversion(options, target, None)
    plan = plan_drafter(found[1][1], target.plan, options)
    return Conversion(options, target, Model("drafter", found[1][0], plan))


def _local(folder: Path) -> tuple[Origin, Source]:
    return origin_of(folder), read_source(folder)


def _look_up(source: str | Path, drafter: str | Path | None) -> list[tuple[Origin, Source]]:
    """As with find_pair, but of what is neither a folder nor cached the headers alone."""
    target = _here_or_remote(source)
    if drafter is None:
        return [target]
    if drafter != "auto":
        return [target, _here_or_remote(drafter)]
    if target[1].folder.is_dir():
        folder = hub.find_pair(source, "auto")[1]
        return [target] if folder is None else [target, _local(folder)]
    try:
        return [target, _here_or_remote(hub.drafter_name(str(source)))]
    except ModelNotFoundError:
        return [target]


def _here_or_remote(name: str | Path) -> tuple[Origin, Source]:
    if name == "demo" or hub.is_folder(name) or isinstance(name, Path) or hub.from_cache(name):
        return _local(hub.find_pair(name, None)[0])
    commit, source = remote_source(name)
    return Origin(hub.split_name(name)[0], commit), source


def origin_of(folder: Path) -> Origin:
    """A folder's name; of one in the Hub's cache, the repository and the commit."""
    repository = folder.parent.parent.name
    if folder.parent.name == "snapshots" and repository.startswith("models--"):
        return Origin(repository.removeprefix("models--").replace("--", "/", 1), folder.name)
    return Origin(folder.resolve().name, None)


def default_out(source: str | Path, options: Options) -> Path:
    """NAME-4bit and the like, in the current folder."""
    name = Path(str(source).partition("@")[0]).resolve().name
    if options.bits == UNQUANTIZED:
        short = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
        return Path(f"{name}-{short.get(options.dtype or '', 'mlx')}")
    return Path(f"{name}-{options.bits}{'bit' if options.bits in AFFINE_BITS else ''}")


def convert(
    source: str | Path,
    out: Path,
    options: Options,
    *,
    drafter: str | Path | None = "auto",
    resume: bool = False,
    force: bool = False,
    on_plan: Callable[[Conversion], None] = lambda _: None,
    on_progress: OnProgress = lambda _: None,
) -> None:
    """Write the converted pair to the folder `out`, with the drafter in `out/drafter`.

    Until the end everything is in `OUT.partial`, which `resume` goes on with. force: replace `out`
    when all is done, and begin anew where a conversion was begun. on_plan: called once, before
    anything is written. Raises as `prepare`, and MgmError where a disk fails.
    """
    begun = False
    try:
        check_place(out, resume=resume, force=force)
        conversion = prepare(source, options, drafter)
        on_plan(conversion)
        for model in conversion.models:
            if model.plan.folder.resolve().is_relative_to(out.resolve()):
                raise UsageError(f"{out} is where the source is: name another folder with --out")
        check_room(out, sum(output.needs(model) for model in conversion.models))
        partial = Partial(out, _begun_with(conversion), resume=resume)
        begun = True
        try:
            output.write(conversion.models, partial, out.name, on_progress)
            partial.publish()
        finally:
            partial.close()
    except OSError as error:
        reason = error.strerror or str(error)
        where = f" ({error.filename})" if error.filename else ""
        then = "; what is done is kept, the same command with --resume goes on" if begun else ""
        raise MgmError(f"cannot convert to {out}: {reason}{where}{then}") from None


def _begun_with(conversion: Conversion) -> dict[str, Any]:
    """All that the bytes of the output depend on, under words for it."""
    options = asdict(conversion.options)
    return {
        "versions of mgm and MLX": [__version__, version("mlx")],
        "options": options | {"rules": list(conversion.options.rules)},
        "source files": {model.kind: _fingerprint(model.plan) for model in conversion.models},
    }


def _fingerprint(plan: Plan) -> list[list[Any]]:
    """Each file's name, size, time and a hash of what is read of it to plan."""
    files = [plan.folder / "config.json", *weight_files(plan.folder)]
    found = []
    for path in files:
        with path.open("rb") as file:
            head = file.read(8)
            size = int.from_bytes(head, "little") if path.suffix == ".safetensors" else -1
            digest = hashlib.sha256(head + file.read(size)).hexdigest()
        found.append([path.name, path.stat().st_size, path.stat().st_mtime_ns, digest])
    return found
