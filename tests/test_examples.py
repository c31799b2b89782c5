"""The examples run as a user runs them, on the demo pair, and say what they should."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import pytest

from helpers.cells import run_cells

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[1] / "examples"
OFFLINE = os.environ | {"HF_HUB_OFFLINE": "1"}
PERSON = '{{"name":"{}","age":{},"city":"{}"}}'
ANSWERS = {
    "hello": ["17 + 25 = 42"],
    "extract": [PERSON.format(*one) for one in [("Anna", 31, "Paris"), ("Zoe", 8, "Rome")]],
    "ten_conversations": ["What is my name? -> Your name is Jack.", "10 conversations"],
    "assistant": ["-> {'number': '220011'}]", "The phone number of Ben is 220011.", "no price for"],
}
QUESTIONS = "What is the phone number of Ben?\nHow much does a castle cost?\n"


def run(name: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", EXAMPLES / f"{name}.py", *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env=OFFLINE, capture_output=True, text=True, input=QUESTIONS
    )


@pytest.mark.parametrize("name", ANSWERS)
def test_an_example_answers(name: str, tmp_path: Path) -> None:
    done = run(name, cwd=tmp_path)
    assert done.stderr == ""
    for answer in ANSWERS[name]:
        assert answer in done.stdout
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("name", ["extract", "ten_conversations"])
def test_a_model_that_is_missing_is_one_line(name: str, tmp_path: Path) -> None:
    done = run(name, "missing", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("no folder 'missing'")
    assert done.stderr.count("\n") == 1


def test_a_folder_without_texts_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    done = run("extract", "--folder", tmp_path, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, f"{tmp_path} has no .txt files with text\n")


def test_the_notebook_prints_what_is_stored_in_it() -> None:
    cells = json.loads((EXAMPLES / "notebook.ipynb").read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    stored = ["".join(text for one in cell["outputs"] for text in one["text"]) for cell in code]
    assert run_cells(["".join(cell["source"]) for cell in code]) == stored


@contextmanager
def serving(port: list[int]) -> Iterator[Iterator[str]]:
    """Run the server. Yield the lines that it logs from now on; its port is added to the list."""
    command = [sys.executable, EXAMPLES / "server.py", "--port", "0"]
    with subprocess.Popen(command, env=OFFLINE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        try:
            for line in process.stderr:
                if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                    port.append(int(found[1]))
                    break
            yield process.stderr
        finally:
            process.send_signal(signal.SIGINT)


def ask(port: int, prompt: str) -> tuple[HTTPConnection, HTTPResponse]:
    connection = HTTPConnection("127.0.0.1", port)
    body = json.dumps({"prompt": prompt})
    connection.request("POST", "/ask", body, {"Content-Type": "application/json"})
    return connection, connection.getresponse()


def test_a_client_that_leaves_ends_its_generation() -> None:
    port: list[int] = []
    with serving(port) as log:
        leaving, response = ask(*port, "Count from 1 to 100.")
        assert response.read1(1) == b"1"
        response.close()
        leaving.close()
        assert "<Generation cancelled" in next(line for line in log if "<Generation" in line)

        connection, response = ask(*port, "What is 17 + 25?")
        assert response.read() == b"17 + 25 = 42"
        connection.close()
        assert "<Generation stop" in next(line for line in log if "<Generation" in line)

        connection, response = ask(*port, "")
        assert (response.status, "empty" in response.read().decode()) == (400, True)
        connection.close()
