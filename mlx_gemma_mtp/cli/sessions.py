"""`mgm sessions`: list the saved conversations, or remove some."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlx_gemma_mtp.cli import complete, options
from mlx_gemma_mtp.cli.models import ago
from mlx_gemma_mtp.cli.question import confirm_removal
from mlx_gemma_mtp.errors import MgmError, UsageError

if TYPE_CHECKING:
    from mlx_gemma_mtp.chat.store import Kept

HEADER = ("NAME", "MODEL", "LAST USED", "FIRST MESSAGE")
TITLE = 15, 50  # columns of a first message, at least and at most

sessions = typer.Typer(invoke_without_command=True, rich_markup_mode=None)


@sessions.callback()
def list_sessions(
    context: typer.Context,
    as_json: options.Json = False,
) -> None:
    """List the saved conversations, or remove some."""
    if context.invoked_subcommand is not None:
        return
    from rich.filesize import decimal

    from mlx_gemma_mtp.chat import store
    from mlx_gemma_mtp.files.folders import sessions_folder
    from mlx_gemma_mtp.show import columns, say, table

    kept, folder = store.kept(), str(sessions_folder())
    if as_json:
        found = {"schema": 1, "folder": folder, "sessions": [_as_json(one) for one in kept]}
        print(json.dumps(found, ensure_ascii=False))
    elif not kept:
        say(f"no conversations in {folder}")
    else:
        print(table(HEADER, rows(kept, columns(sys.stdout)), left=len(HEADER)))
        size = decimal(sum(one.size_bytes + one.cache_bytes for one in kept))
        say(f"{size} in {folder}")
        for problem in [one.problem for one in kept if one.problem]:
            say(f"mgm: {problem}")


@sessions.command("rm")
def remove(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAMES", help="Names from mgm sessions.", autocompletion=complete.sessions
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before --all.")] = False,
) -> None:
    """Remove conversations and their saved caches.

    A conversation that another process has open is kept.
    """
    from mlx_gemma_mtp.chat import store

    if everything == bool(names):
        raise UsageError("name the conversations to remove, or use --all")
    chosen = [path.stem for path in store.paths()] if everything else names or []
    if everything and chosen and not yes:
        confirm_removal(f"Remove all {len(chosen)} conversations?", "sessions rm --all")
    kept = None
    for name in chosen:
        try:
            store.remove(name)
        except OSError as error:
            raise MgmError(f"{name} cannot be removed: {error.strerror}") from None
        except UsageError as error:
            if not everything:
                raise
            kept = error
            continue
        print(f"removed {name}")
    if kept:
        raise kept


def rows(kept: list[Kept], width: int | None) -> list[list[str]]:
    """Return the rows of the table. width: of the terminal, which the first messages fill."""
    from rich.cells import cell_len

    from mlx_gemma_mtp.chat.transcript import shortened
    from mlx_gemma_mtp.show import GAP

    found: list[list[str]] = []
    for one in kept:
        model = one.conversation.models.model.rpartition("/")[2] if one.conversation else "?"
        found.append([one.name, model, ago(one.last_used)])
    least, most = TITLE
    if width is not None:
        widths = [max(map(cell_len, column)) for column in zip(HEADER, *found, strict=False)]
        most = max(least, min(most, width - 1 - sum(widths) - GAP * len(widths)))
    for row, one in zip(found, kept, strict=True):
        title = one.conversation.title if one.conversation else "(cannot be read)"
        row.append(shortened(title, most))
    return found


def _as_json(one: Kept) -> dict[str, Any]:
    from mlx_gemma_mtp.files.hub_cache import iso_time

    conversation = one.conversation
    return {
        "name": one.name,
        "model": conversation and conversation.models.model,
        "turns": conversation and conversation.turns,
        "begins_with": conversation and conversation.title,
        "last_used": iso_time(one.last_used),
        "size_bytes": one.size_bytes,
        "cache_bytes": one.cache_bytes,
        "problem": one.problem,
    }
