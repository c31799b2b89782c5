"""What each command of a chat does. A command that fails raises an MgmError and changes nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlx_gemma_mtp.chat import clipboard, transcript
from mlx_gemma_mtp.chat.chat import Chat
from mlx_gemma_mtp.chat.commands import SETTINGS, Call, did_you_mean, help_text
from mlx_gemma_mtp.chat.loading import Load, switch
from mlx_gemma_mtp.chat.transcript import Conversation, shortened
from mlx_gemma_mtp.decode.params import MAX_DRAFT_TOKENS, SamplingParams
from mlx_gemma_mtp.errors import UsageError

SHOWN = 60  # characters of a message
UNSET = {
    "seed": "a random one each time",
    "max_tokens": "until the context is full",
    "stop": "none",
}


class Leave(Exception):
    """The user wants to leave."""


def run(chat: Chat, call: Call, load: Load) -> None:
    """Run a command. Raises Leave, MgmError."""
    rest, note = call.rest, chat.screen.note
    match call.name:
        case "help":
            chat.screen.say(help_text())
        case "exit":
            raise Leave
        case "clear":
            before = chat.transcript.conversation
            chat.start(Conversation(before.models, before.system))
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
            if rest in ("on", "off"):
                chat.shows_stats = rest == "on"
                note("(stats after every answer)" if chat.shows_stats else "(no stats)")
            elif rest:
                raise UsageError("/stats takes on or off; alone it shows those of the last answer")
            else:
                note(chat.stats_line())
        case "mtp":
            _mtp(chat, rest)
        case "save":
            path = _path(rest, "/save")
            if path.exists():
                _read_conversation(path)  # anything else is not replaced
            try:
                chat.transcript.save(path)
            except OSError as error:
                raise UsageError(f"{path} cannot be written: {error.strerror}") from None
            note(f"(saved to {path})")
        case "load":
            loaded = _read_conversation(_path(rest, "/load"))
            loaded.models = chat.loaded.models  # it continues with the model that is loaded
            chat.start(loaded)
            turns = f"{loaded.turns} turn{'s' * (loaded.turns != 1)}"
            last = shortened(loaded.questions[-1], SHOWN) if loaded.questions else ""
            note(f"(loaded {turns}, last message: {last})")
        case "read":
            _read(chat, rest)
        case "copy":
            if chat.transcript.answer is None:
                raise UsageError("there is no answer to copy yet")
            how = clipboard.copy(chat.transcript.answer["content"], chat.screen.stderr)
            note(f"({how})")
        case "model":
            if rest:
                models = chat.loaded.models._replace(model=rest, drafter="auto")
                chat.use(switch(chat.loaded, models, load, chat.screen))
            note(f"(model: {chat.loaded.models.model})")


def _think(chat: Chat, rest: str) -> None:
    if rest not in ("", "on", "off", "open", "fold"):
        raise UsageError("/think takes on, off, open or fold")
    if rest in ("on", "off"):
        chat.params = replace(chat.params, thinking=rest == "on")
        chat.screen.note(f"(thinking is {rest})")
    elif rest:
        chat.folds = rest == "fold"
        chat.screen.note("(thoughts are hidden)" if chat.folds else "(thoughts are shown)")
    else:
        if chat.transcript.answer:
            chat.screen.aside(chat.transcript.answer.get("reasoning", ""))
        on = "on" if chat.params.thinking else "off"
        chat.screen.note(f"(thinking is {on}; thoughts are {'hidden' if chat.folds else 'shown'})")


def _set(chat: Chat, name: str = "", value: str = "") -> None:
    if name and name not in SETTINGS:
        near = did_you_mean(name, SETTINGS) or f"choose from {', '.join(SETTINGS)}"
        raise UsageError(f"no setting {name!r}: {near}")
    if value:
        chat.params = replace(chat.params, **{name: _read_setting(name, value)})
    for one in [name] if name else SETTINGS:
        now = getattr(chat.params, one)
        unset = UNSET.get(one, "the model's default")
        chat.screen.note(f"{one:12} {unset if now is None or now == () else now}")


def _read_setting(name: str, value: str) -> Any:
    """Return a typed value: JSON, or a stop string as it is. Raises UsageError."""
    if value == "default":
        return getattr(SamplingParams(), name)
    if name == "stop" and value[0] not in '"[':
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise UsageError(f"{name} cannot be {value!r}") from None


def _mtp(chat: Chat, rest: str) -> None:
    if rest in ("off", "auto"):
        chat.params = replace(chat.params, num_draft_tokens=0 if rest == "off" else "auto")
    elif rest.isdecimal() and int(rest) <= MAX_DRAFT_TOKENS:
        if int(rest) and not chat.loaded.engine.has_drafter:
            raise UsageError("no drafter is loaded: use mgm chat --drafter NAME")
        chat.params = replace(chat.params, num_draft_tokens=int(rest))
    elif rest:
        raise UsageError(f"/mtp takes off, auto, or 1 to {MAX_DRAFT_TOKENS}")
    chat.screen.note(f"(drafts: {chat.params.num_draft_tokens or 'off'})")


def _read(chat: Chat, rest: str) -> None:
    """Send a file, after the text that follows its name.

    The name is in quotes, or it is the whole argument, or its first word.
    """
    if rest[:1] in ('"', "'") and rest.count(rest[0]) > 1:
        name, _, text = rest[1:].partition(rest[0])
    elif rest and _path(rest, "/read").exists():
        name, text = rest, ""
    else:
        name, text = [*rest.split(maxsplit=1), "", ""][:2]
    path = _path(name, "/read")
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    chat.ask(f"{text.strip()}\n\n{content}" if text.strip() else content)


def _read_conversation(path: Path) -> Conversation:
    try:
        return transcript.load(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None


def _path(name: str, command: str) -> Path:
    if not name:
        raise UsageError(f"{command} needs a file name")
    try:
        return Path(name).expanduser()
    except RuntimeError as error:  # ~nobody
        raise UsageError(f"{name}: {error}") from None
