"""Exercises with letters, words and lists: spelling, reversing, sorting, copying.

Each function draws one single-turn example from a random generator.
"""

from __future__ import annotations

import random

from .arithmetic import number
from .example import Example, ask, last_number
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
        answer, thought = f"{spelled}: {len(word)} letters", f"{spelled} has {len(word)}."
        return ask(rng, "letters", "length", answer, thought, right=last_number(len(word)), w=word)
    if kind == 1:
        letter = rng.choice(word if rng.random() < 0.8 else "aeiourstln")
        count = word.count(letter)
        answer, right = f"{spelled}: {count}", last_number(count)
        return ask(
            rng, "letters", "letter count", answer, f"{answer}.", right=right, w=word, c=letter
        )
    said, answer = (
        ("first letter", f"{word} starts with {word[0]}."),
        ("last letter", f"{word} ends with {word[-1]}."),
        ("capital letters", word.upper()),
    )[kind - 2]
    return ask(rng, "letters", said, answer, f"{spelled}.", w=word)


def spelling(rng: random.Random) -> Example:
    word = word_to_use(rng)
    return ask(rng, "spelling", "spell", "-".join(word), f"The word is {word}.", w=word)


def reversing(rng: random.Random) -> Example:
    if rng.random() >= 0.35:
        word = word_to_use(rng)
        return ask(rng, "reversing", "reverse a word", word[::-1], f"{'-'.join(word)}.", w=word)
    if rng.random() < 0.6:
        items = rng.sample(WORDS, rng.randint(3, 7))
    else:
        items = [str(rng.randrange(100)) for _ in range(5)]
    answer, thought = ", ".join(reversed(items)), "I start with the last one."
    return ask(rng, "reversing", "reverse a list", answer, thought, l=", ".join(items))


def sorting(rng: random.Random) -> Example:
    if rng.random() < 0.6:
        numbers = [
            rng.randrange(rng.choice((10, 100, 100, 1000))) for _ in range(rng.randint(3, 8))
        ]
        listed = rng.choice((", ", ", ", " ")).join(map(str, numbers))
        down = rng.random() < 0.35
        answer = ", ".join(map(str, sorted(numbers, reverse=down)))
        said, thought = "sort down" if down else "sort up", f"There are {len(numbers)} numbers."
    elif rng.random() < 0.3:
        numbers = rng.sample(range(rng.choice((20, 100, 1000))), rng.randint(3, 7))
        listed = ", ".join(map(str, numbers))
        largest = rng.random() < 0.5
        answer = str(max(numbers) if largest else min(numbers))
        said, thought = "largest" if largest else "smallest", "I compare them all."
    else:
        words = rng.sample(NAMES if rng.random() < 0.3 else WORDS, rng.randint(3, 6))
        listed, answer = ", ".join(words), ", ".join(sorted(words))
        said, thought = "sort words", "I go by the first letters."
    return ask(rng, "sorting", said, answer, thought, l=listed)


def repeating(rng: random.Random) -> Example:
    """Copying: exactly, several times, or numbered."""
    words = " ".join(
        word_to_use(rng) if rng.random() < 0.8 else str(number(rng))
        for _ in range(rng.randint(1, 8))
    )
    kind = rng.randrange(3)
    if kind == 0:
        return ask(rng, "repeating", "repeat", words, "I copy it.", t=words)
    if kind == 1:
        n, word = rng.randint(2, 10), word_to_use(rng)
        answer = " ".join([word] * n)
        return ask(rng, "repeating", "repeat times", answer, f"{n} times.", t=word, n=n)
    items = rng.sample(WORDS, rng.randint(2, 8))
    numbered = " ".join(f"{index}. {item}" for index, item in enumerate(items, 1))
    answer, right = f"{numbered}: {len(items)}", last_number(len(items))
    listed = ", ".join(items)
    return ask(rng, "repeating", "count items", answer, "One by one.", right=right, l=listed)
