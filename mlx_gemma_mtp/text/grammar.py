"""Grammars over the tokens of a tokenizer: which of them continue a text that must match.

By llguidance, an extra, which is imported when a grammar is first needed. Knows nothing of schemas,
thoughts and ends.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Collection, Mapping
from functools import cached_property, lru_cache
from itertools import takewhile
from typing import TYPE_CHECKING

import numpy as np

from mlx_gemma_mtp.decode.constraint import Mask
from mlx_gemma_mtp.errors import MgmError, UsageError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MOST_KEPT = 32  # compiled grammars
MOST_TEXTS = 1024  # that grammars force, such as keys, with their tokens
TOO_DEEP = "it is nested too deeply: name its parts in $defs"
WORDS = {  # llguidance's reasons for people
    r"Unimplemented keys: \[(.*)\]": r"\1 is not supported: leave it out, and check the answer",
    r"Unknown format: (.*)": r'the format "\1" is not supported: leave it out, or give a pattern',
    r"NoExtensionBias": "nothing matches it",
    r".*recursion limit exceeded.*": TOO_DEEP,
    r"Resource '(?:json-schema:///)?(.*?)' is not present.*": (
        r'the $ref "\1" lies outside of the schema: copy it into $defs'
    ),
}
MISSING = (
    "this needs llguidance: pip install llguidance, or in the clone, pip install '.[structured]'"
)


class Grammars:
    """Compiles grammars, and keeps those that were used last. Any thread may use it.

    A grammar names a token that is no text by its id, as `<[48]>`.
    """

    def __init__(
        self,
        bytes_of: Mapping[int, bytes],
        special: Collection[int],
        encode: Callable[[str], list[int]],
    ) -> None:
        """bytes_of: the bytes of every token. special: the tokens that are no text.

        encode: gives the tokens of a text, none of them special.
        """
        self._bytes_of = bytes_of
        self._special = frozenset(special)
        self._encode = encode
        self._size = max(bytes_of) + 1
        self._lock = threading.Lock()
        self._compiled = lru_cache(MOST_KEPT)(self._compile)

    @cached_property
    def all_tokens(self) -> Mask:
        """The ids that are tokens."""
        return mask_of(self._bytes_of, self._size)

    @cached_property
    def plain_tokens(self) -> Mask:
        """The tokens that are text."""
        return without(self.all_tokens, self._special)

    def is_special(self, token: int) -> bool:
        """True for a token that is no text."""
        return token in self._special

    def start(self, grammar: str) -> Match:
        """Start to match a grammar, in llguidance's kind of Lark, with an empty text.

        Raises MgmError without llguidance, and UsageError with its reason to refuse a grammar.
        """
        with self._lock:
            return Match(self._compiled(grammar).deep_copy(), self._size)

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        try:
            from llguidance import LLTokenizer, TokenizerWrapper
        except ImportError:
            raise MgmError(MISSING) from None
        vocabulary = TokenizerWrapper(_Vocabulary(self))
        return LLTokenizer(vocabulary, n_vocab=self._size + 1, eos_token=self._size)

    def _compile(self, grammar: str) -> LLMatcher:
        tokenizer = self._tokenizer
        from llguidance import LLMatcher

        matcher = LLMatcher(tokenizer, grammar, log_level=0)
        if not matcher.is_error():
            matcher.compute_bitmask()  # finds what only the first tokens show
        if matcher.is_error():
            raise UsageError(_reason(matcher.get_error()))
        return matcher


class _Vocabulary:
    """The tokens as llguidance takes them, and one more, which stands for the end."""

    bos_token_id = None

    def __init__(self, grammars: Grammars) -> None:
        size, found = grammars._size, grammars._bytes_of
        self.eos_token_id = size
        self.tokens = [found.get(token, b"") for token in range(size)] + [b"<end>"]
        self.special_token_ids = [*sorted(grammars._special), size]
        self._encode = lru_cache(MOST_TEXTS)(grammars._encode)

    def __call__(self, text: str | bytes) -> list[int]:
        if isinstance(text, bytes):
            raise TypeError("text is text")  # llguidance asks with bytes whether those are taken
        return self._encode(text)


class Match:
    """A text on its way to match a grammar."""

    def __init__(self, matcher: LLMatcher, size: int) -> None:
        self._matcher = matcher
        self._size = size
        self._next: tuple[Mask, bool] | None = None  # what `next_tokens` returned
        self._forced: list[int] | None = None  # what `forced_tokens` returned

    def next_tokens(self) -> tuple[Mask, bool]:
        """Return the tokens that may follow, and True if the text may end here.

        Raises UsageError if the grammar turns out to be too large.
        """
        if self._next is None:
            mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint32).copy()
            self._check()
            ends = has(mask, self._size)
            self._next = clear(mask, [self._size])[: num_words(self._size)], ends
        return self._next

    def forced_tokens(self) -> list[int]:
        """Return the tokens that must follow: each is the only one that may."""
        if self._forced is None:
            found = self._matcher.compute_ff_tokens()
            self._forced = [*takewhile(lambda token: token < self._size, found)]
        return self._forced

    def add(self, token: int) -> None:
        """Add a token to the text. Raises UsageError if it does not fit."""
        self._next = self._forced = None
        self._matcher.consume_token(token)
        self._check()

    def remove(self, count: int) -> None:
        """Remove the last tokens from the text."""
        if count:
            self._next = self._forced = None
            self._matcher.rollback(count)
            self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = _reason(self._matcher.get_error())
            raise UsageError(f"the output cannot follow its grammar: {reason}")


def escaped(regex: str) -> str:
    r"""Return a regex as it stands between slashes in a grammar; \d becomes [0-9]."""
    try:
        from llguidance import regex_to_lark
    except ImportError:
        raise MgmError(MISSING) from None
    return regex_to_lark(regex, "d")


def num_words(size: int) -> int:
    """Return the length of a mask for this many tokens."""
    return -(-size // 32)


def mask_of(tokens: Collection[int], size: int) -> Mask:
    """Return the mask that allows these of `size` tokens."""
    bits = np.zeros(num_words(size) * 32, np.uint8)
    bits[[*tokens]] = 1
    return np.packbits(bits, bitorder="little").view("<u4").astype(np.uint32)


def has(mask: Mask, token: int) -> bool:
    """True if a mask allows a token; False beyond its end."""
    return token < 32 * len(mask) and bool(mask[token // 32] >> np.uint32(token % 32) & 1)


def allow(mask: Mask, tokens: Collection[int]) -> Mask:
    """Add tokens to a mask, which is changed and returned."""
    for token in tokens:
        mask[token // 32] |= np.uint32(1 << token % 32)
    return mask


def clear(mask: Mask, tokens: Collection[int]) -> Mask:
    """Take tokens from a mask, which is changed and returned."""
    for token in tokens:
        mask[token // 32] &= ~np.uint32(1 << token % 32)
    return mask


def without(mask: Mask, tokens: Collection[int]) -> Mask:
    """Return a copy of a mask without these tokens."""
    return clear(mask.copy(), tokens)


def _reason(error: str) -> str:
    """Return the first line of an error that isn't a place in the grammar, nor a drawing of it."""
    error = error.partition("<state>")[0]
    lines = [line.strip() for line in error.splitlines()]
    last = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), "")
    first = lines[0] if lines else ""
    for start in ("failed to compile JSON schema: ", "): "):
        first = first.rpartition(start)[2]
    found = f"{first.rstrip(':')}: {last}" if last else first
    for theirs, ours in WORDS.items():
        found = re.sub(theirs, ours, found)
    return found
