"""A chat: messages go to an engine, answers to the screen, and both into a transcript.

Knows nothing of how messages are typed, nor of commands.
"""

from __future__ import annotations

import queue
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import mlx.core as mx

from mlx_gemma_mtp.chat import statistics, store
from mlx_gemma_mtp.chat.loading import Loaded
from mlx_gemma_mtp.chat.screen import Screen
from mlx_gemma_mtp.chat.statistics import short
from mlx_gemma_mtp.chat.terminal import Interrupts
from mlx_gemma_mtp.chat.transcript import Conversation, Transcript
from mlx_gemma_mtp.decode.params import SamplingParams
from mlx_gemma_mtp.engine.results import Chunk, Completion, Stats
from mlx_gemma_mtp.engine.session import Session
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.errors import MgmError, UsageError
from mlx_gemma_mtp.text.messages import Message

NEARLY_FULL = 0.9  # share of the context from which on a chat warns


@dataclass
class Chat:
    """A conversation and its settings.

    interrupts: what stops an answer; None if Ctrl-C ends the process. keeps: True if conversations
    that start here are saved. shows_stats: after every answer. folds: thoughts are counted, not
    shown.
    """

    loaded: Loaded
    transcript: Transcript
    params: SamplingParams
    screen: Screen
    interrupts: Interrupts | None = None
    keeps: bool = False
    shows_stats: bool = False
    folds: bool = False
    last: Stats | None = None
    session: Session = field(init=False)

    def __post_init__(self) -> None:
        self.session = self.loaded.engine.session()

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

    def start(self, conversation: Conversation) -> None:
        """Leave this conversation as it is and continue with another, which is not saved yet."""
        self.transcript.close()
        self.transcript = Transcript(conversation, store.new_path() if self.keeps else None)
        self.session, self.last = self.loaded.engine.session(), None

    def use(self, loaded: Loaded) -> None:
        """Continue with another model."""
        self.loaded = loaded
        self.session, self.last = loaded.engine.session(), None
        self.transcript.use(loaded.models)
        self._warn_if_unsaved()

    def restore(self, cache: Path) -> None:
        """Take over a saved KV cache; if it is not usable, say so."""
        try:
            self.session = self.loaded.engine.session(cache)
        except MgmError as error:
            self.screen.say(f"mgm: {error}; the conversation is prefilled again")

    def stats_line(self) -> str:
        """Return the statistics of the last answer. Raises UsageError if there is none."""
        if self.last is None:
            raise UsageError("there is no answer yet")
        return statistics.line(
            self.last,
            plain=self.loaded.engine.plain_tokens_per_second(),
            context=self.loaded.context,
            memory=mlx_worker().run(mx.get_active_memory),
        )

    def _answer(self, prompt: list[Message], *, again: bool = False) -> None:
        chunks: queue.SimpleQueue[Chunk | None] = queue.SimpleQueue()
        engine = self.loaded.engine
        generation = engine.submit(prompt, self.params, chunks.put, session=self.session)
        generation.add_done_callback(lambda _: chunks.put(None))
        try:
            with self.interrupts.stop(generation) if self.interrupts else nullcontext():
                answered = self._show(chunks)
            if answered or self.interrupts is None:
                self.screen.answer("\n")
            done = generation.result()
        finally:
            generation.cancel()  # the screen may be gone, for example
        self.last = done.stats
        if done.text or done.finish_reason != "cancelled":
            # Nothing here runs a tool, and templates leave the turn open until it is answered.
            message = {key: done.message[key] for key in done.message if key != "tool_calls"}
            self.transcript.answered(message, again=again)
            self._warn_if_unsaved()
        self._remark(done)

    def _show(self, chunks: queue.SimpleQueue[Chunk | None]) -> bool:
        """Show everything as it arrives; return True if there was an answer."""
        screen, num_thought, thinks, answered = self.screen, 0, False, False
        with ExitStack() as spinner:
            spinner.enter_context(screen.spinner("reading"))
            while (chunk := chunks.get()) is not None:
                if chunk.kind == "thought":
                    if self.folds and not num_thought:
                        spinner.close()
                        spinner.enter_context(screen.spinner("thinking"))
                    num_thought += len(chunk.tokens)
                    thinks |= bool(chunk.text.strip())  # False for an empty thought
                if not chunk.text or (chunk.kind == "thought" and self.folds):
                    continue
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
        used, context = done.stats.prompt_tokens + len(done.tokens), self.loaded.context
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
            note(self.stats_line())
        if used >= NEARLY_FULL * context and self.interrupts:
            note(
                f"({short(used)} of {short(context)} tokens of context used: "
                "/undo and /clear make room)"
            )

    def _warn_if_unsaved(self) -> None:
        """Say once that the conversation is no longer saved."""
        if self.transcript.problem:
            self.screen.say(f"mgm: this conversation is not saved: {self.transcript.problem}")
            self.transcript.problem = None
