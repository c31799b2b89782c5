"""The tokens that separate channels. Knows nothing of what they enclose."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Markers(NamedTuple):
    """The ids of the tokens that separate channels; None if the tokenizer has no such token.

    turn: opens a turn, in which no thought or call is open yet.
    """

    channel: int | None = None
    channel_end: int | None = None
    call: int | None = None
    call_end: int | None = None
    quote: int | None = None
    turn: int | None = None


# In the same order.
MARKERS = ("<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", '<|"|>', "<|turn>")


def markers_of(ids: Mapping[str, int]) -> Markers:
    """Return the markers among these tokens; one that opens needs the one that closes."""
    found = Markers(*map(ids.get, MARKERS))
    if None in (found.channel, found.channel_end):
        found = found._replace(channel=None, channel_end=None)
    if None in (found.call, found.call_end):
        found = found._replace(call=None, call_end=None)
    return found
