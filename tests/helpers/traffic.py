"""Requests under way: an engine that notes them, threads that must end, and what they must give."""

import faulthandler
import gc
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import pytest

from mlx_gemma_mtp import Chunk, Completion, Engine, Generation
from mlx_gemma_mtp.decode.depth import MOST
from mlx_gemma_mtp.decode.params import MAX_DRAFT_TOKENS
from mlx_gemma_mtp.engine.request import Request
from mlx_gemma_mtp.engine.results import Stats
from mlx_gemma_mtp.engine.worker import mlx_worker

SECONDS = 240  # without any progress, after which threads count as stuck


class Watched(Engine):
    """An engine that notes its requests, and keeps none of them alive."""

    requests: list["weakref.ref[Request]"]
    generations: list[Generation]
    ends: Counter[int]  # of each generation, by its number
    _lock = threading.Lock()

    def forget(self) -> None:
        self.requests, self.generations, self.ends = [], [], Counter()

    def _request(self, *args: Any, **options: Any) -> Request:
        request = super()._request(*args, **options)
        with self._lock:
            number = len(self.generations)
            self.requests.append(weakref.ref(request))
            self.generations.append(request.generation)
        request.generation.add_done_callback(lambda _: self.ends.update([number]))
        return request

    def __enter__(self) -> "Watched":
        self.forget()
        return self

    def __exit__(self, *_: object) -> None:
        """Close it, unless it is stuck."""
        closing = threading.Thread(target=self.close, daemon=True)
        closing.start()
        closing.join(10)


def in_time(jobs: Sequence[Callable[[], None]], progress: Callable[[], object]) -> None:
    """Run each on a thread of its own. If they make no progress, show all threads and fail.

    progress: a value that changes with every step forward, on however slow a machine. What a job
    raises is raised here.
    """
    errors: list[BaseException] = []

    def run(job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:  # noqa: BLE001 - raised below
            errors.append(error)

    # Daemons, because the process must end even if they do not.
    threads = [threading.Thread(target=run, args=[job], daemon=True) for job in jobs]
    for thread in threads:
        thread.start()
    before, since = progress(), time.monotonic()
    for thread in threads:
        while thread.is_alive():
            thread.join(1)
            if progress() != before:
                before, since = progress(), time.monotonic()
            elif time.monotonic() > since + SECONDS:
                faulthandler.dump_traceback(all_threads=True)
                pytest.fail(f"no progress for {SECONDS} s")
    if errors:
        raise errors[0]


def memory_at_rest() -> int:
    """Bytes in use by MLX once the worker has nothing left to do."""
    for _ in range(2):
        mlx_worker().submit(lambda: None).result(SECONDS)
    gc.collect()
    return mlx_worker().submit(mx.get_active_memory).result(SECONDS)


def tokens_of(chunks: Sequence[Chunk]) -> list[int]:
    return [token for chunk in chunks for token in chunk.tokens]


def text_of(chunks: Sequence[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks if chunk.kind == "answer")


def assert_told_once(chunks: Sequence[Chunk], done: Completion) -> None:
    """The chunks are this completion, with nothing lost or doubled."""
    *earlier, last = chunks
    assert {(chunk.finish_reason, chunk.stats) for chunk in earlier} <= {(None, None)}
    assert (tokens_of(chunks), text_of(chunks)) == (done.tokens, done.text)
    assert last.finish_reason == done.finish_reason
    assert last.stats is done.stats


def assert_counted(chunks: Sequence[Chunk], prompt: Sequence[int], drafts: int | str) -> Stats:
    """The counts of a request that ended fit its prompt and its output. Returns its stats."""
    stats, num_tokens = chunks[-1].stats, len(tokens_of(chunks))
    assert stats is not None
    assert stats.prompt_tokens == len(prompt)
    assert stats.generated_tokens == num_tokens
    # Each round gives one token more than it accepts; the last may have been cut by one.
    given = stats.rounds + stats.accepted + min(num_tokens, 1)
    assert 0 <= given - num_tokens <= (chunks[-1].finish_reason != "cancelled")
    auto = MAX_DRAFT_TOKENS if stats.copies_drafted else MOST  # a row takes more copies
    assert len(stats.drafted_at) <= (drafts if isinstance(drafts, int) else auto)
    assert all(
        accepted <= drafted <= stats.rounds
        for accepted, drafted in zip(stats.accepted_at, stats.drafted_at, strict=True)
    )
    return stats
