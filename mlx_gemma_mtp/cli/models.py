"""`mgm list` and `mgm rm`: what is in the cache, and out of it again."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from mlx_gemma_mtp.errors import UsageError

if TYPE_CHECKING:
    from mlx_gemma_mtp.files.hub_cache import CachedModel

Row = tuple[str, str, str, str, str, str]
HEAD: Row = ("NAME", "KIND", "BITS", "SIZE", "DRAFTER", "LAST USED")
UNITS = (  # seconds
    ("year", 31_557_600),
    ("month", 2_629_800),
    ("day", 86_400),
    ("hour", 3600),
    ("minute", 60),
)


def list_models(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List the models that are here.

    The demo, and those in the Hub's cache that mgm can run.
    """
    from mlx_gemma_mtp.files import hub
    from mlx_gemma_mtp.files import hub_cache as cached

    models = cached.models()
    if as_json:
        found = {
            "schema": 1,
            "cache": str(hub.cache_folder()),
            "models": [model.to_json() for model in models],
        }
        print(json.dumps(found, ensure_ascii=False))
        return
    rows = [_row(model) for model in models]
    print_columns([HEAD, *rows])
    for model in models:
        for one in (model, model.drafter):
            if one is not None and one.problem:
                print(f"{one.name}: {one.problem}")


def remove(
    model: Annotated[str, typer.Argument(help="A name that `mgm list` shows.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove a model and its drafter from the Hub's cache."""
    from rich.filesize import decimal

    from mlx_gemma_mtp.files import removal

    removals = removal.removals(model)
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("nothing was removed, as there is nobody to ask: add --yes")
        for one in removals:
            print(f"{one.name}  {decimal(one.size_bytes)}  {one.folder}", file=sys.stderr)
        if not typer.confirm("Remove this?", err=True):
            raise typer.Exit(1)
    for one in removals:
        removal.remove(one)
        print(f"removed {one.name}, {decimal(one.size_bytes)} freed")


def print_columns(rows: Sequence[Sequence[str]]) -> None:
    """Rows of text as columns, as wide as they need to be."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def _row(model: CachedModel) -> Row:
    from rich.filesize import decimal

    if model.is_drafter:
        drafter = "(is one; its model is not here)"
    elif model.drafter is None:
        drafter = "none"
    else:
        drafter = decimal(model.drafter.size_bytes)
        if model.drafter.problem:
            drafter += ", unusable"
    size = decimal(model.size_bytes) + (", unusable" if model.problem else "")
    bits = "?" if model.bits is None else str(model.bits)
    return (model.name, model.kind or "other", bits, size, drafter, ago(model.last_used))


def ago(seconds: float | None) -> str:
    """How long ago that was: the largest unit, rounded down."""
    if seconds is None:
        return "?"
    passed = time.time() - seconds
    for unit, length in UNITS:
        if passed >= length:
            count = int(passed / length)
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"
