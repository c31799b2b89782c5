"""Requests that cannot be served get an answer that helps."""

from __future__ import annotations

import gzip
import json

import pytest
from starlette.testclient import TestClient

from mlx_gemma_mtp import Engine
from mlx_gemma_mtp.cli.serve import warn_of_context
from mlx_gemma_mtp.errors import ClosedError, QueueFullError
from mlx_gemma_mtp.server.failures import failure_of

PATH = "/v1/chat/completions"
SUM = {"messages": [{"role": "user", "content": "What is 17 + 25?"}]}


def test_a_model_that_is_not_served_is_answered_with_those_that_are(client: TestClient) -> None:
    answer = client.post(PATH, json=SUM | {"model": "gpt-4"})
    assert answer.status_code == 404
    message = answer.json()["error"]["message"]
    assert "use demo or other" in message
    assert "--served-name" in message


def test_a_list_of_models_with_a_slash_at_its_end_is_the_list(client: TestClient) -> None:
    answer = client.get("/v1/models/")
    assert answer.status_code == 200
    assert answer.json() == client.get("/v1/models").json()


def test_embeddings_are_refused_as_such(client: TestClient) -> None:
    answer = client.post("/v1/embeddings", json={"model": "demo", "input": "Hi"})
    assert answer.status_code == 501
    assert answer.json()["error"]["message"] == "this model has no embeddings"


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        (PATH, [], "the body must be an object"),
        (PATH, {}, "messages is missing"),
        (PATH, SUM | {"stop": 5}, "stop must be a string or a list"),
        (PATH, SUM | {"n": 0}, "n must be at least 1"),
        (PATH, SUM | {"stream": "yes"}, "stream must be true or false"),
        (PATH, SUM | {"reasoning_effort": 5}, "reasoning_effort must be 'none', 'minimal', "),
        ("/v1/messages", {"messages": []}, "messages is empty"),
        ("/v1/messages", {"messages": [{"role": "user", "content": 5}]}, "messages.0.content must"),
    ],
)
def test_a_wrong_body_is_refused_in_plain_words(
    client: TestClient, path: str, body: object, message: str
) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(message)


def test_a_body_that_is_not_json_is_refused_as_such(client: TestClient) -> None:
    answer = client.post(PATH, content="{")
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("the body is not JSON: ")


@pytest.mark.parametrize(
    ("path", "field"), [(PATH, "messages"), ("/v1/responses", "input"), ("/api/chat", "messages")]
)
@pytest.mark.parametrize("role", ["user", "system"])
def test_a_message_of_a_user_needs_a_content(
    client: TestClient, path: str, field: str, role: str
) -> None:
    for message in ({"role": role}, {"role": role, "content": None}):
        answer = client.post(path, json={field: [*SUM["messages"], message]})
        assert answer.status_code == 400
        assert f"{field}.1.content is missing" in answer.text


@pytest.mark.parametrize("path", ["/chat/completions", "/models", "/responses", "/messages"])
def test_a_base_url_without_v1_is_answered_with_what_to_add(client: TestClient, path: str) -> None:
    answer = client.post(path, json=SUM)
    assert answer.status_code == 404
    assert f"/v1{path} is: end the client's base URL with /v1" in answer.text
    assert "/v1/nothing" not in client.get("/nothing").text


def test_another_method_is_answered_with_the_one_to_use(client: TestClient) -> None:
    answer = client.get(PATH)
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"
    assert answer.json()["error"]["message"] == f"GET {PATH} is not served here: use POST"


def test_a_compressed_body_is_refused_as_such(client: TestClient) -> None:
    body = gzip.compress(json.dumps(SUM).encode())
    answer = client.post(PATH, content=body, headers={"Content-Encoding": "gzip"})
    assert answer.status_code == 415
    assert "'gzip'" in answer.json()["error"]["message"]


def test_a_full_queue_and_an_end_are_said_in_terms_of_the_server() -> None:
    full = failure_of(QueueFullError("try again later, or load with a larger max_queue"))
    assert "mgm serve with a larger --max-queue" in full.message
    assert "max_queue" not in full.message
    assert failure_of(ClosedError("the engine was closed")).message == "the server is stopping"


def test_a_context_beyond_the_models_is_a_warning(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    for asked in (None, 100, engine.context):
        warn_of_context(asked, engine)
    assert caplog.messages == []
    warn_of_context(100_000, engine)
    assert caplog.messages == [
        "--context 100,000 is more than this model's maximum: it is 4,096 here"
    ]
