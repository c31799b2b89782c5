"""The engine: prompts in, completions out.

Checks prompts and settings in the caller's thread. The scheduler does the work, on the one thread
that uses MLX.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, Future, wait
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_gemma_mtp import device, memory
from mlx_gemma_mtp.decode.depth import Depth
from mlx_gemma_mtp.decode.division import Exact
from mlx_gemma_mtp.decode.params import SamplingParams
from mlx_gemma_mtp.decode.round import RoundPlayer, round_player
from mlx_gemma_mtp.engine.batch import Batch
from mlx_gemma_mtp.engine.exactness import Exactness
from mlx_gemma_mtp.engine.intake import Intake
from mlx_gemma_mtp.engine.pair import OpenPair
from mlx_gemma_mtp.engine.prompts import as_list
from mlx_gemma_mtp.engine.request import Request
from mlx_gemma_mtp.engine.results import Chunk, Completion, Generation
from mlx_gemma_mtp.engine.rows import SIZES
from mlx_gemma_mtp.engine.scheduler import Scheduler
from mlx_gemma_mtp.engine.session import Session, model_identity
from mlx_gemma_mtp.engine.status import Status
from mlx_gemma_mtp.engine.warm_up import WarmUp, first_drafts
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.errors import ClosedError, MgmError, UsageError
from mlx_gemma_mtp.files.remembered import load_depth, save_depth
from mlx_gemma_mtp.memory import Limits
from mlx_gemma_mtp.model.drafter import Drafter
from mlx_gemma_mtp.model.target import Target
from mlx_gemma_mtp.text.messages import Prompt

Player = Callable[[Target, Drafter | None], RoundPlayer]

MAX_QUEUE = 256
DEFAULT_LIMITS = Limits()


class Engine:
    """A loaded pair, made by `load`. A context manager; any thread may use it.

    notes: what people should know of the checkpoint, one line each: that it has no chat template,
    and which settings of its generation_config are not applied; and what exact=True costs here, if
    it costs drafts. drafter_name: its Hub name, or that of its folder; None without one, or if the
    pair was not opened from files.
    """

    def __init__(
        self,
        pair: OpenPair,
        *,
        max_batch: int = SIZES[-1],
        max_queue: int = MAX_QUEUE,
        player: Player = round_player,
        limits: Limits = DEFAULT_LIMITS,
        depth: Depth | None = None,
        exact: Exact = "auto",
        copies: bool = True,
    ) -> None:
        """player: makes the two halves of the rounds of this pair.

        depth: replaces what earlier runs learned, and the table; it is not saved. Others as `load`.
        """
        target, drafter, self.text, defaults, fingerprint, notes, name, table = pair
        key = fingerprint if depth is None else None
        self._depth = depth = depth or load_depth(key, exact, table)
        target = copy(target)  # the same weights; other engines of this pair may have other ways
        target.set_ways({} if depth.table is None else depth.table.ways)
        exactness = Exactness.of(exact, depth, limits, max_batch)
        self.notes = (*notes, exactness.note) if exactness.note else notes
        self.config = target.config
        self.has_drafter = drafter is not None
        self.drafter_name = name
        self._pair = memory.Pair.of(target, drafter)
        self._identity = mlx_worker().run(lambda: model_identity(target))
        self._copies = copies
        self._max_batch = exactness.max_batch
        self._limits = limits
        self._intake = Intake(pair, copies=copies)
        suppressed = pair.default_tokens("suppress_tokens")
        rounds = player(target, drafter)
        on_idle = None if key is None else partial(save_depth, key, self._depth)

        batch = partial(Batch, target, rounds, suppressed, has_drafter=self.has_drafter)

        def scheduler() -> Scheduler:
            rows = batch(depth, exactness, copies=copies)
            return Scheduler(rows, max_queue=max_queue, on_idle=on_idle)

        self._scheduler: Scheduler | None = mlx_worker().run(scheduler)
        likewise = Depth.from_json(depth.to_json(), exact)
        one_row = partial(batch, likewise, exactness._replace(max_batch=1), copies=False)
        params = SamplingParams(seed=0).resolved(defaults)
        drafts = first_drafts(likewise) if self.has_drafter else (0,)
        self._warm_up = WarmUp(one_row, params, drafts)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop all work within a round and free the memory.

        Requests that have not ended raise an MgmError. The engine cannot be used afterwards;
        closing twice is fine. Raises UsageError in an `on_chunk` callback.
        """
        mlx_worker().check_may_wait()
        scheduler, self._scheduler = self._scheduler, None
        if scheduler is not None:
            mlx_worker().run(self._warm_up.stop)
            mlx_worker().run(scheduler.close)
            del scheduler  # and with it the models
            mlx_worker().run(mx.clear_cache)

    def warm_up(self, *, on_cpu: bool = False) -> None:
        """Compile what a first short chat needs, in the background, in short steps.

        A request goes first, and the rest is left out. It changes no output and no statistics. Does
        nothing the second time, after a request, and on a CPU, where nothing is compiled, unless
        on_cpu.
        """
        if self._warm_up.possible and (on_cpu or device.backend() != "cpu"):
            mlx_worker().run(self._warm_up.start)

    @property
    def warming(self) -> bool:
        """True while `warm_up` is at work."""
        return self._warm_up.running

    def submit(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        on_chunk: Callable[[Chunk], None] | None = None,
        *,
        session: Session | None = None,
    ) -> Generation:
        """Start a completion without waiting for it.

        Requests are served in order; up to max_batch decode together, each starting and ending at
        any round. on_chunk is called with every piece of the output, on the thread that does all
        the work: it must be quick and must not wait for an engine. If it raises, the request ends.
        Failures are reported by the Generation only. session: the conversation that this is a turn
        of; the tokens it holds are not prefilled again.

        Raises QueueFullError if max_queue requests are waiting already, otherwise as `generate`.
        """
        return self._submit(self._checked(prompt, params, on_chunk, session))

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[Completion]:
        """Complete any number of prompts, up to max_batch of them at a time.

        A prompt is a string (one user turn), a list of token ids, or a list of messages
        {"role", "content"}; a single one needs no list around it. `params` apply to all prompts,
        or are a list with one entry for each. The results are in the order of the prompts. The
        first failure ends all of them.

        Raises UsageError for a wrong prompt or setting, before any work; NotEnoughMemoryError and
        GenerationError for what fails later.
        """
        mlx_worker().check_may_wait()
        many = as_list(prompts)
        each = list(params) if isinstance(params, Sequence) else [params] * len(many)
        if len(each) != len(many):
            raise UsageError(f"{len(many)} prompts but {len(each)} settings: give one for each")
        requests = [self._checked(one, own) for one, own in zip(many, each, strict=True)]
        pending: set[Future[Completion]] = set()
        try:
            for request in requests:
                # Enough to keep every row busy; the rest of the queue is for other callers.
                if len(pending) == 2 * self._max_batch:
                    pending = _wait(pending, FIRST_COMPLETED)
                pending.add(self._submit(request, patient=True))
            _wait(pending, FIRST_EXCEPTION)
            return [request.generation.result() for request in requests]
        except BaseException:
            for request in requests:
                request.generation.cancel()
            raise

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        session: Session | None = None,
    ) -> Iterator[Chunk]:
        """Complete one prompt and yield the output piece by piece.

        Work starts when the first piece is requested; closing the iterator stops it within a round.
        Errors as `submit`.
        """
        chunks: queue.SimpleQueue[Chunk | None] = queue.SimpleQueue()
        return self._pieces(self._checked(prompt, params, chunks.put, session), chunks)

    def session(self, saved: Path | None = None) -> Session:
        """A conversation whose turns are not prefilled twice; pass it to `submit` and `stream`.

        It does not change the output. saved: a file that `Session.save` wrote with this model.
        Raises CheckpointError for any other file.
        """
        _ = self._open
        session = Session(self.config, self._identity, self._limits)
        if saved is not None:
            mlx_worker().run(partial(session.restore, saved))
        return session

    @property
    def status(self) -> Status:
        """What it is doing. Any thread may read it, and nothing waits. Raises ClosedError."""
        return self._open.status

    def plain_tokens_per_second(self) -> float | None:
        """Tokens per second without drafts at batch 1; None until measured."""
        return mlx_worker().run(lambda: self._depth.plain_tokens_per_second)

    def longest_context(self) -> int:
        """The longest session, in tokens, that fits in memory; 0 if none does."""
        return mlx_worker().run(
            lambda: self._pair.longest_context(batch=1, have=device.available(), sessions=1)
        )

    def _submit(self, request: Request, *, patient: bool = False) -> Generation:
        """Queue a request; if patient, wait for a place in the queue."""
        scheduler, session = self._open, request.session
        if session:
            session.claim()
        request.queue()
        try:
            scheduler.reserve(patient=patient)
        except MgmError:
            if session:
                session.release()
            raise

        def serve() -> None:
            self._warm_up.stop()
            scheduler.add(request)
            mlx_worker().repeat(scheduler.step)

        mlx_worker().submit(serve)
        return request.generation

    def _pieces(self, request: Request, chunks: queue.SimpleQueue[Chunk | None]) -> Iterator[Chunk]:
        mlx_worker().check_may_wait()
        request.generation.add_done_callback(lambda _: chunks.put(None))
        try:
            self._submit(request)
            while (chunk := chunks.get()) is not None:
                yield chunk
            request.generation.result()  # raises the error that ended it
        finally:
            request.generation.cancel()

    def _checked(self, prompt: Prompt, params: SamplingParams | None, *rest: Any) -> Request:
        """Return a request of `Intake.request`, if the engine is open."""
        _ = self._open
        return self._intake.request(prompt, params, *rest)

    @property
    def _open(self) -> Scheduler:
        mlx_worker()  # raises in a forked child, whose locks may never be released
        if self._scheduler is None:
            raise ClosedError("this engine is closed: load the model again")
        return self._scheduler


def _wait(pending: set[Future[Completion]], until: str) -> set[Future[Completion]]:
    """Wait for the first request to end, or to fail; returns the others. Raises its error."""
    ended, left = wait(pending, return_when=until)
    for generation in ended:
        generation.result()
    return left
