"""A chat from its first message to its last: at a terminal, or with lines from a pipe."""

from __future__ import annotations

import sys

from mlx_gemma_mtp.chat.actions import Leave, run
from mlx_gemma_mtp.chat.chat import Chat
from mlx_gemma_mtp.chat.commands import parse
from mlx_gemma_mtp.chat.editor import Editor
from mlx_gemma_mtp.chat.loading import Load
from mlx_gemma_mtp.errors import MgmError, UsageError


def talk(chat: Chat, editor: Editor, load: Load) -> None:
    """Chat until the user leaves. Errors are shown, and the chat continues."""
    while (text := editor.read()) is not None:
        try:
            if call := parse(text):
                run(chat, call, load)
            elif text.strip():
                chat.ask(text)
        except Leave:
            return
        except MgmError as error:
            chat.screen.say(f"mgm: {error}")


def answer_lines(chat: Chat) -> None:
    """Answer every line of stdin that is not blank; none of them is a command.

    They are UTF-8 whatever the locale says. Raises MgmError for the first that cannot be answered.
    """
    for line in sys.stdin.buffer:
        try:
            text = line.decode()
        except UnicodeDecodeError:
            raise UsageError("the input is not UTF-8 text") from None
        if text.strip():
            chat.ask(text.removesuffix("\n").removesuffix("\r"))
