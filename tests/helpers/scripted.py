"""An engine that plays a script: outputs that no small model gives, such as two calls at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from starlette.testclient import TestClient

from mlx_gemma_mtp.engine.generation import Generation
from mlx_gemma_mtp.engine.results import Chunk, Completion, Stats, TokenLogprobs
from mlx_gemma_mtp.errors import MgmError
from mlx_gemma_mtp.server.app import app_of
from mlx_gemma_mtp.server.exchange import Exchange
from mlx_gemma_mtp.server.service import Service
from mlx_gemma_mtp.server.settings import Settings
from mlx_gemma_mtp.text.call_stream import CallDelta
from mlx_gemma_mtp.text.calls import ToolCall
from mlx_gemma_mtp.text.tokenizer import Text


class ScriptedEngine:
    """Gives every request these chunks, and then their completion or an error."""

    context = 100

    def __init__(
        self, chunks: Sequence[Chunk], error: MgmError | None = None, text: Text | None = None
    ) -> None:
        self.text = text
        self._chunks = chunks
        self._error = error

    def submit(self, _: Any, __: Any, on_chunk: Callable[[Chunk], None], **___: Any) -> Generation:
        """Return a request that has ended already."""
        generation = Generation()
        for chunk in self._chunks:
            generation._add(chunk)
            on_chunk(chunk)
        if self._error is not None:
            generation._fail(self._error)
        else:
            generation._finish(_completion(self._chunks))
        return generation


def scripted(
    chunks: Sequence[Chunk],
    error: MgmError | None = None,
    text: Text | None = None,
    observers: Sequence[Callable[[Exchange], object]] = (),
) -> TestClient:
    """Return a client of a server whose engine plays this script. observers: as of `app_of`."""
    engine: Any = ScriptedEngine(chunks, error, text)
    return TestClient(app_of(Service(engine, Settings(("demo",))), observers), "http://localhost")


def call_chunks(index: int, name: str, *arguments: str) -> list[Chunk]:
    """Return the chunks of a call whose arguments come in these pieces of JSON."""
    call = ToolCall(name, {"n": index}, f"call:{name}{{n:{index}}}", f"call_{index}")
    *first, last = arguments
    deltas = [CallDelta(index, call.id, name), *(CallDelta(index, call.id, None, a) for a in first)]
    chunks = [Chunk("", [1], kind="tool_call", call_deltas=(delta,)) for delta in deltas]
    done = (CallDelta(index, call.id, None, last, done=True),)
    return [*chunks, Chunk("", [1], kind="tool_call", tool_call=call, call_deltas=done)]


def held_back(text: Text) -> list[Chunk]:
    """Return the chunks of "1+2", each token in one of its own, whose text comes with the last."""
    ids = text.encode("1+2")
    logprobs = [(TokenLogprobs(one, -0.5, ()),) for one in ids]
    *first, last = [Chunk("", [one], logprobs=own) for one, own in zip(ids, logprobs, strict=True)]
    return [*first, replace(last, text="1+2"), last_chunk()]


def last_chunk(text: str = "") -> Chunk:
    """Return the chunk that ends an output."""
    return Chunk(text, [], "stop", Stats())


def _completion(chunks: Sequence[Chunk]) -> Completion:
    text = "".join(chunk.text for chunk in chunks if chunk.kind == "answer")
    calls = tuple(chunk.tool_call for chunk in chunks if chunk.tool_call)
    return Completion(text, [1], chunks[-1].finish_reason or "stop", Stats(), 0, tool_calls=calls)
