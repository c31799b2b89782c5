"""Ollama's own client and its bodies, with the demo pair."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from helpers.server import listening
from mlx_gemma_mtp import Engine
from mlx_gemma_mtp.server.app import app_of
from mlx_gemma_mtp.server.service import Service
from mlx_gemma_mtp.server.settings import Settings

ollama = pytest.importorskip("ollama")

GREEDY = {"temperature": 0}
SUM = "What is 17 + 25?"
QUESTION = [{"role": "user", "content": SUM}]
PARIS = [{"role": "user", "content": "What time is it in Paris?"}]


@pytest.fixture(scope="module")
def asking(engine: Engine) -> Iterator[Any]:
    """Ollama's client. Its streams have something to say in every silence."""
    settings = Settings(("demo", "other"), heartbeat_seconds=0.02)
    with listening(app_of(Service(engine, settings))) as url:
        yield ollama.Client(url)


def get_time(city: str) -> str:
    """Get the time in a city.

    Args:
        city: The city.
    """
    return f"9:30 in {city}"


def test_a_stream_has_the_text_and_the_counts_of_the_whole_answer(asking: Any) -> None:
    whole = asking.chat("demo", QUESTION, options=GREEDY)
    *pieces, last = asking.chat("demo:latest", QUESTION, options=GREEDY, stream=True)
    assert whole.message.content == "17 + 25 = 42"
    assert "".join(piece.message.content for piece in pieces) == whole.message.content
    assert not any(piece.done for piece in pieces)
    assert (whole.done_reason, last.done_reason, last.done) == ("stop", "stop", True)
    assert (whole.model, last.model) == ("demo", "demo:latest")
    assert last.eval_count == whole.eval_count > 5
    assert last.prompt_eval_count == whole.prompt_eval_count > 10
    spent = last.load_duration + last.prompt_eval_duration + last.eval_duration
    assert 10**6 < spent <= last.total_duration + 2 < 10**11  # rounded, each


def test_a_completion_is_the_answer_to_one_message(asking: Any) -> None:
    whole = asking.generate("demo", SUM, options=GREEDY)
    pieces = asking.generate("demo", SUM, options=GREEDY, stream=True)
    assert whole.response == "".join(piece.response for piece in pieces) == "17 + 25 = 42"
    told = asking.generate("demo", SUM, system="You are a helpful assistant.", options=GREEDY)
    assert told.prompt_eval_count > whole.prompt_eval_count


def test_a_raw_prompt_is_continued_as_it_is(asking: Any, engine: Engine) -> None:
    raw = "<|turn>user\nWhat is 17 + 25?<turn|>\n<|turn>model\n<|channel>thought\n<channel|>"
    done = asking.generate("demo", raw, raw=True, options=GREEDY)
    assert done.response == "17 + 25 = 42"
    assert done.prompt_eval_count == engine.count_tokens(SUM)


@pytest.mark.parametrize("stream", [False, True])
def test_calls_have_their_arguments_as_objects(asking: Any, stream: bool) -> None:
    answer = asking.chat("demo", PARIS, tools=[get_time], options=GREEDY, stream=stream)
    pieces = [*answer] if stream else [answer]
    calls = [call for piece in pieces for call in piece.message.tool_calls or ()]
    assert [(call.function.name, call.function.arguments) for call in calls] == [
        ("get_time", {"city": "Paris"})
    ]
    called = {"role": "assistant", "content": "", "tool_calls": calls}
    result = {"role": "tool", "tool_name": "get_time", "content": "9:30"}
    told = asking.chat("demo", [*PARIS, called, result], tools=[get_time], options=GREEDY)
    assert told.message.content


def test_the_thought_has_a_field_of_its_own(asking: Any) -> None:
    whole = asking.chat("demo", QUESTION, think="low", options=GREEDY)
    assert whole.message.thinking
    assert "42" in whole.message.content
    pieces = [*asking.chat("demo", QUESTION, think=True, options=GREEDY, stream=True)]
    for field in ("thinking", "content"):
        joined = "".join(getattr(piece.message, field) or "" for piece in pieces)
        assert joined == getattr(whole.message, field)
    assert asking.chat("demo", QUESTION, think=False, options=GREEDY).message.thinking is None


def test_an_answer_has_the_form_that_is_asked_for(asking: Any) -> None:
    age = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    options = GREEDY | {"num_predict": 100}
    for form in (age, "json"):
        done = asking.generate("demo", "How old is Anna?", format=form, options=options)
        assert isinstance(json.loads(done.response), dict)
    assert asking.generate("demo", SUM, format="", options=GREEDY).response == "17 + 25 = 42"


def test_settings_are_applied(asking: Any) -> None:
    def said(**options: Any) -> tuple[str, str]:
        done = asking.generate("demo", "Tell me a story.", options={"seed": 5} | options)
        return done.response, done.done_reason

    assert asking.generate("demo", SUM, options=GREEDY | {"num_predict": 3}).eval_count == 3
    assert said(num_predict=3)[1] == "length"
    wild = {"num_predict": 8, "temperature": 5}
    assert said(**wild) == said(**wild) != said(**wild, seed=-1)
    assert said(top_k=1, num_predict=20) == said(temperature=0, num_predict=20)
    cut = asking.generate("demo", SUM, options=GREEDY | {"stop": ["="], "num_predict": -1})
    assert (cut.response, cut.done_reason) == ("17 + 25 ", "stop")


def test_log_probabilities_are_those_of_the_answer(asking: Any) -> None:
    done = asking.generate("demo", SUM, logprobs=True, top_logprobs=2, options=GREEDY)
    assert "".join(one.token for one in done.logprobs) == done.response
    assert all(len(one.top_logprobs) == 2 and one.logprob <= 0 for one in done.logprobs)
    *pieces, _ = asking.generate("demo", SUM, logprobs=True, options=GREEDY, stream=True)
    each = [one.token for piece in pieces for one in piece.logprobs or ()]
    assert each == [one.token for one in done.logprobs]


def test_the_model_is_listed_and_shown(asking: Any, engine: Engine) -> None:
    for listed in (asking.list(), asking.ps()):
        assert [one.model for one in listed.models] == ["demo:latest", "other:latest"]
        assert len({one.digest for one in listed.models}) == 2
        assert all(one.size > 10**6 for one in listed.models)
    for name in ("demo", "demo:latest", "other"):
        shown = asking.show(name)
        assert shown.modelinfo[f"{shown.details.family}.context_length"] == engine.context
        assert shown.capabilities == ["completion", "tools", "thinking"]


def test_a_request_without_a_prompt_finds_the_model_loaded(asking: Any) -> None:
    done = asking.generate("demo", "", keep_alive=0)
    assert (done.response, done.done, done.done_reason) == ("", True, "load")
    [done] = asking.chat("demo", [], stream=True)
    assert (done.message.content, done.done_reason) == ("", "load")


REFUSED: dict[str, tuple[str, Any]] = {
    "chat of another model": ("not served here", lambda one: one.chat("nope", QUESTION)),
    "completion of another model": ("not served", lambda one: one.generate("demo:4b", SUM)),
    "load of another model": ("not served here", lambda one: one.generate("nope")),
    "another model shown": ("not served here", lambda one: one.show("nope")),
    "pull": ("mgm pull", lambda one: one.pull("demo")),
    "push": ("not supported", lambda one: one.push("demo")),
    "create": ("not supported", lambda one: one.create("new", from_="demo")),
    "copy": ("not supported", lambda one: one.copy("demo", "new")),
    "delete": ("not supported", lambda one: one.delete("demo")),
    "embed": ("no embeddings", lambda one: one.embed("demo", SUM)),
    "embeddings": ("no embeddings", lambda one: one.embeddings("demo", SUM)),
    "suffix": ("suffix", lambda one: one.generate("demo", SUM, suffix="x")),
    "template": ("template", lambda one: one.generate("demo", SUM, template="x")),
    "image": ("images", lambda one: one.generate("demo", SUM, images=["aGk="])),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused_says_why(asking: Any, what: str) -> None:
    message, ask = REFUSED[what]
    with pytest.raises(ollama.ResponseError, match=message) as raised:
        ask(asking)
    assert raised.value.status_code in (400, 404, 501)


def test_an_error_after_the_first_line_of_a_stream_is_a_line(
    asking: Any, client: TestClient
) -> None:
    body = {"model": "demo", "prompt": "x " * 9000}
    assert client.post("/api/generate", json=body).status_code == 400
    with pytest.raises(ollama.ResponseError, match="prompt is too long"):
        list(asking.generate(**body, stream=True))  # whose silence was too long for a status


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("options.temperature", {"options": {"temperature": "warm"}}),
        ("options.temperature", {"options": {"temperature": -1}}),
        ("options.num_predict", {"options": {"num_predict": 0}}),
        ("options.repeat_penalty", {"options": {"repeat_penalty": 0}}),
        ("options.stop", {"options": {"stop": [5]}}),
        ("format", {"format": "yaml"}),
        ("format", {"format": {"type": "nothing"}}),
        ("think", {"think": "hard"}),
        ("top_logprobs", {"logprobs": True, "top_logprobs": 99}),
        ("tools", {"tools": [{"type": "function"}]}),
        ("messages", {"messages": "Hi"}),
        ("messages.0", {"messages": [{"role": "robot", "content": "Hi"}]}),
        ("messages.0.images", {"messages": [{"role": "user", "images": ["aGk="]}]}),
        ("messages.0.content", {"messages": [{"role": "user", "content": 5}]}),
    ],
)
def test_a_wrong_value_is_refused_with_the_name_of_its_field(
    client: TestClient, field: str, wrong: Any
) -> None:
    answer = client.post("/api/chat", json={"model": "demo", "messages": QUESTION} | wrong)
    assert answer.status_code == 400
    assert field in answer.json()["error"]


def test_unknown_fields_and_settings_of_the_machine_are_ignored(client: TestClient) -> None:
    options = GREEDY | {"num_ctx": 8192, "num_gpu": 1, "mirostat": 0, "seed": None}
    body = {"model": "demo", "messages": QUESTION, "keep_alive": "5m", "options": options}
    lines = client.post("/api/chat", json=body | {"new": 1, "format": None}).text.splitlines()
    said = "".join(json.loads(line)["message"]["content"] for line in lines)
    assert said == "17 + 25 = 42"


def test_a_stream_is_lines_of_json(client: TestClient) -> None:
    answer = client.post("/api/generate", json={"model": "demo", "prompt": SUM})
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert [json.loads(line)["done"] for line in answer.text.splitlines()][-2:] == [False, True]


def test_the_version_is_one_that_clients_accept(client: TestClient) -> None:
    version = client.get("/api/version").json()["version"]
    assert tuple(map(int, version.split("."))) >= (0, 6, 4)
    assert client.head("/api/version").status_code == 200
