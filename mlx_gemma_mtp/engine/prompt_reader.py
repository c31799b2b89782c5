"""Which prompt is read next, how much of it, and together with which others.

Knows nothing of rounds, or of how the rows decode.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence

from mlx_gemma_mtp.engine.batch import Batch
from mlx_gemma_mtp.engine.line import Line
from mlx_gemma_mtp.engine.pace import Pace
from mlx_gemma_mtp.engine.prefill import Prefill, together
from mlx_gemma_mtp.engine.request import Request
from mlx_gemma_mtp.errors import is_lack_of_memory

LONE_PASS = 4  # pauses that a pass over prompts may take while no row decodes


class PromptReader:
    """Reads prompts by priority, highest first, and in their order; short ones overtake.

    Rows are given in that order. Of the prompts that have one, the first is read, but one that
    takes several passes is overtaken by those with at most half as many tokens left. Of two passes
    in a row at least one is the first's: so reading a prompt takes at most twice as many passes as
    without overtaking, and the prompts that are under way have at most twice the tokens of the
    longest. A prompt is not read while one of a higher priority may be.

    Requests with a negative priority are in the background: they are read while no others wait, are
    read or decode, and leave one row free (of several) for those. Once they decode, they share the
    rounds with those that come.
    """

    def __init__(self, batch: Batch, waiting: Line) -> None:
        """batch: gets the requests whose prompts are read. waiting: those that have no row."""
        self._batch = batch
        self._prefixes = batch.prefixes
        self._waiting = waiting
        self._reading: list[Prefill] = []
        self._overtaken: tuple[int, int] | None = None  # the order of the first, last time
        self._owed = False  # the next pass to the first
        self._pace = Pace(batch.limits, experts=batch.target.config.num_experts > 0)
        self._start_by = math.inf  # when rows that have only their first token start to decode

    @property
    def requests(self) -> list[Request]:
        """Those whose prompts are being read."""
        return [request for prefill in self._reading for request in prefill.requests]

    def expect(self, request: Request) -> None:
        """Look at a request that has come: how much it needs, and whether others read that."""
        self._look_up(request)
        for prefill in self._reading:
            self._wait_for(prefill, request)

    def drop_ended(self) -> None:
        """Stop reading prompts of which no request is left."""
        for prefill in [prefill for prefill in self._reading if prefill.num_rows == 0]:
            prefill.stop()
            self._reading.remove(prefill)

    def end(self, error: BaseException) -> None:
        """End all requests whose prompts are being read, with this error."""
        _fail(self.requests, error)
        self._reading = []

    def read(self, before: Callable[[], object]) -> bool:
        """Read prompts between two rounds: one pass, or several over short prompts instead.

        before: called first, if there is anything to read. Returns whether there was.
        """
        if not self._batch.active:
            self._start_by = math.inf
        if not self._candidates():
            return False
        before()
        left = self._chunk()
        following = self._next(left)
        several = following is not None and following.unread > left
        if several and not self._pace.known and not self._batch.exactness.fixed:
            left = self._pace.chunk(LONE_PASS * self._batch.limits.pause_seconds, most=left)
        while following is not None:
            left -= self._read(self._begin(following, left), left)
            left = min(left, self._chunk())
            following = self._next(left)
            if following is not None and following.unread > left:
                break
        return True

    # When rows wait for it

    @property
    def gathering(self) -> bool:
        """True if rows wait for prompts that came with theirs: best for the first tokens of all.

        Prompts that came after the first of these tokens don't count: newcomers would stop a row
        again and again. Nor do one that was overtaken, and those of a lower priority.
        """
        limits, candidates = self._batch.limits, self._candidates()
        if not candidates or self._time_to_start <= limits.pause_seconds:
            return False
        first = candidates[0]
        came_with_theirs = first.queued <= self._start_by - limits.start_seconds
        highest = min((request.order[0] for request in self._batch.active), default=math.inf)
        return came_with_theirs and first.order != self._overtaken and first.order[0] <= highest

    @property
    def _time_to_start(self) -> float:
        """Seconds until the rows must start to decode; 0 if they have."""
        return max(0.0, self._start_by - time.perf_counter()) if self._batch.active else math.inf

    def let_rows_start(self) -> None:
        """Let rows that have only their first token wait no longer."""
        self._start_by = 0.0

    def _chunk(self) -> int:
        """The most tokens of the next pass over prompts."""
        limits = self._batch.limits
        if not self._batch.active:
            return self._pace.lone_chunk(LONE_PASS * limits.pause_seconds)
        if self.gathering:
            return self._pace.chunk(min(self._time_to_start, LONE_PASS * limits.pause_seconds))
        return self._pace.chunk(limits.pause_seconds, most=limits.decoding_chunk)

    # Which prompt is next

    def _candidates(self) -> list[Request | Prefill]:
        """What may have the next pass, in order: all of the highest priority that has a row."""
        free = self._batch.num_free - sum(prefill.num_rows for prefill in self._reading)
        active = self._batch.active
        waiting = [request for request in self._waiting if not self._waits(request)]
        found: list[Request | Prefill] = sorted(self._reading, key=lambda one: one.order)
        foreground = any(one.order[0] <= 0 for one in (*active, *found, *waiting[:1]))
        if foreground:
            found = [one for one in found if one.order[0] <= 0]
            waiting = [one for one in waiting if one.order[0] <= 0]
        elif self._batch.exactness.max_batch > 1:
            free -= 1
        fitting = self._fitting(waiting[: max(free, 0)])
        found = sorted([*found, *fitting], key=lambda one: one.order)
        if waiting and not found:  # for the row or the memory of one in the background
            found = sorted(self._reading, key=lambda one: one.order)
        return [one for one in found if one.order[0] == found[0].order[0]]

    def _fitting(self, waiting: Sequence[Request]) -> list[Request]:
        """Return the first of these that fit in memory together with all that have a row."""
        taken = [*self._batch.active, *self.requests]
        fitting = list[Request]()
        for request in waiting:
            if not self._batch.fits([*taken, *fitting, request]):
                break
            fitting.append(request)
        return fitting

    def _next(self, most: int) -> Request | Prefill | None:
        """What has the next pass, of up to this many tokens."""
        candidates, least = self._candidates(), self._batch.limits.chunks[0]
        first = candidates[0] if candidates else None
        if first is None or self._owed or first.unread <= most:
            return first

        def rank(one: Request | Prefill) -> int:
            started = one is first or isinstance(one, Prefill)
            return max(one.unread, least) * (1 if started else 2)

        return min(candidates, key=rank)

    def _begin(self, one: Request | Prefill, most: int) -> Prefill:
        """Return the prefill of this request with all that it can be read with."""
        candidates = self._candidates()
        self._owed = one is not candidates[0]
        if self._owed:
            self._overtaken = candidates[0].order
        others = [each for each in candidates if isinstance(each, Request) and each is not one]
        if isinstance(one, Prefill):
            for request in filter(one.takes, others):
                self._waiting.take(request)
                one.share(request)
            return one
        group = together(one, others, most, self._batch.exactness, self._prefixes)
        self._batch.make_room([*self._batch.active, *self.requests, *group])
        for request in group:
            self._waiting.take(request)
        prefill = self._start(group)
        for request in self._waiting:
            self._wait_for(prefill, request)
        return prefill

    def _start(self, requests: Sequence[Request]) -> Prefill:
        batch = self._batch
        prefill = Prefill(batch.target, requests, batch.exactness, self._prefixes)
        self._reading.append(prefill)
        return prefill

    # Who waits for a prefix that another one reads

    def _wait_for(self, prefill: Prefill, request: Request) -> None:
        """Have a request wait if this prefill reads what it starts with, and it had less so far.

        Not for one of a lower priority, which may have to wait itself.
        """
        if prefill.order[0] > request.order[0] or not (cut := prefill.gives(request)):
            return

        def waits() -> bool:
            return prefill in self._reading and not prefill.has(cut)

        request.waits = waits

    def _waits(self, request: Request) -> bool:
        """True if another one is reading what it starts with."""
        if request.waits is not None and not request.waits():
            request.waits = None
            self._look_up(request)
        return request.waits is not None

    def _look_up(self, request: Request) -> None:
        """Estimate how much of a prompt is left to read."""
        prefix = self._prefixes.find(request.ids)
        held = request.session._reusable(request.ids) if request.session else 0
        request.unread = len(request.ids) - max(held, 0 if prefix is None else prefix.end)

    # A pass

    def _read(self, prefill: Prefill, most: int) -> int:
        """Run one pass, and give the requests rows after the last.

        An error ends its request alone: if a pass over several fails, they are read one by one. If
        memory ran out, the prefixes make room before.
        Returns how many tokens it counts for: a few take as long as the smallest chunk.
        """
        num_tokens, requests, limits = most, prefill.requests, self._batch.limits
        apart: Sequence[Request] = ()
        try:
            prefill.open()
            start = time.perf_counter()
            num_tokens = prefill.advance(most)
            self._pace.measure(num_tokens, time.perf_counter() - start)
            if prefill.finished:
                self._reading.remove(prefill)
                self._batch.add(prefill)
                self._start_by = min(self._start_by, time.perf_counter() + limits.start_seconds)
        except BaseException as error:  # noqa: BLE001 - the submitters get it
            if prefill in self._reading and self._may_read_again(requests, error):
                apart = [request for request in requests if not request.ended]
            else:
                _fail(requests, error)
            self._reading = [one for one in self._reading if one is not prefill]
        if apart:
            del prefill  # its memory is free before they are read again
            for request in apart:
                alone = self._start([request])
                while alone in self._reading:  # padding may take another pass
                    self._read(alone, len(request.ids))
        return max(num_tokens, limits.chunks[0])

    def _may_read_again(self, requests: Sequence[Request], error: BaseException) -> bool:
        """True for several, which may do better alone, and if there is more memory now."""
        return len(requests) > 1 or (is_lack_of_memory(error) and self._prefixes.clear())


def _fail(requests: Iterable[Request], error: BaseException) -> None:
    """End those requests that have not ended."""
    for request in requests:
        if not request.ended:
            request.fail(error)
