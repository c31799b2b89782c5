"""What `mgm bench` is asked to measure: its options, read into a plan, a pair and prompts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from mlx_gemma_mtp.cli import options
from mlx_gemma_mtp.errors import UsageError

if TYPE_CHECKING:
    from mlx_gemma_mtp.bench.plan import Plan
    from mlx_gemma_mtp.bench.record import Drafts
    from mlx_gemma_mtp.bench.subject import Opened
    from mlx_gemma_mtp.bench.workload import Workload
    from mlx_gemma_mtp.text.messages import Message

T = TypeVar("T")

# Of the demo's own exercises, those with answers that are long enough to be timed.
DEMO_TASKS = ("stories", "counting", "json")
DEMO_EXAMPLES = 600  # of all exercises, from which those are taken

# What is timed, and what is compared by --check, unless asked for: batches, tokens of every row.
# On a CPU less, for its passes take nearly as long as they have tokens.
TIMED, TIMED_ON_CPU = ("1,2,4,8", 64), ("1,4", 12)
COMPARED, COMPARED_ON_CPU = ("1,2,4,8", 128), ("1,2,4,8", 32)


@dataclass(frozen=True)
class Asked:
    """What to measure."""

    tasks: Annotated[
        str | None,
        typer.Option(help="Of chat, code, summarise, extract, ...; `list` names them [all]."),
    ] = None
    batch: Annotated[
        str | None, typer.Option(help="Texts side by side [1,2,4,8; timed on a CPU 1,4].")
    ] = None
    drafts: Annotated[str, typer.Option(help="Draft tokens per round.")] = "0,1,2,3,5,auto"
    prompt_tokens: Annotated[
        str | None, typer.Option(help="Tokens of each row's prompt [mixed, up to 1,000].")
    ] = None
    depth: Annotated[int, typer.Option(help="Tokens of conversation before the prompt.")] = 0
    max_tokens: Annotated[
        int | None,
        typer.Option(
            help="Tokens of every row: timed [64; on a CPU 12], with --check [128; on a CPU 32]."
        ),
    ] = None
    repeat: Annotated[int, typer.Option(help="Turns: median, lowest and highest are told.")] = 5
    delay: Annotated[float, typer.Option(help="Seconds to rest between two windows.")] = 0.0
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0
    peer: Annotated[
        list[str] | None, typer.Option(help="Also mlx-lm or mlx-vlm, in turns; repeatable.")
    ] = None
    peer_drafts: Annotated[
        str | None, typer.Option(help="Draft tokens of a peer that drafts [0,3].")
    ] = None
    synthetic: Annotated[
        str | None, typer.Option(help="Random weights of this size: E2B, E4B, 12B, 26B-A4B, 31B.")
    ] = None
    accept: Annotated[
        str | None,
        typer.Option(help="Their drawn accepts: the chance of each draft, by position [0.8]."),
    ] = None
    overlap: Annotated[
        int, typer.Option(help="Experts that a row's tokens share in a round, with --synthetic.")
    ] = 0
    slow_draft: Annotated[int, typer.Option(hidden=True)] = 1  # each draft step so many times


def plan(pair: options.Pair, asked: Asked, *, check: bool = False) -> Plan:
    """What to measure, or to compare. Raises UsageError for what cannot be, before any loading."""
    import mlx.core as mx

    from mlx_gemma_mtp.bench.mlx_vlm_pair import need_mlx_vlm
    from mlx_gemma_mtp.bench.plan import Plan
    from mlx_gemma_mtp.bench.subject import PEERS
    from mlx_gemma_mtp.decode.params import SamplingParams
    from mlx_gemma_mtp.engine.batch import SIZES

    on_gpu, on_cpu = (COMPARED, COMPARED_ON_CPU) if check else (TIMED, TIMED_ON_CPU)
    batch, tokens = on_cpu if mx.default_device() == mx.Device(mx.cpu) else on_gpu
    batches = _distinct(_numbers("--batch", batch if asked.batch is None else asked.batch))
    if not set(batches) <= set(SIZES):
        sizes = ", ".join(map(str, SIZES))
        raise UsageError(f"--batch takes {sizes}: other sizes run as the next larger of these")
    for peer in asked.peer or []:
        if peer not in PEERS:
            raise UsageError(f"--peer is one of {', '.join(PEERS)}, not {peer!r}")
        if peer == "mlx-vlm":
            need_mlx_vlm()
    tokens = tokens if asked.max_tokens is None else asked.max_tokens
    at_least = {
        "--max-tokens": (tokens, 1),
        "--repeat": (asked.repeat, 1),
        "--delay": (asked.delay, 0),
        "--depth": (asked.depth, 0),
        "--overlap": (asked.overlap, 0),
        "--slow-draft": (asked.slow_draft, 1),
    }
    for name, (value, least) in at_least.items():
        if not least <= value < math.inf:  # nan is not, either
            raise UsageError(f"{name} takes numbers from {least} on, not {value}")
    SamplingParams(temperature=asked.temperature)  # raises what is wrong with it
    if asked.peer and asked.temperature:
        raise UsageError("--peer decodes greedily: leave --temperature out")
    if asked.synthetic is None and (asked.overlap or asked.accept is not None):
        raise UsageError("--overlap and --accept are about random weights: add --synthetic")
    if asked.overlap and asked.peer:
        raise UsageError("--overlap changes our routing, not a peer's: leave one of them out")
    if asked.peer_drafts is not None and "mlx-vlm" not in (asked.peer or []):
        raise UsageError("--peer-drafts is about a peer that drafts: add --peer mlx-vlm")
    peer_drafts = "0,3" if asked.peer_drafts is None else asked.peer_drafts
    drafts = _distinct(options.listed("--drafts", asked.drafts, _drafts))
    if pair.drafter == "none" and asked.drafts != Asked.drafts and drafts != [0]:
        raise UsageError(f"--drafts {asked.drafts} needs a drafter: leave --drafter none out")
    _tasks(pair, asked)
    _lengths(asked)
    return Plan(
        batches=batches,
        drafts=drafts,
        peer_drafts=_distinct(_numbers("--peer-drafts", peer_drafts)),
        tokens=tokens,
        repeat=asked.repeat,
        delay=asked.delay,
        temperature=asked.temperature,
        # Peers go on where a text ends, and so does ours beside them.
        endless=bool(asked.synthetic or asked.peer),
    )


def _tasks(pair: options.Pair, asked: Asked) -> tuple[str, ...]:
    from mlx_gemma_mtp.bench.tasks import TASKS

    if asked.synthetic is not None:
        if asked.tasks is not None or asked.depth:
            raise UsageError("--synthetic has neither texts nor tasks: no --tasks, no --depth")
        return ()
    is_demo = pair.model == "demo"
    if is_demo and (asked.prompt_tokens or asked.depth):
        raise UsageError("the demo's prompts are as they are: no --prompt-tokens, no --depth")
    known = DEMO_TASKS if is_demo else TASKS
    if asked.tasks is None:
        return tuple(known)
    chosen = tuple(_distinct(options.listed("--tasks", asked.tasks, str)))
    for task in chosen:
        if task not in known:
            raise UsageError(f"--tasks takes {', '.join(known)}; not {task!r}")
    return chosen


def _lengths(asked: Asked) -> list[int]:
    from mlx_gemma_mtp.bench.tasks import LENGTHS
    from mlx_gemma_mtp.bench.workload import RANDOM_LENGTHS

    if asked.prompt_tokens is not None:
        return _numbers("--prompt-tokens", asked.prompt_tokens, least=1)
    return list(LENGTHS if asked.synthetic is None else RANDOM_LENGTHS)


def open_subject(
    pair: options.Pair, asked: Asked, plan: Plan, tell: Callable[[str], None]
) -> Opened:
    """The pair to measure; where it is drawn, tell says so. Raises what loading raises."""
    from mlx_gemma_mtp.bench import subject
    from mlx_gemma_mtp.cli.pull import fetch_missing
    from mlx_gemma_mtp.show import spinner

    if asked.synthetic is None:
        fetch_missing(pair.model, pair.drafter)
        with spinner(f"loading {pair.model}"):
            return subject.loaded(
                pair.model, options.named_drafter(pair.drafter), bits=pair.bits, force=pair.force
            )
    accept = options.listed("--accept", "0.8" if asked.accept is None else asked.accept, _chance)
    return subject.random(
        asked.synthetic,
        bits=pair.bits,
        accept=accept,
        shared_experts=asked.overlap,
        context=max(_lengths(asked)) + _beyond(plan),
        batch=max(plan.batches),
        peers=asked.peer or (),
        force=pair.force,
        tell=tell,
    )


def workload(pair: options.Pair, asked: Asked, plan: Plan, opened: Opened) -> Workload:
    """Its prompts. Raises UsageError, NotEnoughMemoryError where there is no room for them."""
    from mlx_gemma_mtp.bench import subject
    from mlx_gemma_mtp.bench.workload import by_task, of_conversations, of_noise

    text, tasks = opened.pair.text, _tasks(pair, asked)
    if asked.synthetic is not None:
        return of_noise(opened.pair.target.config.vocab_size, _lengths(asked))
    if pair.model == "demo" and text is not None:
        return of_conversations(text, _demo_conversations(tasks))
    longest = max(_lengths(asked)) + asked.depth + _beyond(plan)
    if not pair.force:
        subject.check_room(opened, context=longest, batch=max(plan.batches), peers=asked.peer or ())
    if text is None:
        if asked.tasks or asked.depth:
            raise UsageError("this checkpoint has no tokenizer: no --tasks, no --depth")
        return of_noise(opened.pair.target.config.vocab_size, _lengths(asked))
    return by_task(text, tasks, _lengths(asked), depth=asked.depth)


def _beyond(plan: Plan) -> int:
    """Tokens that a row may decode, those before and after its window included."""
    return 4 * plan.tokens


def _demo_conversations(chosen: tuple[str, ...]) -> dict[str, list[list[Message]]]:
    """Prompts of the demo's exercises that it was not trained on."""
    from mlx_gemma_mtp.demo.recipe.tasks import held_out

    examples = [one for one in held_out(DEMO_EXAMPLES) if not one.tools and not one.thinking]
    return {task: [list(one.messages) for one in examples if one.task == task] for task in chosen}


def _distinct(found: Sequence[T]) -> list[T]:
    return list(dict.fromkeys(found))


def _numbers(name: str, given: str, least: int = 0) -> list[int]:
    found = options.listed(name, given, int)
    if min(found) < least:
        raise UsageError(f"{name} takes numbers from {least} on, not {given!r}")
    return found


def _drafts(part: str) -> Drafts:
    from mlx_gemma_mtp.decode.params import MAX_DRAFT_TOKENS

    if part != "auto" and not 0 <= int(part) <= MAX_DRAFT_TOKENS:
        raise UsageError(
            f"--drafts takes auto and numbers from 0 to {MAX_DRAFT_TOKENS}, not {part}"
        )
    return "auto" if part == "auto" else int(part)


def _chance(part: str) -> float:
    if not 0 <= float(part) <= 1:
        raise UsageError(f"--accept takes chances from 0 to 1, not {part}")
    return float(part)
