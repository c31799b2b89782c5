"""The `mgm` command. Text goes to stdout, everything else to stderr; errors are one line."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from mlx_gemma_mtp import __version__
from mlx_gemma_mtp.cli.chat import chat
from mlx_gemma_mtp.cli.generate import generate
from mlx_gemma_mtp.errors import MgmError

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
EXIT_PIPE_CLOSED = 141  # 128 + SIGPIPE

app = typer.Typer(
    name="mgm",
    help="Gemma 4 with its multi-token-prediction drafters, on MLX.",
    no_args_is_help=True,
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
    try:
        app()
    except MgmError as error:
        if os.environ.get("MGM_DEBUG"):
            raise
        print(f"mgm: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing left to flush to
        sys.exit(EXIT_PIPE_CLOSED)
