"""`mgm generate`: one prompt in, one text out; or a file of prompts in, a file of results out."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlx_gemma_mtp.cli import options
from mlx_gemma_mtp.errors import ModelNotFoundError, UsageError

if TYPE_CHECKING:
    from mlx_gemma_mtp import Chunk, Completion, Engine, SamplingParams
    from mlx_gemma_mtp.chat.screen import Screen
    from mlx_gemma_mtp.text.messages import Prompt

MAX_BATCH = 8


@options.spread
def generate(
    pair: options.Pair,
    sampling: options.Sampling,
    prompt: Annotated[
        str | None, typer.Argument(help="The prompt [standard input].", show_default=False)
    ] = None,
    file: Annotated[Path | None, typer.Option(help="A file that holds the prompt.")] = None,
    system: Annotated[str | None, typer.Option(help="Instructions before the prompt.")] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print text, thought, tool calls, tokens and statistics as JSON."
        ),
    ] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Also write it without drafts (auto: 3 a round here); exit 5 if the texts differ.",
        ),
    ] = False,
    batch_file: Annotated[
        Path | None,
        typer.Option(help='A file of requests, one {"id": 1, "prompt": "..."} a line.'),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where the results go, in the order of --batch-file.")
    ] = None,
    max_batch: Annotated[
        int | None, typer.Option(help=f"Requests side by side, 1 to 8 [{MAX_BATCH}].")
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin anew, and replace what --out names.")
    ] = False,
) -> None:
    """Answer one prompt, or a file of them.

    Only the answer goes to stdout. A file that was stopped goes on with the same command. A line
    of it may set "system", "max_tokens", "temperature", "top_k", "top_p", "seed", "stop" and
    "thinking"; a prompt is text or a list of messages.
    """
    if batch_file is not None:
        if prompt is not None or file is not None:
            raise UsageError("several prompts: give one, or --file, or --batch-file")
        if out is None:
            raise UsageError("--batch-file needs --out, the file for its results")
        if as_json or check:
            raise UsageError("--json and --check are for one prompt: leave --batch-file out")
        from mlx_gemma_mtp.cli import batch_run

        batch = MAX_BATCH if max_batch is None else max_batch
        batch_run.run(pair, sampling, system, batch_file, out, max_batch=batch, restart=restart)
        return
    if out is not None or max_batch is not None or restart:
        raise UsageError("--out, --max-batch and --restart belong to --batch-file")
    from mlx_gemma_mtp.chat.screen import Screen
    from mlx_gemma_mtp.cli import check as checking
    from mlx_gemma_mtp.text.messages import with_system

    asked = with_system(_prompt(prompt, file), system)
    screen = Screen(sys.stdout.buffer, sys.stderr)
    params = sampling.params()
    if check:
        checking.exact_products()
        params = checking.with_drafts(params)
    with pair.load() as engine:
        if check and not engine.has_drafter:
            raise ModelNotFoundError("--check has nothing to compare without a drafter: name one")
        if as_json:
            done = engine.generate(asked, params)[0]
            found, tokens = _to_json(done), done.tokens
        else:
            tokens = _print_answer(engine, asked, params, screen)
        verdict = checking.compare(engine, asked, params, tokens) if check else None
    if as_json:
        checked = {"check": verdict.to_json()} if verdict else {}
        screen.answer(json.dumps(found | checked, ensure_ascii=False) + "\n")
    if verdict:
        verdict.tell()


def _prompt(argument: str | None, file: Path | None) -> str:
    """The prompt out of the one place that has it, without the line ends behind it."""
    if argument is not None and file is not None:
        raise UsageError("several prompts: give one, or --file")
    if argument is not None:
        where, content = "its", argument.encode(errors="surrogateescape")  # as it was typed
    elif file is not None:
        try:
            where, content = f"{file}:", file.read_bytes()
        except OSError as error:
            raise UsageError(f"{file} cannot be read: {error.strerror}") from None
    elif sys.stdin.isatty():
        raise UsageError("no prompt: give one, or --file, or pipe one in")
    else:
        where, content = "standard input's", sys.stdin.buffer.read()
    try:
        prompt = content.decode().rstrip("\n")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"the prompt is not UTF-8 text ({where} byte number {error.start + 1})"
        ) from None
    if not prompt.strip():
        raise UsageError("the prompt is empty: give some text")
    return prompt


def _print_answer(
    engine: Engine, prompt: Prompt, params: SamplingParams, screen: Screen
) -> list[int]:
    """Print the answer as it comes; its tokens and those of all else that was said.

    A thought is shown where somebody looks on: at a terminal, dim, on standard error.
    """
    tokens: list[int] = []
    chunk: Chunk | None = None
    for chunk in engine.stream(prompt, params):
        tokens += chunk.tokens
        if chunk.kind == "answer":
            screen.answer(chunk.text)
        elif chunk.kind == "thought" and sys.stderr.isatty():
            screen.aside(chunk.text)
        if chunk.tool_call:
            screen.say(f"mgm: a call of {chunk.tool_call.name}: see --json")
    screen.answer("\n")
    if chunk and chunk.kind != "answer":
        screen.say(f"mgm: the text ended within a {chunk.kind.replace('_', ' ')}: see --json")
    return tokens


def _to_json(done: Completion) -> dict[str, Any]:
    """A completion with what its statistics come to."""
    stats = dataclasses.asdict(done.stats) | {
        "drafted": done.stats.drafted,
        "accepted": done.stats.accepted,
        "acceptance_rate": done.stats.acceptance_rate,
        "acceptance_length": done.stats.acceptance_length,
        "answer_tokens": done.stats.answer_tokens,
        "decode_tokens_per_second": done.stats.decode_tokens_per_second,
    }
    return dataclasses.asdict(done) | {"stats": stats}
