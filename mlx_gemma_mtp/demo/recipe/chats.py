"""Chats of more than one message: follow-ups, things to remember, what was said before.

Built out of single-turn examples. All wording is this project's own.
"""

from __future__ import annotations

import random
from dataclasses import replace

from .arithmetic import equation
from .example import Draw, Example, ask, assistant
from .facts import CAPITALS, NAMES, OPPOSITES, WORDS

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "Answer briefly.",
    "You are a friendly model.",
    "Be polite and exact.",
    "You are a tiny demo model.",
    "Help the user.",
    "You are a helpful, honest assistant. Answer the question.",
)


def with_system_prompt(rng: random.Random, example: Example) -> Example:
    system = {"role": "system", "content": rng.choice(SYSTEM_PROMPTS)}
    return replace(example, messages=(system, *example.messages))


def chat(rng: random.Random, single: Draw) -> Example:
    """Some finished exchanges, then a last request: a new one, or one about what was said."""
    length = rng.choice((1, 1, 2, 2, 3, 4, 6, 9, 14))
    exchanges = [single(rng) for _ in range(length)]
    about = (
        None, None, _my_name, _last_answer, _remember,
        _follow_up_sum, _follow_up_fact, _first_question,
    )  # fmt: skip
    draw_last = rng.choice(about)
    last = draw_last(rng, exchanges) if draw_last else single(rng)
    history = [(*one.messages, assistant(one.answer)) for one in exchanges]
    return replace(last, task="chats", messages=(*sum(history, ()), *last.messages))


# Each of these draws the last request. It may change the exchanges before it.


def _my_name(rng: random.Random, exchanges: list[Example]) -> Example:
    exchanges[:] = [one for one in exchanges if not one.answer.startswith("Nice to meet you")]
    if rng.random() < 0.2:
        return ask(rng, "chats", "my name", "You have not told me your name.", "Nobody told me.")
    name = rng.choice(NAMES)
    told = ask(rng, "chats", "told name", f"Nice to meet you, {name}!", "", n=name)
    exchanges.insert(rng.randint(0, min(2, len(exchanges))), told)
    return ask(rng, "chats", "my name", f"Your name is {name}.", f"They said {name}.")


def _last_answer(rng: random.Random, exchanges: list[Example]) -> Example:
    answer = exchanges[-1].answer
    return ask(rng, "chats", "last answer", answer, "I look at my last answer.")


def _first_question(rng: random.Random, exchanges: list[Example]) -> Example:
    first = exchanges[0].messages[-1]["content"]
    return ask(rng, "chats", "first question", first, "I look at the first message.")


def _remember(rng: random.Random, exchanges: list[Example]) -> Example:
    word = rng.choice(WORDS) if rng.random() < 0.7 else str(rng.randrange(1000))
    told = ask(rng, "chats", "remember this", f"I will remember: {word}", "", w=word)
    exchanges.insert(rng.randint(0, min(3, len(exchanges))), told)
    answer = f"You asked me to remember: {word}"
    return ask(rng, "chats", "what to remember", answer, "I look for it.")


def _follow_up_sum(rng: random.Random, exchanges: list[Example]) -> Example:
    a, b, c = rng.randrange(1, 500), rng.randrange(1, 100), rng.randrange(1, 100)
    before = a + b
    first = equation(rng, "chats", "first sum", f"{a} + {b}", before, "", a=a, b=b)
    exchanges[rng.randint(0, 3) :] = [first]
    thought = f"The last result was {before}."
    if rng.random() < 0.6:
        return equation(rng, "chats", "and plus", f"{before} + {c}", before + c, thought, c=c)
    return equation(rng, "chats", "and minus", f"{before} - {c}", before - c, thought, c=c)


def _follow_up_fact(rng: random.Random, exchanges: list[Example]) -> Example:
    kind, table = ("capital", CAPITALS) if rng.random() < 0.6 else ("opposite", OPPOSITES)
    one, other = rng.sample(list(table), 2)
    answer = f"The {kind} of {one} is {table[one]}."
    first = ask(rng, "chats", f"first {kind}", answer, "", c=one)
    exchanges[rng.randint(0, 3) :] = [first]
    answer = f"The {kind} of {other} is {table[other]}."
    return ask(rng, "chats", "and of", answer, "They mean the same question.", c=other)
