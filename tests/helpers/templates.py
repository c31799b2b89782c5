"""Chat templates that differ in how they take tools: Google's, by generation, in few words; others.

What Google's do: the first know no role "tool"; the next read results after the message with the
calls, but close a turn after any text; the newest continue the turn.
"""

from __future__ import annotations

from pathlib import Path

from helpers.small_files import TEMPLATE, WRITTEN, small_files
from mlx_gemma_mtp.text.tokenizer import Text

CALLS = (
    "{%- for call in m.tool_calls or [] -%}"
    "{{ '<|tool_call>call:' + call.function.name + '{' }}"
    "{%- for key, value in call.function.arguments | dictsort -%}{{ key }}:{{ value }},"
    "{%- endfor -%}{{ '}<tool_call|>' }}"
    "{%- endfor -%}"
)
RESPONSES = (
    "{%- for r in m.get('tool_responses') or [] -%}"
    "{{ '<|tool_response>response:' + r.name + '{' }}{{ r.response }}{{ '}<tool_response|>' }}"
    "{%- endfor -%}"
)
TURN = "{{ '<|turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' }}"
END = "{{ '<turn|>\\n' }}"

FIRST = (
    "{%- for m in messages -%}" + TURN + CALLS + RESPONSES + "{{- m.content | trim -}}"
    "{%- if not m.tool_responses or m.content -%}" + END + "{%- endif -%}{%- endfor -%}"
    "{%- if not messages[-1].tool_responses or messages[-1].content -%}"
    "{{ '<|turn>model\\n' if add_generation_prompt }}{%- endif -%}"
)
NEXT = (
    "{%- set s = namespace(before='') -%}"
    "{%- for m in messages if m.role != 'tool' -%}"
    "{%- if not (s.before == 'assistant' and m.role == 'assistant') -%}"
    + TURN
    + "{%- endif -%}"
    + CALLS
    + RESPONSES
    + "{{- m.content | trim -}}"
    "{%- if not m.tool_responses or m.content -%}" + END + "{%- endif -%}"
    "{%- set s.before = m.role -%}{%- endfor -%}"
    "{{ '<|turn>model\\n' if add_generation_prompt and messages[-1].role == 'user' }}"
)
NEWEST = (
    "{%- set s = namespace(open=false, answered=false) -%}"
    "{%- for m in messages if m.role != 'tool' -%}"
    "{%- if s.open and m.role != 'assistant' -%}" + END + "{%- endif -%}"
    "{%- if not (s.open and m.role == 'assistant') -%}" + TURN + "{%- endif -%}"
    "{%- set s.open = m.role == 'assistant' -%}"
    + CALLS
    + RESPONSES
    + "{%- set text = m.content | trim -%}{{- text -}}"
    "{%- set s.answered = m.tool_responses and not text -%}"
    "{%- if not s.open -%}" + END + "{%- endif -%}{%- endfor -%}"
    "{%- if s.open and not s.answered -%}" + END + "{%- endif -%}"
    "{%- if add_generation_prompt and not s.answered -%}{{ '<|turn>model\\n' }}{%- endif -%}"
)
# As models of other families have them: a turn for each message, results as text.
OTHER = (
    "{%- for m in messages -%}"
    + TURN
    + "{%- if m.content is not string -%}{{ raise_exception('no text') }}{%- endif -%}"
    "{{ m.content }}{%- if m.role == 'tool' -%}{{ m.name }}{{ m.tool_call_id }}{%- endif -%}"
    + CALLS
    + END
    + "{%- endfor -%}{{ '<|turn>model\\n' if add_generation_prompt }}"
)

TEMPLATES = {
    "demo": WRITTEN,
    "first": FIRST,
    "next": NEXT,
    "newest": NEWEST,
    "other": OTHER,
}


def with_template(folder: Path, written: str) -> Text:
    """Return the demo's tokenizer with another chat template."""
    (small_files(folder) / TEMPLATE).write_text(written)
    return Text(folder)
