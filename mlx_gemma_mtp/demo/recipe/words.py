"""Exercises with letters, words and lists: spelling, reversing, sorting, copying.

Each function draws one single-turn example from a random generator.
"""

from __future__ import annotations

import random

from .arithmetic import number
from .example import SAID, Example, ask, last_number
from .facts import NAMES, WORDS


def word_to_use(rng: random.Random) -> str:
    """Mostly a known word; sometimes an invented one, so that spelling is learned by letter."""
    if rng.random() < 0.75:
        return rng.choice(WORDS)
    syllables = [
        rng.choice("bcdfghjklmnprstvwyz") + rng.choice("aeiou") for _ in range(rng.randint(1, 3))
    ]
    return "".join(syllables) + rng.choice(("", "n", "r", "t", "s", "l", "m", "ck", "st"))


def letters(rng: random.Random) -> Example:
    word = word_to_use(rng)
    spelled = "-".join(word)
    kind = rng.randrange(5)
    if kind == 0:
        answer = f"{spelled}: {len(word)} letters"
        return ask(
            rng,
            "letters",
            SAID["length"],
            answer,
            f"{spelled} has {len(word)}.",
            right=last_number(len(word)),
            w=word,
        )
    if kind == 1:
        letter = rng.choice(word if rng.random() < 0.8 else "aeiourstln")
        count = word.count(letter)
        answer = f"{spelled}: {count}"
        return ask(
            rng,
            "letters",
            SAID["letter count"],
            answer,
            f"{spelled}: {count}.",
            right=last_number(count),
            w=word,
            c=letter,
        )
    if kind == 2:
        return ask(
            rng,
            "letters",
            SAID["first letter"],
            f"{word} starts with {word[0]}.",
            f"{spelled}.",
            w=word,
        )
    if kind == 3:
        return ask(
            rng,
            "letters",
            SAID["last letter"],
            f"{word} ends with {word[-1]}.",
            f"{spelled}.",
            w=word,
        )
    return ask(rng, "letters", SAID["capital letters"], word.upper(), f"{spelled}.", w=word)


def spelling(rng: random.Random) -> Example:
    word = word_to_use(rng)
    return ask(rng, "spelling", SAID["spell"], "-".join(word), f"The word is {word}.", w=word)


def reversing(rng: random.Random) -> Example:
    if rng.random() < 0.35:
        items = (
            rng.sample(WORDS, rng.randint(3, 7))
            if rng.random() < 0.6
            else [str(rng.randrange(100)) for _ in range(5)]
        )
        answer = ", ".join(reversed(items))
        return ask(
            rng,
            "reversing",
            SAID["reverse a list"],
            answer,
            "I start with the last one.",
            l=", ".join(items),
        )
    word = word_to_use(rng)
    return ask(rng, "reversing", SAID["reverse a word"], word[::-1], f"{'-'.join(word)}.", w=word)


def sorting(rng: random.Random) -> Example:
    if rng.random() < 0.6:
        numbers = [
            rng.randrange(rng.choice((10, 100, 100, 1000))) for _ in range(rng.randint(3, 8))
        ]
        listed = rng.choice((", ", ", ", " ")).join(map(str, numbers))
        down = rng.random() < 0.35
        wordings = SAID["sort down"] if down else SAID["sort up"]
        answer = ", ".join(map(str, sorted(numbers, reverse=down)))
        return ask(rng, "sorting", wordings, answer, f"There are {len(numbers)} numbers.", l=listed)
    if rng.random() < 0.3:
        numbers = rng.sample(range(rng.choice((20, 100, 1000))), rng.randint(3, 7))
        largest = rng.random() < 0.5
        wordings = SAID["largest"] if largest else SAID["smallest"]
        answer = str(max(numbers) if largest else min(numbers))
        return ask(
            rng, "sorting", wordings, answer, "I compare them all.", l=", ".join(map(str, numbers))
        )
    words = rng.sample(NAMES if rng.random() < 0.3 else WORDS, rng.randint(3, 6))
    answer = ", ".join(sorted(words))
    return ask(
        rng, "sorting", SAID["sort words"], answer, "I go by the first letters.", l=", ".join(words)
    )


def repeating(rng: random.Random) -> Example:
    """Copying: exactly, several times, or joined."""
    words = " ".join(
        word_to_use(rng) if rng.random() < 0.8 else str(number(rng))
        for _ in range(rng.randint(1, 8))
    )
    kind = rng.randrange(3)
    if kind == 0:
        return ask(rng, "repeating", SAID["repeat"], words, "I copy it.", t=words)
    if kind == 1:
        n = rng.randint(2, 10)
        word = word_to_use(rng)
        return ask(
            rng, "repeating", SAID["repeat times"], " ".join([word] * n), f"{n} times.", t=word, n=n
        )
    items = rng.sample(WORDS, rng.randint(2, 8))
    numbered = " ".join(f"{index}. {item}" for index, item in enumerate(items, 1))
    answer = f"{numbered}: {len(items)}"
    return ask(
        rng,
        "repeating",
        SAID["count items"],
        answer,
        "One by one.",
        right=last_number(len(items)),
        l=", ".join(items),
    )
