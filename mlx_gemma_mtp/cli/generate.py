"""`mgm generate`: one prompt in, its answer out; or a file of prompts in, a file of results out."""

from __future__ import annotations

import json
import secrets
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlx_gemma_mtp.cli import options
from mlx_gemma_mtp.errors import ModelNotFoundError, UsageError, VerificationError

if TYPE_CHECKING:
    from mlx_gemma_mtp import Chunk, Completion, Engine, SamplingParams
    from mlx_gemma_mtp.chat.screen import Screen
    from mlx_gemma_mtp.text.messages import Prompt

MAX_BATCH = 8
PATIENCE = 2.0  # seconds that a prompt waits for standard input without a word


@options.spread
def generate(
    pair: options.Loading,
    sampling: options.Sampling,
    text: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="The prompt [standard input].")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="The same as PROMPT.")
    ] = None,
    file: Annotated[Path | None, typer.Option(help="Read the prompt from a file.")] = None,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print answer, thought, tokens and statistics as JSON.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Generate again without drafts; exit 5 if they differ.")
    ] = False,
    batch_file: Annotated[
        Path | None, typer.Option(help='A file of requests: {"id": 1, "prompt": "..."} lines.')
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Results of --batch-file, in its order.")] = None,
    max_batch: Annotated[
        int | None, typer.Option(help=f"Requests to run at once, 1 to 8 [{MAX_BATCH}].")
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Start over, and replace the results in --out.")
    ] = False,
) -> None:
    """Answer one prompt, or a file of prompts.

    Only the answer goes to stdout. With --check, auto means 3 drafts. To continue an interrupted
    batch, run the same command again. A line of a batch file can set "system", "max_tokens",
    "temperature", "top_k", "top_p", "seed", "stop" and "thinking"; its prompt is text or messages.
    """
    if sum(one is not None for one in (text, prompt, file, batch_file)) > 1:
        raise UsageError(
            "several prompts: use only one of PROMPT, --prompt, --file and --batch-file"
        )
    prompt = prompt if text is None else text
    if batch_file is not None:
        if out is None:
            raise UsageError("--batch-file needs --out, the file for its results")
        if as_json or check:
            raise UsageError("--json and --check cannot be used with --batch-file")
        from mlx_gemma_mtp.cli import batch_run

        batch = MAX_BATCH if max_batch is None else max_batch
        batch_run.run(
            pair.chosen(), sampling, system, batch_file, out, max_batch=batch, restart=restart
        )
        return
    if out is not None or max_batch is not None or restart:
        raise UsageError("--out, --max-batch and --restart need --batch-file")
    from mlx_gemma_mtp.chat.screen import Screen, wants_raw
    from mlx_gemma_mtp.cli.engine import load_engine
    from mlx_gemma_mtp.text.messages import with_system

    asked = with_system(_prompt(prompt, file), system)
    params = _checkable(sampling.params()) if check else sampling.params()
    with load_engine(pair.chosen()) as engine:
        screen = Screen(sys.stdout.buffer, sys.stderr, raw=wants_raw())
        answer(engine, asked, params, screen, as_json, check)


def _checkable(params: SamplingParams) -> SamplingParams:
    """Return settings with drafts in every round (3 for auto), and a seed to repeat it."""
    from mlx_gemma_mtp.check import NUM_DRAFT_TOKENS
    from mlx_gemma_mtp.device import exact_products

    exact_products()
    asked = params.num_draft_tokens
    if asked == 0:
        raise UsageError("--check has nothing to compare: --num-draft-tokens must be at least 1")
    drafts = NUM_DRAFT_TOKENS if asked == "auto" else asked
    seed = secrets.randbits(32) if params.seed is None else params.seed
    return replace(params, num_draft_tokens=drafts, seed=seed)


def answer(
    engine: Engine,
    prompt: Prompt,
    params: SamplingParams,
    screen: Screen,
    as_json: bool,
    check: bool,
) -> None:
    """Print the answer to one prompt. check: raise VerificationError if drafts change it."""
    from mlx_gemma_mtp.check import difference

    if check and not engine.has_drafter:
        raise ModelNotFoundError("--check has nothing to compare without a --drafter")
    found: dict[str, Any] = {}
    if as_json:
        [done] = engine.generate(prompt, params)
        found, tokens = _to_json(done), done.tokens
    else:
        tokens = _print_answer(engine, prompt, params, screen)
    if check:
        [plain] = engine.generate(prompt, replace(params, num_draft_tokens=0))
        differs = difference(tokens, plain.tokens, engine.text)
        found["check"] = {"identical": differs is None, "tokens": len(tokens)}
        if differs:
            found["check"] |= {
                "position": differs.position,
                "before": differs.before,
                "with_drafts": asdict(differs.found),
                "without": asdict(differs.wanted),
            }
    if as_json:
        screen.raw = True
        screen.answer(json.dumps(found, ensure_ascii=False))
        screen.end_answer()
    if check and differs:
        before = json.dumps(differs.before, ensure_ascii=False)
        same = f"{differs.position} tokens match, then after {before}"
        sides = f"{differs.found} with drafts, {differs.wanted} without"
        raise VerificationError(f"output differs: {same} {sides}")
    if check:
        screen.say(f"the same {len(tokens)} tokens with drafts and without")


def _prompt(argument: str | None, file: Path | None) -> str:
    """Return the file, or the argument and what is piped in, with a blank line between them."""
    if file is not None:
        try:
            parts = [_text(file.read_bytes(), f" of {file}")]
        except OSError as error:
            raise UsageError(f"{file} cannot be read: {error.strerror}") from None
    else:
        at_terminal = sys.stdin.isatty()
        if argument is None and at_terminal:
            raise UsageError("no prompt: give one, use --file, or pipe one in")
        typed = (argument or "").encode(errors="surrogateescape")  # as it was typed
        piped = b"" if at_terminal else _piped(needed=argument is None)
        parts = [_text(typed, ""), _text(piped, " of standard input")]
    prompt = "\n\n".join(part for part in parts if part.strip())
    if not prompt:
        raise UsageError("the prompt is empty")
    return prompt


def _piped(*, needed: bool) -> bytes:
    """Return standard input. If it isn't needed and takes a while, say what is waited for."""
    waits = "mgm: waiting for the end of standard input; </dev/null leaves it out"
    notice = threading.Timer(PATIENCE, print, [waits], {"file": sys.stderr})
    notice.daemon = True
    if not needed:
        notice.start()
    try:
        return sys.stdin.buffer.read()
    finally:
        notice.cancel()


def _text(content: bytes, where: str) -> str:
    """Return a part of the prompt, without a byte-order mark and the line ends after it."""
    start = content.find(b"\0")  # which other files have, also texts in UTF-16
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        start = error.start
    if start >= 0:
        raise UsageError(f"the prompt is not UTF-8 text (byte number {start + 1}{where})")
    return text.rstrip("\r\n")


def _print_answer(
    engine: Engine, prompt: Prompt, params: SamplingParams, screen: Screen
) -> list[int]:
    """Print the answer as it arrives, and return all tokens of the completion.

    A thought is shown only at a terminal, dim, on stderr.
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
            screen.say(f"mgm: the model called the tool {chunk.tool_call.name}: see --json")
    screen.end_answer()
    if chunk and chunk.kind != "answer":
        where = "while thinking" if chunk.kind == "thought" else "in a tool call"
        screen.say(f"mgm: cut off {where}: raise --max-tokens, or see it with --json")
    return tokens


def _to_json(done: Completion) -> dict[str, Any]:
    """Return a completion with all its statistics."""
    kinds = vars(type(done.stats)).items()
    derived = {name: getattr(done.stats, name) for name, of in kinds if isinstance(of, property)}
    return asdict(done) | {"stats": asdict(done.stats) | derived}
