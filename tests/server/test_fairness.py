"""Clients that hang up, queue, join and wait, over HTTP, on a fake pair that a test can hold."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx2
import pytest
from starlette.testclient import TestClient

from helpers.fake_target import SECONDS, FakeTarget, Rounds, fake_engine, output
from helpers.server import Recorded, listening
from mlx_gemma_mtp import Engine, Generation
from mlx_gemma_mtp.decode.player import RoundPlayer, round_player
from mlx_gemma_mtp.decode.round import Round
from mlx_gemma_mtp.engine.pair import open_pair
from mlx_gemma_mtp.errors import QueueFullError
from mlx_gemma_mtp.memory import Limits
from mlx_gemma_mtp.server.app import app_of
from mlx_gemma_mtp.server.exchange import LEFT, Exchange
from mlx_gemma_mtp.server.run import Run
from mlx_gemma_mtp.server.service import Service
from mlx_gemma_mtp.server.settings import Settings

PROMPT, OTHER = [5, 6, 7], [8, 9]
CHUNK = 64  # tokens of a pass over a prompt


class Passes:
    """Watches the passes over prompts of a fake target; `then` is called after each."""

    def __init__(self) -> None:
        self.rows: list[list[int]] = []
        self.then: Any = lambda: None

    def __call__(self, rows: list[list[int]]) -> None:
        self.rows += rows
        self.then()


class Front(NamedTuple):
    """A server on a thread, its fake engine, and what that does.

    runs: in the order of their starts. ended: requests that have ended.
    """

    url: str
    engine: Engine
    rounds: Rounds
    passes: Passes
    runs: list[Run]
    ended: list[Exchange]

    def ask(self, prompt: list[int], **body: Any) -> httpx2.Response:
        """Ask for a completion, and wait for all of it."""
        return httpx2.post(
            f"{self.url}/v1/completions", json=asked(prompt, **body), timeout=SECONDS
        )

    def start(self, prompt: list[int], **body: Any) -> socket.socket:
        """Ask for a completion, and do not wait. Closing the socket hangs up."""
        data = json.dumps(asked(prompt, **body)).encode()
        at = urlsplit(self.url)
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {at.netloc}\r\nContent-Length: {len(data)}"
        connection = socket.create_connection((at.hostname, at.port), SECONDS)
        connection.sendall(f"{head}\r\n\r\n".encode() + data)
        return connection

    def hang_up(self, client: socket.socket) -> Run:
        """Hang up on the last request, and wait until the server knows."""
        client.close()
        run = self.runs[-1]
        until(lambda: all(one._stopping for one in run.generations))
        assert run.left
        return run


def asked(prompt: list[int], **body: Any) -> dict[str, Any]:
    return {"prompt": prompt, "max_tokens": 900, "ignore_eos": True, "draft": False} | body


def until(true: Any) -> None:
    end = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < end
        time.sleep(0.002)


@contextmanager
def front(heartbeat: float = 8.0, **options: Any) -> Iterator[Front]:
    """options: as of Engine."""
    rounds, passes, ended = Rounds(), Passes(), list[Exchange]()
    limits = Limits(chunks=(CHUNK,), decoding_chunk=CHUNK)
    target = FakeTarget(passes)
    with fake_engine(target, player=rounds.player, limits=limits, **options) as engine:
        service = Recorded(engine, Settings(("fake",), heartbeat_seconds=heartbeat))
        with listening(app_of(service, [ended.append])) as url:
            yield Front(url, engine, rounds, passes, service.runs, ended)


@contextmanager
def held(watched: Rounds | Passes) -> Iterator[threading.Event]:
    """Hold the engine after its next round, or pass. What this gives is set then."""
    reached, resume = threading.Event(), threading.Event()

    def then() -> None:
        watched.then = lambda: None
        reached.set()
        assert resume.wait(SECONDS)

    watched.then = then
    try:
        yield reached
    finally:
        resume.set()


# Clients that hang up


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_is_not_decoded_for(stream: bool) -> None:
    with front() as server:
        with held(server.rounds) as reached:
            client = server.start(PROMPT, stream=stream)
            assert reached.wait(SECONDS)
            run = server.hang_up(client)
        [generation] = run.generations
        assert generation.result(SECONDS).finish_reason == "cancelled"
        assert len(server.rounds.sizes) <= 3  # this one, the one in flight, and no more
        until(lambda: len(server.ended) == 1)
        assert server.ended[0].status == LEFT


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_before_its_prompt_is_read_stops_the_reading(stream: bool) -> None:
    with front() as server:
        with held(server.passes) as reached:
            client = server.start([7] * 900, stream=stream)
            assert reached.wait(SECONDS)
            run = server.hang_up(client)
        assert run.generations[0].result(SECONDS).tokens == []
        assert sum(map(len, server.passes.rows)) <= 2 * CHUNK
        assert server.rounds.sizes == []


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_in_the_queue_gives_its_place_away(stream: bool) -> None:
    with front(max_batch=1, max_queue=1) as server:
        with held(server.rounds) as reached:
            first = server.start(PROMPT, max_tokens=20)
            assert reached.wait(SECONDS)
            client = server.start(OTHER, stream=stream)
            until(lambda: server.engine.status.waiting == 1)
            assert server.ask(OTHER).status_code == 503
            run = server.hang_up(client)
        until(lambda: run.generations[0].done())
        assert server.ask([1, 2, 3], max_tokens=2).status_code == 200
        assert OTHER not in server.passes.rows
        first.close()


def test_a_client_of_several_completions_that_hangs_up_ends_all_of_them() -> None:
    with front() as server:
        with held(server.rounds) as reached:
            client = server.start(PROMPT, n=4, stream=True)
            assert reached.wait(SECONDS)
            run = server.hang_up(client)
        reasons = [one.result(SECONDS).finish_reason for one in run.generations]
        assert reasons == ["cancelled"] * 4


# Load


def test_a_full_queue_answers_503_with_the_time_to_wait_in_the_shape_of_the_protocol() -> None:
    with front(max_batch=1, max_queue=1) as server, held(server.rounds) as reached:
        clients = [server.start(PROMPT)]
        assert reached.wait(SECONDS)
        clients.append(server.start(OTHER))
        until(lambda: server.engine.status.waiting == 1)
        for stream in (True, False):
            refused = server.ask(OTHER, stream=stream)
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) > 0
            assert refused.json()["error"]["code"] == "queue_full"
        for client in clients:
            client.close()


def test_a_background_request_starts_when_nobody_else_needs_the_model() -> None:
    with front() as server:
        with held(server.rounds) as reached:
            first = server.start(PROMPT, max_tokens=40)
            assert reached.wait(SECONDS)
            background = server.start(OTHER, max_tokens=5, priority=1)
            until(lambda: server.engine.status.waiting == 1)
        until(lambda: len(server.ended) == 2)
        tokens = [exchange.completions[0].tokens for exchange in server.ended]
        assert tokens == [output(PROMPT, 40), output(OTHER, 5)]
        assert {*server.rounds.sizes} == {1}
        first.close()
        background.close()


def test_requests_join_those_that_decode() -> None:
    with front() as server:
        with held(server.rounds) as reached:
            first = server.start(PROMPT, max_tokens=200)
            assert reached.wait(SECONDS)
            second = server.start(OTHER, max_tokens=5)
            until(lambda: server.engine.status.waiting == 1)
        until(lambda: len(server.ended) == 2)
        tokens = [exchange.completions[0].tokens for exchange in server.ended]
        assert tokens == [output(OTHER, 5), output(PROMPT, 200)]
        assert 2 in server.rounds.sizes
        first.close()
        second.close()


# Streams


def test_a_stream_is_never_silent_for_long_while_its_prompt_is_read() -> None:
    with front(heartbeat=0.2) as server:
        with held(server.passes):
            client = server.start(PROMPT, stream=True, max_tokens=3)
            started = time.monotonic()
            seen = b""
            while seen.count(b": working\n\n") < 3:
                part = client.recv(4096)
                assert part
                seen += part
            assert time.monotonic() - started > 0.6
        while not seen.endswith(b"0\r\n\r\n"):
            seen += client.recv(4096)
        assert seen.count(b"data: [DONE]") == 1
        until(lambda: len(server.ended) == 1)
        assert server.ended[0].status == 200
        client.close()


class Failing:
    """Rounds of which one fails."""

    at = 0

    def player(self, *models: Any) -> RoundPlayer:
        player = round_player(*models)

        def verify(*arguments: Any) -> Round:
            self.at -= 1
            if self.at == 0:
                raise ValueError("secret")
            return player.verify(*arguments)

        return player._replace(verify=verify)


def test_an_error_after_output_is_an_event_of_the_protocol_and_the_next_request_is_served() -> None:
    failing = Failing()
    story = {"role": "user", "content": "Tell me a story."}
    body = {"messages": [story], "stream": True, "draft": False, "temperature": 0}
    with Engine(open_pair("demo"), player=failing.player) as engine:
        service = Service(engine, Settings(("demo",)))
        with TestClient(
            app_of(service), "http://localhost", raise_server_exceptions=False
        ) as client:
            failing.at = 4
            said = client.post("/v1/messages", json=body)
            assert said.status_code == 200
            *_, delta, error = said.text.rstrip().split("\n\n")
            assert delta.startswith("event: content_block_delta")
            name, data = error.split("\n")
            assert name == "event: error"
            assert json.loads(data.removeprefix("data: "))["error"]["type"] == "api_error"
            failing.at = 4
            said = client.post("/v1/chat/completions", json=body)
            *_, error, done = said.text.rstrip().split("\n\n")
            assert json.loads(error.removeprefix("data: "))["error"]["code"] == "internal_error"
            assert done == "data: [DONE]"
            assert "secret" not in said.text
            failing.at = 4
            assert client.post("/v1/messages", json=body | {"stream": False}).status_code == 500
            failing.at = 0
            again = client.post("/v1/messages", json=body | {"stream": False, "max_tokens": 9})
            assert again.json()["stop_reason"] == "max_tokens"


def test_a_request_that_joins_another_switches_no_drafts_off(engine: Engine) -> None:
    service = Recorded(engine, Settings(("demo",)))

    def body(content: str, **others: Any) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": content}], "temperature": 0} | others

    with listening(app_of(service)) as url:
        story = body("Tell me a story.", ignore_eos=True, max_tokens=900, stream=True)
        path = f"{url}/v1/chat/completions"
        with httpx2.stream("POST", path, json=story, timeout=SECONDS) as stream:
            lines = stream.iter_lines()  # if it is dropped, the client hangs up
            next(lines)
            question = body("What is 17 + 25?", stream=False)
            joined = httpx2.post(f"{url}/v1/messages", json=question, timeout=SECONDS).json()
            [first], [second] = (run.generations for run in service.runs)
            assert not first.done()
        assert joined["content"][0]["text"] == "17 + 25 = 42"
        for generation in (first, second):
            assert generation.result(SECONDS).stats.accepted > 0


class Busy(Engine):
    """Has a full queue for the first request."""

    num_asked = 0

    def submit(self, *arguments: Any, **options: Any) -> Generation:
        self.num_asked += 1
        if self.num_asked == 1:
            raise QueueFullError("the queue is full: try again later")
        return super().submit(*arguments, **options)


def test_anthropics_client_asks_again_once_there_may_be_room() -> None:
    anthropic = pytest.importorskip("anthropic")
    question = {"role": "user", "content": "What is 17 + 25?"}
    body = {"model": "demo", "max_tokens": 1, "messages": [question]}
    with Busy(open_pair("demo")) as engine:
        app = app_of(Service(engine, Settings(("demo",))))
        with TestClient(app, "http://localhost") as client:
            ask = anthropic.Anthropic(
                base_url="http://localhost", api_key="any", http_client=client
            )
            with pytest.raises(anthropic.InternalServerError, match="queue is full") as caught:
                ask.with_options(max_retries=0).messages.create(**body)
            assert caught.value.body["error"]["type"] == "overloaded_error"
            assert int(caught.value.response.headers["retry-after"]) <= 5
            engine.num_asked = 0
            assert ask.messages.create(**body).stop_reason == "max_tokens"
            assert engine.num_asked == 2
