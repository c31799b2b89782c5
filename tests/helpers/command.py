"""`mgm` in a process of its own, as it is installed, and what its output must be."""

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

SECONDS = 120  # longer than any of this takes on a busy machine

# What the demo pair is asked, and what it says to SUM.
SUM = "What is 17 + 25?"
SUM_ANSWER = "17 + 25 = 42"
LONG = "Write the numbers from 1 to 99."
STORY = "Tell me a story."
GREEDY = ("--temperature", "0")

Done = subprocess.CompletedProcess[str]
Here = Callable[..., Done]


def command(before: str = "") -> list[str]:
    """The start of a command line; `before` is Python that is run first.

    Torch is here for other tests only: people do not have it, and Transformers, where it finds it,
    takes seconds to import it.
    """
    start = "import sys; sys.modules['torch'] = None; sys.argv[0] = 'mgm'"
    end = "from mlx_gemma_mtp.cli import main; main()"
    return [sys.executable, "-c", "\n".join([start, before, end])]


MGM = command()


def environment() -> dict[str, str]:
    """A terminal that could show colours, and nothing that asks for them or for tracebacks."""
    kept = os.environ | {"TERM": "xterm-256color", "PYTHONUNBUFFERED": ""}
    for name in ("FORCE_COLOR", "CLICOLOR_FORCE", "PY_COLORS", "NO_COLOR", "MGM_DEBUG"):
        kept.pop(name, None)
    return kept


def mgm(
    arguments: Sequence[str | bytes], stdin: str | bytes = "", before: str = "", **variables: str
) -> Done:
    """Run a command to its end, with these variables in its environment."""
    data = stdin.encode() if isinstance(stdin, str) else stdin
    done = subprocess.run(
        [*command(before), *arguments],
        input=data,
        capture_output=True,
        timeout=SECONDS,
        env=environment() | variables,
    )
    return Done(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def run_here(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: Sequence[str | Path],
    stdin: str = "",
) -> Done:
    """The same in this process: quicker, and it can be tampered with."""
    monkeypatch.setattr(sys, "argv", ["mgm", *map(str, arguments)])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
    with pytest.raises(SystemExit) as left:
        main()
    code = left.value.code
    assert isinstance(code, int)
    return Done(arguments, code, *capfd.readouterr())


@pytest.fixture(name="here")
def generate_here(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Here:
    """`mgm generate` in this process, with these arguments."""

    def run(*arguments: str | Path, stdin: str = "") -> Done:
        return run_here(monkeypatch, capfd, ["generate", *arguments], stdin)

    return run


def assert_plain(done: Done) -> None:
    """Nothing in the output that only a terminal or a programmer could like."""
    for output in (done.stdout, done.stderr):
        assert "\x1b" not in output
        assert "Traceback" not in output


def assert_one_line(done: Done, exit_code: int, word: str) -> None:
    """Nothing but one line of error."""
    assert_plain(done)
    assert done.returncode == exit_code, done.stderr
    assert done.stdout == ""
    assert re.fullmatch(r"mgm: [^\n]+\n", done.stderr), done.stderr
    assert word in done.stderr


def found(done: Done) -> dict[str, Any]:
    """The one line of JSON on stdout."""
    assert_plain(done)
    assert done.stdout.count("\n") == 1
    read: dict[str, Any] = json.loads(done.stdout)
    return read
