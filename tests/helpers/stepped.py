"""A scheduler on the fake pair that a test drives step by step, without threads."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from helpers.fake_target import FakeDrafter, FakeTarget, fake_player, output
from mlx_gemma_mtp import SamplingParams
from mlx_gemma_mtp.decode.depth import Depth
from mlx_gemma_mtp.decode.round import Round
from mlx_gemma_mtp.engine.batch import Batch
from mlx_gemma_mtp.engine.budget import Budget
from mlx_gemma_mtp.engine.exactness import Exactness
from mlx_gemma_mtp.engine.request import Request
from mlx_gemma_mtp.engine.scheduler import Scheduler
from mlx_gemma_mtp.memory import Limits, Pair
from mlx_gemma_mtp.model.cache import KVCache

PARAMS = SamplingParams().resolved({})
LONG = 60  # tokens


class Event(NamedTuple):
    """A chunk of a prompt, or a round."""

    what: str
    size: int  # tokens of the chunk, rows of the round
    capacity: int = 0  # slots of the round's full-attention layer
    drafts: int = 0


class Stepped:
    """A scheduler and what it does. `then` is called after each event; it may raise."""

    def __init__(
        self,
        *,
        max_batch: int = 8,
        limits: Limits | None = None,
        depth: Depth | None = None,
        target: FakeTarget | None = None,
        exactness: Exactness | None = None,
        **options: Any,
    ) -> None:
        """options: as of Batch."""
        self.events: list[Event] = []
        self.then: Callable[[Event], object] = lambda _: None
        self.cache: KVCache  # of the last round
        self.max_accepted: mx.array
        self.passes: list[list[int]] = []  # tokens of each row, of every pass over prompts
        target = target or FakeTarget(self._read)
        self._player = fake_player(target, FakeDrafter())
        depth, limits = depth or Depth(), limits or Limits()
        player = self._player._replace(verify=self._verify)
        rule = exactness or Exactness(limits, max_batch)
        budget = Budget(Pair.of(target, None))  # type: ignore[arg-type]
        batch = Batch(target, player, [], depth, rule, budget=budget, **options)
        self.scheduler = Scheduler(batch, max_queue=64)

    @property
    def rounds(self) -> list[Event]:
        return [event for event in self.events if event.what == "round"]

    def submit(
        self, prompt: Sequence[int], max_tokens: int = 16, drafts: int | None = 0, **options: Any
    ) -> Request:
        """Queue a request. options: as of Request."""
        options = {"stream": None, "eos": frozenset()} | options
        request = Request(prompt, PARAMS, max_tokens=max_tokens, num_draft_tokens=drafts, **options)
        request.queue()
        self.scheduler.reserve()
        self.scheduler.add(request)
        return request

    def measure_pace(self) -> None:
        """Read a first prompt, so that the scheduler knows how long a pass takes."""
        self.finish(self.submit([7] * 64, 1))
        self.events.clear()
        self.passes.clear()

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            self.scheduler.step()

    def finish(self, *complete: Request) -> None:
        """Step until nothing is left to do. These requests write their own output to the end."""
        while self.scheduler.step():
            pass
        assert_complete(*complete)

    def memory_at_rest(self) -> int:
        """What MLX holds once the cache of the last round is dropped."""
        del self.cache
        gc.collect()
        return mx.get_active_memory()

    def _note(self, event: Event) -> None:
        self.events.append(event)
        self.then(event)

    def _read(self, prompts: list[list[int]]) -> None:
        self.passes.append([len(prompt) for prompt in prompts])
        self._note(Event("chunk", sum(self.passes[-1])))

    def _verify(self, cache: KVCache, *others: Any) -> Round:
        played = self._player.verify(cache, *others)
        _, _, layout, drafts = others
        self.max_accepted = layout.max_accepted
        self.cache, capacity = cache, cache.capacity("full_attention")
        self._note(Event("round", len(drafts), capacity, drafts.shape[1]))
        return played


def assert_complete(*requests: Request) -> None:
    """Each request has written its own output to the end."""
    for request in requests:
        assert request.generation.result(0).tokens == output(request.ids, request.max_tokens)
