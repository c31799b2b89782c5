"""Bodies that are almost right are answered or refused in the protocol's shape, never with a 500.

MGM_TEST_FUZZ=10000 asks more of them.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from typing import Any

import httpx2

from helpers import fuzz
from helpers.recorded import REQUESTS
from mlx_gemma_mtp import Engine

COUNT = int(os.environ.get("MGM_TEST_FUZZ", "150"))
SECONDS = 2.0  # without a byte, after which it hangs up as well
MOST = 6_000  # characters, after which the client hangs up: a limit may be gone


def short(body: dict[str, Any]) -> dict[str, Any]:
    """The body with a limit of one token, whichever the protocol calls it."""
    limits = ("max_tokens", "max_completion_tokens", "max_output_tokens")
    found = {**body, **{name: 1 for name in limits if name in body}}
    if "input" in body:
        found["max_output_tokens"] = 1
    elif "options" in body:
        found["options"] = {**body["options"], "num_predict": 1}
    elif not {*limits} & {*found}:
        found["max_tokens"] = 1
    return found


def assert_shaped(path: str, status: int, answer: str) -> None:
    """The error has the shape of its protocol, and names no place in this machine."""
    found = json.loads(answer)
    if path.startswith("/v1/messages"):
        assert found["type"] == "error"
        assert {*found["error"]} == {"type", "message"}
        message = found["error"]["message"]
    elif path.startswith("/api/"):
        message = found["error"]
    else:
        assert {*found["error"]} == {"message", "type", "param", "code"}
        message = found["error"]["message"]
    assert message
    assert isinstance(message, str)
    assert "/mlx_gemma_mtp/" not in answer
    assert status < 500, answer


def ask(client: httpx2.Client, rng: random.Random, path: str, data: bytes) -> int:
    """Ask, and return the status, which is 0 if the client hangs up or waits in vain."""
    pieces = (data[start : start + 100] for start in range(0, len(data), 100))
    content = pieces if rng.random() < 0.1 else data  # pieces are sent chunked
    answer = ""
    try:
        with client.stream("POST", path, content=content, headers=fuzz.headers(rng)) as response:
            for text in response.iter_text():
                answer += text
                if len(answer) > MOST:
                    return 0
            if response.status_code != 200:
                assert_shaped(path, response.status_code, answer)
            assert "internal_error" not in answer
            return response.status_code
    except httpx2.ReadTimeout:
        return 0


def test_no_body_gives_a_500_or_ends_the_worker(engine: Engine, url: str, seed: int) -> None:
    rng, statuses = random.Random(seed), Counter[int]()
    asked = [(one.path, short({**one.body})) for one in REQUESTS.values()]
    with httpx2.Client(base_url=url, timeout=SECONDS) as client:
        for _ in range(COUNT):
            path, body = rng.choice(asked)
            data = fuzz.mutated(rng, body)
            try:
                statuses[ask(client, rng, path, data)] += 1
            except (AssertionError, httpx2.HTTPError, ValueError):
                print(path, data[:3000])
                raise
        # Nothing is left behind.
        answer = client.post(
            "/v1/chat/completions",
            json={"messages": [{"role": "user", "content": "What is 17 + 25?"}], "temperature": 0},
            timeout=60,
        )
        assert answer.json()["choices"][0]["message"]["content"] == "17 + 25 = 42"
    status = engine.status
    assert status.waiting == status.reading == status.decoding == 0
    print(dict(statuses))
    assert statuses[200] > COUNT / 20
    assert statuses[400] > COUNT / 5
