"""Questions at a terminal, on stderr. Ctrl-C and Ctrl-D end the command."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from mlx_gemma_mtp.errors import UsageError
from mlx_gemma_mtp.show import say


def can_ask() -> bool:
    """Return True if somebody at a terminal can read a question and answer it."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def confirm(question: str, *, default: bool = True) -> bool:
    """Ask; Enter means the default."""
    return typer.confirm(question, default=default, err=True)


def confirm_removal(question: str, command: str, lines: Sequence[str] = ()) -> None:
    """Ask before something is removed, and end the command unless the answer is yes.

    lines: shown before the question. Raises UsageError if nobody is there to answer.
    """
    if not can_ask():
        raise UsageError(f"{command} asks before it removes, but not without a terminal: add --yes")
    for line in lines:
        say(line)
    if not confirm(question, default=False):
        raise typer.Exit(1)
