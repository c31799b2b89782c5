"""The results of tools in a conversation, as each generation of Google's templates takes them."""

import copy
from pathlib import Path
from typing import Any

import pytest

from helpers.small_files import TEMPLATE, small_files
from mlx_gemma_mtp.errors import UsageError
from mlx_gemma_mtp.text.messages import Message
from mlx_gemma_mtp.text.tokenizer import Text

FUNCTION = {"name": "f", "arguments": {}}
CALL = {"function": FUNCTION}
CALLED: Message = {"role": "assistant", "content": "", "tool_calls": [{"id": "1", **CALL}]}
RESULT: Message = {"role": "tool", "tool_call_id": "1", "content": "so"}


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def with_template(folder: Path, written: str) -> Text:
    (small_files(folder) / TEMPLATE).write_text(written)
    return Text(folder)


# What Google's templates do with the results of tools, in few words.
GOOGLE = """{%- for m in messages -%}{%- if m.role != 'tool' -%}
{%- for call in m.tool_calls or [] -%}call:{{ call.function.name }}{%- endfor -%}
{%- if m.get('tool_responses') -%}
{%- for r in m.tool_responses -%}response:{{ r.name }}{{ r.response }}{%- endfor -%}
{%- elif m.get('tool_calls') -%}
{%- for r in messages[loop.index:] -%}response:{{ r.tool_call_id }}
{%- if r.content is string -%}{{ r.content }}
{%- else -%}{%- for part in r.content -%}{{ part.get('text') }}{%- endfor -%}{%- endif -%}
{%- endfor -%}{%- endif -%}{%- endif -%}{%- endfor -%}"""


def test_results_of_tools_may_be_mappings_with_any_template(tmp_path: Path) -> None:
    google = with_template(tmp_path, GOOGLE)

    def shown(*contents: Any) -> str:
        calls = [{"id": str(n), **CALL} for n in range(len(contents))]
        results = [
            {"role": "tool", "tool_call_id": str(n), "content": content}
            for n, content in enumerate(contents)
        ]
        messages = [user("Hi"), {"role": "assistant", "tool_calls": calls}, *results]
        before = copy.deepcopy(messages)
        written = google.decode(google.chat(messages))
        assert messages == before
        return written.removeprefix("<bos>" + "call:f" * len(contents))

    assert shown({"a": 1}) == "response:f{'a': 1}"
    assert shown(
        "so", {"a": 1}, [{"type": "text", "text": "it"}, {"type": "text", "text": "is"}]
    ) == ("response:fsoresponse:f{'a': 1}response:fitis")
    assert shown("so") == "response:0so"
    result = {"role": "tool", "name": "g", "content": {"a": 1}}  # without ids the name counts
    messages = [user("Hi"), {"role": "assistant", "tool_calls": [CALL]}, result]
    assert google.decode(google.chat(messages)) == "<bos>call:fresponse:g{'a': 1}"


def test_a_result_without_an_id_has_the_name_of_the_call_in_its_place(tmp_path: Path) -> None:
    google = with_template(tmp_path, GOOGLE)
    calls = [{"function": {"name": name, "arguments": {}}} for name in "fg"]
    results = [{"role": "tool", "content": content} for content in ("1", "2", "3")]
    messages = [user("Hi"), {"role": "assistant", "tool_calls": calls}, *results]
    shown = "<bos>call:fcall:gresponse:f1response:g2response:g3"
    assert google.decode(google.chat(messages)) == shown


def test_the_result_of_a_tool_must_follow_its_call(text: Text) -> None:
    called = [user("Hi"), CALLED]
    text.chat([*called, RESULT, RESULT, assistant("It is so.")])
    for before in ([], [user("Hi")], [user("Hi"), assistant("Hm.")], [*called, user("Wait.")]):
        with pytest.raises(UsageError, match=rf"message {len(before) + 1}: the result of a tool"):
            text.chat([*before, RESULT])


# What Google's first templates do, in few words: they don't know the role "tool".
FIRST = """{%- for m in messages -%}
{{- '<|turn>' + m.role + '\n' -}}
{%- for call in m.tool_calls or [] -%}call:{{ call.function.name }}{%- endfor -%}
{%- for r in m.tool_responses or [] -%}response:{{ r.name }}{{ r.response }}{%- endfor -%}
{{- m.content -}}
{%- if not m.tool_responses or m.content %}{{ '<turn|>\n' }}{% endif -%}
{%- endfor -%}"""


def test_a_template_without_a_role_for_tools_shows_their_results_with_the_call(
    tmp_path: Path,
) -> None:
    first = with_template(tmp_path, FIRST)

    def shown(*messages: Message) -> str:
        return first.decode(first.chat([user("Hi"), *messages])).partition("Hi<turn|>\n")[2]

    called = "<|turn>assistant\ncall:fresponse:fso"
    assert shown(CALLED, RESULT) == called
    answer = "It is so.<turn|>\n"
    assert shown(CALLED, RESULT, assistant("It is so."), user("Ah")) == (
        f"{called}{answer}<|turn>user\nAh<turn|>\n"
    )
    assert shown(CALLED, {**RESULT, "content": {"a": 1}}) == called.replace("so", "{'a': 1}")
    assert shown(CALLED | {"content": "Let me see."}, RESULT, CALLED, RESULT) == (
        f"<|turn>assistant\nLet me see.<turn|>\n{called}{called}"
    )
    unknown = FIRST.replace("tool_responses", "responses")  # such a template shows them its own way
    first = with_template(tmp_path, unknown)
    assert shown(CALLED, RESULT).endswith("<|turn>tool\nso<turn|>\n")


def test_a_prompt_opens_the_models_turn_if_the_template_forgets_it(tmp_path: Path) -> None:
    forgets = "{%- if add_generation_prompt and not messages[-1].content %}"
    opens = "{%- if add_generation_prompt and messages[-1].role == 'user' %}"
    turn = "{{ '<|turn>model\n' }}{% endif %}"
    for condition, ending in ((opens, "<|turn>model\n"), (forgets, "")):
        template = f"{FIRST}{condition}{turn}"
        model = with_template(tmp_path, template)
        written = model.decode(model.chat([user("Hi"), {"role": "system", "content": "Well."}]))
        assert written.endswith(f"Well.<turn|>\n{ending}")
