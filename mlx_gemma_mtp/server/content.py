"""The contents and roles of messages, as all protocols allow them, for the engine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mlx_gemma_mtp.server.failures import Failure
from mlx_gemma_mtp.text.messages import INSTRUCTIONS, Message

TEXT = ("text", "input_text", "output_text")  # types of parts


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
        if kind not in TEXT or not isinstance(part.get("text"), str):
            at = f"{field}.{number}"
            what = f"parts of type {kind!r:.40}" if kind not in TEXT else "parts without text"
            raise Failure(f"{at}: {what} are not supported, only text", field=at)
        texts.append(part["text"])
    return "".join(texts)


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
