"""A run ends what nobody needs any more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from helpers.scripted import call_chunks
from mlx_gemma_mtp import SamplingParams
from mlx_gemma_mtp.engine.generation import Generation
from mlx_gemma_mtp.engine.results import Chunk
from mlx_gemma_mtp.server.asked import Asked
from mlx_gemma_mtp.server.run import Run


@pytest.mark.parametrize("one_call", [True, False])
def test_a_request_for_one_call_ends_with_it(one_call: bool) -> None:
    generation, cancelled = Generation(), list[bool]()
    generation._when_cancelled(lambda: cancelled.append(True))

    async def first_call() -> list[Chunk]:
        run = Run(Asked("chat", ["Hi"], SamplingParams(), one_call=one_call))

        def submit(on_chunk: Callable[[Chunk], None]) -> Generation:
            for chunk in call_chunks(0, "f", "{", "}"):
                on_chunk(chunk)
            return generation

        run.add(submit)
        await run.ready(10)
        return [chunk for _, chunk in run.seen]

    assert asyncio.run(first_call())
    assert cancelled == [True] * one_call
