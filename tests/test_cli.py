"""`mgm` as a person or a script uses it: processes and a terminal of its own, the demo pair."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import mlx_gemma_mtp
from mlx_gemma_mtp.hub import DEMO

# As the installed command starts. Torch is here for other tests only: people do not have it, and
# Transformers, where it finds it, takes seconds to import it.
MGM = [
    sys.executable,
    "-c",
    "import sys; sys.modules['torch'] = None; sys.argv[0] = 'mgm'\n"
    "from mlx_gemma_mtp.cli import main; main()",
]
SECONDS = 120  # longer than any of this takes on a busy machine
SUM = "What is 17 + 25?"
SUM_ANSWER = "17 + 25 = 42"
LONG = "Write the numbers from 1 to 99."
GREEDY = ("--temperature", "0")

Done = subprocess.CompletedProcess[str]


def environment() -> dict[str, str]:
    """A terminal that could show colours, and nothing that asks for them or for tracebacks."""
    kept = os.environ | {"TERM": "xterm-256color", "PYTHONUNBUFFERED": ""}
    for name in ("FORCE_COLOR", "CLICOLOR_FORCE", "PY_COLORS", "NO_COLOR", "MGM_DEBUG"):
        kept.pop(name, None)
    return kept


def mgm(arguments: Sequence[str], stdin: str | bytes = "", **variables: str) -> Done:
    """Run a command to its end, with these variables in its environment."""
    data = stdin.encode() if isinstance(stdin, str) else stdin
    done = subprocess.run(
        [*MGM, *arguments],
        input=data,
        capture_output=True,
        timeout=SECONDS,
        env=environment() | variables,
    )
    return Done(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


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


# The commands of this file that need nobody at the keyboard: name -> (arguments, standard input).
SAMPLED = ("generate", "--prompt", "Tell me a story.", "--temperature", "1", "--seed", "7")
COMMANDS: dict[str, tuple[Sequence[str], str | bytes]] = {
    "prompt": (("generate", "--prompt", SUM, *GREEDY), ""),
    "stdin, no drafter": (("generate", "--drafter", "none", *GREEDY), f"{SUM}\n"),
    "json": ((*SAMPLED, "--max-tokens", "40", "--json"), ""),
    "json, no drafter": ((*SAMPLED, "--max-tokens", "40", "--json", "--drafter", "none"), ""),
    "folder, stop": (
        ("generate", "--model", str(DEMO), "--prompt", SUM, "--stop", "=", *GREEDY),
        "",
    ),
    "no such folder": (("generate", "--model", "no-such-model", "--prompt", "Hi"), ""),
    "no model folder": (("chat", "--model", str(DEMO.parent)), "Hi\n"),
    "no drafter": (
        ("generate", "--drafter", "none", "--num-draft-tokens", "3", "--prompt", "Hi"),
        "",
    ),
    "bad max-tokens": (("generate", "--max-tokens", "0", "--prompt", "Hi"), ""),
    "bad temperature": (("chat", "--temperature", "-1"), "Hi\n"),
    "bad drafts": (("generate", "--num-draft-tokens", "some", "--prompt", "Hi"), ""),
    "bad bits": (("generate", "--bits", "3", "--prompt", "Hi"), ""),
    "empty stdin": (("generate",), "\n"),
    "no command": ((), ""),
    "unknown command": (("talk",), ""),
    "unknown option": (("--nope",), ""),
    "unknown option of a command": (("generate", "--nope", "1"), ""),
    "option of a wrong kind": (("generate", "--temperature", "hot"), ""),
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


# mgm generate


def test_the_text_alone_is_on_stdout(run: Callable[[str], Done]) -> None:
    done = run("prompt")
    assert_plain(done)
    assert done.returncode == 0
    assert done.stdout == f"{SUM_ANSWER}\n"
    assert done.stderr == ""


def test_a_prompt_on_stdin_without_drafter_gives_the_same_text(run: Callable[[str], Done]) -> None:
    done = run("stdin, no drafter")
    assert done.returncode == 0
    assert done.stdout == run("prompt").stdout
    assert done.stderr == ""


def test_json_holds_text_tokens_and_statistics(run: Callable[[str], Done]) -> None:
    done = run("json")
    assert_plain(done)
    assert done.returncode == 0
    assert done.stdout.count("\n") == 1
    found = json.loads(done.stdout)
    assert found["text"]
    assert found["finish_reason"] == "length"
    assert len(found["tokens"]) == found["stats"]["generated_tokens"] == 40
    assert all(isinstance(token, int) for token in found["tokens"])
    stats = found["stats"]
    assert stats["prompt_tokens"] > 0
    assert 0 <= stats["accepted"] <= stats["drafted"]
    assert 0 < stats["drafted"] == sum(stats["drafted_at"])
    assert stats["acceptance_rate"] == stats["accepted"] / stats["drafted"]
    assert stats["first_token_seconds"] > 0
    assert stats["decode_tokens_per_second"] > 0


def test_a_seed_gives_the_same_text_again_with_and_without_drafter(
    run: Callable[[str], Done],
) -> None:
    one, other = (json.loads(run(name).stdout) for name in ("json", "json, no drafter"))
    assert one["text"] == other["text"]
    assert one["tokens"] == other["tokens"]
    assert other["stats"]["drafted"] == 0
    assert other["stats"]["acceptance_rate"] is None


def test_a_model_folder_and_a_stop_string_are_honoured(run: Callable[[str], Done]) -> None:
    done = run("folder, stop")
    assert done.returncode == 0
    assert done.stdout == SUM_ANSWER.partition("=")[0] + "\n"


@pytest.mark.parametrize(
    ("name", "exit_code", "word"),
    [
        ("no such folder", 3, "no-such-model"),
        ("no model folder", 1, "config.json"),
        ("no drafter", 3, "drafter"),
        ("bad max-tokens", 2, "max_tokens"),
        ("bad temperature", 2, "temperature"),
        ("bad drafts", 2, "num-draft-tokens"),
        ("bad bits", 2, "bits"),
        ("empty stdin", 2, "empty"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_an_exit_code(
    run: Callable[[str], Done], name: str, exit_code: int, word: str
) -> None:
    assert_one_line(run(name), exit_code, word)


@pytest.mark.parametrize("handling", ["strict", "surrogateescape"])  # as the locale has it
@pytest.mark.parametrize("command", ["generate", "chat"])
def test_input_that_is_no_text_is_one_line_and_exit_code_2(command: str, handling: str) -> None:
    done = mgm([command], b"Hi \xff\xfe\n", PYTHONIOENCODING=f"utf-8:{handling}")
    assert_one_line(done, 2, "")


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


def test_the_version_is_printed(run: Callable[[str], Done]) -> None:
    done = run("version")
    assert (done.returncode, done.stdout) == (0, f"mgm {mlx_gemma_mtp.__version__}\n")


@pytest.mark.parametrize("arguments", [("generate",), ("chat",)], ids=str)
def test_a_reader_that_goes_away_leaves_no_traceback(arguments: tuple[str, ...]) -> None:
    process = subprocess.Popen(
        [*MGM, *arguments, *GREEDY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdin.write(f"{LONG}\n".encode())
    process.stdin.close()
    assert os.read(process.stdout.fileno(), 1) == b"1"  # as `head -c 1` does
    process.stdout.close()
    assert process.wait(SECONDS) != 0
    with process.stderr as errors:
        assert errors.read() == b""


def test_an_interrupt_ends_a_text_with_130_and_no_traceback() -> None:
    process = subprocess.Popen(
        [*MGM, "generate", "--prompt", LONG, *GREEDY],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    assert process.stdout is not None
    assert os.read(process.stdout.fileno(), 1) == b"1"
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    assert b"99" not in rest
    assert b"Traceback" not in errors


def test_where_no_drafter_is_found_stderr_says_so(tmp_path: Path) -> None:
    for path in DEMO.iterdir():
        (tmp_path / path.name).symlink_to(path)
    done = mgm(["generate", "--model", str(tmp_path), "--prompt", SUM, *GREEDY])
    assert_plain(done)
    assert (done.returncode, done.stdout) == (0, f"{SUM_ANSWER}\n")
    assert re.fullmatch(r"[^\n]*no drafter[^\n]*\n", done.stderr)


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


class Terminal:
    """A command in a pseudo-terminal, with somebody who reads and types."""

    def __init__(self, *arguments: str) -> None:
        self.keyboard, self.screen = pty.openpty()
        self.settings = termios.tcgetattr(self.screen)
        self.process = subprocess.Popen(
            [*MGM, *arguments],
            stdin=self.screen,
            stdout=self.screen,
            stderr=self.screen,
            start_new_session=True,
            # Makes it the session's terminal, so that Ctrl-C is a signal.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            env=environment() | {"COLUMNS": "300"},
        )
        self.seen = ""

    def type(self, keys: str) -> None:
        os.write(self.keyboard, keys.encode())

    def read_until(self, pattern: str) -> str:
        """What appears up to and with the pattern; what comes after it stays for the next time."""
        deadline = time.monotonic() + SECONDS
        while (found := re.search(pattern, self.seen)) is None:
            assert time.monotonic() < deadline, f"no {pattern!r} in {self.seen!r}"
            assert self.process.poll() is None or self._readable(), f"left after {self.seen!r}"
            if self._readable():
                self.seen += os.read(self.keyboard, 4096).decode(errors="replace")
        piece, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return piece

    def leave(self) -> tuple[int, str]:
        """The exit code once the command has ended by itself, and what was still to be read."""
        code = self.process.wait(SECONDS)
        while self._readable():
            self.seen += os.read(self.keyboard, 4096).decode(errors="replace")
        return code, self.seen

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.keyboard)
        os.close(self.screen)

    def _readable(self) -> bool:
        return bool(select.select([self.keyboard], [], [], 0.1)[0])


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal("chat", *GREEDY)
    yield terminal
    terminal.close()


def test_in_a_terminal_ctrl_c_stops_the_answer_only_and_ctrl_d_leaves(terminal: Terminal) -> None:
    prompt = r"(?<!\w)> $"
    terminal.read_until(prompt)
    terminal.type(f"{LONG}\n")
    shown = terminal.read_until("1, 2, 3")
    terminal.type("\x03")
    shown += terminal.read_until(prompt)
    assert "Traceback" not in shown
    assert "98, 99" not in shown

    terminal.type(f"{SUM}\n")
    assert "Traceback" not in terminal.read_until("= 42")
    terminal.read_until(prompt)

    terminal.type("half a line")
    terminal.read_until("half a line")
    terminal.type("\x03")  # drops it: a fresh line is asked for
    terminal.read_until(prompt)
    terminal.type("\n")  # a blank line asks for nothing
    terminal.read_until(prompt)
    terminal.type("What is 2 + 4?\x7f\x7f3?\n")  # edited: 2 + 3
    terminal.read_until("= 5")
    terminal.read_until(prompt)

    terminal.type("\x04")
    code, rest = terminal.leave()
    assert code == 0
    assert "Traceback" not in rest
    assert termios.tcgetattr(terminal.screen) == terminal.settings
    assert rest.rfind("\x1b[?2004h") <= rest.rfind("\x1b[?2004l")  # bracketed paste is off again


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
    for source in (DEMO, DEMO.with_name(DEMO.name + "-assistant")):
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
