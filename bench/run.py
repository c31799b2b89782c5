"""A run: for every batch and task, all settings and engines in turns.

The order alternates, forwards and backwards, so that a drift of the machine affects all alike.
Fills a record group by group; doesn't know how it is printed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial, reduce
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from mlx_gemma_mtp import Engine, SamplingParams, device
from mlx_gemma_mtp.decode.depth import Depth
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.errors import one_line
from mlx_gemma_mtp.show import Update

from .case import make_case
from .floor import Floor
from .prompts import Prompts
from .record import ALL, OURS, Case, NumDrafts, Record, setting
from .split import Stopwatch
from .subject import Opened
from .turn import Turn, play_turn

if TYPE_CHECKING:
    from .peers import Peer

SPLIT_ROUNDS = 6  # in step, of every setting
DRIFT = 0.88  # of plain decoding's first speed: a slower end gives a warning

Wave = Callable[[int], list[list[int]]]
Taken = dict[tuple[str, NumDrafts], list[Turn]]


class WarmUp(NamedTuple):
    """Rounds that are not timed.

    rounds: before each window. tokens: of each row, once for a batch. learning: rounds in which
    auto learns what rounds cost, once for a batch.
    """

    rounds: int
    tokens: int
    learning: int


# A GPU compiles rounds at their first use.
ON_GPU, ON_CPU = WarmUp(4, 16, 200), WarmUp(1, 1, 25)


class Contestant(NamedTuple):
    """An engine with a setting. play(wave, tokens) gives a turn of it."""

    engine: str
    num_draft_tokens: NumDrafts
    play: Callable[[Wave, int], Turn]


def run(
    record: Record,
    opened: Opened,
    prompts: Prompts,
    depth: Depth,
    peers: Sequence[Peer],
    *,
    keep: Callable[[], None],
    update: Update,
) -> None:
    """Measure the record's plan into it. depth: learns what rounds cost.

    keep: called whenever cases are complete. Raises what ends a request of ours; a peer that fails
    is left out of its batch, with a warning.
    """
    most, stopwatch = max(record.plan.batches), Stopwatch()
    with (
        opened.engine(most, depth) as engine,
        opened.engine(most, Depth(), stopwatch.player) as in_step,
    ):
        _Run(record, opened, prompts, engine, in_step, stopwatch, peers, keep, update).all_batches()


class _Run:
    def __init__(
        self,
        record: Record,
        opened: Opened,
        prompts: Prompts,
        engine: Engine,
        in_step: Engine,
        stopwatch: Stopwatch,
        peers: Sequence[Peer],
        keep: Callable[[], None],
        update: Update,
    ) -> None:
        self._record, self._plan, self._prompts = record, record.plan, prompts
        self._draws, self._floor = opened.draws, Floor(opened.pair.target, opened.pair.drafter)
        self._in_step, self._stopwatch = in_step, stopwatch
        self._keep, self._update = keep, update
        self._warm_up = ON_CPU if device.backend() == "cpu" else ON_GPU
        self._contestants = [self._ours(engine, count) for count in self._plan.num_draft_tokens]
        for peer in peers:
            fixed = [count for count in self._plan.num_draft_tokens if count != "auto"]
            self._contestants += [
                self._theirs(peer, count) for count in (fixed if peer.can_draft else [0])
            ]
        tasks = sum(len(prompts.tasks_at(batch)) for batch in self._plan.batches)
        self._num_windows = tasks * len(self._contestants) * self._plan.repeat
        self._num_done = 0

    def all_batches(self) -> None:
        for batch in self._plan.batches:
            tasks, contestants = self._prompts.tasks_at(batch), list(self._contestants)
            self._update(f"batch {batch}, warm-up", self._num_done, self._num_windows)
            for one in list(contestants):
                self._prepare(one, contestants, partial(self._prompts.wave, tasks[0], batch))
            finished: dict[str, Taken] = {}
            try:
                for task in tasks:
                    finished[task] = self._measure(task, batch, contestants)
                    self._keep()
            finally:  # what is finished counts after Ctrl-C too
                if len(tasks) > 1 and finished:
                    self._add_up(batch, finished)
            self._update(f"batch {batch}, parts of a round", self._num_done, self._num_windows)
            for at, case in enumerate(self._record.cases):
                if case.batch == batch and self._record.is_summary(case):
                    self._record.cases[at] = self._split(case, tasks[0])
            self._keep()
        self._record.warnings += _drift(self._record)
        self._record.complete = True

    def _ours(self, engine: Engine, num_draft_tokens: NumDrafts) -> Contestant:
        params, warm_up = self._params(num_draft_tokens), self._warm_up.rounds

        def play(wave: Wave, tokens: int) -> Turn:
            return play_turn(engine, wave, params, tokens=tokens, warm_up=warm_up)

        return Contestant(OURS, num_draft_tokens, play)

    def _theirs(self, peer: Peer, num_draft_tokens: int) -> Contestant:
        def play(wave: Wave, tokens: int) -> Turn:
            decode = partial(peer.decode, wave(0), num_draft_tokens, tokens=tokens)
            job = partial(decode, warm_up=self._warm_up.rounds, draw=self._draws)
            return Turn(mlx_worker().run(job).window)

        return Contestant(peer.name, num_draft_tokens, play)

    def _params(self, num_draft_tokens: NumDrafts) -> SamplingParams:
        """Of a completion that runs until the window is full."""
        plan = self._plan
        return SamplingParams(
            temperature=plan.temperature,
            num_draft_tokens=num_draft_tokens,
            ignore_eos=plan.endless,
        )

    def _prepare(self, one: Contestant, contestants: list[Contestant], wave: Wave) -> None:
        """Compile, allocate and learn before anything is timed."""
        if one.num_draft_tokens != "auto":
            self._attempt(one, contestants, wave, self._warm_up.tokens)
            return
        rounds = 0.0
        while rounds < self._warm_up.learning:
            stats = one.play(wave, self._plan.tokens).stats
            rounds += sum(of.rounds for of in stats) / len(wave(0))

    def _attempt(
        self, one: Contestant, contestants: list[Contestant], wave: Wave, tokens: int
    ) -> Turn | None:
        """A turn; None for a peer that fails, which then leaves the contestants."""
        try:
            return one.play(wave, tokens)
        except Exception as error:
            if one.engine == OURS:
                raise
            contestants.remove(one)
            where = f"batch {len(wave(0))}, {setting(one.num_draft_tokens)}"
            self._record.warnings.append(f"{one.engine} failed at {where}: {one_line(error)}")
            return None

    def _measure(self, task: str, batch: int, contestants: list[Contestant]) -> Taken:
        """All turns of a task, and its cases in the record; only whole turns if interrupted."""
        wave, plan = partial(self._prompts.wave, task, batch), self._plan
        taken: Taken = {(one.engine, one.num_draft_tokens): [] for one in contestants}
        try:
            for number in range(plan.repeat):
                # Not always the same one first, last, or next to itself in the next turn.
                first = number * len(contestants) // plan.repeat
                order = [*contestants[first:], *contestants[:first]]
                for one in order[:: -1 if number % 2 else 1]:
                    what = f"batch {batch}, {task}, {one.engine}, {setting(one.num_draft_tokens)}"
                    self._update(what, self._num_done, self._num_windows)
                    turn = self._attempt(one, contestants, wave, plan.tokens)
                    if turn is None:
                        del taken[one.engine, one.num_draft_tokens]
                    else:
                        taken[one.engine, one.num_draft_tokens].append(turn)
                    self._num_done += 1
                    time.sleep(plan.delay)
        finally:
            whole = min(map(len, taken.values()))
            lengths = [len(ids) for ids in wave(0)]
            if whole:
                turns = {who: of[:whole] for who, of in taken.items()}
                self._record.cases += self._cases(task, lengths, turns)
        held = min(turn.window.tokens for turns in taken.values() for turn in turns)
        if held < plan.tokens * batch:
            self._record.warnings.append(
                f"batch {batch}, {task}: the completions ended after {held:,} of "
                f"{plan.tokens * batch:,} tokens: use fewer --max-tokens"
            )
        return taken

    def _cases(self, task: str, lengths: list[int], taken: Taken) -> Iterator[Case]:
        for (engine, num_draft_tokens), turns in taken.items():
            yield make_case(
                engine,
                task,
                num_draft_tokens,
                lengths,
                turns,
                plain=taken.get((engine, 0)),
                floor=self._floor,
                bandwidth=self._record.bandwidth_bytes_per_second,
                drawn=self._draws is not None,
            )

    def _add_up(self, batch: int, finished: dict[str, Taken]) -> None:
        """The cases over all tasks: their windows together, turn by turn."""
        *_, last = finished.values()  # lacks every peer that failed
        together: Taken = {}
        for who in last:
            turns = zip(*(taken[who] for taken in finished.values()), strict=True)
            together[who] = [reduce(Turn.plus, turn) for turn in turns]
        lengths = [len(self._prompts.wave(task, batch, 0)[0]) for task in finished]
        mean = round(sum(lengths) / len(lengths))
        self._record.cases += self._cases(ALL, [mean] * batch, together)

    def _split(self, case: Case, task: str) -> Case:
        """The case with the parts of its round."""
        count = case.num_draft_tokens
        if case.engine != OURS or count == "auto":
            return case
        params = replace(self._params(count), ignore_eos=True)  # so that no prefill comes between
        wave, tokens = (
            partial(self._prompts.wave, task, case.batch),
            (SPLIT_ROUNDS + 1) * (count + 1),
        )
        play_turn(self._in_step, wave, params, tokens=tokens, warm_up=self._warm_up.rounds)
        return replace(case, split=self._stopwatch.split(SPLIT_ROUNDS))


def _drift(record: Record) -> Iterator[str]:
    plain = [case for case in record.cases if (case.engine, case.num_draft_tokens) == (OURS, 0)]
    ratios = [case.windows[-1].rate / case.windows[0].rate for case in plain]
    if ratios and (left := median(ratios)) < DRIFT:
        yield (
            f"plain decoding slowed down by {1 - left:.0%} from the first turn to the last: the "
            "machine got hot, or other programs used it"
        )
