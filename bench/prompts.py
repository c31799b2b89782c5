"""The benchmark's prompts, from prompts.jsonl: by task and row, the same for every engine.

Each is a conversation whose last message is cut or continued to the length that is asked for. Knows
the chat template's tokens, but no engines.
"""

from __future__ import annotations

import json
import random
import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

from mlx_gemma_mtp.errors import UsageError
from mlx_gemma_mtp.text.messages import Message
from mlx_gemma_mtp.text.tokenizer import Text

from .record import MIXED

TASKS = (
    *("chat", "code", "summarise", "extract", "translate", "reason", "creative", "multi-turn"),
    "edit",  # a list of JSON again, with one field changed
)
# The demo's own, which it wasn't trained on: those of its tasks with answers long enough to time.
# repeat: its last answer again, a story or JSON, with one word changed.
DEMO_TASKS = ("stories", "counting", "json", "repeat")
LENGTHS = (260, 600, 300, 840, 280, 800, 450, 240)  # tokens of the prompts of rows 0 to 7
# Of random tokens. With up to 128 more the first stays below 256 and the longest below 1,024, so
# that no cache grows within a window.
NOISE_LENGTHS = (64, 512, 256, 768, 192, 640, 384, 96)
LEAST_WORDS = 12  # of material: a request about less makes no sense
EARLIER = ("Keep these notes in mind for later.\n\n{material}", "Noted: I will keep them in mind.")


class Prompts:
    """Token ids by task and row number; make(task, number) always gives the same."""

    def __init__(self, tasks: Sequence[str], make: Callable[[str, int], list[int]]) -> None:
        self.tasks = list(tasks)
        self._row = cache(make)

    def tasks_at(self, batch: int) -> list[str]:
        """What is measured at this batch: each task alone, or rows of all tasks together."""
        return self.tasks if batch == 1 or len(self.tasks) == 1 else [MIXED]

    def wave(self, task: str, batch: int, number: int) -> list[list[int]]:
        """The prompts of one batch; each number has others."""
        rows = range(number * batch, (number + 1) * batch)
        if task != MIXED:
            return [self._row(task, row) for row in rows]
        # Spread over the tasks, so that few rows are not all of the first ones.
        step = max(1, len(self.tasks) // batch)
        return [self._row(self.tasks[row * step % len(self.tasks)], row) for row in rows]

    def longest(self, batches: Sequence[int]) -> int:
        """Tokens of the longest prompt in the first waves."""
        waves = [self.wave(task, size, 0) for size in batches for task in self.tasks_at(size)]
        return max(len(ids) for wave in waves for ids in wave)


def of_tasks(
    text: Text, tasks: Sequence[str], lengths: Sequence[int] | None = None, *, depth: int = 0
) -> Prompts:
    """Prompts of our tasks; lengths (of rows 0, 1, ...) repeat. depth: see `conversation`."""

    def make(task: str, number: int) -> list[int]:
        tokens = (lengths or LENGTHS)[number % len(lengths or LENGTHS)]
        return text.prompt(conversation(text, task, number, tokens, depth))

    return Prompts(tasks, make)


def of_demo(text: Text, tasks: Sequence[str]) -> Prompts:
    """The demo's prompts, which have their own lengths."""
    return Prompts(tasks, lambda task, number: text.prompt(_row(task, number)["messages"]))


def of_noise(vocab_size: int, lengths: Sequence[int] | None = None) -> Prompts:
    """Random tokens; the lengths repeat."""

    def make(_: str, number: int) -> list[int]:
        tokens = (lengths or NOISE_LENGTHS)[number % len(lengths or NOISE_LENGTHS)]
        return random.Random(number).choices(range(vocab_size), k=tokens)

    return Prompts(["random"], make)


def conversation(text: Text, task: str, row: int, tokens: int, depth: int = 0) -> list[Message]:
    """The messages of a row: at most this many tokens, and within a word of it.

    depth: tokens of an earlier exchange on something else, in addition. Raises UsageError for
    lengths that are too short.
    """
    messages = _fitted(text, _row(task, row)["messages"], task, row, tokens)
    if depth == 0:
        return messages
    earlier: list[Message] = [
        {"role": role, "content": content}
        for role, content in zip(("user", "assistant"), EARLIER, strict=True)
    ]
    other = TASKS[TASKS.index(task) - 1]
    return _fitted(text, [*earlier, *messages], other, row, tokens + depth, "with --depth")


def _fitted(
    text: Text, messages: list[Message], task: str, row: int, tokens: int, what: str = ""
) -> list[Message]:
    """With as many words in place of {material} as fit."""
    parts, words = [], 0
    for number in count(row):  # the row's own, continued by the next: a word takes a token or more
        parts.append(_row(task, number)["material"])
        words += len(parts[-1].split())
        if words > tokens + LEAST_WORDS:
            break
    material = "\n\n".join(parts)
    ends = [word.end() for word in re.finditer(r"\S+", material)][LEAST_WORDS - 1 :]

    def filled(end: int) -> list[Message]:
        part = material[:end]
        return [{**one, "content": one["content"].replace("{material}", part)} for one in messages]

    def size(end: int) -> int:
        return len(text.prompt(filled(end)))

    if (least := size(ends[0])) > tokens:
        what = what or f"of task {task}"
        raise UsageError(f"a prompt {what} takes at least {least} tokens: {tokens} are too few")
    return filled(ends[bisect_right(ends, tokens, key=size) - 1])


def _row(task: str, number: int) -> dict[str, Any]:
    """A line: "messages" and, but for the demo's, "material". The numbers repeat."""
    rows = _lines()[task]
    return rows[number % len(rows)]


@cache
def _lines() -> dict[str, list[dict[str, Any]]]:
    """The lines of the file by task."""
    found = defaultdict(list)
    with Path(__file__).with_name("prompts.jsonl").open(encoding="utf-8") as lines:
        for line in map(json.loads, lines):
            found[line["task"]].append(line)
    return found
