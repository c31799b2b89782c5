"""The `mgm` command. Text goes to stdout, everything else to stderr; errors are one line."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from mlx_gemma_mtp import __version__
from mlx_gemma_mtp.cli.chat import chat
from mlx_gemma_mtp.cli.generate import generate
from mlx_gemma_mtp.errors import MgmError, UsageError

app = typer.Typer(
    name="mgm",
    help="Gemma 4 with its multi-token-prediction drafters, on MLX.",
    no_args_is_help=True,
    rich_markup_mode=None,  # it would take the [defaults] of help texts for markup
    pretty_exceptions_enable=False,
)
app.command()(generate)
app.command()(chat)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"mgm {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Options of the bare command; the docstring shown to people is the app's."""


def main() -> None:
    """Entry point of `mgm`: run a command and turn what it raises into one line and a code."""
    if sys.stdin is None:  # started with it closed: keep the next file from taking its place
        sys.stdin = Path(os.devnull).open()  # noqa: SIM115 - for as long as the process lives
    try:
        app()
    except MgmError as error:
        if os.environ.get("MGM_DEBUG"):
            raise
        print(f"mgm: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except UnicodeDecodeError:
        print("mgm: the input is not UTF-8 text", file=sys.stderr)
        sys.exit(UsageError.exit_code)
