"""A conversation with a model that may call Python functions: its messages and its session.

Any thread may use it, one turn at a time. Knows nothing of how a turn goes, nor of screens.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_gemma_mtp.decode.params import SamplingParams, is_count
from mlx_gemma_mtp.engine.generation import Generation
from mlx_gemma_mtp.engine.intake import check_settings
from mlx_gemma_mtp.engine.results import Completion
from mlx_gemma_mtp.engine.runner import is_async
from mlx_gemma_mtp.engine.session import Session, checked_path
from mlx_gemma_mtp.engine.turn import Turn
from mlx_gemma_mtp.engine.worker import only_here
from mlx_gemma_mtp.errors import CheckpointError, SaveError, UsageError, one_line
from mlx_gemma_mtp.files.atomic import write_whole
from mlx_gemma_mtp.text.functions import Function, Schema
from mlx_gemma_mtp.text.messages import INSTRUCTIONS, Message, check_messages
from mlx_gemma_mtp.text.tools import declared

if TYPE_CHECKING:
    from mlx_gemma_mtp.engine.engine import Engine

log = logging.getLogger("mlx_gemma_mtp")

FORMAT = "mgm chat 1"
MAX_ROUNDS = 8


class Chat:
    """A conversation, made by `Engine.chat`: it keeps the messages and runs the model's calls.

    What a function returns, or raises, goes back to the model, for up to `max_rounds` rounds of
    calls; after them it must answer. Several calls of one round run one after another. A function
    runs on the thread that reads the turn; in an event loop, async ones run in the loop and others
    on a thread. params: the settings of turns that start from now on.
    """

    __reduce__ = only_here("a chat", "fork() copies it here, save() writes it to a file")

    def __init__(
        self,
        engine: Engine,
        messages: Sequence[Message],
        tools: Sequence[Callable[..., Any]] | None,
        params: SamplingParams | None,
        max_rounds: int,
        priority: int,
        timeout: float | None,
        session: Session,
    ) -> None:
        """Raises UsageError."""
        check_settings(params, priority, timeout)
        if not is_count(max_rounds) or max_rounds < 1:
            raise UsageError("max_rounds must be at least 1")
        self.tools: list[Schema] = declared(tools)
        tools = tools or ()
        if not all(callable(one) for one in tools):
            raise UsageError("a chat runs its tools: give Python functions, not schemas")
        made = [Function(one) for one in tools]
        self._functions = {one.name: one for one in made}
        self._has_coroutines = any(map(is_async, made))
        self.params = params
        self.max_rounds = max_rounds
        self._engine = engine
        self._given = tools
        self._messages = deepcopy([*messages])
        self._priority = priority
        self._timeout = timeout
        self._session = session
        self._busy = threading.Lock()
        self._turn: Turn | None = None

    def __repr__(self) -> str:
        busy = ", busy" if self._busy.locked() else ""
        return f"<Chat {len(self._messages)} messages{busy}>"

    @property
    def messages(self) -> list[Message]:
        """A copy of all messages, the system's first. Set it to drop old ones, or to change them.

        Setting it raises UsageError during a turn, and for anything that a model cannot be shown.
        """
        return deepcopy(self._messages)

    @messages.setter
    def messages(self, messages: Sequence[Message]) -> None:
        checked = first_messages(None, messages)
        self._claim()
        try:
            self._messages = deepcopy(checked)
        finally:
            self._release()

    def send(self, content: str | Sequence[Message]) -> Completion:
        """Add a message of the user, run what the model calls, and return its answer.

        content: text, or a list of {"type": "text", "text": …}.

        Raises UsageError if another turn is under way or the content is empty, and what
        `Engine.submit` and `Generation.result` raise. `Turn` describes what is kept then.
        """
        return _last([event.completion for event in self.stream(content)])

    async def asend(self, content: str | Sequence[Message]) -> Completion:
        """Do what `send` does in an event loop. Cancelling it keeps the answer so far."""
        return _last([event.completion async for event in self.stream(content)])

    def stream(self, content: str | Sequence[Message]) -> Turn:
        """Do what `send` does, and give the events as they come, to `for` or `async for`."""
        return Turn(self, content)

    def cancel(self) -> None:
        """End the turn that is under way, if any, as `Turn.cancel` does."""
        turn = self._turn
        if turn is not None:
            turn.cancel()

    def fork(self) -> Chat:
        """Return a copy that continues on its own. Raises UsageError during a turn."""
        self._claim()
        try:
            return Chat(
                self._engine,
                self._messages,
                self._given,
                self.params,
                self.max_rounds,
                self._priority,
                self._timeout,
                self._session.fork(),
            )
        finally:
            self._release()

    def save(self, path: str | Path) -> None:
        """Write the messages to a file, and the session next to it, with .safetensors added.

        For `Engine.chat(saved=path)`; tools and settings are given there again. Each file is
        replaced whole, and the messages do not need the session. Raises UsageError during a turn,
        and SaveError.
        """
        path = checked_path(path, "path")
        self._claim()
        try:
            written = json.dumps({"format": FORMAT, "messages": self._messages}, ensure_ascii=False)
            try:
                self._session.save(cache_of(path))
            except UsageError:  # it holds nothing
                cache_of(path).unlink(missing_ok=True)
            try:
                write_whole(path, written.encode())
            except OSError as error:
                raise SaveError(f"{path} cannot be written: {one_line(error)}") from None
        finally:
            self._release()

    async def asave(self, path: str | Path) -> None:
        """Do what `save` does without blocking the event loop."""
        await asyncio.to_thread(self.save, path)

    # What a turn needs

    def _claim(self, turn: Turn | None = None) -> None:
        """Reserve it for a turn. Raises UsageError if another one is under way."""
        if not self._busy.acquire(blocking=False):
            raise UsageError("this chat is busy: wait for its answer, or cancel() the turn")
        self._turn = turn

    def _release(self, added: Sequence[Message] = ()) -> None:
        """End the claim. added: the messages of the turn."""
        self._messages += added
        self._turn = None
        self._busy.release()

    def _submit(self, added: Sequence[Message], params: SamplingParams) -> Generation:
        """Ask the model. added: messages of the turn so far."""
        return self._engine.submit(
            [*self._messages, *added],
            params,
            session=self._session,
            tools=self.tools,
            priority=self._priority,
            timeout=self._timeout,
        )


def first_messages(
    system: str | None, messages: Sequence[Message] | None, *, replace: bool = True
) -> list[Message]:
    """Return the messages that a chat starts with. Raises UsageError.

    replace: put `system` in place of the instructions that they start with; otherwise refuse both.
    """
    if not isinstance(system, str | None):
        raise UsageError(f"system must be text, not {type(system).__name__}")
    messages = [] if messages is None else messages
    if not isinstance(messages, (list, tuple)) or messages:
        check_messages(messages)
    rest = [*messages]
    if system is not None:
        if rest and rest[0]["role"] in INSTRUCTIONS:
            if not replace:
                raise UsageError("system and messages both have instructions: give one of them")
            del rest[0]
        if system:
            rest.insert(0, {"role": "system", "content": system})
    return rest


def read_chat(path: Path) -> list[Message]:
    """Return the messages that `Chat.save` wrote. Raises UsageError, CheckpointError."""
    try:
        found = json.loads(path.read_bytes())
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise CheckpointError(f"{path} is not a saved chat of this version: start a new one")
        messages: list[Message] = found["messages"]
        if messages:
            check_messages(messages)
    except FileNotFoundError:
        raise UsageError(f"there is no saved chat {path}") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError, UsageError) as error:
        raise CheckpointError(f"{path} is not a saved chat: {one_line(error)}") from None
    return messages


def saved_session(engine: Engine, path: Path) -> Session:
    """Return the session that `Chat.save` wrote; an empty one if it does not fit this engine."""
    cache = cache_of(path)
    if cache.exists():
        try:
            return engine.session(cache)
        except CheckpointError as error:
            log.info("%s; the chat is prefilled again", error)
    return engine.session()


def cache_of(path: Path) -> Path:
    """Return the file of a chat's session."""
    return path.with_name(f"{path.name}.safetensors")


def _last(completions: Sequence[Completion | None]) -> Completion:
    (done,) = [one for one in completions if one is not None]
    return done
