"""Many clients of all protocols at once: each gets its own answer, and nothing is left behind.

MGM_TEST_LOAD=1000 asks more, by 200 clients, and prints figures.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest

from helpers.clock import CHAT_TOOL
from helpers.load import Outcome, Question, Said, compact, play, questions
from helpers.server import listening
from helpers.traffic import memory_at_rest
from mlx_gemma_mtp import Engine, Generation, load
from mlx_gemma_mtp.engine.results import Completion
from mlx_gemma_mtp.server.app import app_of
from mlx_gemma_mtp.server.run import Run
from mlx_gemma_mtp.server.service import Service
from mlx_gemma_mtp.server.settings import Settings

REQUESTS = int(os.environ.get("MGM_TEST_LOAD", "40"))
CLIENTS = min(REQUESTS // 5, 200)
QUESTIONS = min(REQUESTS // 2, 60)
PREFIXES = 8 << 20  # bytes
TURNS = 4  # between which the memory is measured


def alone(engine: Engine, asked: Question) -> list[Completion]:
    tools = [CHAT_TOOL] if asked.has_tools else None
    return engine.generate([asked.text], asked.params, tools=tools, n=asked.n)


def said(completion: Completion) -> Said:
    calls = [(one.name, compact(one.function["arguments"])) for one in completion.tool_calls]
    return Said(completion.text, tuple(calls))


def assert_right(got: Outcome, expected: list[Completion]) -> None:
    right = [*map(said, expected)]
    if not got.left:
        assert got.answers == right, got
        assert got.tokens == sum(len(one.tokens) for one in expected), got
    else:
        for part, whole in zip(got.answers, right, strict=False):
            assert whole.text.startswith(part.text), got


@pytest.fixture
def caching() -> Iterator[Engine]:
    """The demo as `mgm serve` has it, with a cache of prefixes."""
    with load("demo", warm_up=False, probe=False, prefix_cache=PREFIXES) as engine:
        yield engine


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def under_way() -> list[object]:
    """What a request must not leave behind."""
    gc.collect()
    return [
        one
        for one in gc.get_objects()
        if isinstance(one, (Generation, Run)) or (isinstance(one, asyncio.Task) and not one.done())
    ]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the memory is read from /proc")
def test_each_of_many_clients_gets_its_own_answer_and_nothing_is_left(
    engine: Engine, caching: Engine, seed: int
) -> None:
    rng = random.Random(seed)
    asked = questions(rng, QUESTIONS)
    expected = {id(one): alone(engine, one) for one in asked}
    before = len(under_way())
    sizes, outcomes, seconds = list[tuple[int, int]](), list[Outcome](), 0.0
    with listening(app_of(Service(caching, Settings(("demo",))))) as url:
        for _ in range(TURNS):
            start = time.perf_counter()
            share = REQUESTS // TURNS
            outcomes += asyncio.run(play(url, rng, asked, clients=CLIENTS, requests=share))
            seconds += time.perf_counter() - start
            sizes.append((memory_at_rest(), resident_bytes()))
    waits = sorted(one.first_seconds for one in outcomes if not one.left)
    kinds = Counter((one.protocol, one.streamed) for one in outcomes)
    hits = caching.status.prefix_hits
    print(
        f"{len(outcomes)} requests of {CLIENTS} clients in {seconds:.1f} s, "
        f"{sum(one.left for one in outcomes)} hung up, "
        f"{sum(one.refused for one in outcomes)} times 503; {dict(kinds)}; first byte after "
        f"{median(waits):.2f} s, longest {waits[-1]:.2f} s; last "
        f"after {max(one.seconds for one in outcomes):.2f} s at most; {hits} hits of prefixes; MLX "
        f"{[one // 10**6 for one, _ in sizes]} MB, RSS {[one // 10**6 for _, one in sizes]} MB"
    )
    for got in outcomes:
        assert_right(got, expected[id(got.question)])
    assert len(outcomes) == TURNS * (REQUESTS // TURNS)
    assert Counter(caching.status[:3]) == {0: 3}
    del expected
    assert len(under_way()) <= before
    assert sizes[-1][0] - sizes[0][0] <= PREFIXES
