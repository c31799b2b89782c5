"""The benchmark's prompts: what people ask a model for, at stated lengths, different in every row.

Each is a request and the material it is about, as much of it as makes the prompt as long as stated.
Knows the chat template's tokens, and nothing of models or of time.
"""

from __future__ import annotations

import random
import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import islice
from typing import NamedTuple

from mlx_gemma_mtp.errors import UsageError
from mlx_gemma_mtp.text.messages import Message
from mlx_gemma_mtp.text.tokenizer import Text

from .material import PEOPLE, PLACES, exchanges, fill, sections
from .requests import EARLIER, REQUESTS

TASKS: tuple[str, ...] = tuple(REQUESTS)
LENGTHS = (260, 600, 300, 840, 280, 800, 450, 240)  # tokens of the prompts of rows 0 .. 7
LEAST_WORDS = 12  # of material: a request about less makes no sense
LEAST_EXCHANGES = 2  # of multi-turn, besides the one that opens it
EXCHANGE_TOKENS = range(10, 300)  # what one takes in any vocabulary, generously
SLACK = 0.03  # of a length, or this many tokens: by how much a prompt may be shorter than stated
SLACK_TOKENS = 4


class Prompt(NamedTuple):
    """A conversation that waits for the model, and what its user says after the answer."""

    task: str
    messages: list[Message]
    follow_up: str


class _Frame(NamedTuple):
    """A conversation but for its material, and how long it is to be."""

    around: Callable[[str], list[Message]]
    material: str  # more than enough of it
    tokens: int

    def size(self, text: Text, end: int) -> int:
        """Tokens of the prompt with so many characters of material."""
        return len(text.prompt(self.around(self.material[:end])))


def prompts(
    text: Text, task: str, lengths: Sequence[int], *, first_row: int = 0, depth: int = 0
) -> list[Prompt]:
    """Prompts of one task for rows first_row and on: each row's its own, the same in every call.

    lengths: tokens of each as `text.prompt` lays it out, kept to within 3 % or 4 tokens from below.
    depth: tokens of an exchange about something else that comes before it, in addition.
    Raises UsageError for a task that there is not, and a length or depth that is too small.
    """
    if task not in REQUESTS:
        raise UsageError(f"there is no task {task!r}, only {', '.join(TASKS)}")
    rows = range(first_row, first_row + len(lengths))
    frames = [_frame(text, task, row, tokens) for row, tokens in zip(rows, lengths, strict=True)]
    talks = _complete(text, f"a prompt of task {task}", frames, [0] * len(frames))
    if depth:
        behind = [
            _behind_notes(talk, row, tokens + depth)
            for talk, row, tokens in zip(talks, rows, lengths, strict=True)
        ]
        talks = _complete(text, "a depth", behind, lengths)
    return [Prompt(task, talk, REQUESTS[task].follow_up) for talk in talks]


def _frame(text: Text, task: str, row: int, tokens: int) -> _Frame:
    """A row's conversation without its material, with as many exchanges as there is room for."""
    request, words, rng = REQUESTS[task], _words(task, row), random.Random(row)
    asked = fill(request.words, words, rng)
    if request.opening is None:
        material = _material(task, f"{task} {row}", tokens)
        return _Frame(lambda part: [_user(asked + part + request.end)], material, tokens)
    # Less of it than one more exchange would take.
    material = _material("notes", f"{task} {row}", EXCHANGE_TOKENS.stop)
    question, answer = (fill(said, words, rng) for said in request.opening)
    most = LEAST_EXCHANGES + tokens // EXCHANGE_TOKENS.start
    talk = [(question, answer), *islice(exchanges(str(row)), most)]
    turns = [turn for said in talk for turn in _exchange(*said)]

    def frame(num_exchanges: int) -> _Frame:
        before = turns[: 2 * (1 + num_exchanges)]
        return _Frame(lambda part: [*before, _user(asked + part)], material, tokens)

    least = _ends(material)[0]
    room = bisect_right(
        range(len(talk)), tokens, lo=LEAST_EXCHANGES + 1, key=lambda n: frame(n).size(text, least)
    )
    return frame(room - 1)


def _behind_notes(messages: list[Message], row: int, tokens: int) -> _Frame:
    """A conversation that another exchange comes before."""
    ask, answer = EARLIER
    return _Frame(
        lambda part: [*_exchange(ask + part, answer), *messages],
        _material("notes", f"earlier {row}", tokens),
        tokens,
    )


def _complete(
    text: Text, named: str, frames: list[_Frame], given: Sequence[int]
) -> list[list[Message]]:
    """The conversations with as much material as they have room for.

    given: tokens of each that are not counted in what a refusal says.
    """
    least = [frame.size(text, _ends(frame.material)[0]) for frame in frames]
    for frame, size, before in zip(frames, least, given, strict=True):
        if size > frame.tokens:
            needed = max(size - before for size, before in zip(least, given, strict=True))
            raise UsageError(
                f"{named} takes at least {needed} tokens: {frame.tokens - before} are too few"
            )
    return [frame.around(frame.material[: _end(text, frame)]) for frame in frames]


def _end(text: Text, frame: _Frame) -> int:
    """Characters of material that there is room for: to the end of a word if that is near enough.

    It is with Gemma's vocabulary. A small one may take a word apart into many tokens.
    """

    def size(end: int) -> int:
        return frame.size(text, end)

    ends = _ends(frame.material)
    at = bisect_right(ends, frame.tokens, lo=1, key=size)
    end = ends[at - 1]
    if frame.tokens - size(end) <= max(SLACK_TOKENS, SLACK * frame.tokens):
        return end
    within = range(end, ends[at])
    return within[bisect_right(within, frame.tokens, lo=1, key=size) - 1]


def _ends(material: str) -> list[int]:
    """Where the material may end: behind its words, the first few apart."""
    return [word.end() for word in re.finditer(r"\S+", material)][LEAST_WORDS - 1 :]


def _material(kind: str, seed: str, tokens: int) -> str:
    """Sections of more words than that; a word takes a token or more."""
    parts: list[str] = []
    num_words = 0
    for section in sections(kind, seed):
        parts.append(section)
        num_words += len(section.split())
        if num_words > tokens + LEAST_WORDS:
            break
    return "\n\n".join(parts)


def _words(task: str, row: int) -> dict[str, str]:
    """Who asks for what: person and place are a pair that no other of 576 rows has."""
    subjects = REQUESTS[task].subjects
    return {
        "person": PEOPLE[row % len(PEOPLE)],
        "place": PLACES[(row + row // len(PEOPLE)) % len(PLACES)],
        "subject": subjects[row % len(subjects)],
    }


def _exchange(asked: str, answered: str) -> list[Message]:
    return [_user(asked), {"role": "assistant", "content": answered}]


def _user(content: str) -> Message:
    return {"role": "user", "content": content}
