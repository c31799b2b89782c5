"""Tokens with texts of their own: made from the parts of an output, or written as digits."""

from __future__ import annotations

from collections.abc import Sequence

from mlx_gemma_mtp.text.markers import Markers
from mlx_gemma_mtp.text.text_stream import TextStream

MARKERS = Markers(100, 101, 48, 49, 52, 105)  # the demo's
CHANNEL, CHANNEL_END, CALL, CALL_END, QUOTE, TURN = MARKERS
TURN_END = 106


class Detokenizer:
    """A detokenizer for listed tokens; each has some text."""

    def __init__(self, texts: dict[int, str]) -> None:
        self._texts = texts

    def add(self, token: int) -> str:
        return self._texts[token]

    def finish(self) -> str:
        return ""


def spell(*parts: str | int) -> tuple[list[int], TextStream]:
    """Return the tokens of these parts, markers as ids and the rest as text, and their stream."""
    texts = {1000 + at: part for at, part in enumerate(parts) if isinstance(part, str)}
    tokens = [part if isinstance(part, int) else 1000 + at for at, part in enumerate(parts)]
    return tokens, TextStream(Detokenizer(texts | {QUOTE: '<|"|>'}), (), MARKERS)


class NumbersText:
    """Stands in for `tokenizer.Text`: three digits per token, so that a stop can span two."""

    folder = None
    markers = Markers()

    def stream(self, stop: Sequence[str] = ()) -> TextStream:
        texts = {token: spelled([token]) for token in range(1000)}
        return TextStream(Detokenizer(texts), stop, Markers())


def spelled(tokens: Sequence[int]) -> str:
    return "".join(f"{token:03d}" for token in tokens)
