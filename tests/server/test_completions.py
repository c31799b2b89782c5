"""OpenAI's completions, asked through the app with the demo pair."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from starlette.testclient import TestClient

from helpers import asking
from helpers.scripted import held_back, scripted
from mlx_gemma_mtp import Engine
from mlx_gemma_mtp.engine.results import Chunk, Stats, TokenLogprobs
from mlx_gemma_mtp.text.tokenizer import Text

PATH = "/v1/completions"
TURN = "<|turn>user\nWhat is 17 + 25?<turn|>\n<|turn>model\n"
SUM: dict[str, Any] = {"prompt": TURN, "temperature": 0}

ask = partial(asking.answer, PATH)
streamed = partial(asking.events, PATH)


def test_a_text_is_continued_after_bos_and_not_put_into_a_turn(
    client: TestClient, engine: Engine
) -> None:
    answer = ask(client, SUM)
    assert answer["object"] == "text_completion"
    assert answer["choices"] == [
        {"index": 0, "text": "17 + 25 = 42", "logprobs": None, "finish_reason": "stop"}
    ]
    assert engine.text is not None
    assert engine.text.bos is not None
    ids = [engine.text.bos, *engine.encode(TURN)]
    assert answer["usage"]["prompt_tokens"] == len(ids)
    for same in (ids, [ids], f"<bos>{TURN}", [TURN]):
        assert ask(client, SUM | {"prompt": same})["output_hash"] == answer["output_hash"]


def test_bos_has_no_text(client: TestClient) -> None:
    # The demo writes <bos> after itself.
    answer = ask(client, {"prompt": "", "seed": 3, "temperature": 1, "logprobs": 0})
    [choice] = answer["choices"]
    logprobs = choice["logprobs"]
    assert logprobs["tokens"][0] == "<bos>"
    assert "<bos>" not in choice["text"]
    others = [
        (token, choice["text"][at : at + len(token)])
        for token, at in zip(logprobs["tokens"], logprobs["text_offset"], strict=True)
        if token != "<bos>"
    ]
    assert others
    assert all(token == text for token, text in others)


@pytest.mark.parametrize(
    ("path", "field"),
    [(PATH, "prompt"), ("/tokenize", "content"), ("/api/generate", "prompt")],
)
def test_a_text_far_over_the_context_is_refused_before_it_is_encoded(
    client: TestClient, path: str, field: str
) -> None:
    answer = client.post(path, json={field: "Hello " * 50_000, "raw": True})
    assert answer.status_code == 400
    assert "at least 18750 tokens" in answer.text
    if path != "/api/generate":
        error = answer.json()["error"]
        assert (error["code"], error["param"]) == ("context_length_exceeded", field)


def test_a_wrong_token_id_names_the_prompt(client: TestClient) -> None:
    for prompt in ([10**8], [[]]):
        answer = client.post(PATH, json={"prompt": prompt})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "prompt"


def test_several_prompts_give_n_completions_each_in_their_order(client: TestClient) -> None:
    body = SUM | {"prompt": [TURN, TURN.replace("17", "3")], "n": 2, "echo": True}
    answer = ask(client, body)
    texts = [one["text"] for one in answer["choices"]]
    first = f"{TURN}17 + 25 = 42"
    second = f"{TURN.replace('17', '3')}3 + 25 = 28"
    assert texts == [first, first, second, second]
    assert [one["index"] for one in answer["choices"]] == [0, 1, 2, 3]
    *stream, last = streamed(client, body | {"stream_options": {"include_usage": True}})
    for number, text in enumerate(texts):
        own = [one["choices"][0] for one in stream if one["choices"][0]["index"] == number]
        assert "".join(one["text"] for one in own) == text
        assert [one["finish_reason"] for one in own][-1] == "stop"
    assert last["usage"] == answer["usage"]


def test_token_ids_are_echoed_as_text(client: TestClient, engine: Engine) -> None:
    body = {"prompt": engine.encode("One two"), "echo": True, "max_tokens": 1}
    assert ask(client, body)["choices"][0]["text"].startswith("One two")


def test_logprobs_have_a_text_an_offset_and_their_best_per_token(client: TestClient) -> None:
    body = SUM | {"logprobs": 1, "stop": ["= 43"]}  # text is held back that may become this
    [whole] = ask(client, body)["choices"]
    found = whole["logprobs"]
    assert "".join(found["tokens"]) == whole["text"] == "17 + 25 = 42"
    assert [whole["text"][at:][: len(one)] for one, at in _placed(found)] == found["tokens"]
    for token, logprob, top in zip(
        found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True
    ):
        assert top == {token: logprob}  # greedy: the best one is it
    stream = [one["choices"][0]["logprobs"] for one in streamed(client, body)]
    for name, values in found.items():
        assert [value for one in stream for value in one[name]] == values


def _placed(found: dict[str, list[Any]]) -> list[tuple[str, int]]:
    return [*zip(found["tokens"], found["text_offset"], strict=True)]


def test_logprobs_are_sent_while_their_text_is_held_back(text: Text) -> None:
    stream = streamed(scripted(held_back(text), text=text), {"prompt": [5], "logprobs": 0})
    sent = [one["choices"][0] for one in stream]
    assert [one["text"] for one in sent] == ["", "", "1+2", ""]
    assert [one["logprobs"]["tokens"] for one in sent] == [["1"], ["+"], ["2"], []]


def test_tokens_that_are_parts_of_a_character_are_shown_as_bytes(text: Text) -> None:
    ids = text.encode("é🙂!")[-6:]  # not in the demo's vocabulary: one token per byte
    assert [text.bytes_of(one) for one in ids[-5:-1]] == [bytes([one]) for one in "🙂".encode()]
    logprobs = tuple(TokenLogprobs(one, -0.5, ()) for one in ids)
    client = scripted([Chunk("🙂!", ids, "length", Stats(), logprobs=logprobs)], text=text)
    found = ask(client, {"prompt": [5], "logprobs": 0})["choices"][0]["logprobs"]
    assert found["tokens"][-5:] == [r"bytes:\xf0", r"bytes:\x9f", r"bytes:\x99", r"bytes:\x82", "!"]
    assert len({*found["text_offset"][-5:-1]}) == 1
    assert found["text_offset"][-1] == found["text_offset"][-2] + 1


def test_a_completion_has_sixteen_tokens_unless_it_is_asked_for_more(client: TestClient) -> None:
    prompt = "<|turn>user\nTell me a story.<turn|>\n<|turn>model\n"
    for asked, number in ((None, 16), (20, 20)):
        answer = ask(client, {"prompt": prompt, "max_tokens": asked})
        assert answer["usage"]["completion_tokens"] == number
        assert answer["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"suffix": "the end"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": 2, "echo": True}, "echo"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a"] * 1025}, "prompt"),
        ({"prompt": ["a", 5]}, "prompt"),
        ({"prompt": {}}, "prompt"),
        ({"prompt": "a " * 9000}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
def test_what_a_completion_cannot_have_is_refused(
    client: TestClient, body: dict[str, Any], field: str
) -> None:
    answer = client.post(PATH, json=SUM | body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"].split(".")[0] == field
    assert error["message"].startswith(field)


def test_best_of_may_be_n_and_an_empty_suffix_is_none(client: TestClient) -> None:
    body = SUM | {"n": 2, "best_of": 2, "suffix": "", "max_tokens": 1}
    assert len(ask(client, body)["choices"]) == 2
