"""One example: a chat, the answer the demo model is taught, and how to recognize a right answer.

It knows nothing of tokens, nor of how a chat is laid out as text: that is the chat template's.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Message = dict[str, Any]
Tool = dict[str, Any]
Check = Callable[[str], bool]

# Wordings with {fields}, by what a person wants.
SAID: dict[str, list[str]] = json.loads(Path(__file__).with_name("said.json").read_text("utf-8"))
MARKERS = re.compile(r"<\|[^|<>]*\|?>|<[a-z_]+\|>")  # Gemma 4's special tokens, as text
HELD_OUT_ONE_IN = 24
HELD_OUT_SALT = "gemma-4-demo"
OPENINGS = (
    "Hi! ", "Hello, ", "Hey, ", "Please: ", "OK, ", "Now, ", "So, ", "Hi, I have a question. ",
)  # fmt: skip


@dataclass(frozen=True)
class Example:
    """A chat that ends where it is the model's turn.

    `answer` is what is taught, without thought and without the token that ends the turn; `thought`
    goes before it when `thinking` is on. `right` decides about any answer, however it is worded.
    """

    task: str
    messages: tuple[Message, ...]
    answer: str
    right: Check
    thought: str = ""
    thinking: bool = False
    tools: tuple[Tool, ...] = ()
    calls_tool: bool = False

    @property
    def completion(self) -> str:
        """Everything the model must write, as text, including the token that ends its turn."""
        thought = f"<|channel>thought\n{self.thought}<channel|>" if self.thinking else ""
        return thought + self.answer + ("<|tool_response>" if self.calls_tool else "<turn|>")

    def check(self, generated: str) -> bool:
        """True if `generated` is right. A thought before it and special tokens are ignored."""
        return self.right(without_markers(generated.rpartition("<channel|>")[2]))

    @property
    def held_out(self) -> bool:
        """True if this prompt is only for examinations. Its content decides, never a draw."""
        prompt = [HELD_OUT_SALT, self.messages, self.tools, self.thinking]
        content = json.dumps(prompt, sort_keys=True)
        digest = hashlib.blake2b(content.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") % HELD_OUT_ONE_IN == 0


Draw = Callable[[random.Random], Example]


def without_markers(text: str) -> str:
    """`text` without special tokens and with single spaces."""
    return " ".join(MARKERS.sub("", text).split())


def same_text(*accepted: str) -> Check:
    """Right is one of the accepted texts, spaces and special tokens aside."""
    wanted = {without_markers(text) for text in accepted}
    return lambda text: text in wanted


def last_number(number: int) -> Check:
    """Right is a text whose last number is `number`, however it is worded."""

    def check(text: str) -> bool:
        numbers = re.findall(r"(?<!\d)-?\d+", text)
        return bool(numbers) and int(numbers[-1]) == number

    return check


def same_json(wanted: Mapping[str, Any]) -> Check:
    """Right is a text that parses as JSON and has the same content."""

    def check(text: str) -> bool:
        try:
            return bool(json.loads(text) == wanted)
        except json.JSONDecodeError:
            return False

    return check


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def spoken(rng: random.Random, text: str) -> str:
    """The same request as a person may type it: greeting, please, small letters, no full stop."""
    if rng.random() < 0.06:
        opening = rng.choice(OPENINGS)
        text = opening + (text[0].lower() + text[1:] if opening.endswith(", ") else text)
    if rng.random() < 0.04:
        text = text.rstrip("?.!") + rng.choice((", please.", " please", ", please?", ", thanks."))
    if rng.random() < 0.12:
        text = text[0].lower() + text[1:]
    if rng.random() < 0.12:
        text = text.rstrip("?.!")
    return text


def indefinite(noun: str) -> str:
    """The noun after "a" or "an"."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def ask(
    rng: random.Random,
    task: str,
    said: str,
    answer: str,
    thought: str,
    *,
    right: Check | None = None,
    **fields: Any,
) -> Example:
    """A single-turn example: one of the wordings of `said`, filled in with `fields`."""
    prompt = spoken(rng, rng.choice(SAID[said]).format(**fields))
    return Example(task, (user(prompt),), answer, right or same_text(answer), thought)
