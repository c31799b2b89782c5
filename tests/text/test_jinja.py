"""Chat templates are rendered as Transformers renders them, and refused where it refuses them."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from helpers import templates
from mlx_gemma_mtp.errors import UsageError, one_line
from mlx_gemma_mtp.text.template import render
from mlx_gemma_mtp.text.tokenizer import Text

LINES = """
  {# a comment #}
{% for m in messages %}
    {% if loop.last %}
  {{ m.content }}
    {% endif %}
{% endfor %}

"""
TEMPLATES = {
    **templates.TEMPLATES,
    "break": "{% for m in messages %}{{ m.role }}{% if m.role == 'user' %}{% break %}{% endif %}-\n"
    "{% endfor %}",
    "continue": "{% for m in messages %}{% if m.role == 'user' %}{% continue %}{% endif %}\n"
    "{{ m.role }}\n{% endfor %}.",
    "lines": LINES,
    "json": "{{ messages | tojson }}{{ tools | tojson(indent=2, sort_keys=true) }}"
    "{{ {'<': \"'&é\"} | tojson(ensure_ascii=true, separators=(',', ':')) }}",
    "date": "{{ strftime_now('%Y %%') }}",
    "namespace": "{% set n = namespace(at=0, self=1) %}{% for m in messages %}"
    "{% set n.at = n.at + 1 %}{% endfor %}{{ n.at }}{{ n.self }}{{ dict(a=n.at) }}",
    "what is none": "{{ tools is none }}{{ documents is none }}{{ tools is defined }}"
    "{{ add_generation_prompt is defined and add_generation_prompt }}{{ nothing is defined }}",
    "thought": "{% for m in messages %}{{ m.thinking }}|{{ m.reasoning_content }}|"
    "{{ m.reasoning }}|{{ m.keys() | list }}{% endfor %}",
    "generation": "{% set a = 1 %}{% for m in messages %}{% generation %}{% set a = 2 %}{{ a }}\n"
    "  {{- m.content }}{{ loop.index }}  \n{% endgeneration %}{{ a }}{% endfor %}",
    "macro": "{% macro one(m, x=2) %}{{ m.role }}{{ x }}{{ caller() if caller }}{% endmacro %}"
    "{{ one(messages[0]) }}{% call one(messages[-1], 3) %}!{% endcall %}",
}
REFUSING = {
    "refusal": "{{ raise_exception('no ' ~ messages[0].role) }}",
    "missing": "{{ messages[0].nothing.more }}",
    "number": "{{ messages | length / 0 }}",
    "type": "{{ messages[0].content + 1 }}",
    "syntax": "{% for m in messages %}",
    "unknown filter": "{{ messages | shout }}",
    "a change of its input": "{{ messages.append(1) }}",
    "Python's inside": "{{ ''.__class__.__mro__ }}",
    "a method of Python's": "{{ namespace(__html__=1) }}",
    "a method, later": "{% set n = namespace() %}{% set n._a = 1 %}",
}
PIECES = (
    "Hi",
    "<b>&'\"",
    "é漢😀",
    "  two\n",
    "\n\n",
    "{{ x }}",
    "{% if %}",
    "",
    "<|turn>",
    "\u2028",
)
REASONING = ("reasoning", "thinking", "reasoning_content")


def conversation(rng: random.Random) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return messages of all kinds, and what a template is given with them."""

    def text() -> str:
        return " ".join(rng.choices(PIECES, k=rng.randint(0, 3)))

    def content() -> Any:
        parts = [{"type": "text", "text": text()} for _ in range(rng.randint(1, 2))]
        return rng.choice([text(), text(), parts])

    def thought() -> dict[str, Any]:
        return {name: rng.choice([text(), None]) for name in REASONING if rng.random() < 0.2}

    messages = [{"role": "system", "content": content()}] if rng.random() < 0.3 else []
    for number in range(rng.randint(1, 3)):
        messages.append({"role": "user", "content": content()})
        if rng.random() < 0.5:
            value = rng.choice([text(), rng.randint(-9, 9), rng.random(), None, True, [text()]])
            function = {"name": "f", "arguments": {text(): value}}
            call = {"id": str(number), "type": "function", "function": function}
            messages.append({"role": "assistant", "tool_calls": [call], **thought()})
            result = {"role": "tool", "tool_call_id": str(number), "content": content()}
            messages.append(rng.choice([result, result | {"name": "f"}]))
        messages.append({"role": "assistant", "content": content(), **thought()})
    function = {"name": "f", "description": text(), "parameters": {"type": "object"}}
    options: dict[str, Any] = {
        "tools": [{"type": "function", "function": function}],
        "enable_thinking": rng.random() < 0.5,
        "bos_token": "<bos>",
        "documents": [{"title": text(), "text": text()}],
        "add_generation_prompt": rng.random() < 0.5,
    }
    return messages, {name: options[name] for name in options if rng.random() < 0.6}


def by_transformers(
    template: str, messages: list[dict[str, Any]], options: dict[str, Any]
) -> tuple[str | None, str]:
    """Return what it renders, or None and why it refuses."""
    try:
        return render_jinja_template([messages], chat_template=template, **options)[0][0], ""
    except Exception as error:  # noqa: BLE001 - whatever it raises, we refuse
        return None, one_line(error)


@pytest.mark.parametrize("name", [*TEMPLATES, *REFUSING])
def test_a_template_is_rendered_as_transformers_renders_it(
    name: str, rng: np.random.Generator
) -> None:
    template = (TEMPLATES | REFUSING)[name]
    draw = random.Random(rng.bytes(8))
    rendered = 0
    for drawn in range(1000):  # one template renders 7% of these
        if drawn >= 40 and (rendered or name in REFUSING):
            break
        messages, options = conversation(draw)
        expected, reason = by_transformers(template, messages, options)
        if expected is not None:
            assert render(template, messages, **options) == expected
            rendered += 1
            continue
        with pytest.raises(UsageError) as refused:
            render(template, messages, **options)
        if "method" not in name:  # Transformers words these in another way
            assert reason in str(refused.value)
    assert rendered == 0 if name in REFUSING else rendered


def test_a_part_for_training_may_end_the_loop_that_it_is_in() -> None:
    template = "{% for m in messages %}{% generation %}{{ m }}{% break %}{% endgeneration %}"
    messages = [{"role": "user", "content": "Hi"}, {"role": "user", "content": "Ho"}]
    assert render(template + "{% endfor %}", messages) == str(messages[0])


def test_a_template_that_python_refuses_is_refused_in_one_line() -> None:
    with pytest.raises(UsageError, match=r"\Athe chat template refuses [^\n]*\Z"):
        render("{% break %}", [{"role": "user", "content": "Hi"}])


@pytest.mark.parametrize("value", [object(), b"text", np.int64(3), {1}])
def test_a_value_that_a_template_could_call_is_refused(text: Text, value: Any) -> None:
    message = {"role": "user", "content": "Hi", "extra": [{"a": value}]}
    with pytest.raises(UsageError, match=f"convert the {type(value).__name__}"):
        text.chat([message])
