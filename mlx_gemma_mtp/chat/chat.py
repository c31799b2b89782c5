"""A chat: messages go to an engine, answers to the screen, and both into a transcript.

Knows nothing of how messages are typed, nor of commands.
"""

from __future__ import annotations

import queue
from collections.abc import Callable
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path

import mlx.core as mx

from mlx_gemma_mtp.chat import statistics, store
from mlx_gemma_mtp.chat.screen import Screen
from mlx_gemma_mtp.chat.statistics import short
from mlx_gemma_mtp.chat.terminal import Interrupts
from mlx_gemma_mtp.chat.transcript import Conversation, Models, Transcript, shortened
from mlx_gemma_mtp.decode.params import SamplingParams
from mlx_gemma_mtp.engine.engine import Engine
from mlx_gemma_mtp.engine.results import Chunk, Completion, Stats
from mlx_gemma_mtp.engine.session import Session
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.errors import MgmError, ModelNotFoundError, NotEnoughMemoryError, UsageError
from mlx_gemma_mtp.files import hub
from mlx_gemma_mtp.files.names import is_local
from mlx_gemma_mtp.text.messages import Message

SHOWN = 200  # characters of an earlier message
STOPPING = Chunk("", [])  # Ctrl-C was pressed
NEARLY_FULL = 0.9  # share of the context from which on a chat warns


@dataclass
class Chat:
    """A conversation and its settings. Raises what `load` does."""

    load: Callable[[Models], Engine]
    transcript: Transcript
    params: SamplingParams
    screen: Screen
    interrupts: Interrupts | None = None  # None if Ctrl-C ends the process
    keeps: bool = False  # True if conversations that start here are saved
    shows_stats: bool = False  # after every answer
    folds: bool = False  # True if thoughts are counted, not shown
    wanted: Models | None = None  # to continue with, instead of those of the conversation
    last: Stats | None = None
    engine: Engine = field(init=False)
    session: Session = field(init=False)
    context: int = field(init=False)  # tokens of the longest conversation that fits in memory

    def __post_init__(self) -> None:
        models = self.wanted or self.models
        self._use(self.load(models))
        if models != self.models:  # saved only now that they are known to load
            self.transcript.use(models)
            self._warn_if_unsaved()

    @property
    def models(self) -> Models:
        """The pair that answers."""
        return self.transcript.conversation.models

    @property
    def drafts(self) -> str:
        """Where draft tokens come from, for people."""
        if not self.engine.has_drafter:
            return "no drafter"
        off = self.params.num_draft_tokens == 0
        return "drafts off" if off else f"drafts from {self.engine.drafter_name}"

    def ask(self, text: str) -> None:
        """Answer this message. If that raises MgmError, the message waits for `regen`."""
        self.transcript.ask(text)
        self._warn_if_unsaved()
        self._answer(self.transcript.prompt)

    def regen(self) -> None:
        """Answer the last message again. Raises as `ask`, and UsageError if there is none."""
        if self.transcript.question is not None:
            self._answer(self.transcript.prompt)
        elif self.transcript.answer is not None:
            self._answer(self.transcript.prompt[:-1], again=True)
        else:
            raise UsageError("there is no message to answer yet")

    def show_last(self) -> None:
        """Show the last message and its answer, at a terminal, as context for the next."""
        conversation, answer = self.transcript.conversation, self.transcript.answer
        if conversation.questions:
            self.screen.say(f"> {shortened(conversation.questions[-1], SHOWN)}")
        if answer and self.transcript.question is None and self.screen.shows_answers:
            self.screen.answer(answer["content"])
            self.screen.end_answer()

    def start(self, conversation: Conversation) -> None:
        """Leave this conversation as it is and continue with another, which is not saved yet."""
        self.transcript.close()
        self.transcript = Transcript(conversation, store.new_path() if self.keeps else None)
        self._use(self.engine)

    def switch(self, models: Models) -> None:
        """Continue with another pair, which must be on this disk.

        If both do not fit in memory, the old one is closed first. If the other then fails, the
        screen shows why, and the old one is loaded again. Raises what `load` does while the old one
        is still loaded, and MgmError if no pair is loaded any more.
        """
        models = models.located()
        name = models.model
        if not is_local(name) and hub.from_cache(name) is None:
            raise ModelNotFoundError(f"{name} is not downloaded: run mgm pull {name}")
        try:
            engine = self.load(models)
        except NotEnoughMemoryError:
            self.engine.close()
            engine, models = self._load_first([models, self.models])
        self.engine.close()
        self._use(engine)
        self.transcript.use(models)
        self._warn_if_unsaved()

    def _load_first(self, choices: list[Models]) -> tuple[Engine, Models]:
        """Load the first of these that can be loaded."""
        for models in choices:
            try:
                return self.load(models), models
            except MgmError as error:
                self.screen.say(f"mgm: {error}")
        raise MgmError("no model is loaded now: /model NAME loads one")

    def _use(self, engine: Engine) -> None:
        self.engine, self.session, self.last = engine, engine.session(), None
        # With --force nothing may fit by that count: then only the model's own limit is known.
        self.context = engine.longest_context() or engine.config.max_position_embeddings

    def restore(self, cache: Path) -> None:
        """Take over a saved KV cache; if it is not usable, say so."""
        try:
            self.session = self.engine.session(cache)
        except MgmError as error:
            self.screen.say(f"mgm: {error}; the conversation is prefilled again")

    def stats(self) -> list[str]:
        """Return the last answer's statistics, in parts. Raises UsageError if there is none."""
        if self.last is None:
            raise UsageError("there is no answer yet")
        return statistics.parts(
            self.last,
            plain=self.engine.plain_tokens_per_second(),
            context=self.context,
            memory=mlx_worker().run(mx.get_active_memory),
        )

    def _answer(self, prompt: list[Message], *, again: bool = False) -> None:
        chunks: queue.SimpleQueue[Chunk | None] = queue.SimpleQueue()
        generation = self.engine.submit(prompt, self.params, chunks.put, session=self.session)
        generation.add_done_callback(lambda _: chunks.put(None))

        def stop() -> None:
            generation.cancel()
            chunks.put(STOPPING)

        try:
            with self.interrupts.stopping(stop) if self.interrupts else nullcontext():
                answered = self._show(chunks)
            if answered or self.interrupts is None:
                self.screen.end_answer()
            done = generation.result()
        except (SystemExit, OSError):  # a signal, or the screen is gone: the window was closed
            generation.cancel()
            with suppress(MgmError):
                self._keep(generation.result(), again=again)
            raise
        finally:
            generation.cancel()
        self.last = done.stats
        self._keep(done, again=again)
        self._warn_if_unsaved()
        self._remark(done)

    def _keep(self, done: Completion, *, again: bool) -> None:
        """Add an answer to the conversation, unless it was stopped before it started."""
        if done.text or done.finish_reason != "cancelled":
            # Nothing here runs a tool, and templates leave the turn open until it is answered.
            message = {key: done.message[key] for key in done.message if key != "tool_calls"}
            self.transcript.answered(message, again=again)

    def _show(self, chunks: queue.SimpleQueue[Chunk | None]) -> bool:
        """Show everything as it arrives; return True if there was an answer."""
        screen, num_thought, thinks, answered = self.screen, 0, False, False
        waits = True  # until something is shown
        with ExitStack() as spinner:
            spinner.enter_context(screen.spinner("reading"))
            while (chunk := chunks.get()) is not None:
                if chunk is STOPPING and waits:  # the prefill stops at the end of its chunk
                    spinner.close()
                    spinner.enter_context(screen.spinner("stopping"))
                if chunk.kind == "thought":
                    if self.folds and not num_thought:
                        spinner.close()
                        spinner.enter_context(screen.spinner("thinking"))
                    num_thought += len(chunk.tokens)
                    thinks |= bool(chunk.text.strip())  # False for an empty thought
                if not chunk.text or (chunk.kind == "thought" and self.folds):
                    continue
                waits = False
                spinner.close()
                if chunk.kind == "answer":
                    if thinks and not answered:
                        screen.note(f"({num_thought} tokens of thought)")
                    answered = True
                    screen.answer(chunk.text)
                else:
                    screen.aside(chunk.text)
        return answered

    def _remark(self, done: Completion) -> None:
        """Print notes about an answer; in a pipe, only that the context is full."""
        note, length = self.screen.note, done.finish_reason == "length"
        used, context = done.stats.prompt_tokens + len(done.tokens), self.context
        if length and len(done.tokens) != self.params.max_tokens:
            note("(cut off: the context is full)")
        if self.interrupts:
            if done.finish_reason == "cancelled":
                note("(stopped)" if done.text else "(stopped before the answer: /regen asks again)")
            if length and len(done.tokens) == self.params.max_tokens:
                note(f"(cut off at max_tokens, {self.params.max_tokens})")
            if done.tool_calls:
                note("(the model asked for a tool; this chat has none)")
        if self.shows_stats:
            note(*self.stats())
        if used >= NEARLY_FULL * context and self.interrupts:
            share = f"{short(used)} of {short(context)} tokens of context"
            note(f"({share} used: /undo and /clear make room)")

    def _warn_if_unsaved(self) -> None:
        """Say once that the conversation is no longer saved."""
        if self.transcript.problem:
            self.screen.say(f"mgm: this conversation is not saved: {self.transcript.problem}")
            self.transcript.problem = None
