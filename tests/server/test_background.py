"""Requests that front ends make by themselves, in the shapes of their clients."""

from __future__ import annotations

import pytest

from mlx_gemma_mtp.server.background import BACKGROUND, priority_of
from mlx_gemma_mtp.text.messages import Message

TOOLS = [{"type": "function", "function": {"name": "read", "description": ""}}]


def talk(*contents: str, system: str = "") -> list[Message]:
    first = [{"role": "system", "content": system}] if system else []
    roles = ("user", "assistant") * len(contents)
    return first + [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]


@pytest.mark.parametrize(
    "messages",
    [
        talk(
            "### Task:\nGenerate 1-3 broad tags for this chat.\n### Chat History: Hi"
        ),  # Open WebUI
        talk("Fix it.", "Done.", "[SUGGESTION MODE: what may the user type?]"),  # Claude Code
        talk("Hello", system="Write a short title for this coding session. Return JSON."),
        talk("Hello", system="Say whether this is a new conversation topic, and its title."),
        talk("Hello", system="You are a title generator. You output a thread title."),  # opencode
        talk("Hi", "Hello!", "Give this conversation a title of at most 5 words."),  # LibreChat
        talk("Hi", "Hello!", "Generate a concise title for this thread."),  # Zed
    ],
)
def test_what_front_ends_ask_for_by_themselves_is_in_the_background(
    messages: list[Message],
) -> None:
    assert priority_of(messages) == BACKGROUND


@pytest.mark.parametrize(
    "messages",
    [
        [],
        talk("Write a title for my book."),
        talk("Why is my chat slow?", system="You answer questions."),
        talk("Hello", system="You are a coding agent. " * 20 + "Add a title to each session."),
        talk("Hello\n### Task:\nGenerate a title"),
        talk("Give this chat a title", "A title"),  # an answer to be continued
    ],
)
def test_what_people_ask_for_is_not(messages: list[Message]) -> None:
    assert priority_of(messages) == 0


def test_an_agent_with_tools_is_never_taken_for_a_title_request() -> None:
    messages = talk("Rename the title of the chat page.", system="You work in a chat session.")
    assert priority_of(messages) == BACKGROUND
    assert priority_of(messages, TOOLS) == 0
