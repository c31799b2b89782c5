"""The ways in which the next prompt of a conversation may differ from what the cache holds."""

from collections.abc import Iterator

import numpy as np

WAYS = ("continued", "continued", "rewritten", "cut", "reworded", "undone", "again")


class History:
    """What the next prompt starts with, and how much of it a session must be able to reuse."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.ids: list[int] = []
        self.held = 0
        self._rng = rng
        self._last: list[int] = []  # the prompt before

    def walk(self, rounds: int) -> Iterator[str]:
        """Each of the ways, in random order, this many times."""
        for _ in range(rounds):
            yield from self._rng.permutation(WAYS)

    def continue_(self, way: str, prompt: list[int], tokens: list[int], words: list[int]) -> None:
        """Prepare the turn after the one with this prompt and these tokens of output."""
        middle, last, self._last = len(tokens) // 2, self._last, prompt
        if way == "continued":  # the answer stays as it is
            self.ids, self.held = [*prompt, *tokens], len(prompt) + len(tokens) - 1
        elif way == "rewritten":  # a template takes the thought out
            self.ids, self.held = [*prompt, *tokens[middle + 1 :]], len(prompt)
        elif way == "cut":  # the answer is kept in part
            self.ids, self.held = [*prompt, *tokens[:middle], *words], len(prompt)
        elif way == "reworded":  # the end of the prompt changes, at any depth
            self.ids, self.held = prompt[: -int(self._rng.integers(1, 40))], 0
        elif way == "undone":  # the prompt before this one is held if this one starts with it
            self.ids, self.held = last, len(last) if prompt[: len(last)] == last else 0
        else:  # the same prompt once more
            self.ids, self.held = prompt[:-1], len(prompt) - 1
