"""Tokens per second of 8 streaming clients through HTTP, next to the engine's own submit.

    python -m mlx_gemma_mtp.bench.results.serve demo
    python -m mlx_gemma_mtp.bench.results.serve e4b --bits 16 --accept 0.8

Turns alternate, with the same prompts and seeds, so both decode the same tokens. The clients are
another process, which only reads bytes and stops the clock. With a size, weights are random, drafts
are accepted at the stated rate, and the tokenizer is the demo's with made-up words.
"""

from __future__ import annotations

import argparse
import json
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import uvicorn
from mlx_gemma_mtp.bench import subject
from mlx_gemma_mtp.bench.results.structured import made_up

from mlx_gemma_mtp import Engine, SamplingParams
from mlx_gemma_mtp.files.names import DEMO
from mlx_gemma_mtp.server.app import app_of
from mlx_gemma_mtp.server.service import Service
from mlx_gemma_mtp.server.settings import Settings

PROMPT = "Write a long story about a lighthouse and the people who live in it. Part {}."


class Turn(NamedTuple):
    """seconds: by the clock, from the first request to the last token. cpu: of this process."""

    tokens: int
    seconds: float
    cpu: float
    client_cpu: float = 0.0

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds


def bodies(batch: int, tokens: int) -> list[dict[str, Any]]:
    """Return what is asked, in the same order by everybody."""
    return [
        {"prompt": PROMPT.format(row), "max_tokens": tokens, "seed": row} for row in range(batch)
    ]


def directly(engine: Engine, asked: list[dict[str, Any]]) -> Turn:
    """Play a turn by `Engine.submit`."""
    start, cpu = time.perf_counter(), time.process_time()
    generations = [
        engine.submit(
            one["prompt"],
            SamplingParams(seed=one["seed"], max_tokens=one["max_tokens"], ignore_eos=True),
        )
        for one in asked
    ]
    tokens = sum(len(one.result().tokens) for one in generations)
    return Turn(tokens, time.perf_counter() - start, time.process_time() - cpu)


@contextmanager
def served(engine: Engine, settings: Settings) -> Iterator[str]:
    """Serve an engine on a thread, at a free port. Gives the URL, such as http://127.0.0.1:8080."""
    config = uvicorn.Config(
        app_of(Service(engine, settings)), port=0, http="h11", loop="asyncio", log_level="warning"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, name="server", daemon=True)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise RuntimeError("the server did not start: its log says why")
        time.sleep(0.01)
    try:
        host, port = server.servers[0].sockets[0].getsockname()
        yield f"http://{host}:{port}"
    finally:
        server.should_exit = True
        thread.join()


class Clients:
    """The process that reads streams."""

    def __init__(self, url: str) -> None:
        command = [sys.executable, "-m", "mlx_gemma_mtp.bench.results.serve", "--read", url]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def play(self, asked: list[dict[str, Any]]) -> Turn:
        """Play a turn over HTTP."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        given = [
            {
                "messages": [{"role": "user", "content": one["prompt"]}],
                "stream": True,
                "stream_options": {"include_usage": True},
                "seed": one["seed"],
                "max_tokens": one["max_tokens"],
                "ignore_eos": True,
            }
            for one in asked
        ]
        cpu = time.process_time()
        print(json.dumps(given), file=self._process.stdin, flush=True)
        tokens, seconds, client = json.loads(self._process.stdout.readline())
        return Turn(tokens, seconds, time.process_time() - cpu, client)

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def read_streams(url: str) -> None:
    """Be the clients: for each line of bodies, ask all at once, and print what it took."""
    where = urlsplit(url)
    assert where.hostname is not None
    print("ready", flush=True)
    for line in sys.stdin:
        sent = [json.dumps(body).encode() for body in json.loads(line)]
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        sockets = [socket.create_connection((where.hostname, where.port or 80)) for _ in sent]
        start, cpu = time.perf_counter(), time.process_time()
        received: dict[socket.socket, list[bytes]] = {}
        with selectors.DefaultSelector() as selector:
            for one, body in zip(sockets, sent, strict=True):
                kind = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
                one.sendall((head + kind).encode() + body)
                received[one] = []
                selector.register(one, selectors.EVENT_READ)
            while selector.get_map():
                for key, _ in selector.select():
                    assert isinstance(key.fileobj, socket.socket)
                    if data := key.fileobj.recv(1 << 16):
                        received[key.fileobj].append(data)
                    else:
                        selector.unregister(key.fileobj)
                        key.fileobj.close()
        seconds, took = time.perf_counter() - start, time.process_time() - cpu
        tokens = sum(tokens_of(b"".join(parts)) for parts in received.values())
        print(json.dumps([tokens, seconds, took]), flush=True)


def tokens_of(answer: bytes) -> int:
    """Return the usage's count of generated tokens in a stream."""
    text = answer.decode()
    if (name := '"completion_tokens":') not in text:
        raise RuntimeError(f"a stream failed: {text[-1000:]}")
    return int(text.partition(name)[2].split(",")[0])


def opened(given: argparse.Namespace) -> Engine:
    """Return an engine of the demo, or of random weights."""
    if given.model == "demo":
        one = subject.load("demo", "auto", bits=None, force=True)
    else:
        bits = None if given.bits == 16 else given.bits
        one = subject.random(given.model, bits=bits, accept=[[given.accept]]).draw()
        with tempfile.TemporaryDirectory() as folder:
            own = Path(folder) / "text"
            shutil.copytree(DEMO, own, ignore=shutil.ignore_patterns("*.safetensors"))
            text = made_up(one.pair.target.config.vocab_size, own)
        one = one._replace(pair=one.pair._replace(text=text))
    return one.engine(given.batch, one.depth())


def shown(name: str, turns: list[Turn]) -> str:
    """Return a line of figures of turns."""
    rates = sorted(turn.rate for turn in turns)
    cpu = median(1e6 * turn.cpu / turn.tokens for turn in turns)
    client = median(1e6 * turn.client_cpu / turn.tokens for turn in turns)
    spread = f"{rates[0]:,.0f} to {rates[-1]:,.0f}"
    line = f"{name:6}: {median(rates):,.0f} tokens/s ({spread}), CPU {cpu:.0f} µs a token"
    return line + (f", clients {client:.0f}" if client else "")


def main() -> None:
    """Print a line for each way, and what HTTP costs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?", default="demo", help="demo, or a size such as e4b")
    parser.add_argument("--bits", type=int, default=16)
    parser.add_argument("--accept", type=float, default=0.8)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--read", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.read:
        read_streams(given.read)
        return
    asked = bodies(given.batch, given.tokens)
    with opened(given) as loaded, served(loaded, Settings(("it",))) as url:
        clients = Clients(url)
        found: dict[str, list[Turn]] = {"engine": [], "HTTP": []}
        for number in range(given.turns + 1):
            both = {"engine": directly(loaded, asked), "HTTP": clients.play(asked)}
            for name, turn in both.items():
                if number:  # the first compiles and learns
                    found[name].append(turn)
        clients.close()
    for name, turns in found.items():
        print(shown(name, turns))
    pairs = [*zip(found["engine"], found["HTTP"], strict=True)]
    clock = median(1 - http.rate / engine.rate for engine, http in pairs)
    cpu = median(http.cpu / engine.cpu - 1 for engine, http in pairs)
    print(f"HTTP costs {clock:.1%} by the clock, {cpu:.1%} by CPU time (medians of pairs)")


if __name__ == "__main__":
    main()
