"""Bodies that are almost right: mutations of good ones, and of their bytes. Knows no protocol."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

Path = tuple[str | int, ...]

DEPTH = 3000  # of nested lists: deeper than Python's own recursion

VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    -(2**63),
    10**400,  # no float, and more digits than some parsers take
    1e308,
    0.5,
    float("nan"),
    float("inf"),
    "",
    "\0",
    "\ud800",
    "x" * 5000,
    "1",
    "auto",
    "\N{RIGHT-TO-LEFT OVERRIDE}é😀",
    [],
    {},
    [[]],
    [None],
    [{}],
    {"": None},
    {"type": "text"},
    {"type": ["text"]},
    {"$ref": "#"},
)

Raw = Callable[[random.Random, bytes], bytes]


def mutated(rng: random.Random, body: dict[str, Any]) -> bytes:
    """Return a JSON body with some values changed, or with bytes that are no JSON."""
    changed = copy.deepcopy(body)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 4))):
        _change(rng, changed)
    # Without ASCII escapes a lone surrogate is invalid UTF-8, and with them an invalid character.
    plain = json.dumps(changed, ensure_ascii=rng.random() < 0.7)
    data = plain.encode("utf-8", "surrogatepass")
    return rng.choice(RAW)(rng, data) if rng.random() < 0.3 else data


def paths(value: Any, at: Path = ()) -> list[Path]:
    """Return where all values within a value are."""
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    return [path for key, one in items for path in ((*at, key), *paths(one, (*at, key)))]


def _change(rng: random.Random, body: dict[str, Any]) -> None:
    """Change, drop, double or move one value."""
    *above, last = rng.choice(paths(body) or [("model",)])
    place: Any = body
    for key in above:
        place = place[key]
    match rng.randrange(6):
        case 0 | 1 | 2:
            place[last] = copy.deepcopy(rng.choice(VALUES))
        case 3:
            del place[last]
        case 4 if isinstance(place, list):
            place.insert(rng.randrange(len(place)), copy.deepcopy(place[last]))
        case 4:
            place[f"{last}_{rng.randrange(9)}"] = rng.choice(VALUES)
        case _:
            other = rng.choice(paths(body))
            found: Any = body
            for key in other:
                found = found[key]
            place[last] = copy.deepcopy(found)
    if not body:
        body["model"] = "demo"


def _cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def _flip(rng: random.Random, data: bytes) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :]


def _double_keys(rng: random.Random, data: bytes) -> bytes:
    key = rng.choice((b"messages", b"input", b"prompt", b"model", b"n", b"tools", b"stream"))
    return b'{"' + key + b'":' + rng.choice((b"null", b"[]", b"1", b'"x"')) + b"," + data[1:]


def _nest(rng: random.Random, data: bytes) -> bytes:
    key = rng.choice((b"tools", b"messages", b"input", b"response_format", b"unknown"))
    opening, closing = rng.choice(((b"[", b"]"), (b'{"a":', b"}")))
    return data[:-1] + b',"' + key + b'":' + DEPTH * opening + b"1" + DEPTH * closing + b"}"


def _not_json(rng: random.Random, data: bytes) -> bytes:
    others = (b"", b"null", b"[]", b'"x"', b"1", b"NaN", b"\xff\xfe{}", b"\xef\xbb\xbf" + data)
    return rng.choice((*others, data + b"x", data.decode(errors="replace").encode("utf-16")))


RAW: tuple[Raw, ...] = (_cut, _flip, _double_keys, _nest, _not_json)

TYPES = ("application/json", "text/plain", "multipart/form-data", "application/json; charset=x", "")


def headers(rng: random.Random) -> dict[str, str]:
    """Return headers, mostly those of JSON."""
    kind = TYPES[0] if rng.random() < 0.8 else rng.choice(TYPES)
    return {"Content-Type": kind} if kind else {}
