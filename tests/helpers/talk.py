"""A chat with an engine that gives prepared answers, and what the chat wrote."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mlx_gemma_mtp import Chunk, Completion, MgmError, SamplingParams
from mlx_gemma_mtp.chat import commands, store, syntax
from mlx_gemma_mtp.chat.chat import Chat
from mlx_gemma_mtp.chat.screen import Screen
from mlx_gemma_mtp.chat.terminal import Interrupts
from mlx_gemma_mtp.chat.transcript import Conversation, Models, Transcript
from mlx_gemma_mtp.engine.generation import Generation
from mlx_gemma_mtp.engine.results import Stats
from mlx_gemma_mtp.errors import CheckpointError, UsageError

Answer = Completion | MgmError | Callable[[], Generation]


class Terminal(io.StringIO):
    """A stderr that is a terminal."""

    def isatty(self) -> bool:
        return True


class TerminalOut(io.BytesIO):
    """A stdout that is a terminal."""

    def isatty(self) -> bool:
        return True


class FakeEngine:
    """Gives prepared answers, and remembers its prompts."""

    has_drafter = True
    drafter_name = "a drafter"
    config = SimpleNamespace(max_position_embeddings=8192)
    room = 4096
    closed = False
    warmed_up = 0  # times

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.asked: list[list[dict[str, Any]]] = []

    def session(self, saved: Path | None = None) -> Any:
        if saved is not None:
            raise CheckpointError(f"{saved} is not a saved session")
        return object()

    def submit(self, prompt: Any, params: Any, on_chunk: Any, session: Any) -> Generation:
        self.asked.append([dict(message) for message in prompt])
        answer = self.answers.pop(0)
        if isinstance(answer, UsageError):
            raise answer
        if callable(answer):
            return answer()
        generation = Generation()
        if isinstance(answer, MgmError):
            generation._fail(answer)
            return generation
        if answer.thought:
            on_chunk(Chunk(answer.thought, [1, 2, 3], kind="thought"))
        on_chunk(Chunk(answer.text, [4], answer.finish_reason, answer.stats))
        generation._finish(answer)
        return generation

    def warm_up(self) -> None:
        self.warmed_up += 1

    def plain_tokens_per_second(self) -> float | None:
        return None

    def longest_context(self) -> int:
        return self.room

    def close(self) -> None:
        self.closed = True


def reply(text: str, thought: str = "", finish_reason: Any = "stop") -> Completion:
    return Completion(text, [4], finish_reason, Stats(generated_tokens=1), 7, thought=thought)


class Talk:
    """A chat, its engine, and its two streams."""

    def __init__(
        self,
        *answers: Answer,
        terminal: bool = True,
        renders: bool = False,
        path: Path | None = None,
        wanted: Models | None = None,
    ) -> None:
        """renders: True if stdout is a terminal, too. path: of a saved conversation."""
        self.out = TerminalOut() if renders else io.BytesIO()
        self.err = Terminal() if terminal else io.StringIO()
        self.engine = FakeEngine(*answers)
        self.interrupts = Interrupts()
        self.loads: list[FakeEngine | MgmError] = [self.engine]  # what the next loads give
        self.loaded: list[tuple[str, bool]] = []  # models, and if the first engine was closed then
        self.chat = Chat(
            self._load,
            Transcript.reopened(path) if path else Transcript(Conversation(), store.new_path()),
            SamplingParams(),
            Screen(self.out, self.err),
            self.interrupts if terminal else None,
            keeps=True,
            wanted=wanted,
        )

    def _load(self, models: Models) -> Any:
        self.loaded.append((models.model, self.engine.closed))
        given = self.loads.pop(0)
        if isinstance(given, MgmError):
            raise given
        return given

    @property
    def shown(self) -> str:
        """Everything on stderr."""
        return self.err.getvalue()

    @property
    def words(self) -> str:
        """Everything on stderr, without styles and on one line."""
        return " ".join(re.sub(r"\x1b\[\d*m", "", self.shown).split())

    @property
    def messages(self) -> list[tuple[str, str]]:
        messages = self.chat.transcript.conversation.messages
        return [(message["role"], message["content"]) for message in messages]

    def ask(self, *questions: str) -> None:
        for question in questions:
            self.chat.ask(question)

    def run(self, *lines: str) -> None:
        """Run commands, whose errors are raised."""
        for line in lines:
            commands.run(self.chat, *syntax.parse(line))

    def type(self, *lines: str) -> None:
        """Chat as at a terminal, where errors are shown."""
        commands.talk(self.chat, SimpleNamespace(read=iter([*lines, None]).__next__))
