"""Requests in the shapes of known clients are answered, whatever fields they have."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from helpers.recorded import COUNT, REQUESTS, Recorded

LINE = "data: "


def texts(value: Any) -> list[str]:
    """All strings of an answer that a person might be shown."""
    if isinstance(value, dict):
        shown = ("text", "content", "delta", "partial_json", "arguments", "response", "thinking")
        return [
            text
            for name, one in value.items()
            for text in ([one] if isinstance(one, str) and name in shown else texts(one))
        ]
    return [text for one in value for text in texts(one)] if isinstance(value, list) else []


def parts(one: Recorded, answer: str) -> list[Any]:
    """The events of a stream, or the only body."""
    if not one.body.get("stream"):
        return [json.loads(answer)]
    lines = (line.removeprefix(LINE) for line in answer.splitlines())
    return [json.loads(line) for line in lines if line.startswith("{")]


@pytest.mark.parametrize("name", [*REQUESTS])
def test_a_request_in_the_shape_of_a_client_is_answered(client: TestClient, name: str) -> None:
    one = REQUESTS[name]
    answer = client.post(one.path, json=one.body, headers=one.headers)
    assert answer.status_code == 200, answer.text
    found = parts(one, answer.text)
    assert not any(part.get("error") for part in found)
    if one.path == COUNT:
        assert found[0]["input_tokens"] > 10
    else:
        said = "".join(texts(found))
        assert said
        assert one.says in said
