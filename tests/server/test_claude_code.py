"""Requests in the shape of Claude Code's: many tools, unknown fields, results, background ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from helpers.server import Recorded
from mlx_gemma_mtp import load
from mlx_gemma_mtp.server.app import app_of
from mlx_gemma_mtp.server.background import BACKGROUND
from mlx_gemma_mtp.server.settings import Settings

CACHED = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
HEADERS = {
    "anthropic-version": "2023-06-01",
    "anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14",
    "authorization": "Bearer local",
    "user-agent": "claude-cli/2.1.0 (external, cli)",
}


@pytest.fixture(scope="module")
def service() -> Iterator[Recorded]:
    with load("demo", warm_up=False, probe=False, prefix_cache=1 << 28) as engine:
        yield Recorded(engine, Settings(("demo",)))


@pytest.fixture(scope="module")
def code(service: Recorded) -> Iterator[TestClient]:
    with TestClient(app_of(service), "http://localhost", headers=HEADERS) as client:
        yield client


def text(text: str, **others: Any) -> dict[str, Any]:
    return {"type": "text", "text": text, **others}


def tools() -> list[dict[str, Any]]:
    """28 of its own, small ones because the demo's context is, and one that only Anthropic has."""
    schema: dict[str, Any] = {"type": "object", "properties": {"path": {"type": "string"}}}
    schema["required"] = ["path"]
    schema |= {"additionalProperties": False, "$schema": "http://json-schema.org/draft-07/schema#"}
    read = {"name": "Read", "description": "Read a file.", "input_schema": schema, "strict": True}
    others: list[dict[str, Any]] = [
        {"name": f"T{at}", "input_schema": {"type": "object"}} for at in range(27)
    ]
    others[0] |= {"defer_loading": True, "eager_input_streaming": True}
    return [read, *others, {"type": "web_search_20250305", "name": "web_search", "max_uses": 8}]


def asked(*messages: dict[str, Any], cch: str = "0", **others: Any) -> dict[str, Any]:
    billing = f"x-anthropic-billing-header: cc_version=2.1; cc_entrypoint=cli; cch={cch};"
    return {
        "model": "demo",
        "messages": [*messages],
        "system": [text(billing), text("You are an agent.", **CACHED), text("Be short.", **CACHED)],
        "tools": tools(),
        "tool_choice": {"type": "auto"},
        "metadata": {"user_id": "user_1_account__session_2"},
        "max_tokens": 12,
        "thinking": {"type": "adaptive", "display": "summarized"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "output_config": {"effort": "medium", "task_budget": None},
        "container": None,
        "mcp_servers": [],
        "speed": "standard",
        "service_tier": "auto",
        "stream": True,
        "temperature": 1,
    } | others


def stream(code: TestClient, body: dict[str, Any]) -> list[dict[str, Any]]:
    answer = code.post("/v1/messages?beta=true", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = answer.text.splitlines()
    return [json.loads(line.removeprefix("data: ")) for line in lines if line[:5] == "data:"]


def test_a_session_of_an_agent_with_calls_results_and_reminders_is_answered(
    code: TestClient, service: Recorded
) -> None:
    reminder = text("<system-reminder>\nToday is Monday.\n</system-reminder>")
    question = {"role": "user", "content": [reminder, text("Read a.py and b.py.", **CACHED)]}
    first = stream(code, asked(question))
    assert [first[0]["type"], first[-1]["type"]] == ["message_start", "message_stop"]
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A"}}
    said = [
        {"type": "thinking", "thinking": "Two files.", "signature": "unsigned"},
        {"type": "redacted_thinking", "data": "AAAA"},
        text("I read both."),
        *({"type": "tool_use", "id": f"toolu_{at}", "name": "Read", "input": {"path": f"{at}.py"}}
          for at in "ab"),
    ]  # fmt: skip
    results = [
        {"type": "tool_result", "tool_use_id": "toolu_b", "content": [image], "is_error": False},
        {"type": "tool_result", "tool_use_id": "toolu_a", "content": "no file", "is_error": True},
        reminder,
    ]
    second = stream(
        code,
        asked(
            question,
            {"role": "assistant", "content": said},
            {"role": "user", "content": results},
            {"role": "system", "content": "The mode is now: plan."},
            cch="1",
        ),
    )
    assert service.runs[-1].asked.priority == 0
    before, after = first[-2]["usage"], second[-2]["usage"]
    assert before["input_tokens"] > 500
    assert after["cache_read_input_tokens"] > 0.9 * before["input_tokens"]
    assert after["input_tokens"] > 50
    counted = code.post("/v1/messages/count_tokens?beta=true", json=asked(question)).json()
    assert counted["input_tokens"] == first[-2]["usage"]["input_tokens"]


def test_a_request_for_a_title_is_answered_in_the_background(
    code: TestClient, service: Recorded
) -> None:
    schema: dict[str, Any] = {"type": "object", "properties": {"title": {"enum": ["A greeting"]}}}
    schema |= {"required": ["title"], "additionalProperties": False}
    system = [text("Write a short title for this coding session, as JSON.")]
    form = {"format": {"type": "json_schema", "schema": schema}}
    body = asked({"role": "user", "content": [text("Hello")]}, system=system, output_config=form)
    body |= {"tools": [], "thinking": {"type": "disabled"}, "temperature": 0, "max_tokens": 100}
    found = stream(code, body)
    deltas = [one["delta"] for one in found if one["type"] == "content_block_delta"]
    assert json.loads("".join(one["text"] for one in deltas)) == {"title": "A greeting"}
    assert service.runs[-1].asked.priority == BACKGROUND


def test_its_check_of_the_key_is_answered(code: TestClient) -> None:
    message = {"role": "user", "content": "quota"}
    body = {"model": "demo", "max_tokens": 1, "messages": [message], "metadata": {"user_id": "1"}}
    assert code.post("/v1/messages", json=body).json()["stop_reason"] == "max_tokens"


def test_a_search_of_the_web_is_refused_in_words_that_say_why(code: TestClient) -> None:
    search = {"type": "web_search_20250305", "name": "web_search"}
    body = asked({"role": "user", "content": "Search: MLX"}, tools=[search])
    answer = code.post("/v1/messages", json=body)
    assert answer.status_code == 400
    assert "this server runs no tools (web_search_20250305)" in answer.json()["error"]["message"]
