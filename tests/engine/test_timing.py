"""The rounds whose duration is reported to Depth: those that nothing else delayed."""

from collections.abc import Iterator
from itertools import cycle, groupby, pairwise
from typing import Any

from helpers.stepped import LONG, Stepped
from mlx_gemma_mtp.decode.depth import Depth


class Timed(Depth):
    """Records which rounds were timed, by their number."""

    def __init__(self, choices: Iterator[int] | None = None) -> None:
        super().__init__()
        self.stepped = Stepped(depth=self)
        self.timed: set[int] = set()
        self._choices = choices

    def choose(self, *arguments: Any) -> int:
        return next(self._choices) if self._choices else super().choose(*arguments)

    def round_took(self, batch: int, num_draft_tokens: int, seconds: float) -> None:
        # The round after it has been dispatched already.
        number = len(self.stepped.rounds) - 2
        round_ = self.stepped.rounds[number]
        assert (round_.size, round_.drafts) == (batch, num_draft_tokens)
        assert seconds > 0
        self.timed.add(number)


def test_a_round_is_timed_only_if_nothing_came_between(prompts: list[list[int]]) -> None:
    depth = Timed()
    stepped = depth.stepped
    first = stepped.submit(prompts[0], LONG)
    stepped.step(5)
    second = stepped.submit(prompts[1], 2, drafts=2)
    stepped.finish(first, second)
    rounds = [(r.size, r.drafts, i in depth.timed) for i, r in enumerate(stepped.rounds)]
    assert rounds[:4] == [(1, 0, False), (1, 0, True), (1, 0, True), (1, 0, True)]
    assert rounds[4:6] == [(1, 0, False), (2, 2, False)]  # a prefill and a resize between them
    # Each change is to a shape not seen before, or comes with a resize.
    changes = [after for before, after in pairwise(rounds) if before[:2] != after[:2]]
    assert [timed for _, _, timed in changes] == [False] * len(changes)
    # Nor are the first, the last, and the ones before a change: none like them was in flight.
    assert not rounds[-1][2]
    assert sum(not timed for _, _, timed in rounds) == 2 + 2 * len(changes)


def test_a_round_is_timed_only_before_one_of_as_many_drafts_and_a_change_comes_twice(
    prompts: list[list[int]],
) -> None:
    depth = Timed(cycle([0, 0, 0, 2, 0, 0, 3]))
    stepped = depth.stepped
    for _ in range(2):  # for the second request no shape is new
        start = len(stepped.rounds)
        stepped.finish(stepped.submit(prompts[0], LONG, drafts=None))
    rounds = [(r.drafts, i in depth.timed) for i, r in enumerate(stepped.rounds)][start:]
    for (drafts, timed), (following, _) in pairwise(rounds[1:]):
        assert timed == (drafts == following)
    runs = [len(list(same)) for _, same in groupby(drafts for drafts, _ in rounds)]
    assert min(runs[1:-1]) >= 2  # the first may continue the last number of the first request
    assert len(runs) > 4
