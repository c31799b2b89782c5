"""A tool that the demo pair calls when it is asked for the time, in the form of each protocol."""

from __future__ import annotations

from typing import Any

QUESTION = "What time is it in Paris?"

NAMED = {"name": "get_time", "description": "Get the time in a city."}
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "The city's name."}},
    "required": ["city"],
}
# Chats are OpenAI's and Ollama's.
CHAT_TOOL: Any = {
    "type": "function",
    "function": {**NAMED, "parameters": PARAMETERS},
}
RESPONSES_TOOL: Any = {"type": "function", **NAMED, "parameters": PARAMETERS}
ANTHROPIC_TOOL: Any = {**NAMED, "input_schema": PARAMETERS}
