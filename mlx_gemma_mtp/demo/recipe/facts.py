"""Everything the demo model is taught as a fact: words, names and small tables.

The data is in facts.json, written for this project. Knows nothing of tasks, prompts or tokens.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_DATA: dict[str, Any] = json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))

NAMES: list[str] = _DATA["names"]
ANIMALS: list[str] = _DATA["animals"]
FRUITS: list[str] = _DATA["fruits"]
THINGS: list[str] = _DATA["things"]
WORDS = list(dict.fromkeys((*ANIMALS, *FRUITS, *THINGS)))
PLURALS: dict[str, str] = _DATA["plurals"]

CAPITALS: dict[str, str] = _DATA["capitals"]
CITIES: list[str] = _DATA["cities"]
COLOURS: dict[str, str] = _DATA["colours"]
SOUNDS: dict[str, str] = _DATA["sounds"]
YOUNG: dict[str, str] = _DATA["young"]
LEGS: dict[str, int] = _DATA["legs"]
OPPOSITES: dict[str, str] = _DATA["opposites"]
TRANSLATIONS: dict[str, dict[str, str]] = _DATA["translations"]
PAST_TENSE: dict[str, str] = _DATA["past_tense"]

WEEKDAYS: list[str] = _DATA["weekdays"]
MONTHS: list[str] = _DATA["months"]
MONTH_DAYS = dict(zip(MONTHS, (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31), strict=True))
ORDINALS: list[str] = _DATA["ordinals"]
ONES: list[str] = _DATA["ones"]
TENS: list[str] = _DATA["tens"]
# The larger unit, the smaller one, and how many of the smaller make one of the larger.
UNITS: list[tuple[str, str, int]] = [tuple(unit) for unit in _DATA["units"]]

# What it must not pretend to know: people, places, subjects, and jobs.
UNKNOWN_PEOPLE: list[str] = _DATA["unknown_people"]
UNKNOWN_PLACES: list[str] = _DATA["unknown_places"]
UNKNOWN_SUBJECTS: list[str] = _DATA["unknown_subjects"]
UNKNOWN_JOBS: list[str] = _DATA["unknown_jobs"]


def number_in_words(number: int) -> str:
    """Return 0 to 999 in English, as in "two hundred and five"."""
    if number < 20:
        return ONES[number]
    if number < 100:
        return TENS[number // 10] + (f"-{ONES[number % 10]}" if number % 10 else "")
    rest = f" and {number_in_words(number % 100)}" if number % 100 else ""
    return f"{ONES[number // 100]} hundred{rest}"
