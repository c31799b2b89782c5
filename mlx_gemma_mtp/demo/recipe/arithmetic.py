"""Exercises with numbers: sums, differences, tables, word problems, comparisons, counting, units.

Each function draws one single-turn example from a random generator.
"""

from __future__ import annotations

import random

from .example import SAID, Example, ask, last_number
from .facts import FRUITS, NAMES, PLURALS, UNITS

THINGS_TO_OWN = [*(fruit for fruit in FRUITS if fruit in PLURALS), "book", "chair", "box"]


def number(rng: random.Random) -> int:
    """One to three digits, each length about as likely as people type it."""
    return rng.randrange(
        *rng.choice(((0, 10), (10, 100), (10, 100), (10, 100), (100, 1000), (100, 1000)))
    )


def _digit_sum(a: int, b: int) -> str:
    """A written addition, ones first, as a thought."""
    steps, carry, place = [], 0, 0
    while (place == 0 or 10**place <= max(a, b)) and place < 4:
        x, y = a // 10**place % 10, b // 10**place % 10
        total = x + y + carry
        steps.append(f"{x} + {y}{' + 1' if carry else ''} = {total}")
        carry, place = total // 10, place + 1
    return f"From the right: {', '.join(steps)}. So {a} + {b} = {a + b}."


def sums(rng: random.Random) -> Example:
    a, b = number(rng), number(rng)
    if rng.random() < 0.12:
        c = rng.randrange(1, 100)
        a, b = a % 100, b % 100
        thought = f"First {a} + {b} = {a + b}. Then {a + b} + {c} = {a + b + c}."
        answer = f"{a} + {b} + {c} = {a + b + c}"
        return ask(
            rng,
            "sums",
            SAID["sum of three"],
            answer,
            thought,
            right=last_number(a + b + c),
            a=a,
            b=b,
            c=c,
        )
    answer = f"{a} + {b} = {a + b}"
    return ask(
        rng, "sums", SAID["sum"], answer, _digit_sum(a, b), right=last_number(a + b), a=a, b=b
    )


def differences(rng: random.Random) -> Example:
    a, b = number(rng), number(rng)
    if a < b and rng.random() < 0.85:
        a, b = b, a
    thought = (
        f"{a} is {'not smaller' if a >= b else 'smaller'} than {b}. "
        f"{a} - {b} = {a - b}, since {b} + {a - b} = {a}."
    )
    answer = f"{a} - {b} = {a - b}"
    return ask(
        rng, "differences", SAID["difference"], answer, thought, right=last_number(a - b), a=a, b=b
    )


def products(rng: random.Random) -> Example:
    a, b = rng.randrange(13), rng.randrange(13)
    if rng.random() < 0.25 and a and b:
        thought = f"{a} * {b} = {a * b}, so {a * b} / {a} = {b}."
        return ask(
            rng,
            "products",
            SAID["quotient"],
            f"{a * b} / {a} = {b}",
            thought,
            right=last_number(b),
            a=a,
            p=a * b,
        )
    thought = f"I know my tables: {a} times {b} is {a * b}."
    return ask(
        rng,
        "products",
        SAID["product"],
        f"{a} * {b} = {a * b}",
        thought,
        right=last_number(a * b),
        a=a,
        b=b,
    )


def word_problems(rng: random.Random) -> Example:
    name, other = rng.sample(NAMES, 2)
    thing = PLURALS[rng.choice(THINGS_TO_OWN)]
    a, b = rng.randrange(2, 100), rng.randrange(2, 60)
    if rng.random() < 0.5:
        wordings = SAID["more"]
        sign, total = "+", a + b
    else:
        a, b = a + b, b
        wordings = SAID["less"]
        sign, total = "-", a - b
    thought = (
        f"It starts with {a}, then {b} {'come' if sign == '+' else 'go'}. {a} {sign} {b} = {total}."
    )
    fields = {"name": name, "other": other, "thing": thing, "a": a, "b": b}
    answer = f"{a} {sign} {b} = {total}"
    return ask(rng, "word problems", wordings, answer, thought, right=last_number(total), **fields)


def comparisons(rng: random.Random) -> Example:
    a, b = rng.sample(range(rng.choice((10, 100, 1000))), 2)
    kind = rng.randrange(4)
    if kind == 0:
        wordings = SAID["bigger"]
        answer = f"{max(a, b)} is bigger than {min(a, b)}."
    elif kind == 1:
        wordings = SAID["smaller"]
        answer = f"{min(a, b)} is smaller than {max(a, b)}."
    elif kind == 2:
        wordings = SAID["is it bigger"]
        answer = f"Yes, {a} is bigger than {b}." if a > b else f"No, {a} is smaller than {b}."
    else:
        wordings = SAID["even or odd"]
        answer = f"{a} is {'odd' if a % 2 else 'even'}."
    return ask(
        rng, "comparisons", wordings, answer, "I look at the digits from the left.", a=a, b=b
    )


def counting(rng: random.Random) -> Example:
    step = rng.choice((1, 1, 1, 1, 2, 5, 10))
    length = rng.choice(
        (rng.randint(3, 12), rng.randint(3, 12), rng.randint(10, 40), rng.randint(30, 60))
    )
    start = rng.choice((0, 1, 1, 1, rng.randrange(100)))
    start = start * step if step > 1 else start
    numbers = [start + step * index for index in range(length)]
    if rng.random() < 0.25:
        numbers.reverse()
    a, b = numbers[0], numbers[-1]
    wordings = SAID["count"] if step == 1 else SAID["count in steps"]
    if a == 1 and step == 1 and rng.random() < 0.3:
        wordings = SAID["count up to"]
    way = "up" if b > a else "down"
    thought = f"I count {way} from {a} to {b} in steps of {step}."
    return ask(
        rng, "counting", wordings, ", ".join(map(str, numbers)), thought, a=a, b=b, step=step
    )


def units(rng: random.Random) -> Example:
    large, small, factor = rng.choice(UNITS)
    n = rng.randint(1, 20)
    total = n * factor
    one = (
        large
        if n > 1
        else {"feet": "foot", "centimetres": "centimetre"}.get(large, large.removesuffix("s"))
    )
    if rng.random() < 0.65:
        wordings = SAID["to the smaller unit"]
        answer, right = f"{n} {one} = {total} {small}", last_number(total)
        thought = f"{factor} {small} each. {n} * {factor} = {total}."
    else:
        wordings = SAID["to the larger unit"]
        answer, right = f"{total} {small} = {n} {one}", last_number(n)
        thought = f"{factor} {small} each. {total} / {factor} = {n}."
    return ask(
        rng, "units", wordings, answer, thought, right=right, s=small, l=large, n=n, o=one, t=total
    )
