"""The messages of a conversation and its models; saved as they come, if wanted.

If the last message is the user's, it waits for an answer. Knows nothing of engines.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from mlx_gemma_mtp.errors import MgmError, ModelNotFoundError
from mlx_gemma_mtp.files.atomic import more_room, write_whole
from mlx_gemma_mtp.files.journal import Event, Journal, encode, read
from mlx_gemma_mtp.files.names import is_folder
from mlx_gemma_mtp.text.messages import Message

FORMAT = "mgm conversation 1"
HEADER: Event = {"format": FORMAT}


class Models(NamedTuple):
    """A pair as the command line names it."""

    model: str = "demo"
    drafter: str = "auto"
    bits: int | None = None

    def located(self) -> Models:
        """Return it with whole paths in place of folders, which then mean the same everywhere."""
        return self._replace(model=_located(self.model), drafter=_located(self.drafter))

    def check_folders(self, *, replaced: Container[str] = ()) -> None:
        """Raise ModelNotFoundError if a folder is gone, unless its field is replaced."""
        for option, name in (("model", self.model), ("drafter", self.drafter)):
            if option not in replaced and Path(name).is_absolute() and not is_folder(name):
                raise ModelNotFoundError(
                    f"the folder {name} of this conversation is gone: name another {option} with "
                    f"--{option}"
                )

    @property
    def shown(self) -> str:
        """The model's name, or that of its folder."""
        return Path(self.model).name if Path(self.model).is_absolute() else self.model


@dataclass
class Conversation:
    """The state that the events of a file add up to."""

    models: Models = field(default_factory=Models)
    system: str | None = None
    messages: list[Message] = field(default_factory=list)  # without the system prompt

    @classmethod
    def replayed(cls, events: list[Event], path: Path) -> Conversation:
        """Return what these events add up to. Raises MgmError if they are not ours."""
        conversation = cls()
        try:
            for event in events:
                conversation.apply(event)
        except (KeyError, TypeError, ValueError) as error:
            raise MgmError(f"{path} is damaged ({error!r}): remove it") from None
        return conversation

    def apply(self, event: Event) -> None:
        """Apply one event. keep: how many messages stay; a new message comes after them."""
        if "models" in event:
            self.models = Models(**event["models"])
        if "system" in event:
            self.system = event["system"]
        if "keep" in event:
            del self.messages[event["keep"] :]
        if "message" in event:
            role, content = event["message"]["role"], event["message"]["content"]
            if role not in ("user", "assistant") or not isinstance(content, str):
                raise ValueError(role)
            self.messages.append(event["message"])

    def events(self) -> list[Event]:
        """Return the shortest list of events that adds up to this."""
        start: Event = {"models": self.models._asdict(), "system": self.system}
        return [start, *({"message": message} for message in self.messages)]

    @property
    def title(self) -> str:
        """The first message, on one line that any stream takes."""
        first: str = self.messages[0]["content"] if self.messages else ""
        return " ".join(first.encode(errors="replace").decode().split())

    @property
    def questions(self) -> list[str]:
        """The user's messages."""
        return [message["content"] for message in self.messages if message["role"] == "user"]

    @property
    def turns(self) -> int:
        """How many messages the user sent."""
        return len(self.questions)


@dataclass
class Transcript:
    """A conversation that continues."""

    conversation: Conversation
    path: Path | None = None  # the file to save it in, created with the first message
    problem: str | None = None  # why it is no longer saved
    _journal: Journal | None = None

    @classmethod
    def reopened(cls, path: Path) -> Transcript:
        """Continue a saved conversation. Raises MgmError, UsageError, OSError as `Journal.open`."""
        journal, events = Journal.open(path, FORMAT)
        try:
            return cls(Conversation.replayed(events, path), path, None, journal)
        except MgmError:
            journal.close()
            raise

    @property
    def question(self) -> str | None:
        """The last message if it is the user's: it waits for an answer."""
        messages = self.conversation.messages
        return messages[-1]["content"] if messages and messages[-1]["role"] == "user" else None

    @property
    def answer(self) -> Message | None:
        """The last answer."""
        messages = reversed(self.conversation.messages)
        return next((message for message in messages if message["role"] == "assistant"), None)

    @property
    def prompt(self) -> list[Message]:
        """All messages, the system prompt first, as a model takes them."""
        system = self.conversation.system
        first: list[Message] = [{"role": "system", "content": system}] if system else []
        return [*first, *self.conversation.messages]

    def ask(self, text: str) -> None:
        """Add a message of the user, in place of one that got no answer."""
        keep = len(self.conversation.messages) - (self.question is not None)
        self._record({"keep": keep, "message": {"role": "user", "content": text}})

    def answered(self, message: Message, *, again: bool = False) -> None:
        """Add a message of the model. again: in place of its last answer."""
        keep = len(self.conversation.messages) - again
        self._record({"keep": keep, "message": message})

    def undo(self) -> str | None:
        """Remove the user's last message and its answer; return the message, if there is one."""
        for at, message in reversed([*enumerate(self.conversation.messages)]):
            if message["role"] == "user":
                self._record({"keep": at})
                return message["content"]
        return None

    def instruct(self, system: str | None) -> None:
        """Set the system prompt, from the next answer on."""
        self._record({"system": system})

    def use(self, models: Models) -> None:
        """Continue with another pair."""
        self._record({"models": models._asdict()})

    def save(self, path: Path) -> None:
        """Write a copy. Raises OSError."""
        write_whole(path, encode(HEADER, *self.conversation.events()))

    def close(self) -> None:
        """Release the file."""
        if self._journal:
            self._journal.close()
            self._journal = None

    def _record(self, event: Event) -> None:
        event["at"] = datetime.now(UTC).isoformat(timespec="seconds")
        self.conversation.apply(event)
        try:
            if self._journal:
                self._journal.write(event)
            elif self.path and self.conversation.messages:
                self._journal = Journal.create(self.path, HEADER, self.conversation.events())
        except OSError as error:
            self.close()
            self.path = None
            remedy = f"{more_room(error)}set MGM_DATA_DIR to another folder"
            self.problem = f"{error.strerror}: {remedy}"


def _located(name: str) -> str:
    is_path = name not in ("demo", "auto", "none") and is_folder(name)
    return str(Path(name).expanduser().absolute()) if is_path else name


def load(path: Path) -> Conversation:
    """Read a file, which another mgm may have open. Raises MgmError, OSError."""
    return Conversation.replayed(read(path, FORMAT)[1:], path)


def counted(turns: int) -> str:
    """Return `1 turn` or `2 turns`."""
    return f"{turns} turn{'s' * (turns != 1)}"


def shortened(text: str, most: int) -> str:
    """Return a text on one line, with at most `most` characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"
