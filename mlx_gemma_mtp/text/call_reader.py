"""The arguments of a tool call as Gemma 4 writes them, turned into JSON while they come.

Reads the slips that models make, and nothing that needs a guess. Knows nothing of tokens, of names
and ids of calls, and what is done with one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator
from typing import Any

from mlx_gemma_mtp.text.calls import finite

QUOTE = '<|"|>'
MARK = "\ud800"  # the quote token within a source: a lone surrogate, which no UTF-8 text contains
DEEPEST = 50  # brackets within brackets; chat templates write arguments recursively
WORDS = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}

_JSON = r'"(?:[^"\\]|\\.)*+"'
_PYTHON = r"'(?:[^'\\]|\\.)*+'"
_KEY_IN_QUOTES = rf"""{MARK}[^{MARK}]*+{MARK}|"[^"\\{MARK}]*+"|'[^'\\{MARK}]*+'"""
_BARE_KEY = rf"[^\s{{}}\[\],:{MARK}\"'][^{{}}\[\],:{MARK}]*+"
_WORD_KEY = r"[^\W\d][\w.-]*+"  # after a comma that is missing
_VALUE_STARTS = rf"""\s*+(?:[{MARK}"'\[{{]|-?\d|(?:{"|".join(WORDS)})\b)"""

_NAME = rf":\s*+([^\s{{{MARK}]++)\s*+(?=\{{)"
START = re.compile(rf"[\s,]*+call{_NAME}")
FIRST = re.compile(rf"[\s,]*+(?:call)?+{_NAME}")  # right after a marker, the word may be missing
_SPACE = re.compile(r"\s*+")
_KEY = re.compile(rf"\s*+({_KEY_IN_QUOTES}|{_BARE_KEY})\s*+:")
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*+)(?:\.\d++)?+(?:[eE][+-]?\d++)?+(?![\w.+-])", re.ASCII)
_WORD = re.compile(rf"(?:{'|'.join(WORDS)})\b")
_STRING = re.compile(rf"{_JSON}|{_PYTHON}", re.DOTALL)
_NOT_JSON = re.compile(rf'\\.|["{MARK}]', re.DOTALL)
# What may follow an item, by the bracket that closes its list.
_MISSING_COMMA = re.compile(rf"(?:{_KEY_IN_QUOTES}|{_WORD_KEY})\s*+:{_VALUE_STARTS}")
_NEXT = {
    "}": re.compile(rf",\s*+\}}|,{_KEY.pattern}{_VALUE_STARTS}|{_MISSING_COMMA.pattern}"),
    "]": re.compile(rf",\s*+\]|,{_VALUE_STARTS}"),
}
# What may become one of these, or another call, if the source grows. It may be more than those.
_HALF_QUOTED = rf"""{MARK}[^{MARK}]*+{MARK}?+|"[^"\\{MARK}]*+"?+|'[^'\\{MARK}]*+'?+"""
_UNDECIDED = re.compile(
    rf"(?:,[\s,]*+(?:{_HALF_QUOTED}|{_BARE_KEY})?+|{_HALF_QUOTED}|{_WORD_KEY})?+"
    rf"\s*+(?::\s*+(?:[^\s{{{MARK}]++\s*+)?+)?+\Z"
)

Pieces = Generator[str | None, None, None]
Match = re.Match[str]


class CallReader:
    """Reads the arguments of the call whose opening brace is at `at` in `source`.

    The syntax is JSON's, with keys as they are and strings between quote tokens (MARK). These are
    read as well: Python's words; strings and keys in JSON's or Python's quotes; a comma that is
    missing before a key, or left after the last item; and quote tokens within a string for its
    quotes.

    `source` may grow until it is `whole`. What is before `at` is read, and `following` is the start
    of another call behind this one.
    """

    def __init__(self, source: str, at: int, *, whole: bool) -> None:
        self.source = source
        self.at = at
        self.whole = whole
        self.following: Match | None = None
        self._closers: list[str] = []  # of the brackets that are open

    def arguments(self) -> Pieces:
        """Yield pieces of JSON text that are certain, and None when the source must grow first.

        All pieces together are a JSON object; the last one, its brace, comes when the source is
        whole. Raises ValueError if the arguments cannot be read.
        """
        yield "{"
        yield from self._items("}")
        while not self.whole:
            yield from self._more()
        self.following = START.match(self.source, self.at)
        if self.following is None and self._skip_space(self.at) < len(self.source):
            raise ValueError("there is text after the call")
        yield "}"

    def _items(self, closer: str) -> Pieces:
        """Read from a bracket through the one that closes it, which are not yielded."""
        self._closers.append(closer)
        if len(self._closers) > DEEPEST:
            raise ValueError("too many brackets within brackets")
        self.at += 1
        keys: set[str] = set()
        comma = ""
        while (yield from self._next()) != closer:
            yield comma
            comma = ","
            if closer == "}":
                key = (yield from self._take(_KEY, ends=":"))[1].strip()
                key = key[1:-1] if key[0] in f"{MARK}\"'" else key
                if key in keys:
                    raise ValueError("a key is there twice")
                keys.add(key)
                yield f"{_json(key)}:"
            yield from self._value()
            following = yield from self._next()
            if following == ",":
                self.at += 1
            elif following != closer:
                self.at = (yield from self._take(_MISSING_COMMA)).start()
        self.at += 1
        self._closers.pop()

    def _value(self) -> Pieces:
        match (yield from self._next()):
            case "{":
                yield "{"
                yield from self._items("}")
                yield "}"
            case "[":
                yield "["
                yield from self._items("]")
                yield "]"
            case c if c == MARK:
                yield from self._text()
            case '"' | "'" as quote:
                yield _json(_plain((yield from self._take(_STRING, ends=quote))[0]))
            case c if c.isalpha():
                yield _json(WORDS[(yield from self._take(_WORD))[0]])
            case _:
                number = (yield from self._take(_NUMBER))[0]
                yield _json(finite(number) if {*number} & {*".eE"} else int(number))

    def _text(self) -> Pieces:
        """Read a string between quote tokens. Within it, pairs of them stand for its own quotes.

        So a token ends the string unless it is the second of a pair, or the call cannot continue.
        """
        self.at += 1
        yield '"'
        inner = 0
        while True:
            end = self.source.find(MARK, self.at)
            self.at, start = len(self.source) if end < 0 else end, self.at
            yield _json(self.source[start : self.at])[1:-1]
            if end < 0:
                yield from self._more()
                continue
            if inner % 2 == 0:
                if (yield from self._may_end(end + 1)):
                    break
                after = self._skip_space(end + 1)
                if self._closers[-1] == "]" and self.source[after : after + 1] == MARK:
                    raise ValueError("quotes in a string, or two strings without a comma")
            yield '\\"'
            self.at, inner = end + 1, inner + 1
        self.at = end + 1
        yield '"'

    def _may_end(self, at: int) -> Generator[None, None, bool]:
        """Return True if what follows the string that ends here fits the brackets that are open."""
        while (fits := self._fits(at)) is None:
            yield from self._more()
        return fits

    def _fits(self, at: int) -> bool | None:
        """Do what `_may_end` does; None if the source must grow first."""
        source, pattern = self.source, START
        at = self._skip_space(at)
        for closer in reversed(self._closers):
            if source[at : at + 1] != closer:
                pattern = _NEXT[closer]
                break
            at = self._skip_space(at + 1)
        found = pattern.match(source, at)
        if self.whole:
            return found is not None or (pattern is START and at == len(source))
        if found:
            return True if found.end() < len(source) else None
        return None if _UNDECIDED.match(source, at) else False

    def _next(self) -> Generator[None, None, str]:
        """Step over spaces, and return the character after them."""
        while (at := self._skip_space(self.at)) == len(self.source):
            yield from self._more()
        self.at = at
        return self.source[at]

    def _take(self, pattern: re.Pattern[str], ends: str = "") -> Generator[None, None, Match]:
        """Step over a match of the pattern. ends: its last character, if it has a certain one."""
        while True:
            found = pattern.match(self.source, self.at)
            if found and (ends or self.whole or found.end() < len(self.source)):
                self.at = found.end()
                return found
            length = len(self.source)
            yield from self._more()
            while ends not in self.source[length:]:
                yield from self._more()

    def _more(self) -> Generator[None, None, None]:
        """Wait for more of the source. Raises ValueError if there is none."""
        if self.whole:
            raise ValueError("this is not the syntax of a call")
        yield

    def _skip_space(self, at: int) -> int:
        found = _SPACE.match(self.source, at)
        assert found
        return found.end()


def raw(source: str) -> str:
    """Return a source as the model wrote it."""
    return source.replace(MARK, QUOTE)


def _plain(written: str) -> str:
    """Return the text of a string in JSON's or Python's quotes, with JSON's escapes."""
    quotes = {MARK: '\\"', '"': '\\"', "\\'": "'"}
    inside = _NOT_JSON.sub(lambda found: quotes.get(found[0], found[0]), written[1:-1])
    text: str = json.loads(f'"{inside}"', strict=False)
    text.encode()  # a lone surrogate is an error, as in a prompt
    return text


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
