"""Who may use the server: no page of another site, no other name, no one without the key."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from helpers.server import listening
from mlx_gemma_mtp import Engine
from mlx_gemma_mtp.server.app import app_of
from mlx_gemma_mtp.server.failures import Failure
from mlx_gemma_mtp.server.guard import BodyLimit
from mlx_gemma_mtp.server.service import Service
from mlx_gemma_mtp.server.settings import Settings

MODELS, CHAT = "/v1/models", "/v1/chat/completions"
KEY = "sesame"
PAGE = "https://chat.example"


def client_of(engine: Engine, **settings: Any) -> TestClient:
    app = app_of(Service(engine, Settings(("demo",), **settings)))
    return TestClient(app, "http://localhost", raise_server_exceptions=False)


def with_host(client: TestClient, host: str) -> int:
    return client.get(MODELS, headers={"Host": host}).status_code


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "LOCALHOST:8080", "127.0.0.1", "127.0.0.1:8080", "127.8.9.10", "[::1]:8080"),
        *("app.localhost", "host.docker.internal:8080"),
    ],
)
def test_names_of_this_machine_are_served(client: TestClient, host: str) -> None:
    assert with_host(client, host) == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8080", "localhost.evil.example", "evillocalhost", ""),
        *("127.0.0.1.evil.example", "192.168.1.5", "10.0.0.1:8080", "[::", "0.0.0.0"),
    ],
)
def test_a_rebound_name_is_refused_before_anything_is_done(client: TestClient, host: str) -> None:
    answer = client.get(MODELS, headers={"Host": host})
    assert answer.status_code == 403
    assert "--allow-host" in answer.json()["error"]["message"]


def test_a_server_for_others_is_asked_by_any_address_and_by_names_that_it_was_given(
    engine: Engine,
) -> None:
    client = client_of(engine, host="0.0.0.0", local=False, hosts=("Gpu.example",))
    for host in ("192.168.1.5:8080", "[fe80::1]", "gpu.example", "localhost"):
        assert with_host(client, host) == 200
    assert with_host(client, "evil.example") == 403
    named = client_of(engine, host="studio.lan", local=False)
    assert with_host(named, "studio.lan:8080") == 200


@pytest.mark.parametrize(
    "origin",
    [PAGE, "http://localhost:3000", "http://localhost.evil.example", "null", "", "http://[", "x"],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_pages_of_other_origins_are_refused_without_cors_headers(
    client: TestClient, origin: str, method: str
) -> None:
    headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    answer = client.request(method, CHAT, headers=headers, content=b"{}")
    assert answer.status_code == 403
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_its_own_page_may_use_it_by_any_of_its_names(client: TestClient) -> None:
    for host in ("localhost", "localhost:8080", "127.0.0.1:8080"):
        headers = {"Host": host, "Origin": f"http://{host}"}
        assert client.get(MODELS, headers=headers).status_code == 200


def test_a_named_origin_gets_cors_headers_also_with_errors_and_others_get_none(
    engine: Engine,
) -> None:
    client = client_of(engine, origins=(PAGE,), api_key=KEY)
    asked = {
        "Origin": PAGE,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
        "Access-Control-Request-Private-Network": "true",
    }
    preflight = client.options(CHAT, headers=asked)  # browsers send no key with it
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == PAGE
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    assert preflight.headers["access-control-allow-private-network"] == "true"
    refused = client.get(MODELS, headers={"Origin": PAGE})
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == PAGE
    other = client.options(CHAT, headers=asked | {"Origin": "https://evil.example"})
    assert other.status_code == 403


def test_all_origins_may_be_allowed(engine: Engine) -> None:
    answer = client_of(engine, origins=("*",)).get(MODELS, headers={"Origin": PAGE})
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {KEY}"},
        {"Authorization": f"bearer  {KEY}"},
        {"x-api-key": KEY},
        {"x-api-key": "other", "Authorization": f"Bearer {KEY}"},
    ],
)
def test_the_key_is_taken_in_each_header_that_clients_use(
    engine: Engine, headers: dict[str, str]
) -> None:
    assert client_of(engine, api_key=KEY).get(MODELS, headers=headers).status_code == 200


@pytest.mark.parametrize("path", [MODELS, CHAT, "/metrics", "/nope", "/page", "/healthz"])
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": f"Basic {KEY}"},
        {"Authorization": KEY},
        {"x-api-key": f"{KEY}s"},
        {"x-api-key": KEY[:-1]},
        {"x-api-key": b"s\xe9same"},
    ],
)
def test_nothing_is_served_without_the_key(
    engine: Engine, path: str, headers: dict[str, Any]
) -> None:
    answer = client_of(engine, api_key=KEY).get(path, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["code"] == "invalid_api_key"


def test_health_and_the_page_that_asks_for_the_key_need_none(engine: Engine) -> None:
    client = client_of(engine, api_key=KEY)
    assert client.get("/health").json() == {"status": "ok"}
    page = client.get("/").text
    [*files] = re.findall(r'(?:src|href)="/?(page/[^"]+)"', page)
    assert files
    assert all(client.get(f"/{file}").status_code == 200 for file in files)


def test_without_a_key_any_is_accepted(client: TestClient) -> None:
    for headers in ({"Authorization": "Bearer any"}, {"x-api-key": "any"}):
        assert client.get(MODELS, headers=headers).status_code == 200


def test_the_key_is_in_no_representation() -> None:
    assert KEY not in repr(Settings(("demo",), api_key=KEY))


def pieces(size: int) -> Iterator[bytes]:
    for _ in range(size // 1000):
        yield b" " * 1000


@pytest.mark.parametrize("chunked", [True, False])
def test_a_body_over_the_limit_is_refused_in_the_shape_of_its_protocol(
    engine: Engine, chunked: bool
) -> None:
    client = client_of(engine, body_limit=10_000)
    for size, status in ((10_000, 400), (11_000, 413)):  # 400: it is no JSON
        content = pieces(size) if chunked else b" " * size
        answer = client.post(CHAT, content=content)
        assert answer.status_code == status
    assert answer.json()["error"]["code"] == "request_too_large"


def test_a_large_body_over_a_socket_is_answered_and_the_server_lives(engine: Engine) -> None:
    with listening(app_of(Service(engine, Settings(("demo",), body_limit=100_000)))) as url:
        for content in (b" " * 5_000_000, pieces(5_000_000)):
            assert httpx2.post(url + CHAT, content=content).status_code == 413
        assert httpx2.get(url + MODELS).status_code == 200


PIECE = {"type": "http.request", "body": b"{", "more_body": True}
LAST = PIECE | {"more_body": False}
GONE = {"type": "http.disconnect"}


def read_all(messages: list[tuple[float, Message]]) -> None:
    """Read what comes after so many seconds each, behind a limit that is patient for 0.2 s."""

    async def receive() -> Message:
        seconds, message = messages.pop(0)
        await asyncio.sleep(seconds)
        return message

    async def app(_: Scope, receive: Receive, __: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    async def send(_: Message) -> None: ...

    limit = BodyLimit(app, 1000, seconds=0.2)
    asyncio.run(limit({"type": "http", "headers": []}, receive, send))


def test_a_body_that_stops_coming_ends_the_request() -> None:
    with pytest.raises(Failure) as failed:
        read_all([(0, PIECE), (1, LAST), (0, GONE)])
    assert failed.value.status == 408


def test_a_client_may_wait_for_its_answer_as_long_as_it_likes() -> None:
    read_all([(0, PIECE), (0.1, PIECE), (0.1, LAST), (0.5, GONE)])
