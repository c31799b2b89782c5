"""What is measured apart from the turns: where a round's time goes, and how a second turn begins.

Neither depends on what the settings around it do. Knows nothing of peers or of what is shown.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from mlx_gemma_mtp.engine.batch import SIZES

from .decode import decode, second_turn
from .plan import Bench, Plan, Prompts, compiled, warm_up_rounds
from .record import OURS, Record, Split, Spread, Turn

SPLIT_ROUNDS = 6  # in step, of every setting
ANSWER_TOKENS = 16  # of the first turn, before the second is timed
MOST_TURNS = 3  # of a conversation's second turn, whose prefill takes the same again


def split(bench: Bench, plan: Plan, record: Record, batch: int) -> None:
    """Add to the cases of this batch over all tasks where a round's time goes."""
    task = bench.workload.tasks_at(batch)[0]
    prompts = partial(bench.workload.wave, task, batch)
    for at, one in enumerate(record.cases):
        ours = (one.engine, one.batch) == (OURS, batch) and record.is_summary(one)
        if ours and one.drafts != "auto":
            found = _split_of(bench, plan, one.drafts, prompts)
            record.cases[at] = replace(one, split=found)


def _split_of(bench: Bench, plan: Plan, drafts: int, prompts: Prompts) -> Split:
    bench.stopwatch.clear()
    decode(
        bench.in_step,
        prompts,
        replace(plan.params(drafts), ignore_eos=True),  # in one go: no prefill in between
        tokens=(SPLIT_ROUNDS + 1) * (drafts + 1),
        warm_up=warm_up_rounds(),
    )
    return bench.stopwatch.split(SPLIT_ROUNDS)


def second_turns(bench: Bench, plan: Plan) -> list[Turn]:
    """Of every task, the turn after its longest prompt."""
    turns = []
    for task in bench.workload.tasks:
        row = max(bench.workload.wave(task, SIZES[-1], 0), key=lambda row: len(row.ids))
        if compiled():
            second_turn(bench.engine, row, ANSWER_TOKENS, fresh_first=True)
        taken = [
            second_turn(bench.engine, row, ANSWER_TOKENS, fresh_first=turn % 2 == 0)
            for turn in range(min(plan.repeat, MOST_TURNS))
        ]
        turns.append(
            Turn(
                task,
                taken[0].prompt_tokens,
                taken[0].reused_tokens,
                Spread.of([one.fresh * 1e3 for one in taken]),
                Spread.of([one.reused * 1e3 for one in taken]),
            )
        )
    return turns
