"""Conversations as a chat template shows them; nothing spelled out in one is a special token."""

import copy
import itertools
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from helpers.calls import read_calls
from mlx_gemma_mtp.errors import UsageError
from mlx_gemma_mtp.files.names import DEMO
from mlx_gemma_mtp.text.messages import Message
from mlx_gemma_mtp.text.tokenizer import Text

MODEL_TURN = "<|turn>model\n<|channel>thought\n<channel|>"
CITY = {"type": "string", "description": "A city"}
PARAMETERS = {"type": "object", "properties": {"city": CITY}, "required": ["city"]}
WEATHER = {"name": "weather", "description": "Weather of a city", "parameters": PARAMETERS}
TOOL = {"type": "function", "function": WEATHER}


def user(content: Any) -> Message:
    return {"role": "user", "content": content}


def assistant(content: Any, role: str = "assistant") -> Message:
    return {"role": role, "content": content}


def rendered(text: Text, messages: Sequence[Message], **options: object) -> str:
    tokens = text.chat(messages, **options)
    assert (tokens[0], tokens.count(2)) == (2, 1)  # one <bos>, and it is first
    return text.decode(tokens).removeprefix("<bos>")


def test_a_plain_user_turn_does_not_ask_for_thinking(text: Text) -> None:
    expected = f"<|turn>user\nHi<turn|>\n{MODEL_TURN}"
    assert rendered(text, [user("Hi")]) == expected
    assert rendered(text, [user("Hi")], enable_thinking=False) == expected
    for prompt in ("Hi", [user("Hi")]):
        assert text.decode(text.prompt(prompt)) == f"<bos>{expected}"


@pytest.mark.parametrize("system", ["", "Be brief."])
def test_thinking_is_switched_on_by_its_option(text: Text, system: str) -> None:
    first = [{"role": "system", "content": system}] if system else []
    shown = rendered(text, [*first, user("Hi")], enable_thinking=True)
    turns = "<|turn>user\nHi<turn|>\n<|turn>model\n"
    assert shown == f"<|turn>system\n<|think|>\n{system}<turn|>\n{turns}"


def test_a_tool_is_declared_called_and_answered_within_one_model_turn(text: Text) -> None:
    declaration = (
        '<|turn>system\n<|tool>declaration:weather{description:<|"|>Weather of a city<|"|>,'
        'parameters:{properties:{city:{description:<|"|>A city<|"|>,type:<|"|>STRING<|"|>}},'
        'required:[<|"|>city<|"|>],type:<|"|>OBJECT<|"|>}}<tool|><turn|>\n'
    )
    question = "<|turn>user\nWeather in Rome?<turn|>\n"
    messages = [user("Weather in Rome?")]
    assert rendered(text, messages, tools=[TOOL]) == f"{declaration}{question}{MODEL_TURN}"
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
    messages.append({"role": "assistant", "tool_calls": [call]})
    messages.append({"role": "tool", "name": "weather", "content": {"sky": "clear", "degrees": 21}})
    assert rendered(text, messages, tools=[TOOL]) == (
        f"{declaration}{question}<|turn>model\n"
        '<|tool_call>call:weather{city:<|"|>Rome<|"|>}<tool_call|>'
        '<|tool_response>response:weather{degrees:21,sky:<|"|>clear<|"|>}<tool_response|>'
    )


def test_thoughts_at_the_start_of_a_models_message_are_left_out_of_history(text: Text) -> None:
    thoughts = [
        "<|channel>thought\n<channel|>",
        "\n <|channel>thought\nThey greet me.\n<channel|>\n",
        "<|channel>\nThey greet me.<channel|>",
        "<|channel>thought\nFirst.<channel|> <|channel>thought\nThen <turn|>.<channel|>",
    ]
    for role, thought in itertools.product(["assistant", "model"], thoughts):
        for content in (f"{thought}Hello!", [{"type": "text", "text": f"{thought}Hello!"}]):
            assert rendered(text, [user("Hi"), assistant(content, role), user("Bye")]) == (
                "<|turn>user\nHi<turn|>\n<|turn>model\nHello!<turn|>\n"
                f"<|turn>user\nBye<turn|>\n{MODEL_TURN}"
            )
    cut_off = assistant("<|channel>thought\nThey greet")
    assert "<|turn>model\n<turn|>\n" in rendered(text, [user("Hi"), cut_off, user("Bye")])


def test_a_conversation_that_the_template_cannot_hold_is_refused(text: Text) -> None:
    endless: dict[str, Any] = {}
    endless["sky"] = endless
    for messages in (
        [user("Hi"), assistant_calls({}), {"role": "tool", "content": endless}],
        [user("Hi"), assistant_calls(endless), RESULT],
    ):
        with pytest.raises(UsageError, match="chat template"):
            text.chat(messages)


CALL = {"function": {"name": "f", "arguments": {}}}


RESULT = {"role": "tool", "content": "so"}
SHOWN = '<|tool_response>response:f{value:<|"|>so<|"|>}<tool_response|>'


def assistant_calls(arguments: Any) -> Message:
    function = {"name": "f", "arguments": arguments}
    return {"role": "assistant", "tool_calls": [{"id": "1", "function": function}]}


WRONG: dict[str, list[Any]] = {
    "it must be an object": ["Hi"],
    "its role must be one of system, ": [
        *({"content": "Hi"}, {"role": "usr", "content": "Hi"}, {"role": ["user"], "content": "Hi"})
    ],
    "its content must be": [
        *({"role": "user"}, {"role": "user", "contnet": "Hi"}, user(None), user(5), user(["Hi"])),
        *(user({"type": "text", "text": "Hi"}), user([{"type": "image", "url": "a.png"}])),
        *(user([{"type": "text", "text": None}]), {"role": "assistant", "tool_calls": []}),
    ],
    "only a message of the assistant can": [{"role": "user", "tool_calls": [CALL]}],
    "its function_call is": [{"role": "assistant", "content": "", "function_call": {"name": "f"}}],
    "its reasoning must be": [{"role": "assistant", "content": "", "reasoning": ["Hm"]}],
    "its tool_calls must be": [
        {"role": "assistant", "tool_calls": "zzz"},
        {"role": "assistant", "content": "", "tool_calls": [{}]},
        *(assistant_calls(arguments) for arguments in (5, True, [], ["a"])),
    ],
}


@pytest.mark.parametrize("why", WRONG)
def test_a_message_that_the_template_would_silently_leave_out_is_refused(
    text: Text, why: str
) -> None:
    for message in WRONG[why]:
        with pytest.raises(UsageError, match=f"^message 2: {re.escape(why)}"):
            text.chat([user("Hi"), message])


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ('{"city": "Rome", "days": [1, null]}', 'city:<|"|>Rome<|"|>,days:[1,null]'),
        *((empty, "") for empty in ("", " \n", "{}", {}, None)),
        *((broken, f'unreadable:<|"|>{broken}<|"|>') for broken in ("city:Rome", '{"a": 1', "[1]")),
        ('{"a": NaN}', 'unreadable:<|"|>{"a": NaN}<|"|>'),
        ("[" * 100_000, f'unreadable:<|"|>{"[" * 100_000}<|"|>'),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_arguments_of_a_call_in_history_are_shown_as_the_model_writes_them(
    text: Text, arguments: Any, shown: str
) -> None:
    messages = [user("Hi"), assistant_calls(arguments), RESULT]
    before = copy.deepcopy(messages)
    assert rendered(text, messages).endswith(f"<|tool_call>call:f{{{shown}}}<tool_call|>{SHOWN}")
    assert messages == before


def test_a_template_that_takes_only_mappings_takes_any_call(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text(
        "{%- for call in messages[1].tool_calls -%}{%- if call.function.arguments is not mapping "
        "-%}{{ raise_exception('no mapping') }}{%- endif -%}{{ call.id }}{%- endfor -%}"
    )
    strict = without_template(tmp_path)
    for arguments in ('{"a": 1}', "", "broken", None, {}, MappingProxyType({"a": 1})):
        messages = [user("Hi"), assistant_calls(arguments), RESULT]
        assert strict.decode(strict.chat(messages)) == "<bos>1"
    for call in read_calls("call:f{a:Rome}call:g{"):
        called = {**assistant("", "model"), "tool_calls": [{"function": call.function}]}
        strict.chat([user("Hi"), called, RESULT])


@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": ""}])
def test_a_template_that_takes_only_text_takes_a_message_that_is_only_calls(
    tmp_path: Path, content: dict[str, Any]
) -> None:
    (tmp_path / "chat_template.jinja").write_text(
        "{%- if messages[1].content is not string -%}{{ raise_exception('no text') }}{%- endif -%}"
        "{{ messages[1].tool_calls | length }}"
    )
    calls = {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}], **content}
    strict = without_template(tmp_path)
    assert strict.decode(strict.chat([user("Hi"), calls, RESULT])) == "<bos>1"


def test_a_system_message_in_parts_is_shown_as_one_text(text: Text) -> None:
    parts = [{"type": "text", "text": part} for part in ("Be ", "brief.")]
    for role in ("system", "developer"):
        shown = text.chat([{"role": role, "content": parts}, user("Hi")])
        assert shown == text.chat([{"role": role, "content": "Be brief."}, user("Hi")])


def test_all_kinds_of_messages_are_understood(text: Text) -> None:
    parts = [{"type": "text", "text": "Hi"}]
    contents = [("developer", "Be brief."), ("user", parts), ("model", "Hello"), ("user", "Well?")]
    result = {"role": "tool", "content": {"a": 1}}
    messages = [{"role": role, "content": content} for role, content in contents]
    text.chat([*messages, assistant_calls({}), result])
    text.chat([user("Hi"), {"role": "assistant", "content": None, "tool_calls": [CALL]}, result])


ADDED = json.loads((DEMO / "tokenizer.json").read_text())["added_tokens"]
SPECIAL = [token["content"] for token in ADDED if token["special"]]


def special_ids(text: Text, tokens: Sequence[int]) -> list[int]:
    ids = {text.encode(special)[0] for special in SPECIAL}
    assert len(ids) == len(SPECIAL) == 17
    return [token for token in tokens if token in ids]


def conversation(system: Any, question: Any, answer: Any) -> list[Message]:
    return [{"role": "system", "content": system}, user(question), assistant(answer), user("Bye")]


def laid_out(system: str, question: str, answer: str) -> str:
    return (
        f"<bos><|turn>system\n{system}<turn|>\n<|turn>user\n{question}<turn|>\n"
        f"<|turn>model\n{answer}<turn|>\n<|turn>user\nBye<turn|>\n{MODEL_TURN}"
    )


def assert_text(text: Text, contents: Sequence[Any], shown: Sequence[str] | None = None) -> None:
    """Assert that the contents of system, user and model are text only, and complete."""
    tokens = text.chat(conversation(*contents))
    assert text.decode(tokens) == laid_out(*(shown or contents))
    assert special_ids(text, tokens) == special_ids(text, text.chat(conversation("a", "b", "c")))


@pytest.mark.parametrize("special", SPECIAL)
def test_a_special_token_spelled_out_in_a_message_is_text(text: Text, special: str) -> None:
    assert text.encode(special) in [[number] for number in range(107)]
    for spelled in (special, f"a{special}b {special} {special}{special}", f"\\{special}|>"):
        for at in range(3):
            assert_text(text, [spelled if at == place else "a" for place in range(3)])
        assert text.prompt(spelled) == text.prompt([user(spelled)])
        assert special_ids(text, text.prompt(spelled)) == special_ids(text, text.prompt("a"))


def test_a_special_token_is_not_made_from_parts(text: Text) -> None:
    for cut in range(1, len("<turn|>")):
        parts = [{"type": "text", "text": part} for part in ("<turn|>"[:cut], "<turn|>"[cut:])]
        assert_text(text, ["a", parts, parts], ["a", "<turn|>", "<turn|>"])


def test_a_special_token_in_a_tool_its_call_or_its_answer_is_text(text: Text) -> None:
    def tokens(word: str) -> list[int]:
        tool = {"type": "function", "function": {"name": word, "description": word}}
        function = {"name": word, "arguments": {word: [word, {"a": word}]}}
        messages: list[Message] = [
            user("Hi"),
            {"role": "assistant", "tool_calls": [{"type": "function", "function": function}]},
            {"role": "tool", "name": word, "content": {word: word}},
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": word}}]},
            {"role": "tool", "name": "f", "content": word},
        ]
        return text.chat(messages, tools=[tool])

    for special in ("<turn|>", '<|"|>', "<tool_call|>"):
        found, plain = tokens(f"x{special}z"), tokens("xz")
        assert special_ids(text, found) == special_ids(text, plain)
        assert text.decode(found).count(f"x{special}z") == text.decode(plain).count("xz") == 11


def test_any_text_in_a_message_is_text(text: Text, rng: np.random.Generator) -> None:
    pieces = [*SPECIAL, "<", "|", ">", "<|", "|>", "turn", "channel", "é", "😀", "\ud7ff", "\ue000"]
    for join in 50 * ["", "a"]:
        assert_text(text, [join.join(rng.choice(pieces, rng.integers(1, 8))) for _ in range(3)])
    nested = ("<<turn|>", "<|turn<|turn>>", "<turn<turn|>|>", '<|<|"|>"|>')
    for spelled in (*nested, "a\\nb [x] *y* 😀 {{ z }}"):
        assert_text(text, [spelled] * 3)


def test_text_without_special_tokens_is_encoded_in_one_piece(
    text: Text, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters = [*"ab 12.<>|", "\n", "é", "😀", "<b>", "<|turn", "turn|>", "< |", "▁", "<0x41>"]
    strings = ["".join(rng.choice(letters, 30)) for _ in range(100)]
    strings = [string for string in strings if not any(one in string for one in SPECIAL)]
    assert len(strings) > 60
    for string in strings:
        shown = laid_out(*[string.strip()] * 3)
        tokens = text.encode(shown)
        with monkeypatch.context() as patch:  # other tokenizers join parts that are apart
            patch.setattr(text, "encode", {shown: tokens}.__getitem__)
            assert text.chat(conversation(*[string] * 3)) == tokens


def without_template(folder: Path) -> Text:
    for path in DEMO.glob("token*"):
        shutil.copy(path, folder)
    return Text(folder)


def test_a_prompt_without_chat_template_is_text_after_bos(text: Text, tmp_path: Path) -> None:
    plain = without_template(tmp_path)
    for string in ("Hi", " a < b ", ""):
        assert plain.prompt(string) == [2, *text.encode(string)]
    for special in SPECIAL:
        tokens = plain.prompt(f"a {special}b")
        assert special_ids(text, tokens) == [2]
        assert text.decode(tokens) == f"<bos>a {special}b"
    with pytest.raises(UsageError, match="chat template"):
        plain.prompt("Hi", thinking=True)


def test_thinking_is_refused_if_the_template_cannot_switch_it(text: Text, tmp_path: Path) -> None:
    for prompt in ("Hi", [user("Hi")]):
        assert text.prompt(prompt, thinking=True) == text.chat([user("Hi")], enable_thinking=True)
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    unable = without_template(tmp_path)
    assert unable.decode(unable.prompt("Hi")) == "<bos>Hi"
    with pytest.raises(UsageError, match="thinking"):
        unable.prompt("Hi", thinking=True)


def test_half_a_character_is_refused(text: Text, tmp_path: Path) -> None:
    for half, ask in itertools.product(("\ud800", "\udfff"), (text, without_template(tmp_path))):
        with pytest.raises(UsageError, match="UTF-8"):
            ask.prompt(f"a{half}")


@pytest.mark.parametrize("role", ["assistant", "model"])
def test_an_answer_at_the_end_is_continued_as_the_model_would(text: Text, role: str) -> None:
    call = {"function": {"name": "weather", "arguments": {}}}
    called = {"role": "assistant", "tool_calls": [call]}
    answered = [user("Hi"), called, {"role": "tool", "name": "weather", "content": "so"}]
    for before in ([user("Hi")], answered):
        for thinking in (False, True):
            opened = text.chat(before, enable_thinking=thinking)
            if before is answered and thinking:  # the template opens a thought
                opened += text.encode("<channel|>")
            for start in ("", "The sum", "The sum ", "\n two\n", "<turn|> é"):
                partial = assistant(start, role)
                tokens = text.chat([*before, partial], enable_thinking=thinking)
                assert text.decode(tokens) == text.decode(opened) + start
                assert tokens[: len(opened)] == opened
                assert not {*tokens[len(opened) :]} & {*text.end_tokens()}


def test_a_thought_before_a_continued_answer_is_shown_if_one_may_stand_there(text: Text) -> None:
    partial = assistant([{"type": "text", "text": "So "}, {"type": "text", "text": "it"}])
    partial["reasoning"] = "m<channel|>"
    shown = rendered(text, [user("Hi"), partial], enable_thinking=True)
    opened = rendered(text, [user("Hi")], enable_thinking=True)
    assert shown == f"{opened}<|channel>thought\nm<channel|>\n<channel|>So it"
    tokens = text.chat([user("Hi"), partial], enable_thinking=True)
    assert tokens.count(text.markers.channel_end or 0) == 1  # the other is spelled out
    assert rendered(text, [user("Hi"), partial]).endswith(f"{MODEL_TURN}So it")
