"""Exercises with numbers: sums, differences, tables, word problems, comparisons, counting, units.

Each function draws one single-turn example from a random generator.
"""

from __future__ import annotations

import random
from typing import Any

from .example import Example, ask, last_number
from .facts import FRUITS, NAMES, PLURALS, UNITS

THINGS_TO_OWN = [*(fruit for fruit in FRUITS if fruit in PLURALS), "book", "chair", "box"]


def number(rng: random.Random) -> int:
    """One to three digits, each length about as likely as people type it."""
    sizes = (0, 10), (10, 100), (10, 100), (10, 100), (100, 1000), (100, 1000)
    return rng.randrange(*rng.choice(sizes))


def equation(
    rng: random.Random, task: str, said: str, left: str, result: int, thought: str, **fields: Any
) -> Example:
    """An example whose answer is `left = result`."""
    answer = f"{left} = {result}"
    return ask(rng, task, said, answer, thought, right=last_number(result), **fields)


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
    if rng.random() >= 0.12:
        return equation(rng, "sums", "sum", f"{a} + {b}", a + b, _digit_sum(a, b), a=a, b=b)
    a, b, c = a % 100, b % 100, rng.randrange(1, 100)
    total, left = a + b + c, f"{a} + {b} + {c}"
    thought = f"First {a} + {b} = {a + b}. Then {a + b} + {c} = {total}."
    return equation(rng, "sums", "sum of three", left, total, thought, a=a, b=b, c=c)


def differences(rng: random.Random) -> Example:
    a, b = number(rng), number(rng)
    if a < b and rng.random() < 0.85:
        a, b = b, a
    thought = (
        f"{a} is {'not smaller' if a >= b else 'smaller'} than {b}. "
        f"{a} - {b} = {a - b}, since {b} + {a - b} = {a}."
    )
    return equation(rng, "differences", "difference", f"{a} - {b}", a - b, thought, a=a, b=b)


def products(rng: random.Random) -> Example:
    a, b = rng.randrange(13), rng.randrange(13)
    p = a * b
    if rng.random() < 0.25 and p:
        thought = f"{a} * {b} = {p}, so {p} / {a} = {b}."
        return equation(rng, "products", "quotient", f"{p} / {a}", b, thought, a=a, p=p)
    thought = f"I know my tables: {a} times {b} is {p}."
    return equation(rng, "products", "product", f"{a} * {b}", p, thought, a=a, b=b)


def word_problems(rng: random.Random) -> Example:
    name, other = rng.sample(NAMES, 2)
    thing = PLURALS[rng.choice(THINGS_TO_OWN)]
    a, b = rng.randrange(2, 100), rng.randrange(2, 60)
    if rng.random() < 0.5:
        said, left, total, move = "more", f"{a} + {b}", a + b, "come"
    else:
        a, total = a + b, a
        said, left, move = "less", f"{a} - {b}", "go"
    thought = f"It starts with {a}, then {b} {move}. {left} = {total}."
    fields = {"name": name, "other": other, "thing": thing, "a": a, "b": b}
    return equation(rng, "word problems", said, left, total, thought, **fields)


def comparisons(rng: random.Random) -> Example:
    a, b = rng.sample(range(rng.choice((10, 100, 1000))), 2)
    bigger = f"{max(a, b)} is bigger than {min(a, b)}."
    smaller = f"{min(a, b)} is smaller than {max(a, b)}."
    said, answer = (
        ("bigger", bigger),
        ("smaller", smaller),
        ("is it bigger", f"Yes, {bigger}" if a > b else f"No, {smaller}"),
        ("even or odd", f"{a} is {'odd' if a % 2 else 'even'}."),
    )[rng.randrange(4)]
    return ask(rng, "comparisons", said, answer, "I look at the digits from the left.", a=a, b=b)


def counting(rng: random.Random) -> Example:
    step = rng.choice((1, 1, 1, 1, 2, 5, 10))
    length = rng.choice(
        (rng.randint(3, 12), rng.randint(3, 12), rng.randint(10, 40), rng.randint(30, 60))
    )
    start = step * rng.choice((0, 1, 1, 1, rng.randrange(100)))
    numbers = [start + step * index for index in range(length)]
    if rng.random() < 0.25:
        numbers.reverse()
    a, b = numbers[0], numbers[-1]
    said = "count" if step == 1 else "count in steps"
    if a == 1 and step == 1 and rng.random() < 0.3:
        said = "count up to"
    thought = f"I count {'up' if b > a else 'down'} from {a} to {b} in steps of {step}."
    return ask(rng, "counting", said, ", ".join(map(str, numbers)), thought, a=a, b=b, step=step)


def units(rng: random.Random) -> Example:
    large, small, factor = rng.choice(UNITS)
    n = rng.randint(1, 20)
    total, one = n * factor, large
    if n == 1:
        singulars = {"feet": "foot", "centimetres": "centimetre"}
        one = singulars.get(large, large.removesuffix("s"))
    fields = {"s": small, "l": large, "n": n, "o": one, "t": total}
    thought = f"{factor} {small} each. "
    if rng.random() < 0.65:
        said, answer, right = "to the smaller unit", f"{n} {one} = {total} {small}", total
        thought += f"{n} * {factor} = {total}."
    else:
        said, answer, right = "to the larger unit", f"{total} {small} = {n} {one}", n
        thought += f"{total} / {factor} = {n}."
    return ask(rng, "units", said, answer, thought, right=last_number(right), **fields)
