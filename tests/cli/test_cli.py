"""`mgm` as a person or a script uses it: processes of its own, the demo pair."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import pytest

import mlx_gemma_mtp
from helpers.command import (
    GREEDY,
    LONG,
    MGM,
    SECONDS,
    SUM,
    SUM_ANSWER,
    Done,
    assert_one_line,
    assert_plain,
    environment,
    mgm,
)
from mlx_gemma_mtp.files.hub import DEMO, DEMO_DRAFTER

pytestmark = pytest.mark.slow

# The commands of this file that need nobody at the keyboard: name -> (arguments, standard input).
COMMANDS: dict[str, tuple[Sequence[str], str | bytes]] = {
    "no model folder": (("chat", "--model", str(DEMO.parent)), "Hi\n"),
    "bad temperature": (("chat", "--temperature", "-1"), "Hi\n"),
    "no command": ((), ""),
    "unknown command": (("talk",), ""),
    "unknown option": (("--nope",), ""),
    "unknown option of a command": (("chat", "--nope", "1"), ""),
    "option of a wrong kind": (("chat", "--temperature", "hot"), ""),
    "version": (("--version",), ""),
    "chat": (
        ("chat", *GREEDY),
        f"My name is Anna.\n\n   \nWhat is my name?\n{SUM}",  # no newline at its end
    ),
    "chat of nothing": (("chat",), ""),
}


@pytest.fixture(scope="module")
def run() -> Iterator[Callable[[str], Done]]:
    """What became of a command; all of them are started with the first one, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        started = {name: pool.submit(mgm, *command) for name, command in COMMANDS.items()}
        yield lambda name: started[name].result()
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize(
    ("name", "exit_code", "word"),
    [
        ("no model folder", 1, "config.json"),
        ("bad temperature", 2, "temperature"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_an_exit_code(
    run: Callable[[str], Done], name: str, exit_code: int, word: str
) -> None:
    assert_one_line(run(name), exit_code, word)


@pytest.mark.parametrize("handling", ["strict", "surrogateescape"])  # as the locale has it
def test_input_that_is_no_text_is_one_line_and_exit_code_2(handling: str) -> None:
    done = mgm(["chat"], b"Hi \xff\xfe\n", PYTHONIOENCODING=f"utf-8:{handling}")
    assert_one_line(done, 2, "UTF-8 text")


@pytest.mark.parametrize(
    "name",
    [
        "no command",
        "unknown command",
        "unknown option",
        "unknown option of a command",
        "option of a wrong kind",
    ],
)
def test_a_command_line_that_makes_no_sense_exits_with_2(
    run: Callable[[str], Done], name: str
) -> None:
    done = run(name)
    assert_plain(done)
    assert done.returncode == 2
    assert "Usage: mgm" in done.stderr + done.stdout


def test_versions_and_the_device_are_printed(run: Callable[[str], Done]) -> None:
    done = run("version")
    assert done.returncode == 0
    assert done.stdout.startswith(f"mgm {mlx_gemma_mtp.__version__}, mlx {version('mlx')}, ")
    assert done.stdout.endswith((" cpu\n", " metal\n", " cuda\n"))


@pytest.mark.parametrize("name", ["chat", "generate"])
def test_a_reader_that_went_away_ends_it_quietly_with_141(name: str) -> None:
    reader, stdout = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*MGM, name, *GREEDY],
        input=f"{LONG}\n".encode(),
        stdout=stdout,
        stderr=subprocess.PIPE,
        timeout=SECONDS,
        env=environment(),
    )
    os.close(stdout)
    assert (done.returncode, done.stderr) == (141, b"")


# mgm chat


def test_piped_lines_are_answered_one_by_one_and_remembered(run: Callable[[str], Done]) -> None:
    done = run("chat")
    assert_plain(done)
    assert done.returncode == 0
    assert done.stderr == ""
    first, second, third = done.stdout.splitlines()  # blank lines ask for nothing
    assert "Anna" in first
    assert "Anna" in second  # which only the first turn tells
    assert third == SUM_ANSWER
    assert done.stdout.endswith("\n")


def test_no_lines_are_no_chat(run: Callable[[str], Done]) -> None:
    done = run("chat of nothing")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# Leaving the process

SHORT_PROGRAMS = {
    "closed": "with load(folder) as engine:\n    engine.generate([5], params)",
    "never closed": "engine = load(folder)\nengine.generate([5], params)",
    "within a stream": "chunks = load(folder).stream([5], long)\nnext(chunks)\nsys.exit()",
    "in other threads": """
engines = []
def use():
    engines[0].generate([5], params)
for target in (lambda: engines.append(load(folder)), use, use):
    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
engines[0].close()
""",
    "two engines": "load(folder).close()\nload(folder, None).generate([5], params)",
}


@pytest.fixture(scope="module")
def without_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo pair for ids alone: it loads in no time."""
    folder = tmp_path_factory.mktemp("demo")
    for source in (DEMO, DEMO_DRAFTER):
        (folder / source.name).mkdir()
        for path in source.iterdir():
            if not path.name.startswith("tokenizer"):
                (folder / source.name / path.name).symlink_to(path)
    return folder / DEMO.name


def test_ten_short_processes_all_leave_in_order(without_tokenizer: Path) -> None:
    def leave(program: str) -> tuple[int, str, str]:
        start = (
            "import sys, threading\nfrom mlx_gemma_mtp import SamplingParams, load\n"
            f"folder = {str(without_tokenizer)!r}\n"
            "params = SamplingParams(max_tokens=5, ignore_eos=True)\n"
            "long = SamplingParams(max_tokens=3000, ignore_eos=True)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", start + program],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            env=environment(),
        )
        return done.returncode, done.stdout, done.stderr

    programs = [*SHORT_PROGRAMS, *SHORT_PROGRAMS]
    with ThreadPoolExecutor(2) as pool:
        ends = list(pool.map(leave, (SHORT_PROGRAMS[name] for name in programs)))
    for name, end in zip(programs, ends, strict=True):
        assert end == (0, "", ""), name
