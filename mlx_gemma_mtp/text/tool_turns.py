"""Calls and results in a conversation, as the chat templates of each generation take them.

Takes messages of `normalized`. Knows nothing of tokens, nor of which messages are allowed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import takewhile

from mlx_gemma_mtp.text.messages import Message, is_answer

TOOL_TURN = "<|turn>tool\n"  # how a template that doesn't know the role shows a tool's result
# Text that a template of Google's puts outside of all turns: one that cannot continue a turn.
LOOSE = re.compile(r"<turn\|>\s*(?!<\|turn>)\S")


def laid_out(
    messages: Sequence[Message], write: Callable[[list[Message]], str], *, google: bool
) -> str:
    """Return a conversation as a template writes it. google: it is one of Google's."""
    if not google:
        return write([*messages])
    whole, joined = _with_responses(messages), _with_responses(messages, splits=False)
    written = ""
    for shown in (whole, _without_tool_turns(whole), _without_tool_turns(joined)):
        written = write(shown)
        if TOOL_TURN not in written and not LOOSE.search(written):
            break
    return written


def in_json(messages: Sequence[Message]) -> list[Message]:
    """Return messages whose contents are all text, for templates that are not Google's.

    Raises ValueError, TypeError and RecursionError for a result that is not JSON.
    """
    return [
        {**one, "content": json.dumps(one["content"], ensure_ascii=False, default=dict)}
        if isinstance(one["content"], Mapping)
        else one
        for one in messages
    ]


def _with_responses(messages: Sequence[Message], *, splits: bool = True) -> list[Message]:
    """Return messages whose results are also the "tool_responses" of the message with the calls.

    Google's templates take mappings only there, and write text of that message after the results.
    splits: so such text, which comes before the calls, is a message of its own.
    """
    found: list[Message] = []
    for message, results in _with_results(messages):
        if not results:
            found.append(message)
            continue
        responses = [{"name": one["name"], "response": one["content"]} for one in results]
        if splits and message["content"]:
            found.append({"role": "assistant", "content": message["content"]})
        content = "" if splits else message["content"]
        found.append({**message, "content": content, "tool_responses": responses})
    return found


def _without_tool_turns(messages: Sequence[Message]) -> list[Message]:
    """Return messages of `_with_responses` without the tools' own.

    Google's first templates take results so, with the answer in the same message.
    """
    kept: list[Message] = []
    for message in messages:
        if message["role"] == "tool":
            continue
        if kept and kept[-1].get("tool_responses") and is_answer(message):
            both = (kept[-1]["content"], message["content"])
            kept[-1] = kept[-1] | {"content": "\n".join(filter(None, both))}
        else:
            kept.append(message)
    return kept


def _with_results(messages: Sequence[Message]) -> Iterator[tuple[Message, list[Message]]]:
    """Yield each message with the results of its calls."""
    for at, message in enumerate(messages, 1):
        later = map(messages.__getitem__, range(at, len(messages)))
        results = takewhile(lambda one: one["role"] == "tool", later)
        yield message, list(results) if message.get("tool_calls") else []
