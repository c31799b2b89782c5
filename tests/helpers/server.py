"""`mgm serve` with the demo pair: in a process of its own, or an app on a thread of this one."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen
from typing import NamedTuple

import pytest
import uvicorn
from starlette.types import ASGIApp

from helpers.command import SECONDS, start
from mlx_gemma_mtp import Engine
from mlx_gemma_mtp.server.asked import Asked
from mlx_gemma_mtp.server.run import Run
from mlx_gemma_mtp.server.service import Service
from mlx_gemma_mtp.server.settings import Settings


class Served(NamedTuple):
    """A server that listens. url: without a slash at its end. said: what it printed at first."""

    url: str
    process: Popen[str]
    said: str
    log_file: Path

    def log(self) -> str:
        """What it has written to stderr."""
        return self.log_file.read_text()

    def wait_for(self, text: str) -> str:
        """Return its log once it has this text."""
        until = time.monotonic() + SECONDS
        while text not in (log := self.log()):
            assert time.monotonic() < until, f"{text!r} is not in {log}"
            time.sleep(0.02)
        return log


class Recorded(Service):
    """Keeps the runs that it starts."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        super().__init__(engine, settings)
        self.runs: list[Run] = []

    def start(self, asked: Asked) -> Run:
        self.runs.append(super().start(asked))
        return self.runs[-1]


@contextmanager
def served(*arguments: str) -> Iterator[Served]:
    """`mgm serve` of the demo at a free port, with these further arguments."""
    with tempfile.NamedTemporaryFile("w") as log:
        process = start(["serve", "demo", "--port", "0", *arguments], stderr=log)
        try:
            assert process.stdout is not None
            said = ""
            while "claude" not in said:  # the last line
                line = process.stdout.readline()
                assert line, Path(log.name).read_text()
                said += line
            url = said.partition("Listening on ")[2].split()[0]
            yield Served(url, process, said, Path(log.name))
        finally:
            process.kill()
            process.communicate()


@contextmanager
def listening(app: ASGIApp, port: int = 0) -> Iterator[str]:
    """The address of an app that listens on a thread."""
    config = uvicorn.Config(app, port=port, ws="none", lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    bound = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{bound}"
    finally:
        server.should_exit = True
        thread.join(SECONDS)


@pytest.fixture(scope="session")
def server() -> Iterator[Served]:
    """`mgm serve` with the demo, for all tests of a process."""
    with served() as server:
        yield server
