"""What was said in a conversation, and to which model; kept in a file as it happens, if wanted.

A last message of the user is a question that has no answer yet. Knows nothing of engines.
"""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from mlx_gemma_mtp.errors import MgmError
from mlx_gemma_mtp.files.atomic import write_whole
from mlx_gemma_mtp.files.journal import Event, Journal, encode, read
from mlx_gemma_mtp.text.messages import Message


FORMAT = "mgm conversation 1"
HEADER: Event = {"format": FORMAT}


class Models(NamedTuple):
    """A pair as the command line names it."""

    model: str = "demo"
    drafter: str = "auto"
    bits: int | None = None


DEMO = Models()


@dataclasses.dataclass
class Said:
    """The state of a conversation: what the events so far amount to.

    messages: by turns the user's and the model's, without the system's.
    """

    models: Models = DEMO
    system: str | None = None
    messages: list[Message] = dataclasses.field(default_factory=list)

    @classmethod
    def replayed(cls, events: list[Event], path: Path) -> Said:
        """What these events amount to. Raises MgmError for what no journal of ours holds."""
        said = cls()
        try:
            for event in events:
                said.apply(event)
        except (KeyError, TypeError, ValueError) as error:
            raise MgmError(f"{path} is damaged ({error!r}): remove it") from None
        return said

    def apply(self, event: Event) -> None:
        """Take one event in. keep: how many of the messages stay; a message comes after that."""
        if "models" in event:
            self.models = Models(**event["models"])
        if "system" in event:
            self.system = event["system"]
        if "keep" in event:
            del self.messages[event["keep"] :]
        if "message" in event:
            message = event["message"]
            if message["role"] not in ("user", "assistant") or not isinstance(
                message["content"], str
            ):
                raise ValueError(message["role"])
            self.messages.append(message)

    def events(self) -> list[Event]:
        """The shortest events that amount to this."""
        beginning: Event = {"models": self.models._asdict(), "system": self.system}
        return [beginning, *({"message": message} for message in self.messages)]

    @property
    def title(self) -> str:
        """The first thing asked, on one line that any stream takes."""
        first: str = self.messages[0]["content"] if self.messages else ""
        return " ".join(first.encode(errors="replace").decode().split())

    @property
    def turns(self) -> int:
        """How many questions there are."""
        return sum(message["role"] == "user" for message in self.messages)


class Transcript:
    """A conversation that goes on. Its file begins with the first message."""

    def __init__(self, said: Said, path: Path | None = None) -> None:
        """path: where to keep it; there must be nothing yet. None: nowhere."""
        self.said = said
        self.path = path
        self.problem: str | None = None  # why it is no longer kept
        self._journal: Journal | None = None

    @classmethod
    def reopened(cls, path: Path) -> Transcript:
        """Go on with one that is kept. Raises MgmError, UsageError, OSError as `Journal.open`."""
        journal, events = Journal.open(path, FORMAT)
        try:
            transcript = cls(Said.replayed(events, path), path)
        except MgmError:
            journal.close()
            raise
        transcript._journal = journal
        return transcript

    @property
    def question(self) -> str | None:
        """The last message, if it is the user's: it waits for an answer."""
        messages = self.said.messages
        return messages[-1]["content"] if messages and messages[-1]["role"] == "user" else None

    @property
    def answer(self) -> Message | None:
        """The last answer."""
        answers = (m for m in reversed(self.said.messages) if m["role"] == "assistant")
        return next(answers, None)

    @property
    def prompt(self) -> list[Message]:
        """All messages as a model takes them."""
        system = self.said.system
        first: list[Message] = [{"role": "system", "content": system}] if system else []
        return [*first, *self.said.messages]

    def ask(self, text: str) -> None:
        """The user says something. A question that got no answer gives way to it."""
        keep = len(self.said.messages) - (self.question is not None)
        self._record({"keep": keep, "message": {"role": "user", "content": text}})

    def answered(self, message: Message, *, again: bool = False) -> None:
        """The model said something. again: in place of its last answer."""
        keep = len(self.said.messages) - again
        self._record({"keep": keep, "message": message})

    def undo(self) -> str | None:
        """Take the last question back, with its answer: the question, or None if there is none."""
        messages = self.said.messages
        asked = [at for at, message in enumerate(messages) if message["role"] == "user"]
        if not asked:
            return None
        text: str = messages[asked[-1]]["content"]
        self._record({"keep": asked[-1]})
        return text

    def instruct(self, system: str | None) -> None:
        """Other instructions for the whole conversation, from the next answer on."""
        self._record({"system": system})

    def use(self, models: Models) -> None:
        """Another pair goes on."""
        self._record({"models": models._asdict()})

    def save(self, path: Path) -> None:
        """Write a copy. Raises OSError."""
        write_whole(path, encode(HEADER, *self.said.events()))

    def close(self) -> None:
        """Let go of the file."""
        if self._journal:
            self._journal.close()
            self._journal = None

    def _record(self, event: dict[str, Any]) -> None:
        event["at"] = datetime.now(UTC).isoformat(timespec="seconds")
        self.said.apply(event)
        try:
            if self._journal:
                self._journal.write(event)
            elif self.path and self.said.messages:
                self._journal = Journal.create(self.path, HEADER, self.said.events())
        except OSError as error:
            self.close()
            self.path = None
            self.problem = f"{error.strerror}: make room, or have MGM_DATA_DIR name another folder"


def load(path: Path) -> Said:
    """What a file holds, while another mgm may have it open. Raises MgmError, OSError."""
    return Said.replayed(read(path, FORMAT)[1:], path)


def shortened(text: str, most: int) -> str:
    """A text on one line of at most so many characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"
