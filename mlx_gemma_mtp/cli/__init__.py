"""The `mgm` command. Output goes to stdout, everything else to stderr; errors are one line."""

from __future__ import annotations

import errno
import os
import platform
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
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
from mlx_gemma_mtp.cli.serve import serve
from mlx_gemma_mtp.cli.sessions import sessions
from mlx_gemma_mtp.cli.verify import verify
from mlx_gemma_mtp.errors import CheckpointError, MgmError, ModelNotFoundError, UsageError, one_line

# click's UsageError: of the package, or of the copy of it inside newer versions of typer.
CLICKS_ERROR: Any = typer.BadParameter.__base__
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
BROKEN_PIPE = 128 + signal.SIGPIPE  # the exit code that shells give to SIGPIPE


class Commands(TyperGroup):
    """All commands. If the reader of their output goes away, they end quietly, as others do.

    Errors in a command line are UsageErrors, of one line as all others.
    """

    def make_context(self, *args: Any, **extra: Any) -> Any:
        """Read the options that come before the command. Raises UsageError."""
        with _usage_errors():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Run one, to the last byte of its output. Raises UsageError."""
        try:
            with _usage_errors():
                result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            _drop_output(1, 2)
            raise typer.Exit(BROKEN_PIPE) from None
        return result


def _drop_output(*streams: int) -> None:
    """Let the rest of the buffers of these streams go nowhere, without a complaint."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in streams:
        os.dup2(nowhere, number)


@contextmanager
def _usage_errors() -> Iterator[None]:
    """Turn what click says of a command line into a UsageError that names the way out."""
    try:
        yield
    except CLICKS_ERROR as error:
        context, option = error.ctx, getattr(error, "option_name", None)
        if type(error).__name__ == "NoArgsIsHelpError":  # it prints the help
            raise
        message = error.format_message().replace("Value error, ", "").rstrip(".")
        if context is None:  # an option without its value
            raise UsageError(f"{message[0].lower()}{message[1:]}") from None
        if option is not None and hasattr(error, "possibilities"):
            names = [name for one in context.command.params for name in one.opts]
            near = [name for name in names if name.startswith(option)]
            near = near or get_close_matches(option, names, 1)
            message = f"No such option: {option}"
            message += f"; did you mean {' or '.join(near)}?" if near else ""
        what = "commands" if hasattr(context.command, "commands") else "options"
        end = "" if message.endswith("?") else ";"
        raise UsageError(
            f"{message[0].lower()}{message[1:]}{end} {context.command_path} --help lists the {what}"
        ) from None


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
app.command(short_help="Serve a model over HTTP: OpenAI's, Anthropic's and Ollama's APIs.")(serve)
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

    others = f"mlx {version('mlx')}, tokenizers {version('tokenizers')}"
    print(f"mgm {__version__}, {others}, Python {platform.python_version()}, {backend()}")
    raise typer.Exit


VERSION = typer.Option(
    "--version", callback=_print_version, is_eager=True, help="Print versions and device."
)


@app.callback()
def bare(version: Annotated[bool, VERSION] = False) -> None:
    """Options of `mgm` without a command. Its help is the one of the app."""


def _from_environment(error: MgmError, args: Sequence[str]) -> str:
    """Return a note if an error is about a model that only the environment names."""
    model = os.environ.get("MGM_MODEL")
    about = isinstance(error, (CheckpointError, ModelNotFoundError)) and str(model) in str(error)
    return f" (MGM_MODEL is {model!r})" if model and about and model not in args else ""


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
            line += _from_environment(error, sys.argv[1:] if args is None else args)
        elif isinstance(error, OSError) and error.errno in DISK_FULL:
            line = f"{error.filename or 'the output'} cannot be written: {error.strerror}"
            _drop_output(1)
        from mlx_gemma_mtp.show import say

        say(f"mgm: {line}")
        sys.exit(exit_code)
