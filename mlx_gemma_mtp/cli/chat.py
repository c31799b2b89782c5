"""`mgm chat`: messages in, streamed answers out."""

from __future__ import annotations

import sys
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlx_gemma_mtp.cli import complete, options
from mlx_gemma_mtp.errors import MgmError, UsageError

if TYPE_CHECKING:
    from mlx_gemma_mtp import Engine
    from mlx_gemma_mtp.chat.chat import Chat
    from mlx_gemma_mtp.chat.transcript import Models, Transcript

DEMO = (
    "calculates with small numbers, counts, sorts, spells, converts units, "
    "makes small talk and tells three stories"
)
TRY = "What is 17 + 25?"  # the demo knows the answer


@options.spread
def chat(
    context: typer.Context,
    pair: options.Loading,
    sampling: options.Sampling,
    model_name: options.ModelName = None,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    resume: Annotated[
        bool, typer.Option("--continue", "-c", help="Resume the last conversation.")
    ] = False,
    session: Annotated[
        str | None,
        typer.Option(
            help="Resume the conversation of this name, or start it.",
            autocompletion=complete.sessions,
        ),
    ] = None,
    keep_cache: Annotated[
        bool, typer.Option("--keep-cache", help="Save the KV cache on exit; resuming is instant.")
    ] = False,
    no_keep: Annotated[
        bool, typer.Option("--no-keep", help="Save neither the conversation nor what is typed.")
    ] = False,
    raw: Annotated[
        bool, typer.Option("--raw", help="Show answers as written, without Markdown layout.")
    ] = False,
    stats: Annotated[bool, typer.Option("--stats", help="Statistics after every answer.")] = False,
) -> None:
    """Chat with a model. Ctrl-C stops an answer, Ctrl-D quits, /help lists commands.

    At a terminal, conversations are saved; mgm sessions lists them. Piped input: each line is one
    message or a /command, and the chat is saved only with --session NAME.
    """
    from mlx_gemma_mtp.chat import store
    from mlx_gemma_mtp.chat.chat import Chat
    from mlx_gemma_mtp.chat.commands import answer_lines, talk
    from mlx_gemma_mtp.chat.screen import Screen, wants_raw
    from mlx_gemma_mtp.chat.terminal import Interrupts, held, unechoed
    from mlx_gemma_mtp.cli.engine import load_engine
    from mlx_gemma_mtp.files import folders

    params = sampling.params()
    if resume and session is not None:
        raise UsageError("use only one of --continue and --session")
    if no_keep and (resume or session is not None or keep_cache):
        raise UsageError(
            "--no-keep starts a conversation: use it without the options that keep one"
        )
    shown = next((one for one in (sys.stderr, sys.stdout) if one.isatty()), None)
    editing = sys.stdin.isatty() and shown is not None
    keeps = (editing and not no_keep) or keep_cache
    named = store.last() if resume else None if session is None else store.path_of(session)
    given = options.given(context)
    pair = options.with_model(pair, model_name, given)
    screen = Screen(sys.stdout.buffer, sys.stderr, raw=raw or wants_raw())
    interrupts = Interrupts() if editing else None

    def load(models: Models) -> Engine:
        within = unechoed(sys.stdin) if editing else None
        return load_engine(replace(pair, **models._asdict()), max_batch=1, within=within)

    with ExitStack() as stack:
        path = named or (store.new_path() if keeps else None)
        transcript, models = _transcript(stack, path, given, pair.chosen())
        here = Chat(load, transcript, params, screen, interrupts, keeps, stats, wanted=models)
        stack.callback(_leave, here, keep_cache)
        if system is not None:
            transcript.instruct(system)
        cache = store.cache_of(transcript.path) if transcript.path else None
        if cache and cache.exists():
            here.restore(cache)
        if shown and interrupts:
            from mlx_gemma_mtp.chat.editor import Editor

            stack.callback(_say_how_to_continue, here)
            stack.enter_context(held(shown, interrupts, screen.resumed))
            _greet(here)
            history = None if no_keep else folders.history_file()
            talk(here, Editor(shown, history, interrupts, partial(_status, here)))
        else:
            answer_lines(here, sys.stdin.buffer)


def _transcript(
    stack: ExitStack, path: Path | None, given: set[str], pair: options.Loading
) -> tuple[Transcript, Models]:
    """Return the conversation in this file, or a new one, and the models to continue it with.

    stack: closes it. Raises ModelNotFoundError if these are folders that are gone.
    """
    from mlx_gemma_mtp.chat.transcript import Conversation, Models, Transcript

    models = Models(pair.model, pair.drafter, pair.bits).located()
    if path is None or not path.exists():
        return Transcript(Conversation(models), path), models
    try:
        transcript = stack.enter_context(closing(Transcript.reopened(path)))
    except OSError as error:
        raise MgmError(f"{path} cannot be opened: {error.strerror}") from None
    if "model" not in given:
        own = {name: getattr(models, name) for name in Models._fields if name in given}
        before = transcript.conversation.models
        before.check_folders(replaced=own)
        models = before._replace(**own)
    return transcript, models


def _greet(chat: Chat) -> None:
    """Print the model, and where the conversation is."""
    from rich.filesize import decimal

    from mlx_gemma_mtp import device
    from mlx_gemma_mtp.chat.transcript import counted
    from mlx_gemma_mtp.files.published import best_fit

    transcript, note = chat.transcript, chat.screen.note
    context = f"{chat.context:,}-token context"
    note(chat.models.shown, chat.drafts, context, "/help for commands", "Ctrl-D to quit")
    if transcript.conversation.messages and transcript.path:
        note(f"(continuing {transcript.path.stem}: {counted(transcript.conversation.turns)})")
        chat.show_last()
        if transcript.question is not None:
            note("(the last message has no answer: /regen answers it)")
    elif chat.models.model == "demo":
        note(f"The demo is a toy: it {DEMO}.", f"Try: {TRY}")
        size, bits = best_fit(usable := device.usable())
        if (needs := size.needs(bits)) <= usable:
            fits = f"{bits} bits, {decimal(needs)} of memory: it fits this machine"
            note(f"For real answers: mgm chat {size.short}", fits)


def _status(chat: Chat) -> str:
    """Return what the engine does while a message is typed."""
    return "warming up" if chat.engine.warming else ""


def _say_how_to_continue(chat: Chat) -> None:
    """Print how to come back to this conversation."""
    path = chat.transcript.path
    if path and chat.transcript.conversation.messages:
        with suppress(OSError):  # the terminal may be gone
            chat.screen.note("to continue: mgm chat -c", f"later: mgm chat --session {path.stem}")


def _leave(chat: Chat, keep_cache: bool) -> None:
    """Save the cache if asked for, and release everything."""
    from mlx_gemma_mtp.chat import store

    path = chat.transcript.path
    if keep_cache and path and chat.transcript.conversation.messages:
        try:
            chat.session.save(store.cache_of(path))
        except MgmError as error:
            chat.screen.say(f"mgm: the KV cache is not saved: {error}")
    chat.transcript.close()
    chat.engine.close()
