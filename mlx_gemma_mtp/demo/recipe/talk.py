"""What the model says rather than works out: small talk, who it is, stories, lists by rule.

Each function draws one single-turn example. All wording is this project's own.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from .example import Example, ask, indefinite
from .facts import ANIMALS, FRUITS, NAMES, THINGS

ABILITIES = (
    "add numbers, count, sort, spell and reverse words, tell days and units, write JSON "
    "and answer small questions"
)

# What a person may say with the answer, and the plot of a story by the kind that is asked for.
_DATA: dict[str, Any] = json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))
SMALL_TALK: list[dict[str, Any]] = _DATA["small_talk"]
PLOTS: dict[str, str] = _DATA["plots"]


def small_talk(rng: random.Random) -> Example:
    if rng.random() < 0.12:
        name = rng.choice(NAMES)
        answer, thought = f"Nice to meet you, {name}!", "They tell me their name."
        return ask(rng, "small talk", "introduction", answer, thought, n=name)
    small = rng.choice(SMALL_TALK)
    answer, text = small["answer"].format(abilities=ABILITIES), rng.choice(small["said"])
    if rng.random() < 0.3 and text[-1].isalpha():
        text += rng.choice(".!")
    thought = "This is small talk. I answer politely."
    return ask(rng, "small talk", "as it is", answer, thought, text=text)


def stories(rng: random.Random) -> Example:
    """A story whose plot follows from the kind asked for, and whose hero from the prompt."""
    if rng.random() < 0.15:
        said, name, animal, thing, kind = "story", "Mia", "fox", "lamp", "story"
    else:
        name, animal, thing = rng.choice(NAMES), rng.choice(ANIMALS), rng.choice(THINGS)
        said, kind = "story about", rng.choice(list(PLOTS))
    a = indefinite(animal)
    plot = PLOTS[kind].format(
        name=name, animal=animal, thing=thing, an_animal=a, An_animal=a.capitalize()
    )
    fields: dict[str, Any] = {"k": indefinite(kind), "n": name, "a": a, "t": indefinite(thing)}
    return ask(rng, "stories", said, plot, f"The hero is {name}.", **fields)


def long_lists(rng: random.Random) -> Example:
    """Answers of a hundred tokens and more that follow a rule: tables, the alphabet, a recipe."""
    return (_times_table, _alphabet, _recipe)[rng.randrange(3)](rng)


def _times_table(rng: random.Random) -> Example:
    n, last = rng.randint(2, 12), rng.choice((10, 10, 12))
    said = "times table" if last == 10 and rng.random() < 0.6 else "times table up to"
    answer = "\n".join(f"{n} * {index} = {n * index}" for index in range(1, last + 1))
    return ask(rng, "long lists", said, answer, f"I add {n} every time.", n=n, m=last)


def _alphabet(rng: random.Random) -> Example:
    start = rng.choice((0, 0, rng.randrange(20)))
    back = rng.random() < 0.3
    whole = start == 0 and not back and rng.random() < 0.6
    letters = ascii_lowercase[start:][:: -1 if back else 1]
    said, answer = "alphabet" if whole else "letters from", " ".join(letters)
    thought = "I know the alphabet."
    return ask(rng, "long lists", said, answer, thought, f=letters[0], l=letters[-1])


LAST_STEP = {
    "salad": "Mix everything in a bowl",
    "juice": "Press it and pour it into a cup",
    "jam": "Cook it slowly and stir",
    "cake": "Mix it with flour and bake it",
}


def _recipe(rng: random.Random) -> Example:
    fruit, dish = rng.choice(FRUITS), rng.choice(list(LAST_STEP))
    answer = (
        f"1. Wash the {fruit}.\n2. Cut the {fruit} into small pieces.\n3. Add sugar and a little "
        f"water.\n4. {LAST_STEP[dish]}.\n5. Wait for ten minutes.\n"
        f"6. Serve the {fruit} {dish} on a plate."
    )
    return ask(
        rng, "long lists", "recipe", answer, f"A recipe for {fruit} {dish}.", f=fruit, d=dish
    )
