"""Requests in the shapes that known clients send, with short texts. Knows nothing of answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
MESSAGES, COUNT = "/v1/messages?beta=true", "/v1/messages/count_tokens?beta=true"
OLLAMA_CHAT, OLLAMA_GENERATE = "/api/chat", "/api/generate"

SYSTEM = "You are a coding assistant. Answer in one short sentence."
QUESTION = "What is 17 + 25?"
ANSWER = "17 + 25 = 42"
KEY = {"Authorization": "Bearer sk-local"}


@dataclass(frozen=True)
class Recorded:
    """A request. headers: those that matter to a server. says: what is in the demo's answer."""

    path: str
    body: Mapping[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)
    says: str = ANSWER


def parameters(*names: str) -> dict[str, Any]:
    """Return the schema of a tool's arguments, as generators of schemas write it."""
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "properties": {one: {"type": "string", "description": f"The {one}."} for one in names},
        "required": [*names],
        "additionalProperties": False,
    }


def function(name: str, *arguments: str, **others: Any) -> dict[str, Any]:
    """Return a tool of a chat completion."""
    described = {"name": name, "description": f"Use {name}.", "parameters": parameters(*arguments)}
    return {"type": "function", "function": described | others}


AGENT_TOOLS = [  # four instead of Claude Code's 28, which test_claude_code.py has
    {"name": name, "description": f"Use {name}.", "input_schema": parameters("path")}
    for name in ("Bash", "Read", "Edit", "mcp__files__find")
]
CACHED = {"cache_control": {"type": "ephemeral"}}
CLAUDE_CODE = {
    "anthropic-version": "2023-06-01",
    "anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14",
    "anthropic-dangerous-direct-browser-access": "true",
    "user-agent": "claude-cli/2.1.0 (external, cli)",
    "x-app": "cli",
    **KEY,
}
CODEX = {"originator": "codex_cli_rs", "session_id": "0199", "accept": "text/event-stream", **KEY}


def text(kind: str, *lines: str) -> list[dict[str, Any]]:
    """Return a content of parts."""
    return [{"type": kind, "text": line} for line in lines]


REQUESTS: dict[str, Recorded] = {
    "OpenAI's JavaScript SDK": Recorded(
        CHAT,
        {
            "model": "demo",
            "messages": [
                {"role": "developer", "content": SYSTEM, "name": None},
                {"role": "user", "content": text("text", QUESTION)},
            ],
            "max_tokens": None,
            "max_completion_tokens": 64,
            "temperature": 0,
            "top_p": None,
            "n": None,
            "stop": None,
            "seed": None,
            "tools": None,
            "tool_choice": None,
            "response_format": None,
            "logit_bias": None,
            "logprobs": None,
            "stream": False,
            "stream_options": None,
            "user": "someone",
            "store": False,
            "metadata": {"a": "b"},
            "service_tier": "auto",
            "modalities": ["text"],
        },
        {"x-stainless-lang": "js", **KEY},
    ),
    "Zed": Recorded(
        CHAT,
        {
            "model": "demo",
            "messages": [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": text("text", "A file:\n", "x = 1\n")},
                {"role": "user", "content": text("text", QUESTION)},
            ],
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_completion_tokens": 8192,
            "stop": [],
            "temperature": 0.0,
            "tools": [function("read_file", "path"), function("edit_file", "path", "text")],
            "tool_choice": "auto",
            "parallel_tool_calls": False,
            "prompt_cache_key": "0199",
            "reasoning_effort": None,
        },
        KEY,
    ),
    "Xcode": Recorded(
        CHAT,
        {
            "model": "demo",
            "messages": [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": QUESTION},
            ],
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0,
        },
    ),
    "Open WebUI": Recorded(
        CHAT,
        {
            "model": "demo",
            "messages": [{"role": "user", "content": QUESTION}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0,
            "files": None,
            "features": {"web_search": False},
            "chat_id": "0199",
            "session_id": "0199",
            "background_tasks": {"title_generation": True},
        },
        {"X-OpenWebUI-User-Name": "someone", **KEY},
    ),
    "Open WebUI, a title": Recorded(
        CHAT,
        {
            "model": "demo",
            "messages": [
                {
                    "role": "user",
                    "content": "### Task:\nGenerate a concise, 3-5 word title with an emoji.\n"
                    '### Output:\nJSON format: { "title": "your title" }\n'
                    f"<chat_history>\nUSER: {QUESTION}\n</chat_history>",
                }
            ],
            "stream": False,
            "max_completion_tokens": 40,
            "metadata": {"task": "title_generation"},
        },
        KEY,
        says="",
    ),
    "aider": Recorded(
        CHAT,
        {
            "model": "demo",
            "messages": [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": "I have *added these files to the chat*: x = 1"},
                {"role": "assistant", "content": "Ok, any changes I propose will be to them."},
                {"role": "user", "content": QUESTION},
                {"role": "system", "content": "Only answer in English."},
            ],
            "stream": True,
            "temperature": 0,
        },
        KEY,
        says="",
    ),
    "Continue": Recorded(
        CHAT,
        {
            "model": "demo",
            "messages": [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": QUESTION},
            ],
            "max_tokens": None,
            "temperature": 0,
            "stream": True,
            "stop": None,
            "tools": None,
            "prediction": None,
        },
        {"api-key": "sk-local", "x-api-key": "sk-local", **KEY},
    ),
    "Cline, after a tool": Recorded(
        CHAT,
        {
            "model": "demo",
            "messages": [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": "What time is it in Paris?"},
                {
                    "role": "assistant",
                    "content": None,
                    "refusal": None,
                    "tool_calls": [
                        {
                            "id": "call_1",
                            "type": "function",
                            "index": 0,
                            "function": {"name": "get_time", "arguments": '{"city": "Paris"}'},
                        }
                    ],
                },
                {"role": "tool", "tool_call_id": "call_1", "content": text("text", "9:30")},
            ],
            "tools": [function("get_time", "city", strict=False)],
            "stream": True,
            "stream_options": {},
            "temperature": 0,
        },
        KEY,
        says="9:30",
    ),
    "Claude Code": Recorded(
        MESSAGES,
        {
            "model": "demo",
            "max_tokens": 32000,
            "system": [
                {"type": "text", "text": "You are Claude Code.", **CACHED},
                {"type": "text", "text": SYSTEM, **CACHED},
            ],
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "<system-reminder>\nToday\n</system-reminder>"},
                        {"type": "text", "text": QUESTION, **CACHED},
                    ],
                },
                {"role": "system", "content": "The user works in a terminal."},
            ],
            "tools": AGENT_TOOLS,
            "metadata": {"user_id": "user_0199"},
            "thinking": {"type": "enabled", "budget_tokens": 31999},
            "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
            "output_config": {"effort": "medium"},
            "stream": True,
        },
        CLAUDE_CODE,
        says="",
    ),
    "Claude Code, first": Recorded(
        MESSAGES,
        {
            "model": "demo",
            "max_tokens": 1,
            "messages": [{"role": "user", "content": "quota"}],
            "metadata": {"user_id": "user_0199"},
        },
        CLAUDE_CODE,
        says="",
    ),
    "Claude Code, counting": Recorded(
        COUNT,
        {
            "model": "demo",
            "messages": [{"role": "user", "content": "foo"}],
            "tools": AGENT_TOOLS[:1],
        },
        CLAUDE_CODE,
        says="",
    ),
    "Codex": Recorded(
        RESPONSES,
        {
            "model": "demo",
            "instructions": SYSTEM,
            "input": [
                {
                    "type": "message",
                    "role": "developer",
                    "content": text("input_text", "<permissions>read-only</permissions>"),
                },
                {
                    "type": "message",
                    "role": "user",
                    "content": text("input_text", "<environment_context></environment_context>"),
                },
                {"type": "message", "role": "user", "content": text("input_text", QUESTION)},
            ],
            "tools": [
                {
                    "type": "function",
                    "name": "shell",
                    "description": "Runs a command.",
                    "strict": False,
                    "parameters": parameters("command", "workdir"),
                }
            ],
            "tool_choice": "auto",
            "parallel_tool_calls": False,
            "reasoning": {"effort": "medium", "summary": "auto"},
            "store": False,
            "stream": True,
            "include": ["reasoning.encrypted_content"],
            "prompt_cache_key": "0199",
            "text": {"verbosity": "medium"},
        },
        CODEX,
    ),
    "Raycast": Recorded(
        OLLAMA_CHAT,
        {
            "model": "demo",
            "messages": [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": QUESTION, "images": []},
            ],
            "options": {"temperature": 0, "num_ctx": 4096},
            "keep_alive": "5m",
            "stream": True,
        },
    ),
    "an editor that completes": Recorded(
        COMPLETIONS,
        {
            "model": "demo",
            "prompt": "What is 17 + ",
            "max_tokens": 8,
            "temperature": 0,
            "stream": True,
            "stop": ["\n\n"],
            "echo": False,
            "best_of": None,
            "suffix": None,
        },
        KEY,
        says="=",
    ),
}
