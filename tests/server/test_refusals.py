"""Requests that cannot be served get an answer that helps."""

from __future__ import annotations

import gzip
import json

import pytest
from starlette.testclient import TestClient

from mlx_gemma_mtp.errors import ClosedError, QueueFullError
from mlx_gemma_mtp.server.failures import failure_of

PATH = "/v1/chat/completions"
SUM = {"messages": [{"role": "user", "content": "What is 17 + 25?"}]}


def test_a_model_that_is_not_served_is_answered_with_those_that_are(client: TestClient) -> None:
    answer = client.post(PATH, json=SUM | {"model": "gpt-4"})
    assert answer.status_code == 404
    assert "use demo or other" in answer.json()["error"]["message"]


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
