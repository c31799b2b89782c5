"""The requests of an isolated engine: in its worker process, or waiting for one.

Has the methods of a `Local`: what an engine needs of the place where its model is. Requests start
and end on this process's own worker; the model is in the other process. Knows nothing of prompts as
text, nor of how a worker process is kept.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import fields
from functools import partial
from itertools import count
from typing import Any, cast

from mlx_gemma_mtp.decode.params import SamplingParams
from mlx_gemma_mtp.engine.about import About, State
from mlx_gemma_mtp.engine.budget import Budget
from mlx_gemma_mtp.engine.line import Line
from mlx_gemma_mtp.engine.process import WorkerProcess
from mlx_gemma_mtp.engine.remote_session import RemoteSession
from mlx_gemma_mtp.engine.request import Request
from mlx_gemma_mtp.engine.results import Chunk, Completion
from mlx_gemma_mtp.engine.scheduler import CLOSED
from mlx_gemma_mtp.engine.session import Session
from mlx_gemma_mtp.engine.status import Status
from mlx_gemma_mtp.engine.supervisor import Supervisor
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.errors import MgmError, as_failure
from mlx_gemma_mtp.text.forms import as_schema

Call = tuple[Any, ...]  # a kind of message, then what belongs to it


class Remote:
    """Serves requests in a worker process. If that dies, the next request or call starts another.

    What was under way fails then, and sessions start from scratch. If a new worker fails to load,
    all that waits for it fails as well.
    """

    def __init__(
        self,
        process: WorkerProcess,
        about: About,
        state: State,
        options: Mapping[str, Any],
        *,
        max_queue: int,
    ) -> None:
        """process: has loaded what about says. options: to load it again."""
        self.about = about
        self.copies: bool = options["copies"]
        self.has_drafter = about.pair.drafter is not None
        self.budget = Budget(about.pair, about.memory_limit, options["context"])
        self._waiting = Line(about.max_batch, max_queue)
        self._numbers = count()
        self._requests: dict[int, Request] = {}
        self._waited: dict[int, float] = {}  # seconds, until they were sent
        self._timers: dict[int, threading.Timer] = {}
        self._calls: dict[int, tuple[Future[None], Call]] = {}
        self._abandoned = False
        self.state = state
        self._session_numbers = count()
        self._supervisor = Supervisor(
            process,
            options,
            about.identity,
            on_ready=self._send_all,
            on_message=self._take,
            on_lost=self._lost,
        )

    @property
    def status(self) -> Status:
        """What it is doing, from any thread."""
        unread, there = self._waiting.num_waiting, self.state.status
        reading = min(there.reading, unread)
        decoding = sum(bool(request.tokens) for request in list(self._requests.values()))
        return there._replace(waiting=unread - reading, reading=reading, decoding=decoding)

    @property
    def loaded(self) -> bool:
        """False while there is no worker that has the weights in memory."""
        return self.pid is not None and self.state.loaded

    @property
    def warming(self) -> bool:
        """True while `warm_up` is at work."""
        return self.state.warming

    @property
    def available(self) -> int:
        """Bytes that MLX may hold in the worker."""
        return self.state.available

    @property
    def plain_tokens_per_second(self) -> float | None:
        """As `Engine.plain_tokens_per_second`."""
        return self.state.plain_tokens_per_second

    @property
    def pid(self) -> int | None:
        """The process; None while there is none that has loaded the model."""
        return self._supervisor.pid

    def warm_up(self, *, on_cpu: bool) -> None:
        """As `Engine.warm_up`, in the worker."""
        self.send("warm_up", -1, None, on_cpu)

    def session(self, owner: object) -> Session:
        """Return a new session. If the worker dies, it starts from scratch."""
        return RemoteSession(self, next(self._session_numbers), owner)

    def reserve(self, *, patient: bool = False) -> None:
        """Take a place in the queue for a request; from any thread. As `Line.reserve`."""
        self._waiting.reserve(patient=patient)

    def add(self, request: Request) -> None:
        """Serve a request that has a place."""
        number = next(self._numbers)
        self._waiting.add(request)
        self._requests[number] = request
        if self._supervisor.closed:
            self._fail(number, CLOSED)
            return
        soon = partial(mlx_worker().submit, partial(self._cancel, number))
        self._waited[number] = 0.0
        if request.deadline is not None:
            seconds = min(request.deadline - time.perf_counter(), threading.TIMEOUT_MAX)
            expire = partial(mlx_worker().submit, partial(self._expire, number))
            self._timers[number] = timer = threading.Timer(seconds, expire)
            timer.daemon = True
            timer.start()
        if self.pid is not None:
            self._ask(number)
        self._supervisor.start()
        request.generation._when_cancelled(soon)

    def call(self, kind: str, *content: Any) -> None:
        """Have the worker do something else, and wait for it; from any other thread."""
        future: Future[None] = Future()
        mlx_worker().run(partial(self._call, future, (kind, *content)))
        future.result()

    def send(self, *message: Any) -> None:
        """Send a message that needs no answer, from any thread; it is lost without a worker."""
        self._supervisor.send(*message)

    def close(self) -> None:
        """End everything with an MgmError, also what is added later, and the worker process.

        Waits for it, from any other thread.
        """
        mlx_worker().run(self._close)
        self._supervisor.join()

    def _close(self) -> None:
        self._supervisor.close()
        self._waiting.close()
        self._fail_all(CLOSED)

    def abandon(self) -> None:
        """Nobody will ask for more: close when all that is under way has ended."""
        self._abandoned = True
        self._close_if_idle()

    # What comes from the worker

    def _lost(self, error: BaseException) -> None:
        self.state = State(available=self.state.available)
        self._fail_all(error)

    def _take(self, kind: str, *content: Any) -> None:
        if kind == "state":
            (self.state,) = content
            return
        number, *rest = content
        if kind in ("result", "refused"):
            future, _ = self._calls.pop(number, (Future[None](), ()))
            if kind == "result":
                future.set_result(None)
            else:
                future.set_exception(_caused(*rest))
        elif number not in self._requests:
            return  # it has ended here
        elif kind == "chunk":
            self._relay(number, *rest)
        elif kind == "done":
            self._finish(number, *rest)
        elif kind == "failed":
            self._fail(number, _caused(*rest))

    def _relay(self, number: int, chunk: Chunk) -> None:
        request = self._requests[number]
        if not request.tokens and request in self._waiting:
            self._waiting.take(request)
        if chunk.stats is not None:
            chunk.stats.queue_seconds += self._waited[number]
        request.relay(chunk)
        if request.ended:  # its callback raised
            self.send("cancel", number)
            self._forget(number)
            self._close_if_idle()

    def _finish(self, number: int, completion: Completion) -> None:
        completion.stats.queue_seconds += self._waited[number]
        self._forget(number).finish(completion)
        self._close_if_idle()

    def _fail(self, number: int, error: BaseException) -> None:
        self._forget(number).fail(error)
        self._close_if_idle()

    def _fail_all(self, error: BaseException) -> None:
        calls, self._calls = self._calls, {}
        for number in list(self._requests):
            self._fail(number, error)
        for future, _ in calls.values():
            future.set_exception(as_failure(error))

    def _forget(self, number: int) -> Request:
        request = self._requests.pop(number)
        self._waited.pop(number, None)
        if number in self._timers:
            self._timers.pop(number).cancel()
        if not request.tokens and request in self._waiting:
            self._waiting.take(request)
        return request

    def _close_if_idle(self) -> None:
        """Close it if it is abandoned and nothing is under way."""
        if self._abandoned and not self._requests and not self._supervisor.closed:
            self._close()

    # What goes to the worker

    def _send_all(self) -> None:
        """Send a worker that has just loaded everything that waits for it."""
        for number, (_, (kind, *content)) in self._calls.items():
            self.send(kind, number, *content)
        for number in self._requests:
            self._ask(number)

    def _ask(self, number: int) -> None:
        request = self._requests[number]
        self._waited[number] = time.perf_counter() - request.queued
        session = request.session._number if isinstance(request.session, RemoteSession) else None
        params, schemas = _plain(request.params), [*request.schemas]
        priority = int(request.priority)
        self.send("submit", number, request.ids, params, schemas, session, priority)

    def _call(self, future: Future[None], call: Call) -> None:
        if self._supervisor.closed:
            future.set_exception(as_failure(CLOSED))
            return
        number = next(self._numbers)
        self._calls[number] = future, call
        kind, *content = call
        self.send(kind, number, *content)
        self._supervisor.start()

    def _cancel(self, number: int) -> None:
        request = self._requests.get(number)
        if request is None:
            return
        if self.pid is not None:
            self.send("cancel", number)
        else:
            self._forget(number).cancel()
            self._close_if_idle()

    def _expire(self, number: int) -> None:
        if number in self._requests:
            self.send("cancel", number)
            self._forget(number).time_out()
            self._close_if_idle()


def _plain(params: SamplingParams) -> dict[str, Any]:
    """Return settings that have been checked as values that JSON takes."""
    found = {one.name: getattr(params, one.name) for one in fields(params)}
    if params.json_schema is not None:
        found["json_schema"] = dict(cast(Any, as_schema(params.json_schema)))
    found["stop_token_ids"] = [*map(int, params.stop_token_ids)]
    found["logit_bias"] = {int(one): float(bias) for one, bias in params.logit_bias.items()}
    return found


def _caused(error: MgmError, cause: BaseException | None) -> MgmError:
    """Return an error with its cause, which does not travel with it."""
    error.__cause__ = cause
    return error
