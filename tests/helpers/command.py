"""`mgm` in a process of its own or in this one, and what its output must look like."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from mlx_gemma_mtp.cli import main

SECONDS = 120  # longer than any command takes on a busy machine

# Prompts for the demo pair, and its answer to SUM.
SUM = "What is 17 + 25?"
SUM_ANSWER = "17 + 25 = 42"
LONG = "Write the numbers from 1 to 99."
STORY = "Tell me a story."
GREEDY = ("--temperature", "0")

Done = subprocess.CompletedProcess[str]
Here = Callable[..., Done]


def command(before: str = "") -> list[str]:
    """Return the start of a command line; `before` is Python code that runs first.

    Torch is only for other tests: users do not have it, and Transformers would import it.
    """
    code = ["import sys; sys.modules['torch'] = None", before]
    return [
        sys.executable,
        "-c",
        "\n".join([*code, "from mlx_gemma_mtp.__main__ import main; main()"]),
    ]


MGM = command()


def environment() -> dict[str, str]:
    """Return an environment with a color terminal and no wish for colors or tracebacks."""
    wishes = ("FORCE_COLOR", "CLICOLOR_FORCE", "PY_COLORS", "NO_COLOR", "MGM_DEBUG")
    kept = {name: value for name, value in os.environ.items() if name not in wishes}
    return kept | {"TERM": "xterm-256color", "PYTHONUNBUFFERED": ""}


def start(arguments: Sequence[str], **streams: Any) -> subprocess.Popen[str]:
    """Start a command in a process of its own, without standard input and with pipes for output."""
    pipe = subprocess.PIPE
    streams = {"stdin": subprocess.DEVNULL, "stdout": pipe, "stderr": pipe} | streams
    return subprocess.Popen([*MGM, *arguments], text=True, env=environment(), **streams)


def mgm(
    arguments: Sequence[str | bytes], stdin: str | bytes = "", before: str = "", **variables: str
) -> Done:
    """Run a command to its end, with these variables in its environment."""
    return run([*command(before), *arguments], stdin, **variables)


def run(line: Sequence[str | bytes], stdin: str | bytes = "", **variables: str) -> Done:
    data = stdin.encode() if isinstance(stdin, str) else stdin
    env = environment() | variables
    done = subprocess.run(line, input=data, capture_output=True, timeout=SECONDS, env=env)
    return Done(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def run_here(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: Sequence[str | Path],
    stdin: str = "",
) -> Done:
    """Run a command in this process, which is quicker."""
    monkeypatch.setattr(sys, "argv", ["mgm", *map(str, arguments)])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
    with pytest.raises(SystemExit) as left:
        main()
    assert isinstance(left.value.code, int)
    return Done(arguments, left.value.code, *capfd.readouterr())


@pytest.fixture
def mgm_here(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Here:
    """`mgm` in this process, with these arguments and this standard input."""
    return lambda *arguments, stdin="": run_here(monkeypatch, capfd, arguments, stdin)


def assert_plain(done: Done) -> None:
    """Assert that the output has no escape sequences and no traceback."""
    assert not re.search(r"\x1b|Traceback", done.stdout + done.stderr)


def assert_one_line(done: Done, exit_code: int, word: str) -> None:
    assert_plain(done)
    assert done.returncode == exit_code, done.stderr
    assert done.stdout == ""
    assert re.fullmatch(r"mgm: [^\n]+\n", done.stderr), done.stderr
    assert word in done.stderr


def found(done: Done) -> dict[str, Any]:
    assert_plain(done)
    assert done.stdout.count("\n") == 1
    return dict(json.loads(done.stdout))
