"""Exercises about what the model was told: days and months, the tables of `facts`, and JSON.

Each function draws one single-turn example from a random generator.
"""

from __future__ import annotations

import json
import random
from typing import Any

from .arithmetic import THINGS_TO_OWN
from .example import SAID, Example, ask, indefinite, same_json
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
    choice = rng.randrange(6)
    if choice == 0:
        after = rng.random() < 0.5
        place = "after" if after else "before"
        answer = names[(index + (1 if after else -1)) % len(names)]
        return ask(
            rng,
            "days",
            SAID["next or previous"],
            f"{answer} comes {place} {now}.",
            f"I go from {now}.",
            p=place,
            d=now,
            k=kind,
        )
    if choice in (1, 2):
        n = rng.randint(2, 30 if kind == "day" else 14)
        after = rng.random() < 0.7
        way = "after" if after else "before"
        answer = names[(index + (n if after else -n)) % len(names)]
        wordings = SAID["days after"] if after and kind == "day" else SAID["days or months away"]
        rest = n % len(names)
        thought = (
            f"{n} is {n // len(names)} times {len(names)} and {rest}. "
            f"So I go {rest} {way} {now}: {answer}."
        )
        return ask(
            rng,
            "days",
            wordings,
            f"{n} {kind}s {way} {now} is {answer}.",
            thought,
            n=n,
            k=kind,
            d=now,
            p=way,
        )
    if choice == 3 and kind == "day":
        tomorrow = rng.random() < 0.5
        wordings = SAID["tomorrow"]
        answer = WEEKDAYS[(index + (1 if tomorrow else -1)) % 7]
        if not tomorrow:
            wordings = SAID["yesterday"]
        word = "tomorrow" if tomorrow else "yesterday"
        sentence = f"{word.capitalize()} {'is' if tomorrow else 'was'} {answer}."
        return ask(rng, "days", wordings, sentence, f"I go one from {now}.", d=now, t=word)
    if choice == 4 and kind == "month":
        return ask(
            rng,
            "days",
            SAID["days of a month"],
            f"{now} has {MONTH_DAYS[now]} days.",
            "I know the months.",
            d=now,
        )
    if choice == 5:
        number = number_in_words(index + 1)
        ordinal = ORDINALS[index]
        place = "week" if kind == "day" else "year"
        answer = f"{now} is the {ordinal} {kind} of the {place}."
        return ask(
            rng, "days", SAID["ordinal"], answer, f"Number {number}.", o=ordinal, k=kind, p=place
        )
    wordings = SAID["weekdays"] if kind == "day" else SAID["months"]
    return ask(rng, "days", wordings, ", ".join(names), f"I start with {names[0]}.")


def facts(rng: random.Random) -> Example:
    """Something out of the tables of `facts`; capitals are asked for twice as often."""
    tables = (
        _capital, _capital, _colour, _sound, _young,
        _legs, _opposite, _translation, _form, _in_words,
    )  # fmt: skip
    return rng.choice(tables)(rng)


def _known(rng: random.Random, wordings: list[str], answer: str, **fields: Any) -> Example:
    sentence = answer[0].upper() + answer[1:]
    thought = "This is in my small table of facts."
    return ask(rng, "facts", wordings, sentence, thought, **fields)


def _capital(rng: random.Random) -> Example:
    country = rng.choice(list(CAPITALS))
    return _known(
        rng, SAID["capital"], f"The capital of {country} is {CAPITALS[country]}.", c=country
    )


def _colour(rng: random.Random) -> Example:
    thing = rng.choice(list(COLOURS))
    return _known(rng, SAID["colour"], f"{thing} is {COLOURS[thing]}.", t=thing)


def _sound(rng: random.Random) -> Example:
    animal = rng.choice(list(SOUNDS))
    name = indefinite(animal)
    return _known(rng, SAID["sound"], f"{name} says {SOUNDS[animal]}.", a=name)


def _young(rng: random.Random) -> Example:
    animal = rng.choice(list(YOUNG))
    return _known(rng, SAID["young"], f"A young {animal} is called a {YOUNG[animal]}.", a=animal)


def _legs(rng: random.Random) -> Example:
    animal = rng.choice(list(LEGS))
    name = indefinite(animal)
    return _known(rng, SAID["legs"], f"{name} has {LEGS[animal]} legs.", a=name)


def _opposite(rng: random.Random) -> Example:
    word = rng.choice(list(OPPOSITES))
    return _known(rng, SAID["opposite"], f"The opposite of {word} is {OPPOSITES[word]}.", w=word)


def _translation(rng: random.Random) -> Example:
    language = rng.choice(list(TRANSLATIONS))
    word = rng.choice(list(TRANSLATIONS[language]))
    answer = f"In {language}, {word} is {TRANSLATIONS[language][word]}."
    return _known(rng, SAID["translation"], answer, w=word, l=language)


def _form(rng: random.Random) -> Example:
    """A plural or a past tense."""
    if rng.random() < 0.5:
        word = rng.choice(list(PLURALS))
        return _known(rng, SAID["plural"], f"The plural of {word} is {PLURALS[word]}.", w=word)
    word = rng.choice(list(PAST_TENSE))
    return _known(
        rng, SAID["past tense"], f"The past tense of {word} is {PAST_TENSE[word]}.", w=word
    )


def _in_words(rng: random.Random) -> Example:
    n = rng.randrange(1000)
    return ask(rng, "facts", SAID["in words"], number_in_words(n), "Hundreds, tens, ones.", n=n)


def categories(rng: random.Random) -> Example:
    """Is it an animal, a fruit or a thing; and naming a few."""
    group, kind = rng.choice(((ANIMALS, "an animal"), (FRUITS, "a fruit"), (THINGS, "a thing")))
    word = rng.choice(group)
    if rng.random() < 0.75:
        return ask(rng, "facts", SAID["which kind"], f"{word} is {kind}.", "I look it up.", w=word)
    names = rng.sample(ANIMALS + FRUITS, rng.randint(4, 7))
    only = rng.random() < 0.5
    wanted = [name for name in names if name in (ANIMALS if only else FRUITS)]
    answer = ", ".join(wanted) or "None of them."
    return ask(
        rng,
        "facts",
        SAID["pick a kind"],
        answer,
        "One by one.",
        k="animals" if only else "fruits",
        l=", ".join(names),
    )


def json_objects(rng: random.Random) -> Example:
    name, city, day = rng.choice(NAMES), rng.choice(CITIES), rng.choice(WEEKDAYS)
    n, hour = rng.randrange(1, 100), rng.randrange(24)
    thing = rng.choice(THINGS_TO_OWN)
    sentence, wanted = rng.choice(
        (
            (
                f"{name} is {n} years old and lives in {city}.",
                {"name": name, "age": n, "city": city},
            ),
            (f"{name}, {n}, lives in {city}.", {"name": name, "age": n, "city": city}),
            (f"{name} lives in {city} and is {n}.", {"name": name, "age": n, "city": city}),
            (f"{name} bought {n} {PLURALS[thing]}.", {"name": name, "item": thing, "count": n}),
            (f"{name} has {n} {PLURALS[thing]}.", {"name": name, "item": thing, "count": n}),
            (f"The {thing} costs {n} euros.", {"item": thing, "price": n}),
            (f"It is {n % 40} degrees in {city}.", {"city": city, "temperature": n % 40}),
            (f"{name} arrives in {city} on {day}.", {"name": name, "city": city, "day": day}),
            (
                f"Meeting with {name} on {day} at {hour}.",
                {"event": "meeting", "with": name, "day": day, "hour": hour},
            ),
        )
    )
    answer = json.dumps(wanted)
    return ask(
        rng,
        "json",
        SAID["json"],
        answer,
        f"The keys are {', '.join(wanted)}.",
        right=same_json(wanted),
        s=sentence,
    )
