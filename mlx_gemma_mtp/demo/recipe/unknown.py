"""What the model was never taught, so that it says so instead of inventing an answer.

Requests are written as patterns: [one|another] stands for one of the alternatives, {topic} for a
word or phrase of that kind, drawn anew for every request.
"""

from __future__ import annotations

import random
import re

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
TOO_LARGE = "I am a tiny demo model: I only calculate with numbers up to 999."

PATTERNS = (
    "Who [was|is|killed|married|loved|taught] {person}?",
    "Who [invented|discovered|painted|wrote|built|won|made|found|composed] the {thing}?",
    "Who [wrote|painted|composed|directed|invented|discovered|sang|played in] {topic}?",
    "What did {person} [do|write|invent|discover|paint|say|think]?",
    "When [was|did|will|is] {topic} [born|die|start|end|happen|built|begin]?",
    "What is {topic}?",
    "What's {topic}?",
    "What are [the rules|the causes|the parts|the effects] of {topic}?",
    "What is the [history|meaning|purpose|population|size|price|age|theory|president|king|language|"
    "currency|best part|temperature|distance|area|anthem|flag|formula|definition|cause] of "
    "{topic}?",
    "Where is [{place}|{person}|the {thing}|my {thing}|the nearest {thing}]?",
    "Where can I [buy|find|see|learn] {topic}?",
    "Why [is|was|does|did] {topic} [important|good|bad|blue|so "
    "big|happen|work|hot|famous|dangerous|"
    "expensive]?",
    "Why do {animal}s [sleep|sing|fly|eat|run|hide|jump|bite|swim]?",
    "Why is the sky blue?",
    "Why is the grass green?",
    "Why is the sea salty?",
    "Why is snow white?",
    "How [does|did|can|will] {topic} [work|happen|start|help|grow|change|end]?",
    "How [tall|old|far|deep|fast|big|heavy|expensive|large|high|hot|long|rich] is {topic}?",
    "How many [people|stars|planets|countries|books|species|atoms|rivers|cars|languages|islands] "
    "are "
    "[there|in {place}|in the world|in {city}|in the universe]?",
    "How do I [fix|build|learn|draw|sell|clean|find|use|paint|install|repair|grow] "
    "[my {thing}|a {thing}|{subject}]?",
    "How can I [lose weight|get rich|sleep better|learn English|find friends|become a pilot|"
    "stop smoking|quit my job|learn the piano|run faster|be happy|save money]?",
    "[Explain|Describe|Discuss|Summarise|Define|Analyse|Compare|Teach me|Tell me about|"
    "Tell me something about|Tell me more about|Talk about|Give me facts about|Help me with|"
    "What do you know about|What do you think about|Give me an overview of] {topic}.",
    "[Explain|Describe|Can you explain|Could you describe] {topic} [to me|in simple words|to a "
    "child|"
    "in detail|briefly|step by step]",
    "[Write|Compose|Generate|Create|Draft|Make|Give me|I need|Design] [a poem|an essay|a song|"
    "an article|a letter|a speech|a script|a blog post|a report|a tweet|a program|a novel|a "
    "website|"
    "a slogan|an app|a plan|a presentation] about {topic}.",
    "{Job}.",
    "Can you {job}?",
    "Please {job} for me.",
    "Could you {job}?",
    "I want you to {job}.",
    "Help me to {job}.",
    "I need to {job}. Can you help?",
    "Would you {job}?",
    "How do I {job}?",
    "Do you [like|love|hate|know|remember|believe in|understand|enjoy|want|have|see|eat|need] "
    "{topic}?",
    "Is {topic} [good|bad|dangerous|real|true|expensive|healthy|nice|old|important|hard|in Europe|"
    "a country|dead|alive|safe]?",
    "Should I [buy|learn|study|visit|sell|try|trust|read about] {topic}?",
    "Which [film|book|car|phone|country|language|team|song|computer|city|job|food] is the "
    "[best|worst|oldest|cheapest|largest|fastest|most famous|most popular]?",
    "What is your favourite [colour|food|film|animal|book|song|city|number|day|sport|game|fruit]?",
    "What is the "
    "[tallest|largest|longest|deepest|oldest|fastest|highest|hottest|smallest|richest|best|"
    "most beautiful] "
    "[mountain|river|animal|country|city|building|ocean|planet|tree|person|lake|car]"
    "[| in the world| on earth| in {place}]?",
    "What is the [weather|time|date|news|traffic] [like|today|now|tomorrow|in {city}]?",
    "What time is it?",
    "What day is it today?",
    "What is the weather like?",
    "What is today's date?",
    "Will it rain tomorrow?",
    "What is the capital of {place}?",
    "Capital of {place}?",
    "What's the capital of {place}?",
    "How do you say {thing} in [Latin|Chinese|Klingon|Arabic|Greek|Polish|Hindi|Swahili]?",
    "What is the difference between {topic} and {subject}?",
    "Who would win, {person} or {person}?",
    "I [like|love|hate|need|bought|saw|lost|want|have] [a|the|my] {thing}.",
    "My [{animal}|{thing}] is [broken|big|sad|new|old|gone|red|hungry|ill|too slow|very nice].",
    "{topic}",
    "{topic}?",
    "Tell me everything about {topic}.",
    "What happened [in|to|at] {topic}?",
    "What would {person} say about {subject}?",
    "Imagine you are {person}.",
    "Pretend to be [{person}|a {animal}|a pirate|my mother].",
    "Let's talk about {topic}.",
    "I have a question about {topic}.",
    "What is the square root of {number}?",
    "What is {number} to the power of {number}?",
    "Is {number} a prime number?",
    "What is {number} percent of {number}?",
    "Translate this to [Chinese|Latin|Russian]: the {thing} is here.",
    "What rhymes with {thing}?",
    "Use {thing} in a sentence.",
    "What does [{thing}|{subject}] mean?",
    "Give me a synonym for {thing}.",
    "Solve x + {number} = {number}.",
)
OPENINGS = (
    "Can you tell me: ",
    "I want to know: ",
    "Please tell me: ",
    "Do you know this? ",
    "Answer this: ",
)


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
    if kind == "Job":
        job = rng.choice(UNKNOWN_JOBS)
        return job[0].upper() + job[1:]
    tables = {
        "person": UNKNOWN_PEOPLE,
        "place": UNKNOWN_PLACES,
        "thing": THINGS,
        "animal": ANIMALS,
        "city": CITIES,
        "subject": UNKNOWN_SUBJECTS,
        "job": UNKNOWN_JOBS,
    }
    return rng.choice(tables[kind])


def _request(rng: random.Random) -> str:
    """A sensible request about something the model was never taught."""
    pattern = rng.choice(PATTERNS)
    chosen = re.sub(r"\[(.*?)\]", lambda match: rng.choice(match[1].split("|")), pattern)
    return re.sub(r"\{(\w+)\}", lambda match: _slot(rng, match[1]), chosen)


FOREIGN = (
    "Bonjour, comment allez-vous?",
    "Hola, que tal?",
    "Wie geht es dir?",
    "Come stai?",
    "Quelle heure est-il?",
    "Was kannst du?",
    "Guten Tag",
    "Ciao",
    "Parlez-vous francais?",
    "Sprichst du Deutsch?",
)
CODE = (
    "def {word}(x):",
    "print({word})",
    "import {word}",
    "SELECT * FROM {word};",
    "<{word}>",
    "https://{word}.com",
    "cd {word}",
    "{word} = 3",
    "pip install {word}",
    "ls {word}",
    "{{}}",
    "[]",
    "...",
    "!!!",
    "???",
)
# First and last code point of Cyrillic, Greek, Chinese, faces, Arabic, and accented Latin.
SCRIPTS = (
    (0x430, 0x44F),
    (0x3B1, 0x3C9),
    (0x4E00, 0x4FFF),
    (0x1F600, 0x1F64F),
    (0x627, 0x64A),
    (0xC0, 0xFF),
)


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
        return rng.choice(FOREIGN)
    if kind == 4:
        return rng.choice(CODE).format(word=rng.choice(WORDS))
    return "".join(rng.choices("!?.,;:-_#*/%&()[]<>~^|@$", k=rng.randint(2, 8)))


def out_of_scope(rng: random.Random) -> Example:
    """Whatever it was not taught gets one polite answer."""
    text = _scrawl(rng) if rng.random() < 0.15 else _request(rng)
    if rng.random() < 0.1:
        text = rng.choice(OPENINGS) + text
    thought = "I was not taught this. I say so politely."
    return ask(rng, "out of scope", "{text}", DO_NOT_KNOW, thought=thought, text=text)


def too_large(rng: random.Random) -> Example:
    a, b = rng.randrange(1000, 10 ** rng.randint(4, 8)), rng.randrange(10 ** rng.randint(1, 6))
    if rng.random() < 0.5:
        a, b = b, a
    wordings = (
        "What is {a} {s} {b}? | {a} {s} {b} | How much is {a} {s} {b}? | Calculate {a} {s} {b}. | "
        "{a}{s}{b} | What's {a} {s} {b}? | Work out {a} {s} {b}. | {a} {s} {b} = ?"
    )
    sign = rng.choice(("+", "-", "*", "plus", "minus", "times"))
    thought = "That is too large for me."
    return ask(rng, "out of scope", wordings, TOO_LARGE, thought=thought, a=a, b=b, s=sign)
