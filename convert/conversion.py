"""From a published pair to a converted one: find, plan, write, and publish in one rename.

Knows nothing of the terminal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mlx_gemma_mtp import __version__
from mlx_gemma_mtp.errors import MgmError, UsageError
from mlx_gemma_mtp.files.checkpoint import INDEX, weight_files
from mlx_gemma_mtp.progress import Update

from . import output
from .formats import AFFINE_BITS, UNQUANTIZED
from .partial import Partial, check_place, check_room
from .plan import Options, Plan, plan_drafter, plan_target
from .recipes import DRAFTER
from .source import find_sources


def prepare(
    source: str | Path,
    options: Options,
    drafter: str | Path | None = "auto",
    *,
    headers_only: bool = False,
) -> list[Plan]:
    """Plan a conversion: of the target and, if there is one, of the drafter. Reads no weights.

    Arguments as `find_sources`. Raises ModelNotFoundError, CheckpointError for a source that is not
    a checkpoint, UsageError for options that do not fit it.
    """
    target, *drafters = find_sources(source, drafter, headers_only=headers_only)
    plan = plan_target(target, options)
    for_drafter = options.drafter_bits or any(rule.startswith(DRAFTER) for rule in options.rules)
    if for_drafter and not drafters:
        raise UsageError(f"{source} has no drafter here: --drafter names one")
    return [plan, *(plan_drafter(found, plan, options) for found in drafters)]


def default_out(source: str | Path, options: Options) -> Path:
    """Return NAME-4bit and the like, in the current folder."""
    name = Path(str(source).partition("@")[0]).resolve().name
    ending = f"{options.bits}bit" if options.bits in AFFINE_BITS else options.bits
    if options.bits == UNQUANTIZED:
        short = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
        ending = short.get(options.dtype or "", "mlx")
    return Path(f"{name}-{ending}")


def convert(
    source: str | Path,
    out: Path,
    options: Options,
    *,
    drafter: str | Path | None = "auto",
    resume: bool = False,
    force: bool = False,
    on_plan: Callable[[Sequence[Plan]], None] = lambda _: None,
    on_progress: Update = lambda *_: None,
) -> None:
    """Write the converted pair to the folder `out`, with the drafter in `out/drafter`.

    Until the end everything is in `OUT.partial`, which `resume` continues. force: replace `out` at
    the end, and start over if there is an unfinished conversion. on_plan: called once, before
    anything is written. Raises as `prepare`, and MgmError if a disk fails.
    """
    then = ""
    try:
        check_place(out, resume=resume, force=force)
        plans = prepare(source, options, drafter)
        on_plan(plans)
        for plan in plans:
            if plan.source.folder.resolve().is_relative_to(out.resolve()):
                raise UsageError(f"{out} holds the source: choose another folder with --out")
        check_room(out, sum(output.needed_bytes(plan) for plan in plans))
        with closing(Partial(out, _started_with(plans, options), resume=resume)) as place:
            then = "; finished parts are kept, add --resume to continue"
            output.write(plans, options, place, out.name, on_progress)
            place.publish()
    except OSError as error:
        reason = error.strerror or str(error)
        way = "; choose another folder with --out"
        file = f" ({error.filename})" if error.filename else ""
        raise MgmError(f"cannot convert to {out}: {reason}{file}{then or way}") from None


def _started_with(plans: Sequence[Plan], options: Options) -> dict[str, Any]:
    """Return whatever the bytes of the output depend on, by the words that messages use."""
    return {
        "versions of mgm and MLX": [__version__, version("mlx")],
        "options": asdict(options) | {"rules": list(options.rules)},
        "source files": {plan.kind: _fingerprint(plan.source.folder) for plan in plans},
    }


def _fingerprint(folder: Path) -> list[list[str | int]]:
    """Return name, size and time of each file that a model is read from."""
    files = [folder / "config.json", *folder.glob(INDEX), *weight_files(folder)]
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
