"""A conversation as a list of messages: what is allowed, and which parts the model gets to see.

Plain dictionaries, as chat templates take them. Knows nothing of tokens and templates.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile, zip_longest
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
        if wrong is None and message["role"] == "tool" and not _answers_call(messages[:number]):
            wrong = "the result of a tool must follow the message with its call"
        if wrong:
            raise UsageError(f"message {number}: {wrong}")


def _answers_call(messages: Sequence[Any]) -> bool:
    """Return True if the last message with another role than "tool" calls tools."""
    last = next((one for one in reversed(messages) if one["role"] != "tool"), None)
    return last is not None and bool(last.get("tool_calls"))


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

    The thoughts at the start of a model's message are left out, the arguments of its calls are
    mappings, and a system message is one string. Results of tools are also the "tool_responses" of
    the message with the calls if one is a mapping, which Google's templates take only there, or
    doesn't name its call: they would give it the name of the last one.
    """
    shown = [_for_template(message) for message in messages]
    for message, results in _with_results(shown):
        if any(isinstance(r["content"], Mapping) or not r.get("tool_call_id") for r in results):
            message["tool_responses"] = _responses(message, results)
    return shown


def without_tool_turns(messages: Sequence[Message]) -> list[Message]:
    """Return messages of `for_template` with the results of tools as "tool_responses" alone.

    Google's first templates take them only so, with the answer in the same message, and write text
    of that message after the results.
    """
    kept: list[Message] = []
    for message, results in _with_results(messages):
        if message["role"] == "tool":
            continue
        if results and message.get("content"):  # the text before the calls, as a turn of its own
            kept.append({"role": message["role"], "content": message["content"]})
        if results:
            responses = _responses(message, results)
            kept.append(message | {"content": "", "tool_responses": responses})
        elif kept and kept[-1].get("tool_responses") and is_answer(message):
            kept[-1] = kept[-1] | {"content": message["content"]}
        else:
            kept.append(message)
    return kept


def is_answer(message: Message) -> bool:
    """True for text of the model, without calls."""
    return message["role"] in MODEL_ROLES and not message.get("tool_calls")


def _with_results(messages: Sequence[Message]) -> Iterator[tuple[Message, list[Message]]]:
    """Yield each message with the results of its calls."""
    for at, message in enumerate(messages, 1):
        results = takewhile(lambda one: one["role"] == "tool", messages[at:])
        yield message, list(results) if message.get("tool_calls") else []


def _responses(message: Message, results: Sequence[Message]) -> list[Message]:
    """Return results as "tool_responses", named by the id of the call, or else by its place."""
    calls = message["tool_calls"]
    by_id = {call["id"]: call["function"]["name"] for call in calls if call.get("id")}
    found = []
    for result, call in zip_longest(results, calls[: len(results)], fillvalue=calls[-1]):
        name = by_id.get(result.get("tool_call_id")) or result.get("name")
        content = _joined(result["content"])
        found.append({"name": name or call["function"]["name"], "response": content})
    return found


def _joined(content: Any) -> Any:
    """Return a list of text parts as one string, and anything else as it is."""
    return "".join(one["text"] for one in content) if isinstance(content, list) else content


def _for_template(message: Message) -> Message:
    content, calls = message.get("content"), message.get("tool_calls")
    changes: Message = {}
    if content and message["role"] in MODEL_ROLES:
        changes["content"] = _without_thoughts(content)
    if message["role"] in ("system", "developer"):
        changes["content"] = _joined(content)
    if calls:
        changes["tool_calls"] = [_with_mapping(call) for call in calls]
        changes.setdefault("content", content or "")  # OpenAI's clients send null
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
