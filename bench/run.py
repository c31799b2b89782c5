"""A run: for every batch and task, all settings and engines in turns.

The order alternates, forwards and backwards, so that a drift of the machine affects all alike.
Fills a record group by group; doesn't know how it is printed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial, reduce
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

from mlx_gemma_mtp import Engine, SamplingParams, device
from mlx_gemma_mtp.decode.depth import Depth
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.errors import one_line
from mlx_gemma_mtp.progress import Update

from .case import make_case
from .floor import Floor
from .prompts import Prompts
from .record import ALL, OURS, WITHOUT, NumDrafts, Record, in_words
from .split import Stopwatch
from .subject import Opened
from .turn import Turn, Wave, play_turn, timed

if TYPE_CHECKING:
    from .peers import Peer

SPLIT_ROUNDS = 6  # in step, of every setting

Taken = dict[tuple[str, NumDrafts], list[Turn]]


class WarmUp(NamedTuple):
    """What isn't timed: rounds before each window, and for each batch tokens of every row, and
    rounds in which auto learns."""

    rounds: int
    tokens: int
    learning: int


# A GPU compiles rounds at their first use.
ON_GPU, ON_CPU = WarmUp(4, 16, 200), WarmUp(1, 1, 25)


class Contestant(NamedTuple):
    """An engine with a setting; play(wave, tokens=...) gives a turn of it."""

    engine: str
    num_draft_tokens: NumDrafts
    play: Callable[..., Turn]


class Run:
    """Measures the plan of a record into it.

    keep: called whenever cases are complete. update: shows the progress.
    """

    def __init__(
        self,
        record: Record,
        opened: Opened,
        prompts: Prompts,
        *,
        keep: Callable[[], None],
        update: Update,
    ) -> None:
        self._record, self._plan, self._prompts = record, record.plan, prompts
        self._opened, self._floor = opened, Floor(opened.pair.target, opened.pair.drafter)
        self._keep, self._update = keep, update
        self._warm_up = ON_CPU if device.backend() == "cpu" else ON_GPU
        self._contestants: list[Contestant] = []  # of the batch
        self._done = self._total = 0

    def measure(self, depth: Depth, peers: Sequence[Peer] = ()) -> None:
        """Measure all batches. depth: learns what rounds cost.

        Raises what ends a request of ours; a peer that fails is left out, with a warning.
        """
        plan, opened, stopwatch = self._plan, self._opened, Stopwatch()
        most = max(plan.batches)
        with ExitStack() as engines:
            engine = engines.enter_context(opened.engine(most, depth))
            in_step = engines.enter_context(opened.engine(most, opened.depth(), stopwatch.player))
            everyone = [self._ours(OURS, engine, count) for count in plan.num_draft_tokens]
            for what in plan.without:
                other = engines.enter_context(opened.engine(most, opened.depth(what), without=what))
                everyone += [self._ours(WITHOUT[what], other, n) for n in plan.num_draft_tokens]
            for peer in peers:
                counts = [one for one in plan.num_draft_tokens if one != "auto"]
                counts = counts if peer.can_draft else [0]
                everyone += [self._theirs(peer, count) for count in counts]
            tasks = sum(len(self._prompts.tasks_at(batch)) for batch in plan.batches)
            self._total = tasks * len(everyone) * plan.repeat
            for batch in plan.batches:
                self._contestants = list(everyone)
                self._batch(batch)
                self._split(batch, in_step, stopwatch)
                self._keep()
        self._record.complete = True

    def _ours(self, name: str, engine: Engine, num_draft_tokens: NumDrafts) -> Contestant:
        params, warm_up = self._params(num_draft_tokens), self._warm_up.rounds
        play = partial(play_turn, engine, params=params, warm_up=warm_up)
        return Contestant(name, num_draft_tokens, play)

    def _theirs(self, peer: Peer, num_draft_tokens: int) -> Contestant:
        def play(wave: Wave, *, tokens: int) -> Turn:
            prompts, warm_up = wave(0), self._warm_up.rounds
            rounds = peer.rounds(prompts, num_draft_tokens, self._opened.draws)
            total = tokens * len(prompts)
            job = partial(timed, rounds, prompts, tokens=total, warm_up=warm_up)
            return mlx_worker().run(job)

        return Contestant(peer.name, num_draft_tokens, play)

    def _params(self, num_draft_tokens: NumDrafts) -> SamplingParams:
        """Of a completion that runs until the window is full."""
        return SamplingParams(
            temperature=self._plan.temperature,
            num_draft_tokens=num_draft_tokens,
            ignore_eos=self._plan.endless,
        )

    def _batch(self, batch: int) -> None:
        """All tasks of a batch, and their sum."""
        tasks = self._prompts.tasks_at(batch)
        self._prepare(batch, partial(self._prompts.wave, tasks[0], batch))
        finished: list[Taken] = []
        try:
            for task in tasks:
                finished.append(self._task(task, batch))
                self._keep()
        finally:  # what is finished counts after Ctrl-C too
            if len(tasks) > 1 and finished:  # of single rows
                together: Taken = {}
                for who in finished[-1]:  # without the peers that failed
                    turns = zip(*(taken[who] for taken in finished), strict=True)
                    together[who] = [reduce(Turn.plus, turn) for turn in turns]
                counted = tasks[: len(finished)]
                lengths = [len(self._prompts.wave(task, batch, 0)[0]) for task in counted]
                self._add_cases(ALL, [round(fmean(lengths))], together)

    def _prepare(self, batch: int, wave: Wave) -> None:
        """Compile, allocate and learn before anything is timed."""
        self._report(f"batch {batch}, warm-up")
        for one in list(self._contestants):
            if one.num_draft_tokens != "auto":
                self._attempt(one, wave, self._warm_up.tokens)
                continue
            rounds = 0.0
            while rounds < self._warm_up.learning:
                stats = one.play(wave, tokens=self._plan.tokens).stats
                rounds += sum(of.rounds for of in stats) / batch

    def _attempt(self, one: Contestant, wave: Wave, tokens: int) -> Turn | None:
        """A turn; None for a peer that fails, which then leaves the contestants."""
        try:
            return one.play(wave, tokens=tokens)
        except Exception as error:
            if one.engine == OURS:
                raise
            self._contestants.remove(one)
            where = f"batch {len(wave(0))} with {in_words(one.num_draft_tokens)}"
            self._record.warnings.append(f"{one.engine} failed at {where}: {one_line(error)}")
            return None

    def _task(self, task: str, batch: int) -> Taken:
        """All turns of a task, and its cases in the record; only whole turns if interrupted."""
        wave, plan = partial(self._prompts.wave, task, batch), self._plan
        taken: Taken = {one[:2]: [] for one in self._contestants}
        try:
            for number in range(plan.repeat):
                for one in self._contestants[:: -1 if number % 2 else 1]:
                    self._report(f"batch {batch}, {task}, {one.engine}, {one.num_draft_tokens}")
                    turn = self._attempt(one, wave, plan.tokens)
                    if turn is None:
                        del taken[one[:2]]
                    else:
                        taken[one[:2]].append(turn)
                    self._done += 1
                    time.sleep(plan.delay)
        finally:
            if whole := min(map(len, taken.values())):
                turns = {who: of[:whole] for who, of in taken.items()}
                self._add_cases(task, [len(ids) for ids in wave(0)], turns)
        held = min(turn.window.tokens for turns in taken.values() for turn in turns)
        if held < (wanted := plan.tokens * batch):
            self._record.warnings.append(
                f"batch {batch}, {task}: the completions ended after {held:,} of {wanted:,} "
                "tokens: use fewer --max-tokens"
            )
        return taken

    def _add_cases(self, task: str, lengths: list[int], taken: Taken) -> None:
        floor, bandwidth = self._floor, self._record.bandwidth_bytes_per_second
        for who, turns in taken.items():
            plain = taken.get((who[0], 0))
            case = make_case(task, *who, lengths, turns, plain, floor, bandwidth)
            self._record.cases.append(case)

    def _split(self, batch: int, in_step: Engine, stopwatch: Stopwatch) -> None:
        """Add to the summaries of a batch the parts of a round, of its first task."""
        self._report(f"batch {batch}, parts of a round")
        wave = partial(self._prompts.wave, self._prompts.tasks_at(batch)[0], batch)
        for case in self._record.at(batch):
            count = case.num_draft_tokens
            if count != "auto":
                params = replace(self._params(count), ignore_eos=True)  # no prefill in between
                tokens, warm_up = (SPLIT_ROUNDS + 1) * (count + 1), self._warm_up.rounds
                play_turn(in_step, wave, params, tokens=tokens, warm_up=warm_up)
                at = self._record.cases.index(case)
                self._record.cases[at] = replace(case, **stopwatch.split(SPLIT_ROUNDS))

    def _report(self, what: str) -> None:
        self._update(what, self._done, self._total)
