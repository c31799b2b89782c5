"""The demo model's exercises: an endless, seeded stream, and an examination it never saw.

A prompt's own content decides whether it is held out (see `Example.held_out`), so no seed, order or
number of draws can leak one into training. Pure Python: neither torch nor transformers nor mlx.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

from . import arithmetic, chats, knowledge, talk, tools, unknown, words
from .example import Draw, Example

# How often each kind is drawn, in relation to the others.
SINGLE_TURN: tuple[tuple[int, Draw], ...] = (
    (16, arithmetic.sums),
    (9, arithmetic.differences),
    (5, arithmetic.products),
    (5, arithmetic.word_problems),
    (3, arithmetic.comparisons),
    (5, arithmetic.counting),
    (8, words.letters),
    (4, words.spelling),
    (7, words.reversing),
    (9, words.sorting),
    (8, knowledge.days),
    (6, arithmetic.units),
    (9, knowledge.facts),
    (2, knowledge.categories),
    (5, knowledge.json_objects),
    (4, words.repeating),
    (8, talk.small_talk),
    (11, unknown.out_of_scope),
    (1, unknown.too_large),
    (3, talk.stories),
    (3, talk.long_lists),
)
CHAT_SHARE, TOOL_SHARE, SYSTEM_SHARE, THINKING_SHARE = 0.14, 0.09, 0.06, 0.12

_WEIGHTS = [weight for weight, _ in SINGLE_TURN]
_DRAWS = [draw for _, draw in SINGLE_TURN]


def single_turn(rng: random.Random) -> Example:
    return rng.choices(_DRAWS, _WEIGHTS)[0](rng)


def draw(rng: random.Random) -> Example:
    """One example of any kind, held out or not."""
    kind = rng.random()
    if kind < CHAT_SHARE:
        example = chats.chat(rng, single_turn)
    elif kind < CHAT_SHARE + TOOL_SHARE:
        example = tools.tool_calls(rng, single_turn)
    else:
        example = single_turn(rng)
    if rng.random() < SYSTEM_SHARE:
        example = chats.with_system_prompt(rng, example)
    if rng.random() < THINKING_SHARE and example.task != "tool results":
        example = replace(example, thinking=True)
    return example


def training_stream(seed: int) -> Iterator[Example]:
    """Examples for training, without end. None of them is held out."""
    rng = random.Random(f"training-{seed}")
    while True:
        example = draw(rng)
        if not example.held_out:
            yield example


def held_out(n: int, seed: int = 0) -> list[Example]:
    """`n` different examples whose prompts no training stream ever yields, whatever its seed."""
    rng = random.Random(f"held-out-{seed}")
    found: dict[str, Example] = {}
    while len(found) < n:
        example = draw(rng)
        if example.held_out:
            found.setdefault(repr((example.messages, example.thinking)), example)
    return list(found.values())
