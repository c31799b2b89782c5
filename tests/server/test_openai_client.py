"""The server with OpenAI's own client, over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from helpers.clock import CHAT_TOOL, QUESTION, RESPONSES_TOOL
from helpers.scripted import scripted
from helpers.server import listening
from mlx_gemma_mtp.engine.results import Chunk
from mlx_gemma_mtp.errors import MgmError

openai = pytest.importorskip("openai")

SUM: Any = [{"role": "user", "content": "What is 17 + 25?"}]
CLOCK: Any = [{"role": "user", "content": QUESTION}]
PERSON = "JSON for: Anna is 31 years old."
GREEDY: Any = {"model": "demo", "temperature": 0}


class Person(BaseModel):
    name: str
    age: int


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_models_are_listed(client: Any) -> None:
    assert [one.id for one in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").owned_by == "local"


def test_a_chat_is_answered_whole_and_streamed(client: Any) -> None:
    whole = client.chat.completions.create(messages=SUM, **GREEDY)
    assert whole.choices[0].message.content == "17 + 25 = 42"
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    chunks = [*client.chat.completions.create(messages=SUM, stream=True, **GREEDY)]
    assert "".join(one.choices[0].delta.content or "" for one in chunks) == "17 + 25 = 42"
    assert chunks[-1].choices[0].finish_reason == "stop"
    with client.chat.completions.stream(messages=SUM, **GREEDY) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == "17 + 25 = 42"


def test_logprobs_are_read(client: Any) -> None:
    settings = GREEDY | {"messages": SUM, "logprobs": True, "top_logprobs": 2}
    content = client.chat.completions.create(**settings).choices[0].logprobs.content
    assert "".join(one.token for one in content) == "17 + 25 = 42"
    assert all(len(one.top_logprobs) == 2 for one in content)
    chunks = client.chat.completions.create(stream=True, **settings)
    logprobs = [one.choices[0].logprobs for one in chunks]
    assert [entry for one in logprobs if one for entry in one.content] == content


def test_a_pydantic_model_is_parsed(client: Any) -> None:
    question = [{"role": "user", "content": PERSON}]
    chat = client.chat.completions.parse(messages=question, response_format=Person, **GREEDY)
    assert chat.choices[0].message.parsed == Person(name="Anna", age=31)
    response = client.responses.parse(input=PERSON, text_format=Person, **GREEDY)
    assert response.output_parsed == Person(name="Anna", age=31)


def test_a_chat_calls_a_tool_and_uses_its_result(client: Any) -> None:
    tools = [CHAT_TOOL]
    with client.chat.completions.stream(messages=CLOCK, tools=tools, **GREEDY) as stream:
        message = stream.get_final_completion().choices[0].message
    [call] = message.tool_calls
    assert (call.function.name, call.function.arguments) == ("get_time", '{"city":"Paris"}')
    result = {"role": "tool", "tool_call_id": call.id, "content": "9:30"}
    messages = [*CLOCK, message.to_dict(), result]
    answer = client.chat.completions.create(messages=messages, tools=tools, **GREEDY)
    assert answer.choices[0].message.content == "It is 9:30 in Paris."


def test_a_response_is_answered_whole_and_streamed(client: Any) -> None:
    asked = GREEDY | {"input": "What is 17 + 25?", "reasoning": {"effort": "low"}}
    whole = client.responses.create(**asked)
    assert whole.output_text == "17 + 25 = 42"
    assert [one.type for one in whole.output] == ["reasoning", "message"]
    assert whole.usage.output_tokens_details.reasoning_tokens > 0
    with client.responses.stream(**asked) as stream:
        final = stream.get_final_response()
    assert final.output_text == "17 + 25 = 42"
    assert final.output[0].content[0].text == whole.output[0].content[0].text


def test_a_response_calls_a_tool_and_uses_its_result(client: Any) -> None:
    asked = GREEDY | {"tools": [RESPONSES_TOOL]}
    with client.responses.stream(input=CLOCK, **asked) as stream:
        first = stream.get_final_response()
    [call] = first.output
    assert (call.name, call.arguments) == ("get_time", '{"city":"Paris"}')
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "9:30"}
    conversation = [*CLOCK, *first.output, result]
    assert (
        client.responses.create(input=conversation, **asked).output_text == "It is 9:30 in Paris."
    )


def test_a_text_is_continued(client: Any) -> None:
    prompt = "<|turn>user\nWhat is 17 + 25?<turn|>\n<|turn>model\n"
    whole = client.completions.create(prompt=prompt, logprobs=1, **GREEDY)
    assert whole.choices[0].text == "17 + 25 = 42"
    assert "".join(whole.choices[0].logprobs.tokens) == "17 + 25 = 42"
    chunks = client.completions.create(prompt=prompt, stream=True, **GREEDY)
    assert "".join(one.choices[0].text for one in chunks) == "17 + 25 = 42"


def test_errors_are_the_clients_own(client: Any) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(messages=SUM, model="gpt-5")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(input="Hi", previous_response_id="resp_1", model="demo")
    assert caught.value.param == "previous_response_id"
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(messages=SUM, **GREEDY | {"temperature": -1})
    assert caught.value.param == "temperature"


def test_an_error_after_output_raises() -> None:
    app = scripted([Chunk("Hel", [1])], MgmError("the device is gone")).app
    with listening(app) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        chunks = client.chat.completions.create(messages=SUM, stream=True, **GREEDY)
        with pytest.raises(openai.APIError):
            list(chunks)
        events = [*client.responses.create(input="Hi", stream=True, **GREEDY)]
        assert events[-1].type == "response.failed"


def test_answers_at_once_are_those_of_one_alone(client: Any, url: str) -> None:
    asked = GREEDY | {"messages": [{"role": "user", "content": "Tell me a story."}]}
    asked |= {"temperature": 1, "max_tokens": 20}
    plain = {"draft": False}

    async def all_at_once() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            create = client.chat.completions.create
            return await asyncio.gather(*(create(seed=seed, **asked) for seed in range(4)))

    for seed, answer in enumerate(asyncio.run(all_at_once())):
        alone = client.chat.completions.create(seed=seed, extra_body=plain, **asked)
        assert alone.choices[0].message.content == answer.choices[0].message.content
        assert alone.output_hash == answer.output_hash
