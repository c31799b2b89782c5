"""The input of OpenAI's responses as messages: its items have one thing each, a message has all.

Knows nothing of tools and settings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mlx_gemma_mtp.server.content import content_of, text_of
from mlx_gemma_mtp.server.failures import Failure
from mlx_gemma_mtp.server.protocols.responses_tools import INPUT, joined_name
from mlx_gemma_mtp.text.messages import Message

# Records of what ran elsewhere, which a conversation has that was started with another server.
RECORDS = (
    "additional_tools",
    "code_interpreter_call",
    "compaction",
    "compaction_trigger",
    "computer_call",
    "computer_call_output",
    "file_search_call",
    "image_generation_call",
    "local_shell_call",
    "local_shell_call_output",
    "mcp_approval_request",
    "mcp_approval_response",
    "mcp_call",
    "mcp_list_tools",
    "tool_search_call",
    "tool_search_output",
    "web_search_call",
)


def messages_of(given: str | Sequence[Mapping[str, Any]]) -> tuple[list[Message], list[str]]:
    """Return the messages of an input, and the field that each of them starts with.

    Raises a Failure that names the wrong item.
    """
    if isinstance(given, str):
        return [{"role": "user", "content": given}], ["input"]
    messages: list[Message] = []
    fields: list[str] = []
    for number, item in enumerate(given):
        at = f"input.{number}"
        _add(messages, item, at)
        fields += [at] * (len(messages) - len(fields))
    return messages, fields


def _add(messages: list[Message], item: Mapping[str, Any], at: str) -> None:
    match item.get("type") or "message":
        case "message":
            _add_message(messages, item, at)
        case "agent_message":  # of another agent, which Codex has started
            messages.append({"role": "user", "content": _text(item.get("content"), at)})
        case "reasoning":
            _add_thought(messages, _text(item.get("content") or item.get("summary"), at))
        case "function_call":
            _add_call(messages, item, item.get("arguments"))
        case "custom_tool_call":
            _add_call(messages, item, json.dumps({INPUT: item.get("input")}))
        case "function_call_output" | "custom_tool_call_output":
            content = text_of(item.get("output"), f"{at}.output")
            call = item.get("call_id")
            messages.append({"role": "tool", "content": content, "tool_call_id": call})
        case kind if kind in RECORDS:
            pass
        case "item_reference":
            raise Failure(f"{at}: nothing is stored here: give the item itself", field=at)
        case kind:
            raise Failure(f"{at}.type: {kind!r:.40} is not supported", field=f"{at}.type")


def _add_thought(messages: list[Message], thought: str) -> None:
    if not thought:
        return
    if _is_open(messages):
        messages[-1]["reasoning"] += f"\n{thought}"
    else:
        messages.append({"role": "assistant", "content": "", "reasoning": thought})


def _add_message(messages: list[Message], item: Mapping[str, Any], at: str) -> None:
    role, content = item.get("role"), content_of(item, at)
    if not isinstance(role, str):
        raise Failure(f"{at}.role must be a string", field=f"{at}.role")
    if role == "assistant" and _is_open(messages):
        messages[-1]["content"] = content
    else:
        messages.append({"role": role, "content": content})


def _add_call(messages: list[Message], item: Mapping[str, Any], arguments: Any) -> None:
    """Add a call to the message before it, which may be a thought or have other calls."""
    if not (messages and messages[-1]["role"] == "assistant"):
        messages.append({"role": "assistant", "content": ""})
    name, namespace = str(item.get("name") or ""), item.get("namespace")
    function = {"name": joined_name(name, namespace), "arguments": arguments}
    call = {"id": item.get("call_id"), "type": "function", "function": function}
    messages[-1].setdefault("tool_calls", []).append(call)


def _is_open(messages: Sequence[Message]) -> bool:
    """True if the last message is a thought, whose turn the next item continues."""
    last = messages[-1] if messages else {"role": None}
    return "reasoning" in last and not last["content"] and "tool_calls" not in last


def _text(parts: Any, at: str) -> str:
    """Return the text of a thought or of an agent's message."""
    if not isinstance(parts, list):
        return text_of(parts, at)
    return text_of([_as_text(part) for part in parts], at)


def _as_text(part: Any) -> Any:
    """Return a part as one of text."""
    known = ("reasoning_text", "summary_text", "encrypted_content")
    if isinstance(part, Mapping) and part.get("type") in known:
        return {"type": "text", "text": part.get("text") or part.get("encrypted_content")}
    return part
