"""A benchmark's run: for every batch and task, all settings and engines in turns.

Turn after turn, forwards and backwards: what drifts, drifts for all. Fills a Record group by group;
knows nothing of command lines or of how a record is shown.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial, reduce
from itertools import count
from statistics import median
from typing import NamedTuple

from mlx_gemma_mtp import Engine
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.errors import one_line

from .apart import second_turns, split
from .cases import case
from .decode import Sample, decode
from .peer import Peer
from .plan import Bench, Plan, Prompts, compiled, warm_up_rounds
from .record import ALL, OURS, Case, Drafts, Record, setting

# Before the first window of a batch size, where rounds are compiled:
WARM_UP_TOKENS = 16  # of every row with a fixed number of drafts; one elsewhere
LEARNING = 200  # rounds of auto; an eighth elsewhere
DRIFT = 0.88  # of plain decoding's speed at the beginning: less at the end is told

Taken = dict[tuple[str, Drafts], list[Sample]]  # by engine and number of drafts, turn by turn


class _Contestant(NamedTuple):
    engine: str
    drafts: Drafts
    play: Callable[[Prompts, int], Sample]  # prompts, tokens


def run(
    bench: Bench,
    plan: Plan,
    record: Record,
    *,
    after_group: Callable[[], None],
    tell: Callable[[str], None],
) -> None:
    """Measure everything into the record; after_group is called whenever cases are complete.

    Raises what ends a request of ours. What a peer fails at is left out of its batch, and told of.
    """
    everybody, tasks_at = _contestants(bench, plan), bench.workload.tasks_at
    num_groups = sum(len(tasks_at(batch)) for batch in plan.batches)
    num_windows, numbers = plan.repeat * num_groups * len(everybody), count(1)

    def tell_window(line: str) -> None:
        tell(f"window {next(numbers)} of {num_windows}: {line}")

    for batch in plan.batches:
        contestants, tasks = list(everybody), tasks_at(batch)
        tell(f"batch {batch}: warming up")
        _warm_up(contestants, partial(bench.workload.wave, tasks[0], batch), plan, record)
        finished: dict[str, Taken] = {}
        try:
            for task in tasks:
                finished[task] = _measured(
                    bench, contestants, task, batch, plan, record, tell_window
                )
                after_group()
        finally:  # also of an interrupt: over what is finished
            if len(tasks) > 1 and finished:
                record.cases += _summary(bench, record, batch, finished)
        tell(f"batch {batch}: where a round's time goes")
        split(bench, plan, record, batch)
        after_group()
        if batch == 1:
            tell("a conversation's second turn")
            record.turns += second_turns(bench, plan)
            after_group()
    record.warnings += _drift(record)
    record.complete = True


def _measured(
    bench: Bench,
    contestants: list[_Contestant],
    task: str,
    batch: int,
    plan: Plan,
    record: Record,
    tell: Callable[[str], None],
) -> Taken:
    """All turns of one task, in the record as cases; of an interrupted one the whole turns."""
    prompts = partial(bench.workload.wave, task, batch)
    lengths = [len(row.ids) for row in prompts(0)]
    taken: Taken = {(one.engine, one.drafts): [] for one in contestants}
    try:
        _in_turns(contestants, task, prompts, plan, record, tell, taken)
    finally:
        record.cases += _cases(bench, record, task, lengths, _whole(taken))
    record.warnings += _cut_short(taken, f"batch {batch}, {task}", plan.tokens * batch)
    return taken


def _cut_short(taken: Taken, where: str, tokens: int) -> Iterator[str]:
    """What to say where texts ended before a window held what it should."""
    held = min(one.window.tokens for samples in taken.values() for one in samples)
    if held < tokens:
        yield f"{where}: the texts ended after {held:,} of {tokens:,} tokens: fewer --max-tokens"


def _drift(record: Record) -> Iterator[str]:
    """What to say where plain decoding became slower from the first turn to the last."""
    plain = [case for case in record.cases if (case.engine, case.drafts) == (OURS, 0)]
    left = median(case.rates[-1] / case.rates[0] for case in plain) if plain else 1.0
    if left < DRIFT:
        yield (
            f"plain decoding slowed down by {1 - left:.0%} from the first turn to the last: the "
            "machine grew hot, or something else used it"
        )


def _contestants(bench: Bench, plan: Plan) -> list[_Contestant]:
    found = [_Contestant(OURS, drafts, _ours(bench.engine, plan, drafts)) for drafts in plan.drafts]
    for peer in bench.peers:
        for drafts in plan.peer_drafts if peer.can_draft else (0,):
            found.append(_Contestant(peer.name, drafts, _theirs(bench, plan, peer, drafts)))
    return found


def _ours(engine: Engine, plan: Plan, drafts: Drafts) -> Callable[[Prompts, int], Sample]:
    params = plan.params(drafts)

    def play(prompts: Prompts, tokens: int) -> Sample:
        return decode(engine, prompts, params, tokens=tokens, warm_up=warm_up_rounds())

    return play


def _theirs(bench: Bench, plan: Plan, peer: Peer, drafts: int) -> Callable[[Prompts, int], Sample]:
    def play(prompts: Prompts, tokens: int) -> Sample:
        ids = [row.ids for row in prompts(0)]
        played = mlx_worker().run(
            lambda: peer.decode(
                ids, drafts, tokens=tokens, warm_up=warm_up_rounds(), draw=bench.draws
            )
        )
        return Sample(played.window)

    return play


def _warm_up(contestants: list[_Contestant], prompts: Prompts, plan: Plan, record: Record) -> None:
    """Whatever is compiled, allocated or learned at first is so after this."""
    tokens, learning = (WARM_UP_TOKENS, LEARNING) if compiled() else (1, LEARNING // 8)
    for one in list(contestants):
        if one.drafts == "auto":
            rounds = 0.0
            while rounds < learning:
                stats = one.play(prompts, plan.tokens).stats
                rounds += sum(of.rounds for of in stats) / len(prompts(0))
        else:
            _attempt(one, contestants, prompts, tokens, record)


def _attempt(
    one: _Contestant,
    contestants: list[_Contestant],
    prompts: Prompts,
    tokens: int,
    record: Record,
) -> Sample | None:
    """A sample; None for a peer that fails, which then is none of the contestants any more."""
    try:
        return one.play(prompts, tokens)
    except Exception as error:
        if one.engine == OURS:
            raise
        # Whatever is wrong with another engine, ours goes on.
        contestants.remove(one)
        line = one_line(error)
        rows = len(prompts(0))
        how = setting(one.drafts)
        record.warnings.append(f"{one.engine} failed at batch {rows}, {how}: {line}")
        return None


def _in_turns(
    contestants: list[_Contestant],
    task: str,
    prompts: Prompts,
    plan: Plan,
    record: Record,
    tell: Callable[[str], None],
    taken: Taken,
) -> None:
    """Take a sample of each contestant and turn."""
    where = f"batch {len(prompts(0))}, {task}"
    for turn in range(plan.repeat):
        # Not always the same one first, last, or beside itself in the next turn.
        first = turn * len(contestants) // plan.repeat
        order = [*contestants[first:], *contestants[:first]]
        for one in order[:: -1 if turn % 2 else 1]:
            tell(f"{where}, {one.engine}, {setting(one.drafts)}")
            sample = _attempt(one, contestants, prompts, plan.tokens, record)
            if sample is None:
                del taken[one.engine, one.drafts]
            else:
                taken[one.engine, one.drafts].append(sample)
            time.sleep(plan.delay)


def _whole(taken: Taken) -> Taken:
    """The turns that every contestant has had; nothing where there is none."""
    turns = min(map(len, taken.values()))
    return {who: samples[:turns] for who, samples in taken.items()} if turns else {}


def _cases(
    bench: Bench, record: Record, task: str, lengths: Sequence[int], taken: Taken
) -> list[Case]:
    return [
        case(
            engine,
            task,
            drafts,
            lengths,
            samples,
            plain=taken.get((engine, 0)),
            floor=bench.floor,
            bytes_per_second=record.bandwidth_bytes_per_second,
            accept=bench.draws.rates if bench.draws else None,
        )
        for (engine, drafts), samples in taken.items()
    ]


def _summary(bench: Bench, record: Record, batch: int, taken: dict[str, Taken]) -> list[Case]:
    """The cases over all tasks: what their windows took together, turn by turn."""
    *_, last = taken.values()  # it lacks whoever failed before
    turns = {who: zip(*(of[who] for of in taken.values()), strict=True) for who in last}
    together = {who: [reduce(Sample.plus, turn) for turn in of] for who, of in turns.items()}
    lengths = [len(bench.workload.wave(task, batch, 0)[0].ids) for task in taken]
    return _cases(bench, record, ALL, [round(sum(lengths) / len(lengths))] * batch, together)
