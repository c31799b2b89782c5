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
        wordings = (
            "How many letters are in the word {w}? | How many letters does {w} have? | "
            'Count the letters in {w}. | How many letters are there in "{w}"? | '
            "What is the length of the word {w}?"
        )
        answer = f"{spelled}: {len(word)} letters"
        return ask(
            rng,
            "letters",
            wordings,
            answer,
            thought=f"{spelled} has {len(word)}.",
            right=last_number(len(word)),
            w=word,
        )
    if kind == 1:
        letter = rng.choice(word if rng.random() < 0.8 else "aeiourstln")
        wordings = (
            "How many times does the letter {c} appear in {w}? | How many {c}s are in {w}? | "
            'Count the letter {c} in "{w}". | How often is {c} in the word {w}? | '
            "How many {c}'s are in the word {w}?"
        )
        count = word.count(letter)
        answer = f"{spelled}: {count}"
        return ask(
            rng,
            "letters",
            wordings,
            answer,
            thought=f"{spelled}: {count}.",
            right=last_number(count),
            w=word,
            c=letter,
        )
    if kind == 2:
        wordings = (
            "What is the first letter of {w}? | Which letter does {w} start with? | "
            'First letter of "{w}"?'
        )
        return ask(
            rng,
            "letters",
            wordings,
            f"{word} starts with {word[0]}.",
            thought=f"{spelled}.",
            w=word,
        )
    if kind == 3:
        wordings = (
            "What is the last letter of {w}? | Which letter does {w} end with? | "
            'Last letter of "{w}"?'
        )
        return ask(
            rng, "letters", wordings, f"{word} ends with {word[-1]}.", thought=f"{spelled}.", w=word
        )
    wordings = (
        'Write {w} in capital letters. | Write "{w}" in capitals. | '
        "Put {w} in upper case. | Uppercase: {w}"
    )
    return ask(rng, "letters", wordings, word.upper(), thought=f"{spelled}.", w=word)


def spelling(rng: random.Random) -> Example:
    word = word_to_use(rng)
    wordings = (
        'Spell {w}. | Spell the word {w}. | How do you spell {w}? | Spell "{w}". | '
        "Can you spell {w}? | Please spell {w} for me. | Spell out the word {w}. | "
        "What is the spelling of {w}? | spell {w}"
    )
    return ask(rng, "spelling", wordings, "-".join(word), thought=f"The word is {word}.", w=word)


def reversing(rng: random.Random) -> Example:
    if rng.random() < 0.35:
        items = (
            rng.sample(WORDS, rng.randint(3, 7))
            if rng.random() < 0.6
            else [str(rng.randrange(100)) for _ in range(5)]
        )
        wordings = (
            "Reverse this list: {l}. | Write this list backwards: {l} | "
            "Turn the order around: {l}. | Reverse the order of these items: {l}."
        )
        answer = ", ".join(reversed(items))
        return ask(
            rng,
            "reversing",
            wordings,
            answer,
            thought="I start with the last one.",
            l=", ".join(items),
        )
    word = word_to_use(rng)
    wordings = (
        'Reverse the word {w}. | Write "{w}" backwards. | Write {w} backwards. | '
        "What is {w} backwards? | Spell {w} backwards. | Can you reverse {w}? | "
        "Reverse: {w} | Say {w} in reverse. | reverse {w}"
    )
    return ask(rng, "reversing", wordings, word[::-1], thought=f"{'-'.join(word)}.", w=word)


def sorting(rng: random.Random) -> Example:
    if rng.random() < 0.6:
        numbers = [
            rng.randrange(rng.choice((10, 100, 100, 1000))) for _ in range(rng.randint(3, 8))
        ]
        listed = rng.choice((", ", ", ", " ")).join(map(str, numbers))
        down = rng.random() < 0.35
        wordings = (
            (
                "Sort these numbers from largest to smallest: {l} | "
                "Sort in descending order: {l}. | Put these numbers in descending order: {l}. | "
                "Order from high to low: {l}"
            )
            if down
            else (
                "Sort these numbers: {l} | Sort {l}. | Sort the numbers {l}. | "
                "Put these numbers in order: {l}. | "
                "Sort these numbers from smallest to largest: {l}. | Order these numbers: {l}. | "
                "Sort in ascending order: {l} | Can you sort {l}? | "
                "Please sort these numbers: {l}"
            )
        )
        answer = ", ".join(map(str, sorted(numbers, reverse=down)))
        return ask(
            rng, "sorting", wordings, answer, thought=f"There are {len(numbers)} numbers.", l=listed
        )
    if rng.random() < 0.3:
        numbers = rng.sample(range(rng.choice((20, 100, 1000))), rng.randint(3, 7))
        largest = rng.random() < 0.5
        wordings = (
            (
                "What is the largest of {l}? | Which number is the biggest: {l}? | "
                "Find the maximum of {l}."
            )
            if largest
            else (
                "What is the smallest of {l}? | Which number is the smallest: {l}? | "
                "Find the minimum of {l}."
            )
        )
        answer = str(max(numbers) if largest else min(numbers))
        return ask(
            rng,
            "sorting",
            wordings,
            answer,
            thought="I compare them all.",
            l=", ".join(map(str, numbers)),
        )
    words = rng.sample(NAMES if rng.random() < 0.3 else WORDS, rng.randint(3, 6))
    wordings = (
        "Sort these words: {l}. | Sort these words alphabetically: {l} | "
        "Put these words in alphabetical order: {l}. | Order alphabetically: {l} | "
        "Can you sort {l}? | Sort {l} by the alphabet. | Please sort these words: {l}"
    )
    answer = ", ".join(sorted(words))
    return ask(
        rng, "sorting", wordings, answer, thought="I go by the first letters.", l=", ".join(words)
    )


def repeating(rng: random.Random) -> Example:
    """Copying: exactly, several times, or joined."""
    words = " ".join(
        word_to_use(rng) if rng.random() < 0.8 else str(number(rng))
        for _ in range(rng.randint(1, 8))
    )
    kind = rng.randrange(3)
    if kind == 0:
        wordings = (
            "Repeat after me: {t} | Say: {t} | Repeat this: {t} | Copy this text: {t} | "
            'Please say: {t} | Say "{t}"'
        )
        return ask(rng, "repeating", wordings, words, thought="I copy it.", t=words)
    if kind == 1:
        n = rng.randint(2, 10)
        word = word_to_use(rng)
        wordings = (
            "Say {t} {n} times. | Write {t} {n} times. | Repeat the word {t} {n} times. | "
            "{n} times {t}, please."
        )
        return ask(
            rng, "repeating", wordings, " ".join([word] * n), thought=f"{n} times.", t=word, n=n
        )
    items = rng.sample(WORDS, rng.randint(2, 8))
    wordings = (
        "How many items are in this list: {l}? | Count the items: {l} | "
        "How many words are here: {l}? | Count these words: {l}."
    )
    numbered = " ".join(f"{index}. {item}" for index, item in enumerate(items, 1))
    answer = f"{numbered}: {len(items)}"
    return ask(
        rng,
        "repeating",
        wordings,
        answer,
        thought="One by one.",
        right=last_number(len(items)),
        l=", ".join(items),
    )
