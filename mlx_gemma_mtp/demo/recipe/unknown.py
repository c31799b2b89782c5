"""What the model was never taught, so that it says so instead of inventing an answer.

Requests are patterns, listed in unknown.json: [one|another] stands for one of the alternatives,
{topic} for a word or phrase of that kind, drawn again for every request.
"""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

from .example import Example, ask
from .facts import (
    ANIMALS,
    CAPITALS,
    CITIES,
    THINGS,
    UNKNOWN_JOBS,
    UNKNOWN_PEOPLE,
    UNKNOWN_PLACES,
    UNKNOWN_SUBJECTS,
    WORDS,
)
from .talk import ABILITIES

DO_NOT_KNOW = f"I am a tiny demo model, so I cannot help with that. I can {ABILITIES}."
_DATA: dict[str, Any] = json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))
TOO_LARGE = "I am a tiny demo model: I only calculate with numbers up to 999."


_KINDS = {
    "person": UNKNOWN_PEOPLE,
    "place": UNKNOWN_PLACES,
    "thing": THINGS,
    "animal": ANIMALS,
    "city": CITIES,
    "subject": UNKNOWN_SUBJECTS,
    "job": UNKNOWN_JOBS,
    "Job": [job[0].upper() + job[1:] for job in UNKNOWN_JOBS],
}


def _slot(rng: random.Random, kind: str) -> str:
    """A word or phrase for {kind} in a pattern."""
    if kind == "topic":
        subject = rng.choice(UNKNOWN_SUBJECTS)
        person, place = rng.choice(UNKNOWN_PEOPLE), rng.choice(UNKNOWN_PLACES)
        thing, animal = f"the {rng.choice(THINGS)}", f"the {rng.choice(ANIMALS)}"
        city, country = rng.choice(CITIES), rng.choice(list(CAPITALS))
        return rng.choice((subject, subject, person, place, thing, animal, city, country))
    if kind == "number":
        return str(rng.randrange(2, rng.choice((10, 99, 999))))
    return rng.choice(_KINDS[kind])


def _request(rng: random.Random) -> str:
    """A sensible request about something the model was never taught."""
    pattern = rng.choice(_DATA["patterns"])
    chosen = re.sub(r"\[(.*?)\]", lambda match: rng.choice(match[1].split("|")), pattern)
    return re.sub(r"\{(\w+)\}", lambda match: _slot(rng, match[1]), chosen)


# First and last code point of Cyrillic, Greek, Chinese, faces, Arabic, and accented Latin.
SCRIPTS = (
    (0x430, 0x44F), (0x3B1, 0x3C9), (0x4E00, 0x4FFF),
    (0x1F600, 0x1F64F), (0x627, 0x64A), (0xC0, 0xFF),
)  # fmt: skip


def _scrawl(rng: random.Random) -> str:
    """Text that is no request in English: keys hit at random, other scripts, lone words, code."""
    kind = rng.randrange(6)
    if kind == 0:
        return "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 14)))
    if kind == 1:
        first, last = rng.choice(SCRIPTS)
        return "".join(chr(rng.randint(first, last)) for _ in range(rng.randint(1, 10)))
    if kind == 2:
        return " ".join(rng.sample(WORDS, rng.randint(1, 5)))
    if kind == 3:
        return rng.choice(_DATA["foreign"])
    if kind == 4:
        return rng.choice(_DATA["code"]).format(word=rng.choice(WORDS))
    return "".join(rng.choices("!?.,;:-_#*/%&()[]<>~^|@$", k=rng.randint(2, 8)))


def out_of_scope(rng: random.Random) -> Example:
    """Whatever it was not taught gets one polite answer."""
    text = _scrawl(rng) if rng.random() < 0.15 else _request(rng)
    if rng.random() < 0.1:
        text = rng.choice(_DATA["openings"]) + text
    thought = "I was not taught this. I say so politely."
    return ask(rng, "out of scope", "as it is", DO_NOT_KNOW, thought, text=text)


def too_large(rng: random.Random) -> Example:
    a, b = rng.randrange(1000, 10 ** rng.randint(4, 8)), rng.randrange(10 ** rng.randint(1, 6))
    if rng.random() < 0.5:
        a, b = b, a
    sign = rng.choice(("+", "-", "*", "plus", "minus", "times"))
    thought = "That is too large for me."
    return ask(rng, "out of scope", "too large", TOO_LARGE, thought, a=a, b=b, s=sign)
