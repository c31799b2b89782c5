"""The prompt at a terminal: editing, history, completion, and messages of several lines.

prompt_toolkit does the work. Knows nothing of what a message is for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from prompt_toolkit import PromptSession
from prompt_toolkit.application import create_app_session, get_app
from prompt_toolkit.completion import (
    CompleteEvent,
    Completer,
    Completion,
    NestedCompleter,
    PathCompleter,
)
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.output import Output
from prompt_toolkit.output.plain_text import PlainTextOutput
from prompt_toolkit.output.vt100 import Vt100_Output
from prompt_toolkit.shortcuts import CompleteStyle

from mlx_gemma_mtp.chat.syntax import COMMANDS
from mlx_gemma_mtp.chat.terminal import MARK_PASTES, Interrupts
from mlx_gemma_mtp.show import can_draw

BLOCK = '"""'
REFRESH_SECONDS = 0.5  # until a status is seen to be over


class Editor:
    """Asks for one message after another."""

    def __init__(
        self,
        screen: TextIO,
        history: Path | None,
        interrupts: Interrupts,
        status: Callable[[], str] = str,
    ) -> None:
        """screen: the terminal. history: the file of earlier messages; None to keep none.

        status: what to show at the right of a message that is being typed, if anything.
        """
        self._screen = screen
        self._interrupts = interrupts
        self._status = status
        output: Output = PlainTextOutput(screen)
        if can_draw(screen):
            output = Vt100_Output.from_pty(screen, os.environ.get("TERM"))
            output.enable_cpr = False  # some terminals never answer where the cursor is
        if not os.environ.get("TERM"):
            os.environ["TERM"] = "dumb"  # as `can_draw` takes it; prompt_toolkit would draw
        # Not given as its output: then it would draw on a dumb terminal, too.
        with create_app_session(output=output):
            self._session: PromptSession[str] = PromptSession(
                [("bold", "> ")],
                multiline=True,
                prompt_continuation="  ",
                rprompt=self._right if can_draw(screen) else None,
                key_bindings=_keys(),
                history=_History(history) if history else InMemoryHistory(),
                completer=Commands(),
                complete_while_typing=False,
                complete_style=CompleteStyle.READLINE_LIKE,
                enable_open_in_editor=True,
                enable_suspend=True,
            )

    def read(self) -> str | None:
        """Return the next message, or None if the user leaves: Ctrl-D, or Ctrl-C twice."""
        self._screen.write("\n")
        self._screen.flush()
        warned = False
        while True:
            self._interrupts.pressed = False
            try:
                refresh = REFRESH_SECONDS if self._status() else 0
                return unblocked(self._session.prompt(refresh_interval=refresh))
            except EOFError:
                return None
            except KeyboardInterrupt:
                if warned:
                    return None
                warned = True
                self._screen.write("(Ctrl-C again or Ctrl-D to quit)\n")
            finally:
                if can_draw(self._screen):
                    self._screen.write(MARK_PASTES)
                    self._screen.flush()

    def _right(self) -> str:
        return "" if get_app().is_done else self._status()


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

    @keys.add(Keys.Vt100MouseEvent)
    @keys.add(Keys.CPRResponse)
    def ignore(event: KeyPressEvent) -> None:
        """Do nothing: a terminal was not asked for these, so they were typed or pasted."""

    return keys


class _History(FileHistory):
    """Earlier messages, in a file that only the user can read.

    If the file cannot be used, or the disk is full, they last as long as the process.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.touch(mode=0o600)

    def load_history_strings(self) -> Iterable[str]:
        with suppress(OSError):
            yield from super().load_history_strings()

    def store_string(self, string: str) -> None:
        with suppress(OSError, UnicodeError):  # a file cannot hold half a surrogate pair
            super().store_string(string)


class Commands(Completer):
    """Completes commands, their values and file names."""

    def __init__(self) -> None:
        paths = PathCompleter(expanduser=True)
        self._after_slash = NestedCompleter.from_nested_dict(
            {one.name: paths if one.file else dict.fromkeys(one.values) for one in COMMANDS}
        )

    def get_completions(self, document: Document, event: CompleteEvent) -> Iterable[Completion]:
        text = document.text_before_cursor
        if text.startswith("/"):
            yield from self._after_slash.get_completions(Document(text[1:]), event)
