"""An agent sends its whole conversation every turn: only what is new is read.

MGM_TEST_TURNS=30 asks more, after longer instructions, and prints figures.
"""

from __future__ import annotations

import os
from itertools import pairwise

from starlette.testclient import TestClient

from mlx_gemma_mtp import load
from mlx_gemma_mtp.server.app import app_of
from mlx_gemma_mtp.server.service import Service
from mlx_gemma_mtp.server.settings import Settings

TURNS = int(os.environ.get("MGM_TEST_TURNS", "6"))
RULES = 4 * TURNS  # of about 10 tokens each
EDGE = 8  # tokens around the cut points of the cache


def test_a_turn_of_an_agent_reads_only_what_is_new() -> None:
    rules = " ".join(f"Rule {number * 7919 % 997}." for number in range(RULES))
    messages = [{"role": "system", "content": rules}]
    sizes, read, texts = list[int](), list[int](), list[str]()
    with (
        load("demo", warm_up=False, probe=False, prefix_cache=1 << 26) as engine,
        TestClient(app_of(Service(engine, Settings(("demo",)))), "http://localhost") as client,
    ):
        for turn in range(TURNS):
            messages.append({"role": "user", "content": f"What is {turn} + {2 * turn}?"})
            body = {"messages": messages, "temperature": 0, "max_tokens": 24}
            found = client.post("/v1/chat/completions", json=body).json()
            used, message = found["usage"], found["choices"][0]["message"]
            messages.append({"role": "assistant", "content": message["content"]})
            sizes.append(used["prompt_tokens"])
            read.append(used["prompt_tokens"] - used["prompt_tokens_details"]["cached_tokens"])
            texts.append(message["content"])
    print(f"prompts of {sizes[0]} to {sizes[-1]} tokens; read of each: {read}; {texts[-1]!r}")
    assert read[0] == sizes[0]
    # A prompt is longer than the last one by an answer and a question.
    for own, (before, after) in zip(read[1:], pairwise(sizes), strict=True):
        assert own <= after - before + EDGE
