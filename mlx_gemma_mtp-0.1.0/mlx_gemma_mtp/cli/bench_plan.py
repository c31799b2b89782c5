"""What `mgm bench` measures: its options, read into a plan, a pair and prompts."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from mlx_gemma_mtp.cli import options
from mlx_gemma_mtp.errors import UsageError

if TYPE_CHECKING:
    from mlx_gemma_mtp.bench.prompts import Prompts
    from mlx_gemma_mtp.bench.record import NumDrafts, Plan
    from mlx_gemma_mtp.bench.subject import Opened

T = TypeVar("T", int, float)

PEERS = ("mlx-lm", "mlx-vlm")
# Default batches and tokens of a row. On a CPU a pass takes nearly as long as it has tokens.
TIMED, TIMED_ON_CPU = ("1,2,4,8", 64), ("1,4", 12)
CHECKED, CHECKED_ON_CPU = ("1,2,4,8", 128), ("1,2,4,8", 32)


@dataclass(frozen=True)
class Measured:
    """What to measure."""

    tasks: Annotated[
        str | None, typer.Option(help="Such as chat,code; `list` prints their names [all].")
    ] = None
    batch: Annotated[str | None, typer.Option(help="Batch sizes [1,2,4,8; on a CPU 1,4].")] = None
    drafts: Annotated[str, typer.Option(help="Draft tokens per round.")] = "0,1,2,3,5,auto"
    prompt_tokens: Annotated[
        str | None, typer.Option(help="Tokens of each row's prompt [various, up to 840].")
    ] = None
    depth: Annotated[int, typer.Option(help="Tokens of conversation before the prompt.")] = 0
    max_tokens: Annotated[
        int | None,
        typer.Option(help="Tokens of each row: timed [64; on a CPU 12] or checked [128; 32]."),
    ] = None
    repeat: Annotated[int, typer.Option(help="Repetitions; reports median, min and max.")] = 5
    delay: Annotated[float, typer.Option(help="Seconds to wait between two measurements.")] = 0.0
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0
    peer: Annotated[
        list[str] | None, typer.Option(help="Compare with mlx-lm or mlx-vlm; repeatable.")
    ] = None
    synthetic: Annotated[
        str | None,
        typer.Option(help="Random weights of E2B, E4B, 12B, 26B-A4B, 31B, or of a JSON file."),
    ] = None
    accept: Annotated[
        str | None,
        typer.Option(help="Chance that each of their drafts is accepted, by position [0.8]."),
    ] = None

    def plan(self, pair: options.Pair, *, check: bool = False) -> Plan:
        """Read the options. Raises UsageError before anything is loaded."""
        from mlx_gemma_mtp import device
        from mlx_gemma_mtp.bench.record import Plan
        from mlx_gemma_mtp.decode.params import SamplingParams
        from mlx_gemma_mtp.engine.batch import SIZES

        on_gpu, on_cpu = (CHECKED, CHECKED_ON_CPU) if check else (TIMED, TIMED_ON_CPU)
        batch, tokens = on_cpu if device.backend() == "cpu" else on_gpu
        tokens = tokens if self.max_tokens is None else self.max_tokens
        batches = _numbers("--batch", self.batch or batch, int, SIZES[0], SIZES[-1])
        if not {*batches} <= {*SIZES}:
            raise UsageError(f"--batch takes {', '.join(map(str, SIZES))}")
        for name, value, least in (
            ("--max-tokens", tokens, 1),
            ("--repeat", self.repeat, 1),
            ("--delay", self.delay, 0),
            ("--depth", self.depth, 0),
        ):
            if not least <= value < math.inf:  # nan isn't either
                raise UsageError(f"{name} must be at least {least}")
        SamplingParams(temperature=self.temperature)  # raises UsageError
        if self.accept is not None and self.synthetic is None:
            raise UsageError("--accept is for random weights: add --synthetic")
        drafts = self._drafts()
        if pair.drafter == "none" and self.drafts != Measured.drafts and drafts != [0]:
            raise UsageError(f"--drafts {self.drafts} needs a drafter: leave --drafter none out")
        self._check_peers()
        return Plan(
            batches=batches,
            num_draft_tokens=drafts,
            tokens=tokens,
            repeat=self.repeat,
            delay=self.delay,
            temperature=self.temperature,
            depth=self.depth,
            endless=bool(self.synthetic or self.peer),
            tasks=self._tasks(pair),
            accept=_numbers("--accept", self.accept or "0.8", float, 0, 1)
            if self.synthetic
            else None,
        )

    def _drafts(self) -> list[NumDrafts]:
        from mlx_gemma_mtp.decode.params import MAX_DRAFT_TOKENS

        found: list[NumDrafts] = []
        for part in dict.fromkeys(self.drafts.split(",")):
            count = part.strip()
            if count != "auto" and not (count.isdecimal() and int(count) <= MAX_DRAFT_TOKENS):
                raise UsageError(
                    f"--drafts takes numbers from 0 to {MAX_DRAFT_TOKENS} and auto, separated by "
                    "commas"
                )
            found.append("auto" if count == "auto" else int(count))
        return found

    def _check_peers(self) -> None:
        from importlib.util import find_spec

        for peer in self.peer or []:
            if peer not in PEERS:
                raise UsageError(f"--peer must be one of {', '.join(PEERS)}, not {peer!r}")
        if self.peer and self.temperature:
            raise UsageError("--peer decodes greedily: leave --temperature out")
        if self.peer and find_spec("mlx_gemma_mtp.bench.peers") is None:
            raise UsageError(
                "peers come with the repository: clone it, and run `pip install -e .` there"
            )
        if "mlx-vlm" in (self.peer or []):
            from mlx_gemma_mtp.bench.peers.mlx_vlm import need_mlx_vlm

            need_mlx_vlm()

    def _tasks(self, pair: options.Pair) -> list[str]:
        from mlx_gemma_mtp.bench.prompts import DEMO_TASKS, TASKS

        if self.synthetic is not None:
            if self.tasks is not None or self.depth:
                raise UsageError("--synthetic has random prompts: leave --tasks and --depth out")
            return ["random"]
        if pair.model == "demo" and (self.prompt_tokens or self.depth):
            raise UsageError("the demo has its own prompts: leave --prompt-tokens and --depth out")
        known = DEMO_TASKS if pair.model == "demo" else TASKS
        chosen = known if self.tasks is None else self.tasks.split(",")
        for task in chosen:
            if task not in known:
                raise UsageError(f"--tasks takes {', '.join(known)}, not {task!r}")
        return list(dict.fromkeys(chosen))

    def open(self, pair: options.Pair, plan: Plan) -> tuple[Opened, Prompts]:
        """Load or draw the pair, with its prompts. Raises if the context or memory is too small."""
        from mlx_gemma_mtp import device
        from mlx_gemma_mtp.bench import prompts, subject
        from mlx_gemma_mtp.cli.pull import fetch_missing
        from mlx_gemma_mtp.engine.worker import mlx_worker
        from mlx_gemma_mtp.show import spinner

        if self.synthetic is not None:
            opened = subject.random(self.synthetic, bits=pair.bits, accept=plan.accept or [])
        else:
            fetch_missing(pair.model, pair.drafter)
            drafter = options.named_drafter(pair.drafter)
            with spinner(f"loading {pair.model}"):
                opened = subject.load(pair.model, drafter, bits=pair.bits, force=pair.force)
        text, lengths = opened.pair.text, None
        if self.prompt_tokens is not None:
            lengths = _numbers("--prompt-tokens", self.prompt_tokens, int, 1)
        if text is None:
            if self.tasks or self.depth:
                raise UsageError("this model has no tokenizer: leave --tasks and --depth out")
            found = prompts.of_noise(opened.pair.target.config.vocab_size, lengths)
        elif pair.model == "demo":
            found = prompts.of_demo(text, plan.tasks)
        else:
            found = prompts.of_tasks(text, plan.tasks, lengths, depth=self.depth)
        longest = max(
            len(ids)
            for batch in plan.batches
            for task in found.tasks_at(batch)
            for ids in found.wave(task, batch, 0)
        )
        subject.check_context(opened, longest + plan.tokens)
        if self.synthetic is not None:
            if not pair.force:
                have, copies = mlx_worker().run(device.available), len({*(self.peer or [])})
                room, batch = longest + 4 * plan.tokens, max(plan.batches)  # windows and around
                subject.check_room(opened, have=have, context=room, batch=batch, copies=copies)
            print(f"drawing random weights of {self.synthetic}", file=sys.stderr)
            opened = subject.draw(opened)
        return opened, found


def _numbers(
    name: str, given: str, read: Callable[[str], T], least: T, most: T | None = None
) -> list[T]:
    """Different numbers in a range. Raises UsageError."""
    found = options.listed(name, given, read)
    if not all(least <= one and (most is None or one <= most) for one in found):
        limit = f"from {least} to {most}" if most is not None else f"of at least {least}"
        raise UsageError(f"{name} takes numbers {limit}, not {given!r}")
    return list(dict.fromkeys(found)) if read is int else found
