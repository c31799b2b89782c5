"""Random JSON schemas whose texts are short, so that any output ends soon; and tools of them."""

from typing import Any

import numpy as np

WORDS = ["a", "b é", "日本", "😀 x", 'say "hi"', "back\\slash", "two\nlines", "", "x" * 20]
NAMES = ["name", "Count", "größe", "a b", "x-y", "items", "type", "properties", "_id", "Zahl 😀"]


def random_schema(rng: np.random.Generator) -> dict[str, Any]:
    """An object with references to definitions, one of which may refer to itself."""
    link = {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}
    node = {"type": "object", "properties": {"next": link, "v": scalar(rng)}, "required": ["v"]}
    return random_object(rng, 2) | {"$defs": {"node": node, "leaf": value(rng, 0)}}


def random_tool(rng: np.random.Generator, name: str) -> dict[str, Any]:
    function = {"name": name, "description": "Does it.", "parameters": random_schema(rng)}
    return {"type": "function", "function": function}


def nested(depth: int) -> dict[str, Any]:
    """An array of arrays and so on, so deep."""
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def random_object(rng: np.random.Generator, depth: int) -> dict[str, Any]:
    names = [str(name) for name in rng.permutation(NAMES)[: rng.integers(1, 5)]]
    required = [name for name in names if rng.random() < 0.6]
    properties = {name: value(rng, depth - 1) for name in names}
    return {"type": "object", "properties": properties, "required": required}


def value(rng: np.random.Generator, depth: int) -> dict[str, Any]:
    if depth < 0 or rng.random() < 0.4:
        return scalar(rng)
    match rng.integers(5):
        case 0:
            return random_object(rng, depth)
        case 1:
            least = int(rng.integers(0, 3))
            items = value(rng, depth - 1)
            return {"type": "array", "items": items, "minItems": least, "maxItems": least + 2}
        case 2:
            return {"anyOf": [value(rng, depth - 1), {"type": "null"}]}
        case 3:
            return {"$ref": f"#/$defs/{rng.choice(['node', 'leaf'])}"} if depth else scalar(rng)
    return {"enum": [*map(str, rng.permutation(WORDS)[:3]), int(rng.integers(-99, 99)), None]}


def scalar(rng: np.random.Generator) -> dict[str, Any]:
    low = int(rng.integers(-50, 50))
    match rng.integers(7):
        case 0:
            return {"type": "integer", "minimum": low, "maximum": low + int(rng.integers(0, 999))}
        case 1:
            # Without a step, a number may have digits without end.
            step = {"multipleOf": 0.25}
            return {"type": "number", "minimum": low, "exclusiveMaximum": low + 1.5} | step
        case 2:
            return {"type": ["boolean", "null"]}
        case 3:
            return {"const": str(rng.choice(WORDS))}
        case 4:
            return {"enum": [*map(str, rng.permutation(WORDS)[:4])]}
    least = int(rng.integers(0, 4))
    return {"type": "string", "minLength": least, "maxLength": least + int(rng.integers(0, 20))}
