"""A forked child cannot use its parent's engine or load one, and learns so at once."""

import asyncio
import concurrent.futures
import copy
import os
import pickle
import re
import signal
from collections.abc import Callable
from typing import Any

import pytest

from helpers.fake_target import ENDLESS, PARAMS, fake_engine
from mlx_gemma_mtp import Engine, Generation, MgmError, UsageError, load

SECONDS = 20  # after which a child that waits is ended

USES: dict[str, Callable[[Engine], Any]] = {
    "generate": lambda engine: engine.generate([5], PARAMS),
    "stream": lambda engine: list(engine.stream([5], PARAMS)),
    "submit": lambda engine: engine.submit([5], PARAMS),
    "session": lambda engine: engine.session(),
    "close": lambda engine: engine.close(),
    "an engine of its own": lambda _: fake_engine(),
    "load": lambda _: load("demo"),
}


async def awaited(generation: Generation) -> None:
    await generation


WAITS: dict[str, Callable[[Generation], Any]] = {
    "result": lambda generation: generation.result(),
    "exception": lambda generation: generation.exception(),
    "wait": lambda generation: concurrent.futures.wait([generation]),
    "read": lambda generation: list(generation),
    "block": lambda generation: generation.__exit__(None),
    "await": lambda generation: asyncio.run(awaited(generation)),
}


def in_a_child(use: Callable[[], Any]) -> str:
    """Return what the MgmError says that this raises in a forked child."""
    end, start = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(SECONDS)
        try:
            use()
        except MgmError as error:
            os.write(start, str(error).encode())
        finally:
            os._exit(0)
    os.close(start)
    with os.fdopen(end) as said:
        words = said.read()
    assert os.waitpid(child, 0)[1] == 0
    return words


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_forked_child_is_refused_and_the_parent_goes_on(
    running: Engine, use: Callable[[Engine], Any]
) -> None:
    before = running.generate([5], PARAMS)[0].tokens
    said = in_a_child(lambda: use(running))
    assert "spawn" in said
    assert "\n" not in said
    assert running.generate([5], PARAMS)[0].tokens == before


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
def test_a_forked_child_cannot_wait_for_a_request_of_its_parent(
    running: Engine, wait: Callable[[Generation], Any]
) -> None:
    generation = running.submit([5], ENDLESS)
    next(generation)
    assert "spawn" in in_a_child(lambda: wait(generation))
    generation.cancel()
    assert generation.result(SECONDS).finish_reason == "cancelled"


def test_what_belongs_to_this_process_is_not_copied_or_sent_to_another() -> None:
    with fake_engine() as engine:
        generation = engine.submit([5], PARAMS)
        for one, instead in {
            engine: "load it there",
            engine.session(): "save() writes it to a file",
            generation: "send its result()",
        }.items():
            for send in (pickle.dumps, copy.copy, copy.deepcopy):
                with pytest.raises(UsageError, match=re.escape(instead)):
                    send(one)
        assert pickle.loads(pickle.dumps(generation.result(SECONDS))).tokens
