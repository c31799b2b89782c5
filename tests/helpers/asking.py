"""Bodies that are answered well: the whole answer, or the events of a stream."""

from __future__ import annotations

import json
from typing import Any

from starlette.testclient import TestClient


def answer(path: str, client: TestClient, body: dict[str, Any]) -> Any:
    found = client.post(path, json=body)
    assert found.status_code == 200, found.text
    return found.json()


def events(path: str, client: TestClient, body: dict[str, Any]) -> list[Any]:
    """The data of OpenAI's events, which must end as its clients expect."""
    lines = client.post(path, json=body | {"stream": True}).text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
