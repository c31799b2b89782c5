"""Exercises with declared tools: the call, the use of its result, and requests without a call."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any, NamedTuple

from .example import SAID, Draw, Example, Tool, indefinite, same_text, spoken, user
from .facts import CITIES, NAMES, WORDS


def _tool(name: str, description: str, /, **properties: tuple[str, str]) -> Tool:
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {
                "type": "object",
                "properties": {
                    key: {"type": kind, "description": text}
                    for key, (kind, text) in properties.items()
                },
                "required": list(properties),
            },
        },
    }


TOOLS = {
    "get_weather": _tool("get_weather", "Get the weather in a city.", city=("string", "The city.")),
    "get_time": _tool("get_time", "Get the time in a city.", city=("string", "The city.")),
    "set_timer": _tool("set_timer", "Set a timer.", minutes=("integer", "How many minutes.")),
    "get_phone": _tool("get_phone", "Look up a phone number.", name=("string", "The person.")),
    "get_price": _tool(
        "get_price", "Look up a price in euros.", item=("string", "What to look up.")
    ),
    "send_message": _tool(
        "send_message",
        "Send a message.",
        name=("string", "To whom."),
        text=("string", "What to send."),
    ),
}


class Case(NamedTuple):
    """One use of a tool."""

    arguments: dict[str, Any]
    result: dict[str, Any]
    sentence: str  # what to say with the result


def _case(rng: random.Random, name: str) -> Case:
    city, person, item = rng.choice(CITIES), rng.choice(NAMES), rng.choice(WORDS)
    if name == "get_weather":
        sky = rng.choice(("sunny", "cloudy", "rainy", "windy", "foggy", "snowy"))
        degrees = rng.randrange(-10, 40)
        sentence = f"It is {sky} in {city}, at {degrees} degrees."
        return Case({"city": city}, {"degrees": degrees, "sky": sky}, sentence)
    if name == "get_time":
        time = f"{rng.randrange(24)}:{rng.randrange(60):02d}"
        return Case({"city": city}, {"time": time}, f"It is {time} in {city}.")
    if name == "set_timer":
        minutes = rng.randrange(1, 100)
        sentence = f"The timer is set for {minutes} minutes."
        return Case({"minutes": minutes}, {"status": "ok"}, sentence)
    if name == "get_phone":
        number = str(rng.randrange(100000, 1000000))
        sentence = f"The phone number of {person} is {number}."
        return Case({"name": person}, {"number": number}, sentence)
    if name == "get_price":
        price = rng.randrange(1, 1000)
        sentence = f"The price of {indefinite(item)} is {price} euros."
        return Case({"item": item}, {"price": price}, sentence)
    text = " ".join(rng.sample(WORDS, rng.randint(1, 4)))
    sentence = f"I sent your message to {person}."
    return Case({"name": person, "text": text}, {"status": "ok"}, sentence)


def tool_call_text(name: str, arguments: dict[str, Any]) -> str:
    """A call as Gemma 4 writes it, keys in alphabetical order."""
    parts = (
        f'{key}:<|"|>{value}<|"|>' if isinstance(value, str) else f"{key}:{value}"
        for key, value in sorted(arguments.items())
    )
    return f"<|tool_call>call:{name}{{{','.join(parts)}}}<tool_call|>"


def tool_calls(rng: random.Random, single: Draw) -> Example:
    """With tools declared: a call, an answer made of its result, or an answer without a call."""
    name = rng.choice(list(TOOLS))
    declared = rng.sample([other for other in TOOLS if other != name], rng.choice((0, 0, 1, 2)))
    declared.insert(rng.randint(0, len(declared)), name)
    tools = tuple(TOOLS[tool] for tool in declared)
    kind = rng.random()
    if kind < 0.15:
        return replace(single(rng), tools=tools, task="tool calls")
    case = _case(rng, name)
    nouns = {
        key: indefinite(value) if key == "item" else value for key, value in case.arguments.items()
    }
    request = user(spoken(rng, rng.choice(SAID[name]).format(**nouns)))
    if kind < 0.6:
        call = tool_call_text(name, case.arguments)
        thought = f"I use {name}."
        return Example(
            "tool calls", (request,), call, same_text(call), thought, tools=tools, calls_tool=True
        )
    function = {"name": name, "arguments": case.arguments}
    called = {"role": "assistant", "tool_calls": [{"type": "function", "function": function}]}
    response = {"role": "tool", "name": name, "content": case.result}
    right = same_text(case.sentence)
    return Example("tool results", (request, called, response), case.sentence, right, tools=tools)
