"""Tool calls as a model writes them, read in pieces."""

from __future__ import annotations

from collections.abc import Sequence

from mlx_gemma_mtp.text.call_reader import MARK
from mlx_gemma_mtp.text.call_stream import CallDelta, CallStream
from mlx_gemma_mtp.text.calls import ToolCall


def read_calls(*pieces: str, quote: str = "Q") -> list[ToolCall]:
    """The calls in these pieces of text. quote: what stands for the quote token in them."""
    return streamed(*pieces, quote=quote)[0]


def streamed(*pieces: str, quote: str = "Q") -> tuple[list[ToolCall], list[list[CallDelta]]]:
    """The calls in these pieces of text, and the deltas that each piece gives, and the end."""
    stream = CallStream()
    deltas = [stream.add(piece.replace(quote, MARK)) for piece in pieces]
    deltas.append(stream.finish())
    return stream.calls, deltas


def joined_arguments(deltas: Sequence[Sequence[CallDelta]]) -> str:
    """The arguments of the only call, as JSON text."""
    return "".join(delta.arguments for step in deltas for delta in step)
