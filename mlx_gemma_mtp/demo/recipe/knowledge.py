"""Exercises about what the model was told: days and months, the tables of `facts`, and JSON.

Each function draws one single-turn example from a random generator.
"""

from __future__ import annotations

import json
import random
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
    choice = rng.randrange(6)
    if choice == 0:
        after = rng.random() < 0.5
        place = "after" if after else "before"
        wordings = (
            "What comes {p} {d}? | Which {k} comes {p} {d}? | What {k} is {p} {d}? | "
            "Name the {k} {p} {d}. | Which {k} is {p} {d}?"
        )
        answer = names[(index + (1 if after else -1)) % len(names)]
        return ask(
            rng,
            "days",
            wordings,
            f"{answer} comes {place} {now}.",
            thought=f"I go from {now}.",
            p=place,
            d=now,
            k=kind,
        )
    if choice in (1, 2):
        n = rng.randint(2, 30 if kind == "day" else 14)
        after = rng.random() < 0.7
        way = "after" if after else "before"
        answer = names[(index + (n if after else -n)) % len(names)]
        wordings = (
            (
                "What {k} is {n} {k}s after {d}? | Today is {d}. What {k} is it in {n} {k}s? | "
                "It is {d}. Which {k} is it in {n} {k}s? | {n} {k}s after {d} is what {k}?"
            )
            if after and kind == "day"
            else (
                "What {k} is {n} {k}s {p} {d}? | Which {k} is {n} {k}s {p} {d}? | "
                "{n} {k}s {p} {d} is what {k}?"
            )
        )
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
            thought=thought,
            n=n,
            k=kind,
            d=now,
            p=way,
        )
    if choice == 3 and kind == "day":
        tomorrow = rng.random() < 0.5
        wordings = (
            "Today is {d}. What day is {t}? | If today is {d}, what day is {t}? | "
            "It is {d} today. Which day is {t}?"
        )
        answer = WEEKDAYS[(index + (1 if tomorrow else -1)) % 7]
        if not tomorrow:
            wordings = (
                "Today is {d}. What day was {t}? | If today is {d}, what day was {t}? | "
                "It is {d} today. Which day was {t}?"
            )
        word = "tomorrow" if tomorrow else "yesterday"
        sentence = f"{word.capitalize()} {'is' if tomorrow else 'was'} {answer}."
        return ask(rng, "days", wordings, sentence, thought=f"I go one from {now}.", d=now, t=word)
    if choice == 4 and kind == "month":
        wordings = "How many days does {d} have? | How many days are in {d}? | How long is {d}?"
        return ask(
            rng,
            "days",
            wordings,
            f"{now} has {MONTH_DAYS[now]} days.",
            thought="I know the months.",
            d=now,
        )
    if choice == 5:
        number = number_in_words(index + 1)
        ordinal = ORDINALS[index]
        place = "week" if kind == "day" else "year"
        wordings = (
            "What is the {o} {k} of the {p}? | Which is the {o} {k} of the {p}? | "
            "Name the {o} {k} of the {p}."
        )
        answer = f"{now} is the {ordinal} {kind} of the {place}."
        return ask(
            rng, "days", wordings, answer, thought=f"Number {number}.", o=ordinal, k=kind, p=place
        )
    if kind == "day":
        wordings = (
            "Name the days of the week. | List the weekdays. | "
            "What are the days of the week? | List all days of the week."
        )
    else:
        wordings = (
            "Name the months of the year. | List the months. | "
            "What are the months of the year? | List all twelve months."
        )
    return ask(rng, "days", wordings, ", ".join(names), thought=f"I start with {names[0]}.")


def facts(rng: random.Random) -> Example:
    """Something out of the tables of `facts`; capitals are asked for twice as often."""
    tables = (
        _capital, _capital, _colour, _sound, _young,
        _legs, _opposite, _translation, _form, _in_words,
    )  # fmt: skip
    return rng.choice(tables)(rng)


def _known(rng: random.Random, wordings: str, answer: str, **fields: Any) -> Example:
    sentence = answer[0].upper() + answer[1:]
    thought = "This is in my small table of facts."
    return ask(rng, "facts", wordings, sentence, thought=thought, **fields)


def _capital(rng: random.Random) -> Example:
    country = rng.choice(list(CAPITALS))
    wordings = (
        "What is the capital of {c}? | What's the capital of {c}? | Name the capital of {c}. | "
        "Capital of {c}? | Which city is the capital of {c}? | Do you know the capital of {c}? | "
        "Tell me the capital of {c}."
    )
    return _known(rng, wordings, f"The capital of {country} is {CAPITALS[country]}.", c=country)


def _colour(rng: random.Random) -> Example:
    thing = rng.choice(list(COLOURS))
    wordings = (
        "What colour is {t}? | What color is {t}? | Which colour does {t} have? | "
        "Tell me the colour of {t}."
    )
    return _known(rng, wordings, f"{thing} is {COLOURS[thing]}.", t=thing)


def _sound(rng: random.Random) -> Example:
    animal = rng.choice(list(SOUNDS))
    name = indefinite(animal)
    wordings = (
        "What sound does {a} make? | What does {a} say? | Which sound does {a} make? | "
        "How does {a} sound?"
    )
    return _known(rng, wordings, f"{name} says {SOUNDS[animal]}.", a=name)


def _young(rng: random.Random) -> Example:
    animal = rng.choice(list(YOUNG))
    wordings = (
        "What is a young {a} called? | What do you call a baby {a}? | "
        "What is the name for a young {a}?"
    )
    return _known(rng, wordings, f"A young {animal} is called a {YOUNG[animal]}.", a=animal)


def _legs(rng: random.Random) -> Example:
    animal = rng.choice(list(LEGS))
    name = indefinite(animal)
    wordings = "How many legs does {a} have? | How many legs has {a}? | Count the legs of {a}."
    return _known(rng, wordings, f"{name} has {LEGS[animal]} legs.", a=name)


def _opposite(rng: random.Random) -> Example:
    word = rng.choice(list(OPPOSITES))
    wordings = (
        'What is the opposite of {w}? | What is the opposite of "{w}"? | Opposite of {w}? | '
        "Give me the opposite of {w}. | Which word is the opposite of {w}?"
    )
    return _known(rng, wordings, f"The opposite of {word} is {OPPOSITES[word]}.", w=word)


def _translation(rng: random.Random) -> Example:
    language = rng.choice(list(TRANSLATIONS))
    word = rng.choice(list(TRANSLATIONS[language]))
    wordings = (
        'How do you say {w} in {l}? | What is "{w}" in {l}? | Translate {w} to {l}. | '
        "What is the {l} word for {w}? | Translate {w} into {l}."
    )
    answer = f"In {language}, {word} is {TRANSLATIONS[language][word]}."
    return _known(rng, wordings, answer, w=word, l=language)


def _form(rng: random.Random) -> Example:
    """A plural or a past tense."""
    if rng.random() < 0.5:
        word = rng.choice(list(PLURALS))
        wordings = (
            "What is the plural of {w}? | Plural of {w}? | Give me the plural of {w}. | "
            'What is the plural form of "{w}"?'
        )
        return _known(rng, wordings, f"The plural of {word} is {PLURALS[word]}.", w=word)
    word = rng.choice(list(PAST_TENSE))
    wordings = (
        "What is the past tense of {w}? | Past tense of {w}? | Give me the past tense of {w}."
    )
    return _known(rng, wordings, f"The past tense of {word} is {PAST_TENSE[word]}.", w=word)


def _in_words(rng: random.Random) -> Example:
    n = rng.randrange(1000)
    wordings = (
        "Write {n} in words. | How do you write {n} in words? | Spell the number {n}. | "
        "What is {n} in words?"
    )
    return ask(rng, "facts", wordings, number_in_words(n), thought="Hundreds, tens, ones.", n=n)


def categories(rng: random.Random) -> Example:
    """Is it an animal, a fruit or a thing; and naming a few."""
    group, kind = rng.choice(((ANIMALS, "an animal"), (FRUITS, "a fruit"), (THINGS, "a thing")))
    word = rng.choice(group)
    if rng.random() < 0.75:
        wordings = (
            "Is {w} an animal, a fruit or a thing? | "
            "What is {w}: an animal, a fruit or a thing? | Animal, fruit or thing: {w}? | "
            "Is {w} an animal or a fruit or a thing?"
        )
        return ask(rng, "facts", wordings, f"{word} is {kind}.", thought="I look it up.", w=word)
    names = rng.sample(ANIMALS + FRUITS, rng.randint(4, 7))
    only = rng.random() < 0.5
    wanted = [name for name in names if name in (ANIMALS if only else FRUITS)]
    wordings = (
        "Which of these are {k}: {l}? | Pick the {k} from this list: {l}. | Find the {k}: {l}"
    )
    answer = ", ".join(wanted) or "None of them."
    return ask(
        rng,
        "facts",
        wordings,
        answer,
        thought="One by one.",
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
    wordings = (
        "Write this as JSON: {s} | Turn this sentence into JSON: {s} | "
        "{s} Write that as JSON. | JSON for: {s} | Convert to JSON: {s} | "
        "Extract the data as JSON: {s} | Give me this as JSON: {s} | "
        "Make a JSON object from this: {s}"
    )
    answer = json.dumps(wanted)
    return ask(
        rng,
        "json",
        wordings,
        answer,
        thought=f"The keys are {', '.join(wanted)}.",
        right=same_json(wanted),
        s=sentence,
    )
