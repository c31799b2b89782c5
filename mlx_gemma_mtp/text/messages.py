"""A conversation as a list of messages: what is allowed, and one form for all that is.

Plain dictionaries, as OpenAI's and Google's clients have them. Knows nothing of tokens and
templates.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from mlx_gemma_mtp.errors import UsageError
from mlx_gemma_mtp.text.calls import as_mapping
from mlx_gemma_mtp.text.tools import NAME

Message = dict[str, Any]
Prompt = str | Sequence[int] | Sequence[Message]

MODEL_ROLES = ("assistant", "model")
INSTRUCTIONS = ("system", "developer")  # roles of a first message
ROLES = (*INSTRUCTIONS, "user", *MODEL_ROLES, "tool")
# Thoughts at the start of a model's message, as their text and markers decode.
LEADING_THOUGHTS = re.compile(r"(?s)\A(?:\s*<\|channel>(?:thought)?\n.*?(?:<channel\|>|\Z))+")
FORMS = '{"role": "user", "content": "…"}'


def check_messages(messages: Sequence[Any]) -> None:
    """Raise UsageError unless a model can be shown all of these messages."""
    normalized(messages)


def normalized(messages: Sequence[Any]) -> list[Message]:
    """Return copies of messages in one form. Raises UsageError for what a model cannot be shown.

    Chat templates silently leave out much of what they do not know, and show a tool's result
    without a call. In this form contents are text, but a tool's may be a mapping; the model's role
    is "assistant"; thoughts at the start of its messages are left out, and its "reasoning" is also
    the "reasoning_content". Calls have ids of their own in the conversation, and mappings as
    arguments. Their results follow them, one each and in their order, with the id and the name of
    the call.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, (str, bytes)):
        raise UsageError(f"messages must be a list of {FORMS}")
    if not messages:
        raise UsageError("there are no messages")
    after_call = False  # True if the last message that is not a tool's has calls
    for number, message in enumerate(messages, 1):
        wrong = _wrong(message)
        if wrong is None and message["role"] != "tool":
            after_call = bool(message.get("tool_calls"))
        elif wrong is None and not after_call:
            wrong = "the result of a tool must follow the message with its call"
        if wrong:
            raise UsageError(f"message {number}: {wrong}")
    found: list[Message] = []
    taken: set[str] = set()  # ids of calls
    for number, message in enumerate(messages, 1):
        plain = _plain(message)
        if message["role"] == "tool":  # came with its call
            continue
        if not plain.get("tool_calls"):
            found.append(plain)
            continue
        following = list(takewhile(lambda one: one["role"] == "tool", messages[number:]))
        own = [_response(one) for one in message.get("tool_responses") or ()]
        results = own + [_plain(one) for one in following]
        answers = _paired(plain["tool_calls"], results, number)
        plain["tool_calls"] = calls = _with_ids(plain["tool_calls"], taken)
        later = plain["content"] if own else None  # such a message has the answer as well
        found.append({**plain, "content": ""} if later else plain)
        for call, answer in zip(calls, answers, strict=True):
            named = {"tool_call_id": call["id"], "name": call["function"]["name"]}
            found.append({**answer, **named})
        if later:
            found.append({"role": "assistant", "content": later})
    return found


def _wrong(message: Any) -> str | None:
    if not isinstance(message, Mapping):
        return f"it must be an object like {FORMS}"
    role, content, calls = (message.get(key) for key in ("role", "content", "tool_calls"))
    if role not in ROLES:
        return f"its role must be one of {', '.join(ROLES)}, not {role!r:.80}"
    if calls is not None and not (isinstance(calls, (list, tuple)) and all(map(_is_call, calls))):
        return 'its tool_calls must be a list of {"function": {"name", "arguments"}}'
    if message.get("function_call"):
        return "its function_call is an old form: give tool_calls"
    if wrong := _wrong_turn(message):
        return wrong
    if content is None and calls and role in MODEL_ROLES:
        return None
    if isinstance(content, Mapping) and role == "tool":
        return None
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, (list, tuple)) or not all(map(_is_text, parts)):
        return 'its content must be text or a list of {"type": "text", "text": "…"}'
    return None


def _wrong_turn(message: Mapping[str, Any]) -> str | None:
    """What is wrong with the fields of a model's or a tool's message."""
    role, calls, responses = (message.get(key) for key in ("role", "tool_calls", "tool_responses"))
    if role not in MODEL_ROLES and calls:
        return "only a message of the assistant can have tool_calls"
    ids = [call.get("id") for call in calls or () if call.get("id")]
    if len({*ids}) < len(ids):
        return "its tool_calls must have different ids"
    if responses and not (isinstance(responses, (list, tuple)) and all(map(_is_named, responses))):
        return 'its tool_responses must be a list of {"name", "response"}'
    if responses and not calls:
        return "its tool_responses need tool_calls in the same message"
    for key in ("reasoning", "reasoning_content", "tool_call_id", "name"):
        if not isinstance(message.get(key), str | None):
            return f"its {key} must be text"
    return None


def _is_call(call: Any) -> bool:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(call.get("id"), str | None):
        return False
    name, arguments = function.get("name"), function.get("arguments")
    named = isinstance(name, str) and NAME.fullmatch(name) is not None
    return named and isinstance(arguments, Mapping | str | None)


def _is_named(response: Any) -> bool:
    return isinstance(response, Mapping) and isinstance(response.get("name"), str | None)


def _is_text(part: Any) -> bool:
    fits = isinstance(part, Mapping) and part.get("type") == "text"
    return fits and isinstance(part.get("text"), str)


def _plain(message: Message) -> Message:
    content, calls = message.get("content"), message.get("tool_calls")
    plain = {**message, "content": _joined(content)}
    for key in ("tool_calls", "tool_responses", "function_call"):
        plain.pop(key, None)
    if message["role"] in MODEL_ROLES:
        plain["role"] = "assistant"
        plain["content"] = LEADING_THOUGHTS.sub("", plain["content"], count=1)
        if reasoning := message.get("reasoning") or message.get("reasoning_content"):
            plain["reasoning"] = plain["reasoning_content"] = reasoning
    if calls:
        plain["tool_calls"] = [_with_mapping(call) for call in calls]
    return plain


def _joined(content: Any) -> Any:
    """Return text parts as one string, and a mapping as it is."""
    if isinstance(content, (list, tuple)):
        return "".join(one["text"] for one in content)
    return "" if content is None else content  # OpenAI's clients send null with calls


def _with_mapping(call: Message) -> Message:
    arguments = as_mapping(call["function"].get("arguments"))
    return {**call, "function": {**call["function"], "arguments": arguments}}


def _response(response: Message) -> Message:
    """Return an entry of "tool_responses" as a message."""
    content = response.get("response")
    content = content if isinstance(content, Mapping | str) else {"value": content}
    return {"role": "tool", "content": content, "name": response.get("name")}


def _paired(calls: Sequence[Message], results: Sequence[Message], number: int) -> list[Message]:
    """Return the results in the order of the calls, by id, name or place.

    number: of the message with the calls. Raises UsageError if they don't match one to one.
    """
    answers: dict[int, Message] = {}
    ids = {call["id"]: at for at, call in enumerate(calls) if call.get("id")}
    for given in (True, False):  # those that name the id of a call go first
        for result in results:
            at = ids.get(result.get("tool_call_id") or "")
            if (at is not None) != given:
                continue
            if at is None:
                at = _next(calls, answers, result, number, strict=len(ids) == len(calls))
            if at in answers:
                name = calls[at]["function"]["name"]
                raise UsageError(f"message {number}: its call of {name} has two results: keep one")
            answers[at] = result
    for at, call in enumerate(calls):
        if at not in answers:
            name = call["function"]["name"]
            raise UsageError(
                f"message {number}: its call of {name} has no result: a message of the tool must "
                "follow, or leave the call out"
            )
    return [answers[at] for at in range(len(calls))]


def _next(
    calls: Sequence[Message],
    answers: Mapping[int, Message],
    result: Message,
    number: int,
    *,
    strict: bool,
) -> int:
    """Return the first call without a result that this result may be of.

    strict: all calls have ids, so a result with another id is of none of them.
    """
    name, other = result.get("name"), result.get("tool_call_id")
    if not (other and strict):
        for at, call in enumerate(calls):
            if at not in answers and name in (None, "", call["function"]["name"]):
                return at
    what = f"tool_call_id {other!r:.80}" if other else f"name {name!r:.80}" if name else "place"
    raise UsageError(f"after message {number}: no call is left for the result with the {what}")


def _with_ids(calls: Sequence[Message], taken: set[str]) -> list[Message]:
    """Return calls with ids that no earlier call has; those that are unique stay."""
    found = []
    for call in calls:
        made, count = call.get("id") or "call_0", len(taken)
        while made in taken:
            made, count = f"call_{count}", count + 1
        taken.add(made)
        found.append({**call, "type": "function", "id": made})
    return found


def is_answer(message: Message) -> bool:
    """True for text of the model, without calls."""
    return message["role"] in MODEL_ROLES and not message.get("tool_calls")


def with_system(prompt: str | Sequence[Message], system: str | None) -> str | Sequence[Message]:
    """Return a prompt with a system message before it, if there is one."""
    if not system:
        return prompt
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return [{"role": "system", "content": system}, *turns]
