"""Tool calls as Gemma 4 writes them, read with the slips that models make.

Knows nothing of tokens, templates, and what is done with a call.
"""

from __future__ import annotations

import json
import math
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

QUOTE = '<|"|>'
UNREADABLE = "unreadable"  # templates take arguments that cannot be read as {UNREADABLE: text}

MARK = "\ud800"  # the quote token within a source: a lone surrogate, which no UTF-8 text contains
DEEPEST = 50  # brackets within brackets; chat templates write arguments recursively
WORDS = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}

_JSON = r'"(?:[^"\\]|\\.)*+"'
_PYTHON = r"'(?:[^'\\]|\\.)*+'"
_KEY_IN_QUOTES = rf"""{MARK}[^{MARK}]*+{MARK}|"[^"\\{MARK}]*+"|'[^'\\{MARK}]*+'"""
_VALUE_STARTS = rf"""\s*+(?:[{MARK}"'\[{{]|-?\d|(?:{"|".join(WORDS)})\b)"""

_START = re.compile(rf"[\s,]*+call:\s*+([^\s{{{MARK}]++)\s*+(?=\{{)")
_SPACE = re.compile(r"\s*+")
_KEY = re.compile(rf"\s*+({_KEY_IN_QUOTES}|[^\s{{}}\[\],:{MARK}\"'][^{{}}\[\],:{MARK}]*+)\s*+:")
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*+)(?:\.\d++)?+(?:[eE][+-]?\d++)?+(?![\w.+-])", re.ASCII)
_WORD = re.compile(rf"(?:{'|'.join(WORDS)})\b")
_STRING = re.compile(rf"{_JSON}|{_PYTHON}", re.DOTALL)
_NOT_JSON = re.compile(rf'\\.|["{MARK}]', re.DOTALL)
# What may follow an item, by the bracket that closes its list.
_MISSING_COMMA = re.compile(rf"(?:{_KEY_IN_QUOTES}|[^\W\d][\w.-]*+)\s*+:{_VALUE_STARTS}")
_NEXT = {
    "}": re.compile(rf",\s*+\}}|,{_KEY.pattern}{_VALUE_STARTS}|{_MISSING_COMMA.pattern}"),
    "]": re.compile(rf",\s*+\]|,{_VALUE_STARTS}"),
}


@dataclass(frozen=True)
class ToolCall:
    """A complete tool call.

    raw: its text, `call:NAME{key:<|"|>text<|"|>,n:1}`. arguments: None if they cannot be read
    without a guess. name: empty if not even `call:NAME{` can be read. id: random, for the message
    with its result.
    """

    name: str
    arguments: dict[str, Any] | None
    raw: str
    id: str = field(default_factory=lambda: f"call_{secrets.token_hex(8)}", compare=False)

    @property
    def function(self) -> dict[str, Any]:
        """The call as chat templates take it; {"unreadable": text} for unreadable arguments."""
        written = self.raw.partition("{")[2].rstrip().removesuffix("}")
        arguments = {UNREADABLE: written} if self.arguments is None else self.arguments
        return {"name": self.name, "arguments": arguments}


def read_calls(parts: Sequence[str]) -> list[ToolCall]:
    """Read the calls between one pair of markers, mostly one; their raw texts join to the whole.

    parts: the text between the markers, split at its quote tokens.

    The syntax is JSON's, with keys as they are and strings between quote tokens. These are read as
    well: Python's words; strings and keys in JSON's or Python's quotes; a comma that is missing
    before a key, or left after the last item; and quote tokens within a string for its quotes.
    """
    source = MARK.join(parts)
    start, calls = _START.match(source), []
    if start is None:
        return [ToolCall("", None, _raw(source))]
    begin = 0
    while start:
        name, reader = start[1], _Reader(source, start.end())
        try:
            arguments, following = reader.arguments()
        except ValueError:
            arguments, following = None, None
        end = following.start() if following else len(source)
        calls.append(ToolCall(name, arguments, _raw(source[begin:end])))
        start, begin = following, end
    return calls


def as_mapping(arguments: Mapping[str, Any] | str | None) -> Mapping[str, Any]:
    """Return the arguments of a call in a message as chat templates take them.

    Text is read as JSON, the form of OpenAI's clients. Text that is not a JSON object is returned
    as {"unreadable": text}, so that a conversation can continue after a broken call.
    """
    if not isinstance(arguments, str):
        return {} if arguments is None else arguments
    if not arguments.strip():
        return {}
    try:
        found = json.loads(arguments, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {UNREADABLE: arguments}


class _Reader:
    """Reads the arguments of one call, from their opening brace. Raises ValueError if it cannot."""

    def __init__(self, source: str, at: int) -> None:
        self._source = source
        self._at = at
        self._closers: list[str] = []  # of the brackets that are open

    def arguments(self) -> tuple[dict[str, Any], re.Match[str] | None]:
        """Return the arguments, and the start of the call that follows, if any."""
        arguments = self._object()
        following = _START.match(self._source, self._at)
        if following is None and self._skip_space(self._at) < len(self._source):
            raise ValueError("there is text after the call")
        return arguments, following

    def _object(self) -> dict[str, Any]:
        found = {}
        for _ in self._items("}"):
            key = self._take(_KEY).strip()
            key = key[1:-1] if key[0] in f"{MARK}\"'" else key
            if key in found:
                raise ValueError("a key is there twice")
            found[key] = self._value()
        return found

    def _items(self, closer: str) -> Iterator[None]:
        """Step over the brackets and commas around the items, which the caller reads."""
        self._closers.append(closer)
        if len(self._closers) > DEEPEST:
            raise ValueError("too many brackets within brackets")
        self._at = self._skip_space(self._at + 1)
        while self._source[self._at : self._at + 1] != closer:
            yield
            self._at = self._skip_space(self._at)
            following = self._source[self._at : self._at + 1]
            if following == ",":
                self._at = self._skip_space(self._at + 1)
            elif following != closer and not _MISSING_COMMA.match(self._source, self._at):
                raise ValueError("a comma or bracket is missing")
        self._at += 1
        self._closers.pop()

    def _value(self) -> Any:
        self._at = self._skip_space(self._at)
        match self._source[self._at : self._at + 1]:
            case "{":
                return self._object()
            case "[":
                return [self._value() for _ in self._items("]")]
            case c if c == MARK:
                return self._text()
            case '"' | "'":
                return _plain(self._take(_STRING))
            case c if c.isalpha():
                return WORDS[self._take(_WORD)]
        number = self._take(_NUMBER)
        return _finite(number) if {*number} & {*".eE"} else int(number)

    def _text(self) -> str:
        """Read a string between quote tokens. Within it, pairs of them stand for its own quotes.

        So a token ends the string unless it is the second of a pair, or the call cannot continue.
        """
        source, start = self._source, self._at + 1
        end, inner = source.find(MARK, start), 0
        while end >= 0:
            after = self._skip_space(end + 1)
            if inner % 2 == 0 and self._continues(after):
                self._at = end + 1
                return source[start:end].replace(MARK, '"')
            if inner % 2 == 0 and self._closers[-1] == "]" and source[after : after + 1] == MARK:
                raise ValueError("quotes in a string, or two strings without a comma")
            end, inner = source.find(MARK, end + 1), inner + 1
        raise ValueError("a string has no end")

    def _continues(self, at: int) -> bool:
        """True if what follows the string that ends here fits the brackets that are open."""
        source = self._source
        for closer in reversed(self._closers):
            if source[at : at + 1] != closer:
                return _NEXT[closer].match(source, at) is not None
            at = self._skip_space(at + 1)
        return at == len(source) or _START.match(source, at) is not None

    def _take(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self._source, self._at)
        if found is None:
            raise ValueError("this is not the syntax of a call")
        self._at = found.end()
        return found[pattern.groups]

    def _skip_space(self, at: int) -> int:
        found = _SPACE.match(self._source, at)
        assert found
        return found.end()


def _plain(written: str) -> str:
    """Return the text of a string in JSON's or Python's quotes, with JSON's escapes."""
    quotes = {MARK: '\\"', '"': '\\"', "\\'": "'"}
    inside = _NOT_JSON.sub(lambda found: quotes.get(found[0], found[0]), written[1:-1])
    text: str = json.loads(f'"{inside}"', strict=False)
    text.encode()  # a lone surrogate is an error, as in a prompt
    return text


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number} is not a number in JSON")
    return value


def _raw(source: str) -> str:
    return source.replace(MARK, QUOTE)
