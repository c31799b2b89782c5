"""Exercises about what the model was told: days and months, the tables of `facts`, and JSON.

Each function draws one single-turn example from a random generator.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

from .arithmetic import THINGS_TO_OWN
from .example import Example, ask, indefinite, same_json
from .facts import (
    ANIMALS,
    CAPITALS,
    CITIES,
    COLOURS,
    FRUITS,
    LEGS,
    MONTH_DAYS,
    MONTHS,
    NAMES,
    OPPOSITES,
    ORDINALS,
    PAST_TENSE,
    PLURALS,
    SOUNDS,
    THINGS,
    TRANSLATIONS,
    WEEKDAYS,
    YOUNG,
    number_in_words,
)


def days(rng: random.Random) -> Example:
    names, kind = rng.choice(((WEEKDAYS, "day"), (WEEKDAYS, "day"), (MONTHS, "month")))
    index = rng.randrange(len(names))
    now = names[index]

    def away(steps: int) -> str:
        return names[(index + steps) % len(names)]

    choice = rng.randrange(6)
    if choice == 0:
        way, steps = ("after", 1) if rng.random() < 0.5 else ("before", -1)
        answer, thought = f"{away(steps)} comes {way} {now}.", f"I go from {now}."
        return ask(rng, "days", "next or previous", answer, thought, p=way, d=now, k=kind)
    if choice in (1, 2):
        n = rng.randint(2, 30 if kind == "day" else 14)
        way, steps = ("after", n) if rng.random() < 0.7 else ("before", -n)
        said = "days after" if steps > 0 and kind == "day" else "days or months away"
        rest = n % len(names)
        thought = (
            f"{n} is {n // len(names)} times {len(names)} and {rest}. "
            f"So I go {rest} {way} {now}: {away(steps)}."
        )
        answer = f"{n} {kind}s {way} {now} is {away(steps)}."
        return ask(rng, "days", said, answer, thought, n=n, k=kind, d=now, p=way)
    if choice == 3 and kind == "day":
        said, verb, steps = (
            ("tomorrow", "is", 1) if rng.random() < 0.5 else ("yesterday", "was", -1)
        )
        answer = f"{said.capitalize()} {verb} {away(steps)}."
        return ask(rng, "days", said, answer, f"I go one from {now}.", d=now, t=said)
    if choice == 4 and kind == "month":
        answer = f"{now} has {MONTH_DAYS[now]} days."
        return ask(rng, "days", "days of a month", answer, "I know the months.", d=now)
    if choice == 5:
        ordinal, whole = ORDINALS[index], "week" if kind == "day" else "year"
        answer = f"{now} is the {ordinal} {kind} of the {whole}."
        thought = f"Number {number_in_words(index + 1)}."
        return ask(rng, "days", "ordinal", answer, thought, o=ordinal, k=kind, p=whole)
    said = "weekdays" if kind == "day" else "months"
    return ask(rng, "days", said, ", ".join(names), f"I start with {names[0]}.")


# By what is asked for: the table, and the answer for a word {w} of it; {a} has an article.
TABLES: dict[str, tuple[Mapping[str, object], str]] = {
    "capital": (CAPITALS, "The capital of {w} is {fact}."),
    "colour": (COLOURS, "{w} is {fact}."),
    "sound": (SOUNDS, "{a} says {fact}."),
    "young": (YOUNG, "A young {w} is called a {fact}."),
    "legs": (LEGS, "{a} has {fact} legs."),
    "opposite": (OPPOSITES, "The opposite of {w} is {fact}."),
    "plural": (PLURALS, "The plural of {w} is {fact}."),
    "past tense": (PAST_TENSE, "The past tense of {w} is {fact}."),
}
# Capitals are asked for twice as often. A form is a plural or a past tense.
ASKED_FOR = (
    "capital", "capital", "colour", "sound", "young",
    "legs", "opposite", "translation", "form", "in words",
)  # fmt: skip


def facts(rng: random.Random) -> Example:
    """Something out of the tables of `facts`."""
    said, language = rng.choice(ASKED_FOR), ""
    if said == "in words":
        n = rng.randrange(1000)
        return ask(rng, "facts", said, number_in_words(n), "Hundreds, tens, ones.", n=n)
    if said == "form":
        said = "plural" if rng.random() < 0.5 else "past tense"
    if said == "translation":
        language = rng.choice(list(TRANSLATIONS))
        table: Mapping[str, object] = TRANSLATIONS[language]
        sentence = "In {l}, {w} is {fact}."
    else:
        table, sentence = TABLES[said]
    word = rng.choice(list(table))
    fields: dict[str, Any] = {"w": word, "a": indefinite(word), "l": language}
    answer = sentence.format(fact=table[word], **fields)
    answer = answer[0].upper() + answer[1:]
    return ask(rng, "facts", said, answer, "This is in my small table of facts.", **fields)


def categories(rng: random.Random) -> Example:
    """Is it an animal, a fruit or a thing; and naming a few."""
    group, kind = rng.choice(((ANIMALS, "an animal"), (FRUITS, "a fruit"), (THINGS, "a thing")))
    word = rng.choice(group)
    if rng.random() < 0.75:
        return ask(rng, "facts", "which kind", f"{word} is {kind}.", "I look it up.", w=word)
    names = rng.sample(ANIMALS + FRUITS, rng.randint(4, 7))
    kinds, group = ("animals", ANIMALS) if rng.random() < 0.5 else ("fruits", FRUITS)
    answer = ", ".join(name for name in names if name in group) or "None of them."
    return ask(rng, "facts", "pick a kind", answer, "One by one.", k=kinds, l=", ".join(names))


def json_objects(rng: random.Random) -> Example:
    name, city, day = rng.choice(NAMES), rng.choice(CITIES), rng.choice(WEEKDAYS)
    n, hour = rng.randrange(1, 100), rng.randrange(24)
    thing = rng.choice(THINGS_TO_OWN)
    person = {"name": name, "age": n, "city": city}
    owned = {"name": name, "item": thing, "count": n}
    meeting = {"event": "meeting", "with": name, "day": day, "hour": hour}
    sentences: tuple[tuple[str, dict[str, Any]], ...] = (
        (f"{name} is {n} years old and lives in {city}.", person),
        (f"{name}, {n}, lives in {city}.", person),
        (f"{name} lives in {city} and is {n}.", person),
        (f"{name} bought {n} {PLURALS[thing]}.", owned),
        (f"{name} has {n} {PLURALS[thing]}.", owned),
        (f"The {thing} costs {n} euros.", {"item": thing, "price": n}),
        (f"It is {n % 40} degrees in {city}.", {"city": city, "temperature": n % 40}),
        (f"{name} arrives in {city} on {day}.", {"name": name, "city": city, "day": day}),
        (f"Meeting with {name} on {day} at {hour}.", meeting),
    )
    sentence, wanted = rng.choice(sentences)
    answer, thought = json.dumps(wanted), f"The keys are {', '.join(wanted)}."
    return ask(rng, "json", "json", answer, thought, right=same_json(wanted), s=sentence)
