"""`mgm list` and `mgm rm`: the models in the cache, and how to remove one."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer
from rich.filesize import decimal

from mlx_gemma_mtp.cli import complete, options
from mlx_gemma_mtp.cli.question import confirm_removal

if TYPE_CHECKING:
    from mlx_gemma_mtp.files.hub_cache import CachedModel

HEADER = ("NAME", "BITS", "SIZE", "DRAFTER", "MODIFIED")
SECONDS = {"year": 31_557_600, "month": 2_629_800, "day": 86_400, "hour": 3600, "min": 60}


def list_models(
    as_json: options.Json = False,
) -> None:
    """List the demo, and the models in the Hub's cache or from mgm convert that mgm can run.

    MODIFIED is when the weights were downloaded or written.
    """
    from mlx_gemma_mtp.files import hub, hub_cache
    from mlx_gemma_mtp.show import say, table

    models = hub_cache.models()
    if as_json:
        found = {
            "schema": 1,
            "cache": str(hub.cache_folder()),
            "models": [model.to_json() for model in models],
        }
        print(json.dumps(found, ensure_ascii=False))
        return
    print(table(HEADER, map(_row, models), left=len(HEADER)))
    for model in models:
        for one in (model, model.drafter):
            if one is not None and one.problem:
                say(f"{one.name}: {one.problem}", sys.stdout)


def remove(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A name from mgm list.", autocompletion=complete.repositories
        ),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove a model and its drafter from the Hub's cache."""
    from mlx_gemma_mtp.files import hub, hub_cache

    folders = {name: hub.repository_folder(name) for name in hub_cache.removable(model)}
    sizes = {name: decimal(hub_cache.size_on_disk(folder)) for name, folder in folders.items()}
    if not yes:
        confirm_removal("Remove?", "rm", [f"{name}  {size}" for name, size in sizes.items()])
    for name, size in sizes.items():
        hub_cache.remove(name)
        print(f"removed {name}, {size} freed")


def _row(model: CachedModel) -> tuple[str, ...]:
    if model.is_drafter:
        drafter = "(this is one, without its target)"
    elif model.drafter is None:
        drafter = "none"
    else:
        drafter = decimal(model.drafter.size_bytes)
        if model.drafter.problem:
            drafter += ", unusable"
    size = decimal(model.size_bytes) + (", unusable" if model.problem else "")
    bits = "?" if model.bits is None else str(model.bits)
    return (model.name, bits, size, drafter, ago(model.modified))


def ago(seconds: float | None) -> str:
    """Return how long ago a time was, in its largest unit, rounded down."""
    if seconds is None:
        return "?"
    passed = time.time() - seconds
    for unit, length in SECONDS.items():
        if passed >= length:
            count = int(passed / length)
            plural = "s" if count > 1 and unit != "min" else ""
            return f"{count} {unit}{plural} ago"
    return "just now"
