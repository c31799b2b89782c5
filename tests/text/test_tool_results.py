"""Calls and their results reach the model in one form, whatever the messages and the template."""

import copy
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.templates import FIRST, OTHER, TEMPLATES, with_template
from mlx_gemma_mtp.errors import UsageError
from mlx_gemma_mtp.text.messages import Message, check_messages, normalized
from mlx_gemma_mtp.text.tokenizer import Text
from mlx_gemma_mtp.text.tool_turns import LOOSE

HI: Message = {"role": "user", "content": "Hi"}


@pytest.fixture(params=TEMPLATES)
def any_text(request: pytest.FixtureRequest, tmp_path: Path) -> Text:
    """A tokenizer with each template in turn."""
    return with_template(tmp_path, TEMPLATES[request.param])


def calls(*names: str, arguments: Any = None, content: Any = None, ids: str = "") -> Message:
    """A message that calls these tools, whose ids are those letters."""
    made = [
        {"type": "function", "function": {"name": name, "arguments": arguments}} for name in names
    ]
    for call, letter in zip(made, ids, strict=bool(ids)):
        call["id"] = letter
    return {"role": "assistant", "content": content, "tool_calls": made}


def result(content: Any, **fields: str) -> Message:
    return {"role": "tool", "content": content, **fields}


def parts(*texts: str) -> list[Message]:
    return [{"type": "text", "text": text} for text in texts]


ARGUMENTS = {"city": "Rome", "days": 2}
DONE: Message = {"role": "assistant", "content": "Done."}
CANONICAL = [
    *(HI, calls("f", "g", arguments=ARGUMENTS, content="Let me see.", ids="ab")),
    *(result("so", tool_call_id="a"), result({"n": 1}, tool_call_id="b")),
    *(DONE, HI, calls("f", arguments={}, content="", ids="c"), result("", tool_call_id="c")),
]


def with_calls(first: Message, *results: Message, last: Sequence[Message] = ()) -> list[Message]:
    return [HI, first, *results, DONE, HI, *(last or CANONICAL[-2:])]


CALLED = CANONICAL[1]
SO, N = CANONICAL[2:4]
RESPONSES = [{"name": "f", "response": "so"}, {"name": "g", "response": {"n": 1}}]
FORMS: dict[str, list[Message]] = {
    "arguments as JSON text": with_calls(
        calls("f", "g", arguments=json.dumps(ARGUMENTS), content="Let me see.", ids="ab"), SO, N
    ),
    "contents in parts": with_calls(
        CALLED | {"content": parts("Let me ", "see.")}, result(parts("s", "o"), tool_call_id="a"), N
    ),
    "the role model": with_calls(CALLED | {"role": "model"}, SO, N),
    "results in another order": with_calls(CALLED, N, SO),
    "results by name": with_calls(CALLED, result({"n": 1}, name="g"), result("so", name="f")),
    "results by place": with_calls(CALLED, result("so"), result({"n": 1})),
    "one by id, one by place": with_calls(CALLED, result({"n": 1}), SO),
    "calls without ids": with_calls(
        calls("f", "g", arguments=ARGUMENTS, content="Let me see."),
        *(result("so", tool_call_id="x", name="f"), result({"n": 1}, tool_call_id="y", name="g")),
    ),
    "the same ids again": with_calls(
        *(CALLED, SO, N),
        last=[calls("f", arguments=None, ids="a"), result("", tool_call_id="a")],
    ),
    "tool_responses": [
        *(HI, {**CALLED, "content": "", "tool_responses": RESPONSES}),
        *CANONICAL[4:],
    ],
    "the answer with its tool_responses": [
        *(HI, {**CALLED, "content": "Done.", "tool_responses": RESPONSES}),
        *CANONICAL[5:],
    ],
}


@pytest.mark.parametrize("form", FORMS)
def test_all_forms_of_calls_and_results_are_shown_alike(any_text: Text, form: str) -> None:
    def shown(messages: list[Message]) -> str:
        return re.sub(
            r"call_\d+|(?<=[fg])[abc](?=<)", "ID", any_text.decode(any_text.chat(messages))
        )

    canonical = copy.deepcopy(CANONICAL)
    if "tool_responses" in form:  # such a message has no text before its calls
        canonical[1]["content"] = ""
    messages = FORMS[form]
    before = copy.deepcopy(messages)
    assert shown(messages) == shown(canonical)
    assert messages == before


@pytest.mark.parametrize("name", sorted(TEMPLATES.keys() - {"next"}))  # closes a turn after text
def test_text_before_calls_comes_before_them_and_answers_after_results(
    name: str, tmp_path: Path
) -> None:
    any_text = with_template(tmp_path, TEMPLATES[name])
    written = any_text.decode(any_text.chat(CANONICAL))
    places = [written.find(one) for one in ("Let me see.", "call:f", "call:g", "so", "Done.")]
    assert places == sorted(places)
    assert min(places) >= 0


def test_nothing_is_shown_outside_of_turns(any_text: Text) -> None:
    written = any_text.decode(any_text.chat(CANONICAL))
    assert LOOSE.search(written) is None
    assert written.count("Let me see.") == written.count("Done.") == 1


SECRET = "SECRET RESULT"
MISPLACED = {
    "no call": [HI, result(SECRET, name="f"), HI],
    "no call in the message before": [HI, DONE, result(SECRET)],
    "first": [result(SECRET)],
    "a user in between": [HI, calls("f", ids="a"), HI, result(SECRET, tool_call_id="a")],
    "an answer in between": [HI, calls("f"), DONE, result(SECRET)],
    "too many": [HI, calls("f", ids="a"), result("so"), result(SECRET)],
    "two for one": [HI, calls("f", "g", ids="ab"), *[result("so", tool_call_id="a")] * 2],
    "another id": [HI, calls("f", ids="a"), result(SECRET, tool_call_id="b")],
    "another name": [HI, calls("f"), result(SECRET, name="g")],
    "none": [HI, calls("f"), HI],
    "one of two": [HI, calls("f", "g", ids="ab"), result("so", tool_call_id="b"), HI],
    "none at the end": [HI, calls("f")],
    "calls of a user": [{**calls("f"), "role": "user", "content": ""}, result(SECRET)],
    "responses of a user": [{**HI, "tool_responses": [{"name": "f", "response": SECRET}]}],
    "the same id twice": [HI, calls("f", "g", ids="aa"), result("so"), result("so")],
}


@pytest.mark.parametrize("why", MISPLACED)
def test_a_result_without_its_call_and_a_call_without_its_result_are_refused(
    any_text: Text, why: str
) -> None:
    with pytest.raises(UsageError, match=r"message \d: .*(call|result)"):
        any_text.chat(MISPLACED[why])


def test_the_refusal_names_the_message_that_is_in_the_wrong_place(text: Text) -> None:
    misplaced = MISPLACED["a user in between"]
    with pytest.raises(UsageError, match=r"^message 4: the result of a tool must follow"):
        text.chat(misplaced)
    with pytest.raises(UsageError, match=r"^message 2: its call of f has no result"):
        text.chat(misplaced[:3])


def test_results_are_text_or_mappings_as_they_were_given(text: Text, tmp_path: Path) -> None:
    def shown(one: Text, content: Any) -> str:
        written = one.decode(one.chat([HI, calls("f", ids="a"), result(content)]))
        return written.partition("response:f")[2] or written.partition("<|turn>tool\n")[2]

    assert (
        shown(text, '{"b": 1, "a": 2.0}') == '{value:<|"|>{"b": 1, "a": 2.0}<|"|>}<tool_response|>'
    )
    assert shown(text, {"b": 1, "a": [None, "x"]}) == '{a:[null,<|"|>x<|"|>],b:1}<tool_response|>'
    other = with_template(tmp_path, OTHER)
    assert shown(other, {"b": 1, "a": "é"}).startswith('{"b": 1, "a": "é"}fa<turn|>')
    with pytest.raises(UsageError, match="not JSON"):
        shown(other, {"a": object()})


def test_braces_of_templates_are_text_in_everything_that_is_shown(any_text: Text) -> None:
    braces = "{{ 7 * 7 }}{% if %}{# x #}}}{{"
    schema = {"type": "object", "properties": {"a": {"type": "string", "description": braces}}}
    tool = {"name": "f", "description": braces, "parameters": schema}
    messages = [
        {"role": "user", "content": braces},
        calls("f", arguments={"a": braces}, content=braces, ids="a"),
        result(braces, tool_call_id="a"),
    ]
    declares = 2 if any_text.chat([HI], [tool]) != any_text.chat([HI]) else 0
    assert any_text.decode(any_text.chat(messages, [tool])).count(braces) == 4 + declares


def test_a_thought_is_opened_after_a_result_and_shown_until_the_turn_ends(text: Text) -> None:
    thought = {"reasoning": "I use f."}
    turn = [HI, calls("f", ids="a") | thought, result("so", tool_call_id="a")]

    def shown(*more: Message, thinking: bool = True) -> str:
        return text.decode(text.chat([*turn, *more], enable_thinking=thinking))

    called = "<|channel>thought\nI use f.\n<channel|><|tool_call>call:f{}<tool_call|>"
    answered = '<|tool_response>response:f{value:<|"|>so<|"|>}<tool_response|>'
    assert shown().endswith(f"<|turn>model\n{called}{answered}<|channel>thought\n")
    assert shown(thinking=False).endswith(f"<|turn>model\n{called}{answered}")
    later = shown(DONE, HI)
    assert "I use f." not in later
    assert f"<|turn>model\n<|tool_call>call:f{{}}<tool_call|>{answered}Done.<turn|>" in later


def test_a_template_without_a_role_for_tools_shows_their_results_with_the_call(
    tmp_path: Path,
) -> None:
    unknown = FIRST.replace("tool_responses", "responses")  # such a template shows them its own way
    first = with_template(tmp_path, unknown)
    written = first.decode(first.chat([HI, calls("f", ids="1"), result("so")]))
    assert "<|turn>tool\nso<turn|>\n" in written


def test_a_prompt_opens_the_models_turn_if_the_template_forgets_it(tmp_path: Path) -> None:
    forgets = "{%- if add_generation_prompt and not messages[-1].content %}"
    opens = "{%- if add_generation_prompt and messages[-1].role == 'user' %}"
    turn = "{{ '<|turn>model\n' }}{% endif %}"
    start = FIRST[: FIRST.rindex("{%- if not messages")]
    for condition, ending in ((opens, "<|turn>model\n"), (forgets, "")):
        model = with_template(tmp_path, f"{start}{condition}{turn}")
        written = model.decode(model.chat([HI, {"role": "system", "content": "Well."}]))
        assert written.endswith(f"Well.<turn|>\n{ending}")


def some(rng: np.random.Generator, *choices: Any) -> Any:
    return choices[rng.integers(len(choices))]


class RandomTalk:
    """Random lists of messages, most of them nearly right; every text in them is unique."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self.texts: list[str] = []

    def text(self) -> str:
        self.texts.append(f"w{len(self.texts)}w")
        return self.texts[-1]

    def content(self, role: str) -> Any:
        pick = self._rng.random()
        if pick < 0.02:
            return some(self._rng, None, 5, {"type": "text"}, [5], [None], object(), b"x", [[]])
        if role == "tool" and pick < 0.3:
            return {"k": self.text(), "l": [self.text(), {"m": None}]}
        return self.text() if pick < 0.8 else parts(*(self.text() for _ in range(2)))

    def call(self, number: int) -> Any:
        name = some(self._rng, "f", "g", "g.h")
        arguments = some(self._rng, None, "{}", "{broken", {"a": 5}, '{"a": 1}', {})
        if arguments == {"a": 5}:
            arguments = {"a": self.text()}
        call = {"type": "function", "function": {"name": name, "arguments": arguments}}
        if self._rng.random() < 0.7:
            call["id"] = some(self._rng, "a", "b", f"c{number}", f"c{number}", f"c{number}")
        if self._rng.random() < 0.02:
            call = some(self._rng, {}, None, {"function": {"name": ""}}, {"id": 5}, [call])
        return call

    def messages(self) -> list[Any]:
        self.texts.clear()
        found: list[Any] = []
        for _ in range(self._rng.integers(1, 5)):
            role = some(self._rng, "user", "user", "system", "model", "assistant")
            found.append({"role": role, "content": self.content(role)})
            if self._rng.random() < 0.5:
                made = [self.call(number) for number in range(self._rng.integers(1, 4))]
                found.append({"role": "assistant", "content": self.content(""), "tool_calls": made})
                results = [self.result(call) for call in made]
                self._rng.shuffle(results)
                found += results
            if self._rng.random() < 0.04:
                at = self._rng.integers(len(found))
                found.insert(at, some(self._rng, None, {}, result("x"), ["Hi"], "Hi"))
        return found

    def result(self, call: Any) -> Message:
        made: Message = {"role": "tool", "content": self.content("tool")}
        known = call if isinstance(call, dict) else {}
        if known.get("id") and self._rng.random() < 0.8:
            made["tool_call_id"] = known["id"]
        elif self._rng.random() < 0.5:
            made["name"] = known.get("function", {}).get("name")
        return made


def accepted(take: Callable[[list[Any]], Any], messages: list[Any]) -> Any:
    try:
        return take(messages)
    except UsageError as error:
        said = str(error)
    assert len(said.splitlines()) == 1
    return None


def test_10000_random_conversations_are_shown_whole_or_refused(rng: np.random.Generator) -> None:
    talk, shown = RandomTalk(rng), 0
    for _ in range(10_000):
        messages = talk.messages()
        found = accepted(normalized, messages)
        if found is not None:
            check_messages(found)
            whole = str(found)
            assert all(whole.count(one) == 1 for one in talk.texts), messages
            shown += 1
    assert 1000 < shown < 9000


def test_random_conversations_are_shown_whole_by_every_template(
    any_text: Text, rng: np.random.Generator
) -> None:
    talk = RandomTalk(rng)
    for _ in range(60):
        messages = talk.messages()
        tokens = accepted(any_text.chat, messages)
        if tokens is not None:
            written = any_text.decode(tokens)
            assert all(written.count(one) == 1 for one in talk.texts), (messages, written)
