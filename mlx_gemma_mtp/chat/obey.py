"""What each command of a chat does.

One that cannot be obeyed raises an MgmError and changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from mlx_gemma_mtp.chat import clipboard, transcript
from mlx_gemma_mtp.chat.chat import Chat
from mlx_gemma_mtp.chat.commands import SETTINGS, Call, help_text
from mlx_gemma_mtp.chat.loading import Load, switch
from mlx_gemma_mtp.chat.transcript import Said, shortened
from mlx_gemma_mtp.decode.params import SamplingParams
from mlx_gemma_mtp.errors import UsageError

SHOWN = 60  # characters of a question
UNSET = {"seed": "a fresh one each time", "max_tokens": "the context", "stop": "none"}


class Leave(Exception):
    """The user wants to leave."""


def obey(chat: Chat, call: Call, load: Load) -> None:
    """Do what a command says. Raises Leave, MgmError."""
    if call.name == "model":
        _model(chat, call.rest, load)
    else:
        ACTIONS[call.name](chat, call.rest)


def _help(chat: Chat, rest: str) -> None:
    chat.screen.say(help_text())


def _exit(chat: Chat, rest: str) -> None:
    raise Leave


def _clear(chat: Chat, rest: str) -> None:
    said = chat.transcript.said
    chat.begin(Said(said.models, said.system))
    chat.screen.note("(a new conversation)")


def _regen(chat: Chat, rest: str) -> None:
    chat.regen()


def _undo(chat: Chat, rest: str) -> None:
    question = chat.transcript.undo()
    if question is None:
        raise UsageError("there is nothing to take back")
    chat.screen.note(f"(taken back: {shortened(question, SHOWN)})")


def _system(chat: Chat, rest: str) -> None:
    if rest:
        chat.transcript.instruct(None if rest == "none" else rest)
    chat.screen.note(f"(instructions: {chat.transcript.said.system or 'none'})")


def _think(chat: Chat, rest: str) -> None:
    if rest in ("on", "off"):
        chat.set(thinking=rest == "on")
    elif rest in ("open", "fold"):
        chat.folds = rest == "fold"
    elif rest:
        raise UsageError("/think takes on, off, open or fold")
    elif chat.transcript.answer:
        chat.screen.aside(chat.transcript.answer.get("reasoning", ""))
    on = "on" if chat.params.thinking else "off"
    how = "only counted, /think open shows" if chat.folds else "shown, /think fold hides"
    chat.screen.note(f"(thinking is {on}; thoughts are {how} them)")


def _set(chat: Chat, rest: str) -> None:
    name, value = [*rest.split(maxsplit=1), "", ""][:2]
    if name and name not in SETTINGS:
        raise UsageError(f"no setting {name!r}: there are {', '.join(SETTINGS)}")
    if value:
        chat.set(**{name: _read_setting(name, value)})
    for one in [name] if name else SETTINGS:
        now = getattr(chat.params, one)
        unset = UNSET.get(one, "the model's")
        chat.screen.note(f"{one:12} {unset if now is None or now == () else now}")


def _read_setting(name: str, value: str) -> object:
    """A value as it was typed: JSON, or a stop string as it is. Raises UsageError."""
    if value == "default":
        return getattr(SamplingParams(), name)
    if name == "stop" and value[0] not in '"[':
        return value
    try:
        found: object = json.loads(value)
    except (ValueError, RecursionError):
        raise UsageError(f"{name} cannot be {value!r}") from None
    return found


def _stats(chat: Chat, rest: str) -> None:
    if rest in ("on", "off"):
        chat.shows_stats = rest == "on"
        chat.screen.note(f"(numbers after every answer are {rest})")
    elif rest:
        raise UsageError("/stats takes on or off; alone it tells those of the last answer")
    else:
        chat.screen.note(chat.numbers())


def _mtp(chat: Chat, rest: str) -> None:
    if rest in ("off", "auto"):
        chat.set(num_draft_tokens=0 if rest == "off" else "auto")
    elif rest.isdecimal():
        if int(rest) and not chat.loaded.engine.has_drafter:
            raise UsageError("nothing was loaded to draft with: mgm chat --drafter NAME does")
        chat.set(num_draft_tokens=int(rest))
    elif rest:
        raise UsageError("/mtp takes off, auto or a number of drafts per round")
    drafts = chat.params.num_draft_tokens
    how = {"auto": "as many as pay", 0: "none"}.get(drafts, str(drafts))
    chat.screen.note(f"(drafts per round: {how})")


def _save(chat: Chat, rest: str) -> None:
    path = _path(rest, "/save")
    if path.exists():
        _read_conversation(path)  # else it is something else, and stays
    try:
        chat.transcript.save(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from None
    chat.screen.note(f"(saved to {path})")


def _load(chat: Chat, rest: str) -> None:
    said = _read_conversation(_path(rest, "/load"))
    said.models = chat.loaded.models  # who it was said to is past
    chat.begin(said)
    turns = f"{said.turns} turn{'s' * (said.turns != 1)}"
    chat.screen.note(f"(loaded: {turns}, the last one: {shortened(_last(said), SHOWN)})")


def _read(chat: Chat, rest: str) -> None:
    name, question = _name_and_text(rest)
    path = _path(name, "/read")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    chat.ask(f"{question}\n\n{text}" if question else text)


def _copy(chat: Chat, rest: str) -> None:
    if chat.transcript.answer is None:
        raise UsageError("there is no answer to copy yet")
    how = clipboard.copy(chat.transcript.answer["content"], chat.screen.stderr)
    chat.screen.note(f"({how})")


def _model(chat: Chat, rest: str, load: Load) -> None:
    if rest:
        models = chat.loaded.models._replace(model=rest, drafter="auto")
        chat.use(switch(chat.loaded, models, load, chat.screen))
    chat.screen.note(f"(the model is {chat.loaded.models.model})")


ACTIONS: dict[str, Callable[[Chat, str], None]] = {
    "help": _help,
    "exit": _exit,
    "clear": _clear,
    "regen": _regen,
    "undo": _undo,
    "system": _system,
    "think": _think,
    "set": _set,
    "stats": _stats,
    "mtp": _mtp,
    "save": _save,
    "load": _load,
    "read": _read,
    "copy": _copy,
}


def _read_conversation(path: Path) -> Said:
    try:
        return transcript.load(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None


def _path(name: str, command: str) -> Path:
    if not name:
        raise UsageError(f"{command} needs the name of a file")
    try:
        return Path(name).expanduser()
    except RuntimeError as error:  # ~nobody
        raise UsageError(f"{name}: {error}") from None


def _name_and_text(rest: str) -> tuple[str, str]:
    """A file's name and what stands behind it: the name in quotes, the whole, or the first word."""
    if rest[:1] in ('"', "'") and rest.count(rest[0]) > 1:
        name, _, text = rest[1:].partition(rest[0])
        return name, text.strip()
    if rest and _path(rest, "/read").exists():
        return rest, ""
    name, text = [*rest.split(maxsplit=1), "", ""][:2]
    return name, text


def _last(said: Said) -> str:
    questions = [message["content"] for message in said.messages if message["role"] == "user"]
    return questions[-1] if questions else ""
