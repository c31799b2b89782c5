"""`mgm chat`: lines in, streamed answers out."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from mlx_gemma_mtp.cli import options
from mlx_gemma_mtp.errors import UsageError

if TYPE_CHECKING:
    from mlx_gemma_mtp import Engine, SamplingParams
    from mlx_gemma_mtp.text import Message


def chat(
    model: options.Model = "demo",
    drafter: options.Drafter = "auto",
    system: Annotated[str | None, typer.Option(help="Instructions for the whole chat.")] = None,
    max_tokens: options.MaxTokens = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    seed: options.Seed = None,
    num_draft_tokens: options.NumDraftTokens = "auto",
    bits: options.Bits = None,
) -> None:
    """Talk to a model, a line at a time. Ctrl-C stops an answer, Ctrl-D leaves."""
    from mlx_gemma_mtp import SamplingParams

    params = SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        num_draft_tokens=options.draft_count(num_draft_tokens),
    )
    at_terminal = sys.stdin.isatty()
    if at_terminal:
        import readline  # noqa: F401 - importing it gives input() line editing

    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    with options.open_engine(model, drafter, bits) as engine:
        if at_terminal:
            print(f"{model}. Ctrl-C stops an answer, Ctrl-D leaves.", file=sys.stderr)
        while (line := _read_line(at_terminal)) is not None:
            if line.strip():
                messages.append({"role": "user", "content": line})
                try:
                    said = _answer(engine, messages, params)
                except UsageError as error:  # too long a line, say
                    if not at_terminal:
                        raise
                    print(f"mgm: {error}", file=sys.stderr)
                    messages.pop()
                else:
                    messages.append({"role": "assistant", "content": said})


def _read_line(at_terminal: bool) -> str | None:
    """The next line typed or piped in; None at its end."""
    while True:
        try:
            return input("> " if at_terminal else "")
        except EOFError:
            if at_terminal:
                print(file=sys.stderr)
            return None
        except KeyboardInterrupt:
            if not at_terminal:
                raise
            print(file=sys.stderr)  # a fresh line


def _answer(engine: Engine, messages: list[Message], params: SamplingParams) -> str:
    """Print the answer as it comes; Ctrl-C ends it, and what was said is kept."""
    said = ""
    try:
        for chunk in engine.stream(messages, params):
            said += chunk.text
            print(chunk.text, end="", flush=True)
    except KeyboardInterrupt:
        pass
    print()
    return said
