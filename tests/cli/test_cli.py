"""`mgm` as a person or a script uses it: processes of its own, the demo pair."""

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import pytest

import mlx_gemma_mtp
from helpers.command import (
    GREEDY,
    LONG,
    SECONDS,
    SUM,
    SUM_ANSWER,
    Here,
    assert_one_line,
    assert_plain,
    mgm,
    run,
    start,
)
from mlx_gemma_mtp.files.names import DEMO, DEMO_DRAFTER

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("handling", ["strict", "surrogateescape"])  # as the locale has it
def test_input_that_is_not_text_is_one_line_and_exit_code_2(handling: str, tmp_path: Path) -> None:
    bad, file = b"Hi \xff\xfe\n", tmp_path / "bad"
    file.write_bytes(bad)
    for arguments in (["generate"], ["generate", bad], ["generate", "--file", str(file)]):
        done = mgm(arguments, bad, PYTHONIOENCODING=f"utf-8:{handling}")
        assert_one_line(done, 2, "byte number 4")
    file.write_text("Hi", encoding="utf-16-le")  # which is UTF-8, too, with zeros
    assert_one_line(mgm(["generate", "--file", str(file)]), 2, f"byte number 2 of {file}")
    done = mgm(["chat"], bad, PYTHONIOENCODING=f"utf-8:{handling}")
    assert_one_line(done, 2, "UTF-8 text")


@pytest.mark.parametrize("module", ["typer", "huggingface_hub"])  # before a command, and in it
def test_ctrl_c_during_an_import_is_neither_lost_nor_a_traceback(
    module: str, tmp_path: Path
) -> None:
    code = [
        "import signal",
        "try: signal.raise_signal(signal.SIGINT)",
        "except BaseException: pass",
    ]
    (tmp_path / f"{module}.py").write_text("\n".join(code))
    command = [sys.executable, "-m", "mlx_gemma_mtp", "pull", "--dry-run", "e2b"]
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=SECONDS)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a disk that is full")
def test_output_on_a_full_disk_is_one_line_that_says_so() -> None:
    with Path("/dev/full").open("w") as full:
        process = start(["paths"], stdout=full)
        _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    assert errors == "mgm: the output cannot be written: No space left on device\n"


@pytest.mark.parametrize("line", ["", "talk", "--nope", "chat --nope 1", "chat --temperature hot"])
def test_a_command_line_that_makes_no_sense_exits_with_2(mgm_here: Here, line: str) -> None:
    done = mgm_here(*line.split())
    assert_plain(done)
    assert done.returncode == 2
    if line:
        assert_one_line(done, 2, "--help lists the ")
    assert "mgm" in done.stderr + done.stdout


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("chat --temp 1", "did you mean --temperature? mgm chat --help lists the options"),
        ("generate --max-tokns 1", "did you mean --max-tokens?"),
        ("chta", "Did you mean 'chat'?"),
        ("frobnicate", "no such command 'frobnicate'; mgm --help lists the commands"),
        ("sessions frobnicate", "mgm sessions --help lists the commands"),
        ("rm", "missing argument"),
        ("generate --model", "requires an argument"),
    ],
)
def test_a_wrong_word_on_the_command_line_gets_the_right_one(
    mgm_here: Here, line: str, word: str
) -> None:
    assert_one_line(mgm_here(*line.split()), 2, word)


def test_versions_and_the_device_are_printed() -> None:
    done = mgm(["--version"])
    assert done.returncode == 0
    assert done.stdout.startswith(f"mgm {mlx_gemma_mtp.__version__}, mlx {version('mlx')}, ")
    assert done.stdout.endswith((" cpu\n", " metal\n", " cuda\n"))


COMMANDS = (
    *("", "generate", "chat", "run", "bench", "convert", "verify", "pull", "list", "rm", "doctor"),
    *("estimate", "sessions", "sessions rm", "paths"),
)


@pytest.mark.parametrize("width", [80, 40])
@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_the_window_and_has_no_names_of_python_types(
    mgm_here: Here, monkeypatch: pytest.MonkeyPatch, name: str, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    done = mgm_here(*name.split(), "--help")
    assert_plain(done)
    assert done.returncode == 0
    assert max(map(len, done.stdout.splitlines())) <= width
    assert not re.search(r"--\S+ <list|\{[a-z]", done.stdout)


def test_python_dash_m_is_the_same_command() -> None:
    assert str(DEMO) in run([sys.executable, "-m", "mlx_gemma_mtp", "paths"]).stdout


@pytest.mark.parametrize("name", ["chat", "generate"])
def test_a_reader_that_went_away_ends_it_quietly_with_141(name: str) -> None:
    reader, stdout = os.pipe()
    os.close(reader)
    with start([name, *GREEDY], stdin=subprocess.PIPE, stdout=stdout) as process:
        os.close(stdout)
        _, errors = process.communicate(f"{LONG}\n", timeout=SECONDS)
    assert (process.returncode, errors) == (141, "")


def test_piped_lines_are_answered_one_by_one_and_remembered() -> None:
    lines = f"My name is Anna.\n\n   \nWhat is my name?\n{SUM}"  # no newline at its end
    done = mgm(["chat", *GREEDY], lines)
    assert_plain(done)
    assert (done.returncode, done.stderr) == (0, "")
    first, second, third, end = done.stdout.split("\n")  # blank lines have no answer
    assert "Anna" in first
    assert "Anna" in second  # it is only in the first turn
    assert (third, end) == (SUM_ANSWER, "")
    done = mgm(["chat"])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


BEFORE = """
import sys, threading
from mlx_gemma_mtp import SamplingParams, load
folder = "{folder}"
params = SamplingParams(max_tokens=5, ignore_eos=True)
long = SamplingParams(max_tokens=3000, ignore_eos=True)
"""
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
    """The demo pair for ids only, which loads at once."""
    folder, ignored = tmp_path_factory.mktemp("demo"), shutil.ignore_patterns("tokenizer*")
    for source in (DEMO, DEMO_DRAFTER):
        shutil.copytree(source, folder / source.name, ignore=ignored)
    return folder / DEMO.name


def test_ten_short_processes_all_end_in_order(without_tokenizer: Path) -> None:
    def end(program: str) -> tuple[int, str, str]:
        done = run([sys.executable, "-c", BEFORE.format(folder=without_tokenizer) + program])
        return done.returncode, done.stdout, done.stderr

    with ThreadPoolExecutor(2) as pool:
        ends = list(pool.map(end, [*SHORT_PROGRAMS.values()] * 2))
    assert ends == [(0, "", "")] * 2 * len(SHORT_PROGRAMS), [*SHORT_PROGRAMS]
