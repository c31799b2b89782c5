"""The options that commands share: which models, and how to sample.

A command takes them as one parameter, `pair: options.Pair`, under the decorator `spread`.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar, get_type_hints

import typer

from mlx_gemma_mtp.cli import complete
from mlx_gemma_mtp.errors import UsageError

if TYPE_CHECKING:
    from mlx_gemma_mtp import SamplingParams

T = TypeVar("T")
L = TypeVar("L", bound="Loading")

SIZES = "A size (e2b, e4b, 12b, 26b, 31b)"  # the start of help texts

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help=f"{SIZES}, a folder, a Hub name, or demo.",
        autocompletion=complete.models,
    ),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Download a missing model without asking.")]
Exact = Annotated[
    Literal["auto", "on", "off"],
    typer.Option(
        metavar="<str>",
        help="The same bits with and without drafts: on, off, or auto (if it costs little).",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def default_model() -> str:
    """Return the model of a command that names none."""
    return os.environ.get("MGM_MODEL") or "demo"


ModelName = Annotated[
    str | None,
    typer.Argument(metavar="MODEL", help="The same as --model.", autocompletion=complete.models),
]


@dataclass(frozen=True)
class Pair:
    """Which models."""

    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            help=f"{SIZES}, a folder or a Hub name [MGM_MODEL, or demo].",
            default_factory=default_model,
            show_default=False,
            autocompletion=complete.models,
        ),
    ] = field(default_factory=default_model)
    drafter: Annotated[
        str,
        typer.Option(
            help="A size, folder or Hub name, none, or auto: one on this disk that fits.",
            autocompletion=complete.drafters,
        ),
    ] = "auto"
    bits: Annotated[int | None, typer.Option(help="Quantize to 4 or 8 bits while loading.")] = None
    force: Annotated[
        bool, typer.Option("--force", help="Load even if it may not fit in memory.")
    ] = False
    yes: Yes = False

    def chosen(self) -> Self:
        """Return it with the checkpoint that a short name means here; say on stderr which."""
        from mlx_gemma_mtp.files.choice import choose
        from mlx_gemma_mtp.show import say

        choice = choose(self.model, bits=self.bits)
        if choice is None:
            return self
        say(str(choice))
        return replace(self, model=choice.name, bits=choice.bits)


def as_exact(chosen: Exact) -> bool | Literal["auto"]:
    """Return --exact as `load` takes it."""
    return "auto" if chosen == "auto" else chosen == "on"


@dataclass(frozen=True)
class Loading(Pair):
    """Which models, and how they decode."""

    exact: Exact = "auto"
    copies: Annotated[
        bool,
        typer.Option("--copies/--no-copies", help="Draft from the prompt and the answer as well."),
    ] = True


@dataclass(frozen=True)
class Sampling:
    """How to sample."""

    max_tokens: Annotated[
        int | None, typer.Option(help="Maximum tokens to generate [until the context is full].")
    ] = None
    temperature: Annotated[float | None, typer.Option(help="0: greedy [model's default].")] = None
    top_k: Annotated[int | None, typer.Option(help="0: off [model's default].")] = None
    top_p: Annotated[float | None, typer.Option(help="1: off [model's default].")] = None
    seed: Annotated[int | None, typer.Option(help="Same seed, same output [random].")] = None
    stop: Annotated[
        list[str] | None, typer.Option(metavar="<str>", help="Stop at this text; repeatable.")
    ] = None
    think: Annotated[bool, typer.Option("--think", help="Let the model think first.")] = False
    num_draft_tokens: Annotated[
        str, typer.Option(help="Draft tokens per round: auto, or 0 (off) to 15.")
    ] = "auto"

    def params(self) -> SamplingParams:
        """Return the settings as an engine takes them. Raises UsageError."""
        from mlx_gemma_mtp import SamplingParams

        given = asdict(self) | {"stop": self.stop or ()}
        given["thinking"], drafts = given.pop("think"), self.num_draft_tokens
        if drafts.isdecimal():
            given["num_draft_tokens"] = int(drafts)
        elif drafts != "auto":
            raise UsageError(f"--num-draft-tokens must be auto or a number, not {drafts!r}")
        try:
            return SamplingParams(**given)
        except UsageError as error:  # it starts with the setting: name the option instead
            name, _, wrong = str(error).partition(" ")
            raise UsageError(f"--{name.replace('_', '-')} {wrong}") from None


def with_model(pair: L, name: str | None, given: set[str]) -> L:
    """Return the pair with the model that a command's first argument names, if it does.

    given: see `given`. Raises UsageError if --model names one, too.
    """
    if name is None:
        return pair
    if "model" in given:
        raise UsageError("two models are given: leave --model out")
    given.add("model")
    return replace(pair, model=name)


def given(context: typer.Context) -> set[str]:
    """Return the names of the parameters that the command line gives."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source and source.name != "DEFAULT"}


def original(model: str) -> str:
    """Return the unquantized checkpoint that a short name means; say on stderr which."""
    from mlx_gemma_mtp.files.names import is_folder
    from mlx_gemma_mtp.files.published import size_of
    from mlx_gemma_mtp.show import say

    size = None if is_folder(model) else size_of(model)
    if size is None:
        return model
    say(f"{model}: {size.original}")
    return size.original


def named_drafter(drafter: str) -> str | None:
    """Return --drafter as `load` takes it. Raises ModelNotFoundError."""
    from mlx_gemma_mtp.files.names import drafter_called

    found = drafter_called(drafter)
    return None if found is None or found == "none" else str(found)


def interruption(line: str) -> str:
    """Return what to print on stderr: on a line of its own if a terminal shows ^C."""
    fresh_line = "\n" if sys.stderr.isatty() else ""
    return f"{fresh_line}mgm: {line}"


def listed(
    name: str, given: str, read: Callable[[str], T], allowed: Callable[[T], bool], what: str
) -> list[T]:
    """Return the items of a comma-separated list. what: those allowed. Raises UsageError."""
    try:
        found = [read(part.strip()) for part in given.split(",")]
        if all(map(allowed, found)):
            return found
    except ValueError:
        pass
    raise UsageError(f"{name} takes {what}, separated by commas, not {given!r}")


def batches(given: str) -> list[int]:
    """Return the different batch sizes of --batch. Raises UsageError."""
    from mlx_gemma_mtp.engine.rows import SIZES

    allowed = ", ".join(map(str, SIZES))
    return list(dict.fromkeys(listed("--batch", given, int, SIZES.__contains__, allowed)))


def chances(given: str) -> list[float]:
    """Return the chances of --accept by position. Raises UsageError."""
    return listed("--accept", given, float, lambda one: 0 <= one <= 1, "chances from 0 to 1")


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one option for each field of its dataclass parameters.

    typer makes options from a signature: this one has the fields in place of the dataclasses.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    options: list[tuple[str, Any, Any]] = []  # name, default, annotation
    for name, parameter in inspect.signature(command).parameters.items():
        if name in groups:
            of_fields = get_type_hints(groups[name], include_extras=True)
            for one in fields(groups[name]):
                # typer.Option then has the default_factory.
                default = parameter.empty if one.default is MISSING else one.default
                options.append((one.name, default, of_fields[one.name]))
        else:
            options.append((name, parameter.default, hints[name]))
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter(name, keyword, default=default, annotation=annotation)
        for name, default, annotation in options
    ]

    @functools.wraps(command)
    def with_options(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in fields(group)})
        command(**given)

    with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_options.__annotations__ = {one.name: one.annotation for one in parameters}
    return with_options
