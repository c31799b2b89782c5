"""The worker process of an isolated engine: serves an ordinary engine through a pipe.

Ends at once with its parent, whatever it is doing. Knows nothing of how it is started.
"""

from __future__ import annotations

import json
import os
import pickle
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from mlx_gemma_mtp import device
from mlx_gemma_mtp.decode.params import SamplingParams
from mlx_gemma_mtp.engine.about import State
from mlx_gemma_mtp.engine.generation import Generation
from mlx_gemma_mtp.engine.results import Completion
from mlx_gemma_mtp.engine.session import Session
from mlx_gemma_mtp.errors import MgmError, as_failure, one_line

if TYPE_CHECKING:
    from mlx_gemma_mtp.engine.engine import Engine

STATE_SECONDS = 0.1  # between two looks at the state while there is work
IDLE_SECONDS = 1.0  # while there is none, and the weights may leave the memory
ENOUGH = 2**31 - 1  # of a queue whose places the parent counts


def run(fd: int) -> None:
    """Serve the parent at the other end of this file descriptor, and end the process."""
    os.set_inheritable(fd, False)
    serve(Connection(fd))


def serve(pipe: Connection) -> None:
    """Serve the parent at the other end of this pipe, and end the process."""
    with suppress(OSError):  # an app without a terminal may have no stderr
        os.dup2(2, 1)  # what is printed here must not get into the app's output
    inbox: SimpleQueue[list[Any]] = SimpleQueue()
    threading.Thread(target=_listen, args=[pipe, inbox], daemon=True).start()
    MessageLoop(pipe).run(inbox)
    os._exit(0)  # MLX has nothing to clean up, and the parent waits


def _listen(pipe: Connection, inbox: SimpleQueue[list[Any]]) -> None:
    try:
        while True:
            inbox.put(json.loads(pipe.recv_bytes()))
    except (EOFError, OSError):
        os._exit(0)  # the parent has ended


class MessageLoop:
    """What the parent's messages do, on one thread."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._to_send: SimpleQueue[tuple[Any, ...]] = SimpleQueue()
        self._generations: dict[int, Generation] = {}
        self._sessions: dict[int, Session] = {}
        self._turns: dict[int, Generation] = {}  # the last one of each session
        self._sending = threading.Lock()

    def run(self, inbox: SimpleQueue[list[Any]]) -> None:
        """Load, and serve until the parent closes the engine."""
        self._send("started")
        _, options = inbox.get()
        try:
            engine = self._load(options)
        except BaseException as error:  # noqa: BLE001 - the parent raises it
            self._send("failed", _whole(error), _whole(error.__cause__))
            return
        self._send("loaded", engine._back.about, _state(engine))
        report = partial(self._report, engine, may_unload=options["idle_unload"] is not None)
        threading.Thread(target=report, daemon=True).start()
        with engine:
            while (message := inbox.get())[0] != "close":
                kind, number, *content = message
                self._do(engine, kind, number, *content)

    def _load(self, options: dict[str, Any]) -> Engine:
        from mlx_gemma_mtp.engine.load import load

        with suppress(OSError):  # a folder that is gone matters only to a path in it
            os.chdir(options.pop("folder"))
        for name in ("model", "drafter"):
            if isinstance(options[name], dict):
                options[name] = Path(options[name]["path"])
        if options["probe"]:
            options["probe"] = partial(self._send, "progress", "probe")
        return load(
            **options, max_queue=ENOUGH, on_progress=partial(self._send, "progress", "load")
        )

    def _do(self, engine: Engine, kind: str, number: int, *content: Any) -> None:
        if kind == "cancel":
            if number in self._generations:
                self._generations[number].cancel()
        elif kind == "drop":
            self._sessions.pop(number, None)
            self._turns.pop(number, None)
        elif kind == "submit":
            try:
                self._submit(engine, number, *content)
            except Exception as error:  # noqa: BLE001 - the submitter gets it
                self._put("failed", number, *_portable(error))
            self._to_send.put(())  # the state has changed
        else:
            try:
                self._call(engine, kind, *content)
                self._put("result", number)
            except Exception as error:  # noqa: BLE001 - the caller gets it
                self._put("refused", number, *_portable(error))

    def _submit(
        self,
        engine: Engine,
        number: int,
        ids: list[int],
        params: dict[str, Any],
        schemas: list[dict[str, Any]],
        session: int | None,
        priority: int,
    ) -> None:
        bias = {int(token): bias for token, bias in params.pop("logit_bias").items()}
        if session in self._turns:
            # The parent lets no two turns run: if this one has not ended here, it has there.
            self._turns[session].cancel()
        generation = engine._take(
            ids,
            SamplingParams(**params, logit_bias=bias),
            schemas,
            partial(self._put, "chunk", number),
            None if session is None else self._session(engine, session),
            priority,
        )
        self._generations[number] = generation
        if session is not None:
            self._turns[session] = generation
        generation.add_done_callback(partial(self._ended, number))

    def _ended(self, number: int, generation: Future[Completion]) -> None:
        del self._generations[number]
        error = generation.exception()
        if error is None:
            self._put("done", number, generation.result())
        else:
            self._put("failed", number, *_portable(error))

    def _call(self, engine: Engine, kind: str, session: int | None, *content: Any) -> None:
        if kind == "warm_up":
            engine.warm_up(on_cpu=content[0])
            return
        assert session is not None
        found = self._session(engine, session)
        if kind == "save":
            found.save(*content)
        elif kind == "restore":
            self._sessions[session] = engine.session(*content)
        elif kind == "fork":
            self._sessions[content[0]] = found.fork()

    def _session(self, engine: Engine, number: int) -> Session:
        if number not in self._sessions:
            self._sessions[number] = engine.session()
        return self._sessions[number]

    # What the parent gets

    def _put(self, kind: str, number: int, *content: Any) -> None:
        """Send a message soon, from any thread."""
        self._to_send.put((kind, number, *content))

    def _send(self, *message: Any) -> None:
        # If the parent has ended, this process is about to.
        with self._sending, suppress(OSError):
            self._pipe.send(message)

    def _report(self, engine: Engine, *, may_unload: bool) -> None:
        """Send what there is to send, and now and then the state if it has changed."""
        last, looked = _state(engine), 0.0
        idle = IDLE_SECONDS if may_unload else None
        while True:
            status, now = engine.status, time.monotonic()
            busy = bool(self._generations or status.reading or status.decoding or engine.warming)
            if not busy or now >= looked + STATE_SECONDS:
                state, looked = _state(engine), now
                if state._replace(available=last.available) != last:
                    self._send("state", state)
                    last = state
            try:
                message = self._to_send.get(timeout=STATE_SECONDS if busy else idle)
            except Empty:
                continue
            if message:
                self._send(*message)


def _state(engine: Engine) -> State:
    return State(
        engine.status,
        device.available(),
        engine.plain_tokens_per_second(),
        engine.warming,
        engine.loaded,
    )


def _portable(error: BaseException) -> tuple[MgmError, BaseException | None]:
    """Return an error for the parent, and its cause."""
    failure = as_failure(error)
    return failure, _whole(failure.__cause__)


def _whole(error: BaseException | None) -> BaseException | None:
    """Return this error if it can be sent, or else its type and message."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - whatever its type does
        assert error is not None
        return RuntimeError(f"{type(error).__name__}: {one_line(error)}")
    return error
