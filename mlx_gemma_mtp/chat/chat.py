"""A chat: questions go to an engine, answers to the screen, and both into a transcript.

Knows nothing of how questions are typed, nor of commands.
"""

from __future__ import annotations

import queue
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import mlx.core as mx

from mlx_gemma_mtp.chat import statistics, store
from mlx_gemma_mtp.chat.loading import Loaded
from mlx_gemma_mtp.chat.screen import Screen
from mlx_gemma_mtp.chat.statistics import Gauge, short
from mlx_gemma_mtp.chat.terminal import Interrupts
from mlx_gemma_mtp.chat.transcript import Said, Transcript
from mlx_gemma_mtp.decode.params import SamplingParams
from mlx_gemma_mtp.engine.results import Chunk, Completion, Generation, Stats
from mlx_gemma_mtp.engine.session import Session
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.errors import MgmError, UsageError
from mlx_gemma_mtp.text.messages import Message

NEARLY_FULL = 0.9  # of the context, from where on it is told


@dataclass
class Chat:
    """A conversation and how it is held.

    interrupts: what stops an answer; None where Ctrl-C ends the process. keeps: are conversations
    that begin here kept on the disk? shows_stats: after every answer. folds: thoughts are counted,
    not shown.
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
        """Answer this. Raises MgmError, and then the question waits for `regen`."""
        self.transcript.ask(text)
        self._tell_problem()
        self._answer(self.transcript.prompt)

    def regen(self) -> None:
        """Answer the last question, again if need be. Raises as `ask`, UsageError without one."""
        if self.transcript.question is not None:
            self._answer(self.transcript.prompt)
        elif self.transcript.answer is not None:
            self._answer(self.transcript.prompt[:-1], again=True)
        else:
            raise UsageError("nothing was asked yet")

    def begin(self, said: Said) -> None:
        """Leave this conversation as it is and go on with another, which is not on the disk yet."""
        self.transcript.close()
        self.transcript = Transcript(said, store.new_path() if self.keeps else None)
        self.session, self.last = self.loaded.engine.session(), None

    def use(self, loaded: Loaded) -> None:
        """Go on with another model."""
        self.loaded = loaded
        self.session, self.last = loaded.engine.session(), None
        self.transcript.use(loaded.models)
        self._tell_problem()

    def restore(self, cache: Path) -> None:
        """Take over the keys and values that were kept; where they are not usable, say so."""
        try:
            self.session = self.loaded.engine.session(cache)
        except MgmError as error:
            self.screen.say(f"mgm: {error}; the conversation is read anew")

    def numbers(self) -> str:
        """The statistics of the last answer. Raises UsageError where there is none."""
        if self.last is None:
            raise UsageError("nothing was answered yet, so there is nothing to count")
        gauge = Gauge(
            self.loaded.engine.plain_tokens_per_second(),
            self.loaded.context,
            mlx_worker().run(mx.get_active_memory),
        )
        return statistics.line(self.last, gauge)

    def _answer(self, prompt: list[Message], *, again: bool = False) -> None:
        chunks: queue.SimpleQueue[Chunk | None] = queue.SimpleQueue()
        generation = self.loaded.engine.submit(
            prompt, self.params, chunks.put, session=self.session
        )
        generation.add_done_callback(lambda _: chunks.put(None))
        try:
            with self._stoppable(generation):
                said_any = self._show(chunks)
            if said_any or self.interrupts is None:
                self.screen.answer("\n")
            done = generation.result()
        finally:
            generation.cancel()  # where the screen is gone, say
        self.last = done.stats
        if done.text or done.finish_reason != "cancelled":
            # Nobody here answers a tool, and without an answer templates leave the turn open.
            message = {key: done.message[key] for key in done.message if key != "tool_calls"}
            self.transcript.answered(message, again=again)
            self._tell_problem()
        self._remark(done)

    def _stoppable(self, generation: Generation) -> AbstractContextManager[None]:
        return self.interrupts.stop(generation) if self.interrupts else nullcontext()

    def _show(self, chunks: queue.SimpleQueue[Chunk | None]) -> bool:
        """Everything as it comes; was there an answer?"""
        screen, thought, thinks, answered = self.screen, 0, False, False
        spinner = screen.spinner("reading")
        try:
            while (chunk := chunks.get()) is not None:
                if chunk.kind == "thought":
                    if self.folds and not thought:
                        spinner.stop()
                        spinner = screen.spinner("thinking")
                    thought += len(chunk.tokens)
                    thinks |= bool(chunk.text.strip())  # and does not just say that it does not
                if chunk.text and not (chunk.kind == "thought" and self.folds):
                    spinner.stop()
                    if chunk.kind == "answer":
                        if thinks and not answered:
                            screen.note(f"({thought} tokens of thought)")
                        answered = True
                        screen.answer(chunk.text)
                    else:
                        screen.aside(chunk.text)
        finally:
            spinner.stop()
        return answered

    def _remark(self, done: Completion) -> None:
        """What is to be said of an answer besides."""
        used, context = done.stats.prompt_tokens + len(done.tokens), self.loaded.context
        if done.finish_reason == "cancelled" and self.interrupts:
            kept = "" if done.text else " before the answer: /regen asks again"
            self.screen.note(f"(stopped{kept})")
        elif done.finish_reason == "length" and len(done.tokens) != self.params.max_tokens:
            self.screen.note("(cut short: the context is full)")
        elif done.finish_reason == "length" and self.interrupts:
            self.screen.note(f"(cut short at max_tokens, {self.params.max_tokens})")
        if done.tool_calls and self.interrupts:
            self.screen.note("(a tool was called, and there are none here)")
        if self.shows_stats:
            self.screen.note(self.numbers())
        if used >= NEARLY_FULL * context and self.interrupts:
            self.screen.note(
                f"({short(used)} of {short(context)} tokens of context are in use: "
                "/undo and /clear make room)"
            )

    def _tell_problem(self) -> None:
        """Say once that the conversation is no longer kept."""
        if self.transcript.problem:
            self.screen.say(f"mgm: this conversation is not kept: {self.transcript.problem}")
            self.transcript.problem = None

    def set(self, **settings: object) -> None:
        """Other settings for the answers to come. Raises UsageError."""
        self.params = replace(self.params, **settings)  # type: ignore[arg-type]
