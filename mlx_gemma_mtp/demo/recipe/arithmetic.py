"""Exercises with numbers: sums, differences, tables, word problems, comparisons, counting, units.

Each function draws one single-turn example from a random generator.
"""

from __future__ import annotations

import random

from .example import Example, ask, last_number
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
        wordings = (
            "What is {a} + {b} + {c}? | {a} + {b} + {c} | Add {a}, {b} and {c}. | {a}+{b}+{c}=?"
        )
        thought = f"First {a} + {b} = {a + b}. Then {a + b} + {c} = {a + b + c}."
        answer = f"{a} + {b} + {c} = {a + b + c}"
        return ask(
            rng,
            "sums",
            wordings,
            answer,
            thought=thought,
            right=last_number(a + b + c),
            a=a,
            b=b,
            c=c,
        )
    wordings = (
        "What is {a} + {b}? | What is {a} plus {b}? | {a} + {b} | {a}+{b} | "
        "{a} + {b} = ? | {a} + {b} = | How much is {a} + {b}? | "
        "How much is {a} plus {b}? | Add {a} and {b}. | Calculate {a} + {b}. | "
        "What's {a} + {b}? | Can you add {a} and {b}? | Compute {a} plus {b}. | "
        "What is the sum of {a} and {b}? | Tell me {a} + {b}. | {a} plus {b}? | "
        "What do you get if you add {a} to {b}? | Work out {a} + {b}. | "
        "What is {a}+{b}? | Solve {a} + {b}. | Please add {a} and {b} for me. | "
        "What does {a} + {b} make?"
    )
    answer = f"{a} + {b} = {a + b}"
    return ask(
        rng, "sums", wordings, answer, thought=_digit_sum(a, b), right=last_number(a + b), a=a, b=b
    )


def differences(rng: random.Random) -> Example:
    a, b = number(rng), number(rng)
    if a < b and rng.random() < 0.85:
        a, b = b, a
    wordings = (
        "What is {a} - {b}? | What is {a} minus {b}? | {a} - {b} | {a}-{b} | "
        "{a} - {b} = ? | What's {a} - {b}? | How much is {a} - {b}? | "
        "How much is {a} minus {b}? | Subtract {b} from {a}. | Take {b} from {a}. | "
        "Calculate {a} - {b}. | What is the difference between {a} and {b}? | "
        "Take {b} away from {a}. | {a} minus {b}? | Work out {a} - {b}. | "
        "What is left if you take {b} from {a}?"
    )
    thought = (
        f"{a} is {'not smaller' if a >= b else 'smaller'} than {b}. "
        f"{a} - {b} = {a - b}, since {b} + {a - b} = {a}."
    )
    answer = f"{a} - {b} = {a - b}"
    return ask(
        rng, "differences", wordings, answer, thought=thought, right=last_number(a - b), a=a, b=b
    )


def products(rng: random.Random) -> Example:
    a, b = rng.randrange(13), rng.randrange(13)
    if rng.random() < 0.25 and a and b:
        wordings = (
            "What is {p} / {a}? | What is {p} divided by {a}? | Divide {p} by {a}. | "
            "{p} / {a} | {p} : {a} = ?"
        )
        thought = f"{a} * {b} = {a * b}, so {a * b} / {a} = {b}."
        return ask(
            rng,
            "products",
            wordings,
            f"{a * b} / {a} = {b}",
            thought=thought,
            right=last_number(b),
            a=a,
            p=a * b,
        )
    wordings = (
        "What is {a} * {b}? | What is {a} times {b}? | {a} * {b} | {a} x {b} | "
        "Multiply {a} by {b}. | {a}*{b} | How much is {a} times {b}? | {a} times {b} | "
        "Calculate {a} * {b}. | What's {a} x {b}? | What is the product of {a} and {b}?"
    )
    thought = f"I know my tables: {a} times {b} is {a * b}."
    return ask(
        rng,
        "products",
        wordings,
        f"{a} * {b} = {a * b}",
        thought=thought,
        right=last_number(a * b),
        a=a,
        b=b,
    )


def word_problems(rng: random.Random) -> Example:
    name, other = rng.sample(NAMES, 2)
    thing = PLURALS[rng.choice(THINGS_TO_OWN)]
    a, b = rng.randrange(2, 100), rng.randrange(2, 60)
    if rng.random() < 0.5:
        wordings = (
            "{name} has {a} {thing} and buys {b} more. How many {thing} does {name} have now? | "
            "{name} had {a} {thing}. {other} gave {name} {b} more. How many {thing} does {name} "
            "have now? | "
            "There are {a} {thing} in a box and {b} {thing} on the table. {name} takes all of "
            "them. How many does {name} have? | "
            "{name} found {a} {thing} on Monday and {b} on Tuesday. How many {thing} does {name} "
            "have now?"
        )
        sign, total = "+", a + b
    else:
        a, b = a + b, b
        wordings = (
            "{name} has {a} {thing} and gives {b} to {other}. How many {thing} does {name} have "
            "now? | "
            "{name} had {a} {thing} and lost {b}. How many {thing} does {name} have now? | "
            "{name} buys {a} {thing} and sells {b} of them. How many are left? | "
            "There were {a} {thing} and {name} took {b} of them. How many {thing} are left?"
        )
        sign, total = "-", a - b
    thought = (
        f"It starts with {a}, then {b} {'come' if sign == '+' else 'go'}. {a} {sign} {b} = {total}."
    )
    fields = {"name": name, "other": other, "thing": thing, "a": a, "b": b}
    answer = f"{a} {sign} {b} = {total}"
    return ask(
        rng, "word problems", wordings, answer, thought=thought, right=last_number(total), **fields
    )


def comparisons(rng: random.Random) -> Example:
    a, b = rng.sample(range(rng.choice((10, 100, 1000))), 2)
    kind = rng.randrange(4)
    if kind == 0:
        wordings = (
            "Which is bigger, {a} or {b}? | Which number is larger: {a} or {b}? | "
            "What is more, {a} or {b}?"
        )
        answer = f"{max(a, b)} is bigger than {min(a, b)}."
    elif kind == 1:
        wordings = (
            "Which is smaller, {a} or {b}? | Which number is smaller: {a} or {b}? | "
            "What is less, {a} or {b}?"
        )
        answer = f"{min(a, b)} is smaller than {max(a, b)}."
    elif kind == 2:
        wordings = "Is {a} bigger than {b}? | Is {a} greater than {b}? | Is {a} more than {b}?"
        answer = f"Yes, {a} is bigger than {b}." if a > b else f"No, {a} is smaller than {b}."
    else:
        wordings = (
            "Is {a} even or odd? | Is {a} an even number? | Is {a} an odd number? | "
            "Even or odd: {a}"
        )
        answer = f"{a} is {'odd' if a % 2 else 'even'}."
    return ask(
        rng,
        "comparisons",
        wordings,
        answer,
        thought="I look at the digits from the left.",
        a=a,
        b=b,
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
    if step == 1:
        wordings = (
            "Count from {a} to {b}. | Please count from {a} to {b}. | "
            "Can you count from {a} to {b}? | Write the numbers from {a} to {b}. | "
            "List all numbers from {a} to {b}. | Count: {a} to {b}."
        )
    else:
        wordings = (
            "Count from {a} to {b} in steps of {step}. | Count from {a} to {b} by {step}. | "
            "Write the numbers from {a} to {b} in steps of {step}."
        )
    if a == 1 and step == 1 and rng.random() < 0.3:
        wordings = "Count to {b}. | Can you count to {b}? | Please count to {b}. | Count up to {b}."
    way = "up" if b > a else "down"
    thought = f"I count {way} from {a} to {b} in steps of {step}."
    return ask(
        rng,
        "counting",
        wordings,
        ", ".join(map(str, numbers)),
        thought=thought,
        a=a,
        b=b,
        step=step,
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
        wordings = (
            "How many {s} are in {n} {o}? | How many {s} are {n} {o}? | "
            "Convert {n} {o} to {s}. | {n} {o} in {s}? | What is {n} {o} in {s}? | "
            "How many {s} make {n} {o}? | How many {s} are there in {n} {o}?"
        )
        answer, right = f"{n} {one} = {total} {small}", last_number(total)
        thought = f"{factor} {small} each. {n} * {factor} = {total}."
    else:
        wordings = (
            "How many {l} are {t} {s}? | Convert {t} {s} to {l}. | {t} {s} in {l}? | "
            "What is {t} {s} in {l}?"
        )
        answer, right = f"{total} {small} = {n} {one}", last_number(n)
        thought = f"{factor} {small} each. {total} / {factor} = {n}."
    return ask(
        rng,
        "units",
        wordings,
        answer,
        thought=thought,
        right=right,
        s=small,
        l=large,
        n=n,
        o=one,
        t=total,
    )
