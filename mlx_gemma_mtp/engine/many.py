"""Several prompts in one call: what each is asked with, and all of their ends.

Knows nothing of queues and rows, or of what a prompt is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, Future, wait
from dataclasses import replace
from typing import TypeVar, cast

from mlx_gemma_mtp.decode.params import SamplingParams, is_count
from mlx_gemma_mtp.engine.generation import Generation
from mlx_gemma_mtp.engine.request import Request
from mlx_gemma_mtp.engine.results import Completion
from mlx_gemma_mtp.errors import UsageError

T = TypeVar("T")
P = TypeVar("P")
S = TypeVar("S")

SEEDS = 2**32


def each_of(given: T | Sequence[T], count: int, what: str) -> Sequence[T]:
    """Return a list with one entry for each of `count` prompts. Raises UsageError."""
    several = isinstance(given, Sequence) and not isinstance(given, (str, bytes))
    each = cast(Sequence[T], given) if several else [cast(T, given)] * count
    if len(each) != count:
        prompts = "1 prompt" if count == 1 else f"{count} prompts"
        raise UsageError(f"{prompts} but {len(each)} {what}: give one for each")
    return each


def repeated(
    asked: Iterable[tuple[P, SamplingParams | None, S | None]], n: int
) -> Iterator[tuple[P, SamplingParams | None, S | None]]:
    """Yield everything that is asked n times, with the seeds seed, seed + 1, ...

    Raises UsageError.
    """
    if not is_count(n) or n < 1:
        raise UsageError(f"n must be at least 1, not {n!r}")
    for prompt, params, session in asked:
        if session is not None and n > 1:
            raise UsageError("a session serves one request at a time: n must be 1 with sessions")
        for number in range(n):
            own = params
            if number and isinstance(params, SamplingParams) and params.seed is not None:
                own = replace(params, seed=(params.seed + number) % SEEDS)
            yield prompt, own, session


def finish_all(
    requests: Sequence[Request], submit: Callable[[Request], Generation], *, most: int
) -> list[Completion]:
    """Submit all and wait for them; at most this many are under way.

    The first failure, or Ctrl-C, cancels the others.
    """
    pending: set[Future[Completion]] = set()
    try:
        for request in requests:
            if len(pending) == most:
                pending = _wait(pending, FIRST_COMPLETED)
            pending.add(submit(request))
        _wait(pending, FIRST_EXCEPTION)
        return [request.generation.result() for request in requests]
    except BaseException:
        for request in requests:
            request.generation.cancel()
        raise


def _wait(pending: set[Future[Completion]], until: str) -> set[Future[Completion]]:
    """Wait for the first request to end, or to fail; returns the others. Raises its error."""
    ended, left = wait(pending, return_when=until)
    for generation in ended:
        generation.result()
    return left
