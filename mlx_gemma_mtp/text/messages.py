"""A conversation as a list of messages: what is allowed, and which parts the model gets to see.

Plain dictionaries, as chat templates take them. Knows nothing of tokens and templates.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from mlx_gemma_mtp.errors import UsageError
from mlx_gemma_mtp.text.calls import as_mapping

Message = dict[str, Any]
Prompt = str | Sequence[int] | Sequence[Message]

MODEL_ROLES = ("assistant", "model")
ROLES = ("system", "developer", "user", *MODEL_ROLES, "tool")
# Thoughts at the start of a model's message, as their text and markers decode.
LEADING_THOUGHTS = re.compile(r"(?s)\A(?:\s*<\|channel>(?:thought)?\n.*?(?:<channel\|>|\Z))+")


def check_messages(messages: Sequence[Any]) -> None:
    """Raise UsageError unless a model can be shown all of these messages.

    Chat templates silently leave out much of what they do not know.
    """
    if not messages:
        raise UsageError("there are no messages")
    for number, message in enumerate(messages, 1):
        wrong = _wrong(message)
        if wrong:
            raise UsageError(f"message {number}: {wrong}")


def _wrong(message: Any) -> str | None:
    if not isinstance(message, Mapping):
        return 'it must be an object like {"role": "user", "content": "…"}'
    role, content, calls = (message.get(key) for key in ("role", "content", "tool_calls"))
    if role not in ROLES:
        return f"its role must be one of {', '.join(ROLES)}, not {role!r}"
    if calls is not None and not (isinstance(calls, list) and all(map(_is_call, calls))):
        return 'its tool_calls must be a list of {"function": {"name", "arguments"}}'
    if content is None and calls and role in MODEL_ROLES:
        return None
    if isinstance(content, Mapping) and role == "tool":
        return None
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list) or not all(map(_is_text, parts)):
        return 'its content must be text or a list of {"type": "text", "text": "…"}'
    return None


def _is_call(call: Any) -> bool:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        return False
    return isinstance(function.get("arguments"), Mapping | str | None)


def _is_text(part: Any) -> bool:
    fits = isinstance(part, Mapping) and part.get("type") == "text"
    return fits and isinstance(part.get("text"), str)


def for_template(messages: Sequence[Message]) -> list[Message]:
    """Return copies of checked messages, as chat templates take them.

    The thoughts at the start of a model's message are left out, and the arguments of its calls are
    mappings. If a tool's result is a mapping, the results are also the "tool_responses" of the
    message with the calls: Google's templates take mappings only there.
    """
    shown = [_for_template(message) for message in messages]
    for at, message in enumerate(shown, 1):
        results = list(takewhile(lambda one: one["role"] == "tool", shown[at:]))
        if message.get("tool_calls") and any(isinstance(r["content"], Mapping) for r in results):
            message["tool_responses"] = [_response(one, message["tool_calls"]) for one in results]
    return shown


def _response(result: Message, calls: Sequence[Message]) -> Message:
    ids = {call["id"]: call["function"]["name"] for call in calls if call.get("id")}
    name = ids.get(result.get("tool_call_id")) or result.get("name") or "tool"
    content = result["content"]
    if isinstance(content, list):
        content = "".join(part["text"] for part in content)
    return {"name": name, "response": content}


def _for_template(message: Message) -> Message:
    content, calls = message.get("content"), message.get("tool_calls")
    changes: Message = {}
    if content and message["role"] in MODEL_ROLES:
        changes["content"] = _without_thoughts(content)
    if calls:
        changes["tool_calls"] = [_with_mapping(call) for call in calls]
    return {**message, **changes}


def _without_thoughts(content: str | list[Message]) -> str | list[Message]:
    if isinstance(content, str):
        return LEADING_THOUGHTS.sub("", content, count=1)
    text = LEADING_THOUGHTS.sub("", content[0]["text"], count=1)
    return [{**content[0], "text": text}, *content[1:]]


def _with_mapping(call: Message) -> Message:
    arguments = as_mapping(call["function"].get("arguments"))
    return {**call, "function": {**call["function"], "arguments": arguments}}


def with_system(prompt: str | Sequence[Message], system: str | None) -> str | Sequence[Message]:
    """Return a prompt with a system message before it, if there is one."""
    if not system:
        return prompt
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return [{"role": "system", "content": system}, *turns]
