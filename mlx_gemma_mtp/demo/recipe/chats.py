"""Chats of more than one message: follow-ups, things to remember, what was said before.

Built out of single-turn examples. All wording is this project's own.
"""

from __future__ import annotations

import random
from dataclasses import replace

from .example import SAID, Draw, Example, Message, ask, assistant, last_number
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


def as_history(example: Example) -> tuple[Message, ...]:
    """A finished exchange: the messages and the answer that was given."""
    return (*example.messages, assistant(example.answer))


def chat(rng: random.Random, single: Draw) -> Example:
    """Some finished exchanges, then a last request: a new one, or one about what was said."""
    length = rng.choice((1, 1, 2, 2, 3, 4, 6, 9, 14))
    exchanges = [single(rng) for _ in range(length)]
    final = rng.choice(
        (
            _new_request,
            _new_request,
            _my_name,
            _last_answer,
            _remember,
            _follow_up_sum,
            _follow_up_fact,
            _first_question,
        )
    )
    example = final(rng, exchanges, single)
    return replace(example, task="chats")


def _joined(exchanges: list[Example]) -> tuple[Message, ...]:
    return tuple(message for exchange in exchanges for message in as_history(exchange))


def _continued(history: tuple[Message, ...], last: Example) -> Example:
    return replace(last, messages=(*history, *last.messages))


def _new_request(rng: random.Random, exchanges: list[Example], single: Draw) -> Example:
    return _continued(_joined(exchanges), single(rng))


def _my_name(rng: random.Random, exchanges: list[Example], single: Draw) -> Example:
    wordings = SAID["my name"]
    others = [
        exchange for exchange in exchanges if not exchange.answer.startswith("Nice to meet you")
    ]
    if rng.random() < 0.2:
        answer = "You have not told me your name."
        return _continued(_joined(others), ask(rng, "chats", wordings, answer, "Nobody told me."))
    name = rng.choice(NAMES)
    told = ask(rng, "chats", SAID["told name"], f"Nice to meet you, {name}!", "", n=name)
    others.insert(rng.randint(0, min(2, len(others))), told)
    return _continued(
        _joined(others), ask(rng, "chats", wordings, f"Your name is {name}.", f"They said {name}.")
    )


def _last_answer(rng: random.Random, exchanges: list[Example], single: Draw) -> Example:
    return _continued(
        _joined(exchanges),
        ask(rng, "chats", SAID["last answer"], exchanges[-1].answer, "I look at my last answer."),
    )


def _first_question(rng: random.Random, exchanges: list[Example], single: Draw) -> Example:
    first = exchanges[0].messages[-1]["content"]
    return _continued(
        _joined(exchanges),
        ask(rng, "chats", SAID["first question"], first, "I look at the first message."),
    )


def _remember(rng: random.Random, exchanges: list[Example], single: Draw) -> Example:
    word = rng.choice(WORDS) if rng.random() < 0.7 else str(rng.randrange(1000))
    told = ask(rng, "chats", SAID["remember this"], f"I will remember: {word}", "", w=word)
    exchanges.insert(rng.randint(0, min(3, len(exchanges))), told)
    return _continued(
        _joined(exchanges),
        ask(
            rng,
            "chats",
            SAID["what to remember"],
            f"You asked me to remember: {word}",
            "I look for it.",
        ),
    )


def _follow_up_sum(rng: random.Random, exchanges: list[Example], single: Draw) -> Example:
    a, b, c = rng.randrange(1, 500), rng.randrange(1, 100), rng.randrange(1, 100)
    first = ask(rng, "chats", SAID["first sum"], f"{a} + {b} = {a + b}", "", a=a, b=b)
    history = _joined([*exchanges[: rng.randint(0, 3)], first])
    if rng.random() < 0.6:
        wordings = SAID["and plus"]
        answer, total = f"{a + b} + {c} = {a + b + c}", a + b + c
    else:
        wordings = SAID["and minus"]
        answer, total = f"{a + b} - {c} = {a + b - c}", a + b - c
    thought = f"The last result was {a + b}."
    return _continued(
        history, ask(rng, "chats", wordings, answer, thought, right=last_number(total), c=c)
    )


def _follow_up_fact(rng: random.Random, exchanges: list[Example], single: Draw) -> Example:
    if rng.random() < 0.6:
        one, other = rng.sample(list(CAPITALS), 2)
        first = ask(
            rng,
            "chats",
            SAID["first capital"],
            f"The capital of {one} is {CAPITALS[one]}.",
            "",
            c=one,
        )
        wordings, answer = (SAID["and of"], f"The capital of {other} is {CAPITALS[other]}.")
    else:
        one, other = rng.sample(list(OPPOSITES), 2)
        first = ask(
            rng,
            "chats",
            SAID["first opposite"],
            f"The opposite of {one} is {OPPOSITES[one]}.",
            "",
            c=one,
        )
        wordings, answer = (SAID["and of"], f"The opposite of {other} is {OPPOSITES[other]}.")
    history = _joined([*exchanges[: rng.randint(0, 3)], first])
    return _continued(
        history, ask(rng, "chats", wordings, answer, "They mean the same question.", c=other)
    )
