"""The `mgm` command. Output goes to stdout, everything else to stderr; errors are one line."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mlx_gemma_mtp import __version__
from mlx_gemma_mtp.cli.bench import bench
from mlx_gemma_mtp.cli.chat import chat
from mlx_gemma_mtp.cli.convert import convert
from mlx_gemma_mtp.cli.doctor import doctor
from mlx_gemma_mtp.cli.estimate import estimate
from mlx_gemma_mtp.cli.generate import generate
from mlx_gemma_mtp.cli.models import list_models, remove
from mlx_gemma_mtp.cli.paths import paths
from mlx_gemma_mtp.cli.pull import pull
from mlx_gemma_mtp.cli.sessions import sessions
from mlx_gemma_mtp.cli.verify import verify
from mlx_gemma_mtp.errors import MgmError, one_line

BROKEN_PIPE = 128 + signal.SIGPIPE  # the exit code that shells give to SIGPIPE


class Commands(TyperGroup):
    """All commands. If the reader of their output goes away, they end quietly, as others do."""

    def invoke(self, ctx: Any) -> Any:
        """Run one, to the last byte of its output."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            # The rest of the buffers goes nowhere, without a complaint.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for number in (1, 2):
                os.dup2(nowhere, number)
            raise typer.Exit(BROKEN_PIPE) from None
        return result


app = typer.Typer(
    name="mgm",
    cls=Commands,
    help="Run Gemma 4 with its multi-token-prediction drafters on MLX.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},  # of every command
    rich_markup_mode=None,  # [defaults] in help texts would be taken for markup
    pretty_exceptions_enable=False,
)
app.command()(chat)
app.command("run", help="The same as chat: mgm run e4b.")(chat)
app.command()(generate)
app.command(short_help="Measure whether drafting is worth it here.")(bench)
app.command(short_help="Quantize a target and its drafter for MLX.")(convert)
app.command()(verify)
app.command(short_help="Download a model and its drafter.")(pull)
app.command("list", short_help="List the models that are here.")(list_models)
app.command("ls", hidden=True)(list_models)
app.command("rm")(remove)
app.command()(doctor)
app.command()(estimate)
app.add_typer(sessions, name="sessions")
app.command()(paths)


def _print_version(wanted: bool) -> None:
    if not wanted:
        return
    from importlib.metadata import version

    from mlx_gemma_mtp.device import backend

    others = f"mlx {version('mlx')}, transformers {version('transformers')}"
    print(f"mgm {__version__}, {others}, Python {platform.python_version()}, {backend()}")
    raise typer.Exit


VERSION = typer.Option(
    "--version", callback=_print_version, is_eager=True, help="Print versions and device."
)


@app.callback()
def bare(version: Annotated[bool, VERSION] = False) -> None:
    """Options of `mgm` without a command. Its help is the one of the app."""


def _help_width() -> int:
    """Return the columns of help texts, as usual, but also in windows that are narrower than 50."""
    return min(shutil.get_terminal_size().columns, 80) - 2


def main(args: Sequence[str] | None = None) -> None:
    """Run a command, by default the one of this process; an error becomes one line and a code."""
    # If a stream is closed at the start, the next file that is opened would take its place.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - until the process ends
    try:
        app(args, prog_name="mgm", terminal_width=_help_width())
    except Exception as error:
        if os.environ.get("MGM_DEBUG"):
            raise
        line = f"{type(error).__name__}: {one_line(error)} (MGM_DEBUG=1 shows where)"
        exit_code = MgmError.exit_code
        if isinstance(error, MgmError):
            line, exit_code = str(error), error.exit_code
        from mlx_gemma_mtp.show import say

        say(f"mgm: {line}")
        sys.exit(exit_code)
