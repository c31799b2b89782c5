"""What `mgm bench` measures: its options, read into a plan, a pair and prompts."""

from __future__ import annotations

import filecmp
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlx_gemma_mtp.cli import options
from mlx_gemma_mtp.errors import UsageError
from mlx_gemma_mtp.show import say

if TYPE_CHECKING:
    from mlx_gemma_mtp.bench.prompts import Prompts
    from mlx_gemma_mtp.bench.record import NumDrafts, Plan
    from mlx_gemma_mtp.bench.subject import Opened

PEERS = ("mlx-lm", "mlx-vlm")
# Default batches, tokens of a row and turns. On a CPU a pass takes nearly as long as it has tokens.
TIMED, TIMED_ON_CPU = ("1,2,4,8", 64, 5), ("1,4", 12, 3)
DRAFTS, DRAFTS_ON_CPU = "0,1,2,3,5,auto", "0,1,3,auto"
CHECKED, CHECKED_ON_CPU = ("1,2,4,8", 128, 1), ("1,2,4,8", 32, 1)


@dataclass(frozen=True)
class Measured:
    """What to measure."""

    tasks: Annotated[
        str | None, typer.Option(help="Such as chat,code; `list` prints their names [all].")
    ] = None
    batch: Annotated[str | None, typer.Option(help="Batch sizes [1,2,4,8; on a CPU 1,4].")] = None
    num_draft_tokens: Annotated[
        str | None,
        typer.Option(
            help=f"Draft tokens per round: 0 to 15, auto [{DRAFTS}; on a CPU {DRAFTS_ON_CPU}]."
        ),
    ] = None
    prompt_tokens: Annotated[
        str | None, typer.Option(help="Tokens of each row's prompt [various, up to 840].")
    ] = None
    depth: Annotated[int, typer.Option(help="Tokens of conversation before the prompt.")] = 0
    max_tokens: Annotated[
        int | None,
        typer.Option(help="Tokens of each row: timed [64; on a CPU 12] or checked [128; 32]."),
    ] = None
    repeat: Annotated[
        int | None,
        typer.Option(help="Repetitions; reports median, min and max [5; on a CPU 3]."),
    ] = None
    delay: Annotated[float, typer.Option(help="Seconds to wait between two measurements.")] = 0.0
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0
    peer: Annotated[
        list[str] | None,
        typer.Option(metavar="<str>", help="Compare with mlx-lm or mlx-vlm; repeatable."),
    ] = None
    exact: options.Exact = "auto"
    without: Annotated[
        list[str] | None,
        typer.Option(
            metavar="<str>",
            help="Measure ours again without copies, exact (passes) or table (of costs); "
            "repeatable.",
        ),
    ] = None
    synthetic: Annotated[
        str | None,
        typer.Option(help="Random weights of e2b, e4b, 12b, 26b, 31b, or of a JSON file."),
    ] = None
    accept: Annotated[
        list[str] | None,
        typer.Option(
            metavar="<str>",
            help="Chance that each draft is accepted with --synthetic, by position [0.8]; if "
            "repeated, rows take these in turn.",
        ),
    ] = None

    def plan(self, pair: options.Pair, *, check: bool = False) -> Plan:
        """Read the options. Raises UsageError before anything is loaded."""
        from mlx_gemma_mtp import device
        from mlx_gemma_mtp.bench.prompts import DEMO_TASKS
        from mlx_gemma_mtp.bench.record import WITHOUT, Plan
        from mlx_gemma_mtp.decode.params import MAX_DRAFT_TOKENS, SamplingParams

        on_gpu, on_cpu = (CHECKED, CHECKED_ON_CPU) if check else (TIMED, TIMED_ON_CPU)
        is_cpu = device.backend() == "cpu"
        batch, tokens, repeat = on_cpu if is_cpu else on_gpu
        tokens = tokens if self.max_tokens is None else self.max_tokens
        repeat = repeat if self.repeat is None else self.repeat
        for name, value, least in (
            ("--max-tokens", tokens, 1),
            ("--repeat", repeat, 1),
            ("--delay", self.delay, 0),
            ("--depth", self.depth, 0),
        ):
            if not least <= value < math.inf:  # nan isn't either
                raise UsageError(f"{name} must be at least {least}")
        SamplingParams(temperature=self.temperature)  # raises UsageError
        accept = [options.chances(one) for one in self.accept or ["0.8"]]
        if self.accept and self.synthetic is None:
            raise UsageError("--accept is for random weights: add --synthetic")
        _check_peers(self.peer or [])
        without = list(dict.fromkeys(self.without or []))
        if unknown := {*without} - {*WITHOUT}:
            names, others = ", ".join(WITHOUT), ", ".join(sorted(unknown))
            raise UsageError(f"--without must be one of {names}, not {others}")
        if "exact" in without and self.exact == "off":
            raise UsageError("--exact off uses no exact passes: leave --without exact out")
        if "copies" in without and self.synthetic is not None:
            raise UsageError("random weights take no copies: leave --without copies out")
        known = self.task_names(pair)
        if known == DEMO_TASKS and (self.prompt_tokens or self.depth):
            raise UsageError("the demo has prompts of its own: leave --prompt-tokens out")
        counts: list[NumDrafts] = ["auto", *range(MAX_DRAFT_TOKENS + 1)]
        drafts = options.listed(
            "--num-draft-tokens",
            self.num_draft_tokens or (DRAFTS_ON_CPU if is_cpu else DRAFTS),
            _count,
            counts.__contains__,
            f"0 to {counts[-1]} and auto",
        )
        tasks = options.listed(
            "--tasks", self.tasks or ",".join(known), str, known.__contains__, ", ".join(known)
        )
        return Plan(
            batches=options.batches(self.batch or batch),
            num_draft_tokens=list(dict.fromkeys(drafts)),
            tokens=tokens,
            repeat=repeat,
            delay=self.delay,
            temperature=self.temperature,
            depth=self.depth,
            endless=bool(self.synthetic or self.peer),
            tasks=list(dict.fromkeys(tasks)),
            accept=accept if self.synthetic else None,
            without=without,
            exact=self.exact,
        )

    def task_names(self, pair: options.Pair) -> tuple[str, ...]:
        """Return the tasks that there are prompts for."""
        from mlx_gemma_mtp.bench.prompts import DEMO_TASKS, TASKS

        return DEMO_TASKS if self.synthetic is None and _is_demo(pair.model) else TASKS

    def open(self, pair: options.Pair, plan: Plan) -> tuple[Opened, Prompts]:
        """Load or draw the pair, with its prompts. Raises if the context or memory is too small."""
        from mlx_gemma_mtp import device
        from mlx_gemma_mtp.bench import prompts, subject
        from mlx_gemma_mtp.cli.download import fetch_missing
        from mlx_gemma_mtp.engine.load import with_table
        from mlx_gemma_mtp.engine.worker import mlx_worker
        from mlx_gemma_mtp.progress import spinner

        if self.synthetic is not None:
            opened = subject.random(self.synthetic, bits=pair.bits, accept=plan.accept or [])
        else:
            fetch_missing(pair.model, pair.drafter, bits=pair.bits, yes=pair.yes, force=pair.force)
            drafter = options.named_drafter(pair.drafter)
            with spinner(f"loading {pair.model}"):
                opened = subject.load(pair.model, drafter, bits=pair.bits, force=pair.force)
        text, lengths = opened.pair.text, None
        if self.prompt_tokens is not None:
            lengths = options.listed(
                "--prompt-tokens", self.prompt_tokens, int, lambda one: one > 0, "numbers above 0"
            )
        if text is None:
            if self.tasks or self.depth:
                raise UsageError("without a tokenizer prompts are random: leave --tasks out")
            found = prompts.of_noise(opened.pair.target.config.vocab_size, lengths)
        elif _is_demo(pair.model):
            found = prompts.of_demo(text, plan.tasks)
        else:
            found = prompts.of_tasks(text, plan.tasks, lengths, depth=self.depth)
        longest = found.longest(plan.batches)
        opened.check_context(longest + plan.tokens)
        if self.synthetic is not None:
            if not pair.force:
                have, copies = mlx_worker().run(device.available), len({*(self.peer or [])})
                room, batch = longest + 4 * plan.tokens, max(plan.batches)  # windows and around
                opened.check_room(have=have, context=room, batch=batch, copies=copies)
            say(f"drawing random weights of {self.synthetic}")
            opened = opened.draw()
        opened = opened._replace(exact=options.as_exact(self.exact))
        with spinner(what := "measuring this machine, once") as show:
            measured = with_table(opened.pair, opened.exact, lambda one: show(f"{what}: {one:.0%}"))
        return opened._replace(pair=measured), found


def _is_demo(model: str) -> bool:
    """True for the demo, and for a folder made from it: that has its tokenizer."""
    from mlx_gemma_mtp.files.names import DEMO, is_folder

    if not is_folder(model):
        return model == "demo"
    tokenizer = Path(model).expanduser() / "tokenizer.json"
    return tokenizer.is_file() and filecmp.cmp(tokenizer, DEMO / tokenizer.name, shallow=False)


def _count(part: str) -> NumDrafts:
    return "auto" if part == "auto" else int(part)


def _check_peers(peers: list[str]) -> None:
    """Raise UsageError if one is unknown or not installed."""
    from importlib.util import find_spec

    if unknown := {*peers} - {*PEERS}:
        raise UsageError(f"--peer must be one of {', '.join(PEERS)}, not {', '.join(unknown)}")
    if peers and find_spec("mlx_gemma_mtp.bench.peers") is None:
        raise UsageError(
            "peers come with the repository: clone it, and run `pip install -e .` there"
        )
    if "mlx-vlm" in peers:
        from mlx_gemma_mtp.bench.peers.mlx_vlm import need_mlx_vlm

        need_mlx_vlm()
