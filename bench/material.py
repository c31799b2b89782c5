"""What the benchmark's prompts are about: made-up towns, people and goods, without an end.

Sections are put together from patterns by a seed, so that a text may go on for long without
repeating itself word for word. Knows nothing of tokens, nor of what a prompt asks for.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import count, islice
from typing import TypeVar

from .passages import EXCHANGES, PASSAGES

T = TypeVar("T")

# A pattern's <word> is drawn once per section, and <Word> is the same with a capital; <2-9> is a
# number of that range, drawn anew each time.
SLOT = re.compile(r"<(?:(\d+)-(\d+)|(\w+))>")


def _list(words: str) -> list[str]:
    return words.split("|")


PEOPLE = _list(
    "Mirela|Tobin|Ansa|Corvin|Delphi|Edrik|Fenna|Galo|Hesper|Ivo|Jorun|Kestrel|Lumi|Madoc|Nerys|"
    "Orrin|Petra|Quill|Runa|Silvan|Tamsin|Ulric|Vesna|Wren"
)
PLACES = _list(
    "Orlmere|Tesselby|Quarnford|Harrowick|Vintle|Saltmarrow|Brennock|Ashwater|Coldharbor|Dunmere|"
    "Eastling|Farrowdale|Glimmet|Hollowby|Ironquay|Juniperton|Kelmarsh|Larkhaven|Mosswick|"
    "Northcombe|Otterbridge|Pellinore|Rookhurst|Stonewater"
)
WORDS = {
    "day": _list("Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday"),
    "month": _list(
        "January|February|March|April|May|June|July|August|September|October|November|December"
    ),
    "job": _list("baker|carpenter|ferryman|gardener|librarian|mason|miller|nurse|teacher|watchman"),
    "good": _list(
        "pears|lamp oil|roof tiles|wool blankets|copper wire|dried beans|window glass|rope|salt|"
        "writing paper|honey|spare wheels|paint|seed potatoes|bricks|candles"
    ),
    "spot": _list(
        "the harbor office|the old mill|the town library|the covered market|the lighthouse|"
        "the upper school|the boat shed|the bell tower|the ferry landing|the glass house|"
        "the railway yard|the river bridge"
    ),
    "reason": _list(
        "because the road was flooded|because the money ran out|after a quarrel with the council|"
        "because nobody had read the contract|when the pump broke down|after the first frost|"
        "because two helpers fell ill|because the permit had expired|because the keys were lost|"
        "when the ferry stopped running"
    ),
    "weather": _list(
        "thin rain|a hard wind from the sea|low fog|bright cold sun|the first snow|warm haze|"
        "thunder far off|a sky like slate"
    ),
    "worry": _list(
        "the cost of repairs|the paperwork|losing touch with my friends|what my family will say|"
        "that I am not good enough|how little time is left before winter|starting over at my age|"
        "the long way home in the dark"
    ),
    "kind": _list("spare|heavy|late|local|sealed|rented|lost|fresh"),
    "noun": _list("crate|ticket|parcel|lamp|boat|letter|tool|barrel|wagon|sample|meter|coin"),
    "field": _list("weight|price|width|rating|depth|score|delay|length"),
}


def fill(pattern: str, words: Mapping[str, str], rng: random.Random) -> str:
    """A pattern with its slots filled: words as given, numbers as drawn."""

    def filled(slot: re.Match[str]) -> str:
        low, high, name = slot.groups()
        if name is None:
            return str(rng.randint(int(low), int(high)))
        word = words[name.lower()]
        return word[0].upper() + word[1:] if name[0].isupper() else word

    return SLOT.sub(filled, pattern)


def sections(kind: str, seed: str) -> Iterator[str]:
    """Numbered sections of one of PASSAGES, without an end; the same for the same seed."""
    passage, rng = PASSAGES[kind], random.Random(f"{kind} {seed}")
    openings, sentences = _endless(passage.openings, rng), _endless(passage.sentences, rng)
    for part in count(1):
        pattern = [next(openings), *islice(sentences, passage.num_sentences)]
        yield fill(passage.joint.join(pattern), _draw(rng, part), rng)


def exchanges(seed: str) -> Iterator[tuple[str, str]]:
    """Questions and their short answers, without an end; the same for the same seed."""
    rng = random.Random(f"exchanges {seed}")
    for question, answer in _endless(EXCHANGES, rng):
        words = _draw(rng, 1)
        yield fill(question, words, rng), fill(answer, words, rng)


def _endless(items: Sequence[T], rng: random.Random) -> Iterator[T]:
    """All items in random order, then all again in another."""
    while True:
        yield from rng.sample(items, len(items))


def _draw(rng: random.Random, part: int) -> dict[str, str]:
    """One section's words."""
    person, other = rng.sample(PEOPLE, 2)
    who = {"part": str(part), "person": person, "other": other, "place": rng.choice(PLACES)}
    return who | {name: rng.choice(words) for name, words in WORDS.items()}
