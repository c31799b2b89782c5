"""The options that commands share: which models, and how to sample.

A command takes them as one parameter, `pair: options.Pair`, under the decorator `spread`.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_type_hints

import typer

from mlx_gemma_mtp.errors import UsageError

if TYPE_CHECKING:
    from mlx_gemma_mtp import Engine, SamplingParams

T = TypeVar("T")

INTERRUPTED = 130  # what a shell makes of Ctrl-C


@dataclass(frozen=True)
class Pair:
    """Which models."""

    model: Annotated[
        str, typer.Option(help="A folder, a Hub name, or demo: the pair that comes with mgm.")
    ] = "demo"
    drafter: Annotated[
        str,
        typer.Option(help="A folder or Hub name; auto: <model>-assistant if there is one; none."),
    ] = "auto"
    bits: Annotated[int | None, typer.Option(help="Quantize to 4 or 8 bits while loading.")] = None
    force: Annotated[
        bool, typer.Option("--force", help="Load it also where it seems too large for the memory.")
    ] = False

    def load(self, *, max_batch: int = 8) -> Engine:
        """Load it, downloaded first if need be; says so where there is nothing to draft with."""
        from mlx_gemma_mtp import load
        from mlx_gemma_mtp.chat.spinner import Spinner
        from mlx_gemma_mtp.cli.pull import fetch_missing

        fetch_missing(self.model, self.drafter)
        with Spinner(f"loading {self.model}", sys.stderr):
            engine = load(
                self.model,
                beside(self.drafter),
                bits=self.bits,
                max_batch=max_batch,
                force=self.force,
            )
        if self.drafter == "auto" and not engine.has_drafter:
            print(
                f"{self.model}: no drafter beside it or in the cache, decoding plainly; "
                "--drafter names one, and downloads it if need be",
                file=sys.stderr,
            )
        return engine


@dataclass(frozen=True)
class Sampling:
    """How to sample."""

    max_tokens: Annotated[
        int | None, typer.Option(help="Most tokens to generate [the context].")
    ] = None
    temperature: Annotated[float | None, typer.Option(help="0 is greedy [the model's].")] = None
    top_k: Annotated[int | None, typer.Option(help="0 is off [the model's].")] = None
    top_p: Annotated[float | None, typer.Option(help="1 is off [the model's].")] = None
    seed: Annotated[int | None, typer.Option(help="Same seed, same text [a fresh one].")] = None
    stop: Annotated[list[str] | None, typer.Option(help="Ends the text; repeatable.")] = None
    think: Annotated[bool, typer.Option("--think", help="Have it think before it answers.")] = False
    num_draft_tokens: Annotated[
        str, typer.Option(help="Drafts per round: auto, or 0 (plain) to 15.")
    ] = "auto"

    def params(self) -> SamplingParams:
        """The settings as an engine takes them. Raises UsageError."""
        from mlx_gemma_mtp import SamplingParams

        return SamplingParams(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            seed=self.seed,
            stop=self.stop or (),
            num_draft_tokens=draft_count(self.num_draft_tokens),
            thinking=self.think,
        )


def beside(drafter: str) -> str | None:
    """--drafter as `load` takes it."""
    return None if drafter == "none" else drafter


def interruption(line: str) -> str:
    """What to say on stderr, on a line of its own where a terminal shows ^C."""
    fresh_line = "\n" if sys.stderr.isatty() else ""
    return f"{fresh_line}mgm: {line}"


def draft_count(num_draft_tokens: str) -> int | Literal["auto"]:
    """--num-draft-tokens as SamplingParams takes it. Raises UsageError."""
    if num_draft_tokens == "auto":
        return "auto"
    if not num_draft_tokens.isdecimal():
        raise UsageError(f'--num-draft-tokens must be "auto" or a number, not {num_draft_tokens!r}')
    return int(num_draft_tokens)


def listed(name: str, given: str, read: Callable[[str], T]) -> list[T]:
    """The parts of a list as it is typed. Raises UsageError."""
    try:
        return [read(part.strip()) for part in given.split(",")]
    except ValueError:
        raise UsageError(f"{name} takes a list with commas, not {given!r}") from None


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option for every field of its parameters that are dataclasses.

    typer makes options of what a signature holds: here is one in which those stand one by one.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name not in groups:
            parameters.append(
                parameter.replace(kind=parameter.KEYWORD_ONLY, annotation=hints[name])
            )
            continue
        of_fields = get_type_hints(groups[name], include_extras=True)
        parameters += [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=of_fields[field.name],
            )
            for field in fields(groups[name])
        ]

    @functools.wraps(command)
    def with_options(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in fields(group)})
        command(**given)

    with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_options.__annotations__ = {one.name: one.annotation for one in parameters}
    return with_options
