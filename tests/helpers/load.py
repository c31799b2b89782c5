"""Many clients at once, with requests of all kinds and protocols, some of which hang up.

Knows nothing of the server but its URL, and of what is right.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import httpx2

from helpers.clock import ANTHROPIC_TOOL, CHAT_TOOL, RESPONSES_TOOL
from mlx_gemma_mtp import SamplingParams

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
CITIES = ("Paris", "Rome", "Berlin", "Madrid", "Vienna")
NAMES = ("Anna", "Ben", "Clara", "David", "Emma")
WILD = 5.0  # a temperature at which this model says something else with each seed
CHAT = ("chat",)
NO_ANTHROPIC = ("chat", "responses", "ollama")  # whose temperatures end at 1
TIMEOUT = 600.0  # seconds that a client waits at most


@dataclass(frozen=True)
class Question:
    """What is asked, in the engine's terms. by: the protocols that can ask for it."""

    text: str
    params: SamplingParams
    n: int = 1
    has_tools: bool = False
    by: tuple[str, ...] = ("chat", "responses", "messages", "ollama")


class Said(NamedTuple):
    """An answer: its text, and its calls with their arguments as JSON."""

    text: str
    calls: tuple[tuple[str, str], ...] = ()


@dataclass
class Outcome:
    """What a client got. left: it hung up, and has a part. refused: times that it had to retry.

    Seconds count from the first request on.
    """

    question: Question
    protocol: str
    streamed: bool
    answers: list[Said] = field(default_factory=list)
    tokens: int = 0  # generated ones, by the usage
    left: bool = False
    refused: int = 0
    first_seconds: float = 0.0
    seconds: float = 0.0


def questions(rng: random.Random, count: int) -> list[Question]:
    """Return different questions of all kinds."""
    kinds: tuple[Callable[[SamplingParams], Question], ...] = (
        lambda own: Question(f"What is {rng.randrange(90)} + {rng.randrange(90)}?", own),
        lambda own: Question("Tell me a story.", replace(own, temperature=WILD), by=NO_ANTHROPIC),
        lambda own: Question(  # a call that is cut is in streams alone
            f"What time is it in {rng.choice(CITIES)}?", replace(own, max_tokens=40), has_tools=True
        ),
        lambda own: Question(
            f"JSON for: {rng.choice(NAMES)} is {rng.randrange(9, 99)} years old.",
            replace(own, json_schema=PERSON),
        ),
        lambda own: Question(
            "Tell me a story.", replace(own, temperature=WILD, stop=("a", ".")), by=NO_ANTHROPIC
        ),
        lambda own: Question("Tell me a story.", replace(own, temperature=WILD), n=3, by=CHAT),
        lambda own: Question(
            f"What is {rng.randrange(90)} + {rng.randrange(90)}?",
            replace(own, logprobs=2, num_draft_tokens=0),
            by=CHAT,
        ),
        lambda own: Question(
            "Tell me a story.",
            replace(own, temperature=WILD, presence_penalty=1.0, frequency_penalty=0.5),
            by=CHAT,
        ),
        lambda own: Question(
            f"Is {rng.randrange(90)} more than 40?",
            replace(own, choices=["yes", "no"]),
            by=CHAT,
        ),
    )
    return [
        kinds[number % len(kinds)](
            SamplingParams(temperature=0, seed=number, max_tokens=rng.randrange(8, 28))
        )
        for number in range(count)
    ]


class Protocol(NamedTuple):
    """path: of its requests. streamed, whole: what the events, or the body, of an answer say."""

    path: str
    body: Callable[[Question], dict[str, Any]]
    streamed: Callable[[list[dict[str, Any]], Outcome], None]
    whole: Callable[[dict[str, Any], Outcome], None]


def _messages(asked: Question) -> list[dict[str, Any]]:
    return [{"role": "user", "content": asked.text}]


def _chat_body(asked: Question) -> dict[str, Any]:
    given = asked.params
    body: dict[str, Any] = {
        "messages": _messages(asked),
        "stream_options": {"include_usage": True},
        "temperature": given.temperature,
        "max_completion_tokens": given.max_tokens,
        "seed": given.seed,
        "n": asked.n,
        "stop": [*given.stop_strings] or None,
        "presence_penalty": given.presence_penalty,
        "frequency_penalty": given.frequency_penalty,
        "top_logprobs": given.logprobs,
        "draft": given.num_draft_tokens != 0,
    }
    if given.choices:
        body["structured_outputs"] = {"choice": given.choices}
    if given.json_schema:
        form = {"name": "person", "schema": given.json_schema}
        body["response_format"] = {"type": "json_schema", "json_schema": form}
    if asked.has_tools:
        body["tools"] = [CHAT_TOOL]
    return body


def _chat_streamed(events: list[dict[str, Any]], got: Outcome) -> None:
    texts = [""] * got.question.n
    calls: list[dict[int, list[str]]] = [{} for _ in texts]
    for one in events:
        got.tokens = (one.get("usage") or {}).get("completion_tokens", 0)
        for choice in one["choices"]:
            delta = choice["delta"]
            texts[choice["index"]] += delta.get("content") or ""
            for call in delta.get("tool_calls", ()):
                own = calls[choice["index"]].setdefault(call["index"], ["", ""])
                own[0] += call["function"].get("name") or ""
                own[1] += call["function"].get("arguments") or ""
    for text, own_calls in zip(texts, calls, strict=True):
        got.answers.append(Said(text, tuple((name, args) for name, args in own_calls.values())))


def _chat_whole(answer: dict[str, Any], got: Outcome) -> None:
    got.tokens = answer["usage"]["completion_tokens"]
    for choice in sorted(answer["choices"], key=lambda one: one["index"]):
        functions = [one["function"] for one in choice["message"].get("tool_calls") or ()]
        calls = tuple((one["name"], one["arguments"]) for one in functions)
        got.answers.append(Said(choice["message"]["content"] or "", calls))


def _responses_body(asked: Question) -> dict[str, Any]:
    given = asked.params
    body: dict[str, Any] = {
        "input": asked.text,
        "temperature": given.temperature,
        "max_output_tokens": given.max_tokens,
        "seed": given.seed,
        "stop": [*given.stop_strings] or None,
    }
    if given.json_schema:
        form = {"type": "json_schema", "name": "person", "schema": given.json_schema}
        body["text"] = {"format": form}
    if asked.has_tools:
        body["tools"] = [RESPONSES_TOOL]
    return body


def _responses_streamed(events: list[dict[str, Any]], got: Outcome) -> None:
    text = "".join(one["delta"] for one in events if one["type"] == "response.output_text.delta")
    if events and "usage" in (last := events[-1].get("response", {})) and last["usage"]:
        _responses_whole(last, got)
        assert got.answers[0].text == text
    else:
        got.answers.append(Said(text))


def _responses_whole(answer: dict[str, Any], got: Outcome) -> None:
    got.tokens = answer["usage"]["output_tokens"]
    text, calls = "", []
    for item in answer["output"]:
        if item["type"] == "message":
            text += "".join(part["text"] for part in item["content"])
        elif item["type"] == "function_call":
            calls.append((item["name"], item["arguments"]))
    got.answers.append(Said(text, tuple(calls)))


def _anthropic_body(asked: Question) -> dict[str, Any]:
    given = asked.params
    body: dict[str, Any] = {
        "messages": _messages(asked),
        "temperature": given.temperature,
        "max_tokens": given.max_tokens,
        "seed": given.seed,
        "stop_sequences": [*given.stop_strings] or None,
    }
    if given.json_schema:
        body["output_config"] = {"format": {"type": "json_schema", "schema": given.json_schema}}
    if asked.has_tools:
        body["tools"] = [ANTHROPIC_TOOL]
    return body


def _anthropic_streamed(events: list[dict[str, Any]], got: Outcome) -> None:
    text, calls = "", list[list[str]]()
    for one in events:
        match one:
            case {"content_block": {"type": "tool_use", "name": name}}:
                calls.append([name, ""])
            case {"delta": {"partial_json": part}}:
                calls[-1][1] += part
            case {"delta": {"text": part}}:
                text += part
            case {"type": "message_delta", "usage": usage}:
                got.tokens = usage["output_tokens"]
    got.answers.append(Said(text, tuple((name, args) for name, args in calls)))


def _anthropic_whole(answer: dict[str, Any], got: Outcome) -> None:
    got.tokens, blocks = answer["usage"]["output_tokens"], answer["content"]
    text = "".join(one["text"] for one in blocks if one["type"] == "text")
    called = [one for one in blocks if one["type"] == "tool_use"]
    calls = [(one["name"], compact(one["input"])) for one in called]
    got.answers.append(Said(text, tuple(calls)))


def _ollama_body(asked: Question) -> dict[str, Any]:
    given = asked.params
    options = {"temperature": given.temperature, "num_predict": given.max_tokens}
    options |= {"seed": given.seed, "stop": [*given.stop_strings]}
    body: dict[str, Any] = {"messages": _messages(asked), "options": options}
    if given.json_schema:
        body["format"] = given.json_schema
    if asked.has_tools:
        body["tools"] = [CHAT_TOOL]
    return body


def _ollama_streamed(lines: list[dict[str, Any]], got: Outcome) -> None:
    got.tokens = lines[-1].get("eval_count", 0)
    messages = [one["message"] for one in lines]
    functions = [one["function"] for each in messages for one in each.get("tool_calls", ())]
    calls = tuple((one["name"], compact(one["arguments"])) for one in functions)
    got.answers.append(Said("".join(one["content"] for one in messages), calls))


def _ollama_whole(answer: dict[str, Any], got: Outcome) -> None:
    _ollama_streamed([answer], got)


def compact(value: Any) -> str:
    """JSON as the server writes it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


PROTOCOLS = {
    "chat": Protocol("/v1/chat/completions", _chat_body, _chat_streamed, _chat_whole),
    "responses": Protocol("/v1/responses", _responses_body, _responses_streamed, _responses_whole),
    "messages": Protocol("/v1/messages", _anthropic_body, _anthropic_streamed, _anthropic_whole),
    "ollama": Protocol("/api/chat", _ollama_body, _ollama_streamed, _ollama_whole),
}


async def _events(answer: httpx2.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in answer.aiter_lines():
        if (data := line.removeprefix("data: ")).startswith("{"):
            yield json.loads(data)


async def ask(
    client: httpx2.AsyncClient,
    asked: Question,
    protocol: str,
    *,
    stream: bool,
    leaves: float | None,
) -> Outcome:
    """Ask, and hang up in the middle if `leaves` is set: a share of the events, or of a second."""
    got, start = Outcome(asked, protocol, stream), time.perf_counter()
    while True:
        try:
            await (_stream if stream else _post)(client, got, start, leaves)
        except Refused as error:
            got.refused += 1
            await asyncio.sleep(error.seconds)
        else:
            break
    got.seconds = time.perf_counter() - start
    got.first_seconds = got.first_seconds or got.seconds
    return got


class Refused(Exception):
    """The queue is full. seconds: after which a client may try again."""

    def __init__(self, answer: httpx2.Response) -> None:
        self.seconds = int(answer.headers["Retry-After"])


async def _stream(
    client: httpx2.AsyncClient, got: Outcome, start: float, leaves: float | None
) -> None:
    how, events = PROTOCOLS[got.protocol], list[dict[str, Any]]()
    most = None if leaves is None else 1 + int(leaves * (got.question.params.max_tokens or 1))
    body = how.body(got.question) | {"stream": True}
    async with client.stream("POST", how.path, json=body) as answer:
        if answer.status_code == 503:
            raise Refused(answer)
        assert answer.status_code == 200, await answer.aread()
        async for one in _events(answer):
            got.first_seconds = got.first_seconds or time.perf_counter() - start
            assert one.get("error") is None, one
            events.append(one)
            if len(events) == most:
                got.left = True
                break
    how.streamed(events, got)


async def _post(
    client: httpx2.AsyncClient, got: Outcome, start: float, leaves: float | None
) -> None:
    how, got.left = PROTOCOLS[got.protocol], leaves is not None
    with suppress(TimeoutError):
        async with asyncio.timeout(leaves):
            body = how.body(got.question) | {"stream": False}
            answer = await client.post(how.path, json=body)
            if answer.status_code == 503:
                raise Refused(answer)
            assert answer.status_code == 200, answer.text
            how.whole(answer.json(), got)
            got.left = False


async def play(
    url: str, rng: random.Random, asked: Sequence[Question], *, clients: int, requests: int
) -> list[Outcome]:
    """Let this many clients ask one request after another; about one in six hangs up."""
    found = list[Outcome]()
    left = iter(range(requests))

    async def be_client(http: httpx2.AsyncClient) -> None:
        for _ in left:
            question = rng.choice(asked)
            protocol = rng.choice(question.by)
            leaves = rng.random() if rng.random() < 1 / 6 else None
            stream = rng.random() < 0.6
            found.append(await ask(http, question, protocol, stream=stream, leaves=leaves))

    limits = httpx2.Limits(max_connections=None)
    async with (
        httpx2.AsyncClient(base_url=url, timeout=TIMEOUT, limits=limits) as http,
        asyncio.TaskGroup() as group,
    ):
        for _ in range(clients):
            group.create_task(be_client(http))
    return found
