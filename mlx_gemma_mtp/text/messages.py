"""A conversation as a list of messages: which there are, and what the model is shown of them.

Plain dictionaries, as chat templates take them. Knows nothing of tokens or templates.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mlx_gemma_mtp.errors import UsageError

Message = dict[str, Any]
Prompt = str | Sequence[int] | Sequence[Message]

MODEL_ROLES = ("assistant", "model")
ROLES = ("system", "developer", "user", *MODEL_ROLES, "tool")
# A thought that is still in front of what a model said, as its text and markers decode.
LEADING_THOUGHTS = re.compile(
    r"\A(?:\s*<\|channel>(?:thought)?\n.*?(?:<channel\|>|\Z))+", re.DOTALL
)


def check_messages(messages: Sequence[Any]) -> None:
    """Raise UsageError unless a model can be shown all of these messages.

    Chat templates take much that they do not know and leave it out without a word.
    """
    if not messages:
        raise UsageError("there are no messages")
    for number, message in enumerate(messages, 1):
        wrong = _wrong(message)
        if wrong:
            raise UsageError(f"message {number}: {wrong}")


def _wrong(message: Any) -> str | None:
    if not isinstance(message, Mapping):
        return 'it is not an object like {"role": "user", "content": "…"}'
    role, content, calls = (message.get(key) for key in ("role", "content", "tool_calls"))
    if role not in ROLES:
        return f"its role is {role!r}, not one of {', '.join(ROLES)}"
    if calls is not None and not (isinstance(calls, list) and all(map(_is_call, calls))):
        return 'its tool_calls are not a list of {"function": {"name", "arguments"}}'
    if content is None and calls and role in MODEL_ROLES:
        return None
    if isinstance(content, Mapping) and role == "tool":
        return None
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list) or not all(map(_is_text, parts)):
        return 'its content is neither text nor a list of {"type": "text", "text": "…"}'
    return None


def _is_call(call: Any) -> bool:
    function = call.get("function") if isinstance(call, Mapping) else None
    return isinstance(function, Mapping) and isinstance(function.get("name"), str)


def _is_text(part: Any) -> bool:
    fits = isinstance(part, Mapping) and part.get("type") == "text"
    return fits and isinstance(part.get("text"), str)


def without_thoughts(message: Message) -> Message:
    """A message without the thoughts that a model's words begin with."""
    if message["role"] not in MODEL_ROLES:
        return message
    return {key: _said(item) if key == "content" else item for key, item in message.items()}


def _said(content: Any) -> Any:
    """A content, as text or as a list of parts, without the thoughts in front."""
    if isinstance(content, str):
        return LEADING_THOUGHTS.sub("", content, count=1)
    if content:
        return [{**content[0], "text": _said(content[0]["text"])}, *content[1:]]
    return content


def with_system(prompt: str | Sequence[Message], system: str | None) -> str | Sequence[Message]:
    """A prompt behind a system turn, where there is one."""
    if not system:
        return prompt
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return [{"role": "system", "content": system}, *turns]
