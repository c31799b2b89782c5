"""The probe: what passes of a model cost on this machine, measured once, in at most 10 seconds.

Fills a `PassTable` with random tokens, in a cache of its own and in short steps: the worker does
other jobs in between, and they go first. Which passes give the same bits is found in `agreement`.
Knows nothing of requests, or of where tables are kept.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Generator, Mapping
from copy import copy
from functools import partial
from itertools import product
from typing import Any, TypeVar, get_args

import mlx.core as mx

from mlx_gemma_mtp.decode.table import PassTable
from mlx_gemma_mtp.device import compiled
from mlx_gemma_mtp.engine.agreement import agreeing_chunks, find_classes
from mlx_gemma_mtp.engine.expert_ways import Alone, quickest, rivals, settled
from mlx_gemma_mtp.engine.loading import Watch
from mlx_gemma_mtp.engine.passes import Passes, Shaped
from mlx_gemma_mtp.engine.rows import SIZES
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.memory import Limits
from mlx_gemma_mtp.model.cache import Buffers, KVCache
from mlx_gemma_mtp.model.drafter import Drafter
from mlx_gemma_mtp.model.experts import Way
from mlx_gemma_mtp.model.target import Target

MOST_SECONDS = 10.0
# Until what share of them each part may take.
EXPERTS, PASSES, STEPS, CLASSES, CHUNKS = 0.15, 0.5, 0.53, 0.9, 0.95

# Tokens of a pass, the most useful first: both ends, and both sides of the steps of kernels.
POINTS = (1, 8, 4, 16, 2, 32, 12, 64, 3, 6, 24, 33, 5, 13, 48, 10, 20, 7)
LEAST_POINTS = 5  # with fewer there is no table
EXPERT_POINTS = (1, 8, 32, 16, 64, 4, 12, 2, 24, 48, 3, 6)
EXPERT_LAYERS = 4  # whose experts are timed: together more than a cache holds

TIMINGS = 3  # of each, the shortest counts; fewer if there is no time
STEPS_TOGETHER = 4  # of the drafter, as in a round

T = TypeVar("T")
Clock = Callable[[], float]

_one_at_a_time = threading.Lock()  # two probes would wait for each other


def measure(
    target: Target, drafter: Drafter | None, watch: Watch | None = None, **options: Any
) -> PassTable | None:
    """Run a probe from any thread but the worker's; return its table.

    watch: called with the share of the time that is over. options: as of `Probe`. An exception in
    the middle, such as KeyboardInterrupt, leaves no trace.
    """
    worker = mlx_worker()
    with _one_at_a_time:
        probe = worker.run(lambda: Probe(target, drafter, **options))
        try:
            while worker.run(probe.step):
                if watch is not None:
                    watch(probe.share)
        finally:
            worker.run(probe.stop)
    return probe.table


class Probe:
    """Measures one pair. The worker calls everything but `share`.

    table: the result; None until the end, and if there was too little time or too much else to do.
    """

    def __init__(
        self,
        target: Target,
        drafter: Drafter | None,
        *,
        limits: Limits | None = None,
        seconds: float = MOST_SECONDS,
        clock: Clock = time.perf_counter,
    ) -> None:
        self.table: PassTable | None = None
        self._target, self._drafter = target, drafter
        self._limits = limits or Limits()
        self._seconds, self._clock = seconds, clock
        self._spent = 0.0  # in steps
        self._started = clock()
        self._work: Generator[None] | None = self._measure()

    @property
    def share(self) -> float:
        """How much of the time is over, 0 to 1."""
        return min(1.0, self._spent / self._seconds)

    def step(self) -> bool:
        """Do a little; return whether there is more to do.

        Other jobs go first. If they take all the time there is no table.
        """
        if self._work is None:
            return False
        if mlx_worker().busy:
            if self._clock() - self._started > 2 * self._seconds:
                self.stop()
            return self._work is not None
        start = self._clock()
        try:
            next(self._work)
        except StopIteration:
            self.stop()
        except BaseException:
            self.stop()
            raise
        self._spent += self._clock() - start
        return self._work is not None

    def stop(self) -> None:
        """Free everything; the target is as it was before."""
        if self._work is not None:
            self._work.close()
            self._work = None
            mx.clear_cache()

    def _measure(self) -> Generator[None]:
        alone = yield from self._time_experts()
        ways = quickest(alone)
        target = copy(self._target)  # the same weights
        target.set_ways(ways)
        passes = Passes(target, self._limits)
        seconds = yield from self._time_passes(dict.fromkeys(POINTS, passes))
        if len(seconds) < LEAST_POINTS:
            return
        ways, seconds = yield from self._try_rivals(passes, alone, ways, seconds)
        target.set_ways(ways)
        steps = yield from self._time_steps(passes)
        passes = Passes(target, self._limits)  # frees the caches of those that were timed
        classes = yield from find_classes(passes, partial(self._over, CLASSES))
        del passes
        per_token = seconds[max(seconds)] / max(seconds)
        chunks = yield from agreeing_chunks(
            target, self._limits.chunks, lambda tokens: self._over(CHUNKS, tokens * per_token)
        )
        self.table = PassTable(
            passes=dict(sorted(seconds.items())),
            experts=alone.of_a_pass(ways),
            ways=dict(ways),
            steps=steps,
            classes=classes,
            chunks=chunks,
        )

    def _over(self, share: float, seconds: float = 0.0) -> bool:
        """True if this share of the time is over, or would be after some more seconds."""
        return self._spent + seconds > share * self._seconds

    def _time(
        self, share: float, runs: Mapping[T, Callable[[], Any]]
    ) -> Generator[None, None, dict[T, float]]:
        """Return the shortest time of each that is run before this share of the time is over.

        Each runs once before, to compile it. Later timings are apart, so that whatever slows the
        machine for a moment does not slow all of one.
        """
        times = dict[T, float]()
        for _ in range(TIMINGS):
            for name, run in runs.items():
                if self._over(share):
                    return times
                if name not in times:
                    mx.eval(run())
                    yield
                mx.synchronize()
                start = self._clock()
                mx.eval(run())
                times[name] = min(self._clock() - start, times.get(name, math.inf))
                yield
        return times

    def _time_passes(self, passes: Mapping[int, Passes]) -> Generator[None, None, dict[int, float]]:
        """Return the seconds of one of these passes for each number of tokens, as time allows."""

        def run(count: int) -> Any:
            shaped = Shaped.of(count)
            return passes[count].run(passes[count].near(len(shaped.counts)), shaped)

        return (yield from self._time(PASSES, {count: partial(run, count) for count in passes}))

    def _try_rivals(
        self, passes: Passes, alone: Alone, ways: dict[int, Way], seconds: dict[int, float]
    ) -> Generator[None, None, tuple[dict[int, Way], dict[int, float]]]:
        """Return the ways that whole passes decide on, and the seconds of passes in these ways.

        ways, seconds: as found without rivals. A pass that now has another way, and was not timed
        with it, is left out.
        """
        tried = rivals(alone, ways)
        by_way = {way: passes.with_ways({max(ways): way}) for way in set(tried.values())}
        found = yield from self._time_passes({n: by_way[way] for n, way in tried.items()})
        ways = settled(ways, tried, seconds, found)
        new = passes.with_ways(ways)
        changed = [n for n in seconds if new.target.ways[n] != passes.target.ways[n]]
        rest = [n for n in changed if n not in found]  # numbers between those that were tried
        found |= yield from self._time_passes(dict.fromkeys(rest, new))
        kept = {n: one for n, one in seconds.items() if n not in changed}
        return ways, kept | {n: found[n] for n in changed if n in found}

    def _time_steps(self, passes: Passes) -> Generator[None, None, dict[int, float]]:
        """Return the seconds of a step of the drafter by batch size."""
        target, drafter = self._target, self._drafter
        if drafter is None:
            return {}

        def steps(buffers: Buffers, token: mx.array, hidden: mx.array) -> mx.array:
            cache = KVCache(target.config, buffers)
            shared = cache.shared(drafter.config)
            position = cache.offset + drafter.config.query_position
            for _ in range(STEPS_TOGETHER):
                state, hidden = drafter(target.embed(token), hidden, shared, position)
                logits, ids = drafter.candidates(state)
                token = mx.argmax(logits, axis=-1)
                if ids is not None:
                    token = mx.take_along_axis(ids, token[..., None], axis=-1)[..., 0]
            return token

        play = compiled(steps)

        def run(batch: int) -> mx.array:
            hidden = mx.ones((batch, 1, target.config.hidden_size), target.dtype)
            token = mx.zeros((batch, 1), mx.int32)
            return play(passes.near(batch).buffers, token, hidden)

        times = yield from self._time(STEPS, {batch: partial(run, batch) for batch in SIZES})
        return {batch: seconds / STEPS_TOGETHER for batch, seconds in times.items()}

    def _time_experts(self) -> Generator[None, None, Alone]:
        """Return the seconds of the experts of some layers; nothing for a model without any."""
        target, config = self._target, self._target.config
        if not config.num_experts:
            return Alone({}, 0.0, 0.0)
        some = target.layers[:: max(1, len(target.layers) // EXPERT_LAYERS)][:EXPERT_LAYERS]
        x = mx.random.normal((max(EXPERT_POINTS), config.hidden_size), key=mx.random.key(0))
        x = x.astype(target.dtype)
        chosen = [layer.router(x) for layer in some]
        mx.eval(x, chosen)

        def through(h: mx.array, routed: list[tuple[mx.array, mx.array]], way: Way) -> mx.array:
            for layer, (experts, shares) in zip(some, routed, strict=True):
                h = mx.fast.rms_norm(layer.experts(h, experts, shares, way), None, 1e-6)
            return h

        play = compiled(through)

        def run(count: int, way: Way) -> mx.array:
            routed = [(experts[:count], shares[:count]) for experts, shares in chosen]
            return play(x[:count], routed, way)

        runs = {one: partial(run, *one) for one in product(EXPERT_POINTS, get_args(Way))}
        nothing = yield from self._time(EXPERTS, {None: lambda: x + 0})
        times = yield from self._time(EXPERTS, runs)
        return Alone(times, nothing.get(None, 0.0), len(target.layers) / len(some))
