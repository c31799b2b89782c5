"""The `mgm` command. Text goes to stdout, everything else to stderr; errors are one line."""

from __future__ import annotations

import os
import platform
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

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

BROKEN_PIPE = 128 + signal.SIGPIPE  # what a shell reports of others in this case


class Commands(TyperGroup):
    """All of them; where whoever reads their output goes away, they leave quietly, as others do."""

    def invoke(self, ctx: Any) -> Any:
        """Run one to its end, to the last byte of its output."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            # What is still in the buffers goes nowhere, and is not complained of.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for number in (1, 2):
                os.dup2(nowhere, number)
            raise typer.Exit(BROKEN_PIPE) from None
        return result


app = typer.Typer(
    name="mgm",
    cls=Commands,
    help="Gemma 4 with its multi-token-prediction drafters, on MLX.",
    no_args_is_help=True,
    rich_markup_mode=None,  # it would take the [defaults] of help texts for markup
    pretty_exceptions_enable=False,
)
app.command()(generate)
app.command()(chat)
app.command()(bench)
app.command()(convert)
app.command()(verify)
app.command()(pull)
app.command("list")(list_models)
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

    others = ", ".join(f"{name} {version(name)}" for name in ("mlx", "mlx-lm"))
    print(f"mgm {__version__}, {others}, Python {platform.python_version()}, {backend()}")
    raise typer.Exit


@app.callback()
def bare(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print versions and device."
        ),
    ] = False,
) -> None:
    """The options of `mgm` without a command; the docstring shown to people is the app's."""


def main() -> None:
    """Entry point of `mgm`: run a command and turn what it raises into one line and a code."""
    # Started with one of them closed: keep the next file from taking its place.
    if sys.stdin is None:
        sys.stdin = Path(os.devnull).open()  # noqa: SIM115 - for as long as the process lives
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - the same
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - the same
    try:
        app()
    except MgmError as error:
        _fail(str(error), error.exit_code)
    except Exception as error:  # noqa: BLE001 - what nobody foresaw, without its traceback
        said = f"{type(error).__name__}: {one_line(error)}"
        _fail(f"{said} (MGM_DEBUG=1 shows where)", MgmError.exit_code)


def _fail(line: str, exit_code: int) -> NoReturn:
    """Say in one line what is wrong and leave; with MGM_DEBUG, raise it."""
    if os.environ.get("MGM_DEBUG"):
        raise  # it is called where an error is being handled
    print(f"mgm: {line}", file=sys.stderr)
    sys.exit(exit_code)
