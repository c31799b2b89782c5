"""The engine: prompts in, completions out.

What apps call. Prompts and settings are checked in the caller's thread; the work is done on the one
thread that uses MLX, or in another process.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Unpack

from mlx_gemma_mtp.decode.params import SamplingParams, is_count
from mlx_gemma_mtp.engine.admission import Admission
from mlx_gemma_mtp.engine.callbacks import Callback, in_a_loop, running_loop
from mlx_gemma_mtp.engine.chat import MAX_ROUNDS, Chat, first_messages, read_chat, saved_session
from mlx_gemma_mtp.engine.generation import Generation
from mlx_gemma_mtp.engine.intake import Intake, Tools, has_rule
from mlx_gemma_mtp.engine.local import Local, Options
from mlx_gemma_mtp.engine.many import each_of, finish_all, repeated
from mlx_gemma_mtp.engine.pair import OpenPair
from mlx_gemma_mtp.engine.prompts import as_list, encoded, is_long
from mlx_gemma_mtp.engine.remote import Remote
from mlx_gemma_mtp.engine.request import Request
from mlx_gemma_mtp.engine.results import Chunk, Completion
from mlx_gemma_mtp.engine.session import Session, checked_path
from mlx_gemma_mtp.engine.status import Status
from mlx_gemma_mtp.engine.worker import mlx_worker, only_here
from mlx_gemma_mtp.errors import UsageError
from mlx_gemma_mtp.text.functions import Schema
from mlx_gemma_mtp.text.messages import Message, Prompt
from mlx_gemma_mtp.text.tokenizer import Text

log = logging.getLogger("mlx_gemma_mtp")


class Engine:
    """A loaded pair, made by `load`. A context manager; any thread may use it.

    notes: what people should know of the checkpoint, one line each: that it has no chat template,
    and which settings of its generation_config are not applied; and what exact=True costs here, if
    it costs drafts. name, drafter_name: Hub names, or those of folders; None without one, or if the
    pair was not opened from files.
    """

    def __init__(self, pair: OpenPair, **options: Unpack[Options]) -> None:
        """Serve a pair in this process."""
        self._open(Local(pair, **options), pair.text)

    def _open(self, back: Local | Remote, text: Text | None) -> None:
        """back: the place where the model is."""
        about = back.about
        self.text = text
        self.notes = about.notes
        self.config = about.pair.target
        self.has_drafter = back.has_drafter
        self.name = about.name
        self.drafter_name = about.drafter_name
        self._back = back
        self._admission = Admission(back)
        self._intake = Intake(
            text, about.defaults, back.budget, has_drafter=self.has_drafter, copies=back.copies
        )
        log.info("opened %r", self)

    def __repr__(self) -> str:
        drafter = f", drafter {self.drafter_name or 'without a name'}" if self.has_drafter else ""
        closed = ", closed" if self.closed else ""
        return f"<Engine {self.name or 'without a name'}{drafter}{closed}>"

    __reduce__ = only_here("an engine", "load it there")

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Engine:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @property
    def closed(self) -> bool:
        """True once `close` is called."""
        return self._admission.closed

    @property
    def loaded(self) -> bool:
        """False while `idle_unload` has the weights out of memory, and once it is closed."""
        return self._back.loaded

    @property
    def max_batch(self) -> int:
        """The most requests that decode together: of `load`, or fewer if exact passes need that."""
        return self._back.about.max_batch

    def close(self) -> None:
        """Stop all work within a round and free the memory.

        Requests that have not ended raise an MgmError. The engine cannot be used afterwards;
        closing twice is fine. Raises UsageError in an `on_chunk` callback.
        """
        mlx_worker().check_may_wait()
        was_closed, self._admission.closed = self.closed, True
        if not was_closed:
            self._back.close()
            log.info("closed %r", self)

    async def aclose(self) -> None:
        """Do what `close` does without blocking the event loop."""
        await asyncio.to_thread(self.close)

    def warm_up(self, *, on_cpu: bool = False) -> None:
        """Compile what a first short chat needs, in the background, in short steps.

        A request goes first, and the rest is left out. It changes no output and no statistics. Does
        nothing the second time, after a request, and on a CPU, where nothing is compiled, unless
        on_cpu.
        """
        self._back.warm_up(on_cpu=on_cpu)

    @property
    def warming(self) -> bool:
        """True while `warm_up` is at work."""
        return self._back.warming

    def submit(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        on_chunk: Callback | None = None,
        *,
        session: Session | None = None,
        tools: Tools = None,
        priority: int = 0,
        timeout: float | None = None,
    ) -> Generation:
        """Start a completion without waiting for it.

        Up to max_batch requests decode together, each starting and ending at any round. on_chunk is
        called with every piece of the output. A function is called on the thread that does all the
        work: it must be quick and must not wait for an engine. A coroutine function runs in the
        event loop of the caller, one call after another, and the result comes after the last. If it
        raises, the request ends. session: the conversation that this is a turn of; the tokens it
        holds are not prefilled again. tools: those that the model may call, for the chat template.
        priority: higher ones are served first. timeout: seconds after which it ends with a
        RequestTimeoutError; `Generation.text` keeps the answer so far.

        Several at once in an event loop: `await asyncio.gather(*map(engine.submit, prompts))`.

        In an event loop, a long prompt or one whose answer has a form is prepared on a thread, and
        what is wrong with it is raised by the Generation. Otherwise raises QueueFullError if
        max_queue requests are waiting already, and errors as `generate`.
        """
        generation, loop = Generation(), running_loop()
        callback = on_chunk if on_chunk is not None and in_a_loop(on_chunk) else None
        if callback is not None:
            if loop is None:
                raise UsageError("a coroutine function as on_chunk needs a running event loop")
            generation._hold_for(loop)
            on_chunk = None
        request = partial(
            self._request, prompt, params, session, tools, priority, timeout, on_chunk, generation
        )
        if loop is not None and (is_long(prompt) or has_rule(params)):
            self._admission.admit_later(request, generation, session)
        else:
            self._admission.admit(request())
        if callback is not None:
            generation._call_back(callback)
        return generation

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        session: Session | None = None,
        tools: Tools = None,
        priority: int = 0,
        timeout: float | None = None,
    ) -> Generation:
        """Complete one prompt, and read the output piece by piece from what this returns.

        The same as `submit` without on_chunk. Leaving the loop early stops it within a round.
        """
        return self.submit(
            prompt, params, session=session, tools=tools, priority=priority, timeout=timeout
        )

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        sessions: Session | Sequence[Session | None] | None = None,
        tools: Tools = None,
        n: int = 1,
        priority: int = 0,
        timeout: float | None = None,
    ) -> list[Completion]:
        """Complete any number of prompts, up to max_batch of them at a time.

        A prompt is a string (one user turn), a list of token ids, or a list of messages
        {"role", "content"}; a single one needs no list around it. `params` apply to all prompts,
        or are a list with one entry for each, as `sessions` are. n: completions of each prompt, in
        a row, with the seeds seed, seed + 1, ... (after 2**32 - 1 comes 0). The results are in the
        order of the prompts. The first failure ends all of them. timeout: of each, from when it
        waits for a row. Others as `submit`. It blocks an event loop until all are done: there,
        await what `submit` returns.

        Raises UsageError for a wrong prompt or setting, before any work; NotEnoughMemoryError,
        RequestTimeoutError and GenerationError for what fails later.
        """
        mlx_worker().check_may_wait()
        many = as_list(prompts)
        each = each_of(params, len(many), "settings")
        own = each_of(sessions, len(many), "sessions")
        asked = repeated(zip(many, each, own, strict=True), n)
        requests = [
            self._request(prompt, one, session, tools, priority, timeout)
            for prompt, one, session in asked
        ]

        admit = partial(self._admission.admit, patient=True)
        # Enough to keep every row busy; the rest of the queue is for other callers.
        return finish_all(requests, admit, most=2 * self._back.about.max_batch)

    def session(self, saved: str | Path | None = None) -> Session:
        """A conversation whose turns are not prefilled twice; pass it to `submit` and `stream`.

        It does not change the output, and belongs to this engine. saved: a file that `Session.save`
        wrote with this model; reading it waits for the worker, see `asession`. Raises
        CheckpointError for any other file.
        """
        self._admission.check()
        if saved is not None:
            saved = checked_path(saved, "saved")
        session = self._back.session(self._admission.owner)
        if saved is not None:
            session._restore(saved)
        return session

    @property
    def status(self) -> Status:
        """What it is doing, as of the last round; all 0 once it is closed. Never waits."""
        return Status() if self.closed else self._back.status

    async def asession(self, saved: str | Path | None = None) -> Session:
        """Do what `session` does without blocking the event loop."""
        return await asyncio.to_thread(self.session, saved)

    def chat(
        self,
        system: str | None = None,
        tools: Sequence[Callable[..., Any]] | None = None,
        params: SamplingParams | None = None,
        *,
        messages: Sequence[Message] | None = None,
        saved: str | Path | None = None,
        max_rounds: int = MAX_ROUNDS,
        priority: int = 0,
        timeout: float | None = None,
    ) -> Chat:
        """A conversation that keeps its messages, and runs the functions that the model calls.

        system: instructions, in place of those of a saved chat. tools: Python functions with type
        hints; what they are for is in their docstrings. messages: what it starts with. saved: a
        file that `Chat.save` wrote, to continue from, in place of messages. max_rounds: of calls,
        before the model must answer. priority, timeout: of each request, as of `submit`.

        Raises UsageError, and CheckpointError for another file. If the saved session is of another
        model, the messages are prefilled again.
        """
        self._admission.check()
        if saved is None:
            given, session = messages, self.session()
        else:
            if messages:
                raise UsageError("a saved chat has messages: give one or the other")
            saved = checked_path(saved, "saved")
            given, session = read_chat(saved), saved_session(self, saved)
        first = first_messages(system, given, replace=saved is not None)
        return Chat(self, first, tools, params, max_rounds, priority, timeout, session)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, special tokens included. Raises UsageError."""
        if not isinstance(text, str):
            raise UsageError(f"text must be a string, not {type(text).__name__}")
        return self._tokenizer.encode(text)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of token ids, special tokens included. Raises UsageError."""
        ids = isinstance(tokens, Sequence) and all(is_count(t) and 0 <= t < 2**31 for t in tokens)
        if not ids:
            raise UsageError("tokens must be a list of token ids")
        unknown = next((one for one in tokens if not self._tokenizer.has_token(one)), None)
        if unknown is not None:
            raise UsageError(f"tokens: {unknown} is not a token of this model")
        return self._tokenizer.decode(tokens)

    def count_tokens(self, prompt: Prompt, tools: Tools = None, *, thinking: bool = False) -> int:
        """Return how many tokens a prompt has, with its template; 0 if it is empty.

        thinking: as of SamplingParams. The prompt may be too long for the model. Raises UsageError;
        PromptTooLongError, without counting, if it has too many characters to fit.
        """
        budget = self._back.budget
        return len(encoded(prompt, self.text, budget, thinking=thinking, tools=tools))

    def check_length(self, text: str) -> None:
        """Raise PromptTooLongError if a text has too many characters to fit, however encoded."""
        self._back.budget.check_prompt(self._tokenizer.fewest_tokens(text), counted=False)

    @property
    def context(self) -> int:
        """The most tokens of a prompt and its answer together, as of `load`."""
        return self._back.budget.context

    def plain_tokens_per_second(self) -> float | None:
        """Tokens per second without drafts at batch 1; None until measured. Never waits."""
        return self._back.plain_tokens_per_second

    def longest_context(self) -> int:
        """The longest session, in tokens, that fits in memory; 0 if none does. Never waits."""
        have, limit = self._back.available, self._back.budget.most
        have = have if limit is None else min(have, limit)
        return self._back.about.pair.longest_context(batch=1, have=have, sessions=1)

    def _request(
        self,
        prompt: Prompt,
        params: SamplingParams | None,
        session: Session | None,
        tools: Tools,
        priority: int,
        timeout: float | None,
        on_chunk: Callback | None = None,
        generation: Generation | None = None,
    ) -> Request:
        """Return a request of `Intake.request`, if the engine is open."""
        self._admission.check(session)
        request = self._intake.request(
            prompt, params, on_chunk, session, tools=tools, priority=priority, timeout=timeout
        )
        request.generation = generation or request.generation
        return request

    def _take(
        self,
        ids: list[int],
        params: SamplingParams,
        schemas: list[Schema],
        on_chunk: Callable[[Chunk], object],
        session: Session | None,
        priority: int,
    ) -> Generation:
        """Start a completion of a prompt that another process has checked."""
        self._admission.check(session)
        request = self._intake.request_of(ids, params, on_chunk, session, schemas)
        request.priority = priority
        return self._admission.admit(request)

    @property
    def _tokenizer(self) -> Text:
        if self.text is None:
            raise UsageError("this checkpoint has no tokenizer: give prompts as token ids")
        return self.text
