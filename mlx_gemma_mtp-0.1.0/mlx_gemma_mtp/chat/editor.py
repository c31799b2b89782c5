"""The prompt at a terminal: editing, history, completion, and messages of several lines.

prompt_toolkit does the work. Knows nothing of what a message is for.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.data_structures import Size
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.output.vt100 import Vt100_Output
from prompt_toolkit.shortcuts import CompleteStyle

from mlx_gemma_mtp.chat.commands import BY_NAME, completions
from mlx_gemma_mtp.chat.terminal import MARK_PASTES, Interrupts

PROMPT = "> "
CONTINUED = "  "
BLOCK = '"""'


class Editor:
    """Asks for one message after another."""

    def __init__(self, screen: TextIO, history: Path, interrupts: Interrupts) -> None:
        """screen: the terminal. history: the file of earlier messages."""
        self._screen = screen
        self._interrupts = interrupts
        self._signal: int | None = None  # asked the process to end
        interrupts.leaver = self._leave
        # Some terminals never answer the question where the cursor is. Nothing here needs it.
        output = Vt100_Output(screen, self._size, os.environ.get("TERM"), enable_cpr=False)
        self._session: PromptSession[str] = PromptSession(
            PROMPT,
            multiline=True,
            prompt_continuation=CONTINUED,
            key_bindings=_keys(),
            history=_history(history),
            completer=_Completer(),
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,
            enable_open_in_editor=True,
            output=output,
        )

    def _leave(self, number: int) -> bool:
        """End the line that is being edited, in its event loop; return False if there is none."""
        app = self._session.app
        if not app.is_running or app.loop is None:
            return False

        def end() -> None:
            if app.is_running and not app.is_done:
                app.exit(exception=EOFError)

        self._signal = number
        app.loop.call_soon_threadsafe(end)
        return True

    def _size(self) -> Size:
        columns, rows = os.get_terminal_size(self._screen.fileno())
        return Size(rows=rows or 24, columns=columns or 80)  # some terminals say 0

    def read(self) -> str | None:
        """Return the next message, or None if the user leaves: Ctrl-D, or Ctrl-C twice."""
        warned = False
        while True:
            self._interrupts.forget()
            try:
                return unblocked(self._session.prompt())
            except EOFError:
                if self._signal is not None:
                    sys.exit(128 + self._signal)
                return None
            except KeyboardInterrupt:
                if warned:
                    return None
                warned = True
                self._screen.write("(Ctrl-C again or Ctrl-D to quit)\n")
            finally:
                self._screen.write(MARK_PASTES)
                self._screen.flush()


def unblocked(text: str) -> str:
    '''Return a message without the """ around it.'''
    inside = text.strip()
    if inside.count(BLOCK) < 2 or not (inside.startswith(BLOCK) and inside.endswith(BLOCK)):
        return text
    return inside.removeprefix(BLOCK).removesuffix(BLOCK).removeprefix("\n").removesuffix("\n")


def is_open(text: str) -> bool:
    """True if a block starts here and does not end yet."""
    return text.lstrip().startswith(BLOCK) and text.count(BLOCK) == 1


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add(Keys.Enter)
    def send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if is_open(buffer.text):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add(Keys.Escape, Keys.Enter)
    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add(Keys.ControlC)
    @keys.add(Keys.SIGINT)
    def clear(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt)

    return keys


def _history(path: Path) -> History:
    """Return earlier messages, from a file only the user can read; of this run if that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)
        with path.open("ab"):
            return _History(str(path))
    except OSError:
        return InMemoryHistory()


class _History(FileHistory):
    """A history that skips a line if the disk is full or no file can hold its characters."""

    def store_string(self, string: str) -> None:
        with suppress(OSError, UnicodeError):
            super().store_string(string)


class _Completer(Completer):
    """Completes commands, their values and file names."""

    def __init__(self) -> None:
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, event: CompleteEvent) -> Iterable[Completion]:
        text = document.text_before_cursor
        if not text.startswith("/"):
            return
        name, space, rest = text.partition(" ")
        command = BY_NAME.get(name[1:])
        if space and command and command.file:
            yield from self._paths.get_completions(Document(rest), event)
            return
        word = text.rpartition(" ")[2]
        for found in completions(text):
            yield Completion(found, start_position=-len(word))
