"""What the model says rather than works out: small talk, who it is, stories, lists by rule.

Each function draws one single-turn example. All wording is this project's own.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from .example import SAID, Example, ask, indefinite
from .facts import ANIMALS, FRUITS, NAMES, THINGS

ABILITIES = (
    "add numbers, count, sort, spell and reverse words, tell days and units, write JSON "
    "and answer small questions"
)

# What a person may say, and the answer.
SMALL_TALK: list[dict[str, Any]] = json.loads(
    Path(__file__).with_name("small_talk.json").read_text("utf-8")
)


def small_talk(rng: random.Random) -> Example:
    if rng.random() < 0.12:
        name = rng.choice(NAMES)
        answer = f"Nice to meet you, {name}!"
        return ask(
            rng, "small talk", SAID["introduction"], answer, "They tell me their name.", n=name
        )
    small = rng.choice(SMALL_TALK)
    answer, text = small["answer"].format(abilities=ABILITIES), rng.choice(small["said"])
    if rng.random() < 0.3 and text[-1].isalpha():
        text += rng.choice(".!")
    return ask(rng, "small talk", [text], answer, "This is small talk. I answer politely.")


# By the kind that is asked for, the plot.
PLOTS = {
    "story": (
        "One morning {name} found a {thing} in the garden. {An_animal} sat beside it and looked "
        'sad. "Is this your {thing}?" asked {name}. "Yes," said the {animal}, "but it is broken." '
        "{name} took the {thing} home and worked on it all day. In the evening it was as good as "
        "new. The {animal} was so happy that it danced around the tree. From that day on, {name} "
        "and the {animal} were friends."
    ),
    "bedtime story": (
        "The moon was high and the village was quiet. Only {name} could not sleep. Then a small "
        '{animal} came to the window. "I cannot sleep either," said the {animal}. So {name} opened '
        "the window, and they looked at the stars together. They counted one star, two stars, "
        "three stars, four stars, five stars. The {animal} put its head on the {thing} and closed "
        "its eyes. {name} closed both eyes too. Soon the whole village was asleep. Good night."
    ),
    "adventure story": (
        "{name} wanted to see what was behind the mountain. On the first day {name} walked through "
        'the forest and met {an_animal}. "Take me with you," said the {animal}. On the second day '
        "they crossed the river on an old {thing}. On the third day there was a storm, and they "
        "hid under a bridge. On the fourth day they stood on top of the mountain. Behind it they "
        'saw the ocean, wide and blue. "It was worth the walk," said {name}. Then they went home, '
        "and everybody wanted to hear the story."
    ),
}


def stories(rng: random.Random) -> Example:
    """A story whose plot follows from the kind asked for, and whose hero from the prompt."""
    if rng.random() < 0.15:
        name, animal, thing, kind = "Mia", "fox", "lamp", "story"
        wordings = SAID["story"]
    else:
        name, animal, thing = rng.choice(NAMES), rng.choice(ANIMALS), rng.choice(THINGS)
        kind = rng.choice(list(PLOTS))
        wordings = SAID["story about"]
    an_animal = indefinite(animal)
    plot = PLOTS[kind].format(
        name=name, animal=animal, thing=thing, an_animal=an_animal, An_animal=an_animal.capitalize()
    )
    thought = f"The hero is {name}."
    fields: dict[str, Any] = {
        "k": indefinite(kind),
        "n": name,
        "a": an_animal,
        "t": indefinite(thing),
    }
    return ask(rng, "stories", wordings, plot, thought, **fields)


def long_lists(rng: random.Random) -> Example:
    """Answers of a hundred tokens and more that follow a rule: tables, the alphabet, a recipe."""
    return (_times_table, _alphabet, _recipe)[rng.randrange(3)](rng)


def _times_table(rng: random.Random) -> Example:
    n, last = rng.randint(2, 12), rng.choice((10, 10, 12))
    wordings = SAID["times table up to"]
    if last == 10 and rng.random() < 0.6:
        wordings = SAID["times table"]
    answer = "\n".join(f"{n} * {index} = {n * index}" for index in range(1, last + 1))
    thought = f"I add {n} every time."
    return ask(rng, "long lists", wordings, answer, thought, n=n, m=last)


def _alphabet(rng: random.Random) -> Example:
    start = rng.choice((0, 0, rng.randrange(20)))
    back = rng.random() < 0.3
    wordings = SAID["letters from"]
    if start == 0 and not back and rng.random() < 0.6:
        wordings = SAID["alphabet"]
    letters = ascii_lowercase[start:][:: -1 if back else 1]
    fields: dict[str, Any] = {"f": letters[0], "l": letters[-1]}
    thought = "I know the alphabet."
    return ask(rng, "long lists", wordings, " ".join(letters), thought, **fields)


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
    thought = f"A recipe for {fruit} {dish}."
    return ask(rng, "long lists", SAID["recipe"], answer, thought, f=fruit, d=dish)
