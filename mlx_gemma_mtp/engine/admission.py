"""The way of a request into an engine: checked, claimed for its session, and queued or refused.

Knows nothing of prompts and settings, nor of where the model is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

from mlx_gemma_mtp.engine.generation import Generation
from mlx_gemma_mtp.engine.local import Local
from mlx_gemma_mtp.engine.remote import Remote
from mlx_gemma_mtp.engine.request import Request
from mlx_gemma_mtp.engine.session import Session
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.errors import ClosedError, MgmError, UsageError, as_failure


class Admission:
    """Lets requests in until the engine is closed.

    closed: True to refuse all from now on. owner: of the sessions whose requests are let in.
    """

    def __init__(self, back: Local | Remote) -> None:
        """back: the place where the model is."""
        self.closed = False
        self.owner = object()
        self._back = back

    def check(self, session: Session | None = None) -> None:
        """Raise ClosedError, or UsageError for a session of others."""
        mlx_worker()  # raises in a forked child, whose locks may never be released
        if self.closed:
            raise ClosedError("this engine is closed: load the model again")
        if session is None:
            return
        if not isinstance(session, Session):
            raise UsageError(f"session must come from engine.session(), not {session!r}")
        if session._owner is not self.owner:
            raise UsageError(
                "this session belongs to another engine: start one with engine.session(), or save "
                "it and open the file with the same model"
            )

    def admit(self, request: Request, *, patient: bool = False) -> Generation:
        """Queue a request; if patient, wait for a place in the queue."""
        self.check()
        request.queue()
        try:
            self._back.reserve(patient=patient)
        except MgmError:
            request.unqueue()
            raise
        mlx_worker().submit(partial(self._back.add, request))
        return request.generation

    def admit_later(
        self, request: Callable[[], Request], generation: Generation, session: Session | None
    ) -> None:
        """Make a request and queue it, on a thread of its own. Raises what `check` raises."""
        self.check(session)
        if session is not None:
            session._claim(generation)
        arguments = [request, generation, session]
        threading.Thread(target=self._admit_on_thread, args=arguments).start()

    def _admit_on_thread(
        self, request: Callable[[], Request], generation: Generation, session: Session | None
    ) -> None:
        made = None
        try:
            made = request()
            self.admit(made)
        except BaseException as error:  # noqa: BLE001 - the submitter gets it
            if session is not None:
                session._release(generation)
            if made is not None and generation._stopping:  # its session may have another request
                mlx_worker().submit(made.cancel)
            else:
                generation._fail(as_failure(error))
