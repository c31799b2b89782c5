"""Anthropic's messages and tools, in the engine's terms.

Knows nothing of settings and answers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from mlx_gemma_mtp.server.body import Body
from mlx_gemma_mtp.server.content import as_turns, checked
from mlx_gemma_mtp.server.failures import Failure
from mlx_gemma_mtp.text.functions import Schema
from mlx_gemma_mtp.text.messages import Message

Content = str | list[dict[str, Any]]
Block = Mapping[str, Any]

# Claude Code's first line of the instructions. It has a number that is another one in each request,
# and so no two of them would have a prefix in common.
BILLING = re.compile(r"x-anthropic-billing-header:[^\n]*\n?")


class Turn(Body):
    """A message."""

    role: Literal["user", "assistant", "system"]
    content: Content


def turns_of(system: Content | None, turns: Sequence[Turn]) -> list[Message]:
    """Return a conversation as the engine takes it. Raises a Failure that names a block."""
    texts = [BILLING.sub("", _text(*one)) for one in _blocks(system or [], "system")]
    found: list[Message] = [{"role": "system", "content": "\n\n".join(filter(None, texts))}]
    fields = ["system"]
    for number, turn in enumerate(turns):
        at = f"messages.{number}"
        blocks = list(_blocks(turn.content, f"{at}.content"))
        answers = turn.role == "assistant"
        found += [_answer(blocks)] if answers else _asked(turn.role, blocks)
        fields += [at] * (len(found) - len(fields))
    return as_turns(checked(found, "messages", fields))


def tools_of(given: Sequence[Mapping[str, Any]]) -> list[Schema]:
    """Return tools in OpenAI's form.

    Those that Anthropic's servers run, such as the search of the web, are left out: coding agents
    list them next to their own. Raises a Failure if there are no others.
    """
    found: list[Schema] = []
    for number, tool in enumerate(given):
        match tool:
            case {"name": str(name), "input_schema": dict(schema)}:
                described = tool.get("description") or ""
                function = {"name": name, "description": described, "parameters": schema}
                found.append({"type": "function", "function": function})
            case {"type": str(kind)} if kind != "custom":
                continue
            case _:
                at = f"tools.{number}"
                raise Failure(f"{at} must have a name and an input_schema", field=at)
    if given and not found:
        kinds = ", ".join(str(tool["type"]) for tool in given)
        raise Failure(
            f"tools: this server runs no tools ({kinds:.80}): give tools with an input_schema",
            field="tools",
        )
    return found


def _blocks(content: Content, at: str) -> Iterator[tuple[Block, str]]:
    """Yield the blocks of a content, and where each of them is."""
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    for number, block in enumerate(blocks):
        yield block, f"{at}.{number}"


def _text(block: Block, at: str) -> str:
    match block:
        case {"type": "text", "text": str(text)}:
            return text
        case {"type": "document", "source": {"type": "text", "data": str(text)}}:
            return text
        # All tools are declared from the start, so these only say what has changed.
        case {"type": "tool_addition", "tool": {"name": str(name)}}:
            return f"The tool {name} is available."
        case {"type": "tool_removal", "tool": {"name": str(name)}}:
            return f"The tool {name} is no longer available."
        case {"type": "text" | "thinking" | "tool_use" | "tool_result" as kind}:
            raise Failure(f"{at}: this {kind} block is out of place or lacks a field", field=at)
    kind = block.get("type") if isinstance(block, Mapping) else None
    what = f"blocks of type {kind!r:.40}"
    raise Failure(f"{at}: {what} are not supported, only text", field=at)


def _asked(role: str, blocks: Sequence[tuple[Block, str]]) -> Iterator[Message]:
    """Yield a turn of the user: the results of tools, which must follow their calls, and text."""
    texts = []
    for block, at in blocks:
        match block:
            case {"type": "tool_result", "tool_use_id": str(call)}:
                content = _result(block.get("content") or "", at)
                shown = {"error": content} if block.get("is_error") else content
                yield {"role": "tool", "tool_call_id": call, "content": shown}
            case _:
                texts.append(_text(block, at))
    if texts or not blocks:
        yield {"role": role, "content": "\n".join(texts)}


def _result(content: Any, at: str) -> str:
    """Return the result of a tool as text.

    An image in it does not end the conversation: the model gets to know that it cannot see it.
    """
    if not isinstance(content, (str, list)):
        raise Failure(f"{at}.content must be text or a list of blocks", field=f"{at}.content")
    texts = []
    for block, where in _blocks(content, f"{at}.content"):
        match block:
            case {"type": "tool_reference", "tool_name": str(name)}:
                texts.append(f"The tool {name} is available.")
            case {"type": "text"} | {"type": "document", "source": {"type": "text"}}:
                texts.append(_text(block, where))
            case {"type": str(kind)}:
                texts.append(f"[{kind:.40}: it cannot be shown, only text can]")
            case _:
                texts.append(_text(block, where))
    return "\n".join(texts)


def _answer(blocks: Sequence[tuple[Block, str]]) -> Message:
    """Return a turn of the assistant. Its thoughts need no signature."""
    texts, thoughts, calls = [], [], []
    for block, at in blocks:
        match block:
            case {"type": "thinking", "thinking": str(thought)}:
                thoughts.append(thought.removesuffix("\n"))
            case {"type": "redacted_thinking"}:
                continue
            case {"type": "tool_use", "id": str(id_), "name": str(name), "input": dict(arguments)}:
                function = {"name": name, "arguments": arguments}
                calls.append({"id": id_, "type": "function", "function": function})
            case _:
                texts.append(_text(block, at))
    found: Message = {"role": "assistant", "content": "".join(texts)}
    if any(thoughts):
        found["reasoning"] = "\n".join(thoughts)
    if calls:
        found["tool_calls"] = calls
    return found
