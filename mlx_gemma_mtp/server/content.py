"""The contents and roles of messages, as all protocols allow them, for the engine."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mlx_gemma_mtp.errors import UsageError
from mlx_gemma_mtp.server.failures import Failure
from mlx_gemma_mtp.text.messages import INSTRUCTIONS, Message, check_messages

TEXT = ("text", "input_text", "output_text", "refusal")  # types of parts

NUMBERED = re.compile(r"(?:after )?message (\d+)")


def text_of(content: Any, field: str) -> str:
    """Return the text of a content: a string, a list of text parts, or null.

    Raises a Failure for anything else, such as images.
    """
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise Failure(f"{field} must be text or a list of parts", field=field)
    texts = []
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        text = part.get("refusal" if kind == "refusal" else "text") if kind in TEXT else None
        if not isinstance(text, str):
            at = f"{field}.{number}"
            what = f"parts of type {kind!r:.40}" if kind not in TEXT else "parts without text"
            raise Failure(f"{at}: {what} are not supported, only text", field=at)
        texts.append(text)
    return "".join(texts)


def content_of(message: Mapping[str, Any], at: str) -> str:
    """Return the content of a message as text. Raises Failure, also if a user's has none."""
    content = message.get("content")
    if content is None and message.get("role") in ("user", *INSTRUCTIONS):
        raise Failure(f"{at}.content is missing", field=f"{at}.content")
    return text_of(content, f"{at}.content")


def checked(messages: Sequence[Message], field: str, fields: Sequence[str]) -> Sequence[Message]:
    """Return messages that a model can be shown. Raises a Failure that names the wrong one.

    field: where they are in the body. fields: where each of them is.
    """
    try:
        check_messages(messages)
    except UsageError as error:
        message = str(error)
        found = NUMBERED.match(message)
        if found is not None:
            field = fields[int(found[1]) - 1]
            message = field + message[found.end() :]
        raise Failure(message, field=field) from None
    return messages


def as_turns(messages: Iterable[Message]) -> list[Message]:
    """Return messages with all instructions in the first one, as templates take them.

    Clients send several, and some in mid-conversation. Those are moved into a turn of the user,
    where they were.
    """
    found: list[Message] = []
    for message in messages:
        if message["role"] not in INSTRUCTIONS:
            found.append(message)
        elif not message["content"]:
            continue
        elif not found:
            found.append({"role": "system", "content": message["content"]})
        elif len(found) == 1 and found[0]["role"] == "system":
            found[0]["content"] += f"\n\n{message['content']}"
        else:
            found.append({"role": "user", "content": message["content"]})
    return found
