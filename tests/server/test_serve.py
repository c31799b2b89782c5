"""`mgm serve` as people, scripts and service managers use it: processes of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import httpx2
import pytest

from helpers.command import (
    MGM,
    SECONDS,
    Here,
    assert_one_line,
    assert_plain,
    environment,
    mgm,
    start,
)
from helpers.server import Served, served
from mlx_gemma_mtp.errors import MgmError, UsageError
from mlx_gemma_mtp.server.announce import block, url_of
from mlx_gemma_mtp.server.server import GRACE_SECONDS
from mlx_gemma_mtp.server.settings import Settings
from mlx_gemma_mtp.server.sockets import bind, listen, only_local, port_of

pytestmark = pytest.mark.slow

CHAT = "/v1/chat/completions"
SUM = {"messages": [{"role": "user", "content": "What is 17 + 25?"}], "temperature": 0}
# Together, several of 4,000 tokens take longer than a server waits for its answers.
ENDLESS = SUM | {"ignore_eos": True, "stream": True, "draft": False}


class Stream(threading.Thread):
    """A client that reads a stream, which has started."""

    def __init__(self, url: str, max_tokens: int = 4000) -> None:
        super().__init__(daemon=True)
        self.url, self.lines = url, list[str]()
        self.body = ENDLESS | {"max_tokens": max_tokens}
        self.error: Exception | None = None
        self.start()
        until = time.monotonic() + SECONDS
        while not self.lines:
            assert time.monotonic() < until
            time.sleep(0.01)

    def run(self) -> None:
        try:
            with httpx2.stream("POST", self.url + CHAT, json=self.body, timeout=SECONDS) as answer:
                for line in answer.iter_lines():
                    self.lines.append(line)
        except httpx2.HTTPError as error:
            self.error = error

    def end(self) -> str:
        """Wait for the end, and return the last event that is not the mark of the end."""
        self.join(SECONDS)
        assert not self.is_alive()
        assert self.error is None
        return [line for line in self.lines if line and "[DONE]" not in line][-1]


def ended(server: Served) -> int:
    """Wait for the end of a server, and return its exit code."""
    code = server.process.wait(SECONDS)
    assert "Traceback" not in server.log()
    return code


def test_it_says_where_it_is_and_the_lines_to_paste_work(server: Served) -> None:
    assert re.search(r"Listening on http://127\.0\.0\.1:\d+ ", server.said)
    assert "demo or gemma-4-demo-it" in server.said
    assert "4,096 tokens" in server.said
    if shutil.which("curl"):
        [curl] = re.findall(r"(?m)^ +(curl .*)$", server.said)
        done = subprocess.run(curl, shell=True, capture_output=True, check=True)
        assert "42" in json.loads(done.stdout)["choices"][0]["message"]["content"]
    openai = pytest.importorskip("openai")
    [python] = re.findall(r"(?m)^ +client = (.*?)  #", server.said)
    client = eval(python, {"OpenAI": openai.OpenAI})
    [model] = re.findall(r'# model="(.*)"', server.said)
    answer = client.chat.completions.create(model=model, messages=SUM["messages"], temperature=0)
    assert "42" in answer.choices[0].message.content


def test_requests_are_logged(server: Served) -> None:
    httpx2.post(server.url + CHAT, json=SUM)
    assert re.search(r"\d\d:\d\d:\d\d  chat  demo  prompt 24", server.wait_for("  chat  "))


def test_ctrl_c_ends_all_answers_within_a_round_and_exits_with_130() -> None:
    with served() as server:
        stream = Stream(server.url)
        server.process.send_signal(signal.SIGINT)
        started = time.monotonic()
        assert "unavailable" in stream.end()
        assert ended(server) == 130
        assert time.monotonic() - started < GRACE_SECONDS / 2  # a round takes milliseconds
        assert "chat" in server.log()


def test_sigterm_lets_answers_finish_and_ends_those_that_take_too_long() -> None:
    with served() as server:
        streams = [Stream(server.url) for _ in range(3)]
        short = Stream(server.url, max_tokens=40)
        server.process.terminate()
        assert "finishing 4 answers" in server.wait_for("finishing")
        assert '"finish_reason":"length"' in short.end()
        assert server.process.poll() is None
        with pytest.raises(httpx2.ConnectError):
            httpx2.get(server.url)
        for stream in streams:
            assert "unavailable" in stream.end()
        assert ended(server) == 0


def test_sigterm_before_it_listens_has_the_same_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as hub:
        hub.settimeout(SECONDS)
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{hub.getsockname()[1]}")
        process = start(["serve", "me/model", "--port", "0"])
        with closing(hub.accept()[0]):  # it waits for an answer
            process.terminate()
            assert process.communicate(timeout=SECONDS) == ("", "")
            assert process.returncode == 0


def test_a_second_signal_ends_it_at_once() -> None:
    with served() as server:
        Stream(server.url)
        server.process.terminate()
        server.wait_for("finishing 1 answer")
        started = time.monotonic()
        server.process.send_signal(signal.SIGINT)
        assert ended(server) == 130
        assert time.monotonic() - started < 1


def test_it_stops_when_the_program_that_started_it_dies() -> None:
    code = "import subprocess, sys; subprocess.run(sys.argv[1:])"
    line = [*MGM, "serve", "--port", "0", "--stop-when-parent-dies"]
    app = subprocess.Popen(
        [sys.executable, "-c", code, *line], stdout=subprocess.PIPE, text=True, env=environment()
    )
    assert app.stdout is not None
    url = app.stdout.readline().split()[2]
    assert httpx2.get(url + "/health").json() == {"status": "ok"}
    app.kill()
    app.communicate(timeout=SECONDS)  # until the server, which has the other end, has ended
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(url)


def test_the_weights_leave_the_memory_and_come_back() -> None:
    with served("--idle-unload", "0.3", "--quiet") as server:
        answers = []
        for _ in range(2):
            answers.append(httpx2.post(server.url + CHAT, json=SUM, timeout=SECONDS).json())
            until = time.monotonic() + SECONDS
            while "mgm_engine_loaded 0.0" not in httpx2.get(server.url + "/metrics").text:
                assert time.monotonic() < until
                time.sleep(0.05)
            assert httpx2.get(server.url + "/health").status_code == 200
        assert answers[0]["output_hash"] == answers[1]["output_hash"]
        assert server.log() == ""  # --quiet


def test_logs_are_json_if_asked_for() -> None:
    process = subprocess.Popen(
        [*MGM, "serve", "--port", "0", "--log-json", "--served-name", "mine", "--context", "100"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment() | {"MGM_API_KEY": "sesame"},
    )
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        found = json.loads(process.stdout.readline())
        assert found["models"] == ["mine"]
        assert found["context"] == 100
        assert found["needs_key"] is True
        assert httpx2.post(found["url"] + CHAT, json=SUM).status_code == 401
        with closing(
            socket.create_connection(found["url"].removeprefix("http://").split(":"))
        ) as no:
            no.sendall(b"This is not HTTP.\r\n\r\n")
            assert no.recv(1000).startswith(b"HTTP/1.1 400")
        process.terminate()
        assert process.wait(SECONDS) == 0
        logged = [json.loads(line) for line in process.stderr]
        assert (logged[0]["status"], logged[0]["path"]) == (401, CHAT)
        assert "Invalid HTTP" in logged[1]["message"]
        assert len(logged) == 2
    finally:
        process.kill()
        process.communicate()


@contextmanager
def taken() -> Iterator[int]:
    """A port of this machine that another program listens at."""
    with closing(socket.create_server(("127.0.0.1", 0))) as other:
        yield other.getsockname()[1]


def test_a_taken_port_is_one_line_before_anything_is_loaded(mgm_here: Here) -> None:
    with taken() as port:
        done = mgm_here("serve", "no-such-model", "--port", str(port))
    assert_one_line(done, 1, f"port {port} of 127.0.0.1 is in use")
    assert "--port" in done.stderr


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("--host 0.0.0.0", "MGM_API_KEY"),
        ("--host ::", "MGM_API_KEY"),
        ("--host 203.0.113.7", "not an address of this machine"),
        ("--host no.such.host.invalid", "no.such.host.invalid"),
        ("--port 70000", "--port"),
        ("--max-batch 9", "--max-batch"),
        ("--max-body 0", "--max-body"),
        ("--idle-unload 0", "--idle-unload"),
        ("--served-name=", "--served-name"),
        ("--allow-origin example.org", "https://example.org"),
        ("--allow-origin https://example.org/path", "https://example.org"),
        ("--api-key=", "API key"),
        ("--api-key=schlüssel", "API key"),
        ("demo --model demo", "two models"),
    ],
)
def test_a_wrong_option_is_one_line_that_names_the_way_out(
    mgm_here: Here, line: str, word: str
) -> None:
    assert_one_line(mgm_here("serve", "--port", "0", *line.split()), 2, word)


def test_a_model_that_is_not_there_exits_with_3(mgm_here: Here) -> None:
    assert_one_line(mgm_here("serve", "no-such-model", "--port", "0"), 3, "no-such-model")


@pytest.mark.parametrize("package", ["starlette", "uvicorn", "prometheus_client"])
def test_without_the_extra_one_line_says_how_to_install_it(package: str) -> None:
    before = f"sys.modules[{package!r}] = None"
    assert_one_line(mgm(["serve"], before=before), 1, "uv tool install '.[serve]'")


def test_help_needs_no_extra() -> None:
    assert_plain(done := mgm(["serve", "--help"], before="sys.modules['starlette'] = None"))
    assert done.returncode == 0


def test_a_port_that_is_taken_while_the_model_loads_is_one_line() -> None:
    if sys.platform == "darwin":
        pytest.skip("the second bind fails there")
    first = bind("127.0.0.1", 0)
    port = port_of(first)
    second = bind("127.0.0.1", port)
    try:
        listen("127.0.0.1", first)
        with pytest.raises(MgmError, match=f"port {port} of 127.0.0.1 is in use"):
            listen("127.0.0.1", second)
    finally:
        for one in (*first, *second):
            one.close()


def test_a_name_with_several_addresses_has_one_port_at_all_of_them() -> None:
    sockets = bind("localhost", 0)
    try:
        assert {one.getsockname()[1] for one in sockets} == {port_of(sockets)}
        assert only_local(sockets)
    finally:
        for one in sockets:
            one.close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may use all ports")
def test_a_port_of_the_system_is_one_line() -> None:
    with pytest.raises(UsageError, match="1024"):
        bind("127.0.0.1", 1)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::1", "http://[::1]:80"),
        ("::", "http://[::1]:80"),
        ("studio.lan", "http://studio.lan:80"),
    ],
)
def test_the_address_that_is_shown_can_be_used(host: str, url: str) -> None:
    assert url_of(host, 80) == url


def test_a_server_at_all_addresses_says_how_other_machines_reach_it() -> None:
    found = {"models": ["demo"], "checkpoint": "demo", "drafter": None, "context": 4096}
    found |= {"url": "http://127.0.0.1:8080", "max_batch": 8, "max_queue": 256, "needs_key": True}
    own = f"http://{socket.gethostname()}:8080, or the IP address"
    settings = Settings(("demo",), host="0.0.0.0", local=False, api_key="secret")
    said = block(found, settings)
    assert own in said
    assert "secret" not in said
    assert own not in block(found, Settings(("demo",)))
