"""What fails ends the requests that depend on it, and no others; the scheduler continues."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from helpers.fake_target import VOCAB, output
from helpers.spelled import Detokenizer
from helpers.stepped import LONG, Event, Stepped
from helpers.traffic import tokens_of
from mlx_gemma_mtp import Chunk, Generation, MgmError
from mlx_gemma_mtp.engine.request import Request
from mlx_gemma_mtp.errors import GenerationError, NotEnoughMemoryError
from mlx_gemma_mtp.text.markers import Markers
from mlx_gemma_mtp.text.text_stream import TextStream

NO_MEMORY = "[malloc] Unable to allocate 1024 bytes."
BUFFERS = 4  # of a fake pair's cache: keys and values of two layers


def error_of(request: Request) -> MgmError:
    error = request.generation.exception(0)
    assert isinstance(error, MgmError)
    return error


def failing(function: Callable[..., Any], calls: list[int]) -> Callable[..., Any]:
    """This function, which runs out of memory at the calls whose number is in `calls`."""
    count = 0

    def call(*arguments: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count in calls:
            raise RuntimeError(NO_MEMORY)
        return function(*arguments, **options)

    return call


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError(NO_MEMORY), NotEnoughMemoryError),
        (RuntimeError("[metal::malloc] Attempting to allocate 9 bytes"), NotEnoughMemoryError),
        (RuntimeError("cudaMallocAsync(&data, size) failed: out of memory"), NotEnoughMemoryError),
        (RuntimeError("[METAL] execution failed: Insufficient Memory"), NotEnoughMemoryError),
        (MemoryError(), NotEnoughMemoryError),
        (RuntimeError("broken\nfor good"), GenerationError),
        (ValueError("broken"), GenerationError),
        (SystemExit(3), GenerationError),
    ],
)
def test_an_error_in_a_prefill_ends_that_request_alone(
    prompts: list[list[int]], error: BaseException, kind: type[MgmError]
) -> None:
    def fail(event: Event) -> None:
        if event.what == "chunk" and 64 in stepped.passes[-1]:
            raise error

    stepped = Stepped()
    stepped.then = fail
    first, bad, second = (stepped.submit(p, LONG) for p in (prompts[0], [7] * 64, prompts[1]))
    stepped.finish(first, second)
    failure = error_of(bad)
    assert type(failure) is kind
    assert failure.__cause__ is error
    assert "\n" not in str(failure)
    assert kind is not NotEnoughMemoryError or failure.exit_code == 4


@pytest.mark.parametrize(
    ("allocate", "calls", "restored"),
    [
        ("zeros", [1], True),  # at the start of its prefill
        *(("take", [number], True) for number in range(1, BUFFERS + 2)),  # and the offset
        ("take", list(range(4, 99)), False),
    ],
)
def test_a_request_without_memory_fails_alone_if_the_batch_can_be_restored(
    prompts: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
    allocate: str,
    calls: list[int],
    restored: bool,
) -> None:
    stepped = Stepped()
    first = stepped.submit(prompts[0], LONG)
    stepped.step(9)
    bad = stepped.submit(prompts[1], LONG)
    with monkeypatch.context() as patch:
        patch.setattr(mx, allocate, failing(getattr(mx, allocate), calls))
        stepped.step(2)
    third = stepped.submit(prompts[2], LONG)  # by now there is memory again
    stepped.finish(*[first] * restored, third)
    assert isinstance(error_of(bad), NotEnoughMemoryError)
    assert restored or error_of(first)


def test_of_requests_that_join_together_the_last_fail_without_memory(
    prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    stepped = Stepped()
    first = stepped.submit(prompts[0], LONG)
    stepped.step(9)
    together = [stepped.submit(prompt[:9], LONG) for prompt in prompts[1:5]]
    with monkeypatch.context() as patch:  # to five rows, and to four
        patch.setattr(mx, "take", failing(mx.take, [1, 3]))
        stepped.step()
    stepped.finish(first, *together[:2])
    for request in together[2:]:
        assert isinstance(error_of(request), NotEnoughMemoryError)


def test_a_request_for_which_the_cache_cannot_grow_fails_and_the_others_continue(
    rng: np.random.Generator, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    stepped, chunks = Stepped(), list[Chunk]()
    long = rng.integers(0, VOCAB, 240).tolist()
    first = stepped.submit(prompts[0], LONG)
    second = stepped.submit(long, LONG, on_chunk=chunks.append)
    with monkeypatch.context() as patch:
        patch.setattr(mx, "pad", failing(mx.pad, [1]))
        stepped.finish(first)
    assert isinstance(error_of(second), NotEnoughMemoryError)
    written = tokens_of(chunks)
    assert 10 <= len(written) <= 17
    assert written == output(long, len(written))
    stepped.finish(stepped.submit(long, LONG))


def test_an_error_in_a_round_ends_its_rows_and_those_that_wait_are_served(
    prompts: list[list[int]],
) -> None:
    def fail(event: Event) -> None:
        if event.what == "round" and len(stepped.rounds) == count + 6:
            raise RuntimeError("broken")

    stepped = Stepped(max_batch=2)
    stepped.submit(prompts[0])
    stepped.finish()
    memory, count = stepped.memory_at_rest(), len(stepped.rounds)
    stepped.then = fail
    requests = [stepped.submit(prompt) for prompt in prompts]
    stepped.finish(*requests[2:])
    errors = [error_of(one) for one in requests[:2]]
    for error in errors:
        assert type(error) is GenerationError
        assert "broken" in str(error.__cause__)
    assert errors[0] is not errors[1]
    assert stepped.memory_at_rest() <= memory + 10_000  # `errors` keeps nothing


def test_an_error_between_the_rounds_ends_everything_and_the_scheduler_continues(
    prompts: list[list[int]],
) -> None:
    class Unreadable(Generation):
        @property
        def _stopping(self) -> bool:
            raise RuntimeError("broken")

        @_stopping.setter
        def _stopping(self, _: bool) -> None: ...

    stepped = Stepped(max_batch=1)
    requests = [stepped.submit(prompt) for prompt in prompts]
    stepped.step(3)
    requests[2].generation = Unreadable()
    stepped.step()
    for request in requests:
        assert "broken" in str(error_of(request))
    stepped.finish(stepped.submit(prompts[0]))


class Unwritable(Detokenizer):
    """Text that breaks at its sixth token."""

    added = 0

    def add(self, token: int) -> str:
        self.added += 1
        if self.added == 6:
            raise ValueError("broken")
        return "x"


@pytest.mark.parametrize("where", ["callback", "text"])
def test_an_error_in_a_callback_or_in_text_ends_that_request_alone(
    prompts: list[list[int]], where: str
) -> None:
    pieces: list[Chunk] = []

    def note(chunk: Chunk) -> None:
        pieces.append(chunk)
        if where == "callback" and len(pieces) == 5:
            raise ValueError("broken")

    stepped = Stepped()
    stream = TextStream(Unwritable({}), (), Markers()) if where == "text" else None
    first = stepped.submit(prompts[0], LONG)
    bad = stepped.submit(prompts[1], LONG, stream=stream, on_chunk=note)
    second = stepped.submit(prompts[2], LONG)
    stepped.finish(first, second)
    error = error_of(bad)
    assert "ValueError: broken" in str(error)
    assert isinstance(error.__cause__, ValueError)
    assert "in note" in error.__cause__.__notes__[0] or where == "text"
    assert len(pieces) == 5
