"""The prompts of a benchmark: by task and row, as token ids, the same for every engine.

Knows nothing of engines or of time.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

from mlx_gemma_mtp import Completion
from mlx_gemma_mtp.text.messages import Message, Prompt
from mlx_gemma_mtp.text.tokenizer import Text

from . import tasks as texts
from .record import MIXED

RANDOM = "random"  # the only task of a model that is noise
# Of random prompts. With up to 128 tokens after it the first stays below 256, the longest below
# 1,024: no cache grows in a window.
RANDOM_LENGTHS = (64, 512, 256, 768, 192, 640, 384, 96)
FOLLOW_UP_TOKENS = 40  # of a random prompt's second turn


class Row(NamedTuple):
    """One prompt, and the prompt of the conversation's next turn when the answer is there."""

    ids: list[int]
    then: Callable[[Completion], Prompt]


class Workload:
    """Rows by task and number; `make(task, number)` gives one, always the same."""

    def __init__(self, tasks: Sequence[str], make: Callable[[str, int], Row]) -> None:
        self.tasks = tuple(tasks)
        self._row = cache(make)

    def tasks_at(self, batch: int) -> tuple[str, ...]:
        """What is measured at this batch: every task by itself, or rows of all of them."""
        return self.tasks if batch == 1 or len(self.tasks) == 1 else (MIXED,)

    def wave(self, task: str, batch: int, number: int) -> list[Row]:
        """Rows that go in side by side, all different; another wave has others."""
        numbers = range(number * batch, (number + 1) * batch)
        if task != MIXED:
            return [self._row(task, at) for at in numbers]
        # Spread over the list, so that few rows are not all of its first tasks.
        step = max(1, len(self.tasks) // batch)
        return [self._row(self.tasks[at * step % len(self.tasks)], at) for at in numbers]


def by_task(
    text: Text, tasks: Sequence[str], lengths: Sequence[int], *, depth: int = 0
) -> Workload:
    """Prompts of our own tasks; row i has lengths[i], over and over, after `depth` tokens.

    Raises UsageError for a length that a task's instruction does not fit into.
    """

    def make(task: str, number: int) -> Row:
        length = lengths[number % len(lengths)]
        (prompt,) = texts.prompts(text, task, [length], first_row=number, depth=depth)
        return _of_messages(text, prompt.messages, prompt.follow_up)

    return Workload(tasks, make)


def of_conversations(text: Text, conversations: dict[str, list[list[Message]]]) -> Workload:
    """Prompts that are there already, by task; the second turn of one is the first of the next."""

    def make(task: str, number: int) -> Row:
        of = conversations[task]
        follow_up = of[(number + 1) % len(of)][-1]["content"]
        return _of_messages(text, of[number % len(of)], follow_up)

    return Workload(tuple(conversations), make)


def of_noise(vocab_size: int, lengths: Sequence[int]) -> Workload:
    """Random tokens; row i has lengths[i], over and over."""

    def make(_: str, number: int) -> Row:
        rng = random.Random(number)
        ids = rng.choices(range(vocab_size), k=lengths[number % len(lengths)])
        more = rng.choices(range(vocab_size), k=FOLLOW_UP_TOKENS)
        return Row(ids, lambda answer: [*ids, *answer.tokens, *more])

    return Workload((RANDOM,), make)


def _of_messages(text: Text, messages: Sequence[Message], follow_up: str) -> Row:
    def then(answer: Completion) -> Prompt:
        return [*messages, answer.message, {"role": "user", "content": follow_up}]

    return Row(text.prompt(list(messages)), then)
