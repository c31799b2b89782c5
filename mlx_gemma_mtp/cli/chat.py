"""`mgm chat`: questions in, streamed answers out."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlx_gemma_mtp.cli import options
from mlx_gemma_mtp.errors import MgmError, UsageError

if TYPE_CHECKING:
    from mlx_gemma_mtp import Engine
    from mlx_gemma_mtp.chat.chat import Chat
    from mlx_gemma_mtp.chat.transcript import Models, Transcript


@options.spread
def chat(
    context: typer.Context,
    pair: options.Pair,
    sampling: options.Sampling,
    system: Annotated[str | None, typer.Option(help="Instructions for the whole chat.")] = None,
    go_on: Annotated[
        bool, typer.Option("--continue", "-c", help="Go on with the last conversation.")
    ] = False,
    session: Annotated[
        str | None, typer.Option(help="Go on with the conversation of this name, or begin it.")
    ] = None,
    keep_cache: Annotated[
        bool, typer.Option("--keep-cache", help="Keep what going on would have to compute anew.")
    ] = False,
    stats: Annotated[bool, typer.Option("--stats", help="Numbers after every answer.")] = False,
) -> None:
    """Talk to a model. Ctrl-C stops an answer, Ctrl-D leaves, /help tells more.

    At a terminal conversations are kept: mgm sessions lists them. Of what is piped in every line
    is a question, and nothing is kept but a conversation that is named.
    """
    from mlx_gemma_mtp.chat import store, talk
    from mlx_gemma_mtp.chat.chat import Chat
    from mlx_gemma_mtp.chat.loading import open_pair
    from mlx_gemma_mtp.chat.screen import Screen
    from mlx_gemma_mtp.chat.spinner import can_draw
    from mlx_gemma_mtp.chat.terminal import Interrupts, held

    params = sampling.params()
    if go_on and session is not None:
        raise UsageError("--continue and --session both name a conversation: give one of them")
    shown = next((one for one in (sys.stderr, sys.stdout) if can_draw(one)), None)
    editing = sys.stdin.isatty() and shown is not None
    keeps = editing or keep_cache
    named = store.last() if go_on else store.path_of(session) if session is not None else None
    transcript = _transcript(named or (store.new_path() if keeps else None), context, pair)
    if system is not None:
        transcript.instruct(system)
    screen = Screen(sys.stdout.buffer, sys.stderr)
    interrupts = Interrupts() if editing else None

    def load(models: Models) -> Engine:
        return replace(pair, **models._asdict()).load(max_batch=1)

    with ExitStack() as stack:
        loaded = open_pair(transcript.said.models, load)
        held_chat = Chat(loaded, transcript, params, screen, interrupts, keeps, stats)
        stack.callback(_leave, held_chat, keep_cache)
        cache = store.cache_of(transcript.path) if transcript.path else None
        if cache and cache.exists():
            held_chat.restore(cache)
        if shown and interrupts:
            from mlx_gemma_mtp.chat.editor import Editor
            from mlx_gemma_mtp.files.folders import history_file

            stack.enter_context(held(shown, interrupts))
            _greet(held_chat)
            talk.talk(held_chat, Editor(shown, history_file(), interrupts), load)
        else:
            talk.answer_lines(held_chat)


def _transcript(path: Path | None, context: typer.Context, pair: options.Pair) -> Transcript:
    """The conversation in this file, or a new one; with the models that the command line names."""
    from mlx_gemma_mtp.chat.transcript import Models, Said, Transcript

    models = Models(pair.model, pair.drafter, pair.bits)
    if path is None or not path.exists():
        return Transcript(Said(models), path)
    try:
        transcript = Transcript.reopened(path)
    except OSError as error:
        raise MgmError(f"{path} cannot be opened: {error.strerror}") from None
    given = {
        name: getattr(models, name)
        for name in Models._fields
        if (source := context.get_parameter_source(name)) and source.name != "DEFAULT"
    }
    before = transcript.said.models
    models = models if "model" in given else before._replace(**given)
    if models != before:
        transcript.use(models)
    return transcript


def _greet(chat: Chat) -> None:
    """Who is there, and where the conversation stands."""
    from mlx_gemma_mtp.chat.statistics import short

    said, transcript = chat.transcript.said, chat.transcript
    chat.screen.note(
        f"{chat.loaded.models.model}, {short(chat.loaded.context)} tokens of context; "
        "/help tells more, Ctrl-D leaves"
    )
    if said.messages and transcript.path:
        chat.screen.note(f"(going on with {transcript.path.stem}: {said.turns} turns)")
        if transcript.question is not None:
            chat.screen.note("(the last question has no answer: /regen asks it again)")


def _leave(chat: Chat, keep_cache: bool) -> None:
    """Keep what is to be kept, and let go of everything."""
    from mlx_gemma_mtp.chat import store

    path = chat.transcript.path
    if keep_cache and path and chat.transcript.said.messages:
        try:
            chat.session.save(store.cache_of(path))
        except (MgmError, OSError, RuntimeError) as error:
            chat.screen.say(f"mgm: the cache is not kept: {error}")
    chat.transcript.close()
    chat.loaded.engine.close()
