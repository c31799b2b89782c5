"""Clients that applications use, all on one server over HTTP."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from typing import Any

import pytest
from pydantic import BaseModel, SecretStr

from helpers.command import SECONDS

SUM, ANSWER = "What is 17 + 25?", "17 + 25 = 42"
ANNA = "JSON for: Anna is 31 years old."


class Person(BaseModel):
    name: str
    age: int


LITELLM = """
import sys
import litellm

litellm.telemetry = False
url = sys.argv[1]
models = {"openai/demo": url + "/v1", "anthropic/demo": url, "ollama_chat/demo": url}
for model, base in models.items():
    asked = {
        "model": model,
        "api_base": base,
        "api_key": "none",
        "messages": [{"role": "user", "content": "What is 17 + 25?"}],
        "temperature": 0,
        "max_tokens": 40,
    }
    print(litellm.completion(**asked).choices[0].message.content)
    parts = litellm.completion(**asked, stream=True)
    print("".join(part.choices[0].delta.content or "" for part in parts))
"""


def test_litellm_gets_the_same_answer_by_three_protocols(url: str) -> None:
    if importlib.util.find_spec("litellm") is None:
        pytest.skip("litellm is not installed")
    # Without it, an import asks the network for a list of prices.
    own = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    run = [sys.executable, "-c", LITELLM, url]
    found = subprocess.run(run, env=own, capture_output=True, text=True, timeout=SECONDS)
    assert found.returncode == 0, found.stderr
    said = [line for line in found.stdout.splitlines() if "=" in line]  # and its own advice
    assert said == [ANSWER] * 6, found.stderr


@pytest.fixture(scope="module")
def chain(url: str) -> Any:
    langchain = pytest.importorskip("langchain_openai")
    return langchain.ChatOpenAI(
        model="demo", base_url=f"{url}/v1", api_key=SecretStr("none"), temperature=0, max_retries=0
    )


def test_langchain_reads_whole_answers_and_streams_with_their_usage(chain: Any) -> None:
    whole = chain.invoke(SUM)
    assert whole.content == ANSWER
    assert whole.usage_metadata["output_tokens"] > 4
    *parts, last = chain.stream(SUM, stream_usage=True)
    assert "".join(part.content for part in parts) + last.content == ANSWER
    used = [part.usage_metadata for part in (*parts, last) if part.usage_metadata]
    assert [one["output_tokens"] for one in used] == [whole.usage_metadata["output_tokens"]]


@pytest.mark.parametrize("stream", [False, True])
def test_langchain_calls_a_tool_and_gives_its_result_back(chain: Any, stream: bool) -> None:
    from langchain_core.messages import HumanMessage, ToolMessage
    from langchain_core.tools import tool

    @tool
    def get_time(city: str) -> str:
        """Get the time in a city."""
        return f"9:30 in {city}"

    asked, bound = HumanMessage("What time is it in Paris?"), chain.bind_tools([get_time])
    called = bound.invoke([asked])
    if stream:
        first, *others = bound.stream([asked])
        called = sum(others, first)
    [call] = called.tool_calls
    assert (call["name"], call["args"]) == ("get_time", {"city": "Paris"})
    result = get_time.invoke(call)
    assert isinstance(result, ToolMessage)
    assert "9:30" in bound.invoke([asked, called, result]).content


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_langchain_gets_a_structured_output(chain: Any, method: str) -> None:
    found = chain.with_structured_output(Person, method=method).invoke(ANNA)
    assert found == Person(name="Anna", age=31)


def agent(url: str, **options: Any) -> Any:
    pytest.importorskip("pydantic_ai")
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(base_url=f"{url}/v1", api_key="none")
    return Agent(OpenAIChatModel("demo", provider=provider), **options)


def test_an_agent_of_pydantic_ai_calls_a_tool_while_it_thinks(url: str) -> None:
    settings = {"temperature": 0, "openai_reasoning_effort": "low"}
    asked = []

    def get_time(city: str) -> str:
        """Get the time in a city."""
        asked.append(city)
        return "9:30"

    found = agent(url, tools=[get_time], model_settings=settings).run_sync(
        "What time is it in Paris?"
    )
    assert asked == ["Paris"]
    thoughts = [
        part for one in found.all_messages() for part in one.parts if part.part_kind == "thinking"
    ]
    assert thoughts
    assert not any(part.content in found.output for part in thoughts)


def test_an_agent_of_pydantic_ai_has_a_structured_output_while_it_thinks(url: str) -> None:
    from pydantic_ai import NativeOutput

    settings = {"temperature": 0, "openai_reasoning_effort": "low"}
    one = agent(url, output_type=NativeOutput(Person), model_settings=settings)
    assert one.run_sync(ANNA).output == Person(name="Anna", age=31)


def test_sdks_of_three_protocols_give_the_same_answer(url: str) -> None:
    anthropic, ollama = pytest.importorskip("anthropic"), pytest.importorskip("ollama")
    openai = pytest.importorskip("openai")
    asked: Any = [{"role": "user", "content": SUM}]
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        chat = client.chat.completions.create(model="demo", messages=asked, temperature=0)
        assert chat.choices[0].message.content == ANSWER
        response = client.responses.create(model="demo", input=SUM, temperature=0)
        assert response.output_text == ANSWER
    with anthropic.Anthropic(base_url=url, api_key="none") as client:
        settings = {"max_tokens": 99, "extra_body": {"temperature": 0}}
        message = client.messages.create(model="demo", messages=asked, **settings)
        assert message.content[0].text == ANSWER
    client = ollama.Client(host=url)
    answer = client.chat(model="demo", messages=asked, options={"temperature": 0})
    assert answer.message.content == ANSWER
