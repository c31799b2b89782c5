"""A chat at a terminal: what each command does. A command that fails changes nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlx_gemma_mtp.chat import clipboard, screen, transcript
from mlx_gemma_mtp.chat.chat import Chat
from mlx_gemma_mtp.chat.editor import Editor
from mlx_gemma_mtp.chat.syntax import SETTINGS, did_you_mean, help_text, named_file, parse
from mlx_gemma_mtp.chat.transcript import Conversation, counted, shortened
from mlx_gemma_mtp.decode.params import MAX_DRAFT_TOKENS, SamplingParams
from mlx_gemma_mtp.errors import MgmError, UsageError
from mlx_gemma_mtp.files.choice import choose

SHOWN = 60  # characters of a message
UNSET = {"seed": "random each time", "max_tokens": "until the context is full", "stop": "none"}


def talk(chat: Chat, editor: Editor) -> None:
    """Chat until the user leaves. Errors are shown, and the chat continues."""
    while True:
        chat.engine.warm_up()  # while the first message to a model is typed
        if (text := editor.read()) is None:
            return
        try:
            if dragged := _dragged(text):
                _send(chat, *dragged)
            elif not take(chat, text):
                return
        except MgmError as error:
            chat.screen.say(f"mgm: {error}")


def answer_lines(chat: Chat, lines: Iterable[bytes]) -> None:
    """Take every line that is not blank, up to /exit, in UTF-8 whatever the locale says.

    Raises MgmError as commands and answers do, and UsageError for other text.
    """
    for line in lines:
        try:
            text = line.decode("utf-8-sig")  # a byte-order mark starts some files
        except UnicodeDecodeError:
            raise UsageError("the input is not UTF-8 text") from None
        if "\0" in text:
            raise UsageError("the input is not text")
        if not take(chat, text.removesuffix("\n").removesuffix("\r")):
            return


def take(chat: Chat, text: str) -> bool:
    """Run a command or answer a message; return False if it is /exit. Raises MgmError."""
    command = parse(text)
    if command and command[0] == "exit":
        return False
    if command:
        run(chat, *command)
    elif text.strip():
        chat.ask(text)
    return True


def run(chat: Chat, command: str, rest: str) -> None:
    """Run any command but /exit, with the rest of its line. Raises MgmError."""
    note = chat.screen.note
    match command:
        case "help":
            chat.screen.say(help_text(chat.screen.width))
        case "clear":
            chat.start(Conversation(chat.models, chat.transcript.conversation.system))
            note("(a new conversation)")
        case "regen":
            chat.regen()
        case "undo":
            question = chat.transcript.undo()
            if question is None:
                raise UsageError("there is no message to remove")
            note(f"(removed: {shortened(question, SHOWN)})")
        case "system":
            if rest:
                chat.transcript.instruct(None if rest == "none" else rest)
            note(f"(system prompt: {chat.transcript.conversation.system or 'none'})")
        case "think":
            _think(chat, rest)
        case "set":
            _set(chat, *rest.split(maxsplit=1))
        case "stats":
            if not rest:
                note(*chat.stats())
            elif rest in ("on", "off"):
                chat.shows_stats = rest == "on"
                note("(stats after every answer)" if chat.shows_stats else "(no stats)")
            else:
                raise UsageError("/stats takes on or off; alone it shows those of the last answer")
        case "mtp":
            _mtp(chat, rest)
        case "raw":
            if rest not in ("", "on", "off"):
                raise UsageError("/raw takes on or off; alone it switches")
            chat.screen.raw = rest == "on" if rest else not chat.screen.raw
            screen.remember_raw(chat.screen.raw)
            note("(answers as written)" if chat.screen.raw else "(answers with Markdown layout)")
        case "save":
            with _file(rest, "save") as path:
                if path.exists():
                    transcript.load(path)  # anything else is not replaced
                chat.transcript.save(path)
            note(f"(saved to {path})")
        case "load":
            with _file(rest, "load") as path:
                loaded = transcript.load(path)
            loaded.models = chat.models  # it continues with the model that is loaded
            chat.start(loaded)
            note(f"(loaded {counted(loaded.turns)})")
            chat.show_last()
        case "read":
            _read(chat, rest)
        case "copy":
            if chat.transcript.answer is None:
                raise UsageError("there is no answer to copy yet")
            note(f"({clipboard.copy(chat.transcript.answer['content'], chat.screen.stderr)})")
        case "model":
            if rest:
                _switch(chat, rest)
            note(f"(model: {chat.models.shown}; {chat.drafts})")


def _think(chat: Chat, rest: str) -> None:
    if rest in ("on", "off"):
        chat.params = replace(chat.params, thinking=rest == "on")
    elif rest in ("open", "fold"):
        chat.folds = rest == "fold"
    elif rest:
        raise UsageError("/think takes on, off, open or fold")
    elif chat.transcript.answer:
        chat.screen.aside(chat.transcript.answer.get("reasoning", ""))
    on, shown = "on" if chat.params.thinking else "off", "hidden" if chat.folds else "shown"
    chat.screen.note(f"(thinking is {on}; thoughts are {shown})")


def _switch(chat: Chat, name: str) -> None:
    """Continue with the model of this name, which may be short, such as e4b."""
    models = chat.models._replace(model=name, drafter="auto")
    if choice := choose(name):
        chat.screen.note(f"({choice})")
        models = models._replace(model=choice.name, bits=choice.bits)
    chat.switch(models)


def _set(chat: Chat, name: str = "", value: str = "") -> None:
    if name and name not in SETTINGS:
        near = did_you_mean(name, SETTINGS) or f"choose from {', '.join(SETTINGS)}"
        raise UsageError(f"no setting {name!r}: {near}")
    if value:
        chat.params = replace(chat.params, **{name: _read_setting(name, value)})
    for one in [name] if name else SETTINGS:
        now = getattr(chat.params, one)
        unset = UNSET.get(one, "the model's default")
        chat.screen.note(f"{one:12} {unset if now in (None, ()) else now}")


def _read_setting(name: str, value: str) -> Any:
    """Return a typed value: JSON, or a stop string as it is. Raises UsageError."""
    if value == "default":
        return getattr(SamplingParams(), name)
    if name == "stop" and value[0] not in '"[':
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        if name == "stop":
            raise UsageError('stop takes a text, "a text" or ["a", "list"]') from None
        return value  # which the settings refuse, and say which values they take


def _mtp(chat: Chat, rest: str) -> None:
    if rest in ("off", "auto"):
        chat.params = replace(chat.params, num_draft_tokens=0 if rest == "off" else "auto")
    elif rest.isdecimal() and int(rest) <= MAX_DRAFT_TOKENS:
        if int(rest) and not chat.engine.has_drafter:
            raise UsageError("no drafter is loaded: use mgm chat --drafter NAME")
        chat.params = replace(chat.params, num_draft_tokens=int(rest))
    elif rest:
        raise UsageError(f"/mtp takes off, auto, or 1 to {MAX_DRAFT_TOKENS}")
    drafts = f"drafts: {chat.params.num_draft_tokens or 'off'}"
    chat.screen.note(f"({drafts if chat.engine.has_drafter else chat.drafts})")


def _read(chat: Chat, rest: str) -> None:
    """Send a file, after the text that follows its name."""
    readings = list(named_file(rest))
    _send(chat, *next(filter(_names_a_file, readings), readings[-1]))


def _dragged(text: str) -> tuple[str, str] | None:
    """Return the name of a file that a message starts with, and the text after it."""
    if not re.match(r"['\"]?[/~]", text) or "\n" in text.strip():
        return None
    return next(filter(_names_a_file, named_file(text.rstrip())), None)


def _names_a_file(reading: tuple[str, str]) -> bool:
    with suppress(OSError, RuntimeError, ValueError):  # too long, ~nobody
        return Path(reading[0]).expanduser().is_file()
    return False


def _send(chat: Chat, name: str, text: str) -> None:
    with _file(name, "read") as path:
        content = path.read_text(encoding="utf-8-sig")
    if "\0" in content:
        raise UsageError(f"{name} is not text")
    lines = len(content.splitlines())
    chat.screen.note(f"(sending {path}, {lines:,} line{'s' * (lines != 1)})")
    chat.ask(f"{text.strip()}\n\n{content}" if text.strip() else content)


@contextmanager
def _file(name: str, command: str) -> Iterator[Path]:
    """Yield the path of a file. What goes wrong with it in the block raises UsageError."""
    if not name:
        raise UsageError(f"/{command} needs a file name")
    try:
        yield Path(name).expanduser()
    except UnicodeDecodeError:
        raise UsageError(f"{name} is not UTF-8 text") from None
    except OSError as error:
        raise UsageError(f"{name}: {error.strerror}") from None
    except RuntimeError as error:  # ~nobody
        raise UsageError(f"{name}: {error}") from None
